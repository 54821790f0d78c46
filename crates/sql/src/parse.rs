//! Text to statements.
//!
//! Queries, data changes and most definitions are parsed by `sqlparser` in its PostgreSQL dialect.
//! What it lacks or reads differently (transaction control, SET, COPY, users, ALTER SEQUENCE,
//! SPLIT AT) is read here, in [`utility`], from the same tokens. What neither can read is a syntax
//! error with its position.
//!
//! A string of several statements is cut by a scanner of its own ([`split`]), so that a single
//! statement whose plan is cached is never parsed at all.

mod authority;
mod carried;
mod dialect;
mod operators;
mod types;
mod utility;

pub use authority::{
    AlterDefaults, CommentOn, DatabaseOptions, GrantObjects, GrantRoles, GrantTarget, RoleOptions,
    RoleSpec,
};
pub use carried::storage_parameters;
pub use types::{Serial, serial_of, type_of};

use crate::error::{Error, Result, state};
use crate::types::Type;
use dialect::Remembering;
use sqlparser::ast;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use std::sync::Arc;

/// Nesting that the parser takes on; beyond it a statement is refused, not a stack overflowed.
const DEPTH_MAX: usize = 200;

/// Operators one after another that are taken on: `1 + 1 + …` is a tree as deep as it is long, and
/// trees are walked by recursion.
const CHAIN_MAX: usize = 5_000;

