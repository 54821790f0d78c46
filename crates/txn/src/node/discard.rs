//! Taking out rows that nobody will ever read again: those of dropped and truncated tables.
//!
//! Removing such rows needs no transaction, no version and no log entry. Each replica takes them out of its own
//! files, whole files at a time, and says so; when all replicas have, the rows are gone. A replica that does not
//! answer is asked again in the next round, so the caller keeps a note of the relation until then.
//!
//! Why that is safe: no definition names the range any more, and no snapshot in which one did can be read, so no
//! statement reads these rows. And a replica takes part only once it has applied all entries that the leader had when
//! the round began, so no entry is left that would write there. Example: the leader is at entry 900. A follower at
//! 850 answers "not yet", because entry 870 may be the last INSERT.

use super::Node;
use crate::Error;
use crate::command::{decode, encode};
use base::{KeyRange, NodeId, TabletId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use transport::{Answer, MessageKind};

/// How long one replica may take: it flushes, and looks into the files at the borders of the range.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Discard {
    tablet: TabletId,
    range: KeyRange,
    /// Only if this entry is applied.
    applied: u64,
}

pub(super) fn register(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    node.transport.handle(MessageKind::Discard, move |_: NodeId, payload: Bytes| -> Answer {
        let node = weak.upgrade();
        Box::pin(async move {
            let (Some(node), Ok(discard)) = (node, decode::<Discard>(&payload, "a removal")) else {
                return Bytes::new();
            };
            encode(&node.discard_here(discard).await)
        })
    });
}

impl Node {
    /// Takes all rows of `range` out of all replicas. False: not all have done it yet.
    pub(crate) async fn discard(self: &Arc<Self>, range: KeyRange) -> Result<bool, Error> {
        let mut rest = range;
        let mut is_done = true;
        while !rest.is_empty() {
            let (own, tablet) = self.tablet_of(&rest.start).await?;
            let part = own.intersect(&rest);
            is_done &= self.discard_in(tablet, part.clone()).await;
            match part.end {
                Some(end) => rest.start = end,
                None => break,
            }
        }
        Ok(is_done)
    }

    async fn discard_in(self: &Arc<Self>, tablet: TabletId, range: KeyRange) -> bool {
        let replicas = self.all_replicas().await;
        let replicas: Vec<_> = replicas.into_iter().filter(|row| row.tablet == tablet).collect();
        // The leader tells the entry and the members; without a leader the round is given up.
        let leader = replicas.iter().filter(|row| row.leader == Some(row.node));
        let Some(leader) = leader.max_by_key(|row| row.term) else { return false };
        let applied = leader.applied_index;
        let asks = leader.members.iter().map(|&member| {
            let discard = Discard { tablet, range: range.clone(), applied };
            async move {
                if member == self.me {
                    return self.discard_here(discard).await;
                }
                let payload = encode(&discard);
                let kind = MessageKind::Discard;
                let answer = self.transport.call(member, kind, PATIENCE, payload).await;
                answer.is_ok_and(|answer| decode(&answer, "a removal's answer").unwrap_or(false))
            }
        });
        futures::future::join_all(asks).await.into_iter().all(|done| done)
    }

    async fn discard_here(&self, discard: Discard) -> bool {
        let Some(tablet) = self.tablet(discard.tablet) else { return false };
        let covers = tablet.range().is_some_and(|range| range.covers(&discard.range));
        // By the group's word: what a replica found applied when it started, no entry has told it since.
        let applied = tablet.group().map_or(0, |group| group.status().applied);
        if !covers || applied < discard.applied {
            return false;
        }
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || store.discard_rows(&discard.range)).await;
        match done {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(tablet = %tablet.id, %error, "rows of a dropped table could not be taken out; another round follows");
                false
            }
            Err(_) => false,
        }
    }
}
