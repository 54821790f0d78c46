//! What goes on beside the requests: looks at servers, names that are asked again, connections
//! that have been idle for long, and what a person on call should read.

use crate::backend::Backend;
use crate::balance::{Check, CheckKind, Event};
use crate::call::{Handle, SendError};
use crate::config::DnsSource;
use crate::gateway::Gateway;
use crate::http::pool;
use crate::isolate::breaker;
use base::env::Env;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use crate::balance::fleet::STEP;

/// Starts the tasks; they end with the process.
pub fn start(gateway: &Arc<Gateway>) {
    let this = gateway.clone();
    gateway.env().spawn("upkeep", async move {
        let mut breakers = BTreeMap::new();
        loop {
            let state = this.state();
            for (name, backend) in &state.backends {
                look_after(this.env(), name, backend, &mut breakers);
                ask_names(this.env(), backend);
            }
            if let Some(traces) = &state.traces {
                traces.step(this.env());
            }
            this.env().sleep(STEP).await;
        }
    });
}

fn look_after(
    env: &Env,
    name: &str,
    backend: &Arc<Backend>,
    breakers: &mut BTreeMap<String, breaker::State>,
) {
    let handle = &backend.handle;
    let checks = step(handle);
    backend.upstreams.iter().for_each(|upstream| upstream.sweep(env.now()));
    let breaker = handle.lock().breaker.state();
    let before = breakers.insert(name.to_owned(), breaker);
    if before.is_some_and(|before| before != breaker) {
        match breaker {
            breaker::State::Open => tracing::warn!(service = name, "the breaker opened"),
            breaker::State::HalfOpen => tracing::info!(service = name, "the breaker lets some try"),
            breaker::State::Closed => tracing::info!(service = name, "the breaker closed"),
        }
    }
    for check in checks {
        let (world, backend) = (env.clone(), backend.clone());
        env.spawn("check", async move {
            let begun = world.now();
            let looked = world.timeout(check.timeout, look_at(&world, &backend, &check)).await;
            let now = world.now();
            let fleet = &mut backend.handle.lock().fleet;
            match looked {
                Some(Looked::Well) => {
                    let took = now.saturating_duration_since(begun);
                    fleet.checked(now, &check, Some(took));
                }
                Some(Looked::NotReached) if check.kind == CheckKind::Sign => {
                    fleet.not_reached(now, &check);
                }
                Some(Looked::Unwell | Looked::NotReached) | None => {
                    fleet.checked(now, &check, None)
                }
                Some(Looked::Unknown) => fleet.not_looked(&check),
            }
        });
    }
}

/// How long it took for a look at a server to go well; none: it did not.
pub async fn timed(env: &Env, look: impl Future<Output = bool>) -> Option<Duration> {
    let begun = env.now();
    look.await.then(|| env.now().saturating_duration_since(begun))
}

/// What a look at a server showed.
enum Looked {
    Well,
    Unwell,
    NotReached,
    /// The look could not be taken, for want of something here.
    Unknown,
}

async fn look_at(env: &Env, backend: &Backend, check: &Check) -> Looked {
    let address = check.attempt.address;
    let upstream = backend.upstream(0);
    let looked = match &check.kind {
        CheckKind::Connect => match env.net().connect(address).await {
            Ok(_) => Ok(true),
            Err(error) => Err(SendError::from(pool::no_connection(&error))),
        },
        CheckKind::Ask(check) => upstream.is_well(env, address, check).await,
        CheckKind::Sign => upstream.sign(env, address).await.map(|()| true),
    };
    match looked {
        Ok(true) => Looked::Well,
        Err(SendError::Own(_)) => Looked::Unknown,
        Err(SendError::Unreachable(_)) => Looked::NotReached,
        Ok(false) | Err(_) => Looked::Unwell,
    }
}

/// Time passes for the service; what it wants to be looked at, and says what happened.
pub fn step(handle: &Handle) -> Vec<Check> {
    let now = handle.env().now();
    let (checks, events) = {
        let mut service = handle.lock();
        service.fleet.step(now);
        (service.fleet.checks_due(now), service.fleet.take_events())
    };
    for event in &events {
        say(&handle.name, event);
    }
    checks
}

fn say(service: &str, event: &Event) {
    match event {
        Event::Out { address, zone, reason } => {
            let reason = reason.name();
            tracing::warn!(service, %address, zone, reason, "a server is out");
        }
        Event::Back { address, zone } => {
            tracing::info!(service, %address, zone, "a server is back");
        }
        Event::Left { zone } => tracing::warn!(service, zone, "leaving a zone"),
        Event::Returned { zone } => tracing::info!(service, zone, "returning to a zone"),
        Event::Panic => tracing::error!(
            service,
            "most servers look bad: their health is ignored, all get requests"
        ),
        Event::Calm => tracing::info!(service, "enough servers look well again"),
    }
}

/// Names that are due are asked for; who does not answer keeps the addresses it had.
fn ask_names(env: &Env, backend: &Arc<Backend>) {
    for source in backend.names_due(env.now()) {
        let (world, backend) = (env.clone(), backend.clone());
        env.spawn("names", async move { ask_name(&world, &backend, &source).await });
    }
}

async fn ask_name(env: &Env, backend: &Backend, source: &DnsSource) {
    let asked = env.timeout(Duration::from_secs(5), env.net().lookup(&source.name, source.port));
    let service = &*backend.handle.name;
    let addresses = match asked.await {
        Some(Ok(addresses)) if !addresses.is_empty() => Some(addresses),
        Some(Ok(_)) => {
            tracing::warn!(service, name = source.name, "the name has no address");
            None
        }
        Some(Err(error)) => {
            tracing::warn!(service, name = source.name, %error, "no answer");
            None
        }
        None => {
            tracing::warn!(service, name = source.name, "no answer within 5 s");
            None
        }
    };
    backend.resolved(env.now(), source, addresses);
}
