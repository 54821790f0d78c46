//! No expression ends a process, and few answer otherwise than PostgreSQL 15.
//!
//! Expressions are made from a seed (`differential/generate.rs`), sent to both, and their answers compared:
//! the value, or the SQLSTATE. Each is sent in one of five ways, so that both of Atoll's engines and all ways
//! of bringing in a value are met: with literals, with parameters, with a table's columns, in a condition,
//! and with the columns of a table that is joined with another.
//!
//! * A lost connection, no answer within ten seconds, XX000 and a node that started again are failures.
//! * Any other difference is counted under its *kind*: what differs, and the smallest part of the expression
//!   that already does. `wrong value: date_trunc(text, timestamptz)` is one. A kind that
//!   `differential/known.txt` has no line for is a failure, too; the file gives the reason for each.
//!
//! `ATOLL_DIFFERENTIAL=60000` sends so many, and `ATOLL_SEED=7` begins elsewhere.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

#[path = "differential/generate.rs"]
mod generate;
mod support;

use bytes::BytesMut;
use generate::{BY_HAND, Generator, Mode, NOT_PURE, Production, TYPES, Tree, ZONES};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sql::expr::Arithmetic;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt::Write;
use std::time::Duration;
use support::{Cluster, connect};
use tokio_postgres::types::{Format, FromSql, IsNull, ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};
use xtask::postgres::Postgres;

const N_EXPRESSIONS: usize = 4_000;
const SEED: u64 = 20_260;
const PATIENCE: Duration = Duration::from_secs(10);
/// Expressions between two changes of the time zone.
const N_IN_A_ZONE: usize = 40;
const N_EXAMPLES: usize = 3;
const KNOWN: &str = include_str!("differential/known.txt");

/// A value that is sent as text whatever its type is.
#[derive(Debug)]
struct AsText(Option<String>);

impl ToSql for AsText {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match &self.0 {
            None => Ok(IsNull::Yes),
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// A value as the wire brings it.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Raw, Box<dyn StdError + Sync + Send>> {
        Ok(Raw(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Value(Option<String>),
    /// SQLSTATE and message.
    Failed(String, String),
    Lost(String),
}

impl Answer {
    fn shown(&self) -> String {
        match self {
            Answer::Value(value) => value.clone().unwrap_or_else(|| "NULL".into()),
            Answer::Failed(state, message) => format!("{state} {message}"),
            Answer::Lost(why) => format!("LOST: {why}"),
        }
    }
}

fn failed(error: tokio_postgres::Error) -> Answer {
    match error.as_db_error() {
        Some(told) => {
            let detail = told.detail().unwrap_or_default();
            Answer::Failed(told.code().code().to_owned(), format!("{} {detail}", told.message()))
        }
        None => Answer::Lost(error.to_string()),
    }
}

async fn within<T>(
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Answer> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(Answer::Lost(format!("no answer within {PATIENCE:?}"))),
    }
}

async fn simple(client: &Client, sql: &str) -> Answer {
    match within(client.simple_query(sql)).await {
        Ok(messages) => {
            let value = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            });
            Answer::Value(value.unwrap_or_else(|| Some("no row".into())))
        }
        Err(answer) => answer,
    }
}

async fn with_parameters(client: &Client, sql: &str, values: &[Option<String>]) -> Answer {
    let prepared = match within(client.prepare(sql)).await {
        Ok(prepared) => prepared,
        Err(answer) => return answer,
    };
    let values: Vec<AsText> = values.iter().map(|value| AsText(value.clone())).collect();
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
    match within(client.query(&prepared, &values)).await {
        Ok(rows) => {
            let ty = prepared.columns()[0].type_().name().to_owned();
            let Some(row) = rows.first() else { return Answer::Value(Some("no row".into())) };
            let raw: Option<Raw> = row.get(0);
            Answer::Value(raw.map(|Raw(bytes)| {
                let mut shown = format!("{ty} ");
                bytes.iter().for_each(|byte| write!(shown, "{byte:02x}").unwrap());
                shown
            }))
        }
        Err(answer) => answer,
    }
}

