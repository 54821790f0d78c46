//! What slow servers do to the tail, in virtual time: 16 servers, two of them 16 times as slow,
//! requests at 70 % of the fleet's capacity. Compared with round robin and least requests on the
//! same arrivals; printed with `--nocapture`. And what a zone does that gets more than it can answer.

use base::env::{Env, Instant, MemoryNet};
use gateway::balance::{Attempt, Closeness, Ended, Fleet, ServerSpec, Settings};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const N_SERVERS: usize = 16;
const N_SLOTS: usize = 4;
const MEAN_S: f64 = 0.02;
const N_REQUESTS: usize = 100_000;

trait Policy {
    fn pick(&mut self, now: Instant) -> (usize, Option<Attempt>);
    fn done(&mut self, now: Instant, server: usize, attempt: Option<Attempt>, latency: Duration);
}

struct RoundRobin(usize);

impl Policy for RoundRobin {
    fn pick(&mut self, _: Instant) -> (usize, Option<Attempt>) {
        self.0 = (self.0 + 1) % N_SERVERS;
        (self.0, None)
    }

    fn done(&mut self, _: Instant, _: usize, _: Option<Attempt>, _: Duration) {}
}

/// The fewest requests under way, of two random servers or of all.
struct LeastRequests {
    rng: SmallRng,
    n: [u32; N_SERVERS],
    n_choices: usize,
}

impl Policy for LeastRequests {
    fn pick(&mut self, _: Instant) -> (usize, Option<Attempt>) {
        let start = self.rng.random_range(0..N_SERVERS);
        let candidates: Vec<usize> = match self.n_choices {
            N_SERVERS => (0..N_SERVERS).map(|n| (start + n) % N_SERVERS).collect(),
            n => (0..n).map(|_| self.rng.random_range(0..N_SERVERS)).collect(),
        };
        let best = candidates.into_iter().min_by_key(|server| self.n[*server]).unwrap();
        self.n[best] += 1;
        (best, None)
    }

    fn done(&mut self, _: Instant, server: usize, _: Option<Attempt>, _: Duration) {
        self.n[server] -= 1;
    }
}

struct Ours(Fleet);

impl Policy for Ours {
    fn pick(&mut self, now: Instant) -> (usize, Option<Attempt>) {
        let attempt = self.0.pick(now, &[]).unwrap();
        (usize::from(attempt.address.port()) - 1, Some(attempt))
    }

    fn done(&mut self, now: Instant, _: usize, attempt: Option<Attempt>, latency: Duration) {
        self.0.report(now, attempt.unwrap(), Ended::Well(latency));
        self.0.release(attempt.unwrap());
    }
}

/// An exponential draw with the given mean.
fn exponential(rng: &mut SmallRng, mean_s: f64) -> f64 {
    -mean_s * (1.0 - rng.random::<f64>()).ln()
}

/// Latencies in milliseconds, sorted, of the requests after the first tenth.
fn run(policy: &mut dyn Policy, begin: Instant, n_slow: usize, seed: u64) -> Vec<f64> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rate = 0.7 * N_SERVERS as f64 * N_SLOTS as f64 / MEAN_S;
    let mut busy = [0; N_SERVERS];
    let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); N_SERVERS];
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    for _ in 0..N_REQUESTS {
        at += exponential(&mut rng, 1.0 / rate);
        arrivals.push((at, exponential(&mut rng, MEAN_S)));
    }
    // (when in ns, request): an arrival while the request has no server, else its end.
    let nanos = |s: f64| (s * 1e9) as u64;
    let mut events: BinaryHeap<Reverse<(u64, usize)>> =
        arrivals.iter().enumerate().map(|(idx, (at, _))| Reverse((nanos(*at), idx))).collect();
    let mut placed: Vec<Option<(usize, Option<Attempt>)>> = vec![None; N_REQUESTS];
    let mut latencies = Vec::new();
    while let Some(Reverse((at_ns, request))) = events.pop() {
        let now = begin + Duration::from_nanos(at_ns);
        let took = |server: usize| {
            let slow = if server < n_slow { 16.0 } else { 1.0 };
            nanos(arrivals[request].1 * slow)
        };
        let Some((server, attempt)) = placed[request] else {
            let (server, attempt) = policy.pick(now);
            placed[request] = Some((server, attempt));
            if busy[server] < N_SLOTS {
                busy[server] += 1;
                events.push(Reverse((at_ns + took(server), request)));
            } else {
                queues[server].push_back(request);
            }
            continue;
        };
        let latency = Duration::from_nanos(at_ns - nanos(arrivals[request].0));
        policy.done(now, server, attempt, latency);
        if request > N_REQUESTS / 10 {
            latencies.push(latency.as_secs_f64() * 1e3);
        }
        match queues[server].pop_front() {
            Some(next) => {
                let slow = if server < n_slow { 16.0 } else { 1.0 };
                events.push(Reverse((at_ns + nanos(arrivals[next].1 * slow), next)));
            }
            None => busy[server] -= 1,
        }
    }
    latencies.sort_by(f64::total_cmp);
    latencies
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}

