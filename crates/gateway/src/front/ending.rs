//! What a request holds until its answer's last byte is out: its place among those under way,
//! its attempt at the server, the connection; and what is then counted and logged.

use crate::call::{Stay, Upload};
use crate::config::Limits;
use crate::counts::Counts;
use crate::front::pulse::{Pulse, UnderWay};
use crate::http::pool::Loan;
use crate::isolate::bulkhead::Priority;
use crate::record::Record;
use base::env::Instant;
use http::StatusCode;
use std::sync::{Arc, LazyLock};

/// The status of a request whose client left before the answer, as nginx has it: nobody was told.
static LEFT: LazyLock<StatusCode> =
    LazyLock::new(|| StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT));

/// A place among the requests that the whole gateway has under way.
pub struct Place {
    /// Holds the gateway; its own count is the connection's, and not one that all requests share.
    pulse: Arc<Pulse>,
}

impl Place {
    /// Counts a request, unless there are too many of its priority.
    pub fn take(pulse: &Arc<Pulse>, limits: &Limits, priority: Priority) -> Option<Place> {
        let is_free = pulse.gateway.enter(limits, priority);
        let place = Place { pulse: pulse.clone() };
        is_free.then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pulse.gateway.leave();
    }
}

pub struct Ending {
    pub begun: Instant,
    /// None: there is no answer yet.
    pub status: Option<StatusCode>,
    pub n_bytes: u64,
    /// The answer ended before its end.
    pub is_broken: bool,
    /// Its end was reached: whoever leaves before that has a part of it.
    pub is_through: bool,
    /// Of the service that it is for.
    pub counts: Option<Arc<Counts>>,
    pub record: Option<Box<Record>>,
    pub upload: Option<Arc<Upload>>,
    /// As the request's [`Ask`](crate::call::Ask) has it.
    pub late_from: Option<Instant>,
    pub loan: Option<Loan>,
    pub stay: Option<Stay>,
    pub place: Option<Place>,
    pub under_way: UnderWay,
}

impl Ending {
    /// Of a request that begins.
    pub fn new(begun: Instant, under_way: UnderWay, record: Option<Box<Record>>) -> Box<Ending> {
        Box::new(Ending {
            begun,
            status: None,
            n_bytes: 0,
            is_broken: false,
            is_through: false,
            counts: None,
            record,
            upload: None,
            late_from: None,
            loan: None,
            stay: None,
            place: None,
            under_way,
        })
    }

    pub fn now(&self) -> Instant {
        self.under_way.now()
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let now = self.now();
        // In this order: the connection is free before somebody else is let in.
        if let Some(loan) = &mut self.loan {
            loan.give_back(now);
        }
        if let Some(stay) = &mut self.stay {
            stay.end(now);
        }
        drop(self.place.take());
        self.under_way.end(now);
        let status = match self.status {
            Some(status) => status,
            None => {
                self.under_way.count_left();
                *LEFT
            }
        };
        let took = now.saturating_duration_since(self.begun);
        if let Some(counts) = &self.counts {
            counts.answer(status, took);
        }
        if let Some(mut record) = self.record.take() {
            let entry = &mut record.entry;
            entry.status = status.as_u16();
            entry.n_bytes = self.n_bytes;
            entry.is_broken = self.status.is_some() && (self.is_broken || !self.is_through);
            if self.status.is_none() && entry.reason.is_empty() {
                entry.reason = "the client left before the answer".into();
            }
            entry.took = took;
            record.end();
        }
    }
}
