//! `information_schema`, as far as tools read it.

use super::put::*;
use super::{Definition, Facts, Rows, constraints, parse_columns, view_oids};
use crate::authority::{Acl, Class, Owned, RoleId};
use crate::catalog::{Column, Identity, Table};
use crate::types::{Row, Type};

const fn define(
    name: &'static str,
    columns: &'static str,
    rows: fn(&Facts) -> Vec<Row>,
) -> Definition {
    Definition { schema: "information_schema", name, columns, rows: Rows::Catalog(rows) }
}

pub static VIEWS: &[Definition] = &[
    define("table_privileges", PRIVILEGES, table_privileges),
    define("role_table_grants", PRIVILEGES, table_privileges),
    define("column_privileges", COLUMN_PRIVILEGES, column_privileges),
    define("role_column_grants", COLUMN_PRIVILEGES, column_privileges),
    define("enabled_roles", "role_name", enabled_roles),
    define("applicable_roles", "grantee role_name is_grantable", applicable_roles),
    define("schemata", "catalog_name schema_name schema_owner", schemata),
    define(
        "tables",
        "table_catalog table_schema table_name table_type self_referencing_column_name \
         reference_generation user_defined_type_catalog user_defined_type_schema \
         user_defined_type_name is_insertable_into is_typed commit_action",
        tables,
    ),
    define(
        "columns",
        "table_catalog table_schema table_name column_name ordinal_position:int4 column_default \
         is_nullable data_type character_maximum_length:int4 character_octet_length:int4 \
         numeric_precision:int4 numeric_precision_radix:int4 numeric_scale:int4 \
         datetime_precision:int4 udt_catalog udt_schema udt_name is_identity identity_generation \
         is_generated generation_expression is_updatable",
        columns,
    ),
    define(
        "table_constraints",
        "constraint_catalog constraint_schema constraint_name table_catalog table_schema table_name \
         constraint_type is_deferrable initially_deferred enforced",
        table_constraints,
    ),
    define(
        "key_column_usage",
        "constraint_catalog constraint_schema constraint_name table_catalog table_schema table_name \
         column_name ordinal_position:int4 position_in_unique_constraint:int4",
        key_column_usage,
    ),
    define(
        "constraint_column_usage",
        "table_catalog table_schema table_name column_name constraint_catalog constraint_schema \
         constraint_name",
        constraint_column_usage,
    ),
    define(
        "sequences",
        "sequence_catalog sequence_schema sequence_name data_type numeric_precision:int4 \
         start_value minimum_value maximum_value increment cycle_option",
        sequences,
    ),
    Definition {
        schema: "information_schema",
        name: "views",
        columns: "table_catalog table_schema table_name view_definition is_updatable",
        rows: Rows::None,
    },
    Definition {
        schema: "information_schema",
        name: "routines",
        columns: "specific_catalog specific_schema specific_name routine_catalog routine_schema \
                  routine_name routine_type data_type",
        rows: Rows::None,
    },
    Definition {
        schema: "information_schema",
        name: "referential_constraints",
        columns: "constraint_catalog constraint_schema constraint_name unique_constraint_catalog \
                  unique_constraint_schema unique_constraint_name match_option update_rule \
                  delete_rule",
        rows: Rows::None,
    },
];

const PRIVILEGES: &str = "grantor grantee table_catalog table_schema table_name privilege_type is_grantable \
                          with_hierarchy";
const COLUMN_PRIVILEGES: &str = "grantor grantee table_catalog table_schema table_name column_name \
                                 privilege_type is_grantable";

/// The tables on which the current role has any privilege: others are not shown here.
fn seen<'a>(facts: &'a Facts) -> impl Iterator<Item = &'a std::sync::Arc<Table>> {
    let identity = &facts.view.identity;
    facts.snapshot.tables.iter().filter(|table| {
        !identity.privileges(Owned::table(table)).is_empty()
            || identity.owns(Owned::table(table))
            || table.columns.iter().any(|column| sees_column(facts, table, column))
    })
}

fn sees_column(facts: &Facts, table: &Table, column: &Column) -> bool {
    let identity = &facts.view.identity;
    identity.owns(Owned::table(table)) || !identity.column_privileges(table, column.id).is_empty()
}

