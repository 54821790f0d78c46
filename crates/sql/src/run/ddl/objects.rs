//! Sequences, schemas, users, and dropping things.

use crate::catalog::{Catalog, Kind, Name, PUBLIC, Schema, Sequence, User, VIRTUAL_SCHEMAS, rows};
use crate::error::{Error, Result, state};
use crate::parse::{self, DropKind, SequenceOptions, UserOptions};
use crate::plan::undefined_table;
use crate::run::Exec;
use crate::types::Type;
use crate::wire::scram;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};
use sqlparser::ast;
use std::num::NonZeroU32;

/// Rounds of the password's hash, PostgreSQL's number.
const SCRAM_ROUNDS: u32 = 4_096;

impl Exec<'_> {
    // ---- sequences

    pub async fn create_sequence(
        &mut self,
        name: &ast::ObjectName,
        if_not_exists: bool,
        options: &SequenceOptions,
    ) -> Result<Option<String>> {
        let (schema, short) = self.new_name(name).await?;
        if if_not_exists && Catalog::lock_name(self.txn, &schema, &short).await?.is_some() {
            return Ok(Some(format!("relation \"{short}\" already exists, skipping")));
        }
        let owner = self.owner_of(options).await?.flatten();
        self.make_sequence(&schema, &short, options, owner).await?;
        Ok(None)
    }

    /// The id of a fresh sequence.
    pub async fn make_sequence(
        &mut self,
        schema: &str,
        name: &str,
        options: &SequenceOptions,
        owned_by: Option<(u32, u32)>,
    ) -> Result<u32> {
        let id = self.engine.catalog().allocate(1).await?;
        let mut sequence = Sequence {
            id,
            schema: schema.to_owned(),
            name: name.to_owned(),
            owner: self.view.user.to_string(),
            ty: Type::Int8,
            start: 0,
            increment: 1,
            min: 0,
            max: 0,
            cycle: false,
            cache: 1,
            owned_by,
            last: 0,
            is_called: false,
        };
        apply(&mut sequence, options, true)?;
        self.claim(schema, name, Name { kind: Kind::Sequence, id, table: 0 }).await?;
        Catalog::lock_sequence(self.txn, id).await?;
        Catalog::put_sequence(self.txn, self.overlay, sequence)?;
        Ok(id)
    }

    pub async fn alter_sequence(
        &mut self,
        name: &ast::ObjectName,
        if_exists: bool,
        options: &SequenceOptions,
    ) -> Result<Option<String>> {
        let (schema, short) = parse::qualified(name)?;
        let Some((schema, short, entry)) = self.lock_existing(name).await? else {
            return if if_exists {
                Ok(Some(format!("relation \"{short}\" does not exist, skipping")))
            } else {
                Err(undefined_table(schema.as_deref(), &short))
            };
        };
        if entry.kind != Kind::Sequence {
            return Err(Error::new(
                state::WRONG_OBJECT_TYPE,
                format!("\"{short}\" is not a sequence"),
            ));
        }
        let Some(mut sequence) = Catalog::lock_sequence(self.txn, entry.id).await? else {
            return Err(undefined_table(Some(&schema), &short));
        };
        apply(&mut sequence, options, false)?;
        if let Some(owner) = self.owner_of(options).await? {
            sequence.owned_by = owner;
        }
        if let Some(new) = &options.rename {
            self.claim(&schema, new, entry).await?;
            self.release(&schema, &short).await?;
            sequence.name.clone_from(new);
        }
        Catalog::put_sequence(self.txn, self.overlay, sequence)?;
        Ok(None)
    }

    /// OWNED BY's table and column; `Some(None)` is nobody.
    #[allow(clippy::option_option)]
    async fn owner_of(&mut self, options: &SequenceOptions) -> Result<Option<Option<(u32, u32)>>> {
        let Some(owner) = &options.owned_by else { return Ok(None) };
        let Some((parts, column)) = owner else { return Ok(Some(None)) };
        let (schema, name) = match &parts[..] {
            [name] => (None, name.as_str()),
            [.., schema, name] => (Some(schema.as_str()), name.as_str()),
            [] => return Err(Error::new(state::SYNTAX_ERROR, "invalid OWNED BY option")),
        };
        let found = crate::plan::find(self.engine, self.overlay, self.view, schema, name).await?;
        let Some(crate::catalog::Object::Table(table)) = found else {
            return Err(undefined_table(schema, name));
        };
        let idx = crate::plan::change::column_idx(&table, column)?;
        Ok(Some(Some((table.id, table.columns[idx].id))))
    }

    pub async fn drop_sequence_by_id(&mut self, id: u32) -> Result<()> {
        let Some(sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        self.release(&sequence.schema, &sequence.name).await?;
        self.txn.delete(rows::sequence_key(id))?;
        self.engine.sequences().forget(id);
        Ok(())
    }

    pub async fn restart_sequence(&mut self, id: u32) -> Result<()> {
        let Some(mut sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        sequence.last = sequence.start;
        sequence.is_called = false;
        Catalog::put_sequence(self.txn, self.overlay, sequence)
    }

    // ---- dropping

    /// The notices to send.
    pub async fn drop_objects(
        &mut self,
        kind: DropKind,
        names: &[ast::ObjectName],
        if_exists: bool,
        cascade: bool,
    ) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        for name in names {
            let (schema, short) = parse::qualified(name)?;
            let word = match kind {
                DropKind::Table => "table",
                DropKind::Index => "index",
                DropKind::Sequence => "sequence",
                DropKind::Schema => "schema",
                DropKind::View => "view",
            };
            let missing = || {
                if if_exists {
                    Ok(format!("{word} \"{short}\" does not exist, skipping"))
                } else {
                    Err(Error::new(
                        match kind {
                            DropKind::Schema => state::NO_SUCH_SCHEMA,
                            DropKind::Index => state::UNDEFINED_OBJECT,
                            _ => state::UNDEFINED_TABLE,
                        },
                        format!("{word} \"{short}\" does not exist"),
                    ))
                }
            };
            match kind {
                DropKind::Table => match self.lock_table(name).await? {
                    Some(table) => self.drop_table(table).await?,
                    None => notices.push(missing()?),
                },
                DropKind::Index => notices.extend(self.drop_index(name, if_exists).await?),
                DropKind::Sequence => match self.lock_existing(name).await? {
                    Some((_, _, entry)) if entry.kind == Kind::Sequence => {
                        self.refuse_owned(entry.id, cascade).await?;
                        self.drop_sequence_by_id(entry.id).await?;
                    }
                    Some(_) => {
                        return Err(Error::new(
                            state::WRONG_OBJECT_TYPE,
                            format!("\"{short}\" is not a sequence"),
                        ));
                    }
                    None => notices.push(missing()?),
                },
                DropKind::View => notices.push(missing()?),
                DropKind::Schema => {
                    let known = PUBLIC == short || VIRTUAL_SCHEMAS.contains(&short.as_str());
                    if known || schema.is_some() {
                        return Err(Error::unsupported(format!("dropping the schema \"{short}\"")));
                    }
                    match Catalog::lock_schema(self.txn, &short).await? {
                        None => notices.push(missing()?),
                        Some(_) => self.drop_schema(&short, cascade).await?,
                    }
                }
            }
        }
        Ok(notices)
    }

    async fn refuse_owned(&mut self, id: u32, cascade: bool) -> Result<()> {
        let Some(sequence) = Catalog::lock_sequence(self.txn, id).await? else { return Ok(()) };
        let Some((table, column)) = sequence.owned_by else { return Ok(()) };
        let Some(mut table) = Catalog::lock_table(self.txn, table).await? else { return Ok(()) };
        let Some(idx) = table.idx_of_id(column) else { return Ok(()) };
        let uses = |column: &crate::catalog::Column| {
            column.default.as_ref().and_then(|default| default.owned_sequence) == Some(id)
        };
        if !uses(&table.columns[idx]) {
            return Ok(());
        }
        if !cascade {
            return Err(Error::new(
                "2BP01",
                format!(
                    "cannot drop sequence {} because other objects depend on it",
                    sequence.name
                ),
            )
            .detail(format!(
                "default value for column {} of table {} depends on sequence {}",
                table.columns[idx].name, table.name, sequence.name
            ))
            .hint("Use DROP ... CASCADE to drop the dependent objects too."));
        }
        let before = super::ranges_of(&table);
        self.txn.use_table(table.id, table.version, &before);
        table.columns[idx].default = None;
        table.columns[idx].identity = None;
        self.redefine(table, &before).await?;
        Ok(())
    }

    async fn drop_schema(&mut self, name: &str, cascade: bool) -> Result<()> {
        let reader = self.txn.reader().await?;
        let catalog = self.engine.catalog();
        let tables = catalog.tables(&reader).await?;
        let sequences = catalog.sequences(&reader).await?;
        let tables: Vec<_> = tables.into_iter().filter(|table| table.schema == name).collect();
        let sequences: Vec<_> =
            sequences.into_iter().filter(|sequence| sequence.schema == name).collect();
        if !cascade && (!tables.is_empty() || !sequences.is_empty()) {
            return Err(Error::new(
                "2BP01",
                format!("cannot drop schema {name} because other objects depend on it"),
            )
            .hint("Use DROP ... CASCADE to drop the dependent objects too."));
        }
        for table in tables {
            if let Some(table) = Catalog::lock_table(self.txn, table.id).await? {
                self.drop_table(table).await?;
            }
        }
        for sequence in sequences {
            self.drop_sequence_by_id(sequence.id).await?;
        }
        self.txn.delete(rows::schema_key(name))?;
        Ok(())
    }

    // ---- schemas and users

    pub async fn create_schema(
        &mut self,
        name: &str,
        if_not_exists: bool,
    ) -> Result<Option<String>> {
        let taken = PUBLIC == name
            || VIRTUAL_SCHEMAS.contains(&name)
            || Catalog::lock_schema(self.txn, name).await?.is_some();
        if taken {
            return if if_not_exists {
                Ok(Some(format!("schema \"{name}\" already exists, skipping")))
            } else {
                Err(Error::new(
                    state::DUPLICATE_SCHEMA,
                    format!("schema \"{name}\" already exists"),
                ))
            };
        }
        let id = self.engine.catalog().allocate(1).await?;
        let schema = Schema { id, name: name.to_owned(), owner: self.view.user.to_string() };
        self.txn.put(rows::schema_key(name), rows::encode(&schema)?)?;
        Ok(None)
    }

    /// What is told of the options, if anything.
    pub async fn create_user(
        &mut self,
        name: &str,
        options: &UserOptions,
    ) -> Result<Option<String>> {
        if Catalog::lock_user(self.txn, name).await?.is_some() {
            return Err(Error::new(
                state::DUPLICATE_OBJECT,
                format!("role \"{name}\" already exists"),
            ));
        }
        let id = self.engine.catalog().allocate(1).await?;
        let mut user =
            User { id, name: name.to_owned(), verifier: None, superuser: false, login: false };
        let notice = self.apply_user(&mut user, options)?;
        self.txn.put(rows::user_key(name), rows::encode(&user)?)?;
        Ok(notice)
    }

    pub async fn alter_user(
        &mut self,
        name: &str,
        options: &UserOptions,
    ) -> Result<Option<String>> {
        let Some(mut user) = Catalog::lock_user(self.txn, name).await? else {
            return Err(no_user(name));
        };
        let notice = self.apply_user(&mut user, options)?;
        if let Some(new) = &options.rename {
            if Catalog::lock_user(self.txn, new).await?.is_some() {
                return Err(Error::new(
                    state::DUPLICATE_OBJECT,
                    format!("role \"{new}\" already exists"),
                ));
            }
            self.txn.delete(rows::user_key(name))?;
            user.name.clone_from(new);
        }
        self.txn.put(rows::user_key(&user.name), rows::encode(&user)?)?;
        Ok(notice)
    }

    pub async fn drop_users(&mut self, names: &[String], if_exists: bool) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        for name in names {
            if **name == *self.view.user {
                return Err(Error::new("55006", "current user cannot be dropped"));
            }
            match Catalog::lock_user(self.txn, name).await? {
                Some(_) => self.txn.delete(rows::user_key(name))?,
                None if if_exists => {
                    notices.push(format!("role \"{name}\" does not exist, skipping"));
                }
                None => return Err(no_user(name)),
            }
        }
        Ok(notices)
    }

    fn apply_user(&self, user: &mut User, options: &UserOptions) -> Result<Option<String>> {
        let mut notice = None;
        if let Some(password) = &options.password {
            user.verifier = match password {
                None => None,
                // Nobody could tell its holder from anybody else.
                Some(password) if scram::is_empty(password) => {
                    notice = Some(scram::EMPTY.to_owned());
                    None
                }
                // A verifier as pg_dumpall writes it is taken as it is.
                Some(password) if password.starts_with("SCRAM-SHA-256$") => Some(password.clone()),
                Some(password) => {
                    let mut salt = [0; 16];
                    salt[..8].copy_from_slice(&self.engine.env().random().to_be_bytes());
                    salt[8..].copy_from_slice(&self.engine.env().random().to_be_bytes());
                    Some(verifier(password, &salt))
                }
            };
        }
        if let Some(superuser) = options.superuser {
            user.superuser = superuser;
        }
        if let Some(login) = options.login {
            user.login = login;
        }
        Ok(notice)
    }
}

