//! The example of thirty dependencies, at a small size.

#[path = "../examples/thirty_dependencies/world.rs"]
mod world;

use world::{Outcome, Plan, play};

#[test]
fn what_hangs_takes_nobody_with_it() {
    let plan = Plan { seconds: 100, rate: 100, seed: 3 };
    let plain = play(&plan, false);
    let isolated = play(&plan, true);
    let all = |outcomes: &[(&str, Outcome)]| {
        let mut all = Outcome::default();
        outcomes.iter().for_each(|(_, outcome)| all.add(outcome));
        all.good()
    };
    // Three nines less a bit by the sum alone, and far less with what happens all the time.
    assert!(plain[0].1.good() < 0.999, "{}", plain[0].1.good());
    assert!(all(&isolated) >= 0.9999, "{}", all(&isolated));
    let (calm, hanging) = (isolated[0].1.p99_ms(), isolated[2].1.p99_ms());
    assert!(hanging <= 1.1 * calm, "{hanging} ms beside {calm} ms");
    assert!(isolated[1].1.complete() > 0.999, "{}", isolated[1].1.complete());
    assert!(isolated[4].1.complete() > 0.999, "{}", isolated[4].1.complete());
}
