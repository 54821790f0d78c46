//! Expressions from a seed: every operator, cast and function, over the extreme values of each type.
//!
//! What there is to call is not written down here: operators and casts are those that PostgreSQL's own
//! catalog has for the types below, and functions those whose names Atoll's binder knows, with the
//! arguments that the same catalog tells. So nothing that the binder learns is left out.
//!
//! An expression is a tree; `({} + {})` over `{}::int4` and `abs({})` is one. Its leaves are values, which
//! may be written as literals, sent as parameters, or stand in a column of a table with one row.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::collections::{BTreeMap, BTreeSet};

/// The types, as PostgreSQL writes them, each with the name that its columns have.
pub const TYPES: [(&str, &str); 16] = [
    ("boolean", "bool"),
    ("smallint", "int2"),
    ("integer", "int4"),
    ("bigint", "int8"),
    ("real", "float4"),
    ("double precision", "float8"),
    ("numeric", "numeric"),
    ("text", "text"),
    ("bytea", "bytea"),
    ("date", "date"),
    ("time without time zone", "time"),
    ("timestamp without time zone", "timestamp"),
    ("timestamp with time zone", "timestamptz"),
    ("interval", "interval"),
    ("uuid", "uuid"),
    ("character varying", "varchar"),
];

pub const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "America/Los_Angeles",
    "Africa/Monrovia",
    "Asia/Kathmandu",
    "Pacific/Kiritimati",
    "Australia/Lord_Howe",
    "Pacific/Pago_Pago",
];

const UNITS: [&str; 26] = [
    "microseconds",
    "milliseconds",
    "second",
    "minute",
    "hour",
    "day",
    "week",
    "month",
    "quarter",
    "year",
    "decade",
    "century",
    "millennium",
    "dow",
    "isodow",
    "doy",
    "isoyear",
    "julian",
    "epoch",
    "timezone",
    "timezone_hour",
    "timezone_minute",
    "MONTHS",
    "us",
    "foo",
    "",
];

/// Functions that know more than their arguments: clocks, sessions, chance.
pub const NOT_PURE: [&str; 20] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "current_timestamp",
    "clock_timestamp",
    "current_date",
    "localtimestamp",
    "version",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_database",
    "current_catalog",
    "current_schema",
    "pg_backend_pid",
    "txid_current",
    "pg_current_xact_id",
    "random",
    "gen_random_uuid",
];

/// Functions with a syntax of their own, or of any number of arguments: not in the catalog as such.
pub const BY_HAND: [&str; 3] = ["extract", "concat", "trim"];

