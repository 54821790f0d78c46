//! `has_table_privilege` and its kin, and what comments say.
//!
//! An argument list is `[role,] object[, column], privileges`: names or oids, and a list of privileges of which one is
//! enough. WITH GRANT OPTION asks whether the role may give the privilege on. A name that is not there is an error, an
//! oid that is not there makes NULL. As in PostgreSQL 15, "System Information Functions".

use super::functions::{Facts, find_relation, oid, text_of};
use sql::authority::{Class, Identity, Owned, Privileges, Role, RoleId};
use sql::catalog::{Sequence, Table};
use sql::error::{Error, Result, state};
use sql::types::Datum;
use std::sync::Arc;

/// One privilege of the list.
struct Asked {
    privilege: Privileges,
    to_give: bool,
}

fn asked(text: &str, class: Class) -> Result<Vec<Asked>> {
    let one = |part: &str| {
        let part = part.trim();
        let upper = part.to_ascii_uppercase();
        let (name, to_give) = match upper.strip_suffix("WITH GRANT OPTION") {
            Some(name) => (name.trim_end().to_owned(), true),
            None => (upper, false),
        };
        let known = Privileges::named(&name).filter(|one| class.privileges().contains(*one));
        let privilege = known.ok_or_else(|| {
            let message = format!("unrecognized privilege type: \"{part}\"");
            Error::new(state::INVALID_PARAMETER, message)
        })?;
        Ok(Asked { privilege, to_give })
    };
    text.split(',').map(one).collect()
}

/// Who is asked about: the current role, or the first argument.
fn identity(facts: &Facts, role: Option<&Datum>) -> Result<Option<Arc<Identity>>> {
    let current = &facts.view.identity;
    let Some(role) = role else { return Ok(Some(current.clone())) };
    let roles = &current.authority.roles;
    let id = match (oid_only(role), text_of(role)) {
        (Some(id), _) => match roles.get(RoleId(id)) {
            Some(known) => known.id,
            None => return Ok(None),
        },
        (None, "public") => RoleId::PUBLIC,
        (None, name) => named(facts, name)?.id,
    };
    Ok(Some(Arc::new(Identity::new(current.authority.clone(), id, current.database))))
}

fn named(facts: &Facts, name: &str) -> Result<Arc<Role>> {
    let known = facts.view.identity.authority.roles.named(name).cloned();
    known.ok_or_else(|| {
        Error::new(state::UNDEFINED_OBJECT, format!("role \"{name}\" does not exist"))
    })
}

/// A number, where a text would be a name.
fn oid_only(datum: &Datum) -> Option<u32> {
    match datum {
        Datum::Text(_) => None,
        other => oid(other),
    }
}

fn relation(facts: &Facts, datum: &Datum) -> Result<Option<u32>> {
    match oid_only(datum) {
        Some(id) => Ok(Some(id)),
        None => {
            let name = text_of(datum);
            find_relation(facts, name).map(Some).ok_or_else(|| super::no_relation(None, name))
        }
    }
}

fn table_of(facts: &Facts, id: u32) -> Option<&Arc<Table>> {
    facts.snapshot.tables.iter().find(|table| table.id == id)
}

fn sequence_of(facts: &Facts, id: u32) -> Option<&Arc<Sequence>> {
    facts.snapshot.sequences.iter().find(|sequence| sequence.id == id)
}

/// The role, if the list begins with one, and the rest.
fn split(args: &[Datum], n_rest: usize) -> (Option<&Datum>, &[Datum]) {
    let at = args.len().saturating_sub(n_rest);
    (args[..at].last(), &args[at..])
}

fn holds(identity: &Identity, object: Owned, asked: &Asked) -> bool {
    match asked.to_give {
        false => identity.privileges(object).contains(asked.privilege),
        true => identity.grantable(object, None).1.contains(asked.privilege),
    }
}

fn any(identity: &Identity, object: Owned, asked: &[Asked]) -> Datum {
    Datum::Bool(asked.iter().any(|one| holds(identity, object, one)))
}

pub fn of_table(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let wanted = asked(text_of(&rest[1]), Class::Table)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let Some(id) = relation(facts, &rest[0])? else { return Ok(Datum::Null) };
    if let Some(table) = table_of(facts, id) {
        return Ok(any(&identity, Owned::table(table), &wanted));
    }
    if let Some(sequence) = sequence_of(facts, id) {
        return Ok(any(&identity, Owned::sequence(sequence), &wanted));
    }
    // Computed tables are read by everybody but for a few, and written by nobody.
    let view = sql::views::relations(&facts.snapshot).find(|known| known.id == id);
    Ok(view.map_or(Datum::Null, |view| {
        let may_read = identity.require_view(view.schema, view.name).is_ok();
        let reads = |one: &Asked| one.privilege == Privileges::SELECT && !one.to_give;
        Datum::Bool(identity.is_superuser || may_read && wanted.iter().any(reads))
    }))
}

pub fn of_sequence(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let wanted = asked(text_of(&rest[1]), Class::Sequence)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let Some(id) = relation(facts, &rest[0])? else { return Ok(Datum::Null) };
    match sequence_of(facts, id) {
        Some(sequence) => Ok(any(&identity, Owned::sequence(sequence), &wanted)),
        None if oid_only(&rest[0]).is_some() => Ok(Datum::Null),
        None => {
            let message = format!("\"{}\" is not a sequence", text_of(&rest[0]));
            Err(Error::new(state::WRONG_OBJECT_TYPE, message))
        }
    }
}

