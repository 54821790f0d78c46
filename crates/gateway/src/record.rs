//! What is known of one request when it has ended, and who is told: the access log, and the
//! collector of traces.

use crate::access_log::AccessLog;
use crate::http::fields::Fields;
use crate::http::headers::Trace;
use crate::traces::Traces;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The fields of a line, in their order.
pub const FIELDS: [&str; 20] = [
    "at_us",
    "client",
    "peer",
    "is_tls",
    "version",
    "method",
    "host",
    "path",
    "route",
    "service",
    "server",
    "status",
    "n_bytes",
    "n_attempts",
    "is_broken",
    "reason",
    "trace",
    "ms",
    "headers",
    "certificate",
];

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

/// An entry that somebody waits for.
pub struct Record {
    pub entry: Entry,
    log: Option<AccessLog>,
    traces: Option<Arc<Traces>>,
}

impl Record {
    /// None where nobody wants to know: the usual request has no entry.
    pub fn begin(
        trace: Trace,
        log: Option<AccessLog>,
        traces: Option<&Arc<Traces>>,
    ) -> Option<Box<Record>> {
        let traces = traces.filter(|_| trace.is_sampled).cloned();
        let is_wanted = log.is_some() || traces.is_some();
        let entry = || Entry { trace, ..Entry::default() };
        is_wanted.then(|| Box::new(Record { entry: entry(), log, traces }))
    }

    /// Of a request that was not understood: `line` is what there is of its first line.
    pub fn refused(line: &str, log: AccessLog) -> Box<Record> {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let entry = Entry { method: word(), path: word(), ..Entry::default() };
        Box::new(Record { entry, log: Some(log), traces: None })
    }

    /// Keeps the request's headers that the file names.
    pub fn note_headers(&mut self, fields: &Fields) {
        let wanted = self.log.as_ref().map_or(&[][..], |log| log.headers());
        for name in wanted {
            let values: Vec<&[u8]> = fields.all(name.as_str()).collect();
            if !values.is_empty() {
                let text = String::from_utf8_lossy(&values.join(&b", "[..])).into_owned();
                self.entry.headers.insert(name.as_str().to_owned(), text);
            }
        }
    }

    pub fn end(self) {
        if let Some(traces) = &self.traces {
            traces.add(&self.entry);
        }
        if let Some(log) = &self.log {
            log.write(self.entry);
        }
    }
}
