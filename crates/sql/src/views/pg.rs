//! `pg_catalog`: what psql's `\d` family, pgbench and the drivers ask about.
//!
//! Columns are PostgreSQL 15's where anything reads them; a column that no client reads may be
//! missing and then says so by name. Oids of types are PostgreSQL's, those of tables our own ids.

use super::put::*;
use super::{
    BTREE_AM, Definition, Facts, HEAP_AM, Rows, constraints, indexes, parse_columns, relations,
    view_oids,
};
use crate::authority::{Acl, Class, RoleId};
use crate::catalog::{Identity, Schema};
use crate::types::{Datum, Row, Type};

const PG_CATALOG: u32 = 11;
const INFORMATION_SCHEMA: u32 = 12;
const ATOLL: u32 = 13;
const SUPERUSER: u32 = 10;
/// `pg_class` and the like refer to one another by these.
const PG_CLASS: u32 = 1259;
const DEFAULT_COLLATION: u32 = 100;
const C_COLLATION: u32 = 950;

const fn define(
    name: &'static str,
    columns: &'static str,
    rows: fn(&Facts) -> Vec<Row>,
) -> Definition {
    Definition { schema: "pg_catalog", name, columns, rows: Rows::Catalog(rows) }
}

const fn empty(name: &'static str, columns: &'static str) -> Definition {
    Definition { schema: "pg_catalog", name, columns, rows: Rows::None }
}