#[derive(Clone, Debug)]
pub enum Statement {
    Empty,
    Query(Box<ast::Query>),
    Insert(Box<ast::Insert>),
    Update(Box<ast::Update>),
    Delete(Box<ast::Delete>),
    Explain {
        analyze: bool,
        statement: Box<Statement>,
    },
    Begin(Modes),
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    RollbackTo(String),
    Release(String),
    SetTransaction(Modes),
    SetCharacteristics(Modes),
    SetSnapshot(String),
    /// `value` none: back to the default.
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    Show(String),
    ResetAll,
    Discard(&'static str),
    Prepare {
        name: String,
        types: Vec<Type>,
        statement: Box<ParsedStatement>,
    },
    Execute {
        name: String,
        args: Vec<ast::Expr>,
    },
    /// None: all.
    Deallocate(Option<String>),
    Copy(Box<Copy>),
    CreateTable(Box<ast::CreateTable>),
    AlterTable(Box<ast::AlterTable>),
    CreateIndex(Box<ast::CreateIndex>),
    Truncate {
        tables: Vec<ast::ObjectName>,
        restart: bool,
    },
    Drop {
        kind: DropKind,
        names: Vec<ast::ObjectName>,
        if_exists: bool,
        cascade: bool,
    },
    CreateSchema {
        /// None: the name of its owner.
        name: Option<String>,
        owner: Option<RoleSpec>,
        if_not_exists: bool,
    },
    RenameSchema {
        name: String,
        to: String,
    },
    SchemaOwner {
        name: String,
        owner: RoleSpec,
    },
    CreateSequence {
        name: ast::ObjectName,
        if_not_exists: bool,
        options: Box<SequenceOptions>,
    },
    AlterSequence {
        name: ast::ObjectName,
        if_exists: bool,
        options: Box<SequenceOptions>,
    },
    RenameIndex {
        name: ast::ObjectName,
        to: String,
    },
    CreateRole {
        name: String,
        options: Box<RoleOptions>,
    },
    AlterRole {
        role: RoleSpec,
        options: Box<RoleOptions>,
    },
    RenameRole {
        name: String,
        to: String,
    },
    DropRole {
        roles: Vec<RoleSpec>,
        if_exists: bool,
    },
    /// `role` none: back to who logged in.
    SetRole {
        role: Option<String>,
        is_session: bool,
        local: bool,
    },
    ReassignOwned {
        roles: Vec<RoleSpec>,
        to: RoleSpec,
    },
    DropOwned {
        roles: Vec<RoleSpec>,
        cascade: bool,
    },
    Grant(Box<GrantObjects>),
    GrantRoles(Box<GrantRoles>),
    AlterDefaults(Box<AlterDefaults>),
    CreateDatabase {
        name: String,
        options: Box<DatabaseOptions>,
    },
    AlterDatabase {
        name: String,
        options: Box<DatabaseOptions>,
    },
    DropDatabase {
        name: String,
        if_exists: bool,
        force: bool,
    },
    Comment {
        on: CommentOn,
        text: Option<String>,
    },
    Split {
        table: ast::ObjectName,
        rows: Vec<Vec<ast::Expr>>,
    },
    /// Accepted without effect; the tag.
    Nothing(&'static str),
}

/// What BEGIN and SET TRANSACTION may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    pub isolation: Option<txn::Isolation>,
    pub read_only: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropKind {
    Table,
    Index,
    Sequence,
    Schema,
    View,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceOptions {
    pub ty: Option<Type>,
    pub increment: Option<i64>,
    /// `Some(None)` is NO MINVALUE.
    pub min: Option<Option<i64>>,
    pub max: Option<Option<i64>>,
    pub start: Option<i64>,
    /// `Some(None)` restarts at the start value.
    pub restart: Option<Option<i64>>,
    pub cache: Option<i64>,
    pub cycle: Option<bool>,
    /// `Some(None)` is OWNED BY NONE; else table and column.
    pub owned_by: Option<Option<(Vec<String>, String)>>,
    pub rename: Option<String>,
    pub owner: Option<RoleSpec>,
}

#[derive(Clone, Debug)]
pub struct Copy {
    pub source: CopySource,
    /// TO STDOUT rather than FROM STDIN.
    pub out: bool,
    pub options: CopyOptions,
}

#[derive(Clone, Debug)]
pub enum CopySource {
    Table { name: ast::ObjectName, columns: Vec<String> },
    Query(Box<ast::Query>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    pub csv: bool,
    pub delimiter: u8,
    pub null: String,
    pub header: bool,
    pub quote: u8,
    pub escape: u8,
}

/// One statement of a query string.
#[derive(Clone, Debug)]
pub struct ParsedStatement {
    pub text: Arc<str>,
    /// Characters before it in the query string, added to the position of an error.
    pub offset: usize,
    /// Filled by the first parse.
    pub(crate) tree: Option<Arc<Statement>>,
}

impl ParsedStatement {
    pub fn new(text: &str) -> ParsedStatement {
        ParsedStatement { text: Arc::from(text), offset: 0, tree: None }
    }

    pub fn tree(&self) -> Result<Arc<Statement>> {
        match &self.tree {
            Some(tree) => Ok(tree.clone()),
            None => parse(&self.text).map(Arc::new).map_err(|error| match error.position {
                Some(position) => error.at(position + self.offset),
                None => error,
            }),
        }
    }
}

/// Cuts a query string at the semicolons that end statements. Empty statements are left out. Where
/// there are several, all are parsed at once, so that none runs if one cannot be read.
pub fn split(sql: &str) -> Result<Vec<ParsedStatement>> {
    let mut statements = Vec::new();
    let mut chars_before = 0;
    for piece in cut(sql) {
        let text = piece.trim_end();
        let trimmed = text.trim_start();
        let skipped = text.len() - trimmed.len();
        if !trimmed.is_empty() && !only_comments(trimmed) {
            statements.push(ParsedStatement {
                text: Arc::from(trimmed),
                offset: chars_before + piece[..skipped].chars().count(),
                tree: None,
            });
        }
        chars_before += piece.chars().count() + 1;
    }
    if statements.len() > 1 {
        for statement in &mut statements {
            statement.tree = Some(statement.tree()?);
        }
    }
    Ok(statements)
}

fn only_comments(text: &str) -> bool {
    (text.starts_with("--") || text.starts_with("/*"))
        && tokens(text).is_ok_and(|tokens| tokens.is_empty())
}

/// The pieces between semicolons that stand outside of strings, quoted names and comments.
fn cut(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let mut pieces = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b';' => {
                pieces.push(&sql[begin..at]);
                begin = at + 1;
                at += 1;
            }
            quote @ (b'\'' | b'"') => {
                let escapes = quote == b'\''
                    && at > 0
                    && matches!(bytes[at - 1], b'e' | b'E')
                    && (at < 2
                        || !(bytes[at - 2].is_ascii_alphanumeric() || bytes[at - 2] == b'_'));
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if escapes && bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                while at < bytes.len() && bytes[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let mut depth = 0;
                while at < bytes.len() {
                    match (bytes[at], bytes.get(at + 1)) {
                        (b'/', Some(b'*')) => {
                            depth += 1;
                            at += 2;
                        }
                        (b'*', Some(b'/')) => {
                            depth -= 1;
                            at += 2;
                            if depth == 0 {
                                break;
                            }
                        }
                        _ => at += 1,
                    }
                }
            }
            b'$' if at == 0
                || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') =>
            {
                let name = bytes[at + 1..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_')
                    .count();
                let is_tag = bytes.get(at + 1 + name) == Some(&b'$')
                    && !bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
                if is_tag {
                    let tag = &sql[at..at + name + 2];
                    let body = at + tag.len();
                    at = sql[body..].find(tag).map_or(bytes.len(), |end| body + end + tag.len());
                } else {
                    at += 1;
                }
            }
            _ => at += 1,
        }
    }
    pieces.push(&sql[begin.min(sql.len())..]);
    pieces
}

const DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// The tokens without blanks and comments.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>> {
    let mut tokens =
        Tokenizer::new(&DIALECT, sql).tokenize_with_location().map_err(|error| {
            Error::new(state::SYNTAX_ERROR, format!("syntax error: {}", error.message))
                .at(position(sql, error.location.line, error.location.column))
        })?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    operators::split(&mut tokens);
    check_chains(&tokens)?;
    if dialect::depth(&tokens) > DEPTH_MAX {
        return Err(too_deep());
    }
    Ok(tokens)
}

/// How many operators follow each other between two commas of one level of parentheses.
#[derive(Clone, Copy, Default)]
struct Chain {
    /// AND, OR, UNION and the like.
    links: usize,
    /// Others since the last of those.
    operators: usize,
}

/// Refuses chains of operators whose trees would be too deep.
fn check_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    let mut outer: Vec<Chain> = Vec::new();
    let mut chain = Chain::default();
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket => outer.push(std::mem::take(&mut chain)),
            Token::RParen | Token::RBracket => chain = outer.pop().unwrap_or_default(),
            Token::Comma | Token::SemiColon => chain = Chain::default(),
            Token::Word(word) => match word.keyword {
                Keyword::AND
                | Keyword::OR
                | Keyword::UNION
                | Keyword::INTERSECT
                | Keyword::EXCEPT
                | Keyword::JOIN => {
                    chain.links += 1;
                    chain.operators = 0;
                }
                Keyword::IS | Keyword::IN | Keyword::LIKE | Keyword::ILIKE | Keyword::COLLATE => {
                    chain.operators += 1;
                }
                _ => {}
            },
            Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Placeholder(_)
            | Token::Period => {}
            _ => chain.operators += 1,
        }
        if chain.links + chain.operators > CHAIN_MAX {
            return Err(Error::new(state::TOO_COMPLEX, "statement is too complex")
                .hint(format!("Up to {CHAIN_MAX} operators in a row are understood.")));
        }
    }
    Ok(())
}

