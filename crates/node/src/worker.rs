//! The process that does the work: puts the rooms of the house together, bottom up, and takes
//! them apart again. [`run`] is the process: what its supervisor tells it, its word that it is
//! well, its exit code. [`start`] is the rooms alone, wherever they stand.

use crate::config::{Config, Seed};
use crate::identity::{Home, Identity};
use crate::supervisor::{CONFIG_VARIABLE, stdin_lines};
use crate::{membership, views};
use base::env::{Cause, Listener, Runtime, Runtimes};
use base::{Env, Limits, NodeId, Zone, panics};
use bytes::Bytes;
use cluster::report::JOIN_TRY;
use cluster::supervision::{EXIT_HALTED, EXIT_MISUSED};
use cluster::{JoinAnswer, JoinRequest, NodeRow, Topology};
use consensus::Groups;
use parking_lot::Mutex;
use sql::wire::access::{Access, Method};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use storage::{Options, Store};
use tokio::sync::watch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use transport::{MessageKind, Transport};

const BEAT: Duration = Duration::from_millis(500);
/// A newcomer asks each of its seeds this often.
const JOIN_PAUSE: Duration = Duration::from_millis(300);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate that has fewer days left is told of.
const DAYS_LEFT_MIN: i64 = 30;
/// What a newcomer has told of the seeds' answers and does not tell again.
const SAID_BYTES_MAX: usize = 4096;

/// The worker's exit code for a bug in it: a fresh start on the same data goes on.
const EXIT_BUG: i32 = 101;
/// Each kind of work has as many threads as there are processors, and two at least.
const N_THREADS_MIN: usize = 2;
/// Those that vote have more: the log is applied there too, and a large entry keeps a thread busy for
/// tenths of a second.
const N_CORE_THREADS_MIN: usize = 4;
/// How much less urgent the threads of sessions and of wide queries are than those that vote (`nice`).
const SERVE_NICENESS: i32 = 2;
const QUERY_NICENESS: i32 = 12;
/// Deeply nested statements are planned by recursion. Only what is used becomes memory.
const STACK_BYTES: usize = 16 << 20;

/// The process: what its supervisor starts. Returns when it has stopped.
pub fn main() -> Result<ExitCode, std::io::Error> {
    panics::install();
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).max(N_THREADS_MIN);
    let core = runtime("core", n_threads.max(N_CORE_THREADS_MIN), 0)?;
    let serve = runtime("serve", n_threads, SERVE_NICENESS)?;
    let query = runtime("query", n_threads, QUERY_NICENESS)?;
    let env = Env::real_on(Runtimes {
        core: core.handle().clone(),
        serve: serve.handle().clone(),
        query: query.handle().clone(),
    });
    let code = core.block_on(run(env));
    // Threads that still read standard input must not hold the end up.
    for runtime in [core, serve, query] {
        runtime.shutdown_background();
    }
    Ok(code)
}

fn runtime(
    name: &str,
    n_threads: usize,
    niceness: i32,
) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(n_threads)
        .thread_name(name)
        .thread_stack_size(STACK_BYTES)
        .on_thread_start(move || {
            let me = Some(rustix::thread::gettid());
            if let Err(error) = rustix::process::setpriority_process(me, niceness) {
                tracing::warn!(%error, "a thread's priority is not set: heavy queries may delay votes");
            }
        })
        .build()
}

/// What the supervisor is told by the way this process ends.
pub fn exit_code(cause: Cause) -> i32 {
    match cause {
        Cause::Data => EXIT_HALTED,
        Cause::Bug => EXIT_BUG,
    }
}

/// The same for a start that failed.
pub fn exit_code_of_start(env: &Env, error: &Error) -> i32 {
    match env.halt_reason() {
        Some(halt) => exit_code(halt.cause),
        None if error.is::<storage::Error>() => EXIT_HALTED,
        None => EXIT_MISUSED,
    }
}