pub static VIEWS: &[Definition] = &[
    define("pg_namespace", "oid:oid nspname:name nspowner:oid nspacl:text[]", pg_namespace),
    define(
        "pg_class",
        "oid:oid relname:name relnamespace:oid reltype:oid reloftype:oid relowner:oid relam:oid \
         relfilenode:oid reltablespace:oid relpages:int4 reltuples:float4 relallvisible:int4 \
         reltoastrelid:oid relhasindex:bool relisshared:bool relpersistence:char relkind:char \
         relnatts:int2 relchecks:int2 relhasrules:bool relhastriggers:bool relhassubclass:bool \
         relrowsecurity:bool relforcerowsecurity:bool relispopulated:bool relreplident:char \
         relispartition:bool relacl:text[] reloptions:text[] relpartbound",
        pg_class,
    ),
    define(
        "pg_attribute",
        "attrelid:oid attname:name atttypid:oid attstattarget:int4 attlen:int2 attnum:int2 \
         attndims:int4 atttypmod:int4 attbyval:bool attstorage:char attcompression:char \
         attnotnull:bool atthasdef:bool atthasmissing:bool attidentity:char attgenerated:char \
         attisdropped:bool attislocal:bool attinhcount:int4 attcollation:oid attacl:text[] \
         attoptions:text[] attfdwoptions:text[]",
        pg_attribute,
    ),
    define("pg_attrdef", "oid:oid adrelid:oid adnum:int2 adbin", pg_attrdef),
    define(
        "pg_index",
        "indexrelid:oid indrelid:oid indnatts:int2 indnkeyatts:int2 indisunique:bool \
         indisprimary:bool indisexclusion:bool indimmediate:bool indisclustered:bool \
         indisvalid:bool indisready:bool indislive:bool indisreplident:bool indkey indoption \
         indcollation indclass indexprs indpred indnullsnotdistinct:bool",
        pg_index,
    ),
    define(
        "pg_constraint",
        "oid:oid conname:name connamespace:oid contype:char condeferrable:bool condeferred:bool \
         convalidated:bool conrelid:oid contypid:oid conindid:oid conparentid:oid confrelid:oid \
         confupdtype:char confdeltype:char confmatchtype:char conislocal:bool coninhcount:int4 \
         connoinherit:bool conkey:int2[] confkey:int2[] conbin",
        pg_constraint,
    ),
    define(
        "pg_type",
        "oid:oid typname:name typnamespace:oid typowner:oid typlen:int2 typbyval:bool typtype:char \
         typcategory:char typispreferred:bool typisdefined:bool typdelim:char typrelid:oid \
         typelem:oid typarray:oid typinput:oid typoutput:oid typreceive:oid typsend:oid \
         typmodin:oid typnotnull:bool typbasetype:oid typtypmod:int4 typndims:int4 \
         typcollation:oid typdefault typacl:text[]",
        pg_type,
    ),
    define("pg_am", "oid:oid amname:name amhandler:oid amtype:char", pg_am),
    define(
        "pg_collation",
        "oid:oid collname:name collnamespace:oid collowner:oid collprovider:char \
         collisdeterministic:bool collencoding:int4 collcollate collctype",
        pg_collation,
    ),
    define(
        "pg_sequence",
        "seqrelid:oid seqtypid:oid seqstart:int8 seqincrement:int8 seqmax:int8 seqmin:int8 \
         seqcache:int8 seqcycle:bool",
        pg_sequence,
    ),
    define(
        "pg_depend",
        "classid:oid objid:oid objsubid:int4 refclassid:oid refobjid:oid refobjsubid:int4 \
         deptype:char",
        pg_depend,
    ),
    define(
        "pg_tables",
        "schemaname:name tablename:name tableowner:name tablespace:name hasindexes:bool \
         hasrules:bool hastriggers:bool rowsecurity:bool",
        pg_tables,
    ),
    define(
        "pg_indexes",
        "schemaname:name tablename:name indexname:name tablespace:name indexdef",
        pg_indexes,
    ),
    define("pg_views", "schemaname:name viewname:name viewowner:name definition", pg_views),
    define(
        "pg_sequences",
        "schemaname:name sequencename:name sequenceowner:name data_type start_value:int8 \
         min_value:int8 max_value:int8 increment_by:int8 cycle:bool cache_size:int8 \
         last_value:int8",
        pg_sequences,
    ),
    define(
        "pg_settings",
        "name setting unit category short_desc context vartype source boot_val reset_val",
        pg_settings,
    ),
    define(
        "pg_tablespace",
        "oid:oid spcname:name spcowner:oid spcacl:text[] spcoptions:text[]",
        |_| {
            vec![
                vec![oid(1663), text("pg_default"), oid(SUPERUSER), NULL, NULL],
                vec![oid(1664), text("pg_global"), oid(SUPERUSER), NULL, NULL],
            ]
        },
    ),
    empty("pg_inherits", "inhrelid:oid inhparent:oid inhseqno:int4 inhdetachpending:bool"),
    empty("pg_partitioned_table", "partrelid:oid partstrat:char partnatts:int2 partdefid:oid"),
    empty(
        "pg_proc",
        "oid:oid proname:name pronamespace:oid proowner:oid prolang:oid prokind:char \
         prosecdef:bool proleakproof:bool provolatile:char proparallel:char prorettype:oid \
         proargtypes prosrc proacl:text[] pronargs:int2 proargnames:text[] proretset:bool",
    ),
    empty("pg_language", "oid:oid lanname:name lanowner:oid"),
    empty("pg_aggregate", "aggfnoid:oid aggkind:char"),
    empty(
        "pg_operator",
        "oid:oid oprname:name oprnamespace:oid oprleft:oid oprright:oid oprresult:oid oprcode:oid oprkind:char oprowner:oid",
    ),
    empty(
        "pg_opclass",
        "oid:oid opcmethod:oid opcname:name opcnamespace:oid opcintype:oid opcdefault:bool",
    ),
    empty(
        "pg_cast",
        "oid:oid castsource:oid casttarget:oid castfunc:oid castcontext:char castmethod:char",
    ),
    empty("pg_conversion", "oid:oid conname:name connamespace:oid"),
    empty(
        "pg_trigger",
        "oid:oid tgrelid:oid tgparentid:oid tgname:name tgfoid:oid tgtype:int2 tgenabled:char \
         tgisinternal:bool tgconstrrelid:oid tgconstrindid:oid tgconstraint:oid \
         tgdeferrable:bool tginitdeferred:bool",
    ),
    empty(
        "pg_event_trigger",
        "oid:oid evtname:name evtevent:name evtowner:oid evtfoid:oid evtenabled:char",
    ),
    empty(
        "pg_rewrite",
        "oid:oid rulename:name ev_class:oid ev_type:char ev_enabled:char is_instead:bool",
    ),
    empty(
        "pg_policy",
        "oid:oid polname:name polrelid:oid polcmd:char polpermissive:bool polroles:oid[] polqual \
         polwithcheck",
    ),
    empty("pg_foreign_table", "ftrelid:oid ftserver:oid ftoptions:text[]"),
    empty("pg_foreign_server", "oid:oid srvname:name srvowner:oid srvfdw:oid srvoptions:text[]"),
    empty("pg_foreign_data_wrapper", "oid:oid fdwname:name fdwowner:oid"),
    empty(
        "pg_statistic_ext",
        "oid:oid stxrelid:oid stxname:name stxnamespace:oid stxowner:oid stxstattarget:int4 \
         stxkeys stxkind:text[] stxexprs",
    ),
    empty(
        "pg_publication",
        "oid:oid pubname:name pubowner:oid puballtables:bool pubinsert:bool pubupdate:bool pubdelete:bool \
         pubtruncate:bool pubviaroot:bool",
    ),
    empty("pg_publication_rel", "oid:oid prpubid:oid prrelid:oid prqual prattrs"),
    empty("pg_publication_namespace", "oid:oid pnpubid:oid pnnspid:oid"),
    empty("pg_publication_tables", "pubname:name schemaname:name tablename:name"),
    empty("pg_subscription", "oid:oid subname:name subowner:oid subenabled:bool"),
    empty("pg_enum", "oid:oid enumtypid:oid enumsortorder:float4 enumlabel:name"),
    empty("pg_range", "rngtypid:oid rngsubtype:oid rngmultitypid:oid rngcollation:oid"),
    empty("pg_extension", "oid:oid extname:name extowner:oid extnamespace:oid extversion"),
    empty("pg_available_extensions", "name:name default_version installed_version comment"),
    empty("pg_matviews", "schemaname:name matviewname:name matviewowner:name definition"),
    empty("pg_db_role_setting", "setdatabase:oid setrole:oid setconfig:text[]"),
    empty("pg_largeobject_metadata", "oid:oid lomowner:oid"),
    empty("pg_prepared_xacts", "transaction gid owner:name database:name"),
    empty("pg_timezone_names", "name abbrev"),
];

