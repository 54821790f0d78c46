//! What is known of one request when it has ended, and who is told: the access log, and the
//! collector of traces.

use crate::access_log::AccessLog;
use crate::entry::Entry;
use crate::fields::Fields;
use crate::trace::Trace;
use crate::traces::Traces;
use std::sync::Arc;

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
