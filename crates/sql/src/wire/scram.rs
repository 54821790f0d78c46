//! SCRAM-SHA-256 (RFC 5802 and 7677), the server's side, without channel binding.
//!
//! What is stored for a user is a *verifier*, in PostgreSQL's own form:
//! `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>`, the three in base64. From it nobody can
//! log in: a client proves that it knows the password by a key whose hash is the stored key.
//!
//! A user who does not exist goes through the same exchange with a verifier made up from the
//! name and a secret of this process, and fails at its end, so that names cannot be probed.
//! The module never reads randomness: nonces and salts are passed in.

use crate::error::{Error, Result, state};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;

pub const MECHANISM: &str = "SCRAM-SHA-256";

/// PostgreSQL's default.
const N_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not zero");
const SALT_BYTES: usize = 16;

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

    /// Whether `password` is the one that this was derived from.
    pub fn admits(&self, password: &str) -> bool {
        let Ok(salt) = self.salt.as_slice().try_into() else { return false };
        let Some(n_iterations) = NonZeroU32::new(self.n_iterations) else { return false };
        let own = Verifier::derive_with(password, salt, n_iterations);
        same(&own.stored_key, &self.stored_key)
    }

    /// A verifier that no password meets, always the same for `user`.
    pub fn impossible(user: &str, secret: u64) -> Verifier {
        let from = |what: &[u8]| {
            let seed = sign(&secret.to_be_bytes(), user.as_bytes());
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
    header: String,
}

impl Exchange {
    /// Takes the client's first message (`n,,n=,r=<nonce>`) and gives the server's answer to it.
    pub fn begin(verifier: Verifier, first: &[u8], nonce: &str) -> Result<(Exchange, String)> {
        let first = std::str::from_utf8(first).map_err(|_| malformed("it is not UTF-8"))?;
        // `y`: the client could bind to a TLS channel but believes that the server cannot: true.
        let bare_at = match first.as_bytes() {
            [b'n' | b'y', b',', ..] => 2 + first[2..].find(',').ok_or_else(no_header)? + 1,
            [b'p', ..] => return Err(malformed("channel binding was not offered")),
            _ => return Err(no_header()),
        };
        let (header, bare) = first.split_at(bare_at);
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
        Ok((Exchange { verifier, nonce, transcript, header: header.to_owned() }, answer))
    }

    /// Takes the client's last message and gives the server's proof; none for a wrong password.
    pub fn finish(self, last: &[u8]) -> Result<Option<String>> {
        let last = std::str::from_utf8(last).map_err(|_| malformed("it is not UTF-8"))?;
        let (without_proof, proof) =
            last.rsplit_once(",p=").ok_or_else(|| malformed("the proof is missing"))?;
        let expected = format!("c={},r={}", BASE64.encode(&self.header), self.nonce);
        // Extensions may follow the nonce.
        if !(without_proof == expected || without_proof.starts_with(&format!("{expected},"))) {
            return Err(malformed("its header or nonce is not the exchange's"));
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
            Exchange::begin(verifier.clone(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", nonce).unwrap()
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
    fn first_messages_that_are_not_are_refused() {
        for first in
            [&b""[..], b"n", b"n,,", b"p=tls-unique,,n=,r=x", b"n,,m=x,r=y", b"n,,n=,r=", b"\xff"]
        {
            let verifier = Verifier::impossible("nobody", 1);
            assert!(Exchange::begin(verifier, first, "nonce").is_err(), "{first:?}");
        }
    }
}
