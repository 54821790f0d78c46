//! A replica's whole state on its way to another node.
//!
//! The sender streams the live state as the store shows it at one moment, chunk by chunk over the bulk
//! lane. The receiver stages the chunks in a file and installs the file as a whole, so that a crash in
//! between leaves the old state or the new one. A snapshot carries all of the tablet: rows, old
//! versions, prepared transactions, records and outcomes.

use crate::types::{SnapshotMeta, Types, Vote, encode};
use base::{NodeId, TabletId};
use bytes::Bytes;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::SnapshotOf;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use storage::{Export, Staging, Store, TabletRanges};
use transport::{MessageKind, Transport};

/// One chunk's way to the receiver's disk.
const CHUNK_DEADLINE: Duration = Duration::from_secs(10);
/// Installing writes the whole state.
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

pub enum SnapshotData {
    Outgoing {
        export: Box<Export>,
        ranges: TabletRanges,
    },
    Incoming {
        staging: Staging,
        ranges: TabletRanges,
    },
    /// Moves no data: it only says up to which index the trees are durable.
    Permission,
}

#[derive(Serialize, Deserialize)]
pub enum Message {
    Begin { tablet: TabletId, transfer: u64 },
    Chunk { tablet: TabletId, transfer: u64, chunk: Bytes },
    End { tablet: TabletId, transfer: u64, vote: Vote, meta: SnapshotMeta, ranges: TabletRanges },
}

/// Snapshots that are arriving, one per tablet. A transfer that begins takes the place of an earlier
/// one, which its sender has given up, or whose sender no longer leads.
#[derive(Default)]
pub struct Arriving {
    transfers: Mutex<HashMap<TabletId, Arc<Transfer>>>,
}

struct Transfer {
    from: NodeId,
    number: u64,
    staging: Mutex<Option<Staging>>,
}

const NONE: &str = "no such transfer is under way; send the snapshot again";

impl Arriving {
    pub fn begin(
        &self,
        tablet: TabletId,
        from: NodeId,
        number: u64,
        store: &Store,
    ) -> Result<(), String> {
        let staging = store.staging(tablet).map_err(|error| error.to_string())?;
        let transfer = Transfer { from, number, staging: Mutex::new(Some(staging)) };
        self.transfers.lock().insert(tablet, Arc::new(transfer));
        Ok(())
    }

    fn find(&self, tablet: TabletId, from: NodeId, number: u64) -> Result<Arc<Transfer>, String> {
        let transfers = self.transfers.lock();
        let found =
            transfers.get(&tablet).filter(|found| found.from == from && found.number == number);
        found.cloned().ok_or_else(|| NONE.into())
    }

    /// Writes a chunk to disk, off the threads that carry heartbeats.
    pub async fn chunk(
        &self,
        tablet: TabletId,
        from: NodeId,
        number: u64,
        chunk: Bytes,
    ) -> Result<(), String> {
        let transfer = self.find(tablet, from, number)?;
        let appended = tokio::task::spawn_blocking(move || match &mut *transfer.staging.lock() {
            Some(staging) => staging.append(&chunk).map_err(|error| error.to_string()),
            None => Err(NONE.into()),
        });
        appended.await.map_err(|error| error.to_string())?
    }

    pub fn end(&self, tablet: TabletId, from: NodeId, number: u64) -> Result<Staging, String> {
        let transfer = self.find(tablet, from, number)?;
        self.transfers.lock().remove(&tablet);
        transfer.staging.lock().take().ok_or_else(|| NONE.into())
    }
}

/// Sends a snapshot. After an error the caller logs it and tries again.
pub async fn send(
    transport: &Transport,
    to: NodeId,
    tablet: TabletId,
    transfer: u64,
    vote: Vote,
    snapshot: SnapshotOf<Types, SnapshotData>,
) -> Result<SnapshotResponse<Types>, String> {
    let SnapshotData::Outgoing { mut export, ranges } = snapshot.snapshot else {
        return Err("only a tablet's state can be sent".into());
    };
    let call = |message: Message, deadline| async move {
        let payload = encode(&message);
        let answer = transport.call(to, MessageKind::RaftSnapshot, deadline, payload).await;
        let answer = answer.map_err(|error| error.to_string())?;
        crate::types::decode::<Result<Option<SnapshotResponse<Types>>, String>>(&answer)
            .map_err(|error| error.to_string())?
    };
    call(Message::Begin { tablet, transfer }, CHUNK_DEADLINE).await?;
    loop {
        let (next, rest) = tokio::task::spawn_blocking(move || (export.next(), export))
            .await
            .map_err(|error| error.to_string())?;
        export = rest;
        let Some(chunk) = next.transpose().map_err(|error| error.to_string())? else { break };
        call(Message::Chunk { tablet, transfer, chunk }, CHUNK_DEADLINE).await?;
    }
    let end = Message::End { tablet, transfer, vote, meta: snapshot.meta, ranges };
    call(end, INSTALL_DEADLINE)
        .await?
        .ok_or_else(|| "the receiver did not answer with its vote".into())
}
