//! The nodes of the cluster as rows, newcomers, and replicas that must move.
//!
//! Topology is data like any other: rows in the root tablet, changed in transactions. Each node
//! writes its own row when it starts, reads all rows regularly, and, for the tablets that it
//! leads, brings the replicas to where [`cluster::placement`] wants them.
//!
//! Who was away while the rows' own leader was replaced knows no address to read them at. It then
//! asks whom it does know for what they know, and the hosts that it was told to join by.

use crate::config::Seed;
use crate::identity::{Home, Identity};
use base::env::Instant;
use base::{Env, Key, KeyRange, NodeId};
use bytes::Bytes;
use cluster::report::JOIN_TRY;
use cluster::{DeathReport, JoinAnswer, JoinRequest, NodeRow, Topology, placement};
use consensus::{Group, Groups};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use transport::{Answer, MessageKind, Speaker, Transport};
use txn::{Client, Error, Isolation, LockMode, Txn, Wait};

/// The relation of the nodes' rows, and of the newest node id given out.
const NODES: u32 = 1;
const COUNTER: u32 = 2;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After a change that others must learn of, and while something is wrong.
const LOOK_SOON: Duration = Duration::from_millis(200);
/// One peer's answer to who else there is.
const ASK_AROUND: Duration = Duration::from_millis(500);
const SWEEP_EVERY: Duration = Duration::from_secs(30);

pub struct Parts {
    pub env: Env,
    pub home: Home,
    pub identity: Identity,
    pub row: NodeRow,
    pub client: Client,
    pub node: Arc<txn::Node>,
    pub groups: Groups,
    pub transport: Transport,
    /// The ids of the members, for routing.
    pub known: watch::Sender<BTreeSet<NodeId>>,
    pub topology: Topology,
    /// The hosts that this node was told to join by. Their names may lead to new addresses by now.
    pub seeds: Vec<Seed>,
}

pub struct Membership {
    parts: Parts,
    topology: RwLock<Topology>,
    /// Tablets whose members are being changed, or were.
    moving: Mutex<HashMap<base::TabletId, Move>>,
}

struct Move {
    to: BTreeSet<NodeId>,
    task: JoinHandle<()>,
}

fn node_key(id: NodeId) -> Key {
    let mut key = NODES.to_be_bytes().to_vec();
    key.extend_from_slice(&id.0.to_be_bytes());
    key.into()
}

fn counter_key() -> Key {
    Key::copy_from_slice(&COUNTER.to_be_bytes())
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Bytes, Error> {
    let bytes = postcard::to_stdvec(value);
    bytes.map(Bytes::from).map_err(|error| Error::Internal { reason: error.to_string() })
}

fn decode<T: for<'a> serde::Deserialize<'a>>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(|error| Error::Internal { reason: error.to_string() })
}

impl Membership {
    pub fn new(parts: Parts) -> Arc<Membership> {
        let topology = RwLock::new(parts.topology.clone());
        Arc::new(Membership { parts, topology, moving: Mutex::default() })
    }

    pub fn topology(&self) -> Topology {
        self.topology.read().clone()
    }

    pub fn me(&self) -> NodeId {
        self.parts.identity.node
    }

    /// Answers newcomers and takes reports of deaths.
    pub fn register(self: &Arc<Self>) {
        let this = self.clone();
        self.parts.transport.handle_named(
            MessageKind::Join,
            move |from: Speaker, payload: Bytes| -> Answer {
                let this = this.clone();
                Box::pin(async move {
                    let answer = match postcard::from_bytes::<JoinRequest>(&payload) {
                        Ok(request) => {
                            let admit = this.admit(request, from.name.as_deref());
                            let admitted = this.parts.env.timeout(JOIN_TRY, admit);
                            match admitted.await {
                                Some(answer) => answer.map_err(|error| error.to_string()),
                                None => Err("the cluster has no quorum to let anyone in".into()),
                            }
                        }
                        Err(error) => Err(error.to_string()),
                    };
                    postcard::to_stdvec(&answer).unwrap_or_default().into()
                })
            },
        );
        let this = self.clone();
        self.parts.transport.handle(MessageKind::Topology, move |_: NodeId, _: Bytes| -> Answer {
            let known = postcard::to_stdvec(&this.topology()).unwrap_or_default();
            Box::pin(std::future::ready(known.into()))
        });
        let this = self.clone();
        self.parts.transport.handle_named(
            MessageKind::DeathReport,
            move |from: Speaker, payload: Bytes| -> Answer {
                match postcard::from_bytes::<DeathReport>(&payload) {
                    Ok(report) => this.hear_death(report, from.name.as_deref()),
                    Err(error) => tracing::warn!(%error, "a report of a death does not decode"),
                }
                Box::pin(std::future::ready(Bytes::new()))
            },
        );
    }

