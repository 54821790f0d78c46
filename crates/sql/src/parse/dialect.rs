//! PostgreSQL's dialect, with a memory.
//!
//! The parser goes back where a reading fails and tries the next one, and what is nested is read anew by each
//! try. A call of a function reads its arguments twice (are they named? no, then they are not); twenty
//! calls within each other are therefore read 2^20 times, and where there is an error in the middle, 3^20.
//!
//! The memory makes an end of that: what stands at a token is read once, and taken from here by every later try.
//!
//! ```text
//! f ( g ( h ( 1 ) ) )      tries of f read g twice; each reads h twice; …  8 readings of `1`
//! f ( g ( h ( 1 ) ) )      with the memory: one reading each
//! ```
//!
//! It costs a copy of what it keeps, so it is used only where something is nested more than
//! [`DEPTH_WITHOUT_MEMORY`] deep.
//!
//! What stands at a token does not depend on who asks for it, with one exception that PostgreSQL does not have
//! (CONNECT BY). Errors are kept like answers.

use sqlparser::ast::{ColumnOption, Expr};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};
use std::any::TypeId;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Statements whose nesting is no deeper are read again where that is needed: 27 times at most.
const DEPTH_WITHOUT_MEMORY: usize = 3;

type Reading = Result<Expr, ParserError>;

/// One statement's dialect.
#[derive(Debug)]
pub struct Remembering {
    base: PostgreSqlDialect,
    /// By the token that it begins with: what was read, and the token behind it. None: no memory.
    known: Option<RefCell<HashMap<usize, (Reading, usize)>>>,
    /// The token that is about to be read by the parser itself.
    asked: Cell<Option<usize>>,
}

impl Remembering {
    pub fn of(tokens: &[TokenWithSpan]) -> Remembering {
        let known = (depth(tokens) > DEPTH_WITHOUT_MEMORY).then(RefCell::default);
        Remembering { base: PostgreSqlDialect {}, known, asked: Cell::new(None) }
    }
}

/// How deep parentheses, brackets and CASE are nested.
pub fn depth(tokens: &[TokenWithSpan]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket => depth += 1,
            Token::RParen | Token::RBracket => depth = depth.saturating_sub(1),
            Token::Word(word) if word.keyword == Keyword::CASE => depth += 1,
            Token::Word(word) if word.keyword == Keyword::END => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

macro_rules! as_postgres {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $answer:ty;)*) => {$(
        fn $name(&self, $($arg: $ty),*) -> $answer {
            self.base.$name($($arg),*)
        }
    )*};
}

