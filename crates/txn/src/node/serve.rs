//! This node's answers to its peers, and the work that it does by itself from time to time.

use super::Node;
use crate::command::decode;
use crate::message::{
    ActiveRow, CoordinatorRequest, CoordinatorResponse, Fault, Request, Response, ScnRequest,
    WaitingRow,
};
use crate::tablet::Tablet;
use base::env::Instant;
use base::{NodeId, Scn, TabletId, TxnId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use transport::{Answer, MessageKind};

const SWEEP_EVERY: Duration = Duration::from_secs(1);
const CLOSE_EVERY: Duration = Duration::from_millis(200);

/// A leader's message to its followers: a replica that has applied entry `index` answers reads at or below
/// `scn` without the leader.
#[derive(Serialize, Deserialize)]
struct ClosedNews {
    tablet: TabletId,
    scn: Scn,
    index: u64,
}

pub(super) fn register(node: &Arc<Node>) {
    for kind in [MessageKind::Tablet, MessageKind::TabletBulk] {
        handle(node, kind, |node, _, payload| async move {
            let answer: Result<Response, Fault> =
                match decode::<(TabletId, Request)>(&payload, "a request") {
                    Ok((tablet, request)) => match node.tablet(tablet) {
                        Some(tablet) => tablet.serve_to_the_end(request).await,
                        None => Err(Fault::NotLeader { leader: None }),
                    },
                    Err(error) => Err(error.into()),
                };
            Node::reply(&answer)
        });
    }
    handle(node, MessageKind::Scn, |node, _, payload| async move {
        let grant =
            match (decode::<ScnRequest>(&payload, "an SCN request"), node.tablet(TabletId::ROOT)) {
                (Ok(request), Some(root)) => root.draw(request.n).await,
                (Err(error), _) => Err(error.into()),
                (_, None) => Err(Fault::NotLeader { leader: None }),
            };
        Node::reply(&grant)
    });
    handle(node, MessageKind::Coordinator, |node, _, payload| async move {
        match decode::<CoordinatorRequest>(&payload, "a question") {
            Ok(request) => Node::reply(&node.answer(request).await),
            // No answer decodes from nothing: the asker treats it as silence.
            Err(_) => Bytes::new(),
        }
    });
    handle(node, MessageKind::ClosedScn, |node, _, payload| async move {
        if let Ok(news) = decode::<Vec<ClosedNews>>(&payload, "closed SCNs") {
            for ClosedNews { tablet, scn, index } in news {
                if let Some(tablet) = node.tablet(tablet) {
                    tablet.learn_closed(scn, index);
                }
            }
        }
        Bytes::new()
    });
}

fn handle<F>(
    node: &Arc<Node>,
    kind: MessageKind,
    work: impl Fn(Arc<Node>, NodeId, Bytes) -> F + Send + Sync + 'static,
) where
    F: Future<Output = Bytes> + Send + 'static,
{
    let weak: Weak<Node> = Arc::downgrade(node);
    node.transport.handle(kind, move |from: NodeId, payload: Bytes| -> Answer {
        match weak.upgrade() {
            Some(node) => Box::pin(work(node, from, payload)),
            None => Box::pin(std::future::ready(Bytes::new())),
        }
    });
}

impl Node {
    pub(super) async fn answer(&self, request: CoordinatorRequest) -> CoordinatorResponse {
        match request {
            CoordinatorRequest::Alive(txns) => {
                let active = self.active.lock();
                let alive = txns.into_iter().filter(|txn| active.contains_key(txn)).collect();
                CoordinatorResponse::Alive(alive)
            }
            CoordinatorRequest::Waiting(txns) => {
                let since_start =
                    |at: Instant| at.saturating_duration_since(self.started).as_micros() as u64;
                let active = self.active.lock();
                let row = |txn: TxnId| {
                    let own = active.get(&txn)?;
                    let waiting = own.waiting.lock();
                    Some(WaitingRow {
                        txn,
                        tablets: waiting.keys().copied().collect(),
                        n_waits: own.n_waits.load(Ordering::Relaxed),
                        started_us: since_start(own.started),
                    })
                };
                let rows = txns.into_iter().filter_map(row).collect();
                CoordinatorResponse::Waiting { now_us: since_start(self.env.now()), rows }
            }
            CoordinatorRequest::MayDoom { arbiter, victim } => {
                let now = self.env.now();
                let active = self.active.lock();
                let may = active.get(&arbiter).is_some_and(|own| own.may_doom(victim, now));
                CoordinatorResponse::MayDoom(may)
            }
            CoordinatorRequest::Doom { txn, n_waits, detail } => {
                if let Some(active) = self.active.lock().get(&txn) {
                    active.doom(n_waits, detail);
                }
                CoordinatorResponse::Done
            }
            CoordinatorRequest::Active => {
                let active = self.active.lock();
                let rows = active.iter().map(|(txn, active)| ActiveRow {
                    txn: *txn,
                    committing: active.committing.load(Ordering::Relaxed),
                    isolation: active.isolation,
                    started_us: active.started_us,
                });
                CoordinatorResponse::Active(rows.collect())
            }
            CoordinatorRequest::Replicas => {
                let rows = self.local().into_iter().map(|tablet| self.replica_row(&tablet));
                CoordinatorResponse::Replicas(rows.collect())
            }
            CoordinatorRequest::Sizes => CoordinatorResponse::Sizes(self.sizes().await),
        }
    }

    /// Reads the disk, and so runs on a thread that may wait for the disk.
    async fn sizes(&self) -> Vec<(TabletId, u64)> {
        let (tablets, store) = (self.local(), self.store.clone());
        let measure = move || {
            let size = |tablet: &Arc<Tablet>| {
                let bytes = store.approximate_bytes(&tablet.range()?).ok()?;
                Some((tablet.id, bytes))
            };
            tablets.iter().filter_map(size).collect()
        };
        // It is for people: a node that is ending shows none.
        tokio::task::spawn_blocking(measure).await.unwrap_or_default()
    }

    async fn close(self: &Arc<Self>, last: &mut Scn) {
        let led: Vec<_> = self.local().into_iter().filter(|tablet| tablet.is_leader()).collect();
        if led.is_empty() {
            return;
        }
        let Ok(current) = self.current_scn().await else { return };
        if current == *last {
            return;
        }
        *last = current;
        let mut news = Vec::new();
        for tablet in led {
            if let Some((scn, index)) = tablet.close(current) {
                news.push(ClosedNews { tablet: tablet.id, scn, index });
            }
            // A commit was under way: look again although the counter has not moved.
            if tablet.closed_scn() < current {
                *last = Scn::ZERO;
            }
        }
        if news.is_empty() {
            return;
        }
        let payload = Node::reply(&news);
        let peers = self.members().into_iter().filter(|peer| *peer != self.me);
        let tell = peers.map(|peer| {
            self.transport.call(peer, MessageKind::ClosedScn, super::INSPECT, payload.clone())
        });
        // A message that does not arrive is followed by a newer one.
        drop(futures::future::join_all(tell).await);
    }
}

pub(super) fn run_housekeeping(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    let (env, soon) = (node.env.clone(), node.sweep_soon.clone());
    node.env.spawn("sweep", async move {
        loop {
            // Each second, and as soon as somebody calls.
            tokio::select! {
                () = env.sleep(SWEEP_EVERY) => {}
                () = soon.notified() => {}
            }
            let Some(node) = weak.upgrade() else { return };
            for tablet in node.local() {
                if tablet.is_leader() {
                    tablet.sweep(node.clone());
                }
            }
        }
    });
    let weak = Arc::downgrade(node);
    let env = node.env.clone();
    node.env.spawn("closed SCNs", async move {
        let mut last = Scn::ZERO;
        loop {
            env.sleep(CLOSE_EVERY).await;
            let Some(node) = weak.upgrade() else { return };
            node.close(&mut last).await;
        }
    });
}
