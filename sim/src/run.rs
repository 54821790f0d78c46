//! One seed of one scenario, from founding the cluster to the verdict.
//!
//! ```text
//!   found ─► lay out ─► storm (clients and faults) ─► faults end ─► heal ─► judge ─► compare
//! ```
//!
//! After the storm the cluster has two virtual minutes to serve again through every node; then
//! the workloads judge what they find, the nodes are stopped, and the replicas' trees are read
//! from end to end and compared.

use crate::cluster::{Cluster, Health};
use crate::machine::{clock, threads};
use crate::nemesis::Nemesis;
use crate::net::SimNet;
use crate::replicas;
use crate::scenario::{Plan, Scenario};
use crate::task;
use crate::workload;
use crate::world::{Dice, Telling, World};
use crate::year;
use base::{NodeId, TabletId};
use cluster::supervision::EXIT_HALTED;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A cluster that does not serve after this long without faults has not healed.
const HEALING: Duration = Duration::from_secs(120);
/// A judge that does not come to an end has found something that does not answer.
const JUDGING: Duration = Duration::from_secs(120);
/// A node that ended more often after the storm has data that it cannot start with.
const N_ENDS_MAX: u32 = 2;
/// One statement's answer, once nothing breaks any more.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const N_LAYINGS_OUT: usize = 200;
const LAYING_OUT: Duration = Duration::from_secs(60);
/// After the last change, until every follower has heard of it.
const SETTLING: Duration = Duration::from_secs(5);

/// What one run tells. Of the same seed, scenario and binary, always the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    pub seed: u64,
    pub scenario: String,
    pub violations: Vec<String>,
    /// What the scenario itself has to say.
    pub lines: Vec<String>,
    pub simulated_s: f64,
    pub n_events: u64,
    pub trace: u64,
    pub counts: BTreeMap<String, u64>,
}

/// Runs it, in the working directory. The calling thread becomes the machine's first; once a
/// process.
pub fn run(
    seed: u64,
    scenario: &Scenario,
    plan: Plan,
    is_loud: bool,
    trace_file: Option<i32>,
) -> Verdict {
    threads::begin(seed, trace_file);
    let telling = Telling::new(is_loud);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    match runtime {
        Ok(runtime) => {
            if let Err(error) = runtime.block_on(play(seed, plan, &telling)) {
                telling.wrong(error.to_string());
            }
            // Tasks that still wait for dead nodes are left where they are.
            std::mem::forget(runtime);
        }
        Err(error) => telling.wrong(format!("no runtime: {error}")),
    }
    let (trace, n_events) = threads::trace();
    Verdict {
        seed,
        scenario: scenario.name.into(),
        violations: telling.violations(),
        lines: telling.lines(),
        simulated_s: clock::now_ns() as f64 / 1e9,
        n_events,
        trace,
        counts: telling.counts(),
    }
}

async fn play(seed: u64, plan: Plan, telling: &Telling) -> anyhow::Result<()> {
    let net = SimNet::new(seed, plan.latency_ns);
    let notes = telling.clone();
    let cluster = Cluster::create(plan.shape, seed, net, move |text| notes.note(text))?;
    let world = World::new(seed, cluster.clone(), telling.clone());
    judge_panics(&world);
    world.note(format!("workloads: {}, storm: {:?}", plan.workloads.join(", "), plan.storm));
    let n_first = plan.shape.n_zones * plan.shape.n_per_zone;
    (0..n_first).for_each(|number| cluster.start(number));

    let mut dice = Dice::new(seed, "workloads", 0);
    let make = |name: &&str| workload::make(name, &mut dice);
    let workloads: Vec<Arc<dyn workload::Workload>> =
        plan.workloads.iter().filter_map(make).collect();
    if world.within(LAYING_OUT, lay_out(&world, &workloads)).await.is_none() {
        anyhow::bail!("a fresh cluster without faults took no tables for {LAYING_OUT:?}");
    }
    if world.has_failed() {
        return Ok(());
    }
    if plan.is_year {
        let sql = world.connect(0).await.map_err(anyhow::Error::msg)?;
        sql.batch_execute(year::LAY_OUT).await?;
    }

    world.note("the storm begins");
    let mut clients = Vec::new();
    for workload in &workloads {
        for number in 0..workload.n_clients() {
            let (workload, world) = (workload.clone(), world.clone());
            let life = async move { workload.client(&world.clone(), number).await };
            clients.push(task::spawn(life));
        }
    }
    if let Some(script) = plan.script {
        if let Err(what) = script.play(&world).await {
            world.wrong(format!("{script:?}: {what}"));
        }
        world.end_storm();
    } else if plan.is_year {
        year::live(&world, &mut world.dice("year", 0)).await;
        world.end_storm();
    } else {
        let nemesis = task::spawn(Nemesis::new(&world, plan.faults, plan.pace).run());
        let end = world.now() + plan.storm;
        while world.now() < end && !world.has_failed() {
            world.sleep(Duration::from_millis(500)).await;
        }
        world.end_storm();
        nemesis.abort();
    }
    world.note("the storm is over");
    if world.has_failed() {
        return Ok(());
    }
    end_faults(&world);
    let voters = tokio::select! {
        biased;
        never = keep_up(&world) => match never {},
        voters = come_to_rest(&world, clients, &workloads) => voters?,
    };
    let Some(voters) = voters else { return Ok(()) };
    let stop = |number| {
        let cluster = cluster.clone();
        task::spawn(async move { cluster.stop(number).await })
    };
    let stopping: Vec<_> = (0..cluster.nodes.len()).map(stop).collect();
    for stopped in stopping {
        stopped.await?;
    }
    let compared = replicas::compare(&cluster, &voters, world.damaged())?;
    world.count("nodes found damaged by the last scan", compared.n_damaged);
    world.count("replicas compared", compared.n_replicas);
    world.count("rows compared", compared.n_rows);
    tell_machine(&world);
    Ok(())
}

