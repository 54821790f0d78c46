//! When a server is out, and for how long.
//!
//! | reason | sign | back when |
//! |---|---|---|
//! | unreachable | connections fail in a row (Ribbon's trip) | a connection succeeds; time is up, where nobody tries |
//! | silent | it owes answers, says nothing, and does not answer the gateway's own question | it says something |
//! | failing | failures in a row | time is up |
//! | outlier | its share of failures is far above its zone's median | time is up |
//! | check | active checks failed in a row | checks succeed in a row |
//!
//! That nobody listens, or that nobody says anything, is a fact and has no cap: a zone whose servers
//! all stand still is left as a whole, and no request is their trial. The others are suspicions: no more of a zone than
//! `ejected_max` is ejected for them, and when hardly any server looks well they are ignored.
//! Who is back is on probation: two failures in a row are enough to be out again, for longer.

use super::settings::Settings;
use base::env::Instant;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unreachable,
    Silent,
    Failing,
    Outlier,
    Check,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Unreachable => "unreachable",
            Reason::Silent => "silent",
            Reason::Failing => "failing",
            Reason::Outlier => "outlier",
            Reason::Check => "check",
        }
    }
}

#[derive(Debug)]
pub struct Health {
    out: Option<(Reason, Instant)>,
    /// How often it was out lately; each time lasts longer.
    n_outs: u32,
    back_at: Instant,
    n_unreachable: u32,
    n_failed: u32,
    /// Answers in a row that began well and did not end so.
    n_broken: u32,
    n_checks_well: u32,
    n_checks_unwell: u32,
    pub check_at: Instant,
    pub is_checking: bool,
    /// Since it was out a probe has failed.
    pub is_probed: bool,
    /// When it is asked again whether it is there, and since when it is being asked.
    pub ask_at: Instant,
    pub asked_at: Option<Instant>,
}

impl Health {
    pub fn new(now: Instant) -> Health {
        Health {
            out: None,
            n_outs: 0,
            back_at: now,
            n_unreachable: 0,
            n_failed: 0,
            n_broken: 0,
            n_checks_well: 0,
            n_checks_unwell: 0,
            check_at: now,
            is_checking: false,
            is_probed: false,
            ask_at: now,
            asked_at: None,
        }
    }

    /// Whether that is a fact, and no suspicion.
    pub fn is_fact(&self) -> bool {
        matches!(self.out(), Some(Reason::Unreachable | Reason::Silent))
    }

    /// Why it is out, if it is.
    pub fn out(&self) -> Option<Reason> {
        self.out.map(|(reason, _)| reason)
    }

    /// The reason to take it out, if this failure is one.
    pub fn failed(&mut self, settings: &Settings, is_unreachable: bool) -> Option<Reason> {
        if is_unreachable {
            self.n_unreachable += 1;
            return (self.n_unreachable >= settings.n_unreachable_max.max(1))
                .then_some(Reason::Unreachable);
        }
        self.n_unreachable = 0;
        self.n_failed += 1;
        (self.n_failed >= settings.n_failed_max.max(1)).then_some(Reason::Failing)
    }

    pub fn answered_well(&mut self) {
        self.n_unreachable = 0;
        self.n_failed = 0;
    }

    /// An answer that began well is through, or broke; the reason to take it out, if there is one.
    pub fn rest(&mut self, settings: &Settings, is_well: bool) -> Option<Reason> {
        self.n_broken = if is_well { 0 } else { self.n_broken + 1 };
        (self.n_broken >= settings.n_failed_max.max(1)).then_some(Reason::Failing)
    }

    pub fn take_out(&mut self, now: Instant, settings: &Settings, reason: Reason) {
        if now.saturating_duration_since(self.back_at) > settings.eject_max {
            self.n_outs = 0;
        }
        let until = match reason {
            Reason::Unreachable => {
                let doubled = settings.trip_for.saturating_mul(1 << self.n_outs.min(16));
                now + doubled.min(settings.trip_max)
            }
            Reason::Failing | Reason::Outlier => {
                now + settings
                    .eject_for
                    .saturating_mul(self.n_outs.saturating_add(1))
                    .min(settings.eject_max)
            }
            // Ended by checks alone.
            Reason::Check | Reason::Silent => now + Duration::from_secs(3600 * 24 * 365),
        };
        self.n_outs = self.n_outs.saturating_add(1);
        self.is_probed = false;
        self.out = Some((reason, until));
    }

    /// Whether its time out is over now. Of a server that nobody reaches the gateway's own probes
    /// tell that, and not the requests of users; where there are no probes, it is time.
    pub fn is_over(&self, now: Instant) -> bool {
        let is_for_probes = self.is_probed && self.out() == Some(Reason::Unreachable);
        self.out.is_some_and(|(_, until)| now >= until) && !is_for_probes
    }

    pub fn bring_back(&mut self, now: Instant, settings: &Settings) {
        self.out = None;
        self.back_at = now;
        self.n_unreachable = settings.n_unreachable_max.saturating_sub(2);
        self.n_failed = settings.n_failed_max.saturating_sub(2);
        self.n_broken = self.n_failed;
    }

    /// A check's result; what changes with it.
    pub fn checked(&mut self, n_well: u32, n_unwell: u32, is_well: bool) -> Option<bool> {
        if is_well {
            self.n_checks_unwell = 0;
            self.n_checks_well += 1;
            let back = self.out() == Some(Reason::Check) && self.n_checks_well >= n_well.max(1);
            back.then_some(true)
        } else {
            self.n_checks_well = 0;
            self.n_checks_unwell += 1;
            let out = self.out.is_none() && self.n_checks_unwell >= n_unwell.max(1);
            out.then_some(false)
        }
    }
}
