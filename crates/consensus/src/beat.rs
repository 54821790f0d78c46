//! The one timer of all groups: heartbeats that leave together, and elections when they stop.
//!
//! [`TICK`] times per heartbeat this timer looks at the pulses of all groups, which costs a few atomic
//! loads per group. The heartbeats of all groups that this node leads leave at the same moment, so that
//! the transport writes those for one peer together. Groups at rest send no heartbeat: each peer gets
//! one message that names them (`pulse` says why that is enough).

use crate::group::Group;
use crate::groups::Groups;
use crate::network::Append;
use crate::pulse::Due;
use crate::types::{decode, encode};
use base::{NodeId, TabletId};
use std::collections::HashMap;
use std::time::Duration;
use transport::MessageKind;

/// Looks at the pulses per heartbeat.
const TICK: u32 = 4;
/// A group that was asked nothing for this long may fall quiet.
const REST: Duration = Duration::from_secs(3);

impl Groups {
    pub(crate) fn run_beats(&self) {
        let weak = self.downgrade();
        let env = self.inner.env.clone();
        let tick = self.inner.config.heartbeat / TICK;
        self.inner.env.spawn("heartbeats", async move {
            for n in 0_u32.. {
                env.sleep(tick).await;
                let Some(groups) = weak.upgrade() else { return };
                groups.look(n.is_multiple_of(TICK)).await;
            }
        });
    }

    async fn look(&self, beat: bool) {
        let now_us = self.inner.now_us();
        let rest_us = REST.as_micros() as u64;
        let mut awake: Vec<Group> = Vec::new();
        let mut candidates: Vec<Group> = Vec::new();
        let mut quiet: HashMap<NodeId, Vec<(TabletId, u64)>> = HashMap::new();
        for group in self.inner.groups.read().values() {
            let pulse = &group.inner.pulse;
            match pulse.due(now_us) {
                Due::Nothing => {}
                Due::Campaign if group.inner.is_silent() && !self.sets_free(group) => {}
                Due::Campaign => candidates.push(group.clone()),
                Due::Beat if !beat => {}
                Due::Beat => {
                    if !pulse.is_quiet() && pulse.is_resting(now_us, rest_us) && group.is_settled()
                    {
                        pulse.fall_quiet();
                    }
                    if !pulse.is_quiet() {
                        awake.push(group.clone());
                        continue;
                    }
                    let standing = pulse.standing();
                    for peer in &standing.peers {
                        quiet.entry(*peer).or_default().push((group.tablet(), standing.term));
                    }
                }
            }
        }
        for group in awake {
            // The end of a group that has stopped is noticed elsewhere (`run_roles`).
            if let Err(fatal) = group.inner.raft.trigger().heartbeat().await {
                tracing::debug!(tablet = %group.tablet(), %fatal, "no heartbeat");
            }
        }
        for group in candidates {
            let pulse = &group.inner.pulse;
            let retry_us = match pulse.is_hurried(now_us) {
                true => self.hurried_us(),
                false => self.retry_us(),
            };
            pulse.campaigned(now_us + retry_us, self.patience_us());
            group.try_campaign().await;
        }
        for (peer, groups) in quiet {
            self.name_quiet(peer, groups);
        }
    }

    /// Tells `peer` which groups this node leads quietly. The peer names those that it does not know,
    /// and those of which it holds entries that it has not applied. The leader then proposes an entry
    /// that does nothing in these groups: a member that has just started learns only from a new entry
    /// how much of the log on its disk is committed, and not from heartbeats.
    fn name_quiet(&self, peer: NodeId, named: Vec<(TabletId, u64)>) {
        let groups = self.clone();
        self.inner.env.spawn("quiet groups", async move {
            let inner = &groups.inner;
            let payload = encode(&Append::Quiet(named));
            let deadline = inner.config.heartbeat;
            let answer =
                inner.transport.call(peer, MessageKind::RaftAppend, deadline, payload).await;
            let unknown: Vec<TabletId> = match answer.map(|answer| decode(&answer)) {
                Ok(Ok(unknown)) => unknown,
                // The peer will hear of them again at the next beat.
                Ok(Err(_)) | Err(_) => return,
            };
            let awoken = unknown.into_iter().filter_map(|tablet| groups.get(tablet));
            futures::future::join_all(awoken.map(|group| async move { group.nudge().await })).await;
        });
    }

    /// The named groups that their leader must wake.
    pub(crate) fn hear_quiet(&self, from: NodeId, named: &[(TabletId, u64)]) -> Vec<TabletId> {
        let now_us = self.inner.now_us();
        let loyalty_us = self.inner.loyalty_us();
        let groups = self.inner.groups.read();
        let unknown = named.iter().filter(|(tablet, term)| {
            let Some(group) = groups.get(tablet) else { return true };
            !group.inner.pulse.heard_quiet(from, *term, now_us, loyalty_us)
                || !group.has_applied_all()
        });
        unknown.map(|(tablet, _)| *tablet).collect()
    }

    /// How long this node waits for a silent leader before it campaigns.
    pub(crate) fn patience_us(&self) -> u64 {
        let (min, max) = (self.inner.config.election_min, self.inner.config.election_max);
        let spread_us = max.saturating_sub(min).as_micros() as u64;
        min.as_micros() as u64 + self.inner.env.random_below(spread_us)
    }

    /// How long after a failed campaign the next one begins. The leader's time is over by then; the
    /// random part only keeps two candidates from campaigning at the same time again.
    fn retry_us(&self) -> u64 {
        let heartbeat_us = self.inner.config.heartbeat.as_micros() as u64;
        heartbeat_us / 2 + self.inner.env.random_below(heartbeat_us * 2)
    }

    /// The same for a replica in a hurry, whose voters may be starting at this moment.
    pub(crate) fn hurried_us(&self) -> u64 {
        let heartbeat_us = self.inner.config.heartbeat.as_micros() as u64;
        heartbeat_us / 4 + self.inner.env.random_below(heartbeat_us / 2)
    }
}