/// From the last fault until all replicas are the same, and whose they are; none when something
/// wrong was found before.
async fn come_to_rest(
    world: &World,
    clients: Vec<tokio::task::JoinHandle<()>>,
    workloads: &[Arc<dyn workload::Workload>],
) -> anyhow::Result<Option<BTreeMap<TabletId, Vec<NodeId>>>> {
    heal_and_judge(world, clients, workloads).await?;
    if world.has_failed() {
        return Ok(None);
    }
    world.sleep(SETTLING).await;
    match world.within(HEALING, converge(world)).await {
        Some(voters) => Ok(Some(voters)),
        None => {
            let condition = condition(world);
            anyhow::bail!(
                "some replica has not applied what the others have, {HEALING:?} later; {condition}"
            )
        }
    }
}

/// Whether it serves again, and then what the workloads find.
async fn heal_and_judge(
    world: &World,
    clients: Vec<tokio::task::JoinHandle<()>>,
    workloads: &[Arc<dyn workload::Workload>],
) -> anyhow::Result<()> {
    let waits_for = Mutex::new(String::new());
    if world.within(HEALING, heal(world, clients, &waits_for)).await.is_none() {
        let waits_for = waits_for.lock().clone();
        let condition = condition(world);
        show_cluster(world).await;
        anyhow::bail!("not healed {HEALING:?} after the last fault: {waits_for}; {condition}");
    }
    world.note("healed");
    for workload in workloads {
        match world.within(JUDGING, workload.judge(world)).await {
            Some(Ok(())) => {}
            Some(Err(what)) => world.wrong(format!("{}: {what}", workload.name())),
            None => world.wrong(format!("{}: no verdict in {JUDGING:?}", workload.name())),
        }
    }
    if world.has_failed() {
        show_cluster(world).await;
    }
    Ok(())
}

async fn lay_out(world: &World, workloads: &[Arc<dyn workload::Workload>]) {
    for workload in workloads {
        let mut tries = 0;
        loop {
            tries += 1;
            let laid = match world.connect(tries % world.cluster().shape.n_zones).await {
                Ok(sql) => workload.lay_out(&sql).await.map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            };
            match laid {
                Ok(()) => break,
                // A node or a leader that is not there yet; laying out may be begun again.
                Err(_) if tries < N_LAYINGS_OUT => {
                    world.sleep(Duration::from_millis(100)).await;
                }
                Err(reason) => {
                    world.wrong(format!("{} cannot be laid out: {reason}", workload.name()));
                    return;
                }
            }
        }
    }
}

fn end_faults(world: &World) {
    let cluster = world.cluster();
    cluster.net.heal_all();
    for node in &cluster.nodes {
        crate::machine::disk::set_faults(node.host, |faults| {
            *faults = crate::machine::disk::Faults::NONE;
        });
        cluster.pause(node.number, false);
        world.thaw(node.number);
        cluster.set_mishap(node.number, None);
        threads::set_turn(node.host, 0);
    }
}