/// The extreme values of a type, as text.
pub fn values(ty: &str) -> &'static [&'static str] {
    match ty {
        "boolean" => &["true", "false"],
        "smallint" => &["0", "1", "-1", "2", "7", "32767", "-32768", "-32767"],
        "integer" => &[
            "0",
            "1",
            "-1",
            "2",
            "3",
            "16",
            "31",
            "32",
            "33",
            "100",
            "2147483647",
            "-2147483648",
            "-2147483647",
            "55296",
            "1114111",
            "1114112",
            "65",
        ],
        "bigint" => &[
            "0",
            "1",
            "-1",
            "2",
            "64",
            "65",
            "4294967296",
            "9223372036854775807",
            "-9223372036854775808",
            "-9223372036854775807",
            "9007199254740993",
        ],
        "real" => &[
            "0",
            "-0",
            "1",
            "-1",
            "0.5",
            "1.5",
            "2.5",
            "3.4028235e38",
            "-3.4028235e38",
            "1e-45",
            "1.1754944e-38",
            "16777217",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "double precision" => &[
            "0",
            "-0",
            "1",
            "-1",
            "0.5",
            "2.5",
            "-2.5",
            "1.7976931348623157e308",
            "-1.7976931348623157e308",
            "5e-324",
            "2.2250738585072014e-308",
            "1e15",
            "1e-5",
            "9007199254740993",
            "2147483648",
            "9223372036854775808",
            "NaN",
            "Infinity",
            "-Infinity",
            "0.1",
            "1e22",
            "1e200",
        ],
        "numeric" => &[
            "0",
            "1",
            "-1",
            "0.5",
            "-0.5",
            "2.5",
            "1.10",
            "100",
            "1e10",
            "0.00001",
            "99999999999999999999",
            "-99999999999999999999.999999",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "12345678901234567890.123456789",
            "0.0000000000000000001",
            "99999999999999999999999999999999999999",
            "NaN",
        ],
        "text" | "character varying" => &[
            "",
            " ",
            "a",
            "abc",
            "ab c",
            "  x ",
            "%",
            "_",
            "a%",
            "\\",
            "\\%",
            "grün",
            "日本語",
            "0",
            "-1",
            "12",
            "1e400",
            "NaN",
            "infinity",
            "true",
            "2000-01-01",
            "{1,2}",
            "\\x00",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ],
        "bytea" => &["", "\\x00", "\\x0001ff", "\\x616263", "\\xffffffffffffffffffff"],
        "date" => &[
            "2000-01-01",
            "1970-01-01",
            "2024-02-29",
            "2023-01-31",
            "0001-01-01",
            "0001-01-01 BC",
            "4714-11-24 BC",
            "5874897-12-31",
            "5874897-12-30",
            "294276-12-31",
            "294277-01-01",
            "infinity",
            "-infinity",
            "2023-11-05",
            "2023-03-12",
            "1582-10-15",
        ],
        "time without time zone" => {
            &["00:00:00", "12:34:56.789012", "23:59:59.999999", "24:00:00", "01:30:00"]
        }
        "timestamp without time zone" => &[
            "2000-01-01 00:00:00",
            "1970-01-01 00:00:00",
            "2024-02-29 12:34:56.789012",
            "2023-03-31 23:59:59.999999",
            "0001-01-01 00:00:00 BC",
            "4714-11-24 00:00:00 BC",
            "4714-11-24 00:00:00.000001 BC",
            "294247-01-10 04:00:54.775806",
            "294247-01-10 04:00:54",
            "294247-01-09 10:00:00",
            "294246-12-31 00:00:00",
            "infinity",
            "-infinity",
            "2023-11-05 01:30:00",
            "2023-03-12 02:30:00",
            "2023-10-29 02:30:00",
            "1883-01-01 00:00:00",
            "2150-07-01 12:00:00",
        ],
        "timestamp with time zone" => &[
            "2000-01-01 00:00:00+00",
            "1970-01-01 00:00:00+00",
            "2024-02-29 12:34:56.789012+00",
            "0001-01-01 00:00:00+00 BC",
            "4714-11-24 00:00:00+00 BC",
            "4714-11-24 12:00:00+00 BC",
            "294247-01-10 04:00:54.775806+00",
            "294247-01-09 10:00:00+00",
            "infinity",
            "-infinity",
            "2023-11-05 08:30:00+00",
            "2023-11-05 09:30:00+00",
            "2023-10-29 00:30:00+00",
            "2023-10-29 01:30:00+00",
            "1883-01-01 00:00:00+00",
            "2150-07-01 12:00:00+00",
            "1972-01-07 00:44:30+00",
            "2023-04-01 15:00:00+00",
        ],
        "interval" => &[
            "0",
            "1 day",
            "-1 day",
            "1 mon",
            "1 year",
            "00:00:00.000001",
            "1 mon -1 day 01:02:03.5",
            "178956970 years 7 mons",
            "-178956970 years -8 mons",
            "-178000000 years",
            "2147483647 days",
            "-2147483648 days",
            "2562047788:00:54.775807",
            "-2562047788:00:54.775807",
            "-9223372036854775808 us",
            "100000000 days",
            "24:00:00",
            "-00:00:00.000001",
            "11 mons 29 days 23:59:59.999999",
        ],
        "uuid" => &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ],
        _ => &[],
    }
}

/// Something that makes a value of one type from values of others. `form` has `{}` for each.
#[derive(Clone, Debug)]
pub struct Production {
    pub form: String,
    pub args: Vec<String>,
    pub answer: String,
    /// As failures name it.
    pub kind: String,
    /// The first argument is the name of a date's or time's part.
    pub units: bool,
    /// PostgreSQL refuses it whatever the values are: a cast between types that have none.
    pub refused: bool,
}

#[derive(Clone, Debug)]
pub enum Tree {
    /// A value (none: NULL) of a type.
    Leaf {
        ty: String,
        value: Option<String>,
    },
    Call {
        production: Production,
        args: Vec<Tree>,
    },
}

/// How the leaves are brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Literals,
    Parameters,
    /// The columns of a table, selected.
    Columns,
    /// The same in a condition.
    Condition,
    /// The same, of a table that is joined with another: planned by the engine of wide queries.
    Joined,
}

