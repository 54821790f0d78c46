//! Saturation: a closed loop of 64 connections, small answers and large ones. Half load: an open loop
//! at half of what the slowest system did, the same for all; the floor is the same load without a
//! proxy, and what a proxy adds is its percentile less the floor's.

use super::backend::{Backend, Options as Servers};
use super::load::{Options as Load, Percentiles, Report};
use super::systems::{Balance, Setup, System};
use super::tables::{Table, figure, ratio};
use super::{Bench, medians, one_zone, ports};
use anyhow::{Context, Result};

const BYTES: [usize; 2] = [128, 16 * 1024];
/// Of a half load's open loop, at most: a stall of 100 ms fits in.
const CONNECTIONS_MAX: usize = 1024;
/// Where one in a hundred requests is sent later than this, latencies are the machine's.
const LATE_US_MAX: f64 = 1000.0;

fn setup() -> Setup {
    Setup { backends: one_zone(4), balance: Balance::RoundRobin, retry_503: false }
}

fn servers(setup: &Setup) -> Result<Backend> {
    // Requests without work need no slots.
    Backend::start(&Servers { ports: ports(&setup.backends), slots: 1, slow: vec![], factor: 1 })
}

/// CPU time of the proxy, for each request that it has answered.
fn cpu_us(report: &Report) -> f64 {
    report.cpu_us.map_or(f64::NAN, |us| us as f64 / report.n_all() as f64)
}

fn warn(round: usize, system: System, report: &Report) {
    if report.n_failed() > 0 {
        eprintln!("round {round}: {}: {}", system.name(), report.failures());
    }
}

/// Requests a second of each system, with small answers.
pub fn saturation(bench: &Bench) -> Result<Vec<(System, f64)>> {
    let mut rates = Vec::new();
    for bytes in BYTES {
        let found = bench.in_turn(&bench.systems, |round, system| {
            let report = saturate(bench, system, bytes, bench.seconds * 1000)?;
            let rate = report.n_good() as f64 / report.seconds;
            let cpu = figure(cpu_us(&report));
            eprintln!("round {round}: {}, {bytes} B: {rate:.0}/s, {cpu} µs", system.name());
            warn(round, system, &report);
            Ok((rate, cpu_us(&report), report.n_failed()))
        })?;
        let of = |wanted: System, what: fn(&(f64, f64, u64)) -> f64| {
            let row = found.iter().find(|(system, _)| *system == wanted);
            row.map_or(f64::NAN, |(_, samples)| medians(samples, what))
        };
        let mut table =
            Table::new(&["", "requests/s", "Atoll ÷", "CPU µs/request", "Atoll ÷", "failed"]);
        for (system, samples) in &found {
            let [rate, cpu] = [of(*system, |sample| sample.0), of(*system, |sample| sample.1)];
            let failed: u64 = samples.iter().map(|sample| sample.2).sum();
            table.row(
                system.name(),
                [
                    figure(rate),
                    ratio(of(System::Atoll, |sample| sample.0), rate),
                    figure(cpu),
                    ratio(of(System::Atoll, |sample| sample.1), cpu),
                    failed.to_string(),
                ],
            );
            if bytes == BYTES[0] {
                rates.push((*system, rate));
            }
        }
        table.print(&format!("Saturation: 64 connections, closed loop, {bytes} bytes"));
    }
    Ok(rates)
}

fn saturate(bench: &Bench, system: System, bytes: usize, count_ms: u64) -> Result<Report> {
    let setup = setup();
    let _backend = servers(&setup)?;
    let started = bench.start(system, &setup)?;
    Load { bytes, count_ms, watch: started.pid(), ..Load::new(started.port) }.run()
}

/// `rates`: what each system does, where that has been measured already.
pub fn half(bench: &Bench, rates: Option<Vec<(System, f64)>>) -> Result<()> {
    let rates = match rates {
        Some(rates) => rates,
        None => calibrate(bench)?,
    };
    let slowest = rates.iter().map(|(_, rate)| *rate).min_by(f64::total_cmp);
    let rate = (slowest.context("no system to measure")? / 2.0).round();
    let found = bench.in_turn(&bench.systems, |round, system| {
        let setup = setup();
        let _backend = servers(&setup)?;
        let started = bench.start(system, &setup)?;
        let report = Load {
            rate: Some(rate),
            connections: CONNECTIONS_MAX,
            count_ms: bench.seconds * 1000,
            timeout_ms: 5000,
            // In each round other arrivals, the same for all systems.
            seed: round as u64,
            watch: started.pid(),
            ..Load::new(started.port)
        }
        .run()?;
        let Percentiles { p50, p99, p999, .. } = report.latency_us;
        eprintln!(
            "round {round}: {}, {rate}/s: p50 {p50:.0}, p99 {p99:.0}, p99.9 {p999:.0} µs",
            system.name()
        );
        warn(round, system, &report);
        Ok(report)
    })?;
    let of = |wanted: System, what: &dyn Fn(&Report) -> f64| {
        let row = found.iter().find(|(system, _)| *system == wanted);
        row.map_or(f64::NAN, |(_, samples)| medians(samples, what))
    };
    let percentiles: [fn(&Percentiles) -> f64; 3] = [|of| of.p50, |of| of.p99, |of| of.p999];
    let mut table = Table::new(&[
        "",
        "p50 µs",
        "added",
        "Atoll ÷",
        "p99 µs",
        "added",
        "Atoll ÷",
        "p99.9 µs",
        "added",
        "Atoll ÷",
        "CPU µs/request",
        "answered/s",
        "sent late, p99 µs",
        "failed",
    ]);
    for (system, reports) in &found {
        let mut figures = Vec::new();
        for percentile in percentiles {
            let latency = |system| of(system, &|report| percentile(&report.latency_us));
            let added = |system| latency(system) - latency(System::Direct);
            let compared = match system {
                System::Direct => "–".to_owned(),
                other => ratio(added(System::Atoll), added(*other)),
            };
            figures.extend([figure(latency(*system)), figure(added(*system)), compared]);
        }
        let failed: u64 = reports.iter().map(Report::n_failed).sum();
        figures.extend([
            figure(of(*system, &cpu_us)),
            figure(of(*system, &|report| report.n_good() as f64 / report.seconds)),
            figure(of(*system, &|report| report.late_us.p99)),
            failed.to_string(),
        ]);
        table.row(system.name(), figures);
    }
    table.print(&format!(
        "Half load: open loop, {}/s, 128 bytes; \"added\" is over direct, \"Atoll ÷\" compares that",
        figure(rate)
    ));
    let late_us = found.iter().map(|(system, _)| of(*system, &|report| report.late_us.p99));
    if late_us.fold(0.0, f64::max) > LATE_US_MAX {
        println!(
            "The generator itself sent late: the machine is busy, and the latencies hold that."
        );
    }
    Ok(())
}

/// The slowest's rate decides, so proxies are asked only, unless there are none.
fn calibrate(bench: &Bench) -> Result<Vec<(System, f64)>> {
    let systems = match bench.proxies() {
        none if none.is_empty() => bench.systems.clone(),
        proxies => proxies,
    };
    systems
        .into_iter()
        .map(|system| {
            let report = saturate(bench, system, BYTES[0], bench.seconds.min(3) * 1000)?;
            let rate = report.n_good() as f64 / report.seconds;
            eprintln!("to find the rate: {}: {rate:.0}/s", system.name());
            Ok((system, rate))
        })
        .collect()
}
