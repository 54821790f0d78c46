//! Splits that operators order, and the state behind the schema `atoll`.

use crate::Error;
use crate::locks::LockRow;
use crate::message::{
    ActiveRow, CoordinatorRequest, CoordinatorResponse, Fault, ReplicaRow, Request, Response,
    TxnState,
};
use crate::node::{FIRST_DATA_RELATION, Node};
use base::{Key, NodeId, Scn, TabletId, TxnId};
use futures::future::BoxFuture;
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Ended transactions that one tablet shows.
const N_ENDED_MAX: usize = 10_000;
/// How long a split waits for leaders to settle.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn split(node: &Arc<Node>, key: Key) -> Result<(), Error> {
    if key < Key::copy_from_slice(&FIRST_DATA_RELATION.to_be_bytes()) {
        return Err(Error::Refused { reason: "the root tablet cannot be split".into() });
    }
    // An SCN is handed out once, so it can serve as an id.
    let child = TabletId(node.draw().await.map_err(Fault::into_error)?.0);
    let deadline = node.env.now() + PATIENCE;
    loop {
        let (range, tablet) = node.tablet_of(&key).await?;
        if range.start == key {
            return settled(node, tablet).await;
        }
        let refused = match node.ask(tablet, Request::Split { at: key.clone(), child }).await {
            // The child is found once it is born; look until it is led.
            Ok(_) => None,
            Err(Fault::Failed(error @ Error::Unavailable { .. })) => Some(error),
            Err(Fault::Failed(error)) => return Err(error),
            Err(fault) => Some(fault.into_error()),
        };
        if let Some(error) = refused.filter(|_| node.env.now() > deadline) {
            return Err(error);
        }
        node.refresh().await;
        node.env.sleep(PAUSE).await;
    }
}

/// Waits until the tablet has a leader.
async fn settled(node: &Arc<Node>, tablet: TabletId) -> Result<(), Error> {
    node.ask(tablet, Request::Locks).await.map(|_| ()).map_err(Fault::into_error)
}

/// One tablet, from all its replicas.
#[derive(Clone, Debug)]
pub struct TabletRow {
    pub leader: Option<ReplicaRow>,
    pub replicas: Vec<ReplicaRow>,
    /// On the leader's disk; none where the leader did not answer.
    pub bytes: Option<u64>,
}

impl TabletRow {
    /// The replica that knows best: the leader, or the one in the newest term.
    pub fn shown(&self) -> Option<&ReplicaRow> {
        self.leader.as_ref().or_else(|| self.replicas.iter().max_by_key(|row| row.term))
    }

    /// The replicas of which a majority keeps the tablet: voters in whichever configuration decides, whose
    /// nodes answer and know these members themselves. A newcomer that is being filled is not among them,
    /// nor a node that is gone. So when all are there again, any one of them may go.
    pub fn counting(&self) -> Vec<NodeId> {
        let Some(shown) = self.shown() else { return Vec::new() };
        let agrees = |node: &NodeId| {
            let own = self.replicas.iter().filter(|row| row.node == *node);
            own.max_by_key(|row| row.generation).is_some_and(|row| row.members == shown.members)
        };
        let mut counting: Vec<NodeId> = shown.counting.iter().copied().filter(agrees).collect();
        counting.sort_unstable();
        counting
    }
}

/// One line of `atoll.transactions`.
#[derive(Clone, Debug)]
pub struct TransactionRow {
    pub txn: TxnId,
    /// `active`, `committing`, `in doubt`, `committed` or `aborted`.
    pub state: &'static str,
    pub scn: Option<Scn>,
    pub active: Option<ActiveRow>,
}

#[derive(Clone)]
pub struct Inspector {
    node: Arc<Node>,
}

impl Inspector {
    pub(crate) fn new(node: Arc<Node>) -> Inspector {
        Inspector { node }
    }