/// One of the two that are compared: its connection, made anew where it was lost.
struct Side {
    config: tokio_postgres::Config,
    client: Client,
    zone: &'static str,
}

impl Side {
    async fn new(config: tokio_postgres::Config) -> Side {
        let client = connect(&config).await.unwrap();
        Side { config, client, zone: "UTC" }
    }

    async fn set_zone(&mut self, zone: &'static str) {
        self.zone = zone;
        self.client.batch_execute(&format!("SET TimeZone = '{zone}'")).await.unwrap();
    }

    /// Waits for whoever answers again.
    async fn reconnect(&mut self) {
        for _ in 0..600 {
            if let Ok(client) = connect(&self.config).await
                && client.batch_execute(&format!("SET TimeZone = '{}'", self.zone)).await.is_ok()
            {
                self.client = client;
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("nobody answers for a minute");
    }

    async fn ask(&mut self, tree: &Tree, mode: Mode, missing: &BTreeSet<String>) -> Answer {
        let written = tree.write(mode, missing);
        let expr = &written.sql;
        let answer = match mode {
            Mode::Literals => simple(&self.client, &format!("SELECT {expr}")).await,
            Mode::Parameters => {
                with_parameters(&self.client, &format!("SELECT {expr}"), &written.parameters).await
            }
            Mode::Columns => simple(&self.client, &format!("SELECT {expr} FROM t")).await,
            Mode::Condition => {
                let sql = format!("SELECT t.id FROM t WHERE ({expr}) IS NULL");
                simple(&self.client, &sql).await
            }
            Mode::Joined => {
                let sql = format!("SELECT {expr} FROM t JOIN one ON one.id = t.id");
                simple(&self.client, &sql).await
            }
        };
        if let Answer::Lost(_) = answer {
            self.reconnect().await;
        }
        answer
    }
}

/// Makes the table whose one row holds every value in a column of its own, and says which values could
/// not be stored.
async fn make_tables(client: &Client) -> BTreeSet<String> {
    let mut columns = String::new();
    for (ty, short) in TYPES {
        write!(columns, ", {short}_null {ty}").unwrap();
        for idx in 0..generate::values(ty).len() {
            write!(columns, ", {short}_{idx} {ty}").unwrap();
        }
    }
    client
        .batch_execute(&format!(
            "CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1);
             CREATE TABLE t (id int PRIMARY KEY{columns}); INSERT INTO t (id) VALUES (1)"
        ))
        .await
        .unwrap();
    let mut missing = BTreeSet::new();
    for (ty, _) in TYPES {
        for value in generate::values(ty) {
            let column = generate::column(ty, Some(value));
            let sql = format!("UPDATE t SET {column} = {}", generate::quoted(value));
            if client.batch_execute(&sql).await.is_err() {
                missing.insert(column);
            }
        }
    }
    missing
}

/// What PostgreSQL's catalog has for the types of [`TYPES`]: operators, casts, and the functions whose
/// names Atoll's binder knows.
async fn productions(postgres: &Client) -> Vec<Production> {
    let rows = |sql: String| async move {
        let mut rows = Vec::new();
        for message in postgres.simple_query(&sql).await.unwrap() {
            if let SimpleQueryMessage::Row(row) = message {
                let cell = |idx| row.get(idx).unwrap_or_default().to_owned();
                rows.push((cell(0), cell(1), cell(2)));
            }
        }
        rows
    };
    let is_known = |ty: &str| TYPES.iter().any(|(name, _)| *name == ty);
    let mut all = generate::by_hand();
    let mut add = |form: String, args: Vec<String>, answer: String, kind: String, units: bool| {
        if args.iter().all(|ty| is_known(ty)) && is_known(&answer) {
            all.push(Production { form, args, answer, kind, units, refused: false });
        }
    };
    let signs: Vec<String> = arithmetic_signs()
        .into_iter()
        .chain(["=", "<>", "<", "<=", ">", ">=", "^", "~~", "!~~"])
        .map(generate::quoted)
        .collect();
    let operators = format!(
        "SELECT o.oprname, array_to_string(ARRAY[CASE WHEN o.oprleft <> 0 THEN
             format_type(o.oprleft, NULL) END, format_type(o.oprright, NULL)], ','),
             format_type(o.oprresult, NULL)
         FROM pg_operator o WHERE o.oprname IN ({}) ORDER BY o.oid",
        signs.join(", ")
    );
    for (sign, args, answer) in rows(operators).await {
        let args: Vec<String> = args.split(',').map(str::to_owned).collect();
        let (form, kind) = match &args[..] {
            [arg] => (format!("({sign} {{}})"), format!("{sign} {arg}")),
            [left, right] => (format!("({{}} {sign} {{}})"), format!("{left} {sign} {right}")),
            _ => continue,
        };
        add(form, args, answer, kind, false);
    }
    let mut functions = names();
    functions.retain(|name| !NOT_PURE.contains(name) && !BY_HAND.contains(name));
    let functions: Vec<String> = functions.into_iter().map(generate::quoted).collect();
    let functions = format!(
        "SELECT p.proname, (SELECT string_agg(format_type(a.ty, NULL), ',' ORDER BY a.idx)
             FROM unnest(p.proargtypes) WITH ORDINALITY a(ty, idx)), format_type(p.prorettype, NULL)
         FROM pg_proc p WHERE p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0
             AND p.proname IN ({}) ORDER BY p.oid",
        functions.join(", ")
    );
    for (name, args, answer) in rows(functions).await {
        let args: Vec<String> = args.split(',').map(str::to_owned).collect();
        let holes = vec!["{}"; args.len()].join(", ");
        let kind = format!("{name}({})", args.join(", "));
        let units = matches!(name.as_str(), "date_trunc" | "date_part");
        add(format!("{name}({holes})"), args, answer, kind, units);
    }
    for (from, _) in TYPES {
        for (to, _) in TYPES {
            let refused =
                postgres.simple_query(&format!("SELECT NULL::{from}::{to}")).await.is_err();
            all.push(Production {
                form: format!("({{}}::{to})"),
                args: vec![from.to_owned()],
                answer: to.to_owned(),
                kind: format!("cast {from} as {to}"),
                units: false,
                refused,
            });
        }
    }
    all
}

