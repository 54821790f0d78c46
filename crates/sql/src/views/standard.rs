//! `information_schema`, as far as tools read it.

use super::put::*;
use super::{Definition, Facts, Rows, constraints, parse_columns, view_oids};
use crate::catalog::{Column, Identity};
use crate::types::{Row, Type};

const fn define(
    name: &'static str,
    columns: &'static str,
    rows: fn(&Facts) -> Vec<Row>,
) -> Definition {
    Definition { schema: "information_schema", name, columns, rows: Rows::Catalog(rows) }
}

pub static VIEWS: &[Definition] = &[
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

fn schemata(facts: &Facts) -> Vec<Row> {
    let row = |(_, name, owner): (u32, &str, &str)| {
        vec![text(&facts.view.database), text(name), text(owner)]
    };
    super::pg::schemas(facts).into_iter().map(row).collect()
}

fn tables(facts: &Facts) -> Vec<Row> {
    let database = text(&facts.view.database);
    let row = |schema: &str, name: &str, kind: &str, writable: bool| {
        let mut row = vec![database.clone(), text(schema), text(name), text(kind)];
        row.extend([NULL, NULL, NULL, NULL, NULL, yes_no(writable), yes_no(false), NULL]);
        row
    };
    let stored = facts.snapshot.tables.iter();
    let stored = stored.map(|table| row(&table.schema, &table.name, "BASE TABLE", true));
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
    for table in &facts.snapshot.tables {
        for (idx, each) in table.columns.iter().enumerate() {
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
    for table in &facts.snapshot.tables {
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
    for table in &facts.snapshot.tables {
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
    facts.snapshot.sequences.iter().map(row).collect()
}