/// One schema of the database.
pub struct SchemaFact<'a> {
    pub id: u32,
    pub name: &'a str,
    pub owner: RoleId,
    /// None: computed by the system, and open to everybody.
    pub stored: Option<&'a Schema>,
}

pub fn schemas<'a>(facts: &Facts<'a>) -> Vec<SchemaFact<'a>> {
    let computed =
        [(PG_CATALOG, "pg_catalog"), (INFORMATION_SCHEMA, "information_schema"), (ATOLL, "atoll")];
    let computed = computed.map(|(id, name)| {
        let owner = RoleId::FIRST;
        SchemaFact { id, name, owner, stored: None }
    });
    let database = facts.view.identity.database;
    let own = facts.snapshot.authority.schemas.iter().filter(|schema| schema.database == database);
    let own = own.map(|schema| {
        let (id, name, owner) = (schema.id, schema.name.as_str(), schema.owner);
        SchemaFact { id, name, owner, stored: Some(schema) }
    });
    computed.into_iter().chain(own).collect()
}

fn schema_oid(facts: &Facts, name: &str) -> Datum {
    let found = schemas(facts).into_iter().find(|schema| schema.name == name);
    found.map_or(NULL, |schema| oid(schema.id))
}

fn pg_namespace(facts: &Facts) -> Vec<Row> {
    let row = |schema: SchemaFact| {
        let acl = match schema.stored {
            Some(stored) => acl_of(facts, Class::Schema, stored.id),
            None => Datum::Array([text("atoll=UC/atoll"), text("=U/atoll")].to_vec().into()),
        };
        vec![oid(schema.id), text(schema.name), oid(schema.owner.0), acl]
    };
    schemas(facts).into_iter().map(row).collect()
}

/// An object's list as `aclitem[]`; NULL where it has the list of its kind.
pub fn acl_of(facts: &Facts, class: Class, id: u32) -> Datum {
    let authority = &facts.snapshot.authority;
    let list = authority.list(class, id).and_then(|list| list.acl.as_ref());
    acl_datum(facts, list)
}

pub fn acl_datum(facts: &Facts, acl: Option<&Acl>) -> Datum {
    let texts = acl.map(|acl| acl.texts(&facts.snapshot.authority.roles));
    texts.map_or(NULL, |texts| Datum::Array(texts.into_iter().map(text).collect::<Vec<_>>().into()))
}

