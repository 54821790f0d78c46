//! The catalog's rows: their relations, keys and bytes.
//!
//! Relation numbers and the format byte are on disk: they never change their meaning.

use super::RelationId;
use crate::codec;
use crate::error::{Error, Result};
use crate::types::Datum;
use base::Key;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub const SCHEMAS: RelationId = RelationId(40);
pub const NAMES: RelationId = RelationId(41);
pub const TABLES: RelationId = RelationId(42);
pub const SEQUENCES: RelationId = RelationId(43);
pub const USERS: RelationId = RelationId(44);
pub const GARBAGE: RelationId = RelationId(45);
pub const COUNTERS: RelationId = RelationId(46);

/// Ids below are PostgreSQL's own.
pub const FIRST_ID: u32 = 16_384;

/// First byte of every value here. A change of a descriptor's fields raises it: see FORMAT.md.
const FORMAT: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Table,
    Index,
    Sequence,
}

/// What a name row holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    pub kind: Kind,
    pub id: u32,
    /// The table that an index belongs to; else 0.
    pub table: u32,
}

pub fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    let bytes = postcard::to_extend(value, vec![FORMAT])
        .map_err(|error| Error::internal(format!("a catalog row cannot be encoded: {error}")))?;
    Ok(bytes.into())
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bytes {
        [FORMAT, rest @ ..] => postcard::from_bytes(rest)
            .map_err(|error| Error::internal(format!("a catalog row is damaged: {error}"))),
        _ => Err(Error::internal("a catalog row was written by a newer version of Atoll")),
    }
}

fn by_id(relation: RelationId, id: u32) -> Key {
    let mut key = codec::key_prefix(relation, 4);
    key.extend_from_slice(&id.to_be_bytes());
    key.into()
}

fn by_text(relation: RelationId, parts: &[&str]) -> Key {
    let mut key = codec::key_prefix(relation, 32);
    parts.iter().for_each(|part| codec::encode_key(&Datum::text(part), &mut key));
    key.into()
}

pub fn table_key(id: u32) -> Key {
    by_id(TABLES, id)
}

pub fn sequence_key(id: u32) -> Key {
    by_id(SEQUENCES, id)
}

pub fn name_key(schema: &str, name: &str) -> Key {
    by_text(NAMES, &[schema, name])
}

pub fn user_key(name: &str) -> Key {
    by_text(USERS, &[name])
}

pub fn schema_key(name: &str) -> Key {
    by_text(SCHEMAS, &[name])
}

pub fn garbage_key(relation: RelationId) -> Key {
    by_id(GARBAGE, relation.0)
}

pub fn next_id_key() -> Key {
    by_text(COUNTERS, &["next id"])
}
