//! Slow backends: 16 with 4 slots each and exponential work of 20 ms in the mean, so that the fleet
//! does 16 × 4 / 0.02 = 3,200 requests a second; two of them take 16 times as long (12.5 a second
//! each, from 200). An open loop of 70 % of the nominal rate: the 14 good ones can carry all of it,
//! at 80 % of theirs (87.5 % is where they could not). Who spreads evenly gives each slow one 140 a
//! second: its queue grows as long as the test goes on, and one in eight requests ends in it.
//!
//! Each system is given the same arrivals and the same work. Work is sleep and costs no CPU; the
//! last row, without slow ones, is what the queues alone make of it.
//!
//! Not set up: HAProxy's `maxconn` a server, which would hold back what exceeds a backend's slots,
//! because that is knowledge of the backends which the others are not given either.

use super::backend::{Backend, Options as Servers};
use super::load::{Options as Load, Percentiles, Report};
use super::systems::{BACKEND_PORT, BACKENDS_MAX, Balance, Setup, System};
use super::tables::{Table, figure, ratio};
use super::{Bench, medians, one_zone, ports};
use anyhow::Result;

const SLOTS: usize = 4;
const WORK_US: f64 = 20_000.0;
const FACTOR: u64 = 16;
const SLOW: [u16; 2] = [BACKEND_PORT + 4, BACKEND_PORT + 11];
const LOAD: f64 = 0.7;
/// A proxy holds as many again to its backends: 16,384 of the [`super::FILES_MIN`] it may open.
const CONNECTIONS_MAX: usize = 8192;

#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    system: System,
    balance: Balance,
    with_slow: bool,
}

const OURS: &str = "Atoll";

fn rows(bench: &Bench) -> Vec<Row> {
    let row = |name, system, balance| Row { name, system, balance, with_slow: true };
    let rows = [
        row("nginx round robin", System::Nginx, Balance::RoundRobin),
        row("nginx least_conn", System::Nginx, Balance::LeastLoaded),
        row("HAProxy leastconn", System::Haproxy, Balance::LeastLoaded),
        row("Envoy round robin", System::Envoy, Balance::RoundRobin),
        row("Envoy LEAST_REQUEST", System::Envoy, Balance::LeastLoaded),
        row(OURS, System::Atoll, Balance::LeastLoaded),
        Row { with_slow: false, ..row("Atoll, none slow", System::Atoll, Balance::LeastLoaded) },
    ];
    rows.into_iter().filter(|row| bench.systems.contains(&row.system)).collect()
}

pub fn tail(bench: &Bench) -> Result<()> {
    let rate = LOAD * f64::from(BACKENDS_MAX) * SLOTS as f64 * 1e6 / WORK_US;
    let found = bench.in_turn(&rows(bench), |round, row| {
        let report = sample(bench, row, rate, round)?;
        let Percentiles { p50, p99, p999, .. } = report.latency_us;
        let [p50, p99, p999] = [p50, p99, p999].map(|us| us / 1e3);
        let name = row.name;
        eprintln!("round {round}: {name}: p50 {p50:.1}, p99 {p99:.1}, p99.9 {p999:.1} ms");
        if report.n_failed() > 0 {
            eprintln!("round {round}: {name}: {}", report.failures());
        }
        Ok(report)
    })?;
    let percentiles: [fn(&Percentiles) -> f64; 3] = [|of| of.p50, |of| of.p99, |of| of.p999];
    let ms = |samples: &[Report], percentile: fn(&Percentiles) -> f64| {
        medians(samples, |report| percentile(&report.latency_us) / 1e3)
    };
    let ours = found.iter().find(|(row, _)| row.name == OURS);
    let mut table = Table::new(&[
        "",
        "p50 ms",
        "Atoll ÷",
        "p99 ms",
        "Atoll ÷",
        "p99.9 ms",
        "Atoll ÷",
        "answered/s",
        "failed",
    ]);
    for (row, samples) in &found {
        let mut figures = Vec::new();
        for percentile in percentiles {
            let here = ms(samples, percentile);
            let ours = ours.map_or(f64::NAN, |(_, samples)| ms(samples, percentile));
            figures.extend([figure(here), ratio(ours, here)]);
        }
        figures.push(figure(medians(samples, |report| report.n_good() as f64 / report.seconds)));
        figures.push(samples.iter().map(Report::n_failed).sum::<u64>().to_string());
        table.row(row.name, figures);
    }
    table.print(&format!(
        "Tail: {BACKENDS_MAX} backends, {} of them {FACTOR} × slower, open loop, {}/s; \
         failed: not within 10 s, and counted as that long",
        SLOW.len(),
        figure(rate)
    ));
    Ok(())
}

fn sample(bench: &Bench, row: Row, rate: f64, round: usize) -> Result<Report> {
    let setup = Setup { backends: one_zone(BACKENDS_MAX), balance: row.balance, retry_503: false };
    let slow = if row.with_slow { SLOW.to_vec() } else { vec![] };
    let servers = Servers { ports: ports(&setup.backends), slots: SLOTS, slow, factor: FACTOR };
    let _backend = Backend::start(&servers)?;
    let started = bench.start(row.system, &setup)?;
    Load {
        rate: Some(rate),
        work_us: WORK_US,
        connections: CONNECTIONS_MAX,
        // Long enough to learn who is slow.
        warm_ms: 2000,
        count_ms: bench.seconds * 1000,
        timeout_ms: 10_000,
        seed: round as u64,
        ..Load::new(started.port)
    }
    .run()
}
