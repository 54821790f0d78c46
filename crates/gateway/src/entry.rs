//! What is told of one request.

use crate::trace::Trace;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// One request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Entry {
    /// Microseconds since 1970, when the request came.
    pub at_us: i64,
    /// Who asks: the peer, or whom a trusted proxy names.
    pub client: String,
    /// Whose connection it is.
    pub peer: String,
    pub is_tls: bool,
    /// Of HTTP.
    pub version: &'static str,
    pub method: String,
    pub host: String,
    pub path: String,
    pub route: String,
    pub service: String,
    pub server: String,
    pub status: u16,
    pub n_bytes: u64,
    pub n_attempts: u32,
    /// The answer ended before its end.
    pub is_broken: bool,
    /// Why the gateway answered itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Who the client's certificate says that it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub certificate: String,
    /// Those of the request that the file names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(serialize_with = "trace_name")]
    pub trace: Trace,
    #[serde(rename = "ms", serialize_with = "milliseconds")]
    pub took: Duration,
}

fn trace_name<S: Serializer>(trace: &Trace, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{:032x}", trace.trace))
}

fn milliseconds<S: Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((took.as_secs_f64() * 1e6).round() / 1e3)
}
