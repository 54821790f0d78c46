//! What a client's connection is served with.

use crate::config::Limits;
use crate::front::answer::Reader;
use crate::front::proxy::Client;
use crate::front::pulse::Pulse;
use crate::gateway::Gateway;
use base::env::Env;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// One client's requests.
#[derive(Clone)]
pub struct Requests {
    pub gateway: Arc<Gateway>,
    pub client: Client,
    /// HTTP/2: the watch over the request that was begun last, for the task that serves it.
    pub begun: Arc<Mutex<Option<Arc<Reader>>>>,
}

/// What a connection is served with.
pub struct Serving {
    pub gateway: Arc<Gateway>,
    pub env: Env,
    pub limits: Limits,
    pub pulse: Arc<Pulse>,
}

impl Serving {
    /// How much longer the connection may stay as it is; counts it when that is over.
    pub fn left(&self) -> Option<Duration> {
        let left = self.pulse.left(&self.limits);
        if left.is_none() {
            self.gateway.counters.n_stood_still.fetch_add(1, Relaxed);
        }
        left
    }
}
