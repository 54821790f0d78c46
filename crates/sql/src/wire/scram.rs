//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 5929 and 7677), the server's side.
//!
//! With PLUS the client's proof covers the hash of the certificate that it sees. Whoever sits between the
//! two with a certificate of his own cannot pass the proof on. A client that could bind and believes that
//! the server cannot says so under its proof (`y`); where PLUS was offered, somebody took the offer
//! away on its way, and the client is refused.
//!
//! What is stored for a user is a *verifier*, in PostgreSQL's own form:
//! `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>`, the three in base64. From it nobody can
//! log in: a client proves that it knows the password by a key whose hash is the stored key.
//!
//! A user who does not exist, or has no password, goes through the same exchange with a verifier made up from
//! the name and a secret of the cluster, and fails at its end, so that names cannot be probed: a made-up salt
//! is the same on each node and after each restart, as a real one is.
//! The module never reads randomness: nonces and salts are passed in.

use crate::error::{Error, Result, state};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;

pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The same, bound to the TLS channel.
const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// What a client binds to, in its first message.
const BOUND: &str = "p=tls-server-end-point";

/// What a client is offered, the best first.
pub fn mechanisms(can_bind: bool) -> &'static [&'static str] {
    if can_bind { &[PLUS, MECHANISM] } else { &[MECHANISM] }
}

/// How a client ties its proof to the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// There is nothing to tie it to.
    Impossible,
    /// It was offered, and the client did not want it.
    Declined,
    /// To this hash.
    EndPoint(Vec<u8>),
}

impl Binding {
    /// By the mechanism that the client chose. `end_point`: what it may bind to.
    pub fn chosen(mechanism: &[u8], end_point: Option<Vec<u8>>) -> Result<Binding> {
        match (mechanism, end_point) {
            (chosen, Some(end_point)) if chosen == PLUS.as_bytes() => {
                Ok(Binding::EndPoint(end_point))
            }
            (chosen, Some(_)) if chosen == MECHANISM.as_bytes() => Ok(Binding::Declined),
            (chosen, None) if chosen == MECHANISM.as_bytes() => Ok(Binding::Impossible),
            _ => {
                let message = "client selected an invalid SASL authentication mechanism";
                Err(Error::new(state::PROTOCOL_VIOLATION, message))
            }
        }
    }
}

/// PostgreSQL's default.
const N_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");
const SALT_BYTES: usize = 16;
/// About 30 ms.
const ROUNDS_MAX: u32 = 65_536;

