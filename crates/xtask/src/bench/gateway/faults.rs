//! A zone dies, and everything fails. Six backends, two in each of three zones, with 4 slots each
//! and exponential work of 5 ms in the mean: 800 requests a second each. Peers balance by least
//! load.
//!
//! **Zone**: an open loop of 90 % of what four backends can do. After 5 s both backends of zone a,
//! which is also Atoll's own, are killed (SIGKILL: their ports refuse from then on). Failures are
//! counted by when the request was due: up to one second after the kill (200 ms before it, those
//! that were under way) is the window in which a system may find out; after it there is no excuse.
//!
//! **Outage**: an open loop of 70 % of what six can do; who has no answer within a second has failed.
//! After 3 s all backends answer 503 at once, for 5 s; all proxies may try again elsewhere once.
//! Amplification is requests that reach backends for each one that a client sent in these 5 s: 2
//! means that a fleet that is down is asked twice as much as one that is up. Recovery is the time
//! from the end of the outage until 99 % of a second's requests are answered in time, to 10 ms.
//! (nginx takes a 503 that it may try again for a failed server, looks away from all of them for
//! 10 s, and answers 502 by itself: it amplifies nothing and comes back when the time is up.)

use super::backend::{Backend, Options as Servers};
use super::load::{Options as Load, Report, Running, SLICE_NS};
use super::sockets::{MILLISECOND, SECOND, now_ns, sleep_until};
use super::systems::{self, BACKEND_PORT, Balance, Setup};
use super::tables::{Table, figure, ratio};
use super::{Bench, System, medians, ports};
use anyhow::Result;

const SLOTS: usize = 4;
const WORK_US: f64 = 5000.0;
const ZONES: [char; 3] = ['a', 'b', 'c'];
const IN_ZONE: u16 = 2;
const KILLED: char = 'a';
const CONNECTIONS_MAX: usize = 4096;

fn setup(retry_503: bool) -> Setup {
    let zones = ZONES.iter().flat_map(|zone| std::iter::repeat_n(*zone, usize::from(IN_ZONE)));
    let backends = zones.zip(BACKEND_PORT..);
    Setup {
        backends: backends.map(|(zone, port)| systems::Backend { zone, port }).collect(),
        balance: Balance::LeastLoaded,
        retry_503,
    }
}

fn servers(ports: Vec<u16>) -> Result<Backend> {
    Backend::start(&Servers { ports, slots: SLOTS, slow: vec![], factor: 1 })
}

fn capacity(n_backends: usize) -> f64 {
    n_backends as f64 * SLOTS as f64 * 1e6 / WORK_US
}

fn median_and_worst<S>(samples: &[S], what: fn(&S) -> f64) -> [String; 2] {
    let worst = samples.iter().map(what).fold(0.0, f64::max);
    [figure(medians(samples, what)), figure(worst)]
}

struct Killed {
    n: u64,
    n_before: f64,
    n_within: f64,
    n_after: f64,
    p99_ms: f64,
}

pub fn zone(bench: &Bench) -> Result<()> {
    let n_left = (ZONES.len() - 1) * usize::from(IN_ZONE);
    let rate = 0.9 * capacity(n_left);
    let found = bench.in_turn(&bench.proxies(), |round, system| {
        let sample = kill(bench, system, rate, round)?;
        eprintln!(
            "round {round}: {}: failed {} before, {} in the first second, {} after it, of {}",
            system.name(),
            sample.n_before,
            sample.n_within,
            sample.n_after,
            sample.n
        );
        Ok(sample)
    })?;
    let mut table = Table::new(&[
        "",
        "requests",
        "failed before",
        "in the 1st s",
        "worst",
        "after it",
        "worst",
        "p99 ms",
    ]);
    for (system, samples) in &found {
        let within = median_and_worst(samples, |sample| sample.n_within);
        let after = median_and_worst(samples, |sample| sample.n_after);
        let mut figures = vec![figure(medians(samples, |sample| sample.n as f64))];
        figures.push(figure(medians(samples, |sample| sample.n_before)));
        figures.extend(within.into_iter().chain(after));
        figures.push(figure(medians(samples, |sample| sample.p99_ms)));
        table.row(system.name(), figures);
    }
    table.print(&format!(
        "Zone kill: open loop, {}/s, {} of 6 backends die; failed requests, medians",
        figure(rate),
        IN_ZONE
    ));
    Ok(())
}