/// Grantor, grantee, privilege, may be given on: of the grants by or to a role that the current one holds.
fn grants(facts: &Facts, acl: &Acl) -> Vec<(String, String, &'static str, bool)> {
    let identity = &facts.view.identity;
    let name = |role: RoleId| match role {
        RoleId::PUBLIC => "PUBLIC".to_owned(),
        role => facts.snapshot.authority.roles.name(role),
    };
    let own = acl.0.iter().filter(|grant| {
        grant.grantee == RoleId::PUBLIC
            || identity.has(grant.grantee)
            || identity.has(grant.grantor)
    });
    own.flat_map(|grant| {
        let (grantor, grantee) = (name(grant.grantor), name(grant.grantee));
        // The owner may always give on.
        let may_give = move |one: &str| {
            grant.grantee == grant.grantor || grant.grantable.names().any(|name| name == one)
        };
        grant
            .privileges
            .names()
            .map(move |one| (grantor.clone(), grantee.clone(), one, may_give(one)))
    })
    .collect()
}

fn table_privileges(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in seen(facts) {
        let acl = facts.snapshot.authority.acl(Owned::table(table));
        for (grantor, grantee, privilege, may_give) in grants(facts, &acl) {
            rows.push(vec![
                text(grantor),
                text(grantee),
                text(&facts.view.database),
                text(&table.schema),
                text(&table.name),
                text(privilege),
                yes_no(may_give),
                yes_no(privilege == "SELECT"),
            ]);
        }
    }
    rows
}

fn column_privileges(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    let of_columns = Class::Column.privileges();
    for table in seen(facts) {
        let of_table = facts.snapshot.authority.acl(Owned::table(table));
        let list = facts.snapshot.authority.list(Class::Table, table.id);
        for column in &table.columns {
            let own = list.and_then(|list| list.columns.get(&column.id));
            let all = std::iter::once(&of_table).chain(own);
            for (grantor, grantee, privilege, may_give) in all.flat_map(|acl| grants(facts, acl)) {
                if !of_columns.names().any(|name| name == privilege) {
                    continue;
                }
                rows.push(vec![
                    text(grantor),
                    text(grantee),
                    text(&facts.view.database),
                    text(&table.schema),
                    text(&table.name),
                    text(&column.name),
                    text(privilege),
                    yes_no(may_give),
                ]);
            }
        }
    }
    rows
}

fn enabled_roles(facts: &Facts) -> Vec<Row> {
    let roles = facts.snapshot.authority.roles.all();
    let own = roles.filter(|role| facts.view.identity.has(role.id));
    own.map(|role| vec![text(&role.name)]).collect()
}

fn applicable_roles(facts: &Facts) -> Vec<Row> {
    let roles = &facts.snapshot.authority.roles;
    let own = roles.all().filter(|role| facts.view.identity.has(role.id));
    own.flat_map(|member| {
        member
            .member_of
            .iter()
            .map(|of| vec![text(&member.name), text(roles.name(of.role)), yes_no(of.admin)])
    })
    .collect()
}

fn schemata(facts: &Facts) -> Vec<Row> {
    let authority = &facts.snapshot.authority;
    // Those whose owner's rights the role has.
    let own = super::pg::schemas(facts).into_iter();
    let own = own.filter(|schema| facts.view.identity.has(schema.owner));
    let row = |schema: super::pg::SchemaFact| {
        let owner = authority.roles.name(schema.owner);
        vec![text(&facts.view.database), text(schema.name), text(owner)]
    };
    own.map(row).collect()
}

fn tables(facts: &Facts) -> Vec<Row> {
    let database = text(&facts.view.database);
    let row = |schema: &str, name: &str, kind: &str, writable: bool| {
        let mut row = vec![database.clone(), text(schema), text(name), text(kind)];
        row.extend([NULL, NULL, NULL, NULL, NULL, yes_no(writable), yes_no(false), NULL]);
        row
    };
    let stored = seen(facts).map(|table| row(&table.schema, &table.name, "BASE TABLE", true));
    let views = view_oids().iter().map(|(_, view, _)| row(view.schema, view.name, "VIEW", false));
    stored.chain(views).collect()
}

