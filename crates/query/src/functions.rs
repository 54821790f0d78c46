//! Functions that PostgreSQL has and DataFusion lacks or does differently.
//!
//! Most describe the catalog and are called a few times per query: they are written on datums, one
//! call per row, over a snapshot of the catalog ([`Facts`]). Numeric functions are in
//! [`super::numeric`]. A function of DataFusion's that has PostgreSQL's name and another
//! meaning is refused rather than run.

use super::{evaluated, failure, numeric, privileges, setup::Setup, shape};
use arrow::datatypes::DataType;
use datafusion_common::DataFusionError;
use datafusion_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_session::Session;
use sql::authority::RoleId;
use sql::error::{Error, Result, state};
use sql::types::{Datum, Type, Zone};
use sql::views::{self, Snapshot};
use sql::wide::QueryContext;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// What the functions know.
pub struct Facts {
    pub snapshot: Arc<Snapshot>,
    pub view: Arc<sql::session::View>,
}

/// Name, fewest and most arguments, the answer's type, and the function. Where `strict`, a NULL
/// argument makes the answer NULL.
struct Definition {
    name: &'static str,
    n_args: (usize, usize),
    answer: Answer,
    strict: bool,
    run: fn(&Facts, &[Datum]) -> Result<Datum>,
}

#[derive(Clone, Copy)]
enum Answer {
    Text,
    Name,
    Bool,
    Oid,
    Int8,
    Names,
    /// A timestamp for a timestamptz and the reverse.
    OtherTimestamp,
}

const fn define(
    name: &'static str,
    n_args: (usize, usize),
    answer: Answer,
    run: fn(&Facts, &[Datum]) -> Result<Datum>,
) -> Definition {
    Definition { name, n_args, answer, strict: true, run }
}

static DEFINITIONS: &[Definition] = &[
    Definition { strict: false, ..define("format_type", (2, 2), Answer::Text, format_type) },
    define("pg_get_userbyid", (1, 1), Answer::Name, user_by_id),
    define("pg_table_is_visible", (1, 1), Answer::Bool, table_is_visible),
    define("pg_type_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_function_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_operator_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_opclass_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_collation_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_statistics_obj_is_visible", (1, 1), Answer::Bool, yes),
    define("pg_relation_is_publishable", (1, 1), Answer::Bool, no),
    define("pg_is_in_recovery", (0, 0), Answer::Bool, no),
    define("has_table_privilege", (2, 3), Answer::Bool, privileges::of_table),
    define("has_schema_privilege", (2, 3), Answer::Bool, privileges::of_schema),
    define("has_database_privilege", (2, 3), Answer::Bool, privileges::of_database),
    define("has_column_privilege", (3, 4), Answer::Bool, privileges::of_column),
    define("has_any_column_privilege", (2, 3), Answer::Bool, privileges::of_any_column),
    define("has_sequence_privilege", (2, 3), Answer::Bool, privileges::of_sequence),
    define("pg_has_role", (2, 3), Answer::Bool, privileges::of_role),
    // Every function may be called by everybody.
    define("has_function_privilege", (2, 3), Answer::Bool, yes),
    define("has_type_privilege", (2, 3), Answer::Bool, yes),
    define("has_language_privilege", (2, 3), Answer::Bool, yes),
    define("pg_get_expr", (2, 3), Answer::Text, first),
    define("pg_get_indexdef", (1, 3), Answer::Text, index_definition),
    define("pg_get_constraintdef", (1, 2), Answer::Text, constraint_definition),
    define("pg_get_serial_sequence", (2, 2), Answer::Text, serial_sequence),
    define("pg_get_viewdef", (1, 2), Answer::Text, nothing),
    define("pg_get_triggerdef", (1, 2), Answer::Text, nothing),
    define("pg_get_ruledef", (1, 2), Answer::Text, nothing),
    define("pg_get_functiondef", (1, 1), Answer::Text, nothing),
    define("pg_get_function_result", (1, 1), Answer::Text, nothing),
    define("pg_get_function_arguments", (1, 1), Answer::Text, nothing),
    define("pg_get_function_identity_arguments", (1, 1), Answer::Text, nothing),
    define("pg_get_partkeydef", (1, 1), Answer::Text, nothing),
    define("pg_get_statisticsobjdef_columns", (1, 1), Answer::Text, nothing),
    define("obj_description", (1, 2), Answer::Text, privileges::object_description),
    define("col_description", (2, 2), Answer::Text, privileges::column_description),
    define("shobj_description", (2, 2), Answer::Text, privileges::object_description),
    define("pg_tablespace_location", (1, 1), Answer::Text, nothing),
    define("pg_encoding_to_char", (1, 1), Answer::Name, |_, _| Ok(Datum::text("UTF8"))),
    define("pg_client_encoding", (0, 0), Answer::Name, |_, _| Ok(Datum::text("UTF8"))),
    define("pg_relation_size", (1, 2), Answer::Int8, nothing),
    define("pg_table_size", (1, 1), Answer::Int8, nothing),
    define("pg_indexes_size", (1, 1), Answer::Int8, nothing),
    define("pg_total_relation_size", (1, 1), Answer::Int8, nothing),
    define("pg_database_size", (1, 1), Answer::Int8, nothing),
    define("pg_size_pretty", (1, 1), Answer::Text, size_pretty),
    define("current_setting", (1, 2), Answer::Text, current_setting),
    define("current_schemas", (1, 1), Answer::Names, current_schemas),
    define("to_regclass_oid", (1, 1), Answer::Oid, regclass),
    define("to_regclass", (1, 1), Answer::Oid, regclass_or_null),
    define("regclass_name", (1, 1), Answer::Text, regclass_name),
    define("quote_ident", (1, 1), Answer::Text, quote_ident),
    define("quote_literal", (1, 1), Answer::Text, quote_literal),
    define("timezone", (2, 2), Answer::OtherTimestamp, timezone),
    Definition {
        strict: false,
        ..define("json_build_object", (0, N_JSON_ARGS_MAX), Answer::Text, json_build_object)
    },
];

