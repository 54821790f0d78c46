//! Which service a request is for: the first route of the file that matches.

use crate::config::{PathMatch, Route};
use crate::fields::Fields;
use crate::path;
use http::Method;

/// Words of a path that tell what a request is like.
const N_WORDS: usize = 4;

/// What a route looks at.
pub struct Request<'a> {
    /// Lower-case or not, with or without a port.
    pub host: &'a str,
    /// As [`crate::path`] has it for comparing.
    pub path: &'a str,
    pub method: &'a Method,
    pub headers: &'a Fields,
}

/// The place of the first route that matches.
pub fn find(routes: &[Route], request: &Request<'_>) -> Option<usize> {
    let host = without_port(request.host);
    routes.iter().position(|route| {
        is_below(&route.path, request.path)
            && (route.methods.is_empty() || route.methods.contains(request.method))
            && (route.hosts.is_empty() || route.hosts.iter().any(|pattern| is_host(pattern, host)))
            && route.headers.iter().all(|(name, wanted)| {
                let mut values = request.headers.all(name.as_str());
                match wanted {
                    Some(wanted) => values.any(|value| value == wanted.as_bytes()),
                    None => values.next().is_some(),
                }
            })
    })
}

/// The service for a draw between 0 and 1, by the route's weights.
pub fn target(route: &Route, draw: f64) -> Option<&str> {
    if let [(only, _)] = &route.targets[..] {
        return Some(only);
    }
    let total: u64 = route.targets.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut at = (draw * total as f64) as u64;
    for (name, weight) in &route.targets {
        if at < u64::from(*weight) {
            return Some(name);
        }
        at -= u64::from(*weight);
    }
    None
}

/// What a request is like, among those of its service: its route, its method and the words of its
/// path, for as many as matter. What has digits is a name, and not a word.
pub fn class(route: &Route, method: &Method, path: &str) -> u32 {
    let is_word = |segment: &&str| !segment.bytes().any(|byte| byte.is_ascii_digit());
    let words = path.split('/').take(N_WORDS + 1).filter(is_word);
    // FNV-1a.
    let parts = [route.name.as_str(), method.as_str()].into_iter().chain(words);
    parts
        .flat_map(|part| part.bytes().chain([b'/']))
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The path after the route's prefix is replaced, if it says so; `path` is what is passed on.
pub fn replaced(route: &Route, path: &str) -> Option<String> {
    let by = route.replace_prefix.as_ref()?;
    let rest = match &route.path {
        PathMatch::Exactly(_) => "",
        PathMatch::Below(prefix) => {
            let n_segments = prefix.split('/').filter(|segment| !segment.is_empty()).count();
            path::behind(path, n_segments)
        }
    };
    let rest = rest.trim_start_matches('/');
    let by = if rest.is_empty() { by.as_str() } else { by.trim_end_matches('/') };
    Some(if rest.is_empty() { by.to_owned() } else { format!("{by}/{rest}") })
}

fn is_below(pattern: &PathMatch, path: &str) -> bool {
    match pattern {
        PathMatch::Exactly(exact) => path == exact,
        PathMatch::Below(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

fn is_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            host.len() > suffix.len()
                && host.is_char_boundary(host.len() - suffix.len())
                && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
        }
        None => host.eq_ignore_ascii_case(pattern),
    }
}

/// "[::1]:80" and "a:80" without ":80".
fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') && !host[..at].ends_with(':') => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn route(path: PathMatch) -> Route {
        Route {
            name: "r".into(),
            hosts: Vec::new(),
            path,
            methods: Vec::new(),
            headers: Vec::new(),
            targets: vec![("s".into(), 1)],
            priority: Default::default(),
            timeout: None,
            body_bytes_max: None,
            replace_prefix: None,
            rewrite: None,
            redirect: None,
            rate_limit: None,
            cors: None,
            idle_timeout: None,
            compress: false,
            request_headers: Default::default(),
            response_headers: Default::default(),
        }
    }

    fn below(path: &str) -> Route {
        route(PathMatch::Below(path.into()))
    }

    fn matches(route: Route, host: &str, path: &str) -> bool {
        let headers = Fields::default();
        find(&[route], &Request { host, path, method: &Method::GET, headers: &headers }).is_some()
    }

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        for prefix in ["/api", "/api/"] {
            assert!(matches(below(prefix), "h", "/api"));
            assert!(matches(below(prefix), "h", "/api/x"));
            assert!(!matches(below(prefix), "h", "/apis"));
            assert!(!matches(below(prefix), "h", "/"));
        }
        assert!(matches(below("/"), "h", "/anything"));
    }

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        let of = |host: &str| Route { hosts: vec![host.into()], ..below("/") };
        assert!(matches(of("a.example"), "A.Example:8080", "/"));
        assert!(!matches(of("a.example"), "b.a.example", "/"));
        assert!(matches(of("*.example"), "b.a.example", "/"));
        assert!(!matches(of("*.example"), "example", "/"));
        assert!(!matches(of("*.example"), "évilexample", "/"));
        assert!(matches(of("[::1]"), "[::1]:80", "/"));
    }

    #[test]
    fn the_first_route_that_matches_all_it_names_is_taken() {
        let beta = Route {
            headers: vec![(HeaderName::from_static("x-beta"), Some("1".into()))],
            ..below("/")
        };
        let posts = Route { methods: vec![Method::POST], ..below("/") };
        let routes = [beta, posts, below("/")];
        let mut headers = Fields::default();
        let find = |headers: &Fields, method: &Method| {
            super::find(&routes, &Request { host: "h", path: "/", method, headers })
        };
        assert_eq!(find(&headers, &Method::GET), Some(2));
        assert_eq!(find(&headers, &Method::POST), Some(1));
        headers.add("x-beta", "0");
        assert_eq!(find(&headers, &Method::GET), Some(2));
        headers.add("X-Beta", "1");
        assert_eq!(find(&headers, &Method::GET), Some(0));
    }

    #[test]
    fn weights_divide_the_draws() {
        let targets = vec![("stable".into(), 95), ("never".into(), 0), ("canary".into(), 5)];
        let route = Route { targets, ..below("/") };
        assert_eq!(target(&route, 0.0), Some("stable"));
        assert_eq!(target(&route, 0.949), Some("stable"));
        assert_eq!(target(&route, 0.951), Some("canary"));
        assert_eq!(target(&route, 0.999), Some("canary"));
    }

    #[test]
    fn the_prefix_is_replaced_with_one_slash_between() {
        for (prefix, by, path, expected) in [
            ("/api/", "/v2/", "/api/x/y", "/v2/x/y"),
            ("/api", "/v2", "/api/x", "/v2/x"),
            ("/api", "/", "/api/x", "/x"),
            ("/api", "/", "/api", "/"),
            ("/", "/in", "/x", "/in/x"),
            ("/api", "/v2", "/%61pi%2fx", "/v2/%2fx"),
            ("/api", "/v2", "//api//x", "/v2/x"),
        ] {
            let route = Route { replace_prefix: Some(by.into()), ..below(prefix) };
            assert_eq!(replaced(&route, path).as_deref(), Some(expected), "{prefix} {by} {path}");
        }
    }
}