impl Mode {
    pub const ALL: [Mode; 5] =
        [Mode::Literals, Mode::Parameters, Mode::Columns, Mode::Condition, Mode::Joined];
}

pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn literal(ty: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{}::{ty}", quoted(value)),
        None => format!("NULL::{ty}"),
    }
}

/// The column that holds a value in the table with one row: `int4_3` is the fourth integer, `int4_null`
/// is NULL.
pub fn column(ty: &str, value: Option<&str>) -> String {
    let short = TYPES.iter().find(|(name, _)| *name == ty).map_or("none", |(_, short)| *short);
    match value.and_then(|value| values(ty).iter().position(|known| *known == value)) {
        Some(idx) => format!("{short}_{idx}"),
        None => format!("{short}_null"),
    }
}

/// An expression as its mode writes it, and the values of its parameters.
#[derive(Default)]
pub struct Written {
    pub sql: String,
    pub parameters: Vec<Option<String>>,
}

impl Tree {
    pub fn kind(&self) -> &str {
        match self {
            Tree::Leaf { ty, .. } => ty,
            Tree::Call { production, .. } => &production.kind,
        }
    }

    pub fn args(&self) -> &[Tree] {
        match self {
            Tree::Leaf { .. } => &[],
            Tree::Call { args, .. } => args,
        }
    }

    /// `missing` are columns that one of the sides could not be given: those stay literals.
    pub fn write(&self, mode: Mode, missing: &BTreeSet<String>) -> Written {
        let mut written = Written::default();
        written.sql = self.write_into(mode, missing, &mut written.parameters);
        written
    }

    fn write_into(
        &self,
        mode: Mode,
        missing: &BTreeSet<String>,
        parameters: &mut Vec<Option<String>>,
    ) -> String {
        match self {
            Tree::Leaf { ty, value } => match mode {
                Mode::Literals => literal(ty, value.as_deref()),
                Mode::Parameters => {
                    parameters.push(value.clone());
                    format!("${}::{ty}", parameters.len())
                }
                _ => match column(ty, value.as_deref()) {
                    column if missing.contains(&column) => literal(ty, value.as_deref()),
                    column => format!("t.{column}"),
                },
            },
            Tree::Call { production, args } => {
                let mut sql = String::new();
                let mut pieces = production.form.split("{}");
                sql.push_str(pieces.next().unwrap_or_default());
                for (idx, (piece, arg)) in pieces.zip(args).enumerate() {
                    match arg {
                        // A unit is a word of the language here, and a literal there.
                        Tree::Leaf { value: Some(value), .. } if production.units && idx == 0 => {
                            match production.form.starts_with("extract(") {
                                true => sql.push_str(&format!("\"{value}\"")),
                                false => sql.push_str(&quoted(value)),
                            }
                        }
                        arg => sql.push_str(&arg.write_into(mode, missing, parameters)),
                    }
                    sql.push_str(piece);
                }
                sql
            }
        }
    }
}

pub struct Generator {
    pub rng: StdRng,
    /// By the type that they answer.
    productions: BTreeMap<String, Vec<Production>>,
    all: Vec<Production>,
}

impl Generator {
    pub fn new(rng: StdRng, all: Vec<Production>) -> Generator {
        let mut productions: BTreeMap<String, Vec<Production>> = BTreeMap::new();
        for production in all.iter().filter(|production| !production.refused) {
            productions.entry(production.answer.clone()).or_default().push(production.clone());
        }
        Generator { rng, productions, all }
    }

    /// A tree with a call at its root; every call is as likely as another, those excepted that are refused.
    pub fn tree(&mut self) -> Tree {
        let production = loop {
            let production = self.all.choose(&mut self.rng).expect("there are some").clone();
            if !production.refused || self.rng.random_bool(0.05) {
                break production;
            }
        };
        let depth = *[0, 0, 1, 1, 2].choose(&mut self.rng).expect("not empty");
        self.call(production, depth)
    }

    fn call(&mut self, production: Production, depth: usize) -> Tree {
        let args = production.args.clone();
        let args = args
            .iter()
            .enumerate()
            .map(|(idx, ty)| match production.units && idx == 0 {
                true => {
                    let unit = (*UNITS.choose(&mut self.rng).expect("not empty")).to_owned();
                    // A word of the language has letters.
                    let unit = if unit.is_empty() { "foo".to_owned() } else { unit };
                    Tree::Leaf { ty: "text".into(), value: Some(unit) }
                }
                false => self.of_type(ty, depth),
            })
            .collect();
        Tree::Call { production, args }
    }

