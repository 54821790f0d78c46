//! The first year of a Google cluster, as Jeff Dean lists it, for a cluster of Atoll.
//!
//! The list ("Software Engineering Advice from Building Large-Scale Distributed Systems",
//! Stanford, 2007) is of 1,800 machines in racks of about sixty. Here each machine stands in a
//! rack of its own, and what befalls a machine, a disk or a rack befalls one as often as there; what
//! befalls the whole cluster happens as often as there.
//!
//! ```text
//!   0.5  overheating       most machines go down within minutes, 1 to 2 days
//!   1    PDU failure       a third to a half of the machines, 6 hours
//!   1    rack move         the same, but announced: node after node is stopped, 6 hours
//!   1    rewiring          5 % of the machines at a time, over 2 days
//!   20   rack failures     1 to 6 hours          5  racks with half of their packets lost
//!   8    maintenances      4 of them cost connections for half an hour
//!   12   router reloads    2 minutes             3  router failures, an hour
//!   dozens of blips of 30 seconds, 1,000 machine failures, thousands of disk failures
//! ```
//!
//! Between two events nothing is simulated, and outages are shortened to a minute: what costs
//! availability is the change, not the waiting. Where an outage takes a majority away, what is
//! unavailable beyond the first ten seconds is counted as long as the outage would have been.
//!
//! Unavailable means: a client that may ask any node, with a second's patience each, did not get a
//! write acknowledged.

use crate::machine::disk;
use crate::task;
use crate::world::{CLIENTS, Dice, World};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MACHINES: f64 = 1_800.0;
const RACKS: f64 = 30.0;
const MINUTES_A_YEAR: f64 = 365.0 * 24.0 * 60.0;
/// The longest stand-in for an outage, and the quiet after each event.
const OUTAGE_MAX: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(15);
/// A change that takes no majority away is over after this long; what goes on is the outage itself.
const CHANGE_MAX: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_millis(200);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Overheating,
    PduFailure,
    RackMove,
    Rewiring,
    RackFailure,
    LossyRack,
    Maintenance,
    RouterReload,
    RouterFailure,
    Blip,
    MachineFailure,
    DiskFailure,
}

use What::*;

