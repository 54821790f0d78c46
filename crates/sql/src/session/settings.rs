//! A session's settings: what SET, SHOW and RESET work on.
//!
//! A setting is one of a fixed list, or any name with a dot in it, which belongs to the application.
//! Some are accepted for the sake of clients and have one possible value only; setting them to
//! another is an error, never ignored.

use crate::authority::RoleId;
use crate::error::{Error, Result, state};
use crate::types::Zone;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use txn::Isolation;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Any text.
    Free,
    /// Cannot be changed.
    Fixed,
    /// Only what equals the default, ignoring case (and its synonyms).
    Only(&'static [&'static str]),
    Bool,
    Millis,
    Zone,
    Isolation,
    SearchPath,
    Integer,
    /// Bytes, in kB where no unit is given.
    Memory,
}

struct Known {
    /// As SHOW ALL and ParameterStatus write it.
    name: &'static str,
    default: &'static str,
    rule: Rule,
    /// Told to the client when it changes.
    reported: bool,
    about: &'static str,
}

const fn known(
    name: &'static str,
    default: &'static str,
    rule: Rule,
    reported: bool,
    about: &'static str,
) -> Known {
    Known { name, default, rule, reported, about }
}

const KNOWN: &[Known] = &[
    known(
        "application_name",
        "",
        Rule::Free,
        true,
        "Sets the application name to be reported in statistics and logs.",
    ),
    known("bytea_output", "hex", Rule::Only(&["hex"]), false, "Sets the output format for bytea."),
    known(
        "client_encoding",
        "UTF8",
        Rule::Only(&["utf8", "utf-8", "unicode", "'utf-8'"]),
        true,
        "Sets the client's character set encoding.",
    ),
    known(
        "client_min_messages",
        "notice",
        Rule::Free,
        false,
        "Sets the message levels that are sent to the client.",
    ),
    known(
        "DateStyle",
        "ISO, MDY",
        Rule::Only(&["iso", "iso, mdy", "iso,mdy", "mdy", "iso, ymd", "iso, dmy"]),
        true,
        "Sets the display format for date and time values.",
    ),
    known(
        "default_transaction_isolation",
        "read committed",
        Rule::Isolation,
        false,
        "Sets the transaction isolation level of each new transaction.",
    ),
    known(
        "default_transaction_read_only",
        "off",
        Rule::Bool,
        true,
        "Sets the default read-only status of new transactions.",
    ),
    known("default_transaction_deferrable", "off", Rule::Bool, false, "Accepted without effect."),
    known(
        "extra_float_digits",
        "1",
        Rule::Integer,
        false,
        "Floats are always printed with the fewest digits that read back the same.",
    ),
    known(
        "idle_in_transaction_session_timeout",
        "0",
        Rule::Millis,
        false,
        "Ends a session that is idle for so long in a transaction, and with it the transaction.",
    ),
    known(
        "idle_session_timeout",
        "0",
        Rule::Millis,
        false,
        "Ends a session that is idle for so long outside of a transaction.",
    ),
    known(
        "in_hot_standby",
        "off",
        Rule::Fixed,
        true,
        "Shows whether hot standby is currently active.",
    ),
    known(
        "integer_datetimes",
        "on",
        Rule::Fixed,
        true,
        "Shows whether datetimes are integer based.",
    ),
    known(
        "IntervalStyle",
        "postgres",
        Rule::Only(&["postgres"]),
        true,
        "Sets the display format for interval values.",
    ),
    known(
        "is_superuser",
        "on",
        Rule::Fixed,
        true,
        "Shows whether the current user is a superuser.",
    ),
    known("jit", "off", Rule::Bool, false, "Accepted without effect."),
    known("lc_collate", "C", Rule::Fixed, false, "Shows the collation order locale."),
    known(
        "lc_ctype",
        "C",
        Rule::Fixed,
        false,
        "Shows the character classification and case conversion locale.",
    ),
    known("lc_messages", "C", Rule::Free, false, "Accepted without effect."),
    known(
        "lock_timeout",
        "0",
        Rule::Millis,
        false,
        "Sets the maximum allowed duration of any wait for a lock.",
    ),
    known(
        "max_identifier_length",
        "63",
        Rule::Fixed,
        false,
        "Shows the maximum identifier length.",
    ),
    known("row_security", "on", Rule::Bool, false, "Accepted without effect."),
    known(
        "search_path",
        "\"$user\", public",
        Rule::SearchPath,
        false,
        "Sets the schema search order for names that are not schema-qualified.",
    ),
    known(
        "server_encoding",
        "UTF8",
        Rule::Fixed,
        true,
        "Shows the server (database) character set encoding.",
    ),
    known("server_version", "15.0 (Atoll)", Rule::Fixed, true, "Shows the server version."),
    known(
        "server_version_num",
        "150000",
        Rule::Fixed,
        false,
        "Shows the server version as an integer.",
    ),
    known("session_authorization", "", Rule::Fixed, true, "Shows the session user name."),
    known(
        "standard_conforming_strings",
        "on",
        Rule::Only(&["on", "true", "yes", "1"]),
        true,
        "Causes '...' strings to treat backslashes literally.",
    ),
    known(
        "statement_timeout",
        "0",
        Rule::Millis,
        false,
        "Sets the maximum allowed duration of any statement.",
    ),
    known(
        "synchronous_commit",
        "on",
        Rule::Only(&["on", "true", "yes", "1", "local", "remote_write", "remote_apply", "off"]),
        false,
        "A commit is always durable on a majority of replicas before it is acknowledged.",
    ),
    known(
        "TimeZone",
        "UTC",
        Rule::Zone,
        true,
        "Sets the time zone for displaying and interpreting time stamps.",
    ),
    known(
        "transaction_isolation",
        "read committed",
        Rule::Isolation,
        false,
        "Shows the current transaction's isolation level.",
    ),
    known(
        "transaction_read_only",
        "off",
        Rule::Bool,
        false,
        "Sets the current transaction's read-only status.",
    ),
    known(
        "work_mem",
        "64MB",
        Rule::Memory,
        false,
        "What a query's sorts and groupings keep in memory before they write to temporary files.",
    ),
    known(
        "check_function_bodies",
        "on",
        Rule::Bool,
        false,
        "Accepted without effect: there are no functions of users.",
    ),
    known(
        "default_table_access_method",
        "heap",
        Rule::Only(&["heap"]),
        false,
        "There is one way to store a table.",
    ),
    known("default_tablespace", "", Rule::Only(&[""]), false, "There are no tablespaces."),
    known(
        "default_with_oids",
        "off",
        Rule::Only(&["off", "false", "no", "0"]),
        false,
        "There are no oids of rows.",
    ),
    known(
        "quote_all_identifiers",
        "off",
        Rule::Only(&["off", "false", "no", "0"]),
        false,
        "Names are quoted where they have to be.",
    ),
    known(
        "synchronize_seqscans",
        "on",
        Rule::Bool,
        false,
        "Accepted without effect: each scan begins at the first row.",
    ),
    known("xmloption", "content", Rule::Only(&["content"]), false, "There is no type xml."),
    known("maintenance_work_mem", "64MB", Rule::Memory, false, "Accepted without effect."),
];