/// Characters from 1.
fn position(sql: &str, line: u64, column: u64) -> usize {
    let before: usize = sql
        .split_inclusive('\n')
        .take(line.saturating_sub(1) as usize)
        .map(|line| line.chars().count())
        .sum();
    before + column.max(1) as usize
}

/// One statement. A semicolon at its end is allowed.
pub fn parse(sql: &str) -> Result<Statement> {
    let mut tokens = tokens(sql)?;
    while tokens.last().is_some_and(|token| token.token == Token::SemiColon) {
        tokens.pop();
    }
    if tokens.is_empty() {
        return Ok(Statement::Empty);
    }
    parse_tokens(sql, tokens)
}

fn parse_tokens(sql: &str, tokens: Vec<TokenWithSpan>) -> Result<Statement> {
    if let Some(statement) = utility::parse(sql, &tokens)? {
        return Ok(statement);
    }
    let dialect = Remembering::of(&tokens);
    let mut parser = parser(&dialect, tokens);
    let tree = parser.parse_statement().map_err(|error| syntax(sql, error))?;
    let rest = parser.peek_token();
    match rest.token {
        Token::EOF => {}
        Token::SemiColon => {
            return Err(Error::new(
                state::SYNTAX_ERROR,
                "cannot insert multiple commands into a prepared statement",
            ));
        }
        _ => return Err(near(sql, &rest)),
    }
    carried::check(&tree)?;
    convert(tree)
}

fn parser(dialect: &Remembering, tokens: Vec<TokenWithSpan>) -> Parser<'_> {
    Parser::new(dialect).with_recursion_limit(DEPTH_MAX).with_tokens_with_locations(tokens)
}

/// An expression by itself, such as a stored default.
pub fn expression(sql: &str) -> Result<ast::Expr> {
    let tokens = tokens(sql)?;
    let dialect = Remembering::of(&tokens);
    let mut parser = parser(&dialect, tokens);
    parser.parse_expr().map_err(|error| syntax(sql, error))
}

