//! The gateway: what all its connections share.

use crate::access_log::AccessLog;
use crate::backend::Backend;
use crate::config::{Config, Limits, Route};
use crate::isolate::bulkhead::Priority;
use crate::lanes::Lanes;
use crate::rate::Buckets;
use crate::tls::{self, Acceptor};
use crate::traces::Traces;
use base::env::Env;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use tokio::sync::watch;

pub struct Gateway {
    env: Env,
    pub lanes: Lanes,
    state: RwLock<Arc<State>>,
    /// How often that was replaced.
    version: AtomicU64,
    /// Told once, when no new requests are wanted.
    stopping: watch::Sender<bool>,
    is_stopping: AtomicBool,
    n_connections: AtomicUsize,
    /// Connections that this process has descriptors for.
    n_connections_room: AtomicUsize,
    n_requests: OwnLine<AtomicU32>,
    pub access_log: RwLock<Option<AccessLog>>,
    is_logging: AtomicBool,
    pub counters: Counters,
}

/// What one file says, made ready. Replaced as a whole.
pub struct State {
    pub config: Config,
    pub limits: Limits,
    pub routes: Vec<Route>,
    pub backends: BTreeMap<String, Arc<Backend>>,
    pub acceptors: BTreeMap<SocketAddr, Acceptor>,
    pub traces: Option<Arc<Traces>>,
    /// By the routes' names.
    pub rates: BTreeMap<String, Arc<Mutex<Buckets>>>,
}

/// What every request writes is not beside what every request reads.
#[derive(Default)]
#[repr(align(128))]
struct OwnLine<T>(T);

/// The state as one connection goes by it, without asking others for it.
pub struct View {
    state: Arc<State>,
    version: u64,
}

/// What no service is to blame for.
#[derive(Default)]
#[repr(align(128))]
pub struct Counters {
    pub n_accepted: AtomicU64,
    pub n_refused_connections: AtomicU64,
    pub n_refused_requests: AtomicU64,
    pub n_no_route: AtomicU64,
    pub n_bad_requests: AtomicU64,
    pub n_left_requests: AtomicU64,
    pub n_over_rate: AtomicU64,
    pub n_bad_greetings: AtomicU64,
    pub n_stood_still: AtomicU64,
    pub n_broken_connections: AtomicU64,
    pub n_reloads: AtomicU64,
    pub n_bad_reloads: AtomicU64,
}

/// An open connection.
pub struct Open(Arc<Gateway>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.n_connections.fetch_sub(1, Relaxed);
    }
}

impl State {
    fn new(
        env: &Env,
        config: Config,
        n_lanes: usize,
        before: Option<&State>,
    ) -> Result<State, tls::Error> {
        let mut backends = BTreeMap::new();
        for (name, service) in &config.services {
            let old = before.and_then(|before| before.backends.get(name));
            let old = old.map(|backend| &**backend);
            let backend = Backend::new(env, name, service, &config.closeness, n_lanes, old)?;
            backends.insert(name.clone(), Arc::new(backend));
        }
        let mut acceptors = BTreeMap::new();
        for listener in &config.listeners {
            if !listener.certificates.is_empty() {
                acceptors.insert(
                    listener.address,
                    Acceptor::load(&listener.certificates, listener.clients.as_ref())?,
                );
            }
        }
        let same = before.and_then(|before| before.traces.as_ref());
        let same = same.filter(|same| config.traces.as_ref() == Some(&same.config)).cloned();
        let queue = || before.and_then(|before| Some(before.traces.as_ref()?.queue.clone()));
        let traces =
            same.or_else(|| Some(Traces::new(config.traces.clone()?, queue().unwrap_or_default())));
        let rated = config.routes.iter().filter(|route| route.rate_limit.is_some());
        let rates = rated.map(|route| {
            let known = before.and_then(|before| before.rates.get(&route.name));
            (route.name.clone(), known.cloned().unwrap_or_default())
        });
        let rates = rates.collect();
        Ok(State {
            rates,
            limits: config.limits.clone(),
            routes: config.routes.clone(),
            backends,
            acceptors,
            traces,
            config,
        })
    }

    fn enact(&self) {
        for backend in self.backends.values() {
            backend.enact(&self.config.closeness);
        }
    }
}

