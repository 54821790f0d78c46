//! Who may connect from where, and how they prove who they are: a list of rules, of which the first
//! that fits decides. Whom no rule fits is refused, with the words of PostgreSQL's `pg_hba.conf`.
//!
//! *Example:*
//!
//! | address | database | role | tls | method |
//! |---|---|---|---|---|
//! | 10.1.0.0/16 | all | all | required | scram |
//! | 10.1.2.3 | all | watcher | any | trust |
//! | all | all | all | any | reject |
//!
//! `watcher` at 10.1.2.3 is trusted without TLS; with TLS the first rule asks for its password.
//!
//! Absent: groups of roles, patterns, host names. The door on the machine itself has no rules: see
//! [`serve_local`](super::serve_local).

use crate::engine::Auth;
use crate::error::{Error, state};
use std::net::IpAddr;
use std::str::FromStr;

/// Fits everything.
pub const ALL: &str = "all";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Whoever connects is who they say.
    Trust,
    /// SCRAM-SHA-256 against the verifier stored with the role.
    Scram,
    Reject,
}

/// Who asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub address: IpAddr,
    pub database: &'a str,
    pub role: &'a str,
    pub is_encrypted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub address: Addresses,
    pub database: Names,
    pub role: Names,
    pub needs_tls: bool,
    pub method: Method,
}

impl Rule {
    fn fits(&self, who: &Who<'_>) -> bool {
        self.address.contains(who.address)
            && self.database.contains(who.database)
            && self.role.contains(who.role)
            && (who.is_encrypted || !self.needs_tls)
    }
}

/// The rules of a listener, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access(Vec<Rule>);

impl From<Auth> for Access {
    fn from(auth: Auth) -> Access {
        let method = match auth {
            Auth::Trust => Method::Trust,
            Auth::Scram => Method::Scram,
        };
        let (address, database, role) = (Addresses::All, Names::All, Names::All);
        Access(vec![Rule { address, database, role, needs_tls: false, method }])
    }
}

impl Access {
    pub fn new(rules: Vec<Rule>) -> Access {
        Access(rules)
    }

    /// Whether anybody could get in by a password, and whether anybody could without.
    pub fn asks(&self, method: Method) -> bool {
        self.0.iter().any(|rule| rule.method == method)
    }

    /// How they prove who they are; the error is what they are told.
    pub fn judge(&self, who: &Who<'_>) -> Result<Method, Error> {
        let Who { address, database, role, is_encrypted } = who;
        let encryption = if *is_encrypted { "SSL encryption" } else { "no encryption" };
        let rest =
            format!("host \"{address}\", user \"{role}\", database \"{database}\", {encryption}");
        match self.0.iter().find(|rule| rule.fits(who)) {
            None => {
                let message = format!("no pg_hba.conf entry for {rest}");
                Err(Error::new(state::INVALID_AUTHORIZATION, message)
                    .hint("The rules [[access]] in the file of this node say who may connect."))
            }
            Some(Rule { method: Method::Reject, .. }) => {
                let message = format!("pg_hba.conf rejects connection for {rest}");
                Err(Error::new(state::INVALID_AUTHORIZATION, message)
                    .hint("A rule of [[access]] in the file of this node refuses it."))
            }
            Some(rule) => Ok(rule.method),
        }
    }
}

/// Names of databases or roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    All,
    These(Vec<String>),
}

impl Names {
    /// `all`, or names with commas between.
    pub fn of(text: &str) -> Names {
        match text.trim() {
            ALL => Names::All,
            names => Names::These(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::These(names) => names.iter().any(|known| known == name),
        }
    }
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    All,
    /// The first so many bits are those of the address.
    Net(IpAddr, u8),
}

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Addresses, String> {
        if text == ALL {
            return Ok(Addresses::All);
        }
        let wrong =
            || format!("{text:?} is not an address, a network such as 10.0.0.0/8, or \"all\"");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(bits_max);
        if bits > bits_max {
            return Err(wrong());
        }
        if masked(address, bits) != masked(address, bits_max) {
            return Err(format!("{text:?} has bits set behind its first {bits}"));
        }
        Ok(Addresses::Net(address, bits))
    }
}

impl Addresses {
    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Addresses::All => true,
            Addresses::Net(net, bits) => {
                let address = address.to_canonical();
                net.is_ipv4() == address.is_ipv4() && masked(*net, *bits) == masked(address, *bits)
            }
        }
    }
}

/// The address with all but its first so many bits cleared.
fn masked(address: IpAddr, bits: u8) -> u128 {
    let (value, width) = match address {
        IpAddr::V4(four) => (u128::from(four.to_bits()), 32),
        IpAddr::V6(six) => (six.to_bits(), 128),
    };
    let dropped = width - u32::from(bits).min(width);
    // All 128 of them: nothing is left.
    value.checked_shr(dropped).and_then(|kept| kept.checked_shl(dropped)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(address: &str, role: &str, needs_tls: bool, method: Method) -> Rule {
        let (address, database) = (address.parse().unwrap(), Names::All);
        Rule { address, database, role: Names::of(role), needs_tls, method }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let access = Access::new(vec![
            rule("10.1.0.0/16", "all", true, Method::Scram),
            rule("10.1.2.3", "watcher, other", false, Method::Trust),
            rule("::1/128", "all", false, Method::Trust),
            rule("10.0.0.0/8", "all", false, Method::Reject),
        ]);
        let ask = |address: &str, role, is_encrypted| {
            let address = address.parse().unwrap();
            let who = Who { address, database: "d", role, is_encrypted };
            access.judge(&who).map_err(|error| error.message.clone())
        };
        assert_eq!(ask("10.1.2.3", "watcher", true), Ok(Method::Scram));
        assert_eq!(ask("10.1.2.3", "watcher", false), Ok(Method::Trust));
        assert_eq!(ask("::ffff:10.1.2.3", "other", false), Ok(Method::Trust));
        assert_eq!(ask("::1", "a", false), Ok(Method::Trust));
        assert_eq!(
            ask("10.1.2.3", "a", false).unwrap_err(),
            "pg_hba.conf rejects connection for host \"10.1.2.3\", user \"a\", database \"d\", no encryption"
        );
        assert_eq!(
            ask("11.1.2.3", "a", true).unwrap_err(),
            "no pg_hba.conf entry for host \"11.1.2.3\", user \"a\", database \"d\", SSL encryption"
        );
    }

    #[test]
    fn networks_are_read_or_refused() {
        let read = |text: &str| text.parse::<Addresses>();
        assert_eq!(read("0.0.0.0/0").map(|net| net.contains("9.9.9.9".parse().unwrap())), Ok(true));
        assert_eq!(read("::/0").map(|net| net.contains("9.9.9.9".parse().unwrap())), Ok(false));
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "host", "10.0.0.0/x", "::1/129"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