/// A query by itself.
pub fn query(sql: &str) -> Result<Box<ast::Query>> {
    match parse(sql)? {
        Statement::Query(query) => Ok(query),
        _ => Err(Error::new(state::SYNTAX_ERROR, "a query is expected here")),
    }
}

fn near(sql: &str, token: &TokenWithSpan) -> Error {
    match &token.token {
        Token::EOF => Error::new(state::SYNTAX_ERROR, "syntax error at end of input")
            .at(sql.chars().count() + 1),
        other => Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{other}\""))
            .at(position(sql, token.span.start.line, token.span.start.column)),
    }
}

fn too_deep() -> Error {
    Error::new(state::TOO_COMPLEX, "the statement is nested too deeply")
        .hint(format!("Up to {DEPTH_MAX} levels are understood."))
}

/// sqlparser's `Expected: X, found: Y at Line: 1, Column: 7` in PostgreSQL's words.
fn syntax(sql: &str, error: ParserError) -> Error {
    let text = match error {
        ParserError::RecursionLimitExceeded => {
            return too_deep();
        }
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
    };
    let (message, place) = match text.rsplit_once(" at Line: ") {
        Some((message, place)) => (message, Some(place)),
        None => (text.as_str(), None),
    };
    let place = place.and_then(|place| {
        let (line, column) = place.split_once(", Column: ")?;
        Some(position(sql, line.trim().parse().ok()?, column.trim().parse().ok()?))
    });
    let error = match message.split_once(", found: ") {
        Some((_, "EOF")) => Error::new(state::SYNTAX_ERROR, "syntax error at end of input"),
        Some((expected, found)) => {
            let expected =
                expected.trim_start_matches("Expected: ").trim_start_matches("Expected ");
            Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{found}\""))
                .detail(format!("Expected {expected}."))
        }
        None => Error::new(state::SYNTAX_ERROR, format!("syntax error: {message}")),
    };
    match place {
        Some(place) => error.at(place),
        None if error.message.ends_with("end of input") => error.at(sql.chars().count() + 1),
        None => error,
    }
}

fn convert(tree: ast::Statement) -> Result<Statement> {
    Ok(match tree {
        ast::Statement::Query(query) => Statement::Query(query),
        ast::Statement::Insert(insert) => Statement::Insert(Box::new(insert)),
        ast::Statement::Update(update) => Statement::Update(Box::new(update)),
        ast::Statement::Delete(delete) => Statement::Delete(Box::new(delete)),
        ast::Statement::CreateTable(create) => Statement::CreateTable(Box::new(create)),
        ast::Statement::AlterTable(alter) => Statement::AlterTable(Box::new(alter)),
        ast::Statement::CreateIndex(create) => Statement::CreateIndex(Box::new(create)),
        ast::Statement::AlterIndex {
            name,
            operation: ast::AlterIndexOperation::RenameIndex { index_name },
        } => Statement::RenameIndex { name, to: last_part(&index_name)? },
        ast::Statement::Truncate(truncate) => Statement::Truncate {
            tables: truncate.table_names.into_iter().map(|target| target.name).collect(),
            restart: matches!(truncate.identity, Some(ast::TruncateIdentityOption::Restart)),
        },
        ast::Statement::Drop { object_type, if_exists, names, cascade, .. } => {
            let kind = match object_type {
                ast::ObjectType::Table => DropKind::Table,
                ast::ObjectType::Index => DropKind::Index,
                ast::ObjectType::Sequence => DropKind::Sequence,
                ast::ObjectType::Schema => DropKind::Schema,
                ast::ObjectType::View => DropKind::View,
                other => return Err(Error::unsupported(format!("DROP {other}"))),
            };
            Statement::Drop { kind, names, if_exists, cascade }
        }
        ast::Statement::CreateSchema { schema_name, if_not_exists, .. } => {
            let role = |name: &ast::Ident| match (ident(name).as_str(), name.quote_style) {
                ("current_user" | "current_role" | "user", None) => RoleSpec::CurrentUser,
                ("session_user", None) => RoleSpec::SessionUser,
                (name, _) => RoleSpec::Named(name.to_owned()),
            };
            let (name, owner) = match &schema_name {
                ast::SchemaName::Simple(name) => (Some(last_part(name)?), None),
                ast::SchemaName::NamedAuthorization(name, owner) => {
                    (Some(last_part(name)?), Some(role(owner)))
                }
                ast::SchemaName::UnnamedAuthorization(owner) => (None, Some(role(owner))),
            };
            Statement::CreateSchema { name, owner, if_not_exists }
        }
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            return Err(Error::unsupported(words.join(" ").to_uppercase()));
        }
    })
}

