//! The messages of supervisors and newcomers.

use crate::Topology;
use base::{NodeId, Zone};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a newcomer waits for an answer. After that the asked node no longer lets it in, because by
/// then another node may listen at the newcomer's address.
pub const JOIN_TRY: Duration = Duration::from_secs(5);

/// "The worker of this node, in this start of it, is dead." The process that reaped or killed the worker
/// reports it, so it is a fact and not a suspicion (Falcon's rule: kill before you report). It is believed only
/// from a holder of that node's own certificate: its supervisor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeathReport {
    pub node: NodeId,
    pub boot: u64,
}

impl DeathReport {
    /// False if a later start of the worker lives: the report was long on its way. `newest_boot` is the
    /// newest start of that node that this node has heard from.
    pub fn is_news(&self, newest_boot: Option<u64>) -> bool {
        newest_boot.is_none_or(|newest| newest <= self.boot)
    }
}

/// A node without an identity asks to be let in. Its name comes from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Drawn once for a data directory without an identity. The newcomer asks with the same ticket each time.
    pub ticket: u64,
    pub zone: Zone,
    pub peer_address: SocketAddr,
    pub sql_address: SocketAddr,
}

/// Its identity from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub cluster: u64,
    pub node: NodeId,
    pub topology: Topology,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_earlier_start_is_no_news() {
        let report = DeathReport { node: NodeId(2), boot: 5 };
        assert!(report.is_news(None));
        assert!(report.is_news(Some(5)));
        assert!(!report.is_news(Some(6)), "the sixth start is alive");
    }
}
