//! The generator itself: connections, what they wait for, and the counts of what became of it. One
//! loop, [`Load::turn`], serves all kinds of load; they differ in who sends next.

use super::super::answer::Reader;
use super::super::processes::Family;
use super::super::sockets::{
    MICROSECOND, MILLISECOND, Poller, Random, SECOND, SPECIAL, Slab, connect, now_ns,
};
use super::{Options, Percentiles, Report, SLICE_NS, Slice};
use anyhow::Result;
use rustix::event::epoll::EventFlags;
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Status(u16),
    /// No connection could be made.
    Refused,
    /// The connection ended before the answer did.
    Closed,
    Malformed,
    Timeout,
    /// All connections were busy.
    Overflow,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Status(status) => write!(f, "{status}"),
            Outcome::Refused => write!(f, "refused"),
            Outcome::Closed => write!(f, "closed"),
            Outcome::Malformed => write!(f, "malformed"),
            Outcome::Timeout => write!(f, "timeout"),
            Outcome::Overflow => write!(f, "overflow"),
        }
    }
}

struct Connection {
    stream: TcpStream,
    connecting: bool,
    /// What it waits for the answer to.
    request: Option<Request>,
    output: Vec<u8>,
    n_written: usize,
    reader: Reader,
}

#[derive(Clone, Copy)]
struct Request {
    serial: u64,
    due_ns: u64,
}

struct Load {
    options: Options,
    poller: Poller,
    connections: Slab<Connection>,
    /// The one used last is taken first; some may have gone.
    idle: Vec<u64>,
    /// By deadline, which is the order of sending; some may have been answered.
    deadlines: VecDeque<(u64, u64, u64)>,
    n_sent: u64,
    work: Random,
    counts: Counts,
    buffer: Vec<u8>,
}

struct Counts {
    begin_ns: u64,
    end_ns: u64,
    /// Whether a request belongs to the time it was due (or else the time it ended).
    by_due: bool,
    outcomes: BTreeMap<Outcome, u64>,
    took_ns: Vec<u64>,
    late_ns: Vec<u64>,
    slices: Vec<Slice>,
}

const STDIN: u64 = SPECIAL;
/// A closed loop opens connections that it has lost again after this: a proxy that refuses is not
/// to be hammered.
const REOPEN_NS: u64 = 10 * MILLISECOND;
/// Connections that are opened at once to be held.
const OPENING_MAX: usize = 64;

pub fn run(options: &Options) -> Result<()> {
    let family = options.watch.map(Family::of).transpose()?;
    let begin_ns = now_ns() + options.warm_ms * MILLISECOND;
    let end_ns = begin_ns + options.count_ms * MILLISECOND;
    let mut load = Load {
        options: options.clone(),
        poller: Poller::new()?,
        connections: Slab::new(),
        idle: Vec::new(),
        deadlines: VecDeque::new(),
        n_sent: 0,
        work: Random::new(options.seed ^ 0xa110_57ed),
        counts: Counts::new(begin_ns, end_ns, options.rate.is_some()),
        buffer: vec![0; 64 * 1024],
    };
    let report = match options.rate {
        _ if options.hold => load.hold()?,
        Some(rate) => load.open_loop(rate, family.as_ref())?,
        None => load.closed_loop(family.as_ref())?,
    };
    // Where nobody reads it any more that is an error, not a panic.
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?)
}

fn say_begin(begin_ns: u64) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "begin {begin_ns}")?;
    Ok(stdout.flush()?)
}

/// CPU time of the watched process at the beginning and at the end of the counted time.
struct Watch<'a> {
    family: Option<&'a Family>,
    begin_us: Option<u64>,
    used_us: Option<u64>,
}

impl Watch<'_> {
    fn look(&mut self, now: u64, counts: &Counts) -> Result<()> {
        if self.begin_us.is_none() && now >= counts.begin_ns {
            self.begin_us = Some(self.family.map_or(Ok(0), Family::cpu_us)?);
            say_begin(counts.begin_ns)?;
        }
        if let (None, Some(begin), Some(family)) = (self.used_us, self.begin_us, self.family)
            && now >= counts.end_ns
        {
            self.used_us = Some(family.cpu_us()? - begin);
        }
        Ok(())
    }
}

impl Load {
    fn closed_loop(&mut self, family: Option<&Family>) -> Result<Report> {
        let mut watch = Watch { family, begin_us: None, used_us: None };
        let mut ready = Vec::new();
        let mut open_ns = 0;
        loop {
            let now = now_ns();
            watch.look(now, &self.counts)?;
            if now >= self.counts.end_ns {
                return Ok(self.report(watch.used_us));
            }
            if now >= open_ns {
                while self.connections.len() < self.options.connections {
                    let work_us = self.draw();
                    if !self.send_on_new(now, work_us)? {
                        break;
                    }
                }
                open_ns = now + REOPEN_NS;
            }
            // At the latest then the beginning, the end and lost connections are looked at.
            self.turn(open_ns.min(self.counts.end_ns), &mut ready)?;
        }
    }

