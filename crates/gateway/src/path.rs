//! A request's path: what is passed on, and what routes compare.
//!
//! Two readers may understand one path in two ways, and a route is kept by the one that decides it
//! only if the server behind it reads the same. So a path has two forms:
//!
//! | as it came | passed on | compared with routes |
//! |---|---|---|
//! | `/a/./b/../c` | `/a/c` | `/a/c` |
//! | `/%61dmin` | `/admin` | `/admin` |
//! | `//admin//x` | `//admin//x` | `/admin/x` |
//! | `/admin%2Fx`, `/admin\x` | as it came | `/admin/x` |
//! | `/admin;v=1/x` | as it came | `/admin/x` |
//! | `/caf%C3%A9` | as it came | `/café` |
//! | `/x/..%2Fadmin`, `/x/..;/admin`, `/a%00` | refused | |
//!
//! The first two rows are RFC 3986 (6.2.2.2 and 6.2.2.3). The others differ from server to server:
//! what is compared is what the most generous reader sees, and where a dot segment is one for some
//! readers alone the request is refused. So is a path whose dot segments lead from one route into
//! another: who does not resolve them sees the first.

/// Why a path is refused, in words.
pub type Error = &'static str;

const NUL: Error = "the path has a NUL (%00), behind which some servers see nothing";
const DOTS: Error = "the path has a dot segment that some servers see and others do not (%2F, \
                     %5C, \\ or ; beside it)";

/// A path as routes see it, for those that a file names; none: it has no such form.
pub fn compared(path: &str) -> Option<String> {
    let Normal { passed, compared, .. } = normal(path).ok()?;
    Some(compared.unwrap_or(passed))
}

/// What is left of the path behind `n` segments, as routes count them.
pub fn behind(path: &str, n: usize) -> &str {
    let mut rest = path;
    for _ in 0..n {
        rest = without_slashes(rest);
        let n_segment = (0..rest.len())
            .find(|at| rest.is_char_boundary(*at) && slash(&rest.as_bytes()[*at..]).is_some());
        rest = &rest[n_segment.unwrap_or(rest.len())..];
    }
    rest
}

fn without_slashes(path: &str) -> &str {
    let mut rest = path;
    while let Some(n) = slash(rest.as_bytes()) {
        rest = &rest[n..];
    }
    rest
}

/// How long a slash is that begins here, for the most generous reader.
fn slash(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'/' | b'\\', ..] => Some(1),
        [b'%', b'2', b'F' | b'f', ..] | [b'%', b'5', b'C' | b'c', ..] => Some(3),
        _ => None,
    }
}

/// A path's forms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Normal {
    pub passed: String,
    /// What is compared, where that differs from what is passed on.
    pub compared: Option<String>,
    /// What is compared by readers that do not resolve dot segments, where there are some.
    pub unresolved: Option<String>,
}

pub fn normal(path: &str) -> Result<Normal, Error> {
    let bytes = path.as_bytes();
    let is_odd = bytes.iter().any(|byte| matches!(byte, b'%' | b'\\' | b';'))
        || bytes.windows(2).any(|two| matches!(two, b"//" | b"/."));
    if !is_odd {
        return Ok(Normal { passed: path.to_owned(), ..Normal::default() });
    }
    let mut passed = decoded(path)?;
    let mut unresolved = None;
    if has_dots(&passed)? {
        unresolved = Some(seen(&passed));
        passed = without_dots(&passed);
    }
    let compared = seen(&passed);
    let compared = (compared != passed).then_some(compared);
    Ok(Normal { passed, compared, unresolved })
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let &[high, low, ..] = digits else { return None };
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Unreserved characters as themselves (RFC 3986, 6.2.2.2).
fn decoded(path: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(path.len());
    // Where a `%` stands that begins nothing: with what follows it, it must not come to begin
    // something.
    let mut stray = None;
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(value) = hex(&rest.as_bytes()[1..]) else {
            stray = Some(out.len());
            out.push('%');
            rest = &rest[1..];
            continue;
        };
        let is_plain = value.is_ascii_alphanumeric() || b"-._~".contains(&value);
        let is_free = stray.is_none_or(|stray| out.len() > stray + 2);
        match value {
            0 => return Err(NUL),
            _ if is_plain && is_free => out.push(char::from(value)),
            _ => out.push_str(&rest[..3]),
        }
        rest = &rest[3..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Whether there are dot segments; refused where they are some for certain readers alone.
fn has_dots(path: &str) -> Result<bool, Error> {
    let mut has = false;
    let mut rest = path;
    let mut is_plain = true;
    loop {
        let end = (0..rest.len())
            .find(|at| rest.is_char_boundary(*at) && slash(&rest.as_bytes()[*at..]).is_some());
        let segment = &rest[..end.unwrap_or(rest.len())];
        let name = segment.split(';').next().unwrap_or_default();
        let is_dots = matches!(name, "." | "..");
        let n_slash = end.and_then(|end| slash(&rest.as_bytes()[end..]));
        let ends_plainly = end.is_none_or(|end| rest.as_bytes()[end] == b'/');
        if is_dots && (!is_plain || !ends_plainly || name.len() < segment.len()) {
            return Err(DOTS);
        }
        has |= is_dots;
        let (Some(end), Some(n_slash)) = (end, n_slash) else { return Ok(has) };
        is_plain = ends_plainly;
        rest = &rest[end + n_slash..];
    }
}

/// Without dot segments (RFC 3986, 5.2.4), and without empty ones: what `..` leaves beside them,
/// servers see in two ways.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_folder = true;
    for segment in path.split('/') {
        is_folder = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    joined(&kept, is_folder)
}

fn joined(segments: &[&str], is_folder: bool) -> String {
    let mut path = String::from("/");
    path += &segments.join("/");
    if is_folder && path.len() > 1 {
        path.push('/');
    }
    path
}

/// What the most generous reader sees: each kind of slash, one of several, nothing behind `;`, and
/// characters instead of their numbers.
fn seen(path: &str) -> String {
    let mut segments: Vec<String> = Vec::new();
    let mut rest = path;
    let mut is_folder = false;
    while !rest.is_empty() {
        let after = without_slashes(rest);
        is_folder = after.is_empty();
        if is_folder {
            break;
        }
        rest = behind(after, 1);
        let segment = &after[..after.len() - rest.len()];
        let name = segment.split(';').next().unwrap_or_default();
        if !name.is_empty() {
            segments.push(characters(name));
        }
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    joined(&segments, is_folder)
}

fn characters(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match hex(after).filter(|_| *first == b'%') {
            Some(value) => {
                bytes.push(value);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_prefix_is_counted_in_segments() {
        for (path, n, rest) in [
            ("/a/b/c", 1, "/b/c"),
            ("//a//b/c", 2, "/c"),
            ("/a%2fb/c", 1, "%2fb/c"),
            ("/é/b", 1, "/b"),
            ("/a", 1, ""),
            ("/a", 0, "/a"),
        ] {
            assert_eq!(behind(path, n), rest, "{path} {n}");
        }
    }
}