fn ours(now: Instant) -> Ours {
    let mut fleet = Fleet::new(now, Settings::default(), Closeness::default(), 1);
    let spec =
        |port| ServerSpec { address: ([10, 0, 0, 1], port).into(), zone: "a".into(), weight: 1.0 };
    fleet.set_servers(now, (1..=N_SERVERS as u16).map(spec).collect());
    Ours(fleet)
}

#[test]
fn two_slow_servers_of_sixteen_at_most_double_the_p99() {
    let now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
    let mut rows = Vec::new();
    for n_slow in [0, 2] {
        let least = |n_choices| LeastRequests {
            rng: SmallRng::seed_from_u64(1),
            n: [0; N_SERVERS],
            n_choices,
        };
        let policies: [(&str, Box<dyn Policy>); 4] = [
            ("round robin", Box::new(RoundRobin(0))),
            ("least of two", Box::new(least(2))),
            ("least of all", Box::new(least(N_SERVERS))),
            ("ours", Box::new(ours(now))),
        ];
        for (name, mut policy) in policies {
            let latencies = run(&mut *policy, now, n_slow, 7);
            let (p50, p99) = (quantile(&latencies, 0.5), quantile(&latencies, 0.99));
            println!(
                "{n_slow} slow, {name:<12} p50 {p50:8.1} ms, p99 {p99:8.1} ms, p99.9 {:8.1} ms",
                quantile(&latencies, 0.999)
            );
            rows.push((n_slow, name, p99));
        }
    }
    let p99 = |n_slow: usize, name: &str| {
        rows.iter().find(|row| row.0 == n_slow && row.1 == name).unwrap().2
    };
    assert!(p99(2, "ours") < p99(2, "least of all"));
    assert!(p99(2, "ours") < p99(2, "least of two"));
    assert!(p99(2, "ours") <= 2.0 * p99(0, "ours"));
}

/// Three zones of two servers at 70 % of what they can do together: more than twice what the
/// closest can do alone.
#[test]
fn a_zone_that_gets_too_much_passes_on_the_rest_and_no_more() {
    const N: usize = 6;
    let begin = Env::seeded(1, Arc::new(MemoryNet::default())).now();
    let closeness = Closeness(vec![vec!["a".into()], vec!["b".into()], vec!["c".into()]]);
    let mut fleet = Fleet::new(begin, Settings::default(), closeness, 1);
    let spec = |port: u16| ServerSpec {
        address: ([10, 0, 0, 1], port).into(),
        zone: ["a", "b", "c"][usize::from(port - 1) / 2].into(),
        weight: 1.0,
    };
    fleet.set_servers(begin, (1..=N as u16).map(spec).collect());
    let mean_s = 0.005;
    let rate = 0.7 * N as f64 * N_SLOTS as f64 / mean_s;
    let mut rng = SmallRng::seed_from_u64(3);
    let (mut busy, mut queues) = ([0; N], vec![VecDeque::new(); N]);
    // (when in ns, its attempt and when that began): none is an arrival.
    let mut events: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut placed: Vec<Option<(u64, Attempt)>> = Vec::new();
    let mut latencies = Vec::new();
    let nanos = |s: f64| (s * 1e9) as u64;
    let mut at = 0.0;
    for n in 0..60_000 {
        at += exponential(&mut rng, 1.0 / rate);
        events.push(Reverse((nanos(at), n)));
        placed.push(None);
    }
    while let Some(Reverse((at_ns, request))) = events.pop() {
        let now = begin + Duration::from_nanos(at_ns);
        let Some((begun_ns, attempt)) = placed[request] else {
            let attempt = fleet.pick(now, &[]).unwrap();
            placed[request] = Some((at_ns, attempt));
            let server = attempt.place();
            if busy[server] < N_SLOTS {
                busy[server] += 1;
                events.push(Reverse((at_ns + nanos(exponential(&mut rng, mean_s)), request)));
            } else {
                queues[server].push_back(request);
            }
            continue;
        };
        let latency = Duration::from_nanos(at_ns - begun_ns);
        fleet.report(now, attempt, Ended::Well(latency));
        fleet.release(attempt);
        latencies.push(latency.as_secs_f64() * 1e3);
        let server = attempt.place();
        match queues[server].pop_front() {
            Some(next) => {
                events.push(Reverse((at_ns + nanos(exponential(&mut rng, mean_s)), next)));
            }
            None => busy[server] -= 1,
        }
    }
    // The first quarter is that of a fleet that knows nothing.
    let mut settled = latencies.split_off(latencies.len() / 4);
    latencies.sort_by(f64::total_cmp);
    settled.sort_by(f64::total_cmp);
    let (first, then) = (quantile(&latencies, 0.99), quantile(&settled, 0.99));
    println!("the closest zone overloaded: p99 {first:.1} ms at first, {then:.1} ms then");
    assert!(first < 150.0 && then < 60.0, "{first} ms, {then} ms");
}