/// The binder's operators. An operator that is new to it does not compile here without a sign.
fn arithmetic_signs() -> Vec<&'static str> {
    use Arithmetic::*;
    [Add, Subtract, Multiply, Divide, Modulo, Concat, BitAnd, BitOr, BitXor, ShiftLeft, ShiftRight]
        .into_iter()
        .map(|op| match op {
            Add => "+",
            Subtract => "-",
            Multiply => "*",
            Divide => "/",
            Modulo => "%",
            Concat => "||",
            BitAnd => "&",
            BitOr => "|",
            BitXor => "#",
            ShiftLeft => "<<",
            ShiftRight => ">>",
        })
        .collect()
}

/// The binder's functions, and those that only the engine of wide queries knows.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = sql::expr::names().collect();
    names.extend([
        "initcap",
        "md5",
        "overlay",
        "to_hex",
        "concat_ws",
        "encode",
        "decode",
        "acos",
        "asin",
        "atan",
        "atan2",
        "cos",
        "sin",
        "tan",
        "cot",
        "gcd",
        "lcm",
        "factorial",
        "pi",
        "div",
        "timezone",
        "age",
        "make_date",
        "quote_literal",
        "quote_ident",
    ]);
    names
}

/// What differs, if anything does: a failure that nobody may see, or a kind.
#[derive(PartialEq, Eq)]
enum Verdict {
    Same,
    Hard(String),
    Soft(&'static str),
}

fn judge(ours: &Answer, theirs: &Answer) -> Verdict {
    match (ours, theirs) {
        (Answer::Lost(why), _) => Verdict::Hard(why.clone()),
        (Answer::Failed(state, message), _) if state.starts_with("XX") => {
            Verdict::Hard(format!("{state} {message}"))
        }
        (Answer::Failed(state, _), _) if state.starts_with("57") || state.starts_with("08") => {
            Verdict::Hard(state.clone())
        }
        (ours, theirs) if ours == theirs => Verdict::Same,
        (Answer::Failed(a, _), Answer::Failed(b, _)) if a == b => Verdict::Same,
        (Answer::Failed(_, message), _) if message.contains("38 digits") => {
            Verdict::Soft("beyond 38 digits")
        }
        (Answer::Failed(_, message), _)
            if message.contains("infinity in type numeric")
                || message.contains("infinity are not supported in type numeric") =>
        {
            Verdict::Soft("NaN or infinity as numeric")
        }
        (Answer::Failed(state, _), _) if matches!(state.as_str(), "0A000" | "42883") => {
            Verdict::Soft("not there")
        }
        (Answer::Failed(..), Answer::Failed(..)) => Verdict::Soft("another SQLSTATE"),
        (Answer::Failed(..), _) => Verdict::Soft("refused"),
        (_, Answer::Failed(..)) => Verdict::Soft("accepted"),
        _ => Verdict::Soft("wrong value"),
    }
}

/// Whether a kind is one that the file knows; `*` stands for anything.
fn matches_pattern(pattern: &str, kind: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = kind.strip_prefix(first) else { return false };
    let mut last = None;
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
        last = Some(piece);
    }
    rest.is_empty() || last.is_some_and(|last| last.is_empty() || kind.ends_with(last))
}

