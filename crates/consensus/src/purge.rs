//! When a log is purged. openraft's own policy (a snapshot every few thousand entries) is off.
//!
//! Two things bound the purge. The log is kept from the index that is durable in the trees, because
//! after a crash it is replayed from there. And it is kept for members that may still ask for entries:
//!
//! * A member that is there and a few entries behind is always waited for. Otherwise each hiccup would
//!   end in a transfer of the whole state.
//! * For members that are away, `n_entries_kept` entries are kept; a member that misses more gets a
//!   snapshot. When the node's log runs out of space (the storage names the hoarders), fewer are kept.
//!
//! Example with 32,768 kept entries: the trees are durable up to 100,000, and the slowest member that is
//! there has 99,000. The log is purged up to 67,232.
//!
//! openraft purges nothing without a snapshot. Building one here moves no data (`applier`); it only says
//! how far the trees are durable.

use crate::group::{Group, age};
use crate::groups::Groups;
use openraft::async_runtime::watch::WatchReceiver as _;
use std::time::Duration;

/// Applied entries kept for absent members where space is short.
const KEPT_IN_NEED: u64 = 64;

impl Groups {
    pub(crate) fn run_purges(&self) {
        let weak = self.downgrade();
        let env = self.inner.env.clone();
        let every = self.inner.config.purge_every;
        self.inner.env.spawn("log purge", async move {
            loop {
                env.sleep(every).await;
                let Some(groups) = weak.upgrade() else { return };
                groups.purge().await;
            }
        });
    }

    async fn purge(&self) {
        let hoarders = self.inner.store.log().hoarders();
        for group in self.all() {
            let tablet = group.tablet();
            let kept = self.inner.config.n_entries_kept;
            let kept = if hoarders.contains(&tablet) { kept.min(KEPT_IN_NEED) } else { kept };
            let durable = self.inner.store.durable_index(tablet).unwrap_or(0);
            let present = group.matched_by_present(self.inner.config.election_max);
            let upto = durable.saturating_sub(kept).min(present.unwrap_or(u64::MAX));
            // Rarely enough that purging costs nothing, often enough that logs stay short.
            if upto < group.status().purged + kept.div_ceil(4).max(1) {
                continue;
            }
            let raft = &group.inner.raft;
            let purged = async {
                raft.trigger().snapshot().await?;
                raft.trigger().purge_log(upto).await
            };
            if let Err(fatal) = purged.await {
                tracing::warn!(%tablet, %fatal, "a log cannot be purged");
            }
        }
    }
}

impl Group {
    /// At a leader: the index up to which every member that answered lately has the log.
    fn matched_by_present(&self, lately: Duration) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref()?;
        let replication = metrics.replication.as_ref()?;
        let present = heard.iter().filter(|(node, at)| {
            **node != self.inner.me.0 && at.is_some_and(|at| age(*at) < lately)
        });
        present
            .map(|(node, _)| replication.get(node).copied().flatten().map_or(0, |id| id.index))
            .min()
    }
}