/// As many arguments as PostgreSQL's functions may have.
const N_JSON_ARGS_MAX: usize = 100;

/// DataFusion has these, and they mean something else.
static REFUSED: &[&str] = &["to_char", "to_date", "to_number", "to_timestamp", "age"];

/// Names of DataFusion's by PostgreSQL's.
static ALIASES: &[(&str, &str)] = &[("gen_random_uuid", "uuid"), ("array_upper", "array_length")];

/// Whether a function needs the catalog to answer.
pub fn asks_catalog(name: &str) -> bool {
    name.starts_with("pg_")
        || name.starts_with("has_")
        || name.contains("regclass")
        || name.ends_with("_description")
}

/// The functions of one query, by name.
pub fn of(
    cx: &QueryContext,
    setup: &Setup,
    snapshot: &Arc<Snapshot>,
) -> HashMap<String, Arc<ScalarUDF>> {
    let facts = Arc::new(Facts { snapshot: snapshot.clone(), view: cx.view.clone() });
    let mut functions: HashMap<String, Arc<ScalarUDF>> = DEFINITIONS
        .iter()
        .map(|definition| {
            let signature = Signature::variadic_any(Volatility::Stable);
            let signature = match definition.n_args {
                (0, _) => Signature::nullary(Volatility::Stable),
                _ => signature,
            };
            let function = Function { definition, facts: facts.clone(), signature };
            (definition.name.to_owned(), Arc::new(ScalarUDF::new_from_impl(function)))
        })
        .collect();
    functions.extend(evaluated::of(&cx.view).map(|(name, udf)| (name.to_owned(), udf)));
    for name in REFUSED {
        let signature = Signature::variadic_any(Volatility::Stable);
        let refused = Refused { name, signature };
        functions.insert((*name).to_owned(), Arc::new(ScalarUDF::new_from_impl(refused)));
    }
    for (name, meant) in ALIASES {
        let known = functions.get(*meant).cloned();
        let found = known.or_else(|| setup.scalar_functions().get(*meant).cloned());
        if let Some(function) = found {
            functions.insert((*name).to_owned(), function);
        }
    }
    functions
}

struct Function {
    definition: &'static Definition,
    facts: Arc<Facts>,
    signature: Signature,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.definition.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.definition.name == other.definition.name && Arc::ptr_eq(&self.facts, &other.facts)
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition.name.hash(state);
    }
}