fn pg_class(facts: &Facts) -> Vec<Row> {
    let row = |relation: super::Relation| {
        let table = facts.snapshot.tables.iter().find(|table| table.id == relation.id);
        let options = table.filter(|table| !table.options.is_empty()).map_or(NULL, |table| {
            Datum::Array(table.options.iter().map(text).collect::<Vec<_>>().into())
        });
        let acl = match relation.kind {
            'r' => acl_of(facts, Class::Table, relation.id),
            'S' => acl_of(facts, Class::Sequence, relation.id),
            _ => NULL,
        };
        vec![
            oid(relation.id),
            text(relation.name),
            schema_oid(facts, relation.schema),
            oid(0),
            oid(0),
            oid(relation.owner.0),
            oid(relation.access_method),
            oid(relation.id),
            oid(0),
            int4(0),
            // Unknown, as in a table that was never analyzed.
            Datum::Float4(-1.0),
            int4(0),
            oid(0),
            is(relation.has_index),
            is(false),
            ch('p'),
            ch(relation.kind),
            int2(relation.n_columns),
            int2(relation.n_checks),
            is(false),
            is(false),
            is(false),
            is(false),
            is(false),
            is(true),
            ch(if relation.kind == 'r' { 'd' } else { 'n' }),
            is(false),
            acl,
            options,
            NULL,
        ]
    };
    relations(facts.snapshot).map(row).collect()
}

struct Attribute<'a> {
    relation: u32,
    name: &'a str,
    ty: &'a Type,
    attnum: usize,
    not_null: bool,
    has_default: bool,
    identity: Option<Identity>,
}

fn attribute(attribute: Attribute) -> Row {
    let ty = attribute.ty;
    let by_value = matches!(ty.byte_len(), 1 | 2 | 4 | 8);
    vec![
        oid(attribute.relation),
        text(attribute.name),
        oid(ty.oid()),
        int4(-1),
        Datum::Int2(ty.byte_len()),
        int2(attribute.attnum),
        int4(i32::from(matches!(ty, Type::Array(_)))),
        int4(ty.modifier()),
        is(by_value),
        ch(if by_value { 'p' } else { 'x' }),
        text(""),
        is(attribute.not_null),
        is(attribute.has_default),
        is(false),
        text(match attribute.identity {
            Some(Identity::Always) => "a",
            Some(Identity::ByDefault) => "d",
            None => "",
        }),
        text(""),
        is(false),
        is(true),
        int4(0),
        oid(collation(ty)),
        NULL,
        NULL,
        NULL,
    ]
}

fn collation(ty: &Type) -> u32 {
    match ty {
        Type::Name => C_COLLATION,
        ty if ty.is_text() => DEFAULT_COLLATION,
        _ => 0,
    }
}

fn pg_attribute(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &facts.snapshot.tables {
        rows.extend(table.columns.iter().map(|column| {
            attribute(Attribute {
                relation: table.id,
                name: &column.name,
                ty: &column.ty,
                attnum: column.id as usize,
                not_null: column.not_null,
                has_default: column.default.is_some() && column.identity.is_none(),
                identity: column.identity,
            })
        }));
        for index in indexes(table) {
            rows.extend(index.columns.iter().enumerate().map(|(position, &idx)| {
                attribute(Attribute {
                    relation: index.id,
                    name: &table.columns[idx].name,
                    ty: &table.columns[idx].ty,
                    attnum: position + 1,
                    not_null: false,
                    has_default: false,
                    identity: None,
                })
            }));
        }
    }
    let plain = |relation, attnum, name: &str, ty: &Type| {
        attribute(Attribute {
            relation,
            name,
            ty,
            attnum,
            not_null: false,
            has_default: false,
            identity: None,
        })
    };
    for sequence in &facts.snapshot.sequences {
        rows.push(plain(sequence.id, 1, "last_value", &Type::Int8));
        rows.push(plain(sequence.id, 2, "log_cnt", &Type::Int8));
        rows.push(plain(sequence.id, 3, "is_called", &Type::Bool));
    }
    for (id, view, _) in view_oids() {
        for (idx, (name, ty)) in parse_columns(view.columns).iter().enumerate() {
            rows.push(plain(*id, idx + 1, name, ty));
        }
    }
    rows
}

/// A default has no oid of its own here: its table's and column's numbers make one.
fn default_oid(table: u32, column: u32) -> u32 {
    table.wrapping_mul(2048).wrapping_add(column)
}

fn pg_attrdef(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &facts.snapshot.tables {
        for column in table.columns.iter().filter(|column| column.identity.is_none()) {
            if let Some(default) = &column.default {
                let id = default_oid(table.id, column.id);
                rows.push(vec![
                    oid(id),
                    oid(table.id),
                    int2(column.id as usize),
                    text(&default.sql),
                ]);
            }
        }
    }
    rows
}

