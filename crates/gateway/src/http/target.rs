//! What a request is for: a path and a query, and the host where the target names it.
//!
//! A query is passed on as it came; characters that RFC 3986 forbids and browsers send (`"`, `<`,
//! `` ` ``, `{`) are nobody's business here. What becomes of a path [`crate::path`] tells.

use super::error::Error;
use crate::path;
use http::Uri;
use http::uri::PathAndQuery;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Of the absolute form, of HTTP/2's `:authority` and of CONNECT, without who the client says
    /// it is.
    host: Option<String>,
    /// The path and the query, as they are passed on.
    text: String,
    n_path: usize,
    /// The path as routes see it, where that differs.
    compared: Option<String>,
    /// The same with its dot segments, where it had some.
    unresolved: Option<String>,
}

const NEITHER: Error = Error::Malformed("the target is neither a path nor a URI of http or https");
const FRAGMENT: Error = Error::Malformed("the target has a fragment (#), which stays with clients");

impl Target {
    /// A request line's target (RFC 9112, 3.2). `is_connect`: it names a host and a port alone.
    pub fn parse(text: &str, is_connect: bool) -> Result<Target, Error> {
        if text.contains('#') {
            return Err(FRAGMENT);
        }
        if is_connect {
            return Ok(Target { host: Some(text.to_owned()), ..Target::of("", None)? });
        }
        if text == "*" {
            let (text, n_path) = (text.to_owned(), 1);
            return Ok(Target { host: None, text, n_path, compared: None, unresolved: None });
        }
        if text.starts_with('/') {
            let (path, query) = split(text);
            return Target::of(path, query);
        }
        let (scheme, rest) = text.split_once("://").ok_or(NEITHER)?;
        if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(NEITHER);
        }
        let n_authority = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(n_authority);
        let (path, query) = split(rest);
        let host = without_user(authority);
        if host.is_empty() {
            return Err(NEITHER);
        }
        Ok(Target { host: Some(host.to_owned()), ..Target::of(path, query)? })
    }

    fn of(path: &str, query: Option<&str>) -> Result<Target, Error> {
        let path = if path.is_empty() { "/" } else { path };
        let normal = path::normal(path).map_err(Error::Malformed)?;
        let path::Normal { passed, compared, unresolved } = normal;
        let n_path = passed.len();
        let mut text = passed;
        if let Some(query) = query {
            text.reserve(query.len() + 1);
            text.push('?');
            text.push_str(query);
        }
        Ok(Target { host: None, text, n_path, compared, unresolved })
    }

    /// The path and the query, as they are passed on.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// The path, as it is passed on.
    pub fn path(&self) -> &str {
        &self.text[..self.n_path]
    }

    pub fn query(&self) -> Option<&str> {
        self.text[self.n_path..].strip_prefix('?')
    }

    /// The path, as routes see it.
    pub fn compared(&self) -> &str {
        self.compared.as_deref().unwrap_or(self.path())
    }

    /// The path as whoever does not resolve dot segments compares it; none: it had none.
    pub fn unresolved(&self) -> Option<&str> {
        self.unresolved.as_deref()
    }

    /// The host that it names.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }
}

/// As HTTP/2's library has it.
impl TryFrom<&Uri> for Target {
    type Error = Error;

    fn try_from(uri: &Uri) -> Result<Target, Error> {
        let host = uri.authority().map(|authority| without_user(authority.as_str()).to_owned());
        let target = match uri.path() {
            "*" => Target::parse("*", false)?,
            path => Target::of(path, uri.query())?,
        };
        Ok(Target { host, ..target })
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)))
}

/// Who the client says it is stands before the host, and is nobody's business.
fn without_user(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// As HTTP/2's library takes it: characters that it refuses go by their numbers (RFC 3986, 2.1).
pub fn path_and_query(text: &str) -> Option<PathAndQuery> {
    if let Ok(path) = PathAndQuery::try_from(text) {
        return Some(path);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7f.. | ..=b' ' => {
                escaped += &format!("%{byte:02X}");
            }
            _ => escaped.push(char::from(byte)),
        }
    }
    PathAndQuery::try_from(escaped).ok()
}

/// Whether it can be the host of a request, with a port or without (RFC 9110, 7.2; RFC 3986,
/// 3.2.2). Nothing is one too: who asks may not know it.
pub fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match port.strip_prefix(':') {
                Some(port) => ("", port),
                None if port.is_empty() => ("", ""),
                None => return false,
            }
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=%".contains(&byte);
    name.bytes().all(is_of_name) && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// The host without the dot that ends a name in DNS; none where there is no such dot.
