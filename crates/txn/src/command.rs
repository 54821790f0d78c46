//! What the tablets of a cluster agree on: the commands in their Raft logs.
//!
//! A transaction that wrote in one tablet, and little, is one [`Command::Commit`]. Any other is
//! prepared in every tablet it wrote, in parts of bounded size, decided by one record in the
//! first of them, and then resolved part by part:
//!
//! ```text
//! tablet 4 (anchor)   Prepare ──┐            Decide(scn) ── answer    Resolve …  Forget
//! tablet 9            Prepare ──┴─ draw SCN ─┘                        Resolve
//! ```
//!
//! Every command that rests on locks carries the term in which they were held. An entry applied
//! in another term than it was written for is refused by all replicas alike, which is what makes
//! "lost locks abort" hold even for proposals under way when the leader changed.

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
    /// From the commit on, older definitions are refused.
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
    /// The record of a transaction, unless there is one already: the first decision stands.
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
    /// A split met prepared transactions.
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