fn known() -> Vec<&'static str> {
    let lines = KNOWN.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (pattern, reason) = line.split_once(" -- ").unwrap_or_default();
            assert!(!reason.trim().is_empty(), "a difference without a reason: {line}");
            pattern.trim()
        })
        .collect()
}

#[derive(Default)]
struct Kind {
    n: usize,
    examples: Vec<String>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_answer_as_postgresql_does() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres"), 26_433).unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(postgres.port).user("atoll").dbname("atoll");
    let mut theirs = Side::new(config).await;
    let cluster = Cluster::start(1).await;
    let mut ours = Side::new(cluster.config(1)).await;
    // Lives as long as the node's process does.
    let witness = cluster.connect(1).await;

    let mut missing = make_tables(&theirs.client).await;
    missing.extend(make_tables(&ours.client).await);
    println!("values that are not stored on both sides: {missing:?}");
    let n = number("ATOLL_DIFFERENTIAL").map_or(N_EXPRESSIONS, |n| n as usize);
    let seed = number("ATOLL_SEED").unwrap_or(SEED);
    let mut generator =
        Generator::new(StdRng::seed_from_u64(seed), productions(&theirs.client).await);

    let (mut hard, mut kinds) = (Vec::new(), BTreeMap::<String, Kind>::new());
    for round in 0..n {
        if round % N_IN_A_ZONE == 0 {
            let zone = *ZONES.choose(&mut generator.rng).unwrap();
            ours.set_zone(zone).await;
            theirs.set_zone(zone).await;
        }
        let tree = generator.tree();
        let mode = *Mode::ALL.choose(&mut generator.rng).unwrap();
        // Drawn whether it is used or not, so that a run of more begins with the same.
        let _: u64 = generator.rng.random();
        let compared = compare(&mut ours, &mut theirs, &tree, mode, &missing).await;
        match compared.0 {
            Verdict::Same => {}
            Verdict::Hard(why) => {
                let sql = tree.write(mode, &missing);
                let shown = format!(
                    "{why}\n    {mode:?} in {}: {} {:?}",
                    ours.zone, sql.sql, sql.parameters
                );
                println!("FAILURE {shown}");
                hard.push(shown);
            }
            Verdict::Soft(_) => {
                let (part, (verdict, our, their)) =
                    smallest(&mut ours, &mut theirs, &tree, mode, &missing, compared).await;
                let Verdict::Soft(what) = verdict else { continue };
                let by = if mode == Mode::Joined { "joined " } else { "" };
                let kind = kinds.entry(format!("{what}: {by}{}", part.kind())).or_default();
                kind.n += 1;
                if kind.examples.len() < N_EXAMPLES {
                    let sql = part.write(mode, &missing);
                    kind.examples.push(format!(
                        "{mode:?} {}: {} {:?}\n        ours   {}\n        theirs {}",
                        ours.zone,
                        sql.sql,
                        sql.parameters,
                        our.shown(),
                        their.shown()
                    ));
                }
            }
        }
        assert!(hard.len() < 50, "too many failures to go on:\n{}", hard.join("\n"));
    }
    let restarted = witness.simple_query("SELECT 1").await.is_err();

