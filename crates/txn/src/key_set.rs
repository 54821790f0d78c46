//! Many keys in little memory: the keys that a bulk load has locked or marked.
//!
//! A key as a node of a tree costs some 200 bytes. Here the keys stand one after the other in one
//! buffer, sorted, with the place where each key ends: four bytes more than the key itself. A million
//! keys of 20 bytes take 24 MB.
//!
//! ```text
//! add ["a1", "a3"], then ["b7"]      is "a3" in it? yes. "a2"? no. Any in ["a4", "b0")? no.
//! ```
//!
//! Each addition is a run. Two runs of about the same size are merged (a log-structured merge), so
//! that 2,000 additions of 2,000 keys leave some 60 runs to look through, each by binary search.
//! Invariants: a run is sorted and has no key twice; two runs may have the same key.
//!
//! Absent: taking one key out. A transaction gives back all its keys at once.

use base::{Key, KeyRange, Limits};
use std::ops::Range;

/// When keys become sets, and when sets become ranges.
#[derive(Clone, Copy, Debug)]
pub struct SetLimits {
    /// A call's keys become one key set from this many on.
    pub n_keys_min: usize,
    /// The key sets of one table take no more than this; a key takes its length and four bytes.
    pub bytes_max: usize,
}

impl SetLimits {
    pub fn of(limits: &Limits) -> SetLimits {
        SetLimits { n_keys_min: limits.key_set_keys, bytes_max: limits.key_set_bytes }
    }
}

impl Default for SetLimits {
    fn default() -> SetLimits {
        SetLimits::of(&Limits::default())
    }
}

/// A run of this many keys, or this many bytes, is not merged again. So one addition never copies more.
const RUN_KEYS_MAX: usize = 1 << 16;
const RUN_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct KeySet {
    runs: Vec<Run>,
}

#[derive(Debug, Default)]
struct Run {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

/// The bytes that `keys` will take in a key set.
pub(crate) fn n_bytes(keys: &[Key]) -> usize {
    keys.iter().map(|key| key.len() + size_of::<u32>()).sum()
}

impl KeySet {
    /// `keys` are sorted.
    pub(crate) fn add(&mut self, keys: &[Key]) {
        let mut rest = keys;
        while !rest.is_empty() {
            let mut run = Run::default();
            while let Some((key, more)) = rest.split_first() {
                if run.is_full() {
                    break;
                }
                run.push(key);
                rest = more;
            }
            self.runs.push(run);
            self.merge_last();
        }
    }

    fn merge_last(&mut self) {
        while let [.., before, last] = &self.runs[..] {
            let is_large = before.is_full()
                || before.bytes.len() + last.bytes.len() > RUN_BYTES_MAX
                || before.len() + last.len() > RUN_KEYS_MAX;
            // A run that lies behind the other is appended, whatever its size: a load in key order copies no key twice.
            let follows = before.last() < last.first();
            if is_large || (before.len() > 2 * last.len() && !follows) {
                return;
            }
            let (Some(last), Some(before)) = (self.runs.pop(), self.runs.pop()) else { return };
            self.runs.push(before.merged(&last));
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.runs.iter().any(|run| run.contains(key))
    }

    pub(crate) fn any_in(&self, range: &KeyRange) -> bool {
        self.runs.iter().any(|run| {
            let first = run.below(&range.start);
            first < run.len() && range.contains(run.key(first))
        })
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.runs.iter().map(|run| run.bytes.len() + run.ends.len() * size_of::<u32>()).sum()
    }

    #[cfg(test)]
    pub(crate) fn n_runs(&self) -> usize {
        self.runs.len()
    }
}

impl Run {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn is_full(&self) -> bool {
        self.len() >= RUN_KEYS_MAX || self.bytes.len() >= RUN_BYTES_MAX
    }

    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        // A full run takes no more keys, and a key is smaller than a message: this fits.
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    fn span(&self, n: usize) -> Range<usize> {
        let start = if n == 0 { 0 } else { self.ends[n - 1] as usize };
        start..self.ends[n] as usize
    }

    fn key(&self, n: usize) -> &[u8] {
        &self.bytes[self.span(n)]
    }

    fn first(&self) -> Option<&[u8]> {
        (self.len() > 0).then(|| self.key(0))
    }

    fn last(&self) -> Option<&[u8]> {
        self.len().checked_sub(1).map(|n| self.key(n))
    }

    /// How many keys are smaller than `key`.
    fn below(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key(middle) < key {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }

    fn contains(&self, key: &[u8]) -> bool {
        if self.first().is_none_or(|first| key < first) || self.last() < Some(key) {
            return false;
        }
        let at = self.below(key);
        at < self.len() && self.key(at) == key
    }

    fn merged(mut self, other: &Run) -> Run {
        if self.last() < other.first() {
            (0..other.len()).for_each(|n| self.push(other.key(n)));
            return self;
        }
        let mut run = Run::default();
        let (mut a, mut b) = (0, 0);
        while a < self.len() || b < other.len() {
            let left = (a < self.len()).then(|| self.key(a));
            let right = (b < other.len()).then(|| other.key(b));
            let take_left = right.is_none() || left.is_some_and(|left| Some(left) <= right);
            let key = if take_left { left } else { right };
            a += usize::from(left.is_some() && left == key);
            b += usize::from(right.is_some() && right == key);
            run.push(key.unwrap_or_default());
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::collections::BTreeSet;

    fn key(n: u32) -> Key {
        Key::copy_from_slice(&n.to_be_bytes())
    }

    #[test]
    fn it_holds_what_was_added_and_nothing_between() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut set, mut model) = (KeySet::default(), BTreeSet::new());
        for _ in 0..200 {
            let more: BTreeSet<u32> =
                (0..rng.random_range(1..40)).map(|_| rng.random_range(0..20_000)).collect();
            set.add(&more.iter().map(|n| key(*n)).collect::<Vec<_>>());
            model.extend(more);
        }
        for n in 0..20_000 {
            assert_eq!(set.contains(&key(n)), model.contains(&n), "{n}");
            let end = n + rng.random_range(0..20);
            let any = model.range(n..end).next().is_some();
            assert_eq!(set.any_in(&KeyRange::new(key(n), key(end))), any, "{n}..{end}");
        }
        assert!(set.any_in(&KeyRange { start: key(0), end: None }));
        assert!(set.n_runs() < 20, "{} runs", set.n_runs());
    }

    #[test]
    fn a_load_in_key_order_leaves_few_runs_and_little_memory() {
        let mut set = KeySet::default();
        for chunk in 0..150 {
            set.add(&(0..2000).map(|n| key(chunk * 2000 + n)).collect::<Vec<_>>());
        }
        assert_eq!(set.n_bytes(), 300_000 * 8);
        assert!(set.n_runs() <= 6, "{} runs", set.n_runs());
        assert!(set.contains(&key(299_999)) && !set.contains(&key(300_000)));
    }
}
