//! Schedules that chance does not deal: one message held where it hurts, step by step.
//!
//! A script is a run like any other, with its own few statements in the place of workloads and
//! faults: the cluster is founded before it, and healed, judged and compared after it. It looks at
//! what happens and goes on when that has come about; where it counts seconds they are the product's
//! own. One that does not come about as written fails, so that it does not fall asleep.
//!
//! Absent: dice. The seed still deals the threads' turns and the messages' ways.

use crate::cluster::Ask;
use crate::task;
use crate::world::World;
use base::{NodeId, TabletId};
use std::time::Duration;
use tokio_postgres::Client;
use transport::MessageKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    LateCommit,
}

impl Script {
    pub async fn play(self, world: &World) -> Result<(), String> {
        match self {
            Script::LateCommit => late_commit(world).await,
        }
    }
}

const MS: u64 = 1_000_000;
const LOOK: Duration = Duration::from_millis(1);
/// What should come about does within this time.
const SOON: Duration = Duration::from_secs(20);
/// A message is there long before, and a task has had its turn.
const ARRIVES: Duration = Duration::from_millis(200);
/// The product's: a split waits so long for commits under way.
const SPLIT_WAITS: Duration = Duration::from_secs(5);

/// A commit waits at its tablet's leader, its coordinator loses the connection, asks how it ended, and
/// tells its client "aborted". The leader must not carry it out afterwards, though it is still there.
///
/// ```text
/// node 1   the root's leader           | nothing comes through from node 2: X draws no number
/// node 2   the tablet's leader    X marked, a split waits for it, Y's commit waits for the split
/// node 3   Y's coordinator             | reset: it asks; its answer on the way back, it is cut off,
///                                      | so that it cannot give Y's locks back either
/// after 5 s the split gives up, and Y's commit goes on: it must find that Y was told "aborted"
/// ```
async fn late_commit(world: &World) -> Result<(), String> {
    let cluster = world.cluster();
    let ip = |number: usize| cluster.nodes[number].ip;
    let cut = |from: usize, to: usize, is_cut: bool| {
        cluster.net.set_link(ip(from), ip(to), |link| link.is_cut = is_cut);
    };
    let (root, leader, coordinator) = (0, 1, 2);
    let sql = connect(world, coordinator).await?;
    let lay_out = "CREATE TABLE late (k bigint PRIMARY KEY, v bigint NOT NULL);
                   INSERT INTO late VALUES (1, 0), (2, 0)";
    sql.batch_execute(lay_out).await.map_err(text)?;
    lead(world, TabletId::ROOT, root).await?;
    lead(world, TabletId::FIRST_DATA, leader).await?;
    let others = [connect(world, leader).await?, connect(world, root).await?];
    for client in [&sql, &others[0], &others[1]] {
        // So that definitions are known, and routes.
        client.batch_execute("UPDATE late SET v = v").await.map_err(text)?;
    }
    let [at_leader, splitter] = others;

    sql.batch_execute("BEGIN; UPDATE late SET v = 1 WHERE k = 1").await.map_err(text)?;
    cut(leader, root, true);
    task::spawn(async move {
        // X. Its number comes when the link is back.
        at_leader.batch_execute("UPDATE late SET v = 1 WHERE k = 2").await.ok();
    });
    until(world, "X is being committed", || is_committing(world, coordinator)).await?;
    let split_begins = world.now();
    task::spawn(async move {
        // By the node that gets no answers from there, and so does not ask again.
        splitter.batch_execute("ALTER TABLE late SPLIT AT VALUES (100)").await.ok();
    });
    world.sleep(ARRIVES).await;
    let commit = {
        let world = world.clone();
        async move {
            let told = sql.batch_execute("COMMIT").await;
            world.note(format!("Y's client is told {told:?}"));
            told
        }
    };
    let mut commit = std::pin::pin!(commit);
    let steps = async {
        // So late that the leader, which then hears from nobody, still leads when the split gives up.
        world.sleep(SPLIT_WAITS - Duration::from_millis(900)).await;
        cluster.net.set_link(ip(leader), ip(coordinator), |link| {
            link.latency_ns = (100 * MS, 100 * MS);
        });
        cluster.net.watch(ip(leader), ip(coordinator), MessageKind::Tablet);
        cluster.net.reset(ip(leader), ip(coordinator));
        until(world, "the answer is under way", async || cluster.net.n_watched() > 0).await?;
        cut(coordinator, leader, true);
        Ok::<(), String>(())
    };
    let told = tokio::select! {
        biased;
        told = &mut commit => return Err(format!("Y ended before it was asked about: {told:?}")),
        done = steps => {
            done?;
            let told = world.within(SOON, commit).await;
            told.ok_or("Y's client is told nothing")?
        }
    };
    let Err(refused) = told else { return Err("Y was committed".into()) };
    let state = refused.as_db_error().map(|error| error.code().code().to_owned());
    let unheld = split_begins + SPLIT_WAITS + ARRIVES;
    if state.as_deref() != Some("40001") || world.now() > split_begins + SPLIT_WAITS {
        return Err(format!("Y's client was told {refused:?}, which is not the story"));
    }
    world.sleep(unheld - world.now()).await;
    cluster.net.heal_all();
    until(world, "all is ended", async || !is_committing(world, coordinator).await).await?;
    for number in [root, leader, coordinator] {
        let sql = connect(world, number).await?;
        let rows = sql.query("SELECT v FROM late ORDER BY k", &[]).await.map_err(text)?;
        let values: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        if values != [0, 1] {
            let number = number + 1;
            return Err(format!("Y was refused, and node {number} reads {values:?}, not [0, 1]"));
        }
    }
    Ok(())
}

fn text(error: tokio_postgres::Error) -> String {
    format!("{error:?}")
}

async fn connect(world: &World, number: usize) -> Result<Client, String> {
    let end = world.now() + SOON;
    loop {
        match world.connect(number).await {
            Ok(sql) => return Ok(sql),
            Err(reason) if world.now() > end => return Err(reason),
            Err(_) => world.sleep(ARRIVES).await,
        }
    }
}

async fn until(world: &World, what: &str, is_so: impl AsyncFn() -> bool) -> Result<(), String> {
    let end = world.now() + SOON;
    while !is_so().await {
        if world.now() > end {
            return Err(format!("it does not come about that {what}"));
        }
        world.sleep(LOOK).await;
    }
    Ok(())
}

async fn is_committing(world: &World, number: usize) -> bool {
    let Ok(sql) = world.connect(number).await else { return true };
    let ask = "SELECT id FROM atoll.transactions WHERE state IN ('committing', 'in doubt')";
    sql.query(ask, &[]).await.is_ok_and(|rows| !rows.is_empty())
}

/// Hands a tablet's leadership over until this node has it.
async fn lead(world: &World, tablet: TabletId, number: usize) -> Result<(), String> {
    let cluster = world.cluster();
    let to = cluster.id(number).unwrap_or(NodeId(0));
    let end = world.now() + SOON;
    while world.now() < end {
        for other in 0..cluster.nodes.len() {
            let groups = cluster.standings(other).await.unwrap_or_default();
            let leads = groups.iter().any(|group| group.tablet == tablet && group.is_led_here);
            if leads && other == number {
                return Ok(());
            }
            if leads {
                cluster.ask(other, Ask::HandOver { tablet, to });
            }
        }
        world.sleep(ARRIVES).await;
    }
    Err(format!("node {} does not lead tablet {tablet}", number + 1))
}
