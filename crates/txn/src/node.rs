//! All tablets of this node, and the way to tablets of other nodes.
//!
//! [`Node::ask`] brings a request to the leader of a tablet, wherever that is. Requests that may be asked
//! twice are retried, and each refusal teaches a better route. A commit, a prepare, a check or a split
//! is sent once; if it is not certain whether it was done, it comes back as [`Fault::Lost`], and the
//! coordinator finds out.

mod deadlock;
mod discard;
mod home;
mod serve;

use crate::active::Active;
use crate::command::{Descriptor, Outcome, decode, encode};
use crate::ids::{Blocks, Ids};
use crate::message::{
    CoordinatorRequest, CoordinatorResponse, Epoch, Fault, ReplicaRow, Request, Response, ScnGrant,
    ScnRequest,
};
use crate::routes::Routes;
use crate::tablet::Tablet;
use crate::writes::Room;
use crate::{Error, keyspace};
use base::env::Instant;
use base::{Env, Key, KeyRange, NodeId, Scn, TabletId, TxnId};
use bytes::Bytes;
use consensus::{Group, Groups, Role};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storage::{Batch, Store};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use transport::{MessageKind, Transport};

/// How long a request looks for a leader before its asker is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// One try of a request that may be asked again.
const TRY: Duration = Duration::from_secs(3);
/// A lock request is asked again after this long of waiting.
const LOCK_TRY: Duration = Duration::from_secs(5);
/// A scan that may bring more rows than this goes over the bulk lane.
const BULK_ROWS_MIN: usize = 512;
/// How often the first leader of a new tablet campaigns before it leaves that to the groups' own timers.
const N_CAMPAIGNS: usize = 20;
const CAMPAIGN_AGAIN: Duration = Duration::from_millis(25);
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long the answer to a question about replicas or transactions of another node is waited for.
pub(crate) const INSPECT: Duration = Duration::from_millis(500);

pub struct Node {
    pub(crate) me: NodeId,
    pub(crate) env: Env,
    pub(crate) store: Store,
    pub(crate) groups: Groups,
    pub(crate) transport: Transport,
    boot: u64,
    started: Instant,
    txn_ids: Arc<Ids>,
    row_ids: Arc<Ids>,
    tablets: RwLock<HashMap<TabletId, Arc<Tablet>>>,
    pub(crate) routes: RwLock<Routes>,
    pub(crate) active: Mutex<HashMap<TxnId, Arc<Active>>>,
    /// For the writes of the transactions that run here.
    pub(crate) room: Arc<Room>,
    /// The nodes of the cluster, as the topology says.
    members: watch::Receiver<BTreeSet<NodeId>>,
    dead: RwLock<HashSet<NodeId>>,
    /// A death, or a leadership that began with prepared transactions.
    sweep_soon: Arc<Notify>,
    scn_asks: mpsc::Sender<ScnAsk>,
    suspects: Mutex<deadlock::Suspects>,
    refreshing: tokio::sync::Mutex<()>,
    n_refreshes: AtomicU64,
    opening: tokio::sync::Mutex<()>,
}

struct ScnAsk {
    n: u64,
    answer: oneshot::Sender<Result<ScnGrant, Error>>,
}

/// What a node needs to take part.
pub struct Parts {
    pub env: Env,
    pub store: Store,
    pub groups: Groups,
    pub transport: Transport,
    /// How often this node has started on its data directory.
    pub boot: u64,
    /// Where ids come from.
    pub blocks: Blocks,
    pub members: watch::Receiver<BTreeSet<NodeId>>,
}

/// The keys that the root tablet holds: relations below this number.
pub const FIRST_DATA_RELATION: u32 = 100;