/// Changed by copying: a transaction keeps the one it may have to go back to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Values that differ from the defaults, by lower-case name.
    values: BTreeMap<String, String>,
    pub zone: Zone,
    pub search_path: Arc<[String]>,
    pub isolation: Isolation,
    pub read_only: bool,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
    /// How long a session may be idle, inside of a transaction and outside. Zero: no limit.
    pub idle_in_transaction: Duration,
    pub idle: Duration,
    pub work_mem_bytes: usize,
    /// What SET ROLE and SET SESSION AUTHORIZATION chose.
    pub role: Option<RoleId>,
    pub session_role: Option<RoleId>,
    user: Arc<str>,
}

fn find(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

impl Settings {
    pub fn new(user: Arc<str>) -> Settings {
        Settings {
            values: BTreeMap::new(),
            zone: Zone::UTC,
            search_path: search_path("\"$user\", public"),
            isolation: Isolation::ReadCommitted,
            read_only: false,
            statement_timeout: Duration::ZERO,
            lock_timeout: Duration::ZERO,
            idle_in_transaction: Duration::ZERO,
            idle: Duration::ZERO,
            work_mem_bytes: 64 << 20,
            role: None,
            session_role: None,
            user,
        }
    }

    /// None: there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        let lower = name.to_ascii_lowercase();
        if let Some(value) = self.values.get(&lower) {
            return Some(value.clone());
        }
        match lower.as_str() {
            "server_version" => Some(format!("15.0 (Atoll {})", env!("CARGO_PKG_VERSION"))),
            _ => find(name).map(|known| known.default.to_owned()),
        }
    }

    /// Name, value and description of all.
    pub fn all(&self) -> Vec<(String, String, String)> {
        let mut all: Vec<_> = KNOWN
            .iter()
            .map(|known| {
                let value = self.get(known.name).unwrap_or_default();
                (known.name.to_owned(), value, known.about.to_owned())
            })
            .collect();
        for (name, value) in &self.values {
            if find(name).is_none() {
                all.push((name.clone(), value.clone(), String::new()));
            }
        }
        all
    }

    /// Sets a value; none goes back to the default. Returns the name and value to report to the
    /// client, if they are.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<Option<(String, String)>> {
        let lower = name.to_ascii_lowercase();
        let Some(known) = find(name) else {
            if !lower.contains('.') {
                return Err(Error::new(
                    state::UNDEFINED_OBJECT,
                    format!("unrecognized configuration parameter \"{name}\""),
                ));
            }
            match value {
                Some(value) => self.values.insert(lower, value.to_owned()),
                None => self.values.remove(&lower),
            };
            return Ok(None);
        };
        let given = value.unwrap_or(known.default);
        let invalid = || {
            Error::new(
                state::INVALID_PARAMETER,
                format!("invalid value for parameter \"{}\": \"{given}\"", known.name),
            )
        };
        let kept = match known.rule {
            Rule::Fixed if value.is_none() => return Ok(None),
            Rule::Fixed => {
                return Err(Error::new(
                    "55P02",
                    format!("parameter \"{}\" cannot be changed", known.name),
                ));
            }
            Rule::Free => given.to_owned(),
            Rule::Only(allowed) => {
                if !allowed.contains(&given.to_ascii_lowercase().as_str())
                    && !given.eq_ignore_ascii_case(known.default)
                {
                    return Err(Error::unsupported(format!("{} = '{given}'", known.name)));
                }
                known.default.to_owned()
            }
            Rule::Bool => {
                let on = boolean(given).ok_or_else(invalid)?;
                if lower == "default_transaction_read_only" {
                    self.read_only = on;
                }
                (if on { "on" } else { "off" }).to_owned()
            }
            Rule::Millis => {
                let duration = millis(given).ok_or_else(invalid)?;
                match lower.as_str() {
                    "statement_timeout" => self.statement_timeout = duration,
                    "lock_timeout" => self.lock_timeout = duration,
                    "idle_in_transaction_session_timeout" => self.idle_in_transaction = duration,
                    "idle_session_timeout" => self.idle = duration,
                    _ => {}
                }
                shown_millis(duration)
            }
            Rule::Zone => {
                self.zone = hours(given).or_else(|| Zone::parse(given)).ok_or_else(invalid)?;
                self.zone.name()
            }
            Rule::Isolation => {
                let isolation = isolation(given).ok_or_else(invalid)?;
                if lower == "default_transaction_isolation" {
                    self.isolation = isolation;
                }
                isolation_name(isolation).to_owned()
            }
            Rule::SearchPath => {
                self.search_path = search_path(given);
                given.to_owned()
            }
            Rule::Memory => {
                let bytes = memory(given).ok_or_else(invalid)?;
                if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
                    return Err(Error::new(
                        state::INVALID_PARAMETER,
                        format!(
                            "{} kB is outside the valid range for parameter \"{}\" ({} .. {})",
                            bytes >> 10,
                            known.name,
                            MEMORY_BYTES_MIN >> 10,
                            MEMORY_BYTES_MAX >> 10
                        ),
                    ));
                }
                if lower == "work_mem" {
                    self.work_mem_bytes = bytes;
                }
                shown_memory(bytes)
            }
            Rule::Integer => {
                given.trim().parse::<i32>().map_err(|_| invalid())?;
                given.to_owned()
            }
        };
        let reported = known.reported.then(|| (known.name.to_owned(), kept.clone()));
        match value {
            Some(_) => self.values.insert(lower, kept),
            None => self.values.remove(&lower),
        };
        Ok(reported)
    }

    /// All back to their defaults; what is to be reported to the client.
    pub fn reset_all(&mut self) -> Vec<(String, String)> {
        let mut fresh = Settings::new(self.user.clone());
        // RESET ALL changes neither.
        (fresh.role, fresh.session_role) = (self.role, self.session_role);
        let before = std::mem::replace(self, fresh);
        before
            .values
            .keys()
            .filter_map(|name| find(name))
            .filter(|known| known.reported)
            .filter_map(|known| Some((known.name.to_owned(), self.get(known.name)?)))
            .collect()
    }
}

