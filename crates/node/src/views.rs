//! The state behind the schema `atoll`, gathered from all nodes when somebody asks.

use crate::config::{AccessRule, Config};
use crate::membership::Membership;
use async_trait::async_trait;
use base::key::Hex;
use base::limits::Limit;
use base::{Limits, NodeId, Scn, TxnId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sql::Datum;
use sql::catalog::Changed;
use sql::views::AtollView;
use std::sync::Arc;
use std::time::Duration;
use storage::Store;
use transport::{Answer, MessageKind, Transport};
use txn::locks::Target;
use txn::{Client, Isolation, LockMode};

/// A node that does not answer in this time is shown as unreachable.
const INSPECT: Duration = Duration::from_millis(500);

/// How long a change of definitions waits until the other nodes have heard of it.
const DEFINITIONS: Duration = Duration::from_millis(300);

pub struct Views {
    config: Config,
    client: Client,
    membership: Arc<Membership>,
    store: Store,
    transport: Transport,
    limits: Limits,
}

/// What a node tells of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Inspected {
    boot: u64,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Segment {
    id: u64,
    age_s: u64,
    bytes: u64,
    replaced: Option<(Scn, Scn)>,
    held_by: Vec<String>,
}

fn number(value: u64) -> Datum {
    Datum::Int8(i64::try_from(value).unwrap_or(i64::MAX))
}

fn maybe(value: Option<u64>) -> Datum {
    value.map_or(Datum::Null, number)
}

fn text(value: impl AsRef<str>) -> Datum {
    Datum::Text(value.as_ref().into())
}

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> Datum {
    text(values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(","))
}

impl Views {
    pub fn new(
        config: Config,
        client: Client,
        membership: Arc<Membership>,
        store: Store,
        transport: Transport,
        limits: Limits,
    ) -> Arc<Views> {
        Arc::new(Views { config, client, membership, store, transport, limits })
    }

    /// Answers the other nodes' questions about this one.
    pub fn register(self: &Arc<Self>) {
        let this = self.clone();
        self.transport.handle(MessageKind::Inspect, move |_: NodeId, _: Bytes| -> Answer {
            let answer = this.inspect_self();
            Box::pin(std::future::ready(postcard::to_stdvec(&answer).unwrap_or_default().into()))
        });
    }

    /// Hears of definitions that were changed on other nodes.
    pub fn hear_definitions(&self, engine: sql::Engine) {
        self.transport.handle(MessageKind::Definitions, move |_: NodeId, news: Bytes| -> Answer {
            // What does not decode is a newer node's: the tablets tell as well.
            if let Ok(changed) = postcard::from_bytes::<Changed>(&news) {
                engine.forget(&changed);
            }
            Box::pin(std::future::ready(Bytes::new()))
        });
    }

    fn inspect_self(&self) -> Inspected {
        let segment = |info: storage::SegmentInfo| Segment {
            id: info.id,
            age_s: info.age.as_secs(),
            bytes: info.bytes,
            replaced: info.replaced,
            held_by: info.held_by,
        };
        let boot =
            self.membership.topology().nodes.get(&self.membership.me()).map_or(0, |row| row.boot);
        Inspected { boot, segments: self.store.segments().into_iter().map(segment).collect() }
    }

    async fn inspect(&self, node: NodeId) -> Option<Inspected> {
        if node == self.membership.me() {
            return Some(self.inspect_self());
        }
        let asked = self.transport.call(node, MessageKind::Inspect, INSPECT, Bytes::new()).await;
        postcard::from_bytes(&asked.ok()?).ok()
    }

    async fn inspect_all(&self) -> Vec<(NodeId, Option<Inspected>)> {
        let ids = self.membership.topology().ids();
        let asks = ids.into_iter().map(|id| async move { (id, self.inspect(id).await) });
        futures::future::join_all(asks).await
    }

    async fn nodes(&self) -> Vec<Vec<Datum>> {
        let inspected = self.inspect_all().await;
        let topology = self.membership.topology();
        let row = |row: &cluster::NodeRow| {
            let answer = inspected.iter().find(|(id, _)| *id == row.id);
            let up = answer.is_some_and(|(_, answer)| answer.is_some());
            let state = match (&row.replaced_by, up) {
                (Some(_), _) => "replaced",
                (None, true) => "up",
                (None, false) => "unreachable",
            };
            vec![
                number(row.id.0),
                text(&row.zone.0),
                text(row.peer_address.to_string()),
                text(row.sql_address.to_string()),
                text(state),
                if up { text("running") } else { Datum::Null },
                number(row.boot),
                Datum::TimestampTz(row.since_us),
                row.name.as_ref().map_or(Datum::Null, text),
            ]
        };
        topology.nodes.values().map(row).collect()
    }

    async fn tablets(&self) -> Vec<Vec<Datum>> {
        let topology = self.membership.topology();
        let zone = |node: &NodeId| topology.nodes.get(node).map(|row| row.zone.to_string());
        let tablets = self.client.inspector().tablets_with_sizes().await;
        let row = |tablet: txn::admin::TabletRow| {
            let shown = tablet.shown()?;
            let counting = tablet.counting();
            Some(vec![
                number(shown.tablet.0),
                text(Hex(&shown.range.start).to_string()),
                shown.range.end.as_ref().map_or(Datum::Null, |end| text(Hex(end).to_string())),
                maybe(tablet.leader.as_ref().map(|leader| leader.node.0)),
                list(&counting),
                list(counting.iter().filter_map(zone)),
                maybe(tablet.bytes),
                number(shown.applied_index),
                number(shown.closed.0),
                number(shown.term),
                list(&shown.members),
            ])
        };
        tablets.into_iter().filter_map(row).collect()
    }

    async fn transactions(&self) -> Vec<Vec<Datum>> {
        let rows = self.client.inspector().transactions().await;
        let row = |row: txn::admin::TransactionRow| {
            let isolation = row.active.as_ref().map(|active| match active.isolation {
                Isolation::ReadCommitted => "read committed",
                Isolation::RepeatableRead => "repeatable read",
                Isolation::Serializable => "serializable",
            });
            vec![
                number(row.txn.0),
                text(row.state),
                maybe(row.scn.map(|scn| scn.0)),
                number(row.txn.node().0),
                isolation.map_or(Datum::Null, text),
                row.active.map_or(Datum::Null, |active| Datum::TimestampTz(active.started_us)),
            ]
        };
        rows.into_iter().map(row).collect()
    }

    /// One line a holder, and for those who wait one line for each they wait for.
    async fn locks(&self) -> Vec<Vec<Datum>> {
        let mut rows = Vec::new();
        for (tablet, lock) in self.client.inspector().locks().await {
            let target = match &lock.target {
                Target::Key(key) => Hex(key).to_string(),
                Target::Range(range) => range.to_string(),
            };
            let mode = match lock.mode {
                LockMode::Shared => "shared",
                LockMode::Exclusive => "exclusive",
            };
            let mut blockers: Vec<Option<TxnId>> = lock.blocked_by.into_iter().map(Some).collect();
            if blockers.is_empty() {
                blockers.push(None);
            }
            rows.extend(blockers.into_iter().map(|blocker| {
                vec![
                    number(tablet.0),
                    text(&target),
                    text(mode),
                    number(lock.txn.0),
                    Datum::Bool(lock.granted),
                    if lock.granted { Datum::Null } else { number(lock.waited_ms) },
                    maybe(blocker.map(|txn| txn.0)),
                ]
            }));
        }
        rows
    }

    async fn segments(&self) -> Vec<Vec<Datum>> {
        let mut rows = Vec::new();
        for (node, inspected) in self.inspect_all().await {
            for segment in inspected.into_iter().flat_map(|inspected| inspected.segments) {
                rows.push(vec![
                    number(node.0),
                    number(segment.id),
                    number(segment.age_s),
                    number(segment.bytes),
                    maybe(segment.replaced.map(|(lowest, _)| lowest.0)),
                    maybe(segment.replaced.map(|(_, highest)| highest.0)),
                    match segment.held_by.is_empty() {
                        true => Datum::Null,
                        false => list(segment.held_by),
                    },
                ]);
            }
        }
        rows
    }

    fn access(&self) -> Vec<Vec<Datum>> {
        let rules = self.config.rules().into_iter().enumerate();
        let row = |(n, rule): (usize, AccessRule)| {
            vec![
                number(n as u64 + 1),
                text(rule.address),
                text(rule.database),
                text(rule.role),
                text(format!("{:?}", rule.tls).to_lowercase()),
                text(format!("{:?}", rule.method).to_lowercase()),
            ]
        };
        rules.map(row).collect()
    }

    fn settings(&self) -> Vec<Vec<Datum>> {
        let limits = self.limits.list().into_iter().map(|limit| {
            let Limit { name, value, unit, what } = limit;
            [name.to_owned(), value.to_string(), unit.name().to_owned(), what.to_owned()]
        });
        let rows = self.config.rows().into_iter().chain(limits);
        rows.map(|row| row.iter().map(text).collect()).collect()
    }
}

#[async_trait]
impl sql::views::Source for Views {
    async fn rows(&self, view: AtollView) -> Vec<Vec<Datum>> {
        match view {
            AtollView::Nodes => self.nodes().await,
            AtollView::Tablets => self.tablets().await,
            AtollView::Transactions => self.transactions().await,
            AtollView::Locks => self.locks().await,
            AtollView::RollbackSegments => self.segments().await,
            AtollView::Settings => self.settings(),
            AtollView::Access => self.access(),
        }
    }

    async fn definitions_changed(&self, changed: &Changed) {
        let Ok(news) = postcard::to_stdvec(changed).map(Bytes::from) else { return };
        let me = self.membership.me();
        let others = self.membership.topology().ids().into_iter().filter(|id| *id != me);
        let tell = others
            .map(|id| self.transport.call(id, MessageKind::Definitions, DEFINITIONS, news.clone()));
        // A node that does not hear it is told by the tablets.
        drop(futures::future::join_all(tell).await);
    }
}
