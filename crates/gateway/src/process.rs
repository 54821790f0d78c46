//! `atoll gateway --config FILE`: the gateway as a process of its own.
//!
//! ```text
//!   main thread: accepts and hands connections to the lane with the fewest;
//!                admin port, checks, names, the file and its certificates, signals
//!   lane threads: one runtime each, with their own connections to servers ([`crate::lanes`])
//! ```
//!
//! | signal | what happens |
//! |---|---|
//! | SIGTERM, SIGINT | no more connections; requests under way end (`drain` at most); exit |
//! | SIGHUP | the file is read now and not at the next look |
//! | SIGUSR1 | the access log is opened anew: a tool has moved the old one away |
//! | SIGUSR2 | this program is started anew with the open listeners; once that serves it asks this one to stop: a new binary without a refused connection |
//!
//! Listeners may also be handed in from outside (`LISTEN_FDS`, as systemd does).

use crate::access_log::AccessLog;
use crate::admin;
use crate::config::{self, Config};
use crate::front::{proxied, serve};
use crate::gateway::Gateway;
use crate::http::forwarded;
use crate::lanes::Arrival;
use crate::tls;
use crate::upkeep;
use base::env::{Env, JoinHandle};
use command_fds::{CommandFdExt, FdMapping};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{SockRef, TcpKeepalive};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The process that asks to be relieved.
const PREDECESSOR: &str = "ATOLL_GATEWAY_PREDECESSOR";
/// A client that has been silent for this long is asked whether it is there, by TCP.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the last spans may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Descriptors that no client may have: listeners, files, checks; and those of each lane.
const N_FILES_OWN: usize = 48;
const N_FILES_OF_LANE: usize = 4;
/// Connections that may wait to be accepted, as many as most systems allow.
const N_NEWCOMERS_MAX: i32 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot open the access log: {0}")]
    AccessLog(io::Error),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
}

/// Serves until a signal ends it.
pub fn run(path: &Path) -> Result<ExitCode, Error> {
    // Looked at before it is read: what is written after that is seen to be new.
    let own = stamp(path);
    let config = Config::load(path)?;
    let mut seen = fingerprint(path, &config);
    if let Some((_, first)) = seen.first_mut() {
        *first = own;
    }
    let inherited = inherited();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(main(path.to_path_buf(), config, seen, inherited))
}

/// Checks a file and says what it would do.
pub fn check(path: &Path) -> Result<Config, Error> {
    let config = Config::load(path)?;
    // Certificates are part of what must be right.
    Gateway::new(&Env::real(), config.clone(), 1)?;
    Ok(config)
}

/// When a file was last written, and how long it is.
type Stamp = Option<(SystemTime, u64)>;
/// The files that matter; the first is the gateway's own.
type Fingerprint = Vec<(PathBuf, Stamp)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn fingerprint(path: &Path, config: &Config) -> Fingerprint {
    let mut paths = vec![path.to_path_buf()];
    for listener in &config.listeners {
        for files in &listener.certificates {
            paths.extend([files.certificate.clone(), files.key.clone()]);
        }
        paths.extend(listener.clients.iter().map(|clients| clients.authority.clone()));
    }
    for service in config.services.values() {
        if let Some(tls) = &service.tls {
            paths.push(tls.authority.clone());
            let own = tls.certificate.iter();
            paths.extend(own.flat_map(|own| [own.certificate.clone(), own.key.clone()]));
        }
    }
    paths.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}

struct Process {
    env: Env,
    path: PathBuf,
    gateway: Arc<Gateway>,
    listeners: Mutex<BTreeMap<SocketAddr, Listening>>,
    /// Whether a successor was started and lives.
    has_successor: Arc<AtomicBool>,
    /// What is wrong with the file as it is now, for the live page.
    complaint: watch::Sender<Option<String>>,
}

struct Listening {
    listener: TcpListener,
    task: Option<JoinHandle<()>>,
}