fn column(database: &str, schema: &str, table: &str, position: usize, column: &Column) -> Row {
    let ty = &column.ty;
    let length = match ty {
        Type::Varchar(n) => *n,
        Type::Char(n) => Some(*n),
        _ => None,
    };
    let number = |value: Option<i32>| value.map_or(NULL, int4);
    let (precision, radix, scale) = match ty {
        Type::Int2 => (Some(16), Some(2), Some(0)),
        Type::Int4 => (Some(32), Some(2), Some(0)),
        Type::Int8 => (Some(64), Some(2), Some(0)),
        Type::Float4 => (Some(24), Some(2), None),
        Type::Float8 => (Some(53), Some(2), None),
        Type::Numeric(Some((precision, scale))) => {
            (Some(i32::from(*precision)), Some(10), Some(i32::from(*scale)))
        }
        Type::Numeric(None) => (None, Some(10), None),
        _ => (None, None, None),
    };
    let datetime = match ty {
        Type::Date => Some(0),
        Type::Time | Type::Timestamp | Type::TimestampTz | Type::Interval => Some(6),
        _ => None,
    };
    let length = length.and_then(|n| i32::try_from(n).ok());
    let octets = length.map(|n| n.saturating_mul(4)).or(ty.is_text().then_some(1 << 30));
    let identity = column.identity.map(|identity| match identity {
        Identity::Always => "ALWAYS",
        Identity::ByDefault => "BY DEFAULT",
    });
    let default = column.default.as_ref().filter(|_| identity.is_none());
    vec![
        text(database),
        text(schema),
        text(table),
        text(&column.name),
        int4(position as i32),
        default.map_or(NULL, |default| text(&default.sql)),
        yes_no(!column.not_null),
        text(ty.base_name()),
        number(length),
        number(octets),
        number(precision),
        number(radix),
        number(scale),
        number(datetime),
        text(database),
        text("pg_catalog"),
        text(ty.short_name()),
        yes_no(identity.is_some()),
        identity.map_or(NULL, text),
        text("NEVER"),
        NULL,
        yes_no(true),
    ]
}

fn columns(facts: &Facts) -> Vec<Row> {
    let database = &facts.view.database;
    let mut rows = Vec::new();
    for table in seen(facts) {
        let open = |(_, column): &(usize, &Column)| sees_column(facts, table, column);
        for (idx, each) in table.columns.iter().enumerate().filter(open) {
            rows.push(column(database, &table.schema, &table.name, idx + 1, each));
        }
    }
    for (_, view, _) in view_oids() {
        for (idx, (name, ty)) in parse_columns(view.columns).into_iter().enumerate() {
            let each = Column {
                id: idx as u32 + 1,
                name,
                ty,
                not_null: false,
                default: None,
                identity: None,
                missing: NULL,
            };
            rows.push(column(database, view.schema, view.name, idx + 1, &each));
        }
    }
    rows
}

fn table_constraints(facts: &Facts) -> Vec<Row> {
    let database = || text(&facts.view.database);
    let mut rows = Vec::new();
    for table in seen(facts) {
        for constraint in constraints(table) {
            let kind = match constraint.kind {
                'p' => "PRIMARY KEY",
                'u' => "UNIQUE",
                _ => "CHECK",
            };
            rows.push(vec![
                database(),
                text(&table.schema),
                text(constraint.name),
                database(),
                text(&table.schema),
                text(&table.name),
                text(kind),
                yes_no(false),
                yes_no(false),
                yes_no(true),
            ]);
        }
    }
    rows
}

fn key_column_usage(facts: &Facts) -> Vec<Row> {
    let database = || text(&facts.view.database);
    let mut rows = Vec::new();
    for table in seen(facts) {
        for constraint in constraints(table).filter(|constraint| constraint.index != 0) {
            for (position, &idx) in constraint.columns.iter().enumerate() {
                rows.push(vec![
                    database(),
                    text(&table.schema),
                    text(constraint.name),
                    database(),
                    text(&table.schema),
                    text(&table.name),
                    text(&table.columns[idx].name),
                    int4(position as i32 + 1),
                    NULL,
                ]);
            }
        }
    }
    rows
}

/// Of CHECK constraints the columns are not known apart from their text.
fn constraint_column_usage(facts: &Facts) -> Vec<Row> {
    let database = || text(&facts.view.database);
    let mut rows = Vec::new();
    for table in seen(facts).filter(|table| facts.view.identity.owns(Owned::table(table))) {
        for constraint in constraints(table) {
            for &idx in &constraint.columns {
                rows.push(vec![
                    database(),
                    text(&table.schema),
                    text(&table.name),
                    text(&table.columns[idx].name),
                    database(),
                    text(&table.schema),
                    text(constraint.name),
                ]);
            }
        }
    }
    rows
}

fn sequences(facts: &Facts) -> Vec<Row> {
    let row = |sequence: &std::sync::Arc<crate::catalog::Sequence>| {
        vec![
            text(&facts.view.database),
            text(&sequence.schema),
            text(&sequence.name),
            text(sequence.ty.base_name()),
            int4(i32::from(sequence.ty.byte_len()) * 8),
            text(sequence.start.to_string()),
            text(sequence.min.to_string()),
            text(sequence.max.to_string()),
            text(sequence.increment.to_string()),
            yes_no(sequence.cycle),
        ]
    };
    let identity = &facts.view.identity;
    let open = |sequence: &&std::sync::Arc<crate::catalog::Sequence>| {
        let owned = Owned::sequence(sequence);
        identity.owns(owned) || !identity.privileges(owned).is_empty()
    };
    facts.snapshot.sequences.iter().filter(open).map(row).collect()
}