impl Function {
    fn answer(&self, types: &[DataType]) -> Type {
        match self.definition.answer {
            Answer::Text => Type::Text,
            Answer::Name => Type::Name,
            Answer::Bool => Type::Bool,
            Answer::Oid => Type::Oid,
            Answer::Int8 => Type::Int8,
            Answer::Names => Type::Array(Box::new(Type::Text)),
            Answer::OtherTimestamp => match types.last() {
                Some(DataType::Timestamp(_, Some(_))) => Type::Timestamp,
                _ => Type::TimestampTz,
            },
        }
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.definition.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Df<DataType> {
        let (fewest, most) = self.definition.n_args;
        if types.len() < fewest || types.len() > most {
            let error = numeric::no_such_function(self.definition.name, types);
            return Err(failure::through(error));
        }
        Ok(shape::arrow_type(&self.answer(types)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Df<ColumnarValue> {
        let types: Vec<DataType> = args.args.iter().map(ColumnarValue::data_type).collect();
        let all_scalars = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let n_rows = if all_scalars { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|arg| arg.to_array(n_rows)).collect::<Df<Vec<_>>>()?;
        let run = || -> Result<_> {
            let mut columns = Vec::with_capacity(arrays.len());
            for array in &arrays {
                let mut datums = Vec::with_capacity(n_rows);
                let ty = shape::type_of_arrow(array.data_type());
                shape::each(array, &ty, &mut |datum| datums.push(datum))?;
                columns.push(datums);
            }
            let mut out = shape::Builder::new(&self.answer(&types), n_rows);
            let mut row = Vec::with_capacity(columns.len());
            for idx in 0..n_rows {
                row.clear();
                row.extend(columns.iter().map(|column| column[idx].clone()));
                let unknown = self.definition.strict && row.iter().any(Datum::is_null);
                match unknown {
                    true => out.push(&Datum::Null)?,
                    false => out.push(&(self.definition.run)(&self.facts, &row)?)?,
                }
            }
            out.finish()
        };
        let result = run().map_err(failure::through)?;
        match all_scalars {
            true => {
                let value = datafusion_common::ScalarValue::try_from_array(&result, 0)?;
                Ok(ColumnarValue::Scalar(value))
            }
            false => Ok(ColumnarValue::Array(result)),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Refused {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Refused {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Df<DataType> {
        Err(failure::through(Error::unsupported(format!("the function {}", self.name))))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Df<ColumnarValue> {
        Err(failure::through(Error::unsupported(format!("the function {}", self.name))))
    }
}

/// Keys and values in turn, as PostgreSQL writes them: `{"a" : 1, "b" : "x"}`.
fn json_build_object(_: &Facts, args: &[Datum]) -> Result<Datum> {
    if !args.len().is_multiple_of(2) {
        let message = "argument list must have even number of elements";
        return Err(Error::new(state::INVALID_PARAMETER, message).hint(
            "The arguments of json_build_object() must consist of alternating keys and values.",
        ));
    }
    let mut pairs = Vec::with_capacity(args.len() / 2);
    for pair in args.chunks_exact(2) {
        if pair[0].is_null() {
            return Err(Error::new(
                state::INVALID_PARAMETER,
                "null value not allowed for object key",
            ));
        }
        let key = json_text(&sql::types::text::show(&pair[0]));
        let value = match &pair[1] {
            Datum::Null => "null".to_owned(),
            Datum::Bool(value) => value.to_string(),
            Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_) | Datum::Numeric(_) => {
                sql::types::text::show(&pair[1])
            }
            Datum::Float4(value) if value.is_finite() => sql::types::text::show(&pair[1]),
            Datum::Float8(value) if value.is_finite() => sql::types::text::show(&pair[1]),
            other => json_text(&sql::types::text::show(other)),
        };
        pairs.push(format!("{key} : {value}"));
    }
    Ok(Datum::text(format!("{{{}}}", pairs.join(", "))))
}

fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

fn yes(_: &Facts, _: &[Datum]) -> Result<Datum> {
    Ok(Datum::Bool(true))
}

fn no(_: &Facts, _: &[Datum]) -> Result<Datum> {
    Ok(Datum::Bool(false))
}

fn nothing(_: &Facts, _: &[Datum]) -> Result<Datum> {
    Ok(Datum::Null)
}

fn first(_: &Facts, args: &[Datum]) -> Result<Datum> {
    Ok(args[0].clone())
}

pub fn oid(datum: &Datum) -> Option<u32> {
    match datum {
        Datum::Text(text) => text.parse().ok(),
        datum => datum.as_i64().and_then(|value| u32::try_from(value).ok()),
    }
}

pub fn text_of(datum: &Datum) -> &str {
    datum.as_str().unwrap_or_default()
}

fn format_type(_: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(oid) = oid(&args[0]) else { return Ok(Datum::Null) };
    let modifier = args[1].as_i64().unwrap_or(-1);
    let Some(ty) = Type::from_oid(oid) else { return Ok(Datum::text("???")) };
    let length = || u32::try_from(modifier - 4).ok().filter(|_| modifier >= 4);
    let ty = match ty {
        Type::Varchar(_) => Type::Varchar(length()),
        Type::Char(_) => match length() {
            Some(n) => Type::Char(n),
            None => return Ok(Datum::text("character")),
        },
        Type::Numeric(_) => {
            Type::Numeric(length().map(|packed| ((packed >> 16) as u8, packed as u8)))
        }
        ty => ty,
    };
    Ok(Datum::text(ty.name()))
}

fn user_by_id(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = oid(&args[0]) else { return Ok(Datum::Null) };
    Ok(match facts.snapshot.authority.roles.get(RoleId(id)) {
        Some(role) => Datum::text(&role.name),
        None => Datum::text(format!("unknown (OID={id})")),
    })
}

fn table_is_visible(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = oid(&args[0]) else { return Ok(Datum::Null) };
    let named = views::relations(&facts.snapshot).find(|relation| relation.id == id);
    Ok(match named {
        Some(relation) => {
            let path = &facts.view.search_path;
            let schema = relation.schema;
            Datum::Bool(schema == "pg_catalog" || path.iter().any(|name| name == schema))
        }
        None => Datum::Null,
    })
}

fn index_definition(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = oid(&args[0]) else { return Ok(Datum::Null) };
    let column = args.get(1).and_then(Datum::as_i64).unwrap_or(0);
    for table in &facts.snapshot.tables {
        if let Some(index) = views::indexes(table).find(|index| index.id == id) {
            let names: Vec<String> =
                index.columns.iter().map(|&idx| quoted(&table.columns[idx].name)).collect();
            if column > 0 {
                let name = usize::try_from(column - 1).ok().and_then(|idx| names.get(idx));
                return Ok(name.map_or(Datum::text(""), Datum::text));
            }
            return Ok(Datum::text(format!(
                "CREATE {}INDEX {} ON {}.{} USING btree ({})",
                if index.unique { "UNIQUE " } else { "" },
                quoted(index.name),
                quoted(&table.schema),
                quoted(&table.name),
                names.join(", ")
            )));
        }
    }
    Ok(Datum::Null)
}

fn constraint_definition(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = oid(&args[0]) else { return Ok(Datum::Null) };
    for table in &facts.snapshot.tables {
        if let Some(constraint) = views::constraints(table).find(|constraint| constraint.id == id) {
            return Ok(Datum::text(constraint.definition(table)));
        }
    }
    Ok(Datum::Null)
}

fn serial_sequence(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(id) = find_relation(facts, text_of(&args[0])) else {
        return Err(super::no_relation(None, text_of(&args[0])));
    };
    let column = facts
        .snapshot
        .tables
        .iter()
        .find(|table| table.id == id)
        .and_then(|table| table.column(text_of(&args[1])));
    let Some(column) = column else { return Ok(Datum::Null) };
    let owned =
        facts.snapshot.sequences.iter().find(|sequence| sequence.owned_by == Some((id, column.id)));
    Ok(owned.map_or(Datum::Null, |sequence| {
        Datum::text(format!("{}.{}", quoted(&sequence.schema), quoted(&sequence.name)))
    }))
}

fn size_pretty(_: &Facts, args: &[Datum]) -> Result<Datum> {
    let Some(bytes) = args[0].as_f64() else { return Ok(Datum::Null) };
    let mut size = bytes;
    let mut unit = "bytes";
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if size.abs() < 10_240.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    Ok(Datum::text(format!("{} {unit}", size.round())))
}

fn current_setting(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let name = text_of(&args[0]);
    match facts.view.setting(name) {
        Some(value) => Ok(Datum::text(value)),
        None if args.get(1).and_then(Datum::as_bool) == Some(true) => Ok(Datum::Null),
        None => {
            let message = format!("unrecognized configuration parameter \"{name}\"");
            Err(Error::new(state::UNDEFINED_OBJECT, message))
        }
    }
}

fn current_schemas(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let implicit = args[0].as_bool() == Some(true);
    let own = facts.view.search_path.iter().filter(|name| *name != "$user");
    let names = implicit.then_some("pg_catalog").into_iter().chain(own.map(String::as_str));
    Ok(Datum::Array(names.map(Datum::text).collect()))
}

pub fn find_relation(facts: &Facts, name: &str) -> Option<u32> {
    let unquoted = |part: &str| match part.strip_prefix('"').and_then(|p| p.strip_suffix('"')) {
        Some(exact) => exact.replace("\"\"", "\""),
        None => part.to_lowercase(),
    };
    let (schema, name) = match name.rsplit_once('.') {
        Some((schema, name)) => (Some(unquoted(schema)), unquoted(name)),
        None => (None, unquoted(name)),
    };
    let path = facts.view.search_path.iter().map(String::as_str);
    let schemas: Vec<&str> = match &schema {
        Some(schema) => vec![schema],
        None => std::iter::once("pg_catalog").chain(path).collect(),
    };
    schemas.iter().find_map(|schema| {
        views::relations(&facts.snapshot)
            .find(|relation| relation.schema == *schema && relation.name == name)
            .map(|relation| relation.id)
    })
}

fn regclass(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    match oid(&args[0]) {
        Some(oid) => Ok(Datum::Int8(i64::from(oid))),
        None => {
            let name = text_of(&args[0]);
            let id = find_relation(facts, name).ok_or_else(|| super::no_relation(None, name))?;
            Ok(Datum::Int8(i64::from(id)))
        }
    }
}

fn regclass_or_null(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let id = find_relation(facts, text_of(&args[0]));
    Ok(id.map_or(Datum::Null, |id| Datum::Int8(i64::from(id))))
}

fn regclass_name(facts: &Facts, args: &[Datum]) -> Result<Datum> {
    let id = match oid(&args[0]) {
        Some(id) => id,
        None => match regclass(facts, args)?.as_i64() {
            Some(id) => id as u32,
            None => return Ok(Datum::Null),
        },
    };
    let named = views::relations(&facts.snapshot).find(|relation| relation.id == id);
    Ok(Datum::text(match named {
        Some(relation) => {
            let visible = relation.schema == "pg_catalog"
                || facts.view.search_path.iter().any(|name| name == relation.schema);
            match visible {
                true => quoted(relation.name),
                false => format!("{}.{}", quoted(relation.schema), quoted(relation.name)),
            }
        }
        None => id.to_string(),
    }))
}

/// An identifier, in quotes where it needs them.
pub fn quoted(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn quote_ident(_: &Facts, args: &[Datum]) -> Result<Datum> {
    Ok(Datum::text(quoted(text_of(&args[0]))))
}

fn quote_literal(_: &Facts, args: &[Datum]) -> Result<Datum> {
    let text = sql::types::text::show(&args[0]);
    Ok(Datum::text(format!("'{}'", text.replace('\'', "''"))))
}

fn timezone(_: &Facts, args: &[Datum]) -> Result<Datum> {
    let zone = match &args[0] {
        Datum::Interval(offset) => {
            let seconds = i32::try_from(offset.us / 1_000_000).ok();
            let seconds = seconds.filter(|_| offset.months == 0 && offset.days == 0);
            Zone::Fixed(seconds.ok_or_else(|| {
                let shown = sql::types::text::show(&args[0]);
                let rule = "must not include months or days";
                let message = format!("interval time zone \"{shown}\" {rule}");
                Error::new(state::INVALID_PARAMETER, message)
            })?)
        }
        name => Zone::parse(text_of(name)).ok_or_else(|| {
            let message = format!("time zone \"{}\" not recognized", text_of(name));
            Error::new(state::INVALID_PARAMETER, message)
        })?,
    };
    Ok(match &args[1] {
        Datum::TimestampTz(us) => Datum::Timestamp(zone.try_to_local(*us)?),
        Datum::Timestamp(us) => Datum::TimestampTz(zone.try_to_utc(*us)?),
        Datum::Date(days) => {
            let local = sql::types::datetime::try_date_to_timestamp(*days)?;
            Datum::TimestampTz(zone.try_to_utc(local)?)
        }
        _ => return Err(Error::new(state::UNDEFINED_FUNCTION, "AT TIME ZONE needs a timestamp")),
    })
}
