//! Who asks, as servers are told it: what a client says of itself is believed of trusted proxies
//! alone (`trusted_proxies`).
//!
//! ```text
//!   stranger ──► gateway            its claims are taken out, X-Forwarded-For: stranger
//!   stranger ──► proxy ──► gateway  X-Forwarded-For: stranger, proxy
//! ```
//!
//! A chain is believed from its end to the first address that is no trusted proxy: that is the
//! client. What stands before it the client made up, and it goes no further.

use crate::config::Network;
use crate::fields::{self, Fields, name};
use std::net::{IpAddr, SocketAddr};

/// Beside `x-forwarded` and all that begins with `x-forwarded-`.
const CLAIMS: [&str; 14] = [
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
    "x-host",
    "x-scheme",
    "x-url-scheme",
    "x-proxyuser-ip",
    "front-end-https",
];
const FAMILY: &[u8] = b"x-forwarded";

/// Whether the field tells where a request comes from, or what it was before a proxy had it. Some
/// servers take `_` for `-`.
pub fn is_claim(name: &[u8]) -> bool {
    let same = |one: u8, other: u8| {
        let one = if one == b'_' { b'-' } else { one.to_ascii_lowercase() };
        one == other
    };
    let is = |known: &[u8]| {
        name.len() == known.len() && name.iter().zip(known).all(|(one, other)| same(*one, *other))
    };
    match name.first() {
        Some(b'x' | b'X' | b'f' | b'F' | b't' | b'T') => {}
        _ => return false,
    }
    let (family, rest) = name.split_at(name.len().min(FAMILY.len()));
    let is_family = family.len() == FAMILY.len()
        && family.iter().zip(FAMILY).all(|(one, other)| same(*one, *other))
        && matches!(rest.first(), None | Some(b'-' | b'_'));
    is_family || CLAIMS.iter().any(|claim| is(claim.as_bytes()))
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// None: the peer.
    pub address: Option<IpAddr>,
    /// Whether it speaks TLS, here or with a trusted proxy.
    pub is_tls: bool,
}

/// Whether a peer is a trusted proxy.
pub fn is_trusted(trusted: &[Network], peer: IpAddr) -> bool {
    trusted.iter().any(|network| network.holds(peer))
}

/// Takes out what is not believed.
pub fn believe(fields: &mut Fields, trusted: &[Network], peer: SocketAddr, is_tls: bool) -> Asker {
    if !is_trusted(trusted, peer.ip()) {
        fields.retain(|name| !is_claim(name));
        return Asker { address: None, is_tls };
    }
    let address = cut(fields, trusted);
    let is_tls = match fields.ascii(name::FORWARDED_PROTO) {
        Some(proto) => proto.eq_ignore_ascii_case("https"),
        None => is_tls,
    };
    Asker { address, is_tls }
}

/// The chain's client; what stands before it is taken out.
fn cut(fields: &mut Fields, trusted: &[Network]) -> Option<IpAddr> {
    let chain: Vec<&str> = fields
        .all(name::FORWARDED_FOR)
        .filter_map(fields::ascii)
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    let known = |part: &&str| address_of(part).is_some_and(|address| is_trusted(trusted, address));
    let n_trusted = chain.iter().rev().take_while(|part| known(part)).count();
    let from = chain.len().saturating_sub(n_trusted + 1);
    let client = chain.get(from).and_then(|part| address_of(part));
    if from > 0 {
        let kept = chain[from..].join(", ");
        fields.set(name::FORWARDED_FOR, kept);
    }
    client
}

/// `10.0.0.1`, `10.0.0.1:80`, `::1` or `[::1]:80`.
fn address_of(text: &str) -> Option<IpAddr> {
    let literal = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = literal.unwrap_or(text).parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

/// Tells the server who asked: the peer's address, as text made once for its connection.
pub fn tell(fields: &mut Fields, peer: &str, is_tls: bool) {
    if fields.has(name::FORWARDED_FOR) {
        let mut chain = Vec::with_capacity(64);
        for value in fields.all(name::FORWARDED_FOR) {
            chain.extend_from_slice(value);
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(peer.as_bytes());
        fields.set(name::FORWARDED_FOR, chain);
    } else {
        fields.add(name::FORWARDED_FOR, peer);
    }
    if !fields.has(name::FORWARDED_PROTO) {
        fields.add(name::FORWARDED_PROTO, if is_tls { "https" } else { "http" });
    }
    if !fields.has(name::FORWARDED_HOST) {
        fields.add_same(name::FORWARDED_HOST, name::HOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.add(name, value);
        }
        fields
    }

    fn networks() -> Vec<Network> {
        ["10.0.0.0/8", "::1"].iter().map(|text| Network::of(text).unwrap()).collect()
    }

    #[test]
    fn a_strangers_claims_are_taken_out_however_they_are_spelled() {
        for claim in [
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-Forwarded",
            "x-forwarded-anything",
            "Forwarded",
            "X-Real-IP",
            "X_Real_Ip",
            "True-Client-IP",
            "X-Original-URL",
            "X-Rewrite-Url",
            "Front-End-Https",
        ] {
            assert!(is_claim(claim.as_bytes()), "{claim}");
        }
        for other in ["x-forwardedfor", "host", "x-request-id", "te", "from", "x", "", "x-for"] {
            assert!(!is_claim(other.as_bytes()), "{other}");
        }
        let mut headers = fields(&[("host", "a.example"), ("X-Forwarded-Proto", "https")]);
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let asker = believe(&mut headers, &networks(), peer, false);
        assert_eq!(asker, Asker { address: None, is_tls: false });
        tell(&mut headers, "192.0.2.1", false);
        assert_eq!(headers.ascii("x-forwarded-for"), Some("192.0.2.1"));
        assert_eq!(headers.ascii("x-forwarded-proto"), Some("http"));
        assert_eq!(headers.ascii("x-forwarded-host"), Some("a.example"));
    }

    #[test]
    fn a_chain_is_believed_to_the_first_stranger_from_its_end() {
        let peer = SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x0a00, 9], 1));
        let told = |chain: &[(&str, &str)]| {
            let mut headers = fields(chain);
            let asker = believe(&mut headers, &networks(), peer, false);
            tell(&mut headers, "10.0.0.9", false);
            let client = asker.address.map(|address| address.to_string()).unwrap_or_default();
            format!("{client}: {}", headers.ascii("x-forwarded-for").unwrap())
        };
        let key = "x-forwarded-for";
        assert_eq!(told(&[]), ": 10.0.0.9");
        assert_eq!(told(&[(key, "203.0.113.7")]), "203.0.113.7: 203.0.113.7, 10.0.0.9");
        assert_eq!(
            told(&[(key, "6.6.6.6, 203.0.113.7"), (key, "10.1.1.1:99")]),
            "203.0.113.7: 203.0.113.7, 10.1.1.1:99, 10.0.0.9"
        );
        assert_eq!(told(&[(key, "1.1.1.1, unknown, 10.1.1.1")]), ": unknown, 10.1.1.1, 10.0.0.9");
        assert_eq!(told(&[(key, "10.1.1.1, [::1]:8")]), "10.1.1.1: 10.1.1.1, [::1]:8, 10.0.0.9");
    }
}