async fn run(env: Env) -> ExitCode {
    let started = start_process(&env).await;
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            eprintln!("atoll: {error}");
            let code = exit_code_of_start(&env, &error);
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
    };
    say("ready");
    let halted = async {
        let halt = env.halted().await;
        eprintln!("atoll: this node stops: {}", halt.reason);
        // Nothing that runs here may acknowledge anything any more.
        std::process::exit(exit_code(halt.cause));
    };
    tokio::select! {
        () = halted => ExitCode::FAILURE,
        () = stop_asked() => {
            running.stop().await;
            ExitCode::SUCCESS
        }
    }
}

async fn start_process(env: &Env) -> Result<Running, Error> {
    let config = std::env::var(CONFIG_VARIABLE)
        .map_err(|_| "a worker is started by its supervisor: use `atoll node`")?;
    let config: Config = serde_json::from_str(&config)?;
    log_to_stderr(&config.log)?;
    let home = Home::open(&config.data)?;
    home.write_pid("worker.pid")?;
    beat(env);
    let options = options(&config);
    let memory_bytes = (config.memory_mib << 20) as usize;
    let env = env.clone().limited(Limits { memory_bytes, ..Limits::default() });
    start(&env, config, &home, options).await
}

/// How the store is tuned for what the node was told.
pub fn options(config: &Config) -> Options {
    Options {
        retention: Duration::from_secs(config.retention_s.max(1)),
        bucket: Duration::from_secs((config.retention_s / 10).max(1)),
        cache_bytes: config.cache_mib << 20,
        ..Options::default()
    }
}

pub type Error = Box<dyn std::error::Error>;

/// A node at work.
pub struct Running {
    shutdown: watch::Sender<bool>,
    sql: base::env::JoinHandle<()>,
    groups: Groups,
    store: Store,
}

impl Running {
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Ends it politely. Nothing depends on that.
    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        if let Err(error) = self.sql.await {
            tracing::warn!(%error, "the SQL listener did not end cleanly");
        }
        self.groups.shutdown().await;
        let store = self.store;
        let flushed = tokio::task::spawn_blocking(move || store.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last flush failed; the next start replays more of the log");
        }
    }
}

/// Until the supervisor says so or is gone. Terminal signals are the supervisor's to handle.
async fn stop_asked() {
    let mut lines = stdin_lines();
    while let Some(line) = lines.recv().await {
        if line == "stop" {
            return;
        }
    }
    // The supervisor died: so must we, at once, before anybody else starts on our data.
    std::process::exit(1);
}

