//! What clients, faults and checkers share: virtual time, chance, connections, and where they tell
//! what happened.

use crate::cluster::{Cluster, Health};
use crate::machine::clock;
use crate::task;
use base::env::Net;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where the clients are.
pub const CLIENTS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 99, 1));
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Cheap to clone. All times are true virtual time.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    seed: u64,
    cluster: Arc<Cluster>,
    telling: Telling,
    storming: AtomicBool,
    /// The node one of whose stored bits was flipped.
    damaged: Mutex<Option<usize>>,
    /// A panic that was ordered has cost a statement.
    has_lost_statements: AtomicBool,
    /// When hosts that had stood still, clocks included, went on.
    thawed: Mutex<Vec<Duration>>,
}

/// What a run tells.
#[derive(Clone, Default)]
pub struct Telling {
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    /// Print each line at once.
    is_loud: bool,
    wrong: Vec<String>,
    lines: Vec<String>,
    counts: BTreeMap<String, u64>,
}

impl Telling {
    pub fn new(is_loud: bool) -> Telling {
        let telling = Telling::default();
        telling.told.lock().is_loud = is_loud;
        telling
    }

    /// A line of the timeline.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.told.lock().is_loud {
            let ns = clock::now_ns();
            eprintln!("{:>5}.{:03} {}", ns / 1_000_000_000, ns / 1_000_000 % 1000, text.as_ref());
        }
    }

    pub fn wrong(&self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("WRONG: {text}"));
        self.told.lock().wrong.push(text);
    }

    fn tell(&self, text: String) {
        self.note(&text);
        self.told.lock().lines.push(text);
    }

    pub fn lines(&self) -> Vec<String> {
        self.told.lock().lines.clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.told.lock().wrong.clone()
    }

    pub fn count(&self, what: &str, n: u64) {
        let mut told = self.told.lock();
        match told.counts.get_mut(what) {
            Some(count) => *count += n,
            None => drop(told.counts.insert(what.into(), n)),
        }
    }

    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.told.lock().counts.clone()
    }
}

/// A seeded generator of its own.
pub struct Dice {
    rng: SmallRng,
}

impl Dice {
    pub fn new(seed: u64, name: &str, number: usize) -> Dice {
        let name = u64::from(crc32c::crc32c(name.as_bytes()));
        let mixed = seed ^ (name << 32) ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Dice { rng: SmallRng::seed_from_u64(mixed) }
    }

    pub fn next(&mut self) -> u64 {
        self.rng.random()
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.rng.random_range(0..n) }
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, of which there must be some.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_millis() as u64;
        least + Duration::from_millis(self.below(span + 1))
    }
}

impl World {
    pub fn new(seed: u64, cluster: Arc<Cluster>, telling: Telling) -> World {
        let (storming, damaged) = (AtomicBool::new(true), Mutex::default());
        let (thawed, has_lost_statements) = (Mutex::default(), AtomicBool::new(false));
        World {
            inner: Arc::new(Inner {
                seed,
                cluster,
                telling,
                storming,
                damaged,
                has_lost_statements,
                thawed,
            }),
        }
    }

    /// From now on a session's transaction may have failed by a bug of which its client was not told: in
    /// the closing of a statement, say, whose answer nobody reads.
    pub fn lose_statement(&self) {
        self.inner.has_lost_statements.store(true, Ordering::Relaxed);
    }

    pub fn has_lost_statements(&self) -> bool {
        self.inner.has_lost_statements.load(Ordering::Relaxed)
    }

    /// A host goes on from where it stood, and takes its leases for good as long as they last.
    pub fn thaw(&self, number: usize) {
        if self.cluster().freeze(number, false) {
            self.inner.thawed.lock().push(self.now());
            self.note(format!("node {} goes on from where it stood", number + 1));
        }
    }

    /// Whether what was read between `begun` and now may be as old as a host that stood still: what
    /// leases promise does not hold until those that it woke with have run out. Everything else does.
    pub fn is_doubtful(&self, begun: Duration) -> bool {
        let lease = consensus::Config::default().lease;
        // Clocks drift, and the answer takes its way.
        let lasts = lease + lease / 10;
        let now = self.now();
        self.inner.thawed.lock().iter().any(|at| begun <= *at + lasts && *at <= now)
    }

    /// Whoever reads this node's files may find damage from now on.
    pub fn set_damaged(&self, node: usize) {
        *self.inner.damaged.lock() = Some(node);
    }

    pub fn damaged(&self) -> Option<usize> {
        *self.inner.damaged.lock()
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.inner.cluster
    }

    /// Since the run began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(clock::now_ns())
    }

    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// None: too late.
    pub async fn within<F: Future>(&self, duration: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(duration, future).await.ok()
    }

    pub fn dice(&self, name: &str, number: usize) -> Dice {
        Dice::new(self.inner.seed, name, number)
    }

    /// The nodes that clients know of are `0..n_nodes()`; spare hosts join at the end.
    pub fn n_nodes(&self) -> usize {
        let cluster = &self.inner.cluster;
        (0..cluster.nodes.len()).take_while(|number| cluster.was_started(*number)).count()
    }

    /// A connection to a node, over the simulated network and the real protocol.
    pub async fn connect(&self, node: usize) -> Result<tokio_postgres::Client, String> {
        let cluster = &self.inner.cluster;
        let Some(node) = cluster.nodes.get(node) else { return Err("no such node".into()) };
        if node.health() == Health::Down {
            return Err("nobody listens there".into());
        }
        let opening = async {
            let net = cluster.net.of(CLIENTS);
            let stream = net.connect(node.sql_address()).await.map_err(|e| e.to_string())?;
            let mut config = tokio_postgres::Config::new();
            config.user("atoll").dbname("atoll");
            let connected = config.connect_raw(stream, tokio_postgres::NoTls).await;
            let (client, connection) = connected.map_err(|error| error.to_string())?;
            task::spawn(async move {
                // Its end shows in the client's next answer.
                connection.await.ok();
            });
            Ok(client)
        };
        self.within(CONNECT_MAX, opening).await.unwrap_or_else(|| Err("no answer".into()))
    }

    /// Clients go on as long as this is true.
    pub fn storming(&self) -> bool {
        self.inner.storming.load(Ordering::Relaxed)
    }

    pub fn end_storm(&self) {
        self.inner.storming.store(false, Ordering::Relaxed);
    }

    /// A line of the timeline, for people who replay.
    pub fn note(&self, text: impl Into<String>) {
        self.inner.telling.note(text.into());
    }

    /// Statistics of the run.
    pub fn count(&self, what: &str, n: u64) {
        self.inner.telling.count(what, n);
    }

    /// A line of the run's result.
    pub fn tell(&self, text: impl Into<String>) {
        self.inner.telling.tell(text.into());
    }

    /// A violation: the run has failed.
    pub fn wrong(&self, text: impl Into<String>) {
        self.inner.telling.wrong(text);
    }

    pub fn has_failed(&self) -> bool {
        !self.inner.telling.violations().is_empty()
    }
}
