//! What a supervisor does about its worker: decide purely, act elsewhere.
//!
//! The supervisor watches at two levels. At the level of the operating system it waits for its child, and
//! so learns of the worker's end. At the level of the application it hears from the worker that it is
//! well; a worker that stops saying so is stuck, is killed, and only then reported. What the supervisor
//! does next depends on how the worker ended:
//!
//! | the worker ended | example | next start |
//! |---|---|---|
//! | after it had served, by a signal from outside | `kill -9`, the OOM killer, a rolling restart | at once |
//! | of a bug: a fault's signal, a panic's code, silence | SIGABRT, SIGSEGV, exit 101, stuck | after a pause |
//! | before it had served, whatever ended it | SIGKILL in the middle of its start | after a pause |
//! | because its data or its orders are wrong | exit 70, exit 64 | none: a person must look |
//!
//! The pause is a brake for crash loops. It begins with 100 ms, doubles with each such end up to
//! 5 s, and begins anew once a worker has served for 10 s. Example: a worker serves from second 1
//! on and panics in second 3: it starts again in second 3.1. It panics in second 4: 4.2. It is
//! killed from outside in second 6: it starts in second 6, because no bug ended it.
//!
//! What is absent: nothing here reads a clock or knows a process.

use base::env::Instant;
use std::time::Duration;

/// A worker that says nothing for this long is stuck.
pub const STUCK: Duration = Duration::from_secs(5);
/// Ticks come several times per second. After a gap like this the supervisor itself has stood still, so
/// its not having heard from the worker means nothing.
const GAP: Duration = Duration::from_secs(1);
/// A worker that served this long before a bug ended it did not die "in a row": the pause begins anew.
const STEADY: Duration = Duration::from_secs(10);
/// A worker that is well for this long counts as one that serves, even if it is still starting: a worker
/// that is killed once per second or less often needs no brake.
const SLOW: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that was asked to stop has this long.
const STOPPING: Duration = Duration::from_secs(15);