/// A panic in a worker ends it as the product's own hook would; one that nobody ordered is a bug that
/// the run has found.
fn judge_panics(world: &World) {
    let cluster = world.cluster().clone();
    threads::on_bug(move || cluster.end_by_bug());
    base::rehearsal::rehearse(threads::is_mishap_due);
    let (world, as_usual) = (world.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        let cluster = world.cluster();
        let Some(number) = cluster.here() else { return as_usual(panic) };
        let ordered = panic.payload().downcast_ref::<&str>() == Some(&base::rehearsal::ON_PURPOSE);
        let costs = base::panics::costs_the_process();
        world.note(format!("node {}: {panic}", number + 1));
        world.count(
            if costs { "panics that cost a process" } else { "panics that cost a statement" },
            1,
        );
        // A tree's file is damaged, and its library asserts instead of saying so: the store takes that for an error.
        let of_damage = !costs && panic.location().is_some_and(|at| at.file().contains("lsm-tree"));
        if !ordered && !of_damage {
            world.wrong(format!("a bug in node {}: {panic}", number + 1));
        }
        if costs {
            cluster.end_by_bug();
        }
        world.lose_statement();
    }));
}

/// The operator after the storm: gives power back, starts what is down, and wipes a node that
/// ends again and again, whose data is what it says it is. A flipped bit is found when its block
/// is read, which may be while the judges read, or later, when the store is compacted.
async fn keep_up(world: &World) -> std::convert::Infallible {
    let cluster = world.cluster();
    let mut n_ends: BTreeMap<usize, u32> = BTreeMap::new();
    loop {
        for number in (0..cluster.nodes.len()).filter(|number| cluster.was_started(*number)) {
            match cluster.nodes[number].health() {
                Health::Dark => cluster.restore_power(number),
                Health::Down => cluster.start(number),
                Health::Exited(code) => {
                    let n = n_ends.entry(number).or_default();
                    *n += 1;
                    let is_damaged = code == EXIT_HALTED && world.damaged() == Some(number);
                    if is_damaged || *n > N_ENDS_MAX {
                        world.note(format!("node {}: wiped after code {code}", number + 1));
                        world.count("nodes wiped for damage", 1);
                        if let Err(error) = cluster.wipe(number) {
                            world.wrong(format!("cannot wipe: {error}"));
                        }
                    }
                    cluster.start(number);
                }
                Health::Up | Health::Paused | Health::Frozen => {}
            }
        }
        world.sleep(Duration::from_secs(1)).await;
    }
}

/// Until every node serves and every tablet is whole.
async fn heal(world: &World, clients: Vec<tokio::task::JoinHandle<()>>, waits_for: &Mutex<String>) {
    let cluster = world.cluster();
    for (number, client) in clients.into_iter().enumerate() {
        *waits_for.lock() = format!("client {number} does not end");
        // A client that panicked has told so on standard error.
        if client.await.is_err() {
            world.wrong("a client of the simulation panicked");
        }
    }
    for number in (0..cluster.nodes.len()).filter(|number| cluster.was_started(*number)) {
        while let Err(reason) = serves(world, number).await {
            *waits_for.lock() = format!("node {} does not serve: {reason}", number + 1);
            world.sleep(Duration::from_millis(500)).await;
        }
    }
    while let Err(reason) = is_complete(world).await {
        *waits_for.lock() = reason;
        world.sleep(Duration::from_millis(500)).await;
    }
}

async fn serves(world: &World, number: usize) -> Result<(), String> {
    let sql = world.connect(number).await?;
    let write = "CREATE TABLE IF NOT EXISTS healed (node bigint PRIMARY KEY, n bigint)";
    let upsert = format!(
        "INSERT INTO healed VALUES ({number}, 1) ON CONFLICT (node) DO UPDATE SET n = healed.n + 1"
    );
    let works = async {
        sql.batch_execute(write).await?;
        sql.batch_execute(&upsert).await
    };
    answered(world.within(ANSWER_MAX, works).await)
}

fn answered<T>(answer: Option<Result<T, tokio_postgres::Error>>) -> Result<T, String> {
    match answer {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => Err(error
            .as_db_error()
            .map_or_else(|| error.to_string(), |error| format!("{} {error}", error.code().code()))),
        None => Err(format!("no answer in {ANSWER_MAX:?}")),
    }
}

