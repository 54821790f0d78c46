//! `pg_catalog` on roles, databases, privileges and comments.

use super::pg::acl_datum;
use super::put::*;
use super::{Definition, Facts, Rows};
use crate::authority::{Acl, Class, Role};
use crate::run::ddl::comments::{PG_AUTHID, PG_DATABASE};
use crate::types::{Datum, Row};
use std::sync::Arc;

const fn define(
    name: &'static str,
    columns: &'static str,
    rows: fn(&Facts) -> Vec<Row>,
) -> Definition {
    Definition { schema: "pg_catalog", name, columns, rows: Rows::Catalog(rows) }
}

pub static VIEWS: &[Definition] = &[
    define(
        "pg_roles",
        "rolname:name rolsuper:bool rolinherit:bool rolcreaterole:bool rolcreatedb:bool \
         rolcanlogin:bool rolreplication:bool rolconnlimit:int4 rolpassword \
         rolvaliduntil:timestamptz rolbypassrls:bool rolconfig:text[] oid:oid",
        |facts| all_roles(facts, role_row),
    ),
    define(
        "pg_authid",
        "oid:oid rolname:name rolsuper:bool rolinherit:bool rolcreaterole:bool rolcreatedb:bool \
         rolcanlogin:bool rolreplication:bool rolbypassrls:bool rolconnlimit:int4 rolpassword \
         rolvaliduntil:timestamptz",
        |facts| all_roles(facts, authid_row),
    ),
    define(
        "pg_user",
        "usename:name usesysid:oid usecreatedb:bool usesuper:bool userepl:bool usebypassrls:bool \
         passwd valuntil:timestamptz useconfig:text[]",
        |facts| users(facts, false),
    ),
    define(
        "pg_shadow",
        "usename:name usesysid:oid usecreatedb:bool usesuper:bool userepl:bool usebypassrls:bool \
         passwd valuntil:timestamptz useconfig:text[]",
        |facts| users(facts, true),
    ),
    define("pg_group", "groname:name grosysid:oid grolist:oid[]", groups),
    define(
        "pg_auth_members",
        "oid:oid roleid:oid member:oid grantor:oid admin_option:bool",
        memberships,
    ),
    define(
        "pg_database",
        "oid:oid datname:name datdba:oid encoding:int4 datlocprovider:char datistemplate:bool \
         datallowconn:bool datconnlimit:int4 dattablespace:oid datcollate datctype daticulocale \
         datcollversion datacl:text[]",
        databases,
    ),
    define(
        "pg_default_acl",
        "oid:oid defaclrole:oid defaclnamespace:oid defaclobjtype:char defaclacl:text[]",
        default_acls,
    ),
    define("pg_description", "objoid:oid classoid:oid objsubid:int4 description", descriptions),
    define("pg_shdescription", "objoid:oid classoid:oid description", shared_descriptions),
];

fn all_roles(facts: &Facts, row: fn(&Role) -> Row) -> Vec<Row> {
    facts.snapshot.authority.roles.all().map(|role| row(role)).collect()
}

fn until(role: &Role) -> Datum {
    role.valid_until_us.map_or(NULL, Datum::TimestampTz)
}

fn role_row(role: &Role) -> Row {
    vec![
        text(&role.name),
        is(role.superuser),
        is(role.inherit),
        is(role.createrole),
        is(role.createdb),
        is(role.login),
        is(role.replication),
        int4(role.connection_limit),
        text("********"),
        until(role),
        is(role.bypassrls),
        NULL,
        oid(role.id.0),
    ]
}

fn authid_row(role: &Role) -> Row {
    vec![
        oid(role.id.0),
        text(&role.name),
        is(role.superuser),
        is(role.inherit),
        is(role.createrole),
        is(role.createdb),
        is(role.login),
        is(role.replication),
        is(role.bypassrls),
        int4(role.connection_limit),
        role.verifier.as_ref().map_or(NULL, text),
        until(role),
    ]
}

