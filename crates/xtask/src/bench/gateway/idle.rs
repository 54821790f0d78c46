//! Memory at rest: the proxy's own (proportional set size, see [`Family::memory_kib`]) when it has
//! just come up, and with many clients connected that have each been answered once and are silent.
//! What a connection adds is the difference; nginx and HAProxy have room for a set number of
//! connections from their start, so the sum is what compares them.

use super::backend::{Backend, Options as Servers};
use super::load::{Options as Load, Running};
use super::processes::Family;
use super::systems::{Balance, Setup, System};
use super::tables::{Table, figure, ratio};
use super::{Bench, medians, one_zone, ports};
use anyhow::{Context, Result};
use std::time::Duration;

struct Sample {
    before_mib: f64,
    after_mib: f64,
    n_held: usize,
}

impl Sample {
    fn kib_each(&self) -> f64 {
        (self.after_mib - self.before_mib) * 1024.0 / self.n_held as f64
    }
}

pub fn idle(bench: &Bench) -> Result<()> {
    let n = bench.connections;
    let found = bench.in_turn(&bench.proxies(), |round, system| {
        let sample = sample(bench, system)?;
        let (name, each) = (system.name(), sample.kib_each());
        eprintln!("round {round}: {name}: {each:.1} KiB/connection, {} held", sample.n_held);
        Ok(sample)
    })?;
    let of = |wanted: System, what: fn(&Sample) -> f64| {
        let row = found.iter().find(|(system, _)| *system == wanted);
        row.map_or(f64::NAN, |(_, samples)| medians(samples, what))
    };
    let mut table = Table::new(&[
        "",
        "before MiB",
        "with them MiB",
        "Atoll ÷",
        "KiB/connection",
        "Atoll ÷",
        "held, fewest",
    ]);
    for (system, samples) in &found {
        let after = |system| of(system, |sample| sample.after_mib);
        let each = |system| of(system, Sample::kib_each);
        let fewest = samples.iter().map(|sample| sample.n_held).min();
        table.row(
            system.name(),
            [
                figure(of(*system, |sample| sample.before_mib)),
                figure(after(*system)),
                ratio(after(System::Atoll), after(*system)),
                figure(each(*system)),
                ratio(each(System::Atoll), each(*system)),
                fewest.unwrap_or(0).to_string(),
            ],
        );
    }
    table.print(&format!("Memory with {n} idle connections"));
    Ok(())
}

fn sample(bench: &Bench, system: System) -> Result<Sample> {
    let setup = Setup { backends: one_zone(4), balance: Balance::RoundRobin, retry_503: false };
    let servers = Servers { ports: ports(&setup.backends), slots: 1, slow: vec![], factor: 1 };
    let _backend = Backend::start(&servers)?;
    let started = bench.start(system, &setup)?;
    let family = Family::of(started.pid().context("a proxy has a process")?)?;
    let mib = || Ok::<f64, anyhow::Error>(family.memory_kib()? as f64 / 1024.0);
    let before_mib = mib()?;
    let connections = bench.connections;
    let load = Running::start(&Load { hold: true, connections, ..Load::new(started.port) })?;
    // What was only needed to answer is given back by then.
    std::thread::sleep(Duration::from_secs(2));
    let after_mib = mib()?;
    let report = load.finish()?;
    if report.n_failed() > 0 {
        eprintln!("{}: {}", system.name(), report.failures());
    }
    Ok(Sample { before_mib, after_mib, n_held: report.n_connections })
}