pub fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "read committed",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::Serializable => "serializable",
    }
}

fn isolation(text: &str) -> Option<Isolation> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "read committed" | "read uncommitted" => Isolation::ReadCommitted,
        "repeatable read" => Isolation::RepeatableRead,
        "serializable" => Isolation::Serializable,
        _ => return None,
    })
}

fn boolean(text: &str) -> Option<bool> {
    Some(match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" | "t" | "y" => true,
        "off" | "false" | "no" | "0" | "f" | "n" => false,
        _ => return None,
    })
}

fn millis(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let unit_ms = match unit.trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" => 1e3,
        "min" => 60e3,
        "h" => 3600e3,
        "d" => 86400e3,
        _ => return None,
    };
    let ms = number * unit_ms;
    (ms <= f64::from(i32::MAX)).then(|| Duration::from_millis(ms.round() as u64))
}

fn shown_millis(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0".to_owned(),
        ms if ms % 60_000 == 0 => format!("{}min", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// PostgreSQL's range of `work_mem`.
const MEMORY_BYTES_MIN: usize = 64 << 10;
const MEMORY_BYTES_MAX: usize = (i32::MAX as usize) << 10;

/// A size in bytes: a number and a unit, kB where there is none.
fn memory(text: &str) -> Option<usize> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let unit_bytes: u64 = match unit.trim() {
        "B" => 1,
        "" | "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    // What is too large for the type is too large for the range.
    Some((number * unit_bytes as f64) as usize)
}

fn shown_memory(bytes: usize) -> String {
    let kib = bytes >> 10;
    match kib {
        kib if kib % (1 << 20) == 0 => format!("{}GB", kib >> 20),
        kib if kib % (1 << 10) == 0 => format!("{}MB", kib >> 10),
        kib => format!("{kib}kB"),
    }
}

/// `SET TIME ZONE -3.5`.
fn hours(text: &str) -> Option<Zone> {
    let hours: f64 = text.trim().parse().ok()?;
    (hours.abs() <= 15.0).then_some(Zone::Fixed((hours * 3600.0) as i32))
}

/// `"$user", public` as a list of schemas. Nobody has a schema of their own name by default, so
/// `$user` is passed over: looking it up would cost every statement a round trip.
fn search_path(text: &str) -> Arc<[String]> {
    text.split(',')
        .map(|part| {
            let part = part.trim();
            match part.strip_prefix('"').and_then(|part| part.strip_suffix('"')) {
                Some(quoted) => quoted.replace("\"\"", "\""),
                None => part.trim_matches('\'').to_lowercase(),
            }
        })
        .filter(|part| !part.is_empty() && part != "$user")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_and_shown() {
        let mut settings = Settings::new(Arc::from("ada"));
        settings.set("statement_timeout", Some("90s")).unwrap();
        assert_eq!(settings.statement_timeout, Duration::from_secs(90));
        assert_eq!(settings.get("STATEMENT_TIMEOUT").unwrap(), "90s");
        let told = settings.set("timezone", Some("europe/berlin")).unwrap();
        assert_eq!(told, Some(("TimeZone".into(), "Europe/Berlin".into())));
        assert_eq!(settings.set("nonsense", Some("1")).unwrap_err().state(), "42704");
        assert_eq!(settings.set("client_encoding", Some("latin1")).unwrap_err().state(), "0A000");
        assert_eq!(settings.set("server_version", Some("1")).unwrap_err().state(), "55P02");
        for (given, shown, bytes) in [
            ("4096", "4MB", 4 << 20),
            ("100kB", "100kB", 100 << 10),
            ("1.5 GB", "1536MB", 1536 << 20),
        ] {
            settings.set("work_mem", Some(given)).unwrap();
            assert_eq!(settings.get("work_mem").as_deref(), Some(shown));
            assert_eq!(settings.work_mem_bytes, bytes);
        }
        for wrong in ["", "63kB", "3TB", "-1", "1 mb", "1e99", "nan"] {
            assert_eq!(
                settings.set("work_mem", Some(wrong)).unwrap_err().state(),
                "22023",
                "{wrong}"
            );
        }
        settings.set("my.thing", Some("x")).unwrap();
        assert_eq!(settings.get("my.thing").as_deref(), Some("x"));
        assert_eq!(&settings.search_path[..], ["public"]);
        settings.reset_all();
        assert_eq!(settings.zone, Zone::UTC);
        assert_eq!(settings.get("my.thing"), None);
    }
}