fn inherited() -> BTreeMap<SocketAddr, TcpListener> {
    let mut inherited = BTreeMap::new();
    let mut handed = listenfd::ListenFd::from_env();
    for idx in 0..handed.len() {
        if let Ok(Some(listener)) = handed.take_tcp_listener(idx)
            && let Ok(address) = listener.local_addr()
        {
            inherited.insert(address, listener);
        }
    }
    inherited
}

async fn main(
    path: PathBuf,
    config: Config,
    seen: Fingerprint,
    mut inherited: BTreeMap<SocketAddr, TcpListener>,
) -> Result<ExitCode, Error> {
    let env = Env::real();
    let n_cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_lanes = config.threads.unwrap_or(n_cores);
    let gateway = Gateway::new(&env, config.clone(), n_lanes)?;
    make_room(&gateway, config.limits.n_connections_max, n_lanes);
    if let Some(to) = &config.access_log {
        gateway.set_access_log(Some(AccessLog::start(&env, to).map_err(Error::AccessLog)?));
    }
    let mut bound = BTreeMap::new();
    for address in config.addresses() {
        let listener = match inherited.remove(&address) {
            Some(listener) => {
                // Its maker may have had less room for newcomers.
                rustix::net::listen(&listener, N_NEWCOMERS_MAX).map_err(io::Error::from)?;
                listener
            }
            None => listen(address)?,
        };
        bound.insert(address, listener);
    }
    // Nobody listens on what the file no longer names.
    drop(inherited);
    for lane in 0..n_lanes {
        start_lane(&gateway, lane)?;
    }
    let process = Arc::new(Process {
        env: env.clone(),
        path,
        gateway: gateway.clone(),
        listeners: Mutex::default(),
        has_successor: Arc::default(),
        complaint: watch::Sender::new(None),
    });
    for (address, listener) in bound {
        process.serve(address, listener)?;
    }
    upkeep::start(&gateway);
    process.clone().watch_files(seen);
    for listener in &config.listeners {
        let tls = if listener.certificates.is_empty() { "HTTP" } else { "HTTPS" };
        tracing::info!(address = %listener.address, tls, "listening");
    }
    if let Some(admin) = config.admin {
        tracing::info!(address = %format!("http://{admin}/"), "admin");
    }
    relieve_predecessor();
    process.until_stopped().await
}

/// Raises the soft limit of descriptors to the hard one, and lets in no more clients than there are
/// descriptors for: a client's request takes one for the client and one for its server.
fn make_room(gateway: &Gateway, n_wanted: usize, n_lanes: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the soft limit of descriptors cannot be raised");
    }
    // None: there is no limit.
    let Some(n_files) = getrlimit(Resource::Nofile).current else { return };
    let n_files = usize::try_from(n_files).unwrap_or(usize::MAX);
    let n_own = N_FILES_OWN + N_FILES_OF_LANE * n_lanes;
    let n_clients = (n_files.saturating_sub(n_own) / 2).max(1);
    gateway.set_room(n_clients);
    if n_clients < n_wanted {
        tracing::warn!(
            descriptors = n_files,
            connections = n_wanted,
            "there are descriptors for {n_clients} clients' connections: raise the hard limit \
             (ulimit -Hn, LimitNOFILE), or lower `connections` in [limits]"
        );
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = || -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        // Who finds the queue full waits a second for TCP to try again. The standard library's
        // has room for 128; the system cuts this to what it allows.
        rustix::net::listen(&listener, N_NEWCOMERS_MAX)?;
        Ok(listener)
    };
    bound().map_err(|source| Error::Listen { address, source })
}

/// A thread that serves the connections it is handed.
fn start_lane(gateway: &Arc<Gateway>, lane: usize) -> Result<(), Error> {
    let mut arrivals = gateway.lanes.open(lane);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gateway = gateway.clone();
    let serve = async move {
        let env = gateway.env().clone();
        while let Some(arrival) = arrivals.recv().await {
            let gateway = gateway.clone();
            env.spawn("connection", async move {
                match arrival {
                    Arrival::New { stream, from, at } => match opened(stream) {
                        Ok(stream) => {
                            if let Some((stream, from)) = come(&gateway, stream, from, at).await {
                                let acceptor = gateway.state().acceptors.get(&at).cloned();
                                let (this, wire) = (gateway.clone(), stream.into());
                                serve::connection(this, lane, wire, from, acceptor).await;
                            }
                        }
                        // It was gone before it was served.
                        Err(error) => tracing::debug!(%from, %error, "a connection was lost"),
                    },
                    Arrival::Moved(moved) => serve::moved(gateway.clone(), lane, moved).await,
                }
                gateway.lanes.left(lane);
            });
        }
    };
    std::thread::Builder::new()
        .name(format!("lane-{lane}"))
        .spawn(move || runtime.block_on(serve))?;
    Ok(())
}