fn pg_index(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &facts.snapshot.tables {
        for index in indexes(table) {
            let list = |each: &dyn Fn(usize) -> u32| {
                let all: Vec<String> =
                    index.columns.iter().map(|&idx| each(idx).to_string()).collect();
                text(all.join(" "))
            };
            rows.push(vec![
                oid(index.id),
                oid(table.id),
                int2(index.columns.len()),
                int2(index.columns.len()),
                is(index.unique),
                is(index.primary),
                is(false),
                is(true),
                is(false),
                is(index.ready),
                is(true),
                is(true),
                is(false),
                list(&|idx| table.columns[idx].id),
                list(&|_| 0),
                list(&|idx| collation(&table.columns[idx].ty)),
                list(&|_| 0),
                NULL,
                NULL,
                is(false),
            ]);
        }
    }
    rows
}

fn pg_constraint(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &facts.snapshot.tables {
        for constraint in constraints(table) {
            let key: Vec<Datum> = constraint
                .columns
                .iter()
                .map(|&idx| int2(table.columns[idx].id as usize))
                .collect();
            rows.push(vec![
                oid(constraint.id),
                text(constraint.name),
                schema_oid(facts, &table.schema),
                ch(constraint.kind),
                is(false),
                is(false),
                is(true),
                oid(table.id),
                oid(0),
                oid(constraint.index),
                oid(0),
                oid(0),
                ch(' '),
                ch(' '),
                ch(' '),
                is(true),
                int4(0),
                is(constraint.kind != 'c'),
                if key.is_empty() { NULL } else { Datum::Array(key.into()) },
                NULL,
                if constraint.kind == 'c' { text(constraint.definition(table)) } else { NULL },
            ]);
        }
    }
    rows
}

/// The types that values can have.
const TYPES: [Type; 23] = [
    Type::Bool,
    Type::Bytea,
    Type::InternalChar,
    Type::Name,
    Type::Int8,
    Type::Int2,
    Type::Int4,
    Type::Text,
    Type::Oid,
    Type::Json,
    Type::Float4,
    Type::Float8,
    Type::Unknown,
    Type::Char(0),
    Type::Varchar(None),
    Type::Date,
    Type::Time,
    Type::Timestamp,
    Type::TimestampTz,
    Type::Interval,
    Type::Numeric(None),
    Type::Void,
    Type::Uuid,
];

fn pg_type(_: &Facts) -> Vec<Row> {
    let row = |ty: &Type, element: u32, array: u32| {
        let category = match ty {
            Type::Array(_) => 'A',
            Type::Bool => 'B',
            Type::Date | Type::Time | Type::Timestamp | Type::TimestampTz => 'D',
            Type::Interval => 'T',
            Type::Void => 'P',
            Type::Unknown => 'X',
            ty if ty.is_number() || *ty == Type::Oid => 'N',
            ty if ty.is_text() => 'S',
            _ => 'U',
        };
        vec![
            oid(ty.oid()),
            text(ty.short_name()),
            oid(PG_CATALOG),
            oid(SUPERUSER),
            Datum::Int2(ty.byte_len()),
            is(matches!(ty.byte_len(), 1 | 2 | 4 | 8)),
            ch(if matches!(ty, Type::Void | Type::Unknown) { 'p' } else { 'b' }),
            ch(category),
            is(matches!(ty, Type::Bool | Type::Text | Type::Float8 | Type::TimestampTz)),
            is(true),
            ch(','),
            oid(0),
            oid(element),
            oid(array),
            oid(0),
            oid(0),
            oid(0),
            oid(0),
            oid(0),
            is(false),
            oid(0),
            int4(-1),
            int4(0),
            oid(collation(ty)),
            NULL,
            NULL,
        ]
    };
    let mut rows = Vec::new();
    for ty in &TYPES {
        let has_array = !matches!(ty, Type::Void | Type::Unknown);
        let array = Type::Array(Box::new(ty.clone()));
        rows.push(row(ty, 0, if has_array { array.oid() } else { 0 }));
        if has_array {
            rows.push(row(&array, ty.oid(), 0));
        }
    }
    rows
}

fn pg_am(_: &Facts) -> Vec<Row> {
    vec![
        vec![oid(HEAP_AM), text("heap"), oid(0), ch('t')],
        vec![oid(BTREE_AM), text("btree"), oid(0), ch('i')],
    ]
}