    fn open_loop(&mut self, rate: f64, family: Option<&Family>) -> Result<Report> {
        let mut watch = Watch { family, begin_us: None, used_us: None };
        let mut ready = Vec::new();
        let mut arrivals = Random::new(self.options.seed);
        let mut gap = || (arrivals.exponential(SECOND as f64 / rate)) as u64;
        let mut due_ns = now_ns() + gap();
        loop {
            let now = now_ns();
            watch.look(now, &self.counts)?;
            while due_ns <= now && due_ns < self.counts.end_ns {
                self.send(due_ns)?;
                due_ns += gap();
            }
            let next = if due_ns < self.counts.end_ns {
                due_ns
            } else if now < self.counts.end_ns {
                self.counts.end_ns
            } else if self.deadlines.is_empty() {
                return Ok(self.report(watch.used_us));
            } else {
                u64::MAX
            };
            self.turn(next, &mut ready)?;
        }
    }

    fn hold(&mut self) -> Result<Report> {
        self.counts.begin_ns = 0;
        self.counts.end_ns = u64::MAX;
        self.poller.add(std::io::stdin(), STDIN, EventFlags::IN)?;
        let mut ready = Vec::new();
        let mut n_opened = 0;
        let mut is_held = false;
        loop {
            let now = now_ns();
            while n_opened < self.options.connections && self.deadlines.len() < OPENING_MAX {
                n_opened += 1;
                let work_us = self.draw();
                self.send_on_new(now, work_us)?;
            }
            if !is_held && n_opened == self.options.connections && self.deadlines.is_empty() {
                is_held = true;
                say_begin(now)?;
            }
            self.turn(u64::MAX, &mut ready)?;
            if ready.iter().any(|(token, _)| *token == STDIN) {
                return Ok(self.report(None));
            }
        }
    }

