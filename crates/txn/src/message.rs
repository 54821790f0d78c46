//! What nodes ask of a tablet's leader, of the SCN service, and of a transaction's coordinator.

use crate::Error;
use crate::command::{Changes, Outcome, SchemaUse};
use crate::locks::{LockRow, Target, Ticket};
use crate::words::{Isolation, LockMode, Row, Wait};
use base::{Key, KeyRange, NodeId, Scn, TabletId, TxnId};
use serde::{Deserialize, Serialize};

/// A bounded piece of what a transaction writes in one tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub number: u32,
    /// All other parts are prepared; the answer to this one is the tablet's promise.
    pub is_last: bool,
}

/// Which state a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAt {
    /// The newest committed state at the leader.
    Newest,
    Snapshot(Scn),
}

impl ReadAt {
    pub fn scn(self) -> Option<Scn> {
        match self {
            ReadAt::Newest => None,
            ReadAt::Snapshot(scn) => Some(scn),
        }
    }
}

/// Names one lock table's life: locks granted under another epoch are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// The node that has the table. Requests that rest on its locks go there, even if another node is
    /// thought to lead.
    pub node: NodeId,
    pub term: u64,
    /// Drawn at random when the table was made, so that a restarted process cannot repeat it.
    pub nonce: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    Read {
        at: ReadAt,
        keys: Vec<Key>,
        uses: Vec<SchemaUse>,
    },
    Scan(ScanRequest),
    Lock(LockRequest),
    /// A transaction that wrote in this tablet alone.
    Commit {
        txn: TxnId,
        epoch: Epoch,
        changes: Changes,
    },
    Prepare {
        txn: TxnId,
        epoch: Epoch,
        anchor: TabletId,
        part: Part,
        changes: Changes,
    },
    /// After the SCN was drawn: are the locks that were only read under still held?
    Check {
        txn: TxnId,
        epoch: Epoch,
    },
    Decide {
        txn: TxnId,
        outcome: Outcome,
        participants: Vec<TabletId>,
    },
    Resolve {
        txn: TxnId,
        outcome: Outcome,
    },
    Forget {
        txn: TxnId,
    },
    /// Rolls back: gives back all locks.
    Release {
        txn: TxnId,
    },
    /// How did this transaction end, as far as this tablet knows? With `fence`, a transaction that has
    /// not committed here by now never will.
    Outcome {
        txn: TxnId,
        fence: bool,
    },
    /// For deadlocks: which transactions do these wait for here, and which do those wait for in turn?
    WaitsFor {
        txns: Vec<TxnId>,
        /// Only the waits of `txns`, with what they ask for: a second look before a victim is chosen.
        only_these: bool,
    },
    Split {
        at: Key,
        child: TabletId,
    },
    Locks,
    /// Outcomes and undecided transactions, for `atoll.transactions`.
    Transactions {
        limit: usize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScanRequest {
    pub at: ReadAt,
    pub range: KeyRange,
    pub reverse: bool,
    pub n_rows_max: usize,
    pub uses: Vec<SchemaUse>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LockRequest {
    pub txn: TxnId,
    /// In key order.
    pub targets: Vec<Target>,
    pub mode: LockMode,
    pub wait: Wait,
    /// How long the transaction has waited for this already.
    pub waited_ms: u64,
    /// Answer with the newest row of every key.
    pub read: bool,
    /// First updater wins: a row that changed after this snapshot is refused.
    pub unchanged_since: Option<Scn>,
    pub uses: Vec<SchemaUse>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    Rows(Vec<Option<Row>>),
    Scanned(Scanned),
    Locked { epoch: Epoch, rows: Vec<LockedRow> },
    Committed(Scn),
    Decided(Outcome),
    Outcome(Option<Outcome>),
    WaitsFor(Vec<TxnWait>),
    Locks(Vec<LockRow>),
    Transactions(Vec<(TxnId, TxnState)>),
    Done,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum LockedRow {
    Held(Option<Row>),
    Skipped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scanned {
    pub rows: Vec<(Key, Row)>,
    /// The piece of the asked range that is done. The scan goes on at its end (at its start when
    /// reversed), in this tablet or the next.
    pub covered: KeyRange,
}

/// One wait in a tablet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TxnWait {
    pub txn: TxnId,
    /// Names this wait in the tablet: a later one of the same transaction has another.
    pub ticket: Ticket,
    /// Each with true if it holds something of what is asked for, and false if it only asked before.
    pub blockers: Vec<(TxnId, bool)>,
    /// What is asked for, if the request wanted to know.
    pub what: Option<(Target, LockMode)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnState {
    Committing,
    InDoubt,
    Ended(Outcome),
}

/// Why a tablet did not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// Nothing was done here.
    NotLeader {
        leader: Option<NodeId>,
    },
    /// Nothing was done: the key belongs to another tablet now.
    WrongTablet,
    /// The leadership was lost in the middle: the request may have been done.
    Lost,
    Failed(Error),
}

impl Fault {
    /// The error for the transaction's owner when there is nothing left to try.
    pub fn into_error(self) -> Error {
        match self {
            Fault::Failed(error) => error,
            Fault::NotLeader { .. } => Error::unavailable("a tablet has no leader at the moment"),
            Fault::WrongTablet => Error::unavailable("the borders of a tablet are changing"),
            Fault::Lost => {
                Error::unavailable("a tablet's leader was lost in the middle of a request")
            }
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Failed(error)
    }
}

impl From<storage::Error> for Fault {
    fn from(error: storage::Error) -> Fault {
        Fault::Failed(error.into())
    }
}

/// A request to the SCN service.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ScnRequest {
    /// How many numbers to hand out; 0 asks only for the newest one handed out.
    pub n: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ScnGrant {
    /// The first of the numbers handed out.
    pub first: Scn,
    /// The newest number handed out before them.
    pub current: Scn,
}

/// Questions to the node that runs a transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CoordinatorRequest {
    /// Which of these transactions are running there?
    Alive(Vec<TxnId>),
    /// In which tablets do these wait for locks, and since when do they run? Transactions that no longer
    /// run there are left out.
    Waiting(Vec<TxnId>),
    /// May the wait of `victim` be ended, to break a circle in which `arbiter` has the lowest id? The node that
    /// is asked runs `arbiter`.
    MayDoom { arbiter: TxnId, victim: TxnId },
    /// Break a deadlock: end the wait of `txn`, if it is still its wait number `n_waits`.
    Doom { txn: TxnId, n_waits: u64, detail: String },
    /// All running transactions, for `atoll.transactions`.
    Active,
    /// The replicas on that node, for routing and `atoll.tablets`. Costs memory only.
    Replicas,
    /// The sizes of their rows on disk, for `atoll.tablets`: a request of its own, because it reads the disk.
    Sizes,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CoordinatorResponse {
    Alive(Vec<TxnId>),
    MayDoom(bool),
    Waiting {
        /// By the coordinator's monotonic clock, since its process began.
        now_us: u64,
        rows: Vec<WaitingRow>,
    },
    Active(Vec<ActiveRow>),
    Replicas(Vec<ReplicaRow>),
    /// Bytes by tablet.
    Sizes(Vec<(TabletId, u64)>),
    Done,
}

/// A running transaction and its waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WaitingRow {
    pub txn: TxnId,
    pub tablets: Vec<TabletId>,
    /// How many waits it has begun.
    pub n_waits: u64,
    /// By the same clock as the answer's `now_us`.
    pub started_us: u64,
}

/// A running transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActiveRow {
    pub txn: TxnId,
    pub committing: bool,
    pub isolation: Isolation,
    /// By the coordinator's wall clock, for people.
    pub started_us: i64,
}

/// One replica, as its node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaRow {
    pub node: NodeId,
    pub tablet: TabletId,
    pub generation: u64,
    pub range: KeyRange,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub members: Vec<NodeId>,
    /// The voters that count, as this replica sees it.
    pub counting: Vec<NodeId>,
    pub applied_index: u64,
    pub closed: Scn,
}