/// Whether every tablet has a replica in every zone, all of them on nodes that are up.
async fn is_complete(world: &World) -> Result<(), String> {
    let sql = world.connect(0).await?;
    let look = async {
        let nodes = sql.query("SELECT id FROM atoll.nodes WHERE state = 'up'", &[]).await?;
        let up: Vec<String> = nodes.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
        let tablets = sql.query("SELECT id, replicas, leader FROM atoll.tablets", &[]).await?;
        Ok((up, tablets))
    };
    let (up, tablets) = answered(world.within(ANSWER_MAX, look).await)?;
    let n_zones = world.cluster().shape.n_zones;
    for row in tablets {
        let (id, replicas, leader): (i64, &str, Option<i64>) = (row.get(0), row.get(1), row.get(2));
        let ids: Vec<&str> = replicas.split(',').collect();
        let all_up = ids.iter().all(|id| up.iter().any(|up| up == id));
        if ids.len() != n_zones || !all_up || leader.is_none() {
            return Err(format!(
                "tablet {id} has replicas on {replicas} and leader {leader:?}, up are {up:?}"
            ));
        }
    }
    Ok(())
}

/// Until all voters of every tablet have applied the same; returns them.
async fn converge(world: &World) -> BTreeMap<TabletId, Vec<NodeId>> {
    let cluster = world.cluster();
    loop {
        let mut applied: BTreeMap<(TabletId, NodeId), u64> = BTreeMap::new();
        let mut voters: BTreeMap<TabletId, Vec<NodeId>> = BTreeMap::new();
        for number in 0..cluster.nodes.len() {
            // Of a node that does not answer nothing is known, and its tablets do not agree.
            let groups = cluster.standings(number).await.unwrap_or_default();
            let Some(id) = cluster.id(number) else { continue };
            for group in groups {
                applied.insert((group.tablet, id), group.applied);
                if group.is_led_here {
                    voters.insert(group.tablet, group.voters);
                }
            }
        }
        let is_one = |(tablet, voters): (&TabletId, &Vec<NodeId>)| {
            let mut all = voters.iter().map(|id| applied.get(&(*tablet, *id)));
            let first = all.next().flatten();
            first.is_some() && all.all(|other| other == first)
        };
        let is_led = |(tablet, _): &(TabletId, NodeId)| voters.contains_key(tablet);
        if applied.keys().all(is_led) && voters.iter().all(is_one) {
            return voters;
        }
        world.sleep(Duration::from_millis(200)).await;
    }
}

fn condition(world: &World) -> String {
    let nodes = world.cluster().nodes.iter();
    let words: Vec<String> =
        nodes.map(|node| format!("node {} is {:?}", node.number + 1, node.health())).collect();
    words.join(", ")
}

/// What the cluster says of itself, for the timeline of a run that has failed.
async fn show_cluster(world: &World) {
    for number in 0..world.n_nodes() {
        world.note(format!("as node {} sees it:", number + 1));
        let Ok(sql) = world.connect(number).await else { continue };
        for query in [
            "SELECT * FROM atoll.nodes",
            "SELECT id, leader, replicas, term, applied_index FROM atoll.tablets",
            "SELECT * FROM atoll.locks",
            "SELECT * FROM atoll.transactions WHERE state NOT IN ('committed', 'aborted')",
        ] {
            let answer = answered(world.within(ANSWER_MAX, sql.simple_query(query)).await);
            match answer {
                Ok(rows) => rows.iter().for_each(|message| {
                    if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                        let cells = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL"));
                        world.note(format!("    {}", cells.collect::<Vec<_>>().join(" | ")));
                    }
                }),
                Err(reason) => world.note(format!("    {query}: {reason}")),
            }
        }
    }
}

fn tell_machine(world: &World) {
    let net = world.cluster().net.counts();
    for (what, n) in [
        ("connections", net.n_connections),
        ("pieces sent", net.n_pieces),
        ("bytes of replicas sent", net.n_snapshot_bytes),
        ("frames flipped", net.n_flipped),
        ("frames repeated", net.n_repeated),
        ("frames swapped", net.n_swapped),
        ("frames dropped", net.n_dropped),
        ("frames truncated", net.n_truncated),
    ] {
        world.count(what, n);
    }
    for node in &world.cluster().nodes {
        let disk = crate::machine::disk::counts(node.host);
        for (what, n) in [
            ("syncs", disk.n_syncs),
            ("syncs failed", disk.n_failed_syncs),
            ("writes refused", disk.n_refused_writes),
            ("writes lost", disk.n_lost_writes),
            ("writes torn", disk.n_torn_writes),
        ] {
            world.count(what, n);
        }
    }
}
