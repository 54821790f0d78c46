//! The API, its dependencies and their faults.

use base::env::{Env, Instant, MemoryNet};
use futures::future::BoxFuture;
use gateway::balance::{Closeness, ServerSpec};
use gateway::call::{SendError, Verdict};
use gateway::isolate::{breaker, bulkhead};
use gateway::layer::{Balanced, Dependency, Placed, Protocol};
use gateway::service::{Hedge, Settings};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

pub const N_DEPENDENCIES: usize = 30;
const ZONES: [&str; 3] = ["a", "b", "c"];
const N_SERVERS_PER_ZONE: usize = 2;
/// Requests that the API can have under way, as threads of a web server.
const N_API_SLOTS: usize = 100;
/// Who has no answer by then has gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// A call's time-out.
const TIMEOUT: Duration = Duration::from_millis(800);
const FAILED: f64 = 0.0001;
/// The dependency that hangs.
const HANGING: usize = 7;

pub struct Plan {
    pub seconds: u64,
    /// API requests per second.
    pub rate: u64,
    pub seed: u64,
}

/// What became of the requests of a phase.
#[derive(Clone, Default)]
pub struct Outcome {
    pub n: u64,
    n_good: u64,
    n_complete: u64,
    /// Of the calls to dependencies that do not hang, in microseconds, from the API request's
    /// begin.
    latencies_us: Vec<u32>,
}

impl Outcome {
    pub fn add(&mut self, other: &Outcome) {
        self.n += other.n;
        self.n_good += other.n_good;
        self.n_complete += other.n_complete;
        self.latencies_us.extend(&other.latencies_us);
    }

    pub fn good(&self) -> f64 {
        self.n_good as f64 / self.n.max(1) as f64
    }

    pub fn complete(&self) -> f64 {
        self.n_complete as f64 / self.n.max(1) as f64
    }

    pub fn p99_ms(&self) -> f64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let at = sorted.len() * 99 / 100;
        f64::from(sorted.get(at).copied().unwrap_or(0)) / 1000.0
    }
}

/// The fifths of a run.
const PHASES: [&str; 5] =
    ["calm", "bursts of errors", "a dependency hangs", "calm again", "a zone is away"];

/// Plays the plan in virtual time.
pub fn play(plan: &Plan, is_isolated: bool) -> Vec<(&'static str, Outcome)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(run(plan, is_isolated))
}

/// A call to a dependency that answers or does not.
#[derive(Clone)]
struct Servers {
    env: Env,
    rng: Arc<Mutex<SmallRng>>,
    begun: Instant,
    phase: Duration,
    dependency: usize,
}

/// What a server says.
#[derive(Clone, Copy, PartialEq)]
pub enum Answer {
    Well,
    Failed,
}

impl Servers {
    async fn ask(self, server: SocketAddr) -> Result<Answer, SendError> {
        let gone = self.env.now().saturating_duration_since(self.begun);
        let phase = (gone.as_secs_f64() / self.phase.as_secs_f64()) as usize;
        let (zone, place) = (server.port() / 10, server.port() % 10);
        let (draw, latency_ms) = {
            let mut rng = self.rng.lock();
            let exponential: f64 = -(1.0 - rng.random::<f64>()).ln();
            (rng.random::<f64>(), 2.0 + 3.0 * exponential)
        };
        match phase {
            // Each server has its bad two seconds in every twenty; others' are at other times.
            1 => {
                let turn = self.dependency * 6 + usize::from(zone * 2 + place);
                let at = (gone.as_secs() + turn as u64 * 7) % 20;
                if at < 2 {
                    self.env.sleep(Duration::from_millis(1)).await;
                    return Ok(Answer::Failed);
                }
            }
            2 if self.dependency == HANGING => std::future::pending().await,
            4 if zone == 0 => return Err(SendError::Unreachable("nobody listens".into())),
            _ => {}
        }
        self.env.sleep(Duration::from_secs_f64(latency_ms / 1000.0)).await;
        Ok(if draw < FAILED { Answer::Failed } else { Answer::Well })
    }
}

impl Service<Placed<()>> for Servers {
    type Response = Answer;
    type Error = SendError;
    type Future = BoxFuture<'static, Result<Answer, SendError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, placed: Placed<()>) -> Self::Future {
        Box::pin(self.clone().ask(placed.server))
    }
}

/// All calls are reads.
#[derive(Clone)]
struct Reads;

impl Protocol<(), Answer, SendError> for Reads {
    fn may_repeat(&self, (): &()) -> bool {
        true
    }

    fn verdict(&self, answer: &Answer) -> Verdict {
        if *answer == Answer::Well { Verdict::Well } else { Verdict::Failed }
    }

    fn error(&self, error: &SendError) -> SendError {
        match error {
            SendError::Unreachable(reason) => SendError::Unreachable(reason.clone()),
            other => SendError::Broken(other.to_string()),
        }
    }
}

