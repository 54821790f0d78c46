//! The closed list of messages between nodes, each with its policy.

use base::env::Runtime;

/// Traffic classes; one connection each, so that none queues behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Votes, heartbeats, log replication, death reports: small, and the cluster stalls without.
    Control,
    /// Requests that a user waits for.
    Foreground,
    /// Snapshots, backfills, repair.
    Bulk,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::Control, Priority::Foreground, Priority::Bulk];

    pub(crate) fn index(self) -> usize {
        match self {
            Priority::Control => 0,
            Priority::Foreground => 1,
            Priority::Bulk => 2,
        }
    }

    pub(crate) fn from_index(index: u8) -> Option<Priority> {
        Priority::ALL.get(usize::from(index)).copied()
    }
}

impl MessageKind {
    /// The runtime on which a request is answered. Requests that may read the disk or take long do not run
    /// on the threads that vote.
    pub(crate) fn runtime(self) -> Runtime {
        match self {
            MessageKind::RaftAppend
            | MessageKind::RaftVote
            | MessageKind::RaftPreVote
            | MessageKind::RaftTransferLeader
            | MessageKind::Scn
            | MessageKind::ClosedScn
            | MessageKind::DeathReport
            | MessageKind::Join
            | MessageKind::Topology => Runtime::Core,
            MessageKind::RaftSnapshot
            | MessageKind::Tablet
            | MessageKind::TabletBulk
            | MessageKind::Coordinator
            | MessageKind::Definitions
            | MessageKind::Discard
            | MessageKind::Inspect => Runtime::Serve,
        }
    }

    /// Whether senders without a node id (newcomers and supervisors) may send it.
    pub fn is_for_strangers(self) -> bool {
        matches!(self, MessageKind::Join | MessageKind::DeathReport)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $priority:ident;)*) => {
        /// One kind of request. Numbers are on the wire and are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum MessageKind { $($(#[$doc])* $name),* }

        impl MessageKind {
            pub fn number(self) -> u8 {
                match self { $(MessageKind::$name => $number),* }
            }

            pub fn from_number(number: u8) -> Option<MessageKind> {
                match number { $($number => Some(MessageKind::$name),)* _ => None }
            }

            pub fn priority(self) -> Priority {
                match self { $(MessageKind::$name => Priority::$priority),* }
            }
        }
    };
}

kinds! {
    /// Raft log entries and heartbeats of one group.
    RaftAppend = 1, Control;
    RaftVote = 2, Control;
    RaftPreVote = 3, Control;
    RaftTransferLeader = 4, Control;
    /// One chunk of a replica's state.
    RaftSnapshot = 5, Bulk;
    /// A request to a tablet's leader.
    Tablet = 10, Foreground;
    /// A request to the SCN service.
    Scn = 11, Foreground;
    /// A question about a transaction, to the node that runs it.
    Coordinator = 12, Foreground;
    /// A scan or a request that moves much data.
    TabletBulk = 13, Bulk;
    /// Up to which SCN followers may serve reads.
    ClosedScn = 14, Bulk;
    /// A supervisor's report that a worker is dead: a fact, not a suspicion.
    DeathReport = 21, Control;
    /// A new node asks to be let in.
    Join = 22, Control;
    /// The part of the schema `atoll` that each node knows of itself.
    Inspect = 23, Foreground;
    /// The nodes that a node knows.
    Topology = 24, Control;
    /// Definitions of tables that a transaction has changed.
    Definitions = 25, Foreground;
    /// Take out rows that nobody will ever read again.
    Discard = 26, Bulk;
}
