//! What a proposal costs, and what groups at rest cost, in one process with real fsyncs.
//!
//! ```text
//! propose N_NODES N_PROPOSERS SECONDS     proposals a second, p50 and p99
//! propose idle N_GROUPS SECONDS           CPU of three nodes whose groups are at rest
//! ```

use base::env::MemoryNet;
use base::{Env, KeyRange, NodeId, Scn, TabletId};
use bytes::Bytes;
use consensus::{Config, Entry, Group, Groups, Machine, Position, Role};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use storage::{Batch, Options, Store, TabletRanges};
use transport::{Identity, Transport};

/// Writes each command as a row of its own key.
struct Rows;

impl Machine for Rows {
    fn apply(&self, entry: &Entry<'_>, batch: &mut Batch) -> Result<Bytes, storage::Error> {
        let index = entry.position.index;
        let key = Bytes::copy_from_slice(&(index % 10_000).to_be_bytes());
        batch.put(key, Scn(index), Bytes::copy_from_slice(entry.command));
        Ok(Bytes::new())
    }

    fn applied(&self, _position: Position) {}

    fn snapshot_scope(&self) -> TabletRanges {
        TabletRanges { rows: KeyRange::all(), ..TabletRanges::default() }
    }

    fn restored(&self) {}

    fn role(&self, _role: Role) {}
}

struct Node {
    env: Env,
    store: Store,
    groups: Groups,
}

async fn start(
    n_nodes: u64,
    dir: &std::path::Path,
) -> Result<Vec<Node>, Box<dyn std::error::Error>> {
    let net = Arc::new(MemoryNet::default());
    let address = |id: u64| SocketAddr::from(([127, 0, 0, 1], 7400 + id as u16));
    let mut nodes = Vec::new();
    for id in 1..=n_nodes {
        let env = Env::seeded(id, net.clone());
        let store = Store::open(&env, &dir.join(id.to_string()), Options::default())?;
        let identity = Identity { node: NodeId(id), cluster: 1, boot: 1 };
        let transport = Transport::new(env.clone(), identity, None);
        (1..=n_nodes).for_each(|peer| transport.set_address(NodeId(peer), address(peer)));
        let groups = Groups::new(env.clone(), store.clone(), transport.clone(), Config::default());
        transport.serve(address(id)).await?;
        nodes.push(Node { env, store, groups });
    }
    Ok(nodes)
}

/// A group on all nodes; its leader, and the term.
async fn found(
    nodes: &[Node],
    tablet: TabletId,
) -> Result<(Group, u64), Box<dyn std::error::Error>> {
    let members: Vec<NodeId> = (1..=nodes.len() as u64).map(NodeId).collect();
    for node in nodes {
        let mut batch = Batch::default();
        consensus::seed(&mut batch, tablet, &members);
        node.store.apply(batch)?;
        node.groups.start(tablet, Arc::new(Rows)).await?;
    }
    let first = &nodes[tablet.0 as usize % nodes.len()];
    let group = first.groups.get(tablet).ok_or("the group is not there")?;
    group.campaign().await?;
    let mut role = group.role();
    let leads = role.wait_for(|role| matches!(role, Role::Leader { .. })).await?.clone();
    match leads {
        Role::Leader { term } => Ok((group, term)),
        Role::Follower { .. } => Err("the group has no leader".into()),
    }
}

async fn propose(
    nodes: &[Node],
    n_proposers: usize,
    seconds: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let (group, term) = found(nodes, TabletId(1)).await?;
    let env = nodes[0].env.clone();
    let until = env.now() + Duration::from_secs(seconds);
    let (sender, mut results) = tokio::sync::mpsc::channel(n_proposers);
    let command = Bytes::from(vec![7; 200]);
    for _ in 0..n_proposers {
        let (group, command, sender, env) =
            (group.clone(), command.clone(), sender.clone(), env.clone());
        env.clone().spawn("proposer", async move {
            let mut took_us = Vec::new();
            while env.now() < until {
                let asked = env.now();
                match group.propose(term, command.clone()).await {
                    Ok(_) => took_us.push((env.now() - asked).as_micros() as u64),
                    Err(error) => eprintln!("refused: {error}"),
                }
            }
            // The receiver outlives the proposers.
            sender.send(took_us).await.ok();
        });
    }
    drop(sender);
    let mut all: Vec<u64> = Vec::new();
    while let Some(took_us) = results.recv().await {
        all.extend(took_us);
    }
    all.sort_unstable();
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or(0);
    println!(
        "{} voters, {n_proposers} proposers: {} proposals/s, p50 {} us, p99 {} us, cpu {:.0} us each",
        nodes.len(),
        all.len() as u64 / seconds,
        at(0.5),
        at(0.99),
        cpu().as_micros() as f64 / all.len() as f64,
    );
    let asked = env.now();
    for _ in 0..1_000_000 {
        std::hint::black_box(group.lease(term));
    }
    println!("lease(): {} ns", (env.now() - asked).as_nanos() / 1_000_000);
    Ok(())
}

async fn idle(
    nodes: &[Node],
    n_groups: u64,
    seconds: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    for tablet in 1..=n_groups {
        found(nodes, TabletId(tablet)).await?;
    }
    for (what, settle) in [("just founded", 0), ("at rest", 6)] {
        nodes[0].env.sleep(Duration::from_secs(settle)).await;
        let before = cpu();
        let span = if settle == 0 { 2 } else { seconds };
        nodes[0].env.sleep(Duration::from_secs(span)).await;
        let share = (cpu() - before).as_secs_f64() / span as f64;
        println!("{n_groups} groups on {} nodes, {what}: {:.2} % CPU", nodes.len(), share * 100.0);
    }
    Ok(())
}

/// CPU time of this process so far, in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let dir = tempfile::tempdir_in(".")?;
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or("3".into());
    let numbers = arguments.map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    let number = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default);
    runtime.block_on(async {
        if first == "idle" {
            return idle(&start(3, dir.path()).await?, number(0, 100), number(1, 10)).await;
        }
        let nodes = start(first.parse()?, dir.path()).await?;
        propose(&nodes, number(0, 16) as usize, number(1, 5)).await
    })
}