impl Dialect for Remembering {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    /// The parser takes these words and goes on as if they were not there, where the dialect does not know them.
    fn parse_column_option(
        &self,
        parser: &mut Parser,
    ) -> Result<Option<Result<Option<ColumnOption>, ParserError>>, ParserError> {
        let next = parser.peek_token();
        let is_lost = |keyword| {
            matches!(
                keyword,
                Keyword::AUTO_INCREMENT
                    | Keyword::AUTOINCREMENT
                    | Keyword::ASC
                    | Keyword::DESC
                    | Keyword::AS
                    | Keyword::SRID
                    | Keyword::IDENTITY
            )
        };
        match &next.token {
            Token::Word(word) if word.quote_style.is_none() && is_lost(word.keyword) => {
                parser.expected("an option of a column", next)
            }
            _ => Ok(None),
        }
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Reading> {
        let known = self.known.as_ref()?;
        let begin = parser.index();
        if self.asked.take() == Some(begin) {
            return None;
        }
        if let Some((reading, end)) = known.borrow().get(&begin) {
            while parser.index() < *end {
                parser.advance_token();
            }
            return Some(reading.clone());
        }
        self.asked.set(Some(begin));
        let reading = parser.parse_prefix();
        known.borrow_mut().insert(begin, (reading.clone(), parser.index()));
        Some(reading)
    }

    // All that PostgreSQL's dialect answers otherwise than the default.
    as_postgres! {
        identifier_quote_style(identifier: &str) -> Option<char>;
        is_delimited_identifier_start(ch: char) -> bool;
        is_identifier_start(ch: char) -> bool;
        is_identifier_part(ch: char) -> bool;
        supports_unicode_string_literal() -> bool;
        is_reserved_for_identifier(kw: Keyword) -> bool;
        is_custom_operator_part(ch: char) -> bool;
        get_next_precedence(parser: &Parser) -> Option<Result<u8, ParserError>>;
        supports_filter_during_aggregation() -> bool;
        supports_group_by_expr() -> bool;
        prec_value(prec: Precedence) -> u8;
        allow_extract_custom() -> bool;
        allow_extract_single_quotes() -> bool;
        supports_create_index_with_clause() -> bool;
        supports_explain_with_utility_options() -> bool;
        supports_listen_notify() -> bool;
        supports_factorial_operator() -> bool;
        supports_bitwise_shift_operators() -> bool;
        supports_comment_on() -> bool;
        supports_load_extension() -> bool;
        supports_named_fn_args_with_colon_operator() -> bool;
        supports_named_fn_args_with_expr_name() -> bool;
        supports_empty_projections() -> bool;
        supports_nested_comments() -> bool;
        supports_string_escape_constant() -> bool;
        supports_numeric_literal_underscores() -> bool;
        supports_array_typedef_with_brackets() -> bool;
        supports_geometric_types() -> bool;
        supports_set_names() -> bool;
        supports_alter_column_type_using() -> bool;
        supports_notnull_operator() -> bool;
        supports_interval_options() -> bool;
        supports_insert_table_alias() -> bool;
        supports_create_table_like_parenthesized() -> bool;
        supports_select_wildcard_with_alias() -> bool;
        supports_comma_separated_trim() -> bool;
        supports_xml_expressions() -> bool;
        supports_comment_optimizer_hint() -> bool;
    }
}

#[cfg(test)]
mod tests {
    use crate::error::state;
    use crate::parse::parse;

    /// Counts nothing: without the memory the deep ones would not come to an end.
    #[test]
    fn what_is_nested_is_read_once() {
        let forms = [
            ("abs(", "1", ")"),
            ("array[", "1", "]"),
            ("cast(", "1", " as int)"),
            ("case when true then ", "1", " end"),
            ("row(", "1", ")"),
            ("substring(", "'abc'", " from 1)"),
            ("floor(", "1", ")"),
            ("sum(", "1", ") over ()"),
            ("(values (", "1", "))"),
            ("coalesce(1, ", "1", ")"),
        ];
        for (open, inner, close) in forms {
            let of = |inner: &str, n: usize| {
                format!("SELECT {}{inner}{}", open.repeat(n), close.repeat(n))
            };
            assert!(parse(&of(inner, 40)).is_ok(), "{open}");
            let error = parse(&of("1 1", 40)).unwrap_err();
            assert_eq!(error.state(), state::SYNTAX_ERROR, "{open}: {error:?}");
            let error = parse(&of(inner, 20_000)).unwrap_err();
            assert_eq!(error.state(), state::TOO_COMPLEX, "{open}: {error:?}");
        }
    }

    #[test]
    fn the_memory_changes_no_reading() {
        for sql in [
            "SELECT f(a, g(b, h(c, x => 1)), 'd'::text), ARRAY[[1, 2], [3, (4)]] FROM t WHERE (a, b) IN ((1, (2)))",
            "SELECT CASE WHEN (((a))) > 1 THEN (SELECT max((b)) FROM (SELECT * FROM t) q) ELSE -((1)) END",
            "SELECT sum((((a)))) FILTER (WHERE ((b)) > 0) OVER (PARTITION BY ((c)) ORDER BY (d) DESC)",
            "SELECT extract(day FROM ((now()))) + (interval '1 day' * ((2))) BETWEEN (((1))) AND 2",
        ] {
            let known = format!("{:?}", parse(sql).unwrap());
            let mut plain =
                sqlparser::parser::Parser::new(&crate::parse::DIALECT).try_with_sql(sql).unwrap();
            let plain = super::super::convert(plain.parse_statement().unwrap()).unwrap();
            assert_eq!(known, format!("{plain:?}"));
        }
    }
}