pub fn without_dot(host: &str) -> Option<String> {
    let (name, port) = match host.rfind(':') {
        Some(at) if !host.ends_with(']') => host.split_at(at),
        _ => (host, ""),
    };
    let name = name.strip_suffix('.').filter(|name| !name.is_empty())?;
    Some(format!("{name}{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is passed on and what is compared, or that it is refused.
    fn read(text: &str) -> String {
        match Target::parse(text, false) {
            Ok(target) => format!("{} {}", target.text(), target.compared()),
            Err(_) => "refused".into(),
        }
    }

    #[test]
    fn a_path_is_passed_on_and_compared_in_normal_form() {
        for (text, expected) in [
            ("/", "/ /"),
            ("/a/b?c=/../d", "/a/b?c=/../d /a/b"),
            ("/a/./b/../c", "/a/c /a/c"),
            ("/../../a", "/a /a"),
            ("/a/..", "/ /"),
            ("/a/b/.", "/a/b/ /a/b/"),
            ("/a/b/..", "/a/ /a/"),
            ("/x/%2e%2E/admin", "/admin /admin"),
            ("/%61dmin/%7Euser", "/admin/~user /admin/~user"),
            ("//admin//x/", "//admin//x/ /admin/x/"),
            ("/files//../x", "/x /x"),
            ("/.//admin", "/admin /admin"),
            ("/admin%2fx", "/admin%2fx /admin/x"),
            ("/%5cadmin", "/%5cadmin /admin"),
            ("/\\a", "/\\a /a"),
            ("/admin;v=1/x;y", "/admin;v=1/x;y /admin/x"),
            ("/;/admin", "/;/admin /admin"),
            ("/caf%C3%A9", "/caf%C3%A9 /café"),
            ("/a%20b", "/a%20b /a b"),
            ("/%", "/% /%"),
            ("/%zz", "/%zz /%zz"),
            ("/.well-known/x", "/.well-known/x /.well-known/x"),
            ("/a..b/...", "/a..b/... /a..b/..."),
            // A stray percent sign is not made the beginning of something.
            ("/%%361dmin", "/%%361dmin /%61dmin"),
            ("/%6%31dmin", "/%6%31dmin /%61dmin"),
            ("/%252e%252e/x", "/%252e%252e/x /%2e%2e/x"),
            ("*", "* *"),
            ("http://h", "/ /"),
            ("HTTPS://u:p@h:1?q", "/?q /"),
            ("http://h/a/../b", "/b /b"),
            ("/x/..%2fadmin", "refused"),
            ("/x%2f../admin", "refused"),
            ("/x\\..\\admin", "refused"),
            ("/x/..;/admin", "refused"),
            ("/x/.;v/admin", "refused"),
            ("/x/%2e%2e%5cadmin", "refused"),
            ("/a%00", "refused"),
            ("/a#b", "refused"),
            ("a", "refused"),
            ("ftp://h/", "refused"),
            ("http:///a", "refused"),
            ("http://u@/a", "refused"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        let host = |text| Target::parse(text, false).unwrap().host().map(str::to_owned);
        assert_eq!(host("HTTPS://u:p@h:1?q").as_deref(), Some("h:1"));
        assert_eq!(host("/a"), None);
        assert_eq!(Target::parse("h:1", true).unwrap().host(), Some("h:1"));
    }

    #[test]
    fn what_http2_refuses_goes_by_its_number() {
        let of = |text| path_and_query(text).unwrap().to_string();
        assert_eq!(of("/a?b={c}"), "/a?b={c}");
        assert_eq!(of("/a<b>?q=\"x\""), "/a%3Cb%3E?q=%22x%22");
        assert_eq!(of("/`é\u{1f}"), "/%60%C3%A9%1F");
    }

    #[test]
    fn a_host_is_a_name_and_a_port() {
        for host in ["", "h", "h:80", "h:", "[::1]", "[::1]:80", "a_b.example", "1.2.3.4:5"] {
            assert!(is_host(host), "{host:?}");
        }
        for host in [
            "a b", "a/b", "u@h", "h:x", "h:1:2", "[::1", "[x]", "a\\b", "é", "[::1]80", "a?b",
            "<h>",
        ] {
            assert!(!is_host(host), "{host:?}");
        }
        assert_eq!(without_dot("a.example."), Some("a.example".into()));
        assert_eq!(without_dot("a.example.:80"), Some("a.example:80".into()));
        for host in ["a.example", ".", "[::1]", "a.:80."] {
            assert_eq!(without_dot(host).filter(|_| host != "a.:80."), None, "{host}");
        }
    }
}