/// A new connection, and who its client is: where the listener goes by the PROXY protocol, whom a
/// trusted proxy names.
async fn come(
    gateway: &Gateway,
    mut stream: tokio::net::TcpStream,
    from: SocketAddr,
    at: SocketAddr,
) -> Option<(tokio::net::TcpStream, SocketAddr)> {
    let state = gateway.state();
    let listener = state.config.listeners.iter().find(|listener| listener.address == at);
    if !listener.is_some_and(|listener| listener.proxy_protocol) {
        return Some((stream, from));
    }
    let trusted = &state.config.trusted_proxies;
    if !trusted.is_empty() && !forwarded::is_trusted(trusted, from.ip()) {
        tracing::debug!(%from, "a stranger came to a listener of the PROXY protocol");
        gateway.counters.n_bad_greetings.fetch_add(1, Relaxed);
        return None;
    }
    let read = proxied::read(&mut stream);
    match gateway.env().timeout(state.limits.header_timeout, read).await {
        Some(Ok(client)) => Some((stream, client.unwrap_or(from))),
        Some(Err(error)) => {
            tracing::debug!(%from, %error, "a connection was refused");
            gateway.counters.n_bad_greetings.fetch_add(1, Relaxed);
            None
        }
        None => {
            gateway.counters.n_stood_still.fetch_add(1, Relaxed);
            None
        }
    }
}

fn opened(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    // A client whose host is gone says nothing; a tunnel would wait for ever.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    tokio::net::TcpStream::from_std(stream)
}