    /// All tablets, in key order.
    pub fn tablets(&self) -> BoxFuture<'_, Vec<TabletRow>> {
        Box::pin(async move {
            let mut tablets: BTreeMap<TabletId, TabletRow> = BTreeMap::new();
            for row in self.node.all_replicas().await {
                let tablet = tablets.entry(row.tablet).or_insert_with(|| TabletRow {
                    leader: None,
                    replicas: Vec::new(),
                    bytes: None,
                });
                let leads = row.leader == Some(row.node);
                let newer = tablet.leader.as_ref().is_none_or(|known| known.term < row.term);
                if leads && newer {
                    tablet.leader = Some(row.clone());
                }
                tablet.replicas.push(row);
            }
            let mut tablets: Vec<TabletRow> = tablets.into_values().collect();
            let start = |row: &TabletRow| {
                row.leader.as_ref().or(row.replicas.first()).map(|row| row.range.start.clone())
            };
            tablets.sort_by_key(start);
            tablets
        })
    }

    /// The same with the leaders' sizes.
    pub fn tablets_with_sizes(&self) -> BoxFuture<'_, Vec<TabletRow>> {
        Box::pin(async move {
            let members = self.node.members();
            let asks = members.iter().map(|node| async move {
                match self.node.inspect(*node, &CoordinatorRequest::Sizes).await {
                    Some(CoordinatorResponse::Sizes(sizes)) => (*node, sizes),
                    _ => (*node, Vec::new()),
                }
            });
            let (mut tablets, sizes) = futures::join!(self.tablets(), join_all(asks));
            let sizes: HashMap<(NodeId, TabletId), u64> = sizes
                .into_iter()
                .flat_map(|(node, sizes)| {
                    sizes.into_iter().map(move |(tablet, bytes)| ((node, tablet), bytes))
                })
                .collect();
            for row in &mut tablets {
                let leader = row.leader.as_ref().map(|leader| (leader.node, leader.tablet));
                row.bytes = leader.and_then(|leader| sizes.get(&leader).copied());
            }
            tablets
        })
    }

    async fn ask_all(&self, request: Request) -> Vec<(TabletId, Response)> {
        let tablets = self.tablets().await;
        let ids: Vec<TabletId> =
            tablets.iter().filter_map(|row| row.replicas.first().map(|row| row.tablet)).collect();
        let asks = ids.into_iter().map(|tablet| {
            let request = request.clone();
            async move { (tablet, self.node.ask(tablet, request).await) }
        });
        let answers = join_all(asks).await;
        answers.into_iter().filter_map(|(tablet, answer)| Some((tablet, answer.ok()?))).collect()
    }

    pub fn locks(&self) -> BoxFuture<'_, Vec<(TabletId, LockRow)>> {
        Box::pin(async move {
            let mut rows = Vec::new();
            for (tablet, answer) in self.ask_all(Request::Locks).await {
                if let Response::Locks(more) = answer {
                    rows.extend(more.into_iter().map(|row| (tablet, row)));
                }
            }
            rows
        })
    }

    pub fn transactions(&self) -> BoxFuture<'_, Vec<TransactionRow>> {
        Box::pin(async move {
            let mut rows: BTreeMap<TxnId, TransactionRow> = BTreeMap::new();
            let members = self.node.members();
            let asks =
                members.iter().map(|node| self.node.inspect(*node, &CoordinatorRequest::Active));
            for answer in join_all(asks).await.into_iter().flatten() {
                let CoordinatorResponse::Active(active) = answer else { continue };
                for active in active {
                    let state = if active.committing { "committing" } else { "active" };
                    let txn = active.txn;
                    rows.insert(
                        txn,
                        TransactionRow { txn, state, scn: None, active: Some(active) },
                    );
                }
            }
            for (_, answer) in self.ask_all(Request::Transactions { limit: N_ENDED_MAX }).await {
                let Response::Transactions(ended) = answer else { continue };
                for (txn, state) in ended {
                    use crate::command::Outcome::{Aborted, Committed};
                    let (state, scn) = match state {
                        TxnState::Committing => ("committing", None),
                        TxnState::InDoubt => ("in doubt", None),
                        TxnState::Ended(Committed(scn)) => ("committed", Some(scn)),
                        TxnState::Ended(Aborted) => ("aborted", None),
                    };
                    let row =
                        rows.entry(txn).or_insert(TransactionRow { txn, state, scn, active: None });
                    // A record knows the decision; a part of another tablet may not have heard of it.
                    if scn.is_some() || state == "aborted" {
                        (row.state, row.scn) = (state, scn);
                    }
                }
            }
            rows.into_values().collect()
        })
    }
}