/// Starts a node on what its home holds; one without an identity joins first.
pub async fn start(
    env: &Env,
    config: Config,
    home: &Home,
    options: Options,
) -> Result<Running, Error> {
    let tls = config.load_tls()?;
    let identity = match home.identity()? {
        Some(identity) => identity,
        None => join(env, &config, home, &tls).await?,
    };
    let boot = home.boot()?;
    let is_founder = identity.founders.is_some() && !home.is_founded();
    if identity.founders.is_some() && home.is_founded() && !home.dir().join("state").exists() {
        return Err(format!(
            "{} has lost its state: wipe the whole directory, and the node joins anew under a new id",
            home.dir().display()
        )
        .into());
    }
    let dir = home.dir().to_path_buf();
    let opening = env.clone();
    let store = tokio::task::spawn_blocking(move || Store::open(&opening, &dir, options)).await??;
    let me = transport::Identity { node: identity.node, cluster: identity.cluster, boot };
    let name = tls.as_ref().map(transport::tls::Tls::name);
    if let Some(tls) = &tls {
        watch_expiry(env, tls.clone());
    }
    let transport = Transport::new(env.clone(), me, tls);
    let topology = home.topology()?;
    membership::know_names(&transport, &topology);
    for row in topology.members() {
        transport.set_address(row.id, row.peer_address);
    }
    let groups =
        Groups::new(env.clone(), store.clone(), transport.clone(), consensus::Config::default());
    let (known, members) = watch::channel(topology.ids());
    let parts = txn::Parts {
        env: env.on(Runtime::Serve),
        store: store.clone(),
        groups: groups.clone(),
        transport: transport.clone(),
        boot,
        blocks: blocks(home),
        members,
    };
    let founders: Option<BTreeSet<NodeId>> = match (&identity.founders, is_founder) {
        (Some(founders), true) => Some(founders.iter().copied().collect()),
        _ => None,
    };
    // Peers may speak to us from the moment our groups exist.
    let serving = transport.clone();
    let node = txn::Node::start(parts, founders.as_ref()).await?;
    let client = txn::Client::new(node.clone());
    let row = NodeRow {
        id: identity.node,
        zone: Zone(config.zone.clone()),
        peer_address: config.listen,
        sql_address: config.sql_listen,
        boot,
        since_us: env.wall_us(),
        // Its row says what it was let in with, if it has one.
        ticket: 0,
        replaced_by: None,
        name,
    };
    let members = membership::Membership::new(membership::Parts {
        env: env.on(Runtime::Serve),
        home: home.clone(),
        identity: identity.clone(),
        row,
        client: client.clone(),
        node: node.clone(),
        groups: groups.clone(),
        transport: transport.clone(),
        known,
        topology,
        seeds: config.join.clone(),
    });
    members.register();
    let source = views::Views::new(
        config.clone(),
        client.clone(),
        members.clone(),
        store.clone(),
        transport.clone(),
        *env.limits(),
    );
    source.register();
    let definitions = source.clone();
    serving.serve(config.listen).await?;
    if founders.is_some() {
        home.set_founded()?;
    }
    let serve = env.on(Runtime::Serve);
    let wide = Arc::new(query::DataFusion::new(env, store.temporary_dir())?);
    let engine = sql::Engine::new(serve.clone(), client, wide, source, config.access()?);
    definitions.hear_definitions(engine.clone());
    let listener = env
        .net()
        .listen(config.sql_listen)
        .await
        .map_err(|error| format!("cannot listen for SQL on {}: {error}", config.sql_listen))?;
    let door = open_door(&serve, home, engine.access()).await?;
    members.run(engine.clone());
    let (shutdown, stopping) = watch::channel(false);
    let patience = sql::wire::Patience::default();
    let shown = config.load_sql_tls()?.map(|front| -> sql::wire::Tls {
        Arc::new(move || {
            let shown = front.now();
            sql::wire::Shown { config: shown.config.clone(), end_point: shown.end_point.clone() }
        })
    });
    let local =
        door.map(|door| sql::wire::serve_local(engine.clone(), door, patience, stopping.clone()));
    let remote = sql::wire::serve(engine, listener, shown, patience, stopping);
    let serve_sql = async move {
        match local {
            Some(local) => drop(futures::future::join(remote, local).await),
            None => remote.await,
        }
    };
    let sql = serve.spawn("sql listener", serve_sql);
    tracing::info!(node = %identity.node, zone = config.zone, sql = %config.sql_listen, boot, "started");
    Ok(Running { shutdown, sql, groups, store })
}

/// The door for the owner of the data directory, who is never locked out: it asks for no password.
async fn open_door(
    env: &Env,
    home: &Home,
    access: &Access,
) -> Result<Option<Box<dyn Listener>>, Error> {
    let path = home.prepare_door()?;
    match env.net().listen_local(&path).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(None),
        Err(error) if access.asks(Method::Trust) => {
            tracing::warn!(%error, path = %path.display(), "there is no door for clients of this machine");
            Ok(None)
        }
        Err(error) => Err(format!(
            "every client is asked for a password, and the door through which the first one is set cannot be \
             opened at {}: {error}; choose a data directory with a shorter path",
            path.display()
        )
        .into()),
    }
}

