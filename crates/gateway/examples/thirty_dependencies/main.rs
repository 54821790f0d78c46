//! The sum that Netflix published: an API that needs 30 dependencies of 99.99 % each is itself up
//! 99.7 % of the time, two hours of downtime a month, if nothing keeps the dependencies apart.
//!
//!     cargo run --release -p gateway --example thirty_dependencies
//!
//! plays five minutes of such an API in virtual time, once with plain clients (one server drawn, a
//! time-out) and once through this crate's layer, with the same faults: errors at that rate,
//! bursts of one server's errors, a zone that goes away, and a dependency that hangs completely.

mod world;

use world::{Outcome, Plan, play};

fn main() {
    let plan = Plan { seconds: 300, rate: 150, seed: 1 };
    println!(
        "{} s at {} requests/s, {} calls each; good: answered in time, fallbacks counted;\n\
         complete, p99: of the 29 dependencies that do not hang, without any fallback\n",
        plan.seconds,
        plan.rate,
        world::N_DEPENDENCIES
    );
    println!(
        "{:<10} {:<22} {:>9} {:>11} {:>11} {:>9}",
        "client", "phase", "requests", "good", "complete", "p99"
    );
    for is_isolated in [false, true] {
        let outcomes = play(&plan, is_isolated);
        for (phase, outcome) in &outcomes {
            row(is_isolated, phase, outcome);
        }
        let mut all = Outcome::default();
        outcomes.iter().for_each(|(_, outcome)| all.add(outcome));
        row(is_isolated, "all", &all);
        println!();
    }
}

fn row(is_isolated: bool, phase: &str, outcome: &Outcome) {
    println!(
        "{:<10} {phase:<22} {:>9} {:>9.4} % {:>9.4} % {:>6.1} ms",
        if is_isolated { "isolated" } else { "plain" },
        outcome.n,
        100.0 * outcome.good(),
        100.0 * outcome.complete(),
        outcome.p99_ms()
    );
}