/// What happens, how often a year to whom, and for how many minutes.
const YEAR: [(What, &str, f64, Scope, f64); 12] = [
    (Overheating, "overheating", 0.5, Scope::Cluster, 36.0 * 60.0),
    (PduFailure, "PDU failure", 1.0, Scope::Cluster, 6.0 * 60.0),
    (RackMove, "rack move", 1.0, Scope::Cluster, 6.0 * 60.0),
    (Rewiring, "rewiring", 1.0, Scope::Cluster, 48.0 * 60.0),
    (RackFailure, "rack failure", 20.0, Scope::Rack, 3.0 * 60.0),
    (LossyRack, "rack with half of its packets lost", 5.0, Scope::Rack, 60.0),
    (Maintenance, "network maintenance", 4.0, Scope::Cluster, 30.0),
    (RouterReload, "router reload", 12.0, Scope::Cluster, 2.0),
    (RouterFailure, "router failure", 3.0, Scope::Cluster, 60.0),
    (Blip, "blip", 36.0, Scope::Cluster, 0.5),
    (MachineFailure, "machine failure", 1_000.0, Scope::Machine, 6.0 * 60.0),
    (DiskFailure, "disk failure", 3_000.0, Scope::Machine, 60.0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Rack,
    Machine,
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    cause: Option<usize>,
    /// Real time for each simulated second of the outage that is on.
    stretch: f64,
    unavailable_s: BTreeMap<usize, f64>,
    longest_s: f64,
    n_probes: u64,
}

/// Lives through the year; tells the counts and the availability.
pub async fn live(world: &World, seed_dice: &mut Dice) {
    let seen = Arc::new(Mutex::new(Seen { stretch: 1.0, ..Seen::default() }));
    let prober = task::spawn(probe(world.clone(), seen.clone()));
    let events = calendar(world.n_nodes() as f64, seed_dice);
    world.note(format!("{} events in this year", events.len()));
    for (n, event) in events.iter().enumerate() {
        if !world.storming() || world.has_failed() {
            break;
        }
        let (_, name, .., minutes) = YEAR[*event];
        let outage = OUTAGE_MAX.min(Duration::from_secs_f64(minutes * 60.0));
        {
            let mut seen = seen.lock();
            seen.cause = Some(*event);
            seen.stretch = minutes * 60.0 / outage.as_secs_f64();
        }
        world.note(format!("event {} of {}: {name}", n + 1, events.len()));
        world.count(&format!("year: {name}"), 1);
        befall(world, YEAR[*event].0, outage, seed_dice).await;
        world.sleep(QUIET).await;
    }
    prober.abort();
    let seen = seen.lock();
    let total_s: f64 = seen.unavailable_s.values().sum();
    for (event, unavailable_s) in &seen.unavailable_s {
        world.tell(format!(
            "{:>9.2} minutes unavailable by {}",
            unavailable_s / 60.0,
            YEAR[*event].1
        ));
    }
    let availability = 100.0 * (1.0 - total_s / 60.0 / MINUTES_A_YEAR);
    world.tell(format!("{:>9.2} minutes unavailable in the year", total_s / 60.0));
    world.tell(format!("{:>9.2} seconds was the longest change", seen.longest_s));
    world.tell(format!("{availability:>9.5} % available"));
    world.count("probes", seen.n_probes);
}

/// The year's events in the order in which they come.
fn calendar(n_machines: f64, dice: &mut Dice) -> Vec<usize> {
    let mut events = Vec::new();
    for (number, (_, _, a_year, scope, _)) in YEAR.iter().enumerate() {
        let expected = match scope {
            Scope::Cluster => *a_year,
            Scope::Rack => a_year / RACKS * n_machines,
            Scope::Machine => a_year / MACHINES * n_machines,
        };
        // What is left of a whole event comes with that chance.
        let mut n = expected as usize;
        n += usize::from(dice.below(1_000) < (expected.fract() * 1_000.0) as u64);
        events.extend(std::iter::repeat_n(number, n));
    }
    for at in (1..events.len()).rev() {
        events.swap(at, dice.below(at as u64 + 1) as usize);
    }
    events
}

async fn befall(world: &World, what: What, outage: Duration, dice: &mut Dice) {
    let cluster = world.cluster().clone();
    let n_nodes = world.n_nodes();
    let zone_of = |node: usize| cluster.nodes[node].zone;
    let one = dice.below(n_nodes as u64) as usize;
    let zone: Vec<usize> = (0..n_nodes).filter(|node| zone_of(*node) == zone_of(one)).collect();
    match what {
        Overheating => {
            // Most of them: two zones of three.
            let spared = zone_of(one);
            let most: Vec<usize> = (0..n_nodes).filter(|node| zone_of(*node) != spared).collect();
            for node in &most {
                cluster.cut_power(*node);
                world.sleep(Duration::from_secs(2)).await;
            }
            world.sleep(outage).await;
            most.iter().for_each(|node| cluster.restore_power(*node));
        }
        PduFailure => {
            zone.iter().for_each(|node| cluster.cut_power(*node));
            world.sleep(outage).await;
            zone.iter().for_each(|node| cluster.restore_power(*node));
        }
        RackMove => {
            for node in &zone {
                cluster.stop(*node).await;
            }
            world.sleep(outage).await;
            zone.iter().for_each(|node| cluster.start(*node));
        }
        Rewiring => {
            for node in 0..n_nodes {
                cluster.stop(node).await;
                world.sleep(outage / n_nodes as u32).await;
                cluster.start(node);
                world.sleep(Duration::from_secs(5)).await;
            }
        }
        RackFailure | MachineFailure => {
            cluster.cut_power(one);
            world.sleep(outage).await;
            cluster.restore_power(one);
        }
        LossyRack => {
            let loses = |a: IpAddr, b: IpAddr, percent: u64| {
                cluster.net.set_link(a, b, |link| link.loss_percent = percent);
                cluster.net.set_link(b, a, |link| link.loss_percent = percent);
            };
            let ip = cluster.nodes[one].ip;
            let others = || cluster.nodes.iter().map(|node| node.ip).chain([CLIENTS]);
            others().filter(|other| *other != ip).for_each(|other| loses(ip, other, 50));
            world.sleep(outage).await;
            others().filter(|other| *other != ip).for_each(|other| loses(ip, other, 0));
        }
        Maintenance => {
            let end = world.now() + outage;
            while world.now() < end {
                let (a, b) = (one, dice.below(n_nodes as u64) as usize);
                let (a, b) = (cluster.nodes[a].ip, cluster.nodes[b].ip);
                if a != b {
                    cut(world, &[(a, b)], true);
                    world.sleep(Duration::from_secs(2 + dice.below(6))).await;
                    cut(world, &[(a, b)], false);
                }
                world.sleep(Duration::from_secs(1)).await;
            }
        }
        // Clients do not reach a zone, which itself is well.
        RouterReload | Blip => {
            let pairs: Vec<_> =
                zone.iter().map(|node| (cluster.nodes[*node].ip, CLIENTS)).collect();
            cut(world, &pairs, true);
            world.sleep(outage).await;
            cut(world, &pairs, false);
        }
        RouterFailure => {
            let mut pairs = Vec::new();
            for a in &zone {
                for b in (0..n_nodes).filter(|b| !zone.contains(b)) {
                    pairs.push((cluster.nodes[*a].ip, cluster.nodes[b].ip));
                }
                pairs.push((cluster.nodes[*a].ip, CLIENTS));
            }
            cut(world, &pairs, true);
            world.sleep(outage).await;
            cut(world, &pairs, false);
        }
        DiskFailure => {
            cluster.kill_node(one);
            if let Err(error) = disk::wipe(cluster.nodes[one].host) {
                world.wrong(format!("a disk cannot be replaced: {error}"));
            }
            world.sleep(outage / 4).await;
            cluster.start(one);
            // The refill is over when the next failure may come: a person waits for it too.
            world.sleep(outage / 2).await;
        }
    }
}

fn cut(world: &World, pairs: &[(IpAddr, IpAddr)], is_cut: bool) {
    for (a, b) in pairs {
        world.cluster().net.set_link(*a, *b, |link| link.is_cut = is_cut);
        world.cluster().net.set_link(*b, *a, |link| link.is_cut = is_cut);
    }
}

/// Writes something five times a second, through whichever node takes it.
async fn probe(world: World, seen: Arc<Mutex<Seen>>) {
    let mut sessions: Vec<Option<tokio_postgres::Client>> = Vec::new();
    sessions.resize_with(world.n_nodes(), || None);
    let mut last = world.now();
    let mut next = 0;
    loop {
        world.sleep(PROBE_EVERY).await;
        let write =
            "INSERT INTO probes VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = probes.n + 1";
        let mut served = false;
        for step in 0..sessions.len() {
            let node = (next + step) % sessions.len();
            let session = &mut sessions[node];
            let asked = async {
                if session.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                    *session = world.connect(node).await.ok();
                }
                match session {
                    Some(sql) => sql.batch_execute(write).await.is_ok(),
                    None => false,
                }
            };
            if world.within(PROBE_PATIENCE, asked).await == Some(true) {
                served = true;
                next = node;
                break;
            }
            *session = None;
        }
        let now = world.now();
        let mut seen = seen.lock();
        seen.n_probes += 1;
        if served {
            let gap = now.saturating_sub(last);
            // One probe that had to ask a second node is no outage.
            if gap > PROBE_PATIENCE + PROBE_EVERY
                && let Some(cause) = seen.cause
            {
                let change = gap.min(CHANGE_MAX).as_secs_f64();
                let outage = gap.saturating_sub(CHANGE_MAX).as_secs_f64() * seen.stretch;
                *seen.unavailable_s.entry(cause).or_default() += change + outage;
                if gap < CHANGE_MAX {
                    seen.longest_s = seen.longest_s.max(change);
                }
                world.note(format!("nothing was written for {:.1} s", gap.as_secs_f64()));
            }
            last = now;
        }
    }
}

/// The table that [`live`] writes to.
pub const LAY_OUT: &str = "CREATE TABLE IF NOT EXISTS probes (id bigint PRIMARY KEY, n bigint)";
