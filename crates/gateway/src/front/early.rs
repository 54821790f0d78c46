//! What is answered before a service is asked: redirects, a browser's question whether a page of
//! another origin may ask (the CORS protocol of the Fetch standard, 3.2), and requests beyond a
//! route's rate. And what other origins are told on all answers of a route.

use crate::config::{By, Cors, Redirect, Rewrite, Route};
use crate::fields::{Fields, name};
use crate::http::forwarded::Asker;
use crate::http::message::Request;
use crate::path;
use http::{HeaderName, Method, StatusCode};
use regex::Captures;
use std::net::SocketAddr;

/// Whose request it is, for a route's rate.
pub fn rate_key(by: &By, asker: &Asker, peer: SocketAddr, fields: &Fields) -> String {
    let client = || asker.address.unwrap_or(peer.ip().to_canonical()).to_string();
    match by {
        By::Everybody => String::new(),
        By::Client => client(),
        By::Header(name) => match fields.get(name.as_str()) {
            // A header's value is no address.
            Some(value) => format!("={}", String::from_utf8_lossy(value)),
            None => client(),
        },
    }
}

/// Where a client is sent, if its path matches the pattern where there is one.
pub fn location(redirect: &Redirect, request: &Request, is_tls: bool) -> Option<String> {
    let path = request.target.path();
    let to = match &redirect.from {
        Some(from) => expand(&redirect.to, &from.0.captures(path)?),
        None => redirect.to.clone(),
    };
    let query = request.target.query().map(|query| format!("?{query}")).unwrap_or_default();
    let host = request.fields.ascii(name::HOST).unwrap_or_default();
    let named = [
        ("{scheme}", if is_tls { "https" } else { "http" }),
        ("{host}", host),
        ("{path}", path),
        ("{query}", &query),
    ];
    // One pass: what a client sends is not looked at for names.
    let (mut out, mut rest) = (String::with_capacity(to.len() + path.len()), to.as_str());
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let found = named.iter().find(|(name, _)| from.starts_with(name));
        let (name, value) = found.copied().unwrap_or(("{", "{"));
        out.push_str(value);
        rest = &from[name.len()..];
    }
    out.push_str(rest);
    // A location that begins with two slashes is another host's.
    let is_other = out.starts_with("//") || out.starts_with("/\\");
    Some(if is_other { format!("/{}", out.trim_start_matches(['/', '\\'])) } else { out })
}

/// Groups as `$1`, `${1}` and `${name}`; `{host}` and its like stay.
fn expand(to: &str, captures: &Captures<'_>) -> String {
    let mut out = String::new();
    captures.expand(to, &mut out);
    out
}

/// The path that is forwarded, where the pattern matches; in normal form.
pub fn rewritten(rewrite: &Rewrite, path: &str) -> Option<String> {
    let captures = rewrite.from.0.captures(path)?;
    let to = expand(&rewrite.to, &captures);
    let to = if to.starts_with('/') { to } else { format!("/{to}") };
    // What a client's path makes of it must not lead elsewhere.
    Some(path::normal(&to).map_or_else(|_| "/".to_owned(), |normal| normal.passed))
}

/// What a page of another origin is told of an answer; none: it is of no other origin that may ask.
pub fn cors_fields(cors: &Cors, request: &Request) -> Option<Fields> {
    let origin = request.fields.ascii(name::ORIGIN)?;
    let is_any = cors.origins.is_empty();
    let is_known = cors.origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
    if !is_any && !is_known {
        return None;
    }
    let mut fields = Fields::default();
    fields.add(name::ALLOW_ORIGIN, if is_any { "*" } else { origin });
    if cors.has_credentials {
        fields.add(name::ALLOW_CREDENTIALS, "true");
    }
    if is_preflight(request) {
        let methods: Vec<&str> = cors.methods.iter().map(Method::as_str).collect();
        fields.add(name::ALLOW_METHODS, methods.join(", "));
        let wanted = request.fields.get(name::REQUEST_HEADERS);
        match (cors.headers.is_empty(), wanted) {
            (true, Some(wanted)) => fields.add(name::ALLOW_HEADERS, wanted),
            (true, None) => {}
            (false, _) => fields.add(name::ALLOW_HEADERS, listed(&cors.headers)),
        }
        fields.add(name::MAX_AGE, cors.max_age.as_secs().to_string());
    } else if !cors.exposed.is_empty() {
        fields.add(name::EXPOSE_HEADERS, listed(&cors.exposed));
    }
    Some(fields)
}

fn listed(names: &[HeaderName]) -> String {
    names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
}

/// Whether a browser asks if it may ask.
pub fn is_preflight(request: &Request) -> bool {
    request.method == Method::OPTIONS
        && request.fields.has(name::ORIGIN)
        && request.fields.has(name::REQUEST_METHOD)
}

/// What of an answer depends on who asks from where, told to caches, and to whom it is readable: in
/// place of what the server says of that.
pub fn tell_origin(cors: &Cors, told: Option<&Fields>, answer: &mut Fields) {
    for name in [name::ALLOW_ORIGIN, name::ALLOW_CREDENTIALS, name::EXPOSE_HEADERS] {
        answer.remove(name);
    }
    if let Some(told) = told {
        answer.extend(told);
    }
    if !cors.origins.is_empty() {
        answer.add(name::VARY, "Origin");
    }
}

/// What the route answers itself.
pub struct Early {
    pub status: StatusCode,
    pub text: String,
    pub fields: Fields,
}

/// A redirect, or an answer to a browser's question; none: the service is asked.
pub fn answer(route: &Route, request: &Request, is_tls: bool) -> Option<Early> {
    if route.cors.is_some() && is_preflight(request) {
        // What it is told is added to all answers of the route.
        let fields = Fields::default();
        return Some(Early { status: StatusCode::NO_CONTENT, text: String::new(), fields });
    }
    let redirect = route.redirect.as_ref()?;
    let Some(location) = location(redirect, request, is_tls) else {
        let text = "this path is redirected nowhere".to_owned();
        return Some(Early { status: StatusCode::NOT_FOUND, text, fields: Fields::default() });
    };
    let mut fields = Fields::default();
    fields.add(name::LOCATION, &location);
    let text = format!("it is at {location}");
    Some(Early { status: redirect.status, text, fields })
}