/// What is stored of a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    n_iterations: u32,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Verifier {
    /// Derives the verifier of `password`. Takes a few milliseconds, by design.
    pub fn derive(password: &str, salt: [u8; SALT_BYTES]) -> Verifier {
        Verifier::derive_with(password, salt, N_ITERATIONS)
    }

    fn derive_with(password: &str, salt: [u8; SALT_BYTES], n_iterations: NonZeroU32) -> Verifier {
        // As RFC 7613 asks; a password that it forbids is taken as it is, as PostgreSQL does.
        let password = stringprep::saslprep(password).unwrap_or(password.into());
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, n_iterations, &salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        Verifier {
            n_iterations: n_iterations.get(),
            salt: salt.to_vec(),
            stored_key: digest::digest(&digest::SHA256, client_key.as_ref()).as_ref().to_vec(),
            server_key: sign(&salted, b"Server Key").as_ref().to_vec(),
        }
    }

    /// Whether it is `password`'s. Takes as long as deriving one; a verifier of many rounds is not looked at.
    pub fn is_of(&self, password: &str) -> bool {
        let Ok(salt) = self.salt.as_slice().try_into() else { return false };
        let rounds = NonZeroU32::new(self.n_iterations).filter(|rounds| rounds.get() <= ROUNDS_MAX);
        let Some(rounds) = rounds else { return false };
        same(&Verifier::derive_with(password, salt, rounds).stored_key, &self.stored_key)
    }

    /// A verifier that no password meets, always the same for `user`.
    pub fn impossible(user: &str, secret: &[u8]) -> Verifier {
        let from = |what: &[u8]| {
            let seed = sign(secret, user.as_bytes());
            sign(seed.as_ref(), what).as_ref().to_vec()
        };
        Verifier {
            n_iterations: N_ITERATIONS.get(),
            salt: from(b"salt")[..SALT_BYTES].to_vec(),
            stored_key: from(b"stored"),
            server_key: from(b"server"),
        }
    }

    /// Reads the stored form; none if `text` is not one.
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (head, keys) = rest.split_once('$')?;
        let (n_iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| {
            let key = BASE64.decode(text).ok()?;
            (key.len() == digest::SHA256_OUTPUT_LEN).then_some(key)
        };
        Some(Verifier {
            n_iterations: n_iterations.parse().ok().filter(|&n| n > 0)?,
            salt: BASE64.decode(salt).ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

/// What is told of a password that is none.
pub const EMPTY: &str = "empty string is not a valid password, clearing password";

/// Whether what PASSWORD names, a password or a verifier, is the empty password.
pub fn is_empty(password: &str) -> bool {
    password.is_empty() || Verifier::parse(password).is_some_and(|verifier| verifier.is_of(""))
}

impl std::fmt::Display for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [salt, stored, server] =
            [&self.salt, &self.stored_key, &self.server_key].map(|bytes| BASE64.encode(bytes));
        write!(f, "{MECHANISM}${}:{salt}${stored}:{server}", self.n_iterations)
    }
}

/// One exchange, after the client's first message.
pub struct Exchange {
    verifier: Verifier,
    nonce: String,
    /// `client-first-message-bare , server-first-message`.
    transcript: String,
    /// What the client must repeat under its proof: its header, and what it is bound to.
    bound: Vec<u8>,
}

impl Exchange {
    /// Takes the client's first message (`n,,n=,r=<nonce>`) and gives the server's answer to it.
    pub fn begin(
        verifier: Verifier,
        binding: Binding,
        first: &[u8],
        nonce: &str,
    ) -> Result<(Exchange, String)> {
        let first = std::str::from_utf8(first).map_err(|_| malformed("it is not UTF-8"))?;
        let (flag, rest) = first.split_once(',').ok_or_else(no_header)?;
        let bare_at = flag.len() + 1 + rest.find(',').ok_or_else(no_header)? + 1;
        let (header, bare) = first.split_at(bare_at);
        let mut bound = header.as_bytes().to_vec();
        match (flag, binding) {
            (BOUND, Binding::EndPoint(end_point)) => bound.extend_from_slice(&end_point),
            ("n", Binding::Impossible | Binding::Declined) => {}
            // It could bind to a channel but believes that this side cannot: true.
            ("y", Binding::Impossible) => {}
            ("y", _) => {
                return Err(malformed(
                    "the client believes that channel binding was not offered, and it was",
                ));
            }
            ("n", _) => return Err(malformed("the mechanism binds, and the client does not")),
            (flag, Binding::EndPoint(_)) if flag.starts_with("p=") => {
                return Err(malformed("it binds to something else than tls-server-end-point"));
            }
            (flag, _) if flag.starts_with("p=") => {
                return Err(malformed("the mechanism does not bind, and the client does"));
            }
            _ => return Err(no_header()),
        }
        let mut attributes = bare.split(',');
        let (Some(name), Some(client_nonce)) = (attributes.next(), attributes.next()) else {
            return Err(malformed("name and nonce are missing"));
        };
        if name.starts_with("m=") || !name.starts_with("n=") {
            return Err(malformed("it demands an extension that is not known"));
        }
        let client_nonce = client_nonce.strip_prefix("r=").filter(|nonce| !nonce.is_empty());
        let client_nonce = client_nonce.ok_or_else(|| malformed("the nonce is missing"))?;
        let nonce = format!("{client_nonce}{nonce}");
        let salt = BASE64.encode(&verifier.salt);
        let answer = format!("r={nonce},s={salt},i={}", verifier.n_iterations);
        let transcript = format!("{bare},{answer}");
        Ok((Exchange { verifier, nonce, transcript, bound }, answer))
    }

    /// Takes the client's last message and gives the server's proof; none for a wrong password.
    pub fn finish(self, last: &[u8]) -> Result<Option<String>> {
        let last = std::str::from_utf8(last).map_err(|_| malformed("it is not UTF-8"))?;
        let (without_proof, proof) =
            last.rsplit_once(",p=").ok_or_else(|| malformed("the proof is missing"))?;
        let expected = format!("c={},r={}", BASE64.encode(&self.bound), self.nonce);
        // Extensions may follow the nonce.
        if !(without_proof == expected || without_proof.starts_with(&format!("{expected},"))) {
            return Err(malformed("its channel, header or nonce is not the exchange's"));
        }
        let proof = BASE64.decode(proof).map_err(|_| malformed("the proof is not base64"))?;
        let signed = format!("{},{without_proof}", self.transcript);
        let signature = sign(&self.verifier.stored_key, signed.as_bytes());
        if proof.len() != signature.as_ref().len() {
            return Err(malformed("the proof has a wrong length"));
        }
        let client_key: Vec<u8> =
            proof.iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        if !same(stored_key.as_ref(), &self.verifier.stored_key) {
            return Ok(None);
        }
        let proof = sign(&self.verifier.server_key, signed.as_bytes());
        Ok(Some(format!("v={}", BASE64.encode(proof.as_ref()))))
    }
}

fn sign(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

/// Takes the same time wherever two equally long keys differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

fn malformed(why: &str) -> Error {
    Error::new(state::PROTOCOL_VIOLATION, "malformed SCRAM message").detail(why)
}

fn no_header() -> Error {
    malformed("it does not begin with a GS2 header")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_rfc_example_holds() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
        let verifier = Verifier::derive("pencil", salt);
        assert_eq!(Verifier::parse(&verifier.to_string()), Some(verifier.clone()));
        let begin = || {
            let nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
            let first = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
            Exchange::begin(verifier.clone(), Binding::Impossible, first, nonce).unwrap()
        };
        let (exchange, answer) = begin();
        assert_eq!(
            answer,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let proof = exchange.finish(last.as_bytes()).unwrap();
        assert_eq!(proof.as_deref(), Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));

        let wrong = last.replace("dHzb", "dHzc");
        assert_eq!(begin().0.finish(wrong.as_bytes()).unwrap(), None);
        assert!(begin().0.finish(last.replace("rOpr", "rOps").as_bytes()).is_err());
        assert!(begin().0.finish(b"c=biws").is_err());
    }

    #[test]
    fn an_empty_password_is_known_in_either_form() {
        let verifier = |password| Verifier::derive(password, [7; SALT_BYTES]).to_string();
        assert!(is_empty("") && is_empty(&verifier("")));
        assert!(!is_empty("x") && !is_empty(&verifier("x")));
    }

    #[test]
    fn first_messages_that_are_not_are_refused() {
        for first in
            [&b""[..], b"n", b"n,,", b"p=tls-unique,,n=,r=x", b"n,,m=x,r=y", b"n,,n=,r=", b"\xff"]
        {
            let verifier = Verifier::impossible("nobody", b"s");
            let binding = Binding::Impossible;
            assert!(Exchange::begin(verifier, binding, first, "nonce").is_err(), "{first:?}");
        }
    }

    #[test]
    fn a_channel_is_bound_where_both_can_and_nobody_takes_that_away() {
        let begin = |mechanism: &str, end_point: Option<&[u8]>, first: &str| {
            let binding = Binding::chosen(mechanism.as_bytes(), end_point.map(<[u8]>::to_vec))?;
            let verifier = Verifier::impossible("nobody", b"s");
            let first = format!("{first},,n=,r=x");
            Exchange::begin(verifier, binding, first.as_bytes(), "y")
                .map(|(exchange, _)| exchange.bound)
        };
        let hash = Some(&b"hash"[..]);
        assert_eq!(begin(PLUS, hash, BOUND).unwrap(), b"p=tls-server-end-point,,hash");
        assert_eq!(begin(MECHANISM, hash, "n").unwrap(), b"n,,");
        assert_eq!(begin(MECHANISM, None, "y").unwrap(), b"y,,");
        for (mechanism, end_point, first) in [
            (MECHANISM, hash, "y"),
            (MECHANISM, hash, BOUND),
            (PLUS, hash, "n"),
            (PLUS, hash, "y"),
            (PLUS, hash, "p=tls-unique"),
            (PLUS, None, BOUND),
            (MECHANISM, None, BOUND),
            ("SCRAM-SHA-1", hash, "n"),
        ] {
            assert!(begin(mechanism, end_point, first).is_err(), "{mechanism} {first}");
        }
    }
}