impl Gateway {
    /// `n_lanes` is the number of threads that serve.
    pub fn new(env: &Env, config: Config, n_lanes: usize) -> Result<Arc<Gateway>, tls::Error> {
        let state = State::new(env, config, n_lanes, None)?;
        state.enact();
        Ok(Arc::new(Gateway {
            env: env.clone(),
            lanes: Lanes::new(env, n_lanes),
            state: RwLock::new(Arc::new(state)),
            version: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
            is_stopping: AtomicBool::new(false),
            n_connections: AtomicUsize::new(0),
            n_connections_room: AtomicUsize::new(usize::MAX),
            n_requests: OwnLine::default(),
            access_log: RwLock::default(),
            is_logging: AtomicBool::new(false),
            counters: Counters::default(),
        }))
    }

    /// Goes by another file from the next request on, or by none of it.
    pub fn reload(&self, config: Config) -> Result<(), tls::Error> {
        let before = self.state();
        let state = State::new(&self.env, config, self.lanes.n(), Some(&before))?;
        state.enact();
        let state = Arc::new(state);
        *self.state.write() = state.clone();
        self.version.fetch_add(1, Release);
        for (name, old) in &before.backends {
            let new = state.backends.get(name);
            if new.is_none_or(|new| !Arc::ptr_eq(new.upstream(0), old.upstream(0))) {
                old.close();
            }
        }
        self.counters.n_reloads.fetch_add(1, Relaxed);
        Ok(())
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    pub fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }

    /// The state by the newest file, which `view` has unless there is a newer one.
    pub fn view<'a>(&self, view: &'a mut Option<View>) -> &'a Arc<State> {
        // In this order: a state that is newer than it says is only looked for once more.
        let version = self.version.load(Acquire);
        view.take_if(|view| view.version != version);
        &view.get_or_insert_with(|| View { state: self.state(), version }).state
    }

    pub fn set_access_log(&self, log: Option<AccessLog>) {
        self.is_logging.store(log.is_some(), Relaxed);
        *self.access_log.write() = log;
    }

    pub fn log(&self) -> Option<AccessLog> {
        // The usual gateway does not log: one load instead of a lock.
        if self.is_logging.load(Relaxed) { self.access_log.read().clone() } else { None }
    }

    /// Asks every connection to end when its requests have.
    pub fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.stopping.send_replace(true);
    }

    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    pub fn is_stopping(&self) -> bool {
        // Every request asks: one load instead of a lock.
        self.is_stopping.load(Relaxed)
    }

    /// No more clients than so many, whatever the file says: there are no descriptors for them.
    pub fn set_room(&self, n_connections: usize) {
        self.n_connections_room.store(n_connections, Relaxed);
    }

    /// Counts a connection, unless there are too many.
    pub fn open_connection(self: &Arc<Self>) -> Option<Open> {
        let n_room = self.n_connections_room.load(Relaxed);
        let n_max = self.state.read().limits.n_connections_max.min(n_room);
        self.counters.n_accepted.fetch_add(1, Relaxed);
        if self.n_connections.fetch_add(1, Relaxed) >= n_max {
            self.n_connections.fetch_sub(1, Relaxed);
            self.counters.n_refused_connections.fetch_add(1, Relaxed);
            return None;
        }
        Some(Open(self.clone()))
    }

    /// Counts a request; whether there are not too many of its priority. It is counted until
    /// [`Gateway::leave`] all the same.
    pub fn enter(&self, limits: &Limits, priority: Priority) -> bool {
        let room = f64::from(limits.n_requests_max) * priority.share();
        let n_before = self.n_requests.0.fetch_add(1, Relaxed);
        f64::from(n_before) < room.max(1.0)
    }

    /// A place is free again: for its end only.
    pub fn leave(&self) {
        self.n_requests.0.fetch_sub(1, Relaxed);
    }

    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Relaxed)
    }

    pub fn n_requests(&self) -> u32 {
        self.n_requests.0.load(Relaxed)
    }

    /// A connection ended otherwise than by a goodbye.
    pub fn count_broken(&self, error: &hyper::Error) {
        let is_malformed = error.is_parse() || error.is_parse_too_large();
        let counters = &self.counters;
        let counter =
            if is_malformed { &counters.n_bad_requests } else { &counters.n_broken_connections };
        counter.fetch_add(1, Relaxed);
    }
}