/// Tells the log once a day that this node's certificate expires soon.
fn watch_expiry(env: &Env, tls: transport::tls::Tls) {
    let clock = env.on(Runtime::Serve);
    env.on(Runtime::Serve).spawn("expiry", async move {
        loop {
            let left_s = tls.expires_s() - clock.wall_us() / 1_000_000;
            let (name, days) = (tls.name(), left_s / DAY.as_secs().cast_signed());
            if days < DAYS_LEFT_MIN {
                tracing::warn!(
                    name,
                    days,
                    "this node's certificate expires soon: `atoll cert node {name}` renews it, without a restart"
                );
            }
            clock.sleep(DAY).await;
        }
    });
}

/// Blocks of ids are numbered like starts, and noted in the same place.
fn blocks(home: &Home) -> txn::ids::Blocks {
    // Two who raise at the same moment would read the same number.
    let home = Mutex::new(home.clone());
    Arc::new(move || home.lock().raise_boot().map_err(|error| error.to_string()))
}

/// `filter` is a level, or levels by target: `info,txn=debug`.
pub(crate) fn log_to_stderr(filter: &str) -> Result<(), Error> {
    let filter: Targets = filter.parse().map_err(|error| format!("log = {filter:?}: {error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Ok(())
}

/// Tells the supervisor, as long as tasks run here, that this worker is well.
fn beat(env: &Env) {
    let clock = env.clone();
    env.spawn("beat", async move {
        while say("beat") {
            clock.sleep(BEAT).await;
        }
    });
}

/// Says a word to the supervisor. False when it is gone, which standard input tells too.
fn say(word: &str) -> bool {
    let mut out = std::io::stdout();
    out.write_all(format!("{word}\n").as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Asks the seeds for an identity until one gives it.
async fn join(
    env: &Env,
    config: &Config,
    home: &Home,
    tls: &Option<transport::tls::Tls>,
) -> Result<Identity, Error> {
    if config.join.is_empty() {
        return Err(format!(
            "{} is empty and no peer is named to join: found a cluster with `atoll init` (over several machines) \
             or `atoll up` (on this one), or join one with --join HOST",
            config.data.display()
        )
        .into());
    }
    let nobody = transport::Identity { node: NodeId(0), cluster: 0, boot: 0 };
    let transport = Transport::new(env.clone(), nobody, tls.clone());
    let request = JoinRequest {
        ticket: home.ticket(env.random().max(1))?,
        zone: Zone(config.zone.clone()),
        peer_address: config.listen,
        sql_address: config.sql_listen,
    };
    let payload = Bytes::from(postcard::to_stdvec(&request)?);
    let mut said = String::new();
    loop {
        for seed in &config.join {
            match ask_to_join(env, &transport, seed, payload.clone()).await {
                Ok(JoinAnswer { cluster, node, topology }) => {
                    let identity =
                        Identity { cluster, node, zone: config.zone.clone(), founders: None };
                    let others = topology.nodes.into_values().filter(|row| row.id != node);
                    home.set_topology(&Topology::of(others))?;
                    home.set_identity(&identity)?;
                    return Ok(identity);
                }
                // One that is away answers nothing new three times a second.
                Err(reason) => {
                    let reason = format!("{seed} does not let this node in yet: {reason}");
                    if !said.contains(&reason) {
                        tracing::info!("{reason}");
                        said = if said.len() > SAID_BYTES_MAX { reason } else { said + &reason };
                    }
                }
            }
        }
        env.sleep(JOIN_PAUSE).await;
    }
}

/// Asks one seed, whose name is looked up at each try: a host may come back under another address.
async fn ask_to_join(
    env: &Env,
    transport: &Transport,
    seed: &Seed,
    payload: Bytes,
) -> Result<JoinAnswer, String> {
    let mut reason = format!("no address is known for {seed}");
    for address in seed.addresses(env).await? {
        let asked =
            transport.call_address(address, MessageKind::Join, JOIN_TRY, payload.clone()).await;
        match asked {
            Ok(bytes) => return postcard::from_bytes(&bytes).map_err(|error| error.to_string())?,
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}