    /// A report may come late, and more than once: it is a fact about one start and those before it.
    /// `by`: the name in the certificate of who reports.
    fn hear_death(&self, report: DeathReport, by: Option<&str>) {
        let DeathReport { node, boot } = report;
        if node == self.me() || !self.is_concern_of(node, by) {
            return;
        }
        // The groups know which start led in which term, so they judge by themselves.
        self.parts.groups.report_death(consensus::Death { node, boot });
        if report.is_news(self.parts.transport.boot_of(node)) {
            tracing::info!(%node, boot, "a worker is dead");
            self.parts.node.report_death(node);
        }
    }

    /// Whether a holder of this name may tell of that node's death. Nobody is heard about whom this node
    /// does not know.
    fn is_concern_of(&self, node: NodeId, by: Option<&str>) -> bool {
        let topology = self.topology.read();
        let Some(row) = topology.nodes.get(&node) else { return false };
        let is_own = by.is_none() || by == row.name.as_deref();
        if !is_own {
            tracing::warn!(%node, by, "a report of a death by another than that node's supervisor is not believed");
        }
        is_own
    }

    /// Gives a newcomer its id, and its place: whoever had its name, or listened there before, is
    /// replaced. `name`: what stands in the newcomer's certificate.
    async fn admit(&self, request: JoinRequest, name: Option<&str>) -> Result<JoinAnswer, Error> {
        let mut txn = self.parts.client.begin(Isolation::ReadCommitted);
        let counter = counter_key();
        let locked =
            txn.lock(std::slice::from_ref(&counter), LockMode::Exclusive, Wait::Block).await?;
        let newest = match locked.first() {
            Some(txn::Locked::Held { row: Some(row) }) => decode::<u64>(&row.value)?,
            _ => 0,
        };
        let rows = read_nodes(&mut txn).await?;
        let mut topology = Topology::of(rows);
        if let Some(node) = topology.holder(request.ticket)
            && topology.nodes.get(&node).is_some_and(|row| row.name.as_deref() == name)
        {
            // It was let in, and the answer did not reach it.
            txn.rollback().await;
            let topology = self.learn(|known| known.nodes.extend(topology.nodes));
            return Ok(JoinAnswer { cluster: self.parts.identity.cluster, node, topology });
        }
        let highest = topology.nodes.keys().map(|id| id.0).max().unwrap_or(0);
        let id = NodeId(newest.max(highest) + 1);
        txn.put(counter, encode(&id.0)?)?;
        let replaced = match self.replaced(&topology, request.peer_address, name).await {
            Ok(replaced) => replaced,
            Err(reason) => {
                txn.rollback().await;
                return Err(Error::Refused { reason });
            }
        };
        if let Some(row) = replaced.and_then(|old| topology.nodes.get_mut(&old)) {
            row.replaced_by = Some(id);
            let row = row.clone();
            put_node(&mut txn, &row).await?;
        }
        let row = NodeRow {
            id,
            zone: request.zone,
            peer_address: request.peer_address,
            sql_address: request.sql_address,
            boot: 0,
            since_us: self.parts.env.wall_us(),
            ticket: request.ticket,
            replaced_by: None,
            name: name.map(str::to_owned),
        };
        put_node(&mut txn, &row).await?;
        txn.commit().await?;
        tracing::info!(node = %id, name, zone = %row.zone, address = %row.peer_address, "a node joined");
        topology.nodes.insert(id, row);
        let topology = self.learn(|known| known.nodes.extend(topology.nodes));
        Ok(JoinAnswer { cluster: self.parts.identity.cluster, node: id, topology })
    }

    /// The member whose place a newcomer takes, if any; the error says why it must not.
    async fn replaced(
        &self,
        topology: &Topology,
        address: SocketAddr,
        name: Option<&str>,
    ) -> Result<Option<NodeId>, String> {
        let there = topology.replaced_at(address);
        let Some(name) = name else {
            return match there {
                Some(old) if self.is_alive(old).await => Err(format!(
                    "node {old} is alive at {address}; a newcomer listens at an address of its own"
                )),
                there => Ok(there),
            };
        };
        let named = topology.named(name);
        if let Some(old) = named
            && self.is_alive(old).await
        {
            return Err(format!(
                "node {old} is alive and has the name {name:?}; a newcomer has a certificate with a name of \
                 its own (`atoll cert node NAME`)"
            ));
        }
        let row = there.and_then(|there| topology.nodes.get(&there));
        match row {
            // No certificate says whose place that is: an older program wrote the row.
            Some(row) if row.name.is_none() && named.is_none() => match self.is_alive(row.id).await
            {
                true => Err(format!(
                    "node {} is alive at {address}; a newcomer listens at an address of its own",
                    row.id
                )),
                false => Ok(Some(row.id)),
            },
            Some(row) if Some(row.id) != named => Err(format!(
                "{address} is the address of node {}, whose name is {:?}; a newcomer listens at an address \
                 of its own, or takes the place of that node with a certificate of that name",
                row.id,
                row.name.as_deref().unwrap_or_default()
            )),
            _ => Ok(named),
        }
    }