fn kill(bench: &Bench, system: System, rate: f64, round: usize) -> Result<Killed> {
    let setup = setup(false);
    let mut dying = Vec::new();
    let mut staying = Vec::new();
    for backend in &setup.backends {
        let zone = if backend.zone == KILLED { &mut dying } else { &mut staying };
        zone.push(servers(vec![backend.port])?);
    }
    let started = bench.start(system, &setup)?;
    let before_ns = 5 * SECOND;
    let load = Running::start(&Load {
        rate: Some(rate),
        work_us: WORK_US,
        connections: CONNECTIONS_MAX,
        count_ms: before_ns / MILLISECOND + bench.seconds.max(2) * 1000,
        timeout_ms: 2000,
        seed: round as u64,
        ..Load::new(started.port)
    })?;
    sleep_until(load.begin_ns + before_ns);
    let killed_ns = now_ns() - load.begin_ns;
    for backend in dying {
        backend.kill()?;
    }
    let report = load.finish()?;
    if report.n_failed() > 0 {
        eprintln!("round {round}: {}: {}", system.name(), report.failures());
    }
    let failed = |from_ns, to_ns| {
        let requests = report.between(from_ns, to_ns);
        (requests.n - requests.n_good) as f64
    };
    let (from, to) = (killed_ns - 200 * MILLISECOND, killed_ns + SECOND);
    Ok(Killed {
        n: report.n_all(),
        n_before: failed(0, from),
        n_within: failed(from, to),
        n_after: failed(to, u64::MAX),
        p99_ms: report.latency_us.p99 / 1e3,
    })
}

struct Outage {
    before: f64,
    amplification: f64,
    /// Not a number: not as long as the test went on.
    recovery_s: f64,
}

pub fn outage(bench: &Bench) -> Result<()> {
    let rate = 0.7 * capacity(ZONES.len() * usize::from(IN_ZONE));
    let found = bench.in_turn(&bench.proxies(), |round, system| {
        let sample = fail(bench, system, rate, round)?;
        eprintln!(
            "round {round}: {}: {:.2} requests at the backends for each, recovered after {} s",
            system.name(),
            sample.amplification,
            figure(sample.recovery_s)
        );
        Ok(sample)
    })?;
    // Who has not recovered is slower than any who has.
    let recovery = |samples: &[Outage]| {
        medians(samples, |sample| match sample.recovery_s {
            never if never.is_nan() => f64::INFINITY,
            seconds => seconds,
        })
    };
    let of = |wanted: System, what: &dyn Fn(&[Outage]) -> f64| {
        let row = found.iter().find(|(system, _)| *system == wanted);
        row.map_or(f64::NAN, |(_, samples)| what(samples))
    };
    let amplification = |samples: &[Outage]| medians(samples, |sample| sample.amplification);
    let mut table = Table::new(&[
        "",
        "answered before",
        "backend requests each",
        "Atoll ÷",
        "recovery s",
        "Atoll ÷",
    ]);
    for (system, samples) in &found {
        let [each, after] = [amplification(samples), recovery(samples)];
        let shown = match after {
            after if after.is_finite() => figure(after),
            _ => format!("> {}", watched_s(bench)),
        };
        table.row(
            system.name(),
            [
                format!("{:.2} %", medians(samples, |sample| sample.before) * 100.0),
                figure(each),
                ratio(of(System::Atoll, &amplification), each),
                shown,
                ratio(of(System::Atoll, &recovery), after),
            ],
        );
    }
    table.print(&format!(
        "Total outage: open loop, {}/s, 503 from all backends for 5 s",
        figure(rate)
    ));
    Ok(())
}

/// Seconds behind the outage; one more than is looked at, see [`recovered_ns`].
fn watched_s(bench: &Bench) -> u64 {
    bench.seconds.max(2)
}

fn fail(bench: &Bench, system: System, rate: f64, round: usize) -> Result<Outage> {
    let setup = setup(true);
    let mut backend = servers(ports(&setup.backends))?;
    let started = bench.start(system, &setup)?;
    let (before_ns, outage_ns) = (3 * SECOND, 5 * SECOND);
    let watched_ns = watched_s(bench) * SECOND;
    let load = Running::start(&Load {
        rate: Some(rate),
        work_us: WORK_US,
        connections: CONNECTIONS_MAX,
        count_ms: (before_ns + outage_ns + watched_ns + SECOND) / MILLISECOND,
        timeout_ms: 1000,
        seed: round as u64,
        ..Load::new(started.port)
    })?;
    sleep_until(load.begin_ns + before_ns);
    let begin_ns = now_ns() - load.begin_ns;
    let asked_before = backend.fail()?;
    sleep_until(load.begin_ns + before_ns + outage_ns);
    let end_ns = now_ns() - load.begin_ns;
    let asked = backend.serve()? - asked_before;
    let report = load.finish()?;
    let before = report.between(0, begin_ns - 200 * MILLISECOND);
    let during = report.between(begin_ns, end_ns);
    let recovered = recovered_ns(&report, end_ns, watched_ns);
    Ok(Outage {
        before: before.n_good as f64 / before.n as f64,
        amplification: asked as f64 / during.n as f64,
        recovery_s: recovered.map_or(f64::NAN, |ns| ns as f64 / SECOND as f64),
    })
}

/// From `end_ns` to the first second of which 99 % was answered.
fn recovered_ns(report: &Report, end_ns: u64, watched_ns: u64) -> Option<u64> {
    (0..=watched_ns).step_by(SLICE_NS as usize).find(|after| {
        let second = report.between(end_ns + after, end_ns + after + SECOND);
        second.n_good as f64 >= 0.99 * second.n as f64
    })
}