/// How the API calls one dependency.
#[derive(Clone)]
enum Client {
    /// One server, drawn; a time-out.
    Plain(Servers),
    Isolated(Balanced<Servers, Reads>),
}

impl Client {
    async fn ask(mut self, env: &Env) -> bool {
        match &mut self {
            Client::Plain(servers) => {
                let n = (ZONES.len() * N_SERVERS_PER_ZONE) as u64;
                let drawn = env.random_below(n) as u16;
                let asked =
                    env.timeout(TIMEOUT, servers.clone().ask(address(drawn / 2, drawn % 2)));
                matches!(asked.await, Some(Ok(Answer::Well)))
            }
            Client::Isolated(service) => matches!(service.call(()).await, Ok(Answer::Well)),
        }
    }
}

fn address(zone: u16, place: u16) -> SocketAddr {
    ([10, 0, 0, 1], zone * 10 + place).into()
}

fn settings() -> Settings {
    Settings {
        timeout: TIMEOUT,
        attempt_timeout: Some(Duration::from_millis(200)),
        hedge: Some(Hedge::default()),
        breaker: breaker::Settings { n_requests_min: 20, ..breaker::Settings::default() },
        bulkhead: bulkhead::Settings { limit_min: 10, limit_max: 40, tolerance: 2.0 },
        ..Settings::default()
    }
}

async fn run(plan: &Plan, is_isolated: bool) -> Vec<(&'static str, Outcome)> {
    let env = Env::seeded(plan.seed, Arc::new(MemoryNet::default()));
    let begun = env.now();
    let phase = Duration::from_secs(plan.seconds) / PHASES.len() as u32;
    let rng = Arc::new(Mutex::new(SmallRng::seed_from_u64(plan.seed)));
    let client = |dependency| {
        let servers = Servers { env: env.clone(), rng: rng.clone(), begun, phase, dependency };
        if !is_isolated {
            return Client::Plain(servers);
        }
        let closeness = Closeness(vec![vec!["a".into()], vec!["b".into(), "c".into()]]);
        let name = format!("dependency-{dependency}");
        let known = Dependency::new(&env, &name, settings(), closeness);
        let spec = |zone: u16, place: u16| ServerSpec {
            address: address(zone, place),
            zone: ZONES[usize::from(zone)].into(),
            weight: 1.0,
        };
        let zones = 0..ZONES.len() as u16;
        let places = N_SERVERS_PER_ZONE as u16;
        let specs = zones.flat_map(|zone| (0..places).map(move |place| spec(zone, place)));
        known.set_servers(specs.collect());
        Client::Isolated(known.layer(Reads).layer(servers))
    };
    let clients: Arc<Vec<Client>> = Arc::new((0..N_DEPENDENCIES).map(client).collect());
    let slots = Arc::new(Semaphore::new(N_API_SLOTS));
    let outcomes = Arc::new(Mutex::new(vec![Outcome::default(); PHASES.len()]));
    let mut requests = tokio::task::JoinSet::new();
    for n in 0..plan.seconds * plan.rate {
        let due = begun + Duration::from_secs_f64(n as f64 / plan.rate as f64);
        env.sleep_until(due).await;
        let (env, clients, slots) = (env.clone(), clients.clone(), slots.clone());
        let outcomes = outcomes.clone();
        requests.spawn(async move {
            let idx =
                (due.saturating_duration_since(begun).as_secs_f64() / phase.as_secs_f64()) as usize;
            // The request's slot, or nothing: a client that waited too long has gone.
            let slot = env.timeout(PATIENCE, slots.acquire()).await;
            let calls = clients.iter().enumerate().map(|(dependency, client)| {
                let (client, env) = (client.clone(), &env);
                async move {
                    let is_well = client.ask(env).await;
                    let took = env.now().saturating_duration_since(due);
                    (dependency, is_well, took.as_micros() as u32)
                }
            });
            let mut outcome = Outcome { n: 1, ..Outcome::default() };
            if slot.is_some() {
                let answers = futures::future::join_all(calls).await;
                let in_time = env.now().saturating_duration_since(due) <= PATIENCE;
                let is_complete = answers.iter().all(|(_, is_well, _)| *is_well);
                let others = || answers.iter().filter(|(dependency, ..)| *dependency != HANGING);
                // The isolated API has a fallback for each dependency: a stale or an empty answer.
                outcome.n_good = u64::from(in_time && (is_complete || is_isolated));
                outcome.n_complete = u64::from(in_time && others().all(|(_, is_well, _)| *is_well));
                outcome.latencies_us = others().map(|(.., took_us)| *took_us).collect();
            } else {
                outcome.latencies_us = vec![PATIENCE.as_micros() as u32; N_DEPENDENCIES - 1];
            }
            outcomes.lock()[idx.min(PHASES.len() - 1)].add(&outcome);
        });
        while requests.try_join_next().is_some() {}
    }
    requests.join_all().await;
    let outcomes = std::mem::take(&mut *outcomes.lock());
    PHASES.into_iter().zip(outcomes).collect()
}