    /// Whether a node answers at its address, and not another one.
    async fn is_alive(&self, node: NodeId) -> bool {
        let asked =
            self.parts.transport.call(node, MessageKind::Topology, ASK_AROUND, Bytes::new());
        node == self.me() || asked.await.is_ok()
    }

    /// Starts what this node does about the cluster by itself.
    pub fn run(self: &Arc<Self>, engine: sql::Engine) {
        let this = self.clone();
        self.parts.env.spawn("addresses", async move {
            loop {
                if this.misses_somebody() {
                    this.ask_around().await;
                }
                this.parts.env.sleep(LOOK_EVERY).await;
            }
        });
        let this = self.clone();
        self.parts.env.spawn("membership", async move {
            while let Err(error) = this.write_own_row().await {
                tracing::debug!(%error, "this node's row is not written yet");
                this.parts.env.sleep(LOOK_SOON).await;
            }
            while let Err(error) = engine.bootstrap().await {
                tracing::debug!(?error, "the catalog is not there yet");
                this.parts.env.sleep(LOOK_SOON).await;
            }
            // What earlier starts of this node have left.
            let (me, boot) = (this.me(), this.parts.row.boot);
            this.remove_abandoned(&engine, |node, other| node != me || other >= boot).await;
            let mut swept = this.parts.env.now();
            loop {
                let pause = match this.look().await {
                    Ok(true) => LOOK_EVERY,
                    Ok(false) | Err(_) => LOOK_SOON,
                };
                swept = this.sweep(&engine, swept).await;
                this.parts.env.sleep(pause).await;
            }
        });
    }

    async fn sweep(&self, engine: &sql::Engine, swept: Instant) -> Instant {
        let now = self.parts.env.now();
        let leads_root =
            self.parts.groups.get(base::TabletId::ROOT).is_some_and(|root| root.is_led_here());
        if now < swept + SWEEP_EVERY {
            return swept;
        }
        if leads_root {
            if let Err(error) = engine.sweep().await {
                tracing::debug!(?error, "dropped tables are not swept yet");
            }
            let topology = self.topology();
            let lives = |node, boot| topology.nodes.get(&node).is_some_and(|row| row.boot <= boot);
            self.remove_abandoned(engine, lives).await;
        }
        now
    }

    async fn remove_abandoned(&self, engine: &sql::Engine, lives: impl Fn(NodeId, u64) -> bool) {
        if let Err(error) = sql::run::ddl::index::remove_abandoned(engine, lives).await {
            tracing::debug!(?error, "abandoned indexes are not removed yet");
        }
    }

    async fn write_own_row(&self) -> Result<(), Error> {
        let mut txn = self.parts.client.begin(Isolation::ReadCommitted);
        let key = node_key(self.me());
        let locked = txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
        let mut row = self.parts.row.clone();
        if let Some(txn::Locked::Held { row: Some(old) }) = locked.first() {
            let old: NodeRow = decode(&old.value)?;
            (row.ticket, row.replaced_by) = (old.ticket, old.replaced_by);
        }
        self.check_place(&row);
        txn.put(key, encode(&row)?)?;
        txn.commit().await.map(|_| ())
    }

    /// Whoever's place was taken must not go on: its replicas count for another by now.
    fn check_place(&self, own: &NodeRow) {
        if let Some(by) = own.replaced_by {
            self.parts.env.halt(format!(
                "node {} was replaced by node {by}, which joined with its address: wipe the data \
                 directory to join anew",
                own.id
            ));
        }
    }