/// An identifier's name: folded to lower case unless quoted.
pub fn ident(ident: &ast::Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The parts of a dotted name, folded.
pub fn parts(name: &ast::ObjectName) -> Result<Vec<String>> {
    name.0
        .iter()
        .map(|part| match part {
            ast::ObjectNamePart::Identifier(part) => Ok(ident(part)),
            other => Err(Error::unsupported(format!("the name {other}"))),
        })
        .collect()
}

/// Schema, if it says one, and name.
pub fn qualified(name: &ast::ObjectName) -> Result<(Option<String>, String)> {
    let mut parts = parts(name)?;
    let last = parts.pop().unwrap_or_default();
    if parts.len() > 2 {
        return Err(Error::new(
            state::SYNTAX_ERROR,
            format!("improper qualified name (too many dotted names): {name}"),
        ));
    }
    Ok((parts.pop(), last))
}

pub fn last_part(name: &ast::ObjectName) -> Result<String> {
    qualified(name).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_cut_where_statements_end() {
        let cut = |sql: &str| -> Vec<String> {
            split(sql).unwrap().iter().map(|s| s.text.to_string()).collect()
        };
        assert_eq!(cut("select 1; select ';' ;;"), ["select 1", "select ';'"]);
        assert_eq!(cut("select $$a;b$$, \"x;y\" -- c;d\n; /* e; /* f */ */ select 2").len(), 2);
        assert_eq!(cut("select E'\\';', $1; select 3").len(), 2);
        assert!(cut(" -- nothing\n").is_empty());
        assert!(split("select 1; selec 2").is_err());
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = parse("SELECT 1 AS a b").unwrap_err();
        assert_eq!(error.state(), "42601");
        assert_eq!(error.position, Some(15), "{error:?}");
        let error = split("select 1; bogus 2").unwrap_err();
        assert_eq!(error.position, Some(11), "{error:?}");
        let deep = format!("select {}1{}", "(".repeat(500), ")".repeat(500));
        assert_eq!(parse(&deep).unwrap_err().state(), "54001");
        let long = format!("select 1{}", " + 1".repeat(6_000));
        assert_eq!(parse(&long).unwrap_err().state(), "54001");
        let wide = format!("select 1{}", ", 1 + 1".repeat(6_000));
        assert!(parse(&wide).is_ok());
    }

    #[test]
    fn utilities_are_read() {
        for (sql, want) in [
            (
                "begin isolation level serializable, read only",
                "Begin(Modes { isolation: Some(Serializable), read_only: Some(true) })",
            ),
            ("START TRANSACTION", "Begin(Modes { isolation: None, read_only: None })"),
            ("end", "Commit { chain: false }"),
            ("rollback to savepoint a", "RollbackTo(\"a\")"),
            (
                "set local timezone to 'Europe/Berlin'",
                "Set { name: \"timezone\", value: Some(\"Europe/Berlin\"), local: true }",
            ),
            (
                "set search_path = a, b",
                "Set { name: \"search_path\", value: Some(\"a, b\"), local: false }",
            ),
            ("show transaction isolation level", "Show(\"transaction_isolation\")"),
            ("set transaction snapshot '12'", "SetSnapshot(\"12\")"),
            ("vacuum analyze t", "Nothing(\"VACUUM\")"),
            ("drop role if exists x", "DropRole { roles: [Named(\"x\")], if_exists: true }"),
            ("set role none", "SetRole { role: None, is_session: false, local: false }"),
            (
                "set local session authorization 'ada'",
                "SetRole { role: Some(\"ada\"), is_session: true, local: true }",
            ),
        ] {
            assert_eq!(format!("{:?}", parse(sql).unwrap()), want, "{sql}");
        }
        let Statement::Copy(copy) =
            parse("copy t (a, b) from stdin with (format csv, header, null 'x')").unwrap()
        else {
            panic!("COPY is a COPY")
        };
        assert!(copy.options.csv && copy.options.header && copy.options.null == "x");
        assert!(matches!(parse("copy t from stdin with (freeze on)").unwrap(), Statement::Copy(_)));
        assert!(matches!(
            parse("alter table t split at values (1), (2)").unwrap(),
            Statement::Split { rows, .. } if rows.len() == 2
        ));
    }
}