fn no_user(name: &str) -> Error {
    Error::new(state::UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))
}

/// What is stored of a password (RFC 5803): enough to check it, not enough to log in with.
pub fn verifier(password: &str, salt: &[u8]) -> String {
    // A password that SASLprep refuses is used as it is, as PostgreSQL does.
    let prepared = stringprep::saslprep(password).unwrap_or(std::borrow::Cow::Borrowed(password));
    let rounds = NonZeroU32::new(SCRAM_ROUNDS).unwrap_or(NonZeroU32::MIN);
    let mut salted = [0u8; digest::SHA256_OUTPUT_LEN];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, prepared.as_bytes(), &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256${SCRAM_ROUNDS}:{}${}:{}",
        BASE64.encode(salt),
        BASE64.encode(stored_key),
        BASE64.encode(server_key)
    )
}

/// Changes a sequence as its options say, and checks the outcome.
fn apply(sequence: &mut Sequence, options: &SequenceOptions, is_new: bool) -> Result<()> {
    let bad = |message: String| Error::new(state::INVALID_PARAMETER, message);
    if let Some(ty) = &options.ty {
        if !ty.is_integer() || *ty == Type::Oid {
            return Err(bad("sequence type must be smallint, integer, or bigint".into()));
        }
        sequence.ty = ty.clone();
    }
    if let Some(increment) = options.increment {
        if increment == 0 {
            return Err(bad("INCREMENT must not be zero".into()));
        }
        sequence.increment = increment;
    }
    let (type_min, type_max) = match sequence.ty {
        Type::Int2 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        Type::Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let up = sequence.increment > 0;
    if is_new || options.min.is_some() {
        let default = if up { 1 } else { type_min };
        sequence.min = options.min.flatten().unwrap_or(default);
    }
    if is_new || options.max.is_some() || options.ty.is_some() {
        let default = if up { type_max } else { -1 };
        sequence.max = options.max.flatten().unwrap_or(default);
    }
    if sequence.min < type_min || sequence.max > type_max {
        return Err(bad(format!(
            "MINVALUE or MAXVALUE is out of range for sequence data type {}",
            sequence.ty.base_name()
        )));
    }
    if sequence.min >= sequence.max {
        return Err(bad(format!(
            "MINVALUE ({}) must be less than MAXVALUE ({})",
            sequence.min, sequence.max
        )));
    }
    if is_new || options.start.is_some() {
        let default = if up { sequence.min } else { sequence.max };
        sequence.start = options.start.unwrap_or(default);
    }
    if !(sequence.min..=sequence.max).contains(&sequence.start) {
        return Err(bad(format!(
            "START value ({}) must lie between MINVALUE ({}) and MAXVALUE ({})",
            sequence.start, sequence.min, sequence.max
        )));
    }
    if let Some(cache) = options.cache {
        if cache < 1 {
            return Err(bad(format!("CACHE ({cache}) must be greater than zero")));
        }
        sequence.cache = cache;
    }
    if let Some(cycle) = options.cycle {
        sequence.cycle = cycle;
    }
    if is_new {
        sequence.last = sequence.start;
        sequence.is_called = false;
    }
    if let Some(restart) = options.restart {
        sequence.last = restart.unwrap_or(sequence.start);
        sequence.is_called = false;
        if !(sequence.min..=sequence.max).contains(&sequence.last) {
            return Err(bad(format!(
                "RESTART value ({}) must lie between MINVALUE ({}) and MAXVALUE ({})",
                sequence.last, sequence.min, sequence.max
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_the_one_that_others_compute() {
        // RFC 7677's example: user "user", password "pencil".
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!(
            verifier("pencil", &salt),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }
}
