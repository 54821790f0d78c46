//! The last good answers of a service, for the time when it has none.
//!
//! Only what is the same for everybody is kept: answers with 200 to a GET without credentials
//! (`Authorization`, `Cookie`), without `Set-Cookie`, that do not call themselves private. Bounded:
//! the oldest go first.

use crate::fields::{Fields, name};
use base::env::Instant;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Larger answers are not kept.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// All of one service's answers together.
const BYTES_MAX: usize = 64 << 20;
/// What one takes beside its content, about: places in the map and in the order.
const COPY_BYTES: usize = 512;

#[derive(Default)]
pub struct Stale {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    copies: HashMap<String, Arc<Copy>>,
    /// In the order in which they came; who is replaced stays in it under its old number.
    order: VecDeque<(String, u64)>,
    n_bytes: usize,
    n_stored: u64,
}

pub struct Copy {
    pub fields: Fields,
    pub body: Bytes,
    pub stored_at: Instant,
    number: u64,
    /// All that it takes: empty ones take room too.
    n_bytes: usize,
}

impl Stale {
    pub fn get(&self, now: Instant, key: &str, max_age: Duration) -> Option<Arc<Copy>> {
        let inner = self.inner.lock();
        let copy = inner.copies.get(key)?;
        (now.saturating_duration_since(copy.stored_at) <= max_age).then(|| copy.clone())
    }

    fn put(&self, key: String, fields: Fields, body: Bytes, now: Instant) {
        let inner = &mut *self.inner.lock();
        inner.n_stored += 1;
        let number = inner.n_stored;
        let n_bytes = COPY_BYTES + 2 * key.len() + fields.n_bytes() + body.len();
        inner.n_bytes += n_bytes;
        let copy = Arc::new(Copy { fields, body, stored_at: now, number, n_bytes });
        if let Some(old) = inner.copies.insert(key.clone(), copy) {
            inner.n_bytes -= old.n_bytes;
        }
        inner.order.push_back((key, number));
        while inner.n_bytes > BYTES_MAX || inner.order.len() > 2 * inner.copies.len() + 16 {
            let Some((key, number)) = inner.order.pop_front() else { break };
            if inner.copies.get(&key).is_none_or(|copy| copy.number != number) {
                continue;
            }
            if inner.n_bytes <= BYTES_MAX {
                // Still the newest of its key: it only moves to the back.
                inner.order.push_back((key, number));
            } else if let Some(old) = inner.copies.remove(&key) {
                inner.n_bytes -= old.n_bytes;
            }
        }
    }
}

/// The name of a GET's answer; none if it may differ from one client to the next.
pub fn key(host: &str, path_and_query: &str, fields: &Fields) -> Option<String> {
    let personal = [name::AUTHORIZATION, name::COOKIE, name::RANGE];
    if personal.iter().any(|name| fields.has(name)) {
        return None;
    }
    let encoding = fields.get(name::ACCEPT_ENCODING).unwrap_or_default();
    let encoding = String::from_utf8_lossy(encoding);
    Some(format!("{host}\n{path_and_query}\n{encoding}"))
}

/// Whether an answer with these fields is the same for everybody who asks with the same key.
pub fn may_keep(fields: &Fields) -> bool {
    let parts = |name| {
        let parts = fields.all(name).flat_map(|value| value.split(|byte| *byte == b','));
        parts.map(|part| part.trim_ascii().to_ascii_lowercase())
    };
    let is_private = |part: Vec<u8>| part.starts_with(b"private") || part.starts_with(b"no-store");
    !fields.has(name::SET_COOKIE)
        && parts(name::VARY).all(|part| part == name::ACCEPT_ENCODING.as_bytes())
        && !parts(name::CACHE_CONTROL).any(is_private)
}

/// Collects an answer on its way to the client.
pub struct Capture {
    stale: Arc<Stale>,
    key: String,
    fields: Fields,
    body: BytesMut,
    is_too_large: bool,
}

impl Capture {
    pub fn new(stale: Arc<Stale>, key: String, fields: &Fields) -> Capture {
        Capture { stale, key, fields: fields.clone(), body: BytesMut::new(), is_too_large: false }
    }

    pub fn data(&mut self, bytes: &Bytes) {
        self.is_too_large |= self.body.len() + bytes.len() > ANSWER_BYTES_MAX;
        if !self.is_too_large {
            self.body.extend_from_slice(bytes);
        }
    }

    /// The whole answer is through.
    pub fn finish(self, now: Instant) {
        if !self.is_too_large {
            self.stale.put(self.key, self.fields, self.body.freeze(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::{Env, MemoryNet};

    #[test]
    fn what_is_personal_is_not_kept() {
        let of = |name: &str, value: &str| {
            let mut fields = Fields::default();
            fields.add(name, value);
            fields
        };
        assert!(key("h", "/", &of("cookie", "a=1")).is_none());
        assert!(key("h", "/", &of("authorization", "Basic x")).is_none());
        assert!(key("h", "/", &of("accept", "*/*")).is_some());
        assert!(may_keep(&of("vary", "Accept-Encoding")));
        for (name, value) in [
            ("set-cookie", "a=1"),
            ("cache-control", "max-age=1, Private"),
            ("cache-control", "no-store"),
            ("vary", "Accept-Encoding, Origin"),
            ("vary", "*"),
        ] {
            assert!(!may_keep(&of(name, value)), "{name}: {value}");
        }
    }

    #[test]
    fn the_store_is_bounded_and_the_oldest_go_first() {
        let now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
        let stale = Stale::default();
        let body = Bytes::from(vec![0; ANSWER_BYTES_MAX]);
        for n in 0..100 {
            stale.put(n.to_string(), Fields::default(), body.clone(), now);
            stale.put("always".into(), Fields::default(), body.clone(), now);
        }
        let hour = Duration::from_secs(3600);
        assert!(stale.get(now, "0", hour).is_none());
        assert!(stale.get(now, "99", hour).is_some());
        assert!(stale.get(now, "always", hour).is_some());
        let inner = stale.inner.lock();
        assert!(inner.n_bytes <= BYTES_MAX && inner.order.len() <= 2 * inner.copies.len() + 16);
        drop(inner);
        assert!(stale.get(now + hour * 2, "99", hour).is_none());
        // Empty ones are not for nothing.
        for n in 0..200_000 {
            stale.put(format!("empty {n}"), Fields::default(), Bytes::new(), now);
        }
        assert!(stale.get(now, "empty 0", hour).is_none());
        assert!(stale.get(now, "empty 199999", hour).is_some());
        assert!(stale.inner.lock().copies.len() < BYTES_MAX / COPY_BYTES);
    }
}
