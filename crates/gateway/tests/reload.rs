//! What another file changes, and what it leaves as it was. Time is virtual.

mod support;

use base::env::{Listener, MemoryNet, Net, Pending, Stream};
use gateway::balance::health::Reason;
use gateway::upkeep;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{World, handler, says};

/// A network on which every name stands for `10.0.0.1`, where names are known at all.
#[derive(Default)]
struct NamedNet {
    net: MemoryNet,
    is_dumb: AtomicBool,
    n_asked: AtomicUsize,
}

impl Net for NamedNet {
    fn connect(&self, to: SocketAddr) -> Pending<'_, Stream> {
        self.net.connect(to)
    }

    fn listen(&self, at: SocketAddr) -> Pending<'_, Box<dyn Listener>> {
        self.net.listen(at)
    }

    fn lookup<'a>(&'a self, _: &'a str, port: u16) -> Pending<'a, Vec<SocketAddr>> {
        self.n_asked.fetch_add(1, SeqCst);
        let answer = match self.is_dumb.load(SeqCst) {
            true => Err(io::Error::other("nobody knows")),
            false => Ok(vec![SocketAddr::from(([10, 0, 0, 1], port))]),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn named(interval: &str, zone: &str) -> String {
    format!(
        r#"
        zone = "a"
        listen = "127.0.0.1:1"
        routes = [{{ service = "web" }}]
        [services.web]
        dns = [{{ name = "web.internal", port = 1, zone = "{zone}", interval = "{interval}" }}]
        [services.other]
        servers = ["10.0.0.1:9"]
        "#
    )
}

#[tokio::test(start_paused = true)]
async fn a_name_keeps_what_it_stands_for_whatever_else_is_said_of_it() {
    let net = Arc::<NamedNet>::default();
    let world = World::on(net.clone(), &named("1h", "a"));
    upkeep::start(&world.gateway);
    world.server(1, handler(|_| async { says("served") })).await;
    let soon = || tokio::time::sleep(Duration::from_millis(300));
    soon().await;
    assert_eq!(world.client().await.get("/").await.0, 200);
    net.is_dumb.store(true, SeqCst);
    for (interval, zone) in [("2h", "a"), ("2h", "b"), ("10m", "b")] {
        world.reload(&named(interval, zone));
        assert_eq!(world.client().await.get("/").await.0, 200, "{interval} {zone}");
        let state = world.gateway.state();
        let service = state.backends["web"].handle.lock();
        let zones: Vec<&str> = service.fleet.zones().map(|zone| zone.name.as_str()).collect();
        assert_eq!(zones, [zone]);
    }
    assert_eq!(net.n_asked.load(SeqCst), 1, "nobody needed to ask");
    tokio::time::sleep(Duration::from_secs(660)).await;
    assert_eq!(net.n_asked.load(SeqCst), 2, "the new interval counts from the reload on");
}

#[tokio::test(start_paused = true)]
async fn what_is_new_is_asked_for_at_once_and_again_soon() {
    let net = Arc::<NamedNet>::default();
    net.is_dumb.store(true, SeqCst);
    let world = World::on(net.clone(), &named("1h", "a"));
    upkeep::start(&world.gateway);
    world.server(1, handler(|_| async { says("served") })).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.client().await.get("/").await.0, 503);
    net.is_dumb.store(false, SeqCst);
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert_eq!(
        world.client().await.get("/").await.0,
        200,
        "an hour is too long for a first answer"
    );

    // A service that leaves and returns is new.
    let without = r#"
        listen = "127.0.0.1:1"
        [services.other]
        servers = ["10.0.0.1:9"]
    "#;
    world.reload(without);
    world.reload(&named("1h", "a"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.client().await.get("/").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_moves_to_another_zone_is_the_same_server() {
    let config = |zone: &str| {
        format!(
            "zone = \"a\"\nlisten = \"127.0.0.1:1\"\n[services.web]\nservers = \
             [\"{zone}=10.0.0.1:1\", \"a=10.0.0.1:2\"]\n"
        )
    };
    let world = World::new(&config("a"));
    let slow = handler(|_| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        says("")
    });
    world.server(2, slow).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = world.client().await;
        clients.push(world.env.spawn("client", async move {
            assert_eq!(client.get("/").await.0, 200);
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.out(1), Some(Reason::Unreachable));
    world.reload(&config("b"));
    assert_eq!(world.out(1), Some(Reason::Unreachable), "it is not there in b either");
    world.reload(&config("b").replace("a=10.0.0.1:2", "c=10.0.0.1:2"));
    for client in clients {
        client.await.unwrap();
    }
    let state = world.gateway.state();
    let service = state.backends["web"].handle.lock();
    for zone in service.fleet.zones() {
        assert_eq!((zone.n_in_flight, zone.n_waiting), (0, 0), "{}", zone.name);
    }
}
