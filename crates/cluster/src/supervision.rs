//! What a supervisor does about its worker: decide purely, act elsewhere.
//!
//! The supervisor is the operating system's spy (it learns of an end by waiting for its child)
//! and the application's (the worker says that it is well; when it stops saying so it is stuck,
//! is killed, and only then reported). It starts the worker again unless the worker said that
//! its data can no longer be trusted or the end was asked for.

use base::env::Instant;
use std::time::Duration;

/// A worker that says nothing for this long is stuck.
pub const STUCK: Duration = Duration::from_secs(5);
/// Ticks come several times a second. After a gap like this it was the supervisor itself that
/// stood still, so what it did not hear tells nothing about the worker.
const GAP: Duration = Duration::from_secs(1);
/// A worker that ran this long before it ended is started again at once.
const STEADY: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that was asked to stop has this long.
const STOPPING: Duration = Duration::from_secs(15);

/// The worker's exit code for "my data can no longer be trusted".
pub const EXIT_HALTED: i32 = 70;
/// The worker's exit code for "what I was told cannot work".
pub const EXIT_MISUSED: i32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker says that it is well.
    Beat,
    /// The worker has ended; its exit code, none if a signal ended it.
    Ended(Option<i32>),
    /// Somebody wants the node to stop.
    Stop,
    /// Time passes.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    AskToStop,
    Kill,
    /// Tell the peers that the worker is dead. Comes only after its end.
    Report,
    /// End the supervisor with this code.
    Exit(i32),
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Running { since: Instant, heard: Instant },
    Stopping { since: Instant },
    Over,
}

/// One node's worker over time.
#[derive(Debug)]
pub struct Supervision {
    state: State,
    pause: Duration,
    killed: bool,
    stepped: Instant,
}

impl Supervision {
    pub fn new(now: Instant) -> Supervision {
        Supervision {
            state: State::Waiting { until: now },
            pause: PAUSE_MIN,
            killed: false,
            stepped: now,
        }
    }

    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let stood_still = now >= self.stepped + GAP;
        self.stepped = now;
        match (&mut self.state, event) {
            (State::Over, _) => Vec::new(),
            (State::Waiting { until }, Event::Tick) if now >= *until => {
                self.state = State::Running { since: now, heard: now };
                self.killed = false;
                vec![Action::Start]
            }
            (State::Waiting { .. }, Event::Stop) => self.over(0),
            (State::Running { heard, .. }, Event::Beat) => {
                *heard = now;
                Vec::new()
            }
            (State::Running { heard, .. }, Event::Tick) if stood_still => {
                *heard = now;
                Vec::new()
            }
            (State::Running { heard, .. }, Event::Tick)
                if now >= *heard + STUCK && !self.killed =>
            {
                self.killed = true;
                vec![Action::Kill]
            }
            (State::Running { since, .. }, Event::Ended(code)) => {
                if let Some(code @ (EXIT_HALTED | EXIT_MISUSED)) = code {
                    let mut actions = vec![Action::Report];
                    actions.extend(self.over(code));
                    return actions;
                }
                let steady = now >= *since + STEADY;
                let pause = if steady { Duration::ZERO } else { self.pause };
                self.pause = if steady { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
                self.state = State::Waiting { until: now + pause };
                vec![Action::Report]
            }
            (State::Running { .. }, Event::Stop) => {
                self.state = State::Stopping { since: now };
                vec![Action::AskToStop]
            }
            (State::Stopping { .. }, Event::Ended(code)) => {
                let mut actions = vec![Action::Report];
                actions.extend(self.over(code.unwrap_or(0)));
                actions
            }
            (State::Stopping { since }, Event::Tick)
                if now >= *since + STOPPING && !self.killed =>
            {
                self.killed = true;
                vec![Action::Kill]
            }
            _ => Vec::new(),
        }
    }

    fn over(&mut self, code: i32) -> Vec<Action> {
        self.state = State::Over;
        vec![Action::Exit(code)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Story {
        supervision: Supervision,
        begin: Instant,
    }

    impl Story {
        #[allow(clippy::disallowed_methods)]
        fn new() -> Story {
            let begin = Instant::now();
            Story { supervision: Supervision::new(begin), begin }
        }

        fn at(&mut self, ms: u64, event: Event) -> Vec<Action> {
            self.supervision.step(self.begin + Duration::from_millis(ms), event)
        }
    }

    #[test]
    fn a_crash_is_reported_and_followed_by_a_fresh_start() {
        let mut story = Story::new();
        assert_eq!(story.at(0, Event::Tick), [Action::Start]);
        assert_eq!(story.at(20_000, Event::Ended(None)), [Action::Report]);
        assert_eq!(
            story.at(20_000, Event::Tick),
            [Action::Start],
            "a steady worker starts at once"
        );
        assert_eq!(story.at(20_100, Event::Ended(Some(101))), [Action::Report]);
        assert_eq!(story.at(20_150, Event::Tick), [], "one that keeps crashing waits longer");
        assert_eq!(story.at(20_200, Event::Tick), [Action::Start]);
        assert_eq!(story.at(20_300, Event::Ended(Some(101))), [Action::Report]);
        assert_eq!(story.at(20_400, Event::Tick), []);
        assert_eq!(story.at(20_500, Event::Tick), [Action::Start]);
    }

    #[test]
    fn a_stuck_worker_is_killed_before_it_is_reported() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        story.at(4_000, Event::Beat);
        for ms in (4_250..9_000).step_by(250) {
            assert_eq!(story.at(ms, Event::Tick), []);
        }
        assert_eq!(story.at(9_000, Event::Tick), [Action::Kill]);
        assert_eq!(story.at(9_100, Event::Tick), [], "once");
        assert_eq!(story.at(9_200, Event::Ended(None)), [Action::Report]);
    }

    #[test]
    fn a_supervisor_that_stood_still_gives_its_worker_time() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        story.at(4_000, Event::Beat);
        assert_eq!(story.at(60_000, Event::Tick), [], "both were paused");
        for ms in (60_250..65_000).step_by(250) {
            assert_eq!(story.at(ms, Event::Tick), []);
        }
        assert_eq!(story.at(65_000, Event::Tick), [Action::Kill]);
    }

    #[test]
    fn a_worker_that_distrusts_its_data_is_not_started_again() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        let end = story.at(100, Event::Ended(Some(EXIT_HALTED)));
        assert_eq!(end, [Action::Report, Action::Exit(EXIT_HALTED)]);
        assert_eq!(story.at(99_000, Event::Tick), []);
    }

    #[test]
    fn stopping_is_asked_for_and_then_enforced() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        assert_eq!(story.at(100, Event::Stop), [Action::AskToStop]);
        assert_eq!(story.at(20_000, Event::Tick), [Action::Kill]);
        assert_eq!(story.at(20_001, Event::Ended(None)), [Action::Report, Action::Exit(0)]);
    }
}