pub fn of_column(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 3);
    let wanted = asked(text_of(&rest[2]), Class::Column)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let Some(id) = relation(facts, &rest[0])? else { return Ok(Datum::Null) };
    let Some(table) = table_of(facts, id) else { return Ok(Datum::Bool(identity.is_superuser)) };
    let column = match oid_only(&rest[1]) {
        Some(number) => table.columns.iter().find(|column| column.id == number),
        None => {
            let name = text_of(&rest[1]);
            Some(table.column(name).ok_or_else(|| {
                let message =
                    format!("column \"{name}\" of relation \"{}\" does not exist", table.name);
                Error::new(state::UNDEFINED_COLUMN, message)
            })?)
        }
    };
    let Some(column) = column else { return Ok(Datum::Null) };
    Ok(Datum::Bool(wanted.iter().any(|one| has_column(&identity, table, column.id, one))))
}

fn has_column(identity: &Identity, table: &Table, column: u32, asked: &Asked) -> bool {
    match asked.to_give {
        false => identity.column_privileges(table, column).contains(asked.privilege),
        true => identity.grantable(Owned::table(table), Some(column)).1.contains(asked.privilege),
    }
}

pub fn of_any_column(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let wanted = asked(text_of(&rest[1]), Class::Column)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let Some(id) = relation(facts, &rest[0])? else { return Ok(Datum::Null) };
    let Some(table) = table_of(facts, id) else { return Ok(Datum::Bool(identity.is_superuser)) };
    let has = |one: &Asked| {
        holds(&identity, Owned::table(table), one)
            || table.columns.iter().any(|column| has_column(&identity, table, column.id, one))
    };
    Ok(Datum::Bool(wanted.iter().any(has)))
}

pub fn of_schema(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let wanted = asked(text_of(&rest[1]), Class::Schema)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let authority = &facts.snapshot.authority;
    let found = match oid_only(&rest[0]) {
        Some(id) => authority.schemas.iter().find(|schema| schema.id == id),
        None => {
            let name = text_of(&rest[0]);
            let found = authority.schema(identity.database, name);
            let is_computed = sql::catalog::VIRTUAL_SCHEMAS.contains(&name);
            if found.is_none() && !is_computed {
                let message = format!("schema \"{name}\" does not exist");
                return Err(Error::new(state::NO_SUCH_SCHEMA, message));
            }
            if is_computed {
                let uses = |one: &Asked| one.privilege == Privileges::USAGE && !one.to_give;
                return Ok(Datum::Bool(identity.is_superuser || wanted.iter().any(uses)));
            }
            found
        }
    };
    Ok(found.map_or(Datum::Null, |schema| any(&identity, Owned::schema(schema), &wanted)))
}

pub fn of_database(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let wanted = asked(text_of(&rest[1]), Class::Database)?;
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let authority = &facts.snapshot.authority;
    let found = match oid_only(&rest[0]) {
        Some(id) => authority.databases.iter().find(|database| database.id == id),
        None => {
            let name = text_of(&rest[0]);
            Some(authority.database(name).ok_or_else(|| {
                let message = format!("database \"{name}\" does not exist");
                Error::new(state::NO_SUCH_DATABASE, message)
            })?)
        }
    };
    Ok(found.map_or(Datum::Null, |database| any(&identity, Owned::database(database), &wanted)))
}

/// `pg_has_role([role,] role, 'MEMBER' | 'USAGE')`.
pub fn of_role(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (role, rest) = split(args, 2);
    let Some(identity) = identity(facts, role)? else { return Ok(Datum::Null) };
    let wanted = match oid_only(&rest[0]) {
        Some(id) => RoleId(id),
        None => named(facts, text_of(&rest[0]))?.id,
    };
    let roles = &identity.authority.roles;
    let mut has = false;
    for part in text_of(&rest[1]).split(',') {
        let part = part.trim().to_ascii_uppercase();
        has |= match part.as_str() {
            "USAGE" => identity.has(wanted),
            "MEMBER" => identity.may_become(wanted),
            "MEMBER WITH ADMIN OPTION"
            | "MEMBER WITH GRANT OPTION"
            | "USAGE WITH ADMIN OPTION"
            | "USAGE WITH GRANT OPTION" => {
                identity.is_superuser || roles.is_admin(identity.role, wanted)
            }
            _ => {
                let message = format!("unrecognized privilege type: \"{part}\"");
                return Err(Error::new(state::INVALID_PARAMETER, message));
            }
        };
    }
    Ok(Datum::Bool(has))
}

// ---- comments

fn comment(facts: &Facts, class: Option<u32>, object: u32, part: u32) -> Datum {
    let found = facts.snapshot.comments.iter().find(|comment| {
        comment.object == object
            && comment.part == part
            && class.is_none_or(|class| comment.class == class)
    });
    found.map_or(Datum::Null, |comment| Datum::text(&comment.text))
}

fn class(name: &Datum) -> Option<u32> {
    match text_of(name) {
        "pg_class" => Some(1259),
        "pg_namespace" => Some(2615),
        "pg_constraint" => Some(2606),
        "pg_database" => Some(1262),
        "pg_authid" | "pg_roles" => Some(1260),
        _ => Some(0),
    }
}

pub fn object_description(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = oid(&args[0]) else { return Ok(Datum::Null) };
    Ok(comment(facts, args.get(1).and_then(class), id, 0))
}

pub fn column_description(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let (Some(id), Some(part)) = (oid(&args[0]), oid(&args[1])) else { return Ok(Datum::Null) };
    if part == 0 {
        return Ok(Datum::Null);
    }
    Ok(comment(facts, Some(1259), id, part))
}