impl Process {
    fn serve(self: &Arc<Self>, address: SocketAddr, listener: TcpListener) -> Result<(), Error> {
        let own = listener.try_clone()?;
        own.set_nonblocking(true)?;
        let accepting = tokio::net::TcpListener::from_std(own)?;
        let this = self.clone();
        let task = self.env.spawn("listener", async move {
            loop {
                let accepted = accepting.accept().await;
                match accepted {
                    // By the file as it is now: an address may have another part in each.
                    Ok((stream, from)) if this.gateway.state().config.admin == Some(address) => {
                        let complaint = this.complaint.subscribe();
                        let serving = admin::connection(
                            this.gateway.clone(),
                            Box::new(stream),
                            address,
                            from,
                            complaint,
                        );
                        this.env.spawn("admin", serving);
                    }
                    Ok((stream, from)) => this.hand_over(stream, from, address),
                    // Out of descriptors, most likely: those that are open come first.
                    Err(error) => {
                        tracing::error!(%address, %error, "cannot accept a connection");
                        this.env.sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        let listening = Listening { listener, task: Some(task) };
        self.listeners.lock().insert(address, listening);
        Ok(())
    }

    fn hand_over(&self, stream: tokio::net::TcpStream, from: SocketAddr, at: SocketAddr) {
        let Ok(stream) = stream.into_std() else { return };
        self.place(Arrival::New { stream, from, at });
    }

    fn place(&self, arrival: Arrival) {
        if !self.gateway.lanes.place(arrival) {
            self.gateway.counters.n_refused_connections.fetch_add(1, Relaxed);
        }
    }

    /// Goes by the file whenever it or a certificate changes.
    fn watch_files(self: Arc<Self>, mut seen: Fingerprint) {
        let env = self.env.clone();
        env.spawn("files", async move {
            let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
            loop {
                let is_asked = self.env.timeout(LOOK_EVERY, hangup.recv()).await.is_some();
                let now = fingerprint(&self.path, &self.gateway.state().config);
                if now != seen || is_asked {
                    seen = now;
                    self.reload().await;
                }
            }
        });
    }

    async fn reload(self: &Arc<Self>) {
        let reloaded = Config::load(&self.path).map_err(Error::from).and_then(|config| {
            let listeners = self.new_listeners(&config)?;
            let before = self.gateway.state();
            let log = match &config.access_log {
                same if *same == before.config.access_log => None,
                None => Some(None),
                Some(to) => Some(Some(AccessLog::start(&self.env, to).map_err(Error::AccessLog)?)),
            };
            self.gateway.reload(config.clone())?;
            if let Some(log) = log {
                self.gateway.set_access_log(log);
            }
            if config.threads != before.config.threads {
                tracing::warn!("another number of threads needs a restart (SIGUSR2)");
            }
            Ok((config, listeners))
        });
        match reloaded {
            Ok((config, listeners)) => match self.move_listeners(&config, listeners).await {
                Ok(()) => {
                    self.complaint.send_replace(None);
                    tracing::info!(file = %self.path.display(), "going by the new file");
                }
                Err(error) => {
                    let text = error.to_string();
                    tracing::error!(error = %text, "the file is taken over but for its addresses");
                    self.complaint.send_replace(Some(text));
                }
            },
            Err(error) => {
                self.gateway.counters.n_bad_reloads.fetch_add(1, Relaxed);
                let text = error.to_string();
                tracing::error!(error = %text, "the file is refused; the old one stays in force");
                self.complaint.send_replace(Some(text));
            }
        }
    }

    /// Binds what is new, before anything is changed; but for those that the system gives only when
    /// another one is closed.
    fn new_listeners(&self, config: &Config) -> Result<Vec<(SocketAddr, TcpListener)>, Error> {
        let known = self.listeners.lock();
        let is_free = |address: &SocketAddr| {
            !known.keys().any(|other| other == address || config::overlap(*other, *address))
        };
        config.addresses().filter(is_free).map(|address| Ok((address, listen(address)?))).collect()
    }

    async fn move_listeners(
        self: &Arc<Self>,
        config: &Config,
        fresh: Vec<(SocketAddr, TcpListener)>,
    ) -> Result<(), Error> {
        for (address, listener) in fresh {
            self.serve(address, listener)?;
        }
        let wanted: Vec<SocketAddr> = config.addresses().collect();
        let is_left = |address: &SocketAddr| !wanted.contains(address);
        let left: Vec<SocketAddr> = self.listeners.lock().keys().copied().filter(is_left).collect();
        for address in &left {
            self.close(*address, config).await;
        }
        // From 127.0.0.1 to 0.0.0.0, or back: the old one had to go first.
        for address in wanted {
            if !self.listeners.lock().contains_key(&address) {
                let listener = match listen(address) {
                    Ok(listener) => listener,
                    Err(error) => {
                        let part = left.iter().find(|left| config::overlap(**left, address));
                        if let Some(part) = part {
                            self.serve(*part, listen(*part)?)?;
                        }
                        return Err(error);
                    }
                };
                self.serve(address, listener)?;
            }
        }
        Ok(())
    }

    /// Listens no more here. Who was let in by the system already is served as by the listener that
    /// has this address from now on.
    async fn close(&self, address: SocketAddr, config: &Config) {
        let Some(listening) = self.listeners.lock().remove(&address) else { return };
        let Listening { listener, task } = listening;
        if let Some(task) = task {
            task.abort();
            // It ends with an error, which says that it was ended.
            task.await.ok();
        }
        let mut listeners = config.listeners.iter().map(|listener| listener.address);
        let heir = listeners.find(|heir| config::overlap(*heir, address));
        while let (Some(at), Ok((stream, from))) = (heir, listener.accept()) {
            if stream.set_nonblocking(true).is_ok() {
                self.place(Arrival::New { stream, from, at });
            }
        }
    }

    async fn until_stopped(self: &Arc<Self>) -> Result<ExitCode, Error> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut replace = signal(SignalKind::user_defined2())?;
        let mut rotate = signal(SignalKind::user_defined1())?;
        let code = loop {
            tokio::select! {
                _ = terminate.recv() => break ExitCode::SUCCESS,
                _ = interrupt.recv() => break ExitCode::SUCCESS,
                halt = self.env.halted() => {
                    // A panic in a connection's task is a bug; the others are served to their end.
                    tracing::error!(reason = halt.reason, "stopping");
                    break ExitCode::FAILURE;
                }
                _ = rotate.recv() => {
                    if let Some(log) = self.gateway.log() {
                        log.open_anew();
                        tracing::info!("the access log is opened anew");
                    }
                }
                _ = replace.recv() => match self.start_successor() {
                    Ok(pid) => tracing::info!(pid, "a successor was started"),
                    Err(error) => tracing::error!(%error, "no successor could be started"),
                }
            }
        };
        self.drain().await;
        Ok(code)
    }

    /// No more connections; those that are open end with their requests.
    async fn drain(&self) {
        let drain = self.gateway.state().config.drain;
        tracing::info!(
            connections = self.gateway.n_connections(),
            requests = self.gateway.n_requests(),
            "draining"
        );
        for listening in self.listeners.lock().values_mut() {
            if let Some(task) = listening.task.take() {
                task.abort();
            }
        }
        self.listeners.lock().clear();
        // Lets the listeners' tasks go, and with them the last handles.
        tokio::task::yield_now().await;
        self.gateway.stop();
        let is_idle = async {
            // A lane's connections are more than the gateway's: some wait to be begun.
            while self.gateway.lanes.n_open() > 0 || self.gateway.n_requests() > 0 {
                self.env.sleep(Duration::from_millis(10)).await;
            }
        };
        if self.env.timeout(drain, is_idle).await.is_none() && self.gateway.n_requests() > 0 {
            tracing::warn!(
                requests = self.gateway.n_requests(),
                "the time to drain is over; what is left is broken off"
            );
        }
        if let Some(traces) = &self.gateway.state().traces {
            let sent = self.env.timeout(LAST_WORDS, traces.send_all(&self.env)).await;
            if sent.is_none() {
                tracing::warn!("the collector of traces is too slow for the last spans");
            }
        }
    }

    /// Starts this program anew, with the listeners that are open.
    fn start_successor(&self) -> Result<u32, Error> {
        if self.has_successor.load(Relaxed) {
            return Err(io::Error::other("there is one, which does not serve yet").into());
        }
        let listeners = self.listeners.lock();
        let mut mappings = Vec::new();
        for (idx, listening) in listeners.values().enumerate() {
            let parent_fd = OwnedFd::from(listening.listener.try_clone()?);
            let child_fd = 3 + i32::try_from(idx).unwrap_or(i32::MAX - 3);
            mappings.push(FdMapping { parent_fd, child_fd });
        }
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command
            .args(std::env::args_os().skip(1))
            .env("LISTEN_FDS", mappings.len().to_string())
            .env_remove("LISTEN_PID")
            .env(PREDECESSOR, std::process::id().to_string())
            .fd_mappings(mappings)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut child = command.spawn()?;
        let pid = child.id();
        let has_successor = self.has_successor.clone();
        has_successor.store(true, Relaxed);
        std::thread::spawn(move || {
            // It outlives this process when all is well.
            match child.wait() {
                Ok(status) => {
                    tracing::error!(pid, %status, "the successor ended; this one goes on");
                }
                Err(error) => tracing::error!(pid, %error, "the successor cannot be waited for"),
            }
            has_successor.store(false, Relaxed);
        });
        Ok(pid)
    }
}

/// Asks whoever started this process with its listeners to stop.
fn relieve_predecessor() {
    let told = std::env::var(PREDECESSOR).ok();
    let Some(pid) = told.and_then(|pid| pid.parse::<u32>().ok()) else { return };
    // The number may have been given to another process since; a parent's cannot have been.
    if std::os::unix::process::parent_id() != pid {
        return;
    }
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    if let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
        tracing::error!(%error, "the predecessor cannot be asked to stop");
    }
}