    let known = known();
    let mut table: Vec<(&String, &Kind)> = kinds.iter().collect();
    table.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.n));
    let mut unknown = Vec::new();
    let total: usize = table.iter().map(|(_, kind)| kind.n).sum();
    println!(
        "{n} expressions: {} failures, {total} differences in {} kinds",
        hard.len(),
        table.len()
    );
    for (name, kind) in table {
        let is_known = known.iter().any(|pattern| matches_pattern(pattern, name));
        println!("{:>6} {} {name}", kind.n, if is_known { " " } else { "!" });
        for example in &kind.examples {
            println!("      {example}");
        }
        if !is_known {
            unknown.push(name.clone());
        }
    }
    assert!(hard.is_empty(), "{} failures:\n{}", hard.len(), hard.join("\n"));
    assert!(!restarted, "the node started again\n{}", cluster.logs());
    assert!(unknown.is_empty(), "differences that nobody knows:\n{}", unknown.join("\n"));
}

type Compared = (Verdict, Answer, Answer);

async fn compare(
    ours: &mut Side,
    theirs: &mut Side,
    tree: &Tree,
    mode: Mode,
    missing: &BTreeSet<String>,
) -> Compared {
    let (our, their) = tokio::join!(ours.ask(tree, mode, missing), theirs.ask(tree, mode, missing));
    (judge(&our, &their), our, their)
}

/// The smallest part of an expression that differs by itself.
async fn smallest<'a>(
    ours: &mut Side,
    theirs: &mut Side,
    tree: &'a Tree,
    mode: Mode,
    missing: &BTreeSet<String>,
    compared: Compared,
) -> (&'a Tree, Compared) {
    let (mut tree, mut compared) = (tree, compared);
    'deeper: loop {
        for part in tree.args().iter().filter(|part| !part.args().is_empty()) {
            // A condition tells little of a part: as a column it shows its value.
            let mode = if mode == Mode::Condition { Mode::Columns } else { mode };
            let of_part = compare(ours, theirs, part, mode, missing).await;
            if matches!(of_part.0, Verdict::Soft(_)) {
                (tree, compared) = (part, of_part);
                continue 'deeper;
            }
        }
        return (tree, compared);
    }
}

#[test]
fn patterns_of_kinds() {
    for (pattern, kind, want) in [
        ("wrong value: abs(real)", "wrong value: abs(real)", true),
        ("wrong value: abs(*)", "wrong value: abs(real)", true),
        ("* joined *", "accepted: joined cast text as date", true),
        ("wrong value: abs(*)", "wrong value: ln(real)", false),
        ("*numeric", "refused: cast text as numeric(5,2)", false),
    ] {
        assert_eq!(matches_pattern(pattern, kind), want, "{pattern} and {kind}");
    }
}