impl Node {
    /// Starts the replicas that the store holds. `founders`: this is the first start of a new
    /// cluster of these nodes; every founder must be told the same.
    pub fn start(
        parts: Parts,
        founders: Option<&BTreeSet<NodeId>>,
    ) -> BoxFuture<'_, Result<Arc<Node>, Error>> {
        Box::pin(async move {
            let Parts { env, store, groups, transport, boot, blocks, members } = parts;
            let me = transport.node();
            let ids = || {
                Ids::new(env.clone(), me, blocks.clone())
                    .map_err(|reason| Error::Internal { reason })
            };
            let (txn_ids, row_ids) = (ids()?, ids()?);
            let (scn_asks, asked) = mpsc::channel(1024);
            let room = Room::new(store.temporary_dir(), env.memory(), env.limits());
            let node = Arc::new(Node {
                me,
                room: Arc::new(room),
                started: env.now(),
                env,
                store,
                groups,
                transport,
                boot,
                txn_ids,
                row_ids,
                tablets: RwLock::default(),
                routes: RwLock::default(),
                active: Mutex::default(),
                members,
                dead: RwLock::default(),
                sweep_soon: Arc::default(),
                scn_asks,
                suspects: Mutex::default(),
                refreshing: tokio::sync::Mutex::default(),
                n_refreshes: AtomicU64::new(0),
                opening: tokio::sync::Mutex::default(),
            });
            serve::register(&node);
            discard::register(&node);
            node.run_scn_asks(asked);
            if let Some(founders) = founders {
                node.found(founders)?;
            }
            for descriptor in node.descriptors()? {
                node.open(descriptor.tablet).await?;
            }
            let weak = Arc::downgrade(&node);
            node.groups.on_unknown(move |tablet, from| {
                if let Some(node) = weak.upgrade() {
                    node.admit(tablet, from);
                }
            });
            if let Some(founders) = founders
                && founders.first() == Some(&node.me)
            {
                // If the other founders do not listen yet, a later campaign of one of them succeeds.
                for tablet in node.local() {
                    let begun = tablet.group().map_err(Fault::into_error)?.campaign().await;
                    begun.map_err(|error| Error::Internal { reason: error.to_string() })?;
                }
            }
            serve::run_housekeeping(&node);
            Ok(node)
        })
    }

    /// Writes the state with which the tablets of every founder begin, unless it is there.
    fn found(&self, founders: &BTreeSet<NodeId>) -> Result<(), Error> {
        if self.store.meta_get(&keyspace::descriptor(TabletId::ROOT))?.is_some() {
            return Ok(());
        }
        let border = Key::copy_from_slice(&FIRST_DATA_RELATION.to_be_bytes());
        let root = KeyRange { start: Key::new(), end: Some(border.clone()) };
        let data = KeyRange { start: border, end: None };
        let members: Vec<NodeId> = founders.iter().copied().collect();
        let mut batch = Batch::default();
        for (tablet, range) in [(TabletId::ROOT, root), (TabletId::FIRST_DATA, data)] {
            let descriptor = Descriptor { tablet, generation: 1, range };
            batch.meta_put(keyspace::descriptor(tablet), encode(&descriptor));
            consensus::seed(&mut batch, tablet, &members);
        }
        self.store.apply(batch)?;
        self.store.flush()?;
        Ok(())
    }

    /// The tablets that the store holds.
    fn descriptors(&self) -> Result<Vec<Descriptor>, Error> {
        let mut descriptors = Vec::new();
        for row in self.store.meta_scan(&keyspace::descriptors()) {
            let (_, value) = row?;
            descriptors.push(decode(&value, "a tablet's descriptor")?);
        }
        Ok(descriptors)
    }

    /// Starts the replica of `id`, once: a split that is replayed finds its child running already.
    async fn open(self: &Arc<Self>, id: TabletId) -> Result<Arc<Tablet>, Error> {
        let _one = self.opening.lock().await;
        if let Some(open) = self.tablet(id) {
            return Ok(open);
        }
        let (env, store) = (self.env.clone(), self.store.clone());
        let home = Arc::downgrade(self);
        let tablet = Tablet::new(env, store, home, id)?;
        let started = self.groups.start(id, tablet.clone()).await;
        let group = started.map_err(|error| Error::Internal { reason: error.to_string() })?;
        tablet.join(group);
        self.tablets.write().insert(id, tablet.clone());
        self.routes_changed(&tablet);
        Ok(tablet)
    }

    /// A split made `child` here: starts its replica. One member, the same by every node's reckoning,
    /// campaigns at once, so that leaders spread and no election time-out is waited for. The other members
    /// may not have applied the split yet, so this one tries more than once.
    pub(crate) fn adopt(self: &Arc<Self>, child: TabletId, mut members: Vec<NodeId>) {
        let node = self.clone();
        self.env.clone().spawn("new tablet", async move {
            let tablet = match node.open(child).await {
                Ok(tablet) => tablet,
                Err(error) => {
                    return node.env.halt(format!("tablet {child} cannot be started: {error}"));
                }
            };
            members.sort_unstable();
            let turn = usize::try_from(tablet.generation()).unwrap_or(0);
            if members.get(turn % members.len().max(1)) != Some(&node.me) {
                return;
            }
            for _ in 0..N_CAMPAIGNS {
                let Ok(group) = tablet.group() else { return };
                // After a restart the split is only replayed: the child has lived since.
                if !group.is_new() || group.status().leader.is_some() {
                    return;
                }
                if let Err(error) = group.campaign().await {
                    tracing::debug!(%child, %error, "a new tablet's first election failed");
                }
                node.env.sleep(CAMPAIGN_AGAIN).await;
            }
        });
    }

    /// A leader sends entries for a tablet that has no replica here. There are two reasons for that:
    ///
    /// * A change of members has given the tablet a replica here. Then it is started now, empty, and the
    ///   leader fills it.
    /// * The tablet was born in a split that this node's replica of the parent has yet to apply. Then
    ///   nothing is started: applying the split will bring the replica, and one made now would have
    ///   entries without the state that they begin from.
    ///
    /// The descriptors in the store tell the two apart. A split moves the border and writes the child's
    /// descriptor in one batch, so the range of a child that is yet to be born here overlaps the range of
    /// some descriptor here.
    fn admit(self: &Arc<Self>, tablet: TabletId, from: NodeId) {
        let node = self.clone();
        self.env.clone().spawn("unknown tablet", async move {
            let Some(CoordinatorResponse::Replicas(rows)) =
                node.inspect(from, &CoordinatorRequest::Replicas).await
            else {
                return;
            };
            let Some(row) = rows.into_iter().find(|row| row.tablet == tablet) else { return };
            if !row.members.contains(&node.me) {
                return;
            }
            let opened = match node.descriptors() {
                Ok(stored) if stored.iter().any(|ours| ours.range.overlaps(&row.range)) => return,
                Ok(_) => node.open(tablet).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = opened {
                node.env.halt(format!("tablet {tablet} cannot be started: {error}"));
            }
        });
    }

    pub(crate) fn tablet(&self, id: TabletId) -> Option<Arc<Tablet>> {
        self.tablets.read().get(&id).cloned()
    }

    pub(crate) fn local(&self) -> Vec<Arc<Tablet>> {
        self.tablets.read().values().cloned().collect()
    }

    pub(crate) fn coordinator(&self) -> (NodeId, u64) {
        (self.me, self.boot)
    }

    pub(crate) fn new_txn_id(&self) -> TxnId {
        TxnId(self.txn_ids.next())
    }

    pub(crate) fn new_row_id(&self) -> u64 {
        self.row_ids.next()
    }

    /// The nodes of the cluster, this one among them.
    pub(crate) fn members(&self) -> Vec<NodeId> {
        let members = self.members.borrow();
        members.iter().copied().chain((!members.contains(&self.me)).then_some(self.me)).collect()
    }

    /// A supervisor has reported the death: a fact. The caller has heard from no later start of the node.
    pub fn report_death(&self, node: NodeId) {
        self.dead.write().insert(node);
        // Its transactions hold locks here that nobody will ask to be freed.
        self.sweep_soon.notify_one();
    }

    pub(crate) fn routes_changed(&self, tablet: &Tablet) {
        let row = self.replica_row(tablet);
        self.routes.write().learn(&row);
    }

    pub(crate) fn replica_row(&self, tablet: &Tablet) -> ReplicaRow {
        let status = tablet.group().map(consensus::Group::status).unwrap_or_default();
        let mut members: Vec<NodeId> =
            status.voters.iter().chain(&status.learners).copied().collect();
        members.sort_unstable();
        ReplicaRow {
            node: self.me,
            tablet: tablet.id,
            generation: tablet.generation(),
            range: tablet.range().unwrap_or_default(),
            term: status.term,
            leader: status.leader,
            members,
            counting: status.counting,
            applied_index: status.applied,
            closed: tablet.closed_scn(),
        }
    }

    /// The tablet that holds `key`, and its range.
    pub(crate) async fn tablet_of(&self, key: &[u8]) -> Result<(KeyRange, TabletId), Error> {
        self.find(|routes| routes.of(key).map(|(range, tablet)| (range.clone(), tablet))).await
    }

    /// The tablet that holds the keys just before `end`.
    pub(crate) async fn tablet_before(
        &self,
        end: Option<&Key>,
    ) -> Result<(KeyRange, TabletId), Error> {
        self.find(|routes| routes.before(end).map(|(range, tablet)| (range.clone(), tablet))).await
    }

    async fn find<T>(&self, look: impl Fn(&Routes) -> Option<T>) -> Result<T, Error> {
        let deadline = self.env.now() + PATIENCE;
        loop {
            if let Some(found) = look(&self.routes.read()) {
                return Ok(found);
            }
            if self.env.now() > deadline {
                return Err(Error::unavailable("no node knows which tablet holds a key"));
            }
            self.refresh().await;
        }
    }

    /// Asks all nodes for their replicas. One refresh runs at a time; a caller that comes while it runs waits
    /// for its end.
    pub(crate) async fn refresh(&self) {
        // Refreshes are counted. Whether the lock was free would not tell: callers that wait hand it to
        // each other, and each would take the caller before it for the one that asked.
        let n_before = self.n_refreshes.load(Ordering::Acquire);
        let _one = self.refreshing.lock().await;
        if self.n_refreshes.load(Ordering::Acquire) != n_before {
            return;
        }
        for row in self.all_replicas().await {
            self.routes.write().learn(&row);
        }
        self.env.sleep(PAUSE_MIN).await;
        self.n_refreshes.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) async fn all_replicas(&self) -> Vec<ReplicaRow> {
        let members = self.members();
        let asks = members.iter().map(|node| self.inspect(*node, &CoordinatorRequest::Replicas));
        let answers = futures::future::join_all(asks).await;
        let rows = answers.into_iter().flatten().filter_map(|answer| match answer {
            CoordinatorResponse::Replicas(rows) => Some(rows),
            _ => None,
        });
        rows.flatten().collect()
    }

    /// Asks a node about itself; none if it does not answer soon.
    pub(crate) async fn inspect(
        &self,
        node: NodeId,
        request: &CoordinatorRequest,
    ) -> Option<CoordinatorResponse> {
        if node == self.me {
            return Some(self.answer(request.clone()).await);
        }
        let payload = encode(request);
        let answer = self.transport.call(node, MessageKind::Coordinator, INSPECT, payload).await;
        decode(&answer.ok()?, "a coordinator's answer").ok()
    }

    /// Which of `txns` does `node` run? None if it does not answer.
    pub(crate) async fn which_run(&self, node: NodeId, txns: Vec<TxnId>) -> Option<Vec<TxnId>> {
        match self.inspect(node, &CoordinatorRequest::Alive(txns)).await? {
            CoordinatorResponse::Alive(alive) => {
                self.dead.write().remove(&node);
                Some(alive)
            }
            _ => None,
        }
    }

    /// Brings a request to the tablet's leader. A read of the past goes to this node's own replica if that
    /// can answer it.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        tablet: TabletId,
        request: Request,
    ) -> Result<Response, Fault> {
        if !request.may_repeat() {
            let locks_at = request.epoch().map(|epoch| epoch.node);
            let to = locks_at.or_else(|| self.guess(tablet, 0));
            return match self.try_once(tablet, to, request, PATIENCE).await {
                Err(Attempt::Fault(fault)) => Err(fault),
                Err(Attempt::Unsent) => Err(Fault::NotLeader { leader: None }),
                Err(Attempt::Unsure) => Err(Fault::Lost),
                Ok(response) => Ok(response),
            };
        }
        let waits = matches!(&request, Request::Lock(lock) if lock.wait == crate::Wait::Block);
        let began = self.env.now();
        let mut pause = PAUSE_MIN;
        let mut n_tries = 0;
        loop {
            let own = self.tablet(tablet).filter(|own| n_tries == 0 && own.has_past(&request));
            let to = own.map(|_| self.me).or_else(|| self.guess(tablet, n_tries));
            let mut again = request.clone();
            if let Request::Lock(lock) = &mut again {
                lock.waited_ms = (self.env.now() - began).as_millis() as u64;
            }
            let patience = if waits { LOCK_TRY } else { TRY };
            let tried = self.env.now();
            let fault = match self.try_once(tablet, to, again, patience).await {
                Ok(response) => return Ok(response),
                Err(Attempt::Fault(Fault::NotLeader { leader: Some(leader) })) => {
                    self.routes.write().leads(tablet, leader);
                    n_tries = 0;
                    Fault::NotLeader { leader: Some(leader) }
                }
                Err(Attempt::Fault(fault @ (Fault::NotLeader { .. } | Fault::Lost))) => fault,
                Err(Attempt::Fault(fault)) => return Err(fault),
                // That the lock is not granted yet is not a failure of the leader.
                Err(Attempt::Unsure) if waits && self.env.now() - tried >= LOCK_TRY => continue,
                Err(Attempt::Unsent | Attempt::Unsure) => Fault::NotLeader { leader: None },
            };
            if self.env.now() - began > PATIENCE && !waits {
                return Err(fault);
            }
            if waits && n_tries > 200 {
                return Err(fault);
            }
            n_tries += 1;
            if n_tries % 8 == 4 {
                self.routes.write().forget_leader(tablet);
                self.refresh().await;
            }
            self.env.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The node that probably leads. This node's own replica knows best while it hears from its leader;
    /// then comes the leader that was told of; then each member in turn.
    fn guess(&self, tablet: TabletId, n_tries: usize) -> Option<NodeId> {
        if let Some(own) = self.tablet(tablet) {
            if own.is_leader() {
                return Some(self.me);
            }
            let leader = own.group().ok().and_then(|group| group.status().leader);
            if let Some(leader) = leader
                && leader != self.me
                && n_tries % 4 != 3
            {
                return Some(leader);
            }
        }
        let routes = self.routes.read();
        let route = routes.get(tablet)?;
        match route.leader {
            Some(leader) if n_tries % 4 < 2 => Some(leader),
            _ if route.members.is_empty() => None,
            _ => Some(route.members[n_tries % route.members.len()]),
        }
    }

    async fn try_once(
        &self,
        tablet: TabletId,
        to: Option<NodeId>,
        request: Request,
        patience: Duration,
    ) -> Result<Response, Attempt> {
        let Some(to) = to else { return Err(Attempt::Unsent) };
        if to == self.me {
            let Some(own) = self.tablet(tablet) else { return Err(Attempt::Unsent) };
            // The tasks that ask for commits, prepares and resolutions run to their end by themselves.
            let answer = match request {
                Request::Split { .. } => own.serve_to_the_end(request).await,
                request => own.serve(request).await,
            };
            return answer.map_err(Attempt::Fault);
        }
        let kind = match &request {
            Request::Scan(scan) if scan.n_rows_max > BULK_ROWS_MIN => MessageKind::TabletBulk,
            _ => MessageKind::Tablet,
        };
        let term = request.epoch().map(|epoch| epoch.term);
        let payload = encode(&(tablet, request));
        let answer = match self.call_leader(tablet, to, term, kind, patience, payload).await {
            Ok(answer) => answer,
            Err(transport::Error::UnknownNode(_)) => return Err(Attempt::Unsent),
            Err(transport::Error::TooLarge { bytes, max }) => {
                let reason = format!("a request of {bytes} bytes is larger than {max}");
                return Err(Attempt::Fault(Error::Refused { reason }.into()));
            }
            Err(_) => return Err(Attempt::Unsure),
        };
        let answer: Result<Result<Response, Fault>, Error> = decode(&answer, "a tablet's answer");
        answer.map_err(|error| Attempt::Fault(error.into()))?.map_err(Attempt::Fault)
    }

    /// A call to the leader `to`. It is given up as soon as this node's own replica learns that another
    /// node leads, in a term after `term`; otherwise a host that stopped without a word would be waited for
    /// until the deadline. Without a `term`, only changes that the replica learns during the call count.
    async fn call_leader(
        &self,
        tablet: TabletId,
        to: NodeId,
        term: Option<u64>,
        kind: MessageKind,
        patience: Duration,
        payload: Bytes,
    ) -> Result<Bytes, transport::Error> {
        let call = self.transport.call(to, kind, patience, payload);
        let Some(Ok(mut role)) = self.tablet(tablet).map(|own| own.group().map(Group::role)) else {
            return call.await;
        };
        match term {
            Some(_) => role.mark_changed(),
            None => role.mark_unchanged(),
        }
        let newer = |now: u64| term.is_none_or(|term| now > term);
        let superseded = async {
            while role.changed().await.is_ok() {
                match *role.borrow_and_update() {
                    Role::Leader { term } if newer(term) => return,
                    Role::Follower { term, leader: Some(leader) }
                        if newer(term) && leader != to =>
                    {
                        return;
                    }
                    _ => {}
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            answer = call => answer,
            () = superseded => {
                let reason = "another node leads now".to_owned();
                Err(transport::Error::Unreachable { node: to, reason })
            }
        }
    }

    /// Draws one SCN.
    pub(crate) async fn draw(self: &Arc<Self>) -> Result<Scn, Fault> {
        Ok(self.scn(1).await?.first)
    }

    /// The newest SCN handed out: a snapshot at it sees every commit acknowledged before the call.
    pub(crate) async fn current_scn(self: &Arc<Self>) -> Result<Scn, Error> {
        Ok(self.scn(0).await?.current)
    }

    async fn scn(self: &Arc<Self>, n: u64) -> Result<ScnGrant, Error> {
        if let Some(root) = self.tablet(TabletId::ROOT)
            && root.is_leader()
            && let Ok(grant) = root.draw(n).await
        {
            return Ok(grant);
        }
        let (answer, grant) = oneshot::channel();
        let gone = || Error::unavailable("the SCN service is not reachable");
        self.scn_asks.send(ScnAsk { n, answer }).await.map_err(|_| gone())?;
        grant.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Asks the SCN service for all callers that wait here, one batch at a time.
    fn run_scn_asks(self: &Arc<Self>, mut asked: mpsc::Receiver<ScnAsk>) {
        let weak = Arc::downgrade(self);
        self.env.spawn("SCN asks", async move {
            let mut asks = Vec::new();
            while asked.recv_many(&mut asks, 1024).await > 0 {
                let Some(node) = weak.upgrade() else { return };
                let n = asks.iter().map(|ask| ask.n).sum();
                let grant = node.ask_scn(ScnRequest { n }).await;
                let mut first = grant.as_ref().map_or(Scn::ZERO, |grant| grant.first);
                for ask in asks.drain(..) {
                    let own = grant.clone().map(|grant| ScnGrant { first, ..grant });
                    first = Scn(first.0 + ask.n);
                    // The caller may be gone; its numbers are then never used.
                    drop(ask.answer.send(own));
                }
            }
        });
    }

    async fn ask_scn(self: &Arc<Self>, request: ScnRequest) -> Result<ScnGrant, Error> {
        let deadline = self.env.now() + PATIENCE;
        let mut n_tries = 0;
        loop {
            let to = self.guess(TabletId::ROOT, n_tries);
            let grant = match to {
                Some(to) if to == self.me => match self.tablet(TabletId::ROOT) {
                    Some(root) => root.draw(request.n).await,
                    None => Err(Fault::Lost),
                },
                Some(to) => {
                    let payload = encode(&request);
                    let root = TabletId::ROOT;
                    match self.call_leader(root, to, None, MessageKind::Scn, TRY, payload).await {
                        Ok(answer) => decode(&answer, "an SCN grant")?,
                        Err(_) => Err(Fault::Lost),
                    }
                }
                None => Err(Fault::Lost),
            };
            match grant {
                Ok(grant) => return Ok(grant),
                Err(Fault::NotLeader { leader: Some(leader) }) => {
                    self.routes.write().leads(TabletId::ROOT, leader);
                }
                Err(_) => {}
            }
            if self.env.now() > deadline {
                return Err(Error::unavailable("the SCN service has no leader"));
            }
            n_tries += 1;
            if n_tries % 8 == 4 {
                self.routes.write().forget_leader(TabletId::ROOT);
                self.refresh().await;
            }
            self.env.sleep(PAUSE_MIN * n_tries.min(10) as u32).await;
        }
    }

    /// Tells all participants the decision, then lets the anchor's record expire.
    pub(crate) async fn carry_out(
        self: &Arc<Self>,
        anchor: TabletId,
        txn: TxnId,
        outcome: Outcome,
        participants: &[TabletId],
    ) -> Result<(), Fault> {
        let tell =
            participants.iter().map(|tablet| self.ask(*tablet, Request::Resolve { txn, outcome }));
        for told in futures::future::join_all(tell).await {
            told?;
        }
        self.ask(anchor, Request::Forget { txn }).await?;
        Ok(())
    }

    /// Payload of an answer to a peer.
    fn reply<T: serde::Serialize>(answer: &T) -> Bytes {
        encode(answer)
    }
}

enum Attempt {
    Fault(Fault),
    /// It certainly did not arrive.
    Unsent,
    /// It may have arrived and been done.
    Unsure,
}

impl Request {
    /// May the same request be asked twice? A lock that is held is granted again, and a decision stands.
    /// But a commit whose answer was lost may have happened.
    fn may_repeat(&self) -> bool {
        !matches!(
            self,
            Request::Commit { .. }
                | Request::Prepare { .. }
                | Request::Check { .. }
                | Request::Split { .. }
        )
    }

    /// The lock table that the request rests on.
    fn epoch(&self) -> Option<Epoch> {
        match self {
            Request::Commit { epoch, .. }
            | Request::Prepare { epoch, .. }
            | Request::Check { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}