    /// Reads the rows and acts on them. True when all is as it should be.
    async fn look(self: &Arc<Self>) -> Result<bool, Error> {
        let mut txn = self.parts.client.begin(Isolation::ReadCommitted);
        let topology = Topology::of(read_nodes(&mut txn).await?);
        txn.rollback().await;
        let topology = self.learn(|known| known.nodes.extend(topology.nodes));
        let mut settled = true;
        for group in self.parts.groups.all().into_iter().filter(Group::is_led_here) {
            let status = group.status();
            let voters: BTreeSet<NodeId> = status.voters.into_iter().collect();
            let tablet = group.tablet();
            let wanted = match placement::wanted(tablet, &voters, &topology) {
                Some(wanted) => wanted,
                None if status.is_changing => voters.clone(),
                None => continue,
            };
            settled = false;
            let mut moving = self.moving.lock();
            if let Some(under_way) = moving.get(&tablet) {
                if under_way.to == wanted && !under_way.task.is_finished() {
                    continue;
                }
                // It may wait for a newcomer that has been replaced itself.
                under_way.task.abort();
            }
            let to = wanted.clone();
            let task = self.parts.env.spawn("members", async move {
                tracing::info!(%tablet, ?voters, ?wanted, "moving replicas");
                if let Err(error) = group.change_members(wanted).await {
                    tracing::warn!(%tablet, %error, "replicas were not moved");
                }
            });
            moving.insert(tablet, Move { to, task });
        }
        Ok(settled)
    }

    /// Whether a replica of a tablet that is here too is on a node that this one has never heard of.
    fn misses_somebody(&self) -> bool {
        let topology = self.topology.read();
        let is_unknown = |node: &NodeId| !topology.nodes.contains_key(node);
        let groups = self.parts.groups.all().into_iter();
        groups.map(|group| group.status()).any(|status| {
            status.voters.iter().chain(&status.learners).chain(&status.leader).any(is_unknown)
        })
    }

    async fn ask_around(&self) {
        let topology = self.topology();
        // Whoever listens there by now: it may have taken the place of the one that is known.
        let mut addresses: BTreeSet<SocketAddr> =
            topology.members().map(|row| row.peer_address).collect();
        for seed in &self.parts.seeds {
            let found = self.parts.env.timeout(ASK_AROUND, seed.addresses(&self.parts.env)).await;
            // A name that nobody knows now is looked up again soon.
            addresses.extend(found.and_then(Result::ok).unwrap_or_default());
        }
        addresses.remove(&self.parts.row.peer_address);
        let asks = addresses.into_iter().map(|address| {
            let kind = MessageKind::Topology;
            self.parts.transport.call_address(address, kind, ASK_AROUND, Bytes::new())
        });
        // Who does not answer, or talks nonsense, is asked again soon.
        for answer in futures::future::join_all(asks).await.into_iter().flatten() {
            if let Ok(heard) = decode::<Topology>(&answer) {
                self.learn(|known| known.hear(heard));
            }
        }
    }

    /// Takes over news of nodes; returns all that is known. A founder that has not written
    /// its row yet stays known: who forgot its address could not even ask it for the rows.
    fn learn(&self, news: impl FnOnce(&mut Topology)) -> Topology {
        let mut topology = self.topology.write();
        let known = topology.clone();
        news(&mut topology);
        if *topology == known {
            return known;
        }
        if let Some(own) = topology.nodes.get(&self.me()) {
            self.check_place(own);
        }
        for row in topology.members() {
            self.parts.transport.set_address(row.id, row.peer_address);
        }
        know_names(&self.parts.transport, &topology);
        for gone in topology.nodes.values().filter(|row| row.replaced_by.is_some()) {
            self.parts.transport.forget(gone.id);
        }
        self.parts.known.send_replace(topology.ids());
        if let Err(error) = self.parts.home.set_topology(&topology) {
            tracing::warn!(%error, "the known nodes are not written down");
        }
        topology.clone()
    }
}

/// Who was replaced keeps its name until another node is known by it.
pub fn know_names(transport: &Transport, topology: &Topology) {
    for row in topology.nodes.values() {
        if let Some(name) = &row.name {
            transport.set_name(row.id, name);
        }
    }
}

async fn read_nodes(txn: &mut Txn) -> Result<Vec<NodeRow>, Error> {
    let mut scan =
        txn.reader().await?.scan(KeyRange::prefix(NODES.to_be_bytes().to_vec()), false, None);
    let mut rows = Vec::new();
    loop {
        let batch = scan.next_batch().await?;
        if batch.is_empty() {
            return Ok(rows);
        }
        for (_, row) in batch {
            rows.push(decode(&row.value)?);
        }
    }
}

async fn put_node(txn: &mut Txn, row: &NodeRow) -> Result<(), Error> {
    let key = node_key(row.id);
    txn.lock(std::slice::from_ref(&key), LockMode::Exclusive, Wait::Block).await?;
    txn.put(key, encode(row)?)?;
    Ok(())
}