    fn of_type(&mut self, ty: &str, depth: usize) -> Tree {
        if depth > 0
            && self.rng.random_bool(0.6)
            && let Some(productions) = self.productions.get(ty)
        {
            let production = productions.choose(&mut self.rng).expect("not empty").clone();
            return self.call(production, depth - 1);
        }
        let value = values(ty).choose(&mut self.rng).map(|value| (*value).to_owned());
        let is_null = self.rng.random_bool(0.03);
        Tree::Leaf { ty: ty.to_owned(), value: value.filter(|_| !is_null) }
    }
}

/// What no catalog lists: conditions, CASE and its kin, for every type.
pub fn by_hand() -> Vec<Production> {
    let mut all = Vec::new();
    let mut add = |form: &str, args: &[&str], answer: &str, kind: String, units: bool| {
        let args = args.iter().map(|ty| (*ty).to_owned()).collect();
        let (form, answer) = (form.to_owned(), answer.to_owned());
        all.push(Production { form, args, answer, kind, units, refused: false });
    };
    for (ty, short) in TYPES {
        let kind = |what: &str| format!("{what} {short}");
        add("({} IS DISTINCT FROM {})", &[ty, ty], "boolean", kind("is distinct"), false);
        add("({} BETWEEN {} AND {})", &[ty; 3], "boolean", kind("between"), false);
        add("({} IN ({}, {}))", &[ty; 3], "boolean", kind("in"), false);
        add("({} IS NULL)", &[ty], "boolean", kind("is null"), false);
        add("nullif({}, {})", &[ty, ty], ty, kind("nullif"), false);
        add("coalesce({}, {})", &[ty, ty], ty, kind("coalesce"), false);
        add("greatest({}, {}, {})", &[ty; 3], ty, kind("greatest"), false);
        add("least({}, {}, {})", &[ty; 3], ty, kind("least"), false);
        let args = ["boolean", ty, ty];
        add("(CASE WHEN {} THEN {} ELSE {} END)", &args, ty, kind("case"), false);
        add("(CASE {} WHEN {} THEN 1 END)", &[ty, ty], "integer", kind("case of"), false);
    }
    for part in [
        "date",
        "time without time zone",
        "timestamp without time zone",
        "timestamp with time zone",
        "interval",
    ] {
        let kind = format!("extract from {part}");
        add("extract({} FROM {})", &["text", part], "numeric", kind, true);
    }
    for (form, kind) in [("({} LIKE {})", "like"), ("({} NOT ILIKE {})", "not ilike")] {
        add(form, &["text", "text"], "boolean", kind.to_owned(), false);
    }
    add("concat({}, {})", &["text", "integer"], "text", "concat".into(), false);
    add("trim({})", &["text"], "text", "trim".into(), false);
    add("trim(leading {} from {})", &["text", "text"], "text", "trim leading".into(), false);
    add(
        "substring({} from {} for {})",
        &["text", "integer", "integer"],
        "text",
        "substring from for".into(),
        false,
    );
    add("position({} in {})", &["text", "text"], "integer", "position".into(), false);
    add("({} AND {})", &["boolean", "boolean"], "boolean", "and".into(), false);
    add("({} OR {})", &["boolean", "boolean"], "boolean", "or".into(), false);
    add("(NOT {})", &["boolean"], "boolean", "not".into(), false);
    add("(- {} ^ {})", &["integer", "integer"], "double precision", "minus power".into(), false);
    add("({}>-{})", &["integer", "integer"], "boolean", "greater minus".into(), false);
    add(
        "({} AT TIME ZONE 'Africa/Monrovia')",
        &["timestamp without time zone"],
        "timestamp with time zone",
        "at time zone timestamp".into(),
        false,
    );
    add(
        "({} AT TIME ZONE 'America/New_York')",
        &["timestamp with time zone"],
        "timestamp without time zone",
        "at time zone timestamptz".into(),
        false,
    );
    for ty in ["varchar(3)", "char(4)"] {
        add(
            &format!("(({{}})::{ty})::text"),
            &["text"],
            "text",
            format!("cast text as {ty}"),
            false,
        );
    }
    for (precision, scale) in [(5, 2), (38, 10), (3, 3)] {
        let kind = format!("cast numeric as numeric({precision},{scale})");
        add(&format!("({{}})::numeric({precision},{scale})"), &["numeric"], "numeric", kind, false);
    }
    all
}