fn pg_collation(_: &Facts) -> Vec<Row> {
    let row = |id, name, provider| {
        let (collate, kind) = (text("C"), text("C"));
        let mut row = vec![oid(id), text(name), oid(PG_CATALOG), oid(SUPERUSER), ch(provider)];
        row.extend([is(true), int4(-1), collate, kind]);
        row
    };
    vec![row(DEFAULT_COLLATION, "default", 'd'), row(C_COLLATION, "C", 'c')]
}

fn pg_sequence(facts: &Facts) -> Vec<Row> {
    let row = |sequence: &std::sync::Arc<crate::catalog::Sequence>| {
        vec![
            oid(sequence.id),
            oid(sequence.ty.oid()),
            Datum::Int8(sequence.start),
            Datum::Int8(sequence.increment),
            Datum::Int8(sequence.max),
            Datum::Int8(sequence.min),
            Datum::Int8(sequence.cache),
            is(sequence.cycle),
        ]
    };
    facts.snapshot.sequences.iter().map(row).collect()
}

/// Which column owns which sequence.
fn pg_depend(facts: &Facts) -> Vec<Row> {
    let row = |sequence: &std::sync::Arc<crate::catalog::Sequence>| {
        let (table, column) = sequence.owned_by?;
        let found = facts.snapshot.tables.iter().find(|found| found.id == table)?;
        let identity = found.columns.iter().any(|c| c.id == column && c.identity.is_some());
        Some(vec![
            oid(PG_CLASS),
            oid(sequence.id),
            int4(0),
            oid(PG_CLASS),
            oid(table),
            int4(column as i32),
            ch(if identity { 'i' } else { 'a' }),
        ])
    };
    facts.snapshot.sequences.iter().filter_map(row).collect()
}

fn pg_tables(facts: &Facts) -> Vec<Row> {
    let row = |table: &std::sync::Arc<crate::catalog::Table>| {
        let mut row = vec![
            text(&table.schema),
            text(&table.name),
            text(facts.snapshot.authority.roles.name(table.owner)),
            NULL,
        ];
        row.extend([is(indexes(table).next().is_some()), is(false), is(false), is(false)]);
        row
    };
    facts.snapshot.tables.iter().map(row).collect()
}

fn pg_indexes(facts: &Facts) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in &facts.snapshot.tables {
        for index in indexes(table) {
            let names: Vec<&str> =
                index.columns.iter().map(|&idx| table.columns[idx].name.as_str()).collect();
            let definition = format!(
                "CREATE {}INDEX {} ON {}.{} USING btree ({})",
                if index.unique { "UNIQUE " } else { "" },
                index.name,
                table.schema,
                table.name,
                names.join(", ")
            );
            rows.push(vec![
                text(&table.schema),
                text(&table.name),
                text(index.name),
                NULL,
                text(definition),
            ]);
        }
    }
    rows
}

fn pg_views(_: &Facts) -> Vec<Row> {
    let row = |(_, view, _): &(u32, &Definition, usize)| {
        vec![text(view.schema), text(view.name), text("atoll"), NULL]
    };
    view_oids().iter().map(row).collect()
}

fn pg_sequences(facts: &Facts) -> Vec<Row> {
    let row = |sequence: &std::sync::Arc<crate::catalog::Sequence>| {
        vec![
            text(&sequence.schema),
            text(&sequence.name),
            text(facts.snapshot.authority.roles.name(sequence.owner)),
            text(sequence.ty.base_name()),
            Datum::Int8(sequence.start),
            Datum::Int8(sequence.min),
            Datum::Int8(sequence.max),
            Datum::Int8(sequence.increment),
            is(sequence.cycle),
            Datum::Int8(sequence.cache),
            NULL,
        ]
    };
    facts.snapshot.sequences.iter().map(row).collect()
}

/// The session's settings, by the names that clients ask for.
fn pg_settings(facts: &Facts) -> Vec<Row> {
    const NAMES: [&str; 14] = [
        "application_name",
        "client_encoding",
        "DateStyle",
        "default_transaction_isolation",
        "integer_datetimes",
        "IntervalStyle",
        "lock_timeout",
        "max_connections",
        "search_path",
        "server_encoding",
        "server_version",
        "standard_conforming_strings",
        "statement_timeout",
        "TimeZone",
    ];
    let row = |name: &&str| {
        let value = facts.view.setting(name)?;
        let value = text(value);
        let mut row = vec![text(name), value.clone(), NULL, NULL, NULL, text("user")];
        row.extend([text("string"), text("session"), NULL, value]);
        Some(row)
    };
    NAMES.iter().filter_map(row).collect()
}