fn users(facts: &Facts, with_verifiers: bool) -> Vec<Row> {
    let row = |role: &Arc<Role>| {
        let password = match with_verifiers {
            true => role.verifier.as_ref().map_or(NULL, text),
            false => text("********"),
        };
        vec![
            text(&role.name),
            oid(role.id.0),
            is(role.createdb),
            is(role.superuser),
            is(role.replication),
            is(role.bypassrls),
            password,
            until(role),
            NULL,
        ]
    };
    facts.snapshot.authority.roles.all().filter(|role| role.login).map(row).collect()
}

fn groups(facts: &Facts) -> Vec<Row> {
    let roles = &facts.snapshot.authority.roles;
    let row = |role: &Arc<Role>| {
        let members: Vec<Datum> =
            roles.members(role.id).map(|(member, _)| oid(member.id.0)).collect();
        vec![text(&role.name), oid(role.id.0), Datum::Array(members.into())]
    };
    roles.all().filter(|role| !role.login).map(row).collect()
}

fn memberships(facts: &Facts) -> Vec<Row> {
    let roles = &facts.snapshot.authority.roles;
    let pairs = roles.all().flat_map(|member| member.member_of.iter().map(move |of| (member, of)));
    // Such a row has no oid of its own: its place stands for it.
    let row = |(at, (member, of)): (usize, (&Arc<Role>, &crate::authority::Membership))| {
        let id = u32::try_from(at).unwrap_or(u32::MAX);
        vec![oid(id), oid(of.role.0), oid(member.id.0), oid(of.grantor.0), is(of.admin)]
    };
    pairs.enumerate().map(row).collect()
}

fn databases(facts: &Facts) -> Vec<Row> {
    let authority = &facts.snapshot.authority;
    let row = |database: &Arc<crate::authority::Database>| {
        let list = authority.list(Class::Database, database.id);
        vec![
            oid(database.id),
            text(&database.name),
            oid(database.owner.0),
            int4(6),
            ch('c'),
            is(database.is_template),
            is(database.allow_connections),
            int4(database.connection_limit),
            oid(1663),
            text("C"),
            text("C"),
            NULL,
            NULL,
            acl_datum(facts, list.and_then(|list| list.acl.as_ref())),
        ]
    };
    authority.databases.iter().map(row).collect()
}

fn default_acls(facts: &Facts) -> Vec<Row> {
    let authority = &facts.snapshot.authority;
    let database = facts.view.identity.database;
    let own = authority.defaults.iter().filter(|default| default.database == database);
    let row = |(at, default): (usize, &crate::authority::DefaultAcl)| {
        let kind = match default.class {
            Class::Sequence => 'S',
            Class::Schema => 'n',
            _ => 'r',
        };
        let acl: &Acl = &default.acl;
        vec![
            oid(u32::try_from(at).unwrap_or(u32::MAX)),
            oid(default.role.0),
            oid(default.schema.unwrap_or(0)),
            ch(kind),
            acl_datum(facts, Some(acl)),
        ]
    };
    own.enumerate().map(row).collect()
}

fn is_shared(class: u32) -> bool {
    matches!(class, PG_DATABASE | PG_AUTHID)
}

fn descriptions(facts: &Facts) -> Vec<Row> {
    let own = facts.snapshot.comments.iter().filter(|comment| !is_shared(comment.class));
    let row = |comment: &crate::run::ddl::comments::Comment| {
        let part = i32::try_from(comment.part).unwrap_or(i32::MAX);
        vec![oid(comment.object), oid(comment.class), int4(part), text(&comment.text)]
    };
    own.map(row).collect()
}

fn shared_descriptions(facts: &Facts) -> Vec<Row> {
    let own = facts.snapshot.comments.iter().filter(|comment| is_shared(comment.class));
    let row = |comment: &crate::run::ddl::comments::Comment| {
        vec![oid(comment.object), oid(comment.class), text(&comment.text)]
    };
    own.map(row).collect()
}