/// The worker's exit code for "my data can no longer be trusted". It is not started again.
pub const EXIT_HALTED: i32 = 70;
/// The worker's exit code for "what I was told cannot work". It is not started again.
pub const EXIT_MISUSED: i32 = 64;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl End {
    /// Whether the end came from outside. The signals in the list below answer something that the process
    /// itself did; a panic, for example, ends with SIGABRT.
    fn is_from_outside(self) -> bool {
        const ILL: i32 = 4;
        const TRAP: i32 = 5;
        const ABRT: i32 = 6;
        const BUS: i32 = 7;
        const FPE: i32 = 8;
        const SEGV: i32 = 11;
        const SYS: i32 = 31;
        match self {
            End::Code(_) => false,
            End::Signal(signal) => ![ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS].contains(&signal),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker says that it is well.
    Beat,
    /// The worker says that it serves.
    Ready,
    /// The worker has ended.
    Ended(End),
    /// The node is asked to stop.
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
    Running { since: Instant, heard: Instant, serves_since: Option<Instant> },
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
                vec![self.start(now)]
            }
            (State::Waiting { .. }, Event::Stop) => self.over(0),
            (
                State::Running { since, heard, serves_since },
                word @ (Event::Beat | Event::Ready),
            ) => {
                *heard = now;
                if word == Event::Ready || now >= *since + SLOW {
                    serves_since.get_or_insert(now);
                }
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
            (State::Running { serves_since, .. }, Event::Ended(end)) => {
                if let End::Code(code @ (EXIT_HALTED | EXIT_MISUSED)) = end {
                    let mut actions = vec![Action::Report];
                    actions.extend(self.over(code));
                    return actions;
                }
                let served = serves_since.map(|since| now.saturating_duration_since(since));
                let pause = self.pause_after(end, served);
                if pause.is_zero() {
                    return vec![Action::Report, self.start(now)];
                }
                self.state = State::Waiting { until: now + pause };
                vec![Action::Report]
            }
            (State::Running { .. }, Event::Stop) => {
                self.state = State::Stopping { since: now };
                vec![Action::AskToStop]
            }
            (State::Stopping { .. }, Event::Ended(end)) => {
                let mut actions = vec![Action::Report];
                actions.extend(self.over(match end {
                    End::Code(code) => code,
                    End::Signal(_) => 0,
                }));
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

    /// When the next start is due, if one is.
    pub fn starts_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    fn start(&mut self, now: Instant) -> Action {
        self.state = State::Running { since: now, heard: now, serves_since: None };
        self.killed = false;
        Action::Start
    }

    /// How long the next start waits. `served`: how long the worker had served, if it ever did.
    fn pause_after(&mut self, end: End, served: Option<Duration>) -> Duration {
        if served.is_some_and(|served| served >= STEADY) {
            self.pause = PAUSE_MIN;
        }
        // The supervisor itself killed a stuck worker: that signal did not come from outside.
        if served.is_some() && end.is_from_outside() && !self.killed {
            return Duration::ZERO;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
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

    const KILL: Event = Event::Ended(End::Signal(9));
    const TERM: Event = Event::Ended(End::Signal(15));
    const ABORT: Event = Event::Ended(End::Signal(6));
    const PANIC: Event = Event::Ended(End::Code(101));

    #[test]
    fn who_served_and_was_killed_starts_at_once_however_often() {
        let mut story = Story::new();
        assert_eq!(story.at(0, Event::Tick), [Action::Start]);
        for (n, end) in [KILL, TERM, KILL, KILL, TERM, KILL].into_iter().enumerate() {
            let begin = n as u64 * 1000;
            assert_eq!(story.at(begin + 200, Event::Ready), []);
            assert_eq!(story.at(begin + 1000, end), [Action::Report, Action::Start]);
        }
    }

    #[test]
    fn a_bug_in_a_row_is_braked_and_a_kill_in_between_is_not() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        story.at(100, Event::Ready);
        assert_eq!(story.at(200, ABORT), [Action::Report]);
        assert_eq!(story.at(299, Event::Tick), []);
        assert_eq!(story.at(300, Event::Tick), [Action::Start]);
        story.at(400, Event::Ready);
        assert_eq!(story.at(500, PANIC), [Action::Report]);
        assert_eq!(story.at(699, Event::Tick), [], "the second bug waits twice as long");
        assert_eq!(story.at(700, Event::Tick), [Action::Start]);
        story.at(800, Event::Ready);
        assert_eq!(story.at(900, KILL), [Action::Report, Action::Start]);
        story.at(1000, Event::Ready);
        assert_eq!(story.at(1100, ABORT), [Action::Report]);
        assert_eq!(story.at(1499, Event::Tick), [], "a kill does not forgive a bug");
        assert_eq!(story.at(1500, Event::Tick), [Action::Start]);
        story.at(1600, Event::Ready);
        assert_eq!(story.at(11_600, ABORT), [Action::Report]);
        assert_eq!(story.at(11_699, Event::Tick), []);
        assert_eq!(story.at(11_700, Event::Tick), [Action::Start], "ten seconds of service do");
    }

    #[test]
    fn who_never_served_is_braked_whatever_ended_it() {
        let mut story = Story::new();
        let mut now = 0;
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(story.at(now, Event::Tick), [Action::Start]);
            story.at(now + 10, Event::Beat);
            assert_eq!(story.at(now + 50, KILL), [Action::Report]);
            assert_eq!(story.at(now + 50 + pause - 1, Event::Tick), []);
            now += 50 + pause;
        }
    }

    #[test]
    fn who_is_killed_in_a_long_start_needs_no_brake() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        story.at(999, Event::Beat);
        assert_eq!(story.at(1000, KILL), [Action::Report]);
        assert_eq!(story.at(1100, Event::Tick), [Action::Start]);
        story.at(2100, Event::Beat);
        assert_eq!(story.at(2200, KILL), [Action::Report, Action::Start]);
    }

    #[test]
    fn a_stuck_worker_is_killed_before_it_is_reported() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        story.at(1_000, Event::Ready);
        story.at(4_000, Event::Beat);
        for ms in (4_250..9_000).step_by(250) {
            assert_eq!(story.at(ms, Event::Tick), []);
        }
        assert_eq!(story.at(9_000, Event::Tick), [Action::Kill]);
        assert_eq!(story.at(9_100, Event::Tick), [], "once");
        assert_eq!(story.at(9_200, KILL), [Action::Report]);
        assert_eq!(story.at(9_299, Event::Tick), [], "its own supervisor killed it, for a bug");
        assert_eq!(story.at(9_300, Event::Tick), [Action::Start]);
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
        let end = story.at(100, Event::Ended(End::Code(EXIT_HALTED)));
        assert_eq!(end, [Action::Report, Action::Exit(EXIT_HALTED)]);
        assert_eq!(story.at(99_000, Event::Tick), []);
    }

    #[test]
    fn stopping_is_asked_for_and_then_enforced() {
        let mut story = Story::new();
        story.at(0, Event::Tick);
        assert_eq!(story.at(100, Event::Stop), [Action::AskToStop]);
        assert_eq!(story.at(20_000, Event::Tick), [Action::Kill]);
        assert_eq!(story.at(20_001, KILL), [Action::Report, Action::Exit(0)]);
    }
}
