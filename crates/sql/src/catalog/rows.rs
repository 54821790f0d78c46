//! The catalog's rows: their relations, keys and bytes.
//!
//! Relation numbers and the format byte are on disk: they never change their meaning.

use super::acl::Class;
use super::roles::RoleId;
use super::{Place, RelationId};
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
pub const ROLES: RelationId = RelationId(44);
pub const GARBAGE: RelationId = RelationId(45);
pub const COUNTERS: RelationId = RelationId(46);
pub const DATABASES: RelationId = RelationId(47);
pub const ACLS: RelationId = RelationId(48);
pub const DEFAULT_ACLS: RelationId = RelationId(49);
pub const COMMENTS: RelationId = RelationId(50);
/// One row: how often what the others say of authority has changed.
pub const AUTHORITY_VERSION: RelationId = RelationId(51);

/// Ids below are PostgreSQL's own.
pub const FIRST_ID: u32 = 16_384;

/// First byte of every value here. A change of a descriptor's fields raises it: see FORMAT.md.
const FORMAT: u8 = 2;

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
        _ => Err(Error::internal("a catalog row was written by another version of Atoll")),
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

fn in_database(relation: RelationId, database: u32, parts: &[&str]) -> Key {
    let mut key = codec::key_prefix(relation, 36);
    key.extend_from_slice(&database.to_be_bytes());
    parts.iter().for_each(|part| codec::encode_key(&Datum::text(part), &mut key));
    key.into()
}

pub fn name_key(place: Place<'_>, name: &str) -> Key {
    in_database(NAMES, place.database, &[place.schema, name])
}

pub fn schema_key(place: Place<'_>) -> Key {
    in_database(SCHEMAS, place.database, &[place.schema])
}

pub fn role_key(name: &str) -> Key {
    by_text(ROLES, &[name])
}

pub fn database_key(name: &str) -> Key {
    by_text(DATABASES, &[name])
}

pub fn acl_key(class: Class, id: u32) -> Key {
    let mut key = codec::key_prefix(ACLS, 5);
    key.push(class.number());
    key.extend_from_slice(&id.to_be_bytes());
    key.into()
}

/// `schema` 0: every schema.
pub fn default_acl_key(database: u32, role: RoleId, schema: u32, class: Class) -> Key {
    let mut key = codec::key_prefix(DEFAULT_ACLS, 13);
    [database, role.0, schema].iter().for_each(|id| key.extend_from_slice(&id.to_be_bytes()));
    key.push(class.number());
    key.into()
}

/// `class` is the catalogue that the object is in, as an oid; `part` a column's number, or 0.
pub fn comment_key(class: u32, object: u32, part: u32) -> Key {
    let mut key = codec::key_prefix(COMMENTS, 12);
    [class, object, part].iter().for_each(|id| key.extend_from_slice(&id.to_be_bytes()));
    key.into()
}

pub fn authority_version_key() -> Key {
    by_text(AUTHORITY_VERSION, &[])
}

/// All rows of a relation as of the reader's snapshot.
pub async fn list<T: DeserializeOwned>(
    reader: &txn::Reader,
    relation: RelationId,
) -> Result<Vec<T>> {
    let mut scan = reader.scan(relation.range(), false, None);
    let mut all = Vec::new();
    loop {
        let batch = scan.next_batch().await?;
        if batch.is_empty() {
            return Ok(all);
        }
        for (_, row) in batch {
            all.push(decode(&row.value)?);
        }
    }
}

pub fn garbage_key(relation: RelationId) -> Key {
    by_id(GARBAGE, relation.0)
}

pub fn next_id_key() -> Key {
    by_text(COUNTERS, &["next id"])
}
