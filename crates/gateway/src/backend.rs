//! A service as the gateway has it: its decisions, its connections, where its servers come from,
//! and what is counted.

use crate::balance::{Closeness, ServerSpec};
use crate::call::Handle;
use crate::config::{self, DnsSource};
use crate::counts::Sums;
use crate::http::pool::{Upstream, Wire};
use crate::stale::Stale;
use crate::tls::{self, Connector};
use base::env::{Env, Instant};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How soon a name is asked for again that has never had an answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
pub struct Backend {
    pub config: config::Service,
    pub handle: Arc<Handle>,
    /// For each lane its own, so that lanes do not meet in what every request touches.
    pub upstreams: Vec<Arc<Upstream>>,
    pub stale: Arc<Stale>,
    sources: Arc<Mutex<Sources>>,
}

/// Where servers come from. Later sources win where they name the same address.
#[derive(Default)]
struct Sources {
    file: Vec<ServerSpec>,
    dns: Vec<Name>,
    api: BTreeMap<SocketAddr, ServerSpec>,
}

/// A name that stands for servers. Its key is the name and the port: what else the file says of it
/// may change, and what it stands for stays.
struct Name {
    source: DnsSource,
    addresses: Vec<SocketAddr>,
    /// None: at once.
    ask_at: Option<Instant>,
    is_being_asked: bool,
}

impl Name {
    fn is(&self, other: &DnsSource) -> bool {
        self.source.name == other.name && self.source.port == other.port
    }
}

impl Sources {
    fn all(&self) -> Vec<ServerSpec> {
        let mut all: BTreeMap<SocketAddr, ServerSpec> = BTreeMap::new();
        let specs = |name: &Name| {
            let zone = name.source.zone.clone();
            let spec = move |address: &SocketAddr| ServerSpec {
                address: *address,
                zone: zone.clone(),
                weight: 1.0,
            };
            name.addresses.iter().map(spec).collect::<Vec<_>>()
        };
        let dns = self.dns.iter().flat_map(specs);
        for spec in self.file.iter().cloned().chain(dns).chain(self.api.values().cloned()) {
            all.insert(spec.address, spec);
        }
        all.into_values().collect()
    }
}

impl Backend {
    /// A service of the file; `before` is what it was under the file until now.
    pub fn new(
        env: &Env,
        name: &str,
        config: &config::Service,
        closeness: &Closeness,
        n_lanes: usize,
        before: Option<&Backend>,
    ) -> Result<Backend, tls::Error> {
        let is_http2 = config.protocol == config::Protocol::Http2;
        let tls = config.tls.as_ref().map(|tls| Connector::load(tls, is_http2)).transpose()?;
        let wire = Wire {
            protocol: config.protocol,
            tls,
            idle_max: config.idle_timeout,
            ping_every: config.ping_interval,
        };
        let settings = config.settings.clone();
        let handle = match before {
            Some(before) => before.handle.clone(),
            None => Handle::new(env, name, settings, closeness.clone()),
        };
        // A certificate may have changed under the same name: new connections use what is there.
        let upstreams = match before {
            Some(before)
                if config.tls.is_none()
                    && before.config.tls.is_none()
                    && before.config.protocol == config.protocol
                    && before.config.idle_timeout == config.idle_timeout
                    && before.config.ping_interval == config.ping_interval =>
            {
                before.upstreams.clone()
            }
            before => (0..n_lanes.max(1))
                .map(|lane| {
                    let counts = before.and_then(|before| before.upstreams.get(lane));
                    let counts = counts.map(|before| before.counts.clone()).unwrap_or_default();
                    Upstream::new(handle.another(), wire.clone(), counts)
                })
                .collect(),
        };
        let (stale, sources) = match before {
            Some(before) => (before.stale.clone(), before.sources.clone()),
            None => Default::default(),
        };
        Ok(Backend { config: config.clone(), handle, upstreams, stale, sources })
    }

    /// The lane's own.
    pub fn upstream(&self, lane: usize) -> &Arc<Upstream> {
        &self.upstreams[lane]
    }

    /// No request comes by this any more, but those that are under way.
    pub fn close(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.close());
    }

    pub fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        self.upstreams.iter().for_each(|upstream| upstream.counts.add_to(&mut sums));
        sums
    }

    /// Makes the file's word the service's: to be called when the whole file has been accepted.
    pub fn enact(&self, closeness: &Closeness) {
        let handle = &self.handle;
        let now = handle.env().now();
        handle.lock().set(now, self.config.settings.clone(), closeness.clone());
        {
            let mut sources = self.sources.lock();
            sources.file = self.config.servers.clone();
            let mut before = std::mem::take(&mut sources.dns);
            sources.dns = self
                .config
                .dns
                .iter()
                .map(|source| {
                    let known = before.iter().position(|known| known.is(source));
                    match known.map(|idx| before.swap_remove(idx)) {
                        Some(known) => {
                            // No later than the new interval says.
                            let ask_at = known.ask_at.map(|at| at.min(now + source.interval));
                            Name { source: source.clone(), ask_at, ..known }
                        }
                        None => Name {
                            source: source.clone(),
                            addresses: Vec::new(),
                            ask_at: None,
                            is_being_asked: false,
                        },
                    }
                })
                .collect();
        }
        self.refresh();
    }

    fn refresh(&self) {
        let specs = self.sources.lock().all();
        let handle = &self.handle;
        handle.lock().fleet.set_servers(handle.env().now(), specs);
    }

    /// The API names a server. False: it was known already, with the same words.
    pub fn put_server(&self, spec: ServerSpec) -> bool {
        let old = self.sources.lock().api.insert(spec.address, spec.clone());
        self.refresh();
        old.as_ref() != Some(&spec)
    }

    /// Takes a server back that the API had named. False: it had not.
    pub fn delete_server(&self, address: SocketAddr) -> bool {
        let was = self.sources.lock().api.remove(&address).is_some();
        self.refresh();
        was
    }

    /// The names that are to be asked for now; each is told of with [`Backend::resolved`].
    pub fn names_due(&self, now: Instant) -> Vec<DnsSource> {
        let mut sources = self.sources.lock();
        let due = sources
            .dns
            .iter_mut()
            .filter(|name| !name.is_being_asked && name.ask_at.is_none_or(|at| now >= at));
        due.map(|name| {
            name.is_being_asked = true;
            name.source.clone()
        })
        .collect()
    }

    /// A name stands for these addresses now; none: nobody said, and it stands for what it did. A
    /// name that stands for nothing yet is asked for again soon.
    pub fn resolved(&self, now: Instant, source: &DnsSource, addresses: Option<Vec<SocketAddr>>) {
        {
            let mut sources = self.sources.lock();
            let Some(name) = sources.dns.iter_mut().find(|known| known.is(source)) else { return };
            name.is_being_asked = false;
            let interval = name.source.interval;
            match addresses {
                Some(addresses) => {
                    name.ask_at = Some(now + interval);
                    name.addresses = addresses;
                }
                None => {
                    let is_new = name.addresses.is_empty();
                    let pause = if is_new { ASK_AGAIN.min(interval) } else { interval };
                    name.ask_at = Some(now + pause);
                }
            }
        }
        self.refresh();
    }
}