    /// Waits for what comes next, until `next_ns` at most, and deals with it.
    fn turn(&mut self, next_ns: u64, ready: &mut Vec<(u64, EventFlags)>) -> Result<()> {
        let deadline = self.deadlines.front().map_or(u64::MAX, |(deadline, _, _)| *deadline);
        let until = next_ns.min(deadline);
        self.poller.wait((until < u64::MAX).then_some(until), ready)?;
        for (token, flags) in ready.iter().filter(|(token, _)| *token != STDIN) {
            self.ready(*token, *flags)?;
        }
        let now = now_ns();
        while let Some((deadline, token, serial)) = self.deadlines.front().copied() {
            let connection = self.connections.get_mut(token);
            let waits = connection.and_then(|connection| connection.request);
            let waits = waits.is_some_and(|request| request.serial == serial);
            if waits && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            if waits {
                self.lose(token, Outcome::Timeout);
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> u64 {
        self.work.exponential(self.options.work_us).ceil() as u64
    }

    /// On an idle connection or a new one.
    fn send(&mut self, due_ns: u64) -> Result<()> {
        // Drawn for those that cannot be sent as well: the next ones' must not depend on it.
        let work_us = self.draw();
        while let Some(token) = self.idle.pop() {
            if self.connections.get_mut(token).is_some() {
                return self.send_on(token, due_ns, work_us);
            }
        }
        if self.connections.len() >= self.options.connections {
            self.counts.add(due_ns, now_ns(), Outcome::Overflow);
            return Ok(());
        }
        self.send_on_new(due_ns, work_us)?;
        Ok(())
    }

    /// Whether a connection could be begun.
    fn send_on_new(&mut self, due_ns: u64, work_us: u64) -> Result<bool> {
        let Some(stream) = connect(self.options.port)? else {
            self.counts.add(due_ns, now_ns(), Outcome::Refused);
            return Ok(false);
        };
        let token = self.connections.insert(Connection {
            stream,
            connecting: true,
            request: None,
            output: Vec::new(),
            n_written: 0,
            reader: Reader::new(),
        });
        if let Some(connection) = self.connections.get_mut(token) {
            self.poller.add(&connection.stream, token, EventFlags::OUT)?;
        }
        self.send_on(token, due_ns, work_us)?;
        Ok(true)
    }

    fn send_on(&mut self, token: u64, due_ns: u64, work_us: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        let serial = self.n_sent;
        self.n_sent += 1;
        self.deadlines.push_back((due_ns + self.options.timeout_ms * MILLISECOND, token, serial));
        connection.request = Some(Request { serial, due_ns });
        connection.output.clear();
        connection.n_written = 0;
        write!(connection.output, "GET /{}", self.options.bytes)?;
        if work_us > 0 {
            write!(connection.output, "/{work_us}")?;
        }
        write!(connection.output, " HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        self.counts.sent(due_ns);
        if connection.connecting { Ok(()) } else { self.write(token) }
    }

    fn write(&mut self, token: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        match connection.stream.write(&connection.output[connection.n_written..]) {
            Ok(n) => connection.n_written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.lose(token, Outcome::Closed);
                return Ok(());
            }
        }
        if connection.n_written < connection.output.len() {
            let what = EventFlags::IN | EventFlags::OUT;
            self.poller.modify(&connection.stream, token, what)?;
        }
        Ok(())
    }

    fn ready(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        if flags.contains(EventFlags::OUT) || connection.connecting {
            if connection.connecting
                && rustix::net::sockopt::socket_error(&connection.stream)?.is_err()
            {
                self.lose(token, Outcome::Refused);
                return Ok(());
            }
            connection.connecting = false;
            self.poller.modify(&connection.stream, token, EventFlags::IN)?;
            self.write(token)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        let n = match connection.stream.read(&mut self.buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(_) => 0,
        };
        // Nobody has asked on an idle connection: its end, or the reason for it.
        if n == 0 || connection.request.is_none() {
            self.lose(token, Outcome::Closed);
            return Ok(());
        }
        match connection.reader.read(&self.buffer[..n]) {
            Ok(None) => {}
            Ok(Some(answer)) => self.answered(token, answer.status, answer.keep)?,
            Err(_) => self.lose(token, Outcome::Malformed),
        }
        Ok(())
    }

    fn answered(&mut self, token: u64, status: u16, keep: bool) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        let now = now_ns();
        if let Some(request) = connection.request.take() {
            self.counts.add(request.due_ns, now, Outcome::Status(status));
        }
        if !keep {
            self.connections.remove(token);
        } else if self.options.hold {
            // Silent from here on.
        } else if self.options.rate.is_some() {
            self.idle.push(token);
        } else {
            let work_us = self.draw();
            self.send_on(token, now, work_us)?;
        }
        Ok(())
    }

    /// Closes the connection; the request on it, if any, has failed.
    fn lose(&mut self, token: u64, outcome: Outcome) {
        let Some(connection) = self.connections.remove(token) else { return };
        if let Some(request) = connection.request {
            self.counts.add(request.due_ns, now_ns(), outcome);
        }
    }

    fn report(&mut self, cpu_us: Option<u64>) -> Report {
        let counts = &mut self.counts;
        Report {
            begin_ns: counts.begin_ns,
            seconds: (counts.end_ns - counts.begin_ns) as f64 / SECOND as f64,
            outcomes: counts.outcomes.iter().map(|(what, n)| (what.to_string(), *n)).collect(),
            latency_us: percentiles(&mut counts.took_ns),
            late_us: percentiles(&mut counts.late_ns),
            cpu_us,
            n_connections: self.connections.len(),
            slices: std::mem::take(&mut counts.slices),
        }
    }
}

impl Counts {
    fn new(begin_ns: u64, end_ns: u64, by_due: bool) -> Counts {
        let n_slices = (end_ns - begin_ns).div_ceil(SLICE_NS) as usize;
        Counts {
            begin_ns,
            end_ns,
            by_due,
            outcomes: BTreeMap::new(),
            took_ns: Vec::new(),
            late_ns: Vec::new(),
            slices: vec![Slice::default(); n_slices],
        }
    }

    fn sent(&mut self, due_ns: u64) {
        if self.by_due && (self.begin_ns..self.end_ns).contains(&due_ns) {
            self.late_ns.push(now_ns() - due_ns);
        }
    }

    fn add(&mut self, due_ns: u64, ended_ns: u64, outcome: Outcome) {
        let at = if self.by_due { due_ns } else { ended_ns };
        if !(self.begin_ns..self.end_ns).contains(&at) {
            return;
        }
        *self.outcomes.entry(outcome).or_default() += 1;
        let took = ended_ns - due_ns;
        let is_good = outcome == Outcome::Status(200);
        if is_good || outcome == Outcome::Timeout {
            self.took_ns.push(took);
        }
        if let Some(slice) = self.slices.get_mut(((at - self.begin_ns) / SLICE_NS) as usize) {
            slice.n += 1;
            if is_good {
                slice.n_good += 1;
                slice.worst_us = slice.worst_us.max(took as f64 / MICROSECOND as f64);
            }
        }
    }
}

/// By nearest rank; zeros of nothing.
fn percentiles(samples_ns: &mut [u64]) -> Percentiles {
    samples_ns.sort_unstable();
    let at = |share: f64| {
        let rank = (share * samples_ns.len() as f64).ceil() as usize;
        let ns = samples_ns.get(rank.saturating_sub(1)).copied().unwrap_or(0);
        ns as f64 / MICROSECOND as f64
    };
    Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
}
