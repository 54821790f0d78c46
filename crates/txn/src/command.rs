//! What the tablets of a cluster agree on: the commands in their Raft logs.
//!
//! A transaction that wrote little, and in one tablet, is one [`Command::Commit`]. Any other is
//! prepared in every tablet that it wrote, in parts of bounded size; decided by one record in the first
//! of these tablets, the anchor; and then resolved part by part:
//!
//! ```text
//! tablet 4 (anchor)   Prepare ──┐            Decide(scn) ── answer    Resolve …  Forget
//! tablet 9            Prepare ──┴─ draw SCN ─┘                        Resolve
//! ```
//!
//! Every command that rests on locks carries the term in which the locks were held. If the log entry
//! has another term, all replicas refuse the command alike. So "lost locks abort" holds even for
//! proposals that were under way when the leader changed. Example: T1 locked in term 7 at node 2, which
//! loses the leadership and leads again in term 9. Its late proposal says 7 and stands in an entry of
//! term 9: refused.
//!
//! The bytes are in FORMAT.md. Variants and fields keep their order, because the encoding counts them.

use base::{Key, KeyRange, Scn, TabletId, TxnId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A write: the new value, or none for a deletion.
pub type Write = (Key, Option<Bytes>);

/// "This went by definition `version` of `table`."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaUse {
    pub table: u32,
    pub version: u64,
}

/// What one transaction changes in one tablet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub writes: Vec<Write>,
    pub uses: Vec<SchemaUse>,
    /// From the commit on, the tablet refuses requests that go by an older definition.
    pub barriers: Vec<SchemaUse>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Committed(Scn),
    Aborted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Root tablet only: SCNs up to this one may be handed out.
    Ceiling { scn: Scn },
    /// A whole transaction in this tablet.
    Commit { txn: TxnId, term: u64, scn: Scn, changes: Changes },
    /// Part `part` of what a transaction writes here; `anchor` will hold its record.
    Prepare { txn: TxnId, term: u64, anchor: TabletId, part: u32, changes: Changes },
    /// Writes the record of a transaction, unless there is one already: the first decision stands.
    /// `participants` are the tablets with prepared parts.
    Decide { txn: TxnId, outcome: Outcome, participants: Vec<TabletId> },
    /// Carries out the decision for one prepared part.
    Resolve { txn: TxnId, part: u32, outcome: Outcome },
    /// All participants are resolved: the record may expire.
    Forget { txn: TxnId },
    /// Keys from `at` on become tablet `child`.
    Split { term: u64, at: Key, child: TabletId },
}

/// What applying a command answers to its proposer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    Done,
    /// The decision that stands, which may be an earlier one.
    Decided(Outcome),
    /// Not carried out, on any replica.
    Rejected(Reject),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reject {
    /// The locks were held in another term.
    Term,
    /// A key lies outside of the tablet's range, which changed meanwhile.
    Range,
    /// The table's definition is newer.
    Schema { table: u32 },
    /// The transaction has already been decided here.
    Decided(Outcome),
    /// The tablet that was to be split has prepared transactions.
    Busy,
}

/// A tablet: an interval of keys. `generation` grows with every change of the interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    pub tablet: TabletId,
    pub generation: u64,
    pub range: KeyRange,
}

pub fn encode<T: Serialize>(value: &T) -> Bytes {
    // Serialising our own types into memory cannot fail: no maps with odd keys, no I/O.
    #[allow(clippy::expect_used)]
    let bytes = postcard::to_stdvec(value).expect("own types serialise");
    bytes.into()
}

pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, crate::Error> {
    postcard::from_bytes(bytes).map_err(|error| crate::Error::Internal {
        reason: format!("{what} does not decode: {error}"),
    })
}
