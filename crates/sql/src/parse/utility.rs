//! The statements that are read token by token: everything but queries, data changes and
//! definitions of tables.

use super::dialect::Remembering;
use super::{
    Copy, CopyOptions, CopySource, Modes, ParsedStatement, RoleSpec, SequenceOptions, Statement,
    near, parse_tokens, parser, syntax, type_of,
};
use crate::error::{Error, Result, state};
use sqlparser::ast;
use sqlparser::tokenizer::{Token, TokenWithSpan};
use std::sync::Arc;
use txn::Isolation;

pub(super) struct Cursor<'a> {
    sql: &'a str,
    pub(super) tokens: &'a [TokenWithSpan],
    pub(super) at: usize,
}

/// None: not a statement of this kind.
pub fn parse(sql: &str, tokens: &[TokenWithSpan]) -> Result<Option<Statement>> {
    let mut cursor = Cursor { sql, tokens, at: 0 };
    let statement = cursor.statement()?;
    if statement.is_some() && cursor.at < tokens.len() {
        return Err(near(sql, &tokens[cursor.at]));
    }
    Ok(statement)
}

impl Cursor<'_> {
    fn statement(&mut self) -> Result<Option<Statement>> {
        let Some(first) = self.word() else { return Ok(None) };
        let second = self.tokens.get(self.at + 1).and_then(word_of).unwrap_or_default();
        let statement = match (first.as_str(), second.as_str()) {
            ("begin", _) => {
                self.at += 1;
                self.skip(&["work", "transaction"]);
                Statement::Begin(self.modes()?)
            }
            ("start", "transaction") => {
                self.at += 2;
                Statement::Begin(self.modes()?)
            }
            ("commit" | "end", second) if second != "prepared" => {
                self.at += 1;
                self.skip(&["work", "transaction"]);
                Statement::Commit { chain: self.chain()? }
            }
            ("rollback" | "abort", second) if second != "prepared" => {
                self.at += 1;
                self.skip(&["work", "transaction"]);
                if self.take("to") {
                    self.skip(&["savepoint"]);
                    Statement::RollbackTo(self.name()?)
                } else {
                    Statement::Rollback { chain: self.chain()? }
                }
            }
            ("savepoint", _) => {
                self.at += 1;
                Statement::Savepoint(self.name()?)
            }
            ("release", _) => {
                self.at += 1;
                self.skip(&["savepoint"]);
                Statement::Release(self.name()?)
            }
            ("set", _) => self.set()?,
            ("show", _) => {
                self.at += 1;
                let name = self.setting_name()?;
                Statement::Show(name)
            }
            ("reset", _) => {
                self.at += 1;
                if self.take("all") {
                    Statement::ResetAll
                } else {
                    let name = self.setting_name()?;
                    match name.as_str() {
                        "role" | "session_authorization" => {
                            let is_session = name != "role";
                            Statement::SetRole { role: None, is_session, local: false }
                        }
                        _ => Statement::Set { name, value: None, local: false },
                    }
                }
            }
            ("discard", _) => {
                self.at += 1;
                let what = self.name()?;
                Statement::Discard(match what.as_str() {
                    "all" => "DISCARD ALL",
                    "plans" => "DISCARD PLANS",
                    "sequences" => "DISCARD SEQUENCES",
                    "temp" | "temporary" => "DISCARD TEMP",
                    _ => return Err(near(self.sql, &self.tokens[self.at - 1])),
                })
            }
            ("prepare", second) if second != "transaction" => self.prepare()?,
            ("execute", _) => {
                self.at += 1;
                let name = self.name()?;
                let args = if self.symbol(&Token::LParen) {
                    self.at -= 1;
                    self.row()?
                } else {
                    Vec::new()
                };
                Statement::Execute { name, args }
            }
            ("deallocate", _) => {
                self.at += 1;
                self.skip(&["prepare"]);
                if self.take("all") {
                    Statement::Deallocate(None)
                } else {
                    Statement::Deallocate(Some(self.name()?))
                }
            }
            ("explain", _) => self.explain()?,
            ("copy", _) => self.copy()?,
            ("create", "user" | "role" | "group") => {
                self.at += 2;
                let name = self.role_name()?;
                let mut options = self.role_options(true)?;
                if options.login.is_none() {
                    options.login = Some(second == "user");
                }
                Statement::CreateRole { name, options: Box::new(options) }
            }
            ("alter", "user" | "role") => {
                self.at += 2;
                if self.word().as_deref() == Some("all") {
                    return Err(Error::unsupported("ALTER ROLE ALL"));
                }
                let role = self.role_spec()?;
                if self.take_all(&["rename", "to"]) {
                    let RoleSpec::Named(name) = role else { return Err(self.unexpected()) };
                    Statement::RenameRole { name, to: self.role_name()? }
                } else if matches!(self.word().as_deref(), Some("set" | "reset" | "in")) {
                    return Err(Error::unsupported("ALTER ROLE ... SET")
                        .hint("Let the client set it at its start, for instance by PGOPTIONS."));
                } else {
                    let options = Box::new(self.role_options(false)?);
                    Statement::AlterRole { role, options }
                }
            }
            ("alter", "group") => {
                return Err(Error::unsupported("ALTER GROUP").hint("Use GRANT role TO member."));
            }
            ("drop", "user" | "role" | "group") => {
                self.at += 2;
                let if_exists = self.take_all(&["if", "exists"]);
                Statement::DropRole { roles: self.role_specs()?, if_exists }
            }
            ("drop", "owned") => {
                self.at += 2;
                self.expect("by")?;
                let roles = self.role_specs()?;
                Statement::DropOwned { roles, cascade: self.cascade() }
            }
            ("reassign", "owned") => {
                self.at += 2;
                self.expect("by")?;
                let roles = self.role_specs()?;
                self.expect("to")?;
                Statement::ReassignOwned { roles, to: self.role_spec()? }
            }
            ("grant", _) => {
                self.at += 1;
                self.grant(true)?
            }
            ("revoke", _) => {
                self.at += 1;
                self.grant(false)?
            }
            ("alter", "default") => {
                self.at += 2;
                self.expect("privileges")?;
                self.alter_defaults()?
            }
            ("create", "database") => {
                self.at += 2;
                let name = self.name()?;
                let options = self.database_options()?;
                Statement::CreateDatabase { name, options: Box::new(options) }
            }
            ("alter", "database") => {
                self.at += 2;
                let name = self.name()?;
                if matches!(self.word().as_deref(), Some("set" | "reset" | "refresh")) {
                    return Err(Error::unsupported("ALTER DATABASE ... SET"));
                }
                let options = self.database_options()?;
                Statement::AlterDatabase { name, options: Box::new(options) }
            }
            ("drop", "database") => {
                self.at += 2;
                let if_exists = self.take_all(&["if", "exists"]);
                let name = self.name()?;
                self.skip(&["with"]);
                let force = self.symbol(&Token::LParen);
                if force {
                    self.expect("force")?;
                    if !self.symbol(&Token::RParen) {
                        return Err(self.unexpected());
                    }
                }
                Statement::DropDatabase { name, if_exists, force }
            }
            ("alter", "schema") => {
                self.at += 2;
                let name = self.name()?;
                if self.take_all(&["rename", "to"]) {
                    Statement::RenameSchema { name, to: self.name()? }
                } else {
                    self.expect("owner")?;
                    self.expect("to")?;
                    Statement::SchemaOwner { name, owner: self.role_spec()? }
                }
            }
            ("comment", _) => {
                self.at += 1;
                self.comment()?
            }
            ("create", "sequence") => {
                self.at += 2;
                let if_not_exists = self.take_all(&["if", "not", "exists"]);
                let name = self.object_name()?;
                let options = Box::new(self.sequence_options()?);
                Statement::CreateSequence { name, if_not_exists, options }
            }
            ("alter", "sequence") => {
                self.at += 2;
                let if_exists = self.take_all(&["if", "exists"]);
                let name = self.object_name()?;
                let options = Box::new(self.sequence_options()?);
                Statement::AlterSequence { name, if_exists, options }
            }
            ("alter", "table") if self.has_split() => self.split()?,
            ("vacuum", _) => self.nothing("VACUUM"),
            ("analyze" | "analyse", _) => self.nothing("ANALYZE"),
            ("checkpoint", _) => self.nothing("CHECKPOINT"),
            ("reindex", _) => self.nothing("REINDEX"),
            ("cluster", _) => self.nothing("CLUSTER"),
            // There are no cursors and no listeners: to end all of them is done.
            ("close", "all") => self.nothing("CLOSE CURSOR ALL"),
            ("unlisten", _) => self.nothing("UNLISTEN"),
            ("listen" | "notify", _) => {
                return Err(Error::unsupported(first.to_uppercase()));
            }
            _ => return Ok(None),
        };
        Ok(Some(statement))
    }

    // ---- tokens

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|token| &token.token)
    }

    /// Whether the word stands outside of parentheses from here on.
    pub(super) fn find_word(&self, wanted: &str) -> bool {
        let rest = self.tokens.get(self.at..).unwrap_or_default();
        rest.iter().any(|token| word_of(token).is_some_and(|word| word == wanted))
    }

    /// A name for a role that is to be.
    fn role_name(&mut self) -> Result<String> {
        let token = self.tokens.get(self.at);
        let is_quoted = token.is_some_and(|token| word_of(token).is_none());
        let name = self.name()?;
        if !is_quoted
            && matches!(name.as_str(), "current_user" | "current_role" | "session_user" | "user")
        {
            return Err(Error::new(
                state::RESERVED_NAME,
                format!("{} cannot be used as a role name here", name.to_uppercase()),
            ));
        }
        Ok(name)
    }

    /// The word at the cursor, folded; none for a quoted name or anything else.
    pub(super) fn word(&self) -> Option<String> {
        self.tokens.get(self.at).and_then(word_of)
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = self.word().is_some_and(|found| found == word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn take_all(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(idx, word)| {
            self.tokens.get(self.at + idx).and_then(word_of).is_some_and(|found| found == *word)
        });
        self.at += if found { words.len() } else { 0 };
        found
    }

    pub(super) fn skip(&mut self, words: &[&str]) {
        words.iter().any(|word| self.take(word));
    }

    pub(super) fn symbol(&mut self, symbol: &Token) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| token.token == *symbol);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<()> {
        if self.take(word) { Ok(()) } else { Err(self.unexpected()) }
    }

    pub(super) fn unexpected(&self) -> Error {
        match self.tokens.get(self.at) {
            Some(token) => near(self.sql, token),
            None => Error::new(state::SYNTAX_ERROR, "syntax error at end of input").at(self
                .sql
                .chars()
                .count()
                + 1),
        }
    }

    pub(super) fn name(&mut self) -> Result<String> {
        let name = match self.tokens.get(self.at).map(|token| &token.token) {
            Some(Token::Word(word)) if word.quote_style.is_some() => word.value.clone(),
            Some(Token::Word(word)) => word.value.to_lowercase(),
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        Ok(name)
    }

    /// A dotted name.
    pub(super) fn object_name(&mut self) -> Result<ast::ObjectName> {
        let mut idents = Vec::new();
        loop {
            let quoted = matches!(
                self.tokens.get(self.at).map(|token| &token.token),
                Some(Token::Word(word)) if word.quote_style.is_some()
            );
            let name = self.name()?;
            idents.push(if quoted {
                ast::Ident::with_quote('"', name)
            } else {
                ast::Ident::new(name)
            });
            if !self.symbol(&Token::Period) {
                return Ok(ast::ObjectName::from(idents));
            }
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        let text = match self.tokens.get(self.at).map(|token| &token.token) {
            Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) => {
                text.clone()
            }
            Some(Token::DollarQuotedString(text)) => text.value.clone(),
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        Ok(text)
    }

    pub(super) fn integer(&mut self) -> Result<i64> {
        let negative = self.symbol(&Token::Minus);
        if !negative {
            self.symbol(&Token::Plus);
        }
        let value = match self.tokens.get(self.at).map(|token| &token.token) {
            Some(Token::Number(digits, _)) => {
                let digits = if negative { format!("-{digits}") } else { digits.clone() };
                digits.parse().map_err(|_| self.unexpected())?
            }
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        Ok(value)
    }

    /// `( expression, … )`.
    fn row(&mut self) -> Result<Vec<ast::Expr>> {
        let inner = self.parenthesised()?;
        if inner.is_empty() {
            return Ok(Vec::new());
        }
        let dialect = Remembering::of(&inner);
        let mut parser = parser(&dialect, inner);
        let list = parser
            .parse_comma_separated(|parser| parser.parse_expr())
            .map_err(|error| syntax(self.sql, error))?;
        match parser.peek_token() {
            token if token.token == Token::EOF => Ok(list),
            token => Err(near(self.sql, &token)),
        }
    }

    /// The tokens between parentheses; the cursor ends behind the closing one.
    fn parenthesised(&mut self) -> Result<Vec<TokenWithSpan>> {
        if !self.symbol(&Token::LParen) {
            return Err(self.unexpected());
        }
        let begin = self.at;
        let mut depth = 1;
        while let Some(token) = self.tokens.get(self.at) {
            match token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(self.tokens[begin..self.at - 1].to_vec());
            }
        }
        Err(self.unexpected())
    }

    fn rest_as_statement(&mut self) -> Result<Statement> {
        let rest = self.tokens[self.at..].to_vec();
        self.at = self.tokens.len();
        if rest.is_empty() {
            return Err(self.unexpected());
        }
        parse_tokens(self.sql, rest)
    }

    fn nothing(&mut self, tag: &'static str) -> Statement {
        self.at = self.tokens.len();
        Statement::Nothing(tag)
    }

    // ---- transactions and settings

    fn chain(&mut self) -> Result<bool> {
        if self.take_all(&["and", "no", "chain"]) {
            return Ok(false);
        }
        Ok(self.take_all(&["and", "chain"]))
    }

    fn modes(&mut self) -> Result<Modes> {
        let mut modes = Modes::default();
        loop {
            self.symbol(&Token::Comma);
            if self.take_all(&["isolation", "level"]) {
                modes.isolation = Some(if self.take("serializable") {
                    Isolation::Serializable
                } else if self.take_all(&["repeatable", "read"]) {
                    Isolation::RepeatableRead
                } else if self.take_all(&["read", "committed"])
                    || self.take_all(&["read", "uncommitted"])
                {
                    Isolation::ReadCommitted
                } else {
                    return Err(self.unexpected());
                });
            } else if self.take_all(&["read", "only"]) {
                modes.read_only = Some(true);
            } else if self.take_all(&["read", "write"]) {
                modes.read_only = Some(false);
            } else if !(self.take_all(&["not", "deferrable"]) || self.take("deferrable")) {
                return Ok(modes);
            }
        }
    }

    /// A setting's name; the wordy ones of the standard by their plain names.
    fn setting_name(&mut self) -> Result<String> {
        if self.take_all(&["time", "zone"]) {
            return Ok("timezone".to_owned());
        }
        if self.take_all(&["transaction", "isolation", "level"]) {
            return Ok("transaction_isolation".to_owned());
        }
        if self.take_all(&["session", "authorization"]) {
            return Ok("session_authorization".to_owned());
        }
        let mut name = self.name()?;
        while self.symbol(&Token::Period) {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    fn set(&mut self) -> Result<Statement> {
        self.expect("set")?;
        if self.take_all(&["session", "characteristics", "as", "transaction"]) {
            return Ok(Statement::SetCharacteristics(self.modes()?));
        }
        if self.take_all(&["transaction", "snapshot"]) {
            return Ok(Statement::SetSnapshot(self.string()?));
        }
        if self.take("transaction") {
            return Ok(Statement::SetTransaction(self.modes()?));
        }
        let local = self.take("local");
        if !local
            && self.tokens.get(self.at + 1).and_then(word_of).as_deref() != Some("authorization")
        {
            self.skip(&["session"]);
        }
        let is_session = self.take_all(&["session", "authorization"]);
        if is_session || self.take("role") {
            self.symbol(&Token::Eq);
            self.skip(&["to"]);
            let token = self.tokens.get(self.at);
            let is_word = token.is_some_and(|token| word_of(token).is_some());
            let name = match self.string() {
                Ok(text) => text,
                Err(_) => self.name()?,
            };
            let is_none = is_word && matches!(name.as_str(), "none" | "default");
            let role = (!is_none).then_some(name);
            return Ok(Statement::SetRole { role, is_session, local });
        }
        if self.take("names") {
            let value = match self.string() {
                Ok(text) => Some(text),
                Err(_) => Some(self.name()?),
            };
            return Ok(Statement::Set { name: "client_encoding".into(), value, local });
        }
        let name = self.setting_name()?;
        // `SET TIME ZONE x` has no sign in between.
        let signed = self.symbol(&Token::Eq) || self.take("to");
        if !signed && name != "timezone" {
            return Err(self.unexpected());
        }
        if self.take("default") || name == "timezone" && self.take("local") {
            return Ok(Statement::Set { name, value: None, local });
        }
        if name == "timezone" && self.take("interval") {
            let value = Some(self.string()?);
            if !self.take_all(&["hour", "to", "minute"]) {
                self.skip(&["hour"]);
            }
            return Ok(Statement::Set { name, value, local });
        }
        let mut values = Vec::new();
        loop {
            values.push(self.setting_value()?);
            if !self.symbol(&Token::Comma) {
                break;
            }
        }
        Ok(Statement::Set { name, value: Some(values.join(", ")), local })
    }

    fn setting_value(&mut self) -> Result<String> {
        let negative = self.symbol(&Token::Minus);
        let token = self.tokens.get(self.at).map(|token| &token.token);
        let value = match token {
            Some(Token::Word(word)) if word.quote_style.is_some() => word.value.clone(),
            Some(Token::Word(word)) => word.value.to_lowercase(),
            Some(Token::Number(digits, _)) => digits.clone(),
            Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) => {
                text.clone()
            }
            _ => return Err(self.unexpected()),
        };
        self.at += 1;
        Ok(if negative { format!("-{value}") } else { value })
    }

    // ---- prepared statements, EXPLAIN

    fn prepare(&mut self) -> Result<Statement> {
        self.expect("prepare")?;
        let name = self.name()?;
        let mut types = Vec::new();
        if self.symbol(&Token::LParen) {
            self.at -= 1;
            let tokens = self.parenthesised()?;
            let dialect = Remembering::of(&tokens);
            let mut parser = parser(&dialect, tokens);
            let list = parser
                .parse_comma_separated(|parser| parser.parse_data_type())
                .map_err(|error| syntax(self.sql, error))?;
            types = list.iter().map(type_of).collect::<Result<_>>()?;
        }
        self.expect("as")?;
        let begin = self.tokens.get(self.at).ok_or_else(|| self.unexpected())?.span.start;
        let from = super::position(self.sql, begin.line, begin.column) - 1;
        let text: String = self.sql.chars().skip(from).collect();
        let tree = Arc::new(self.rest_as_statement()?);
        let text = text.trim_end().trim_end_matches(';');
        let statement = ParsedStatement { text: Arc::from(text), offset: from, tree: Some(tree) };
        Ok(Statement::Prepare { name, types, statement: Box::new(statement) })
    }

    fn explain(&mut self) -> Result<Statement> {
        self.expect("explain")?;
        let mut analyze = false;
        if self.symbol(&Token::LParen) {
            loop {
                let option = self.name()?;
                let on = !(self.take("off") || self.take("false"));
                if on {
                    self.skip(&["on", "true"]);
                }
                match option.as_str() {
                    "analyze" => analyze = on,
                    "format" => {
                        if !self.take("text") {
                            return Err(Error::unsupported("an EXPLAIN format other than TEXT"));
                        }
                    }
                    "verbose" | "costs" | "buffers" | "timing" | "summary" | "settings" | "wal" => {
                    }
                    _ => {
                        return Err(Error::new(
                            state::SYNTAX_ERROR,
                            format!("unrecognized EXPLAIN option \"{option}\""),
                        ));
                    }
                }
                if !self.symbol(&Token::Comma) {
                    break;
                }
            }
            if !self.symbol(&Token::RParen) {
                return Err(self.unexpected());
            }
        } else {
            analyze = self.take("analyze") || self.take("analyse");
            self.skip(&["verbose"]);
        }
        let statement = Box::new(self.rest_as_statement()?);
        Ok(Statement::Explain { analyze, statement })
    }

    // ---- COPY

    fn copy(&mut self) -> Result<Statement> {
        self.expect("copy")?;
        let source = if self.tokens.get(self.at).is_some_and(|t| t.token == Token::LParen) {
            let inner = self.parenthesised()?;
            match parse_tokens(self.sql, inner)? {
                Statement::Query(query) => CopySource::Query(query),
                _ => return Err(Error::unsupported("COPY of a statement that is not a query")),
            }
        } else {
            let name = self.object_name()?;
            let mut columns = Vec::new();
            if self.symbol(&Token::LParen) {
                loop {
                    columns.push(self.name()?);
                    if !self.symbol(&Token::Comma) {
                        break;
                    }
                }
                if !self.symbol(&Token::RParen) {
                    return Err(self.unexpected());
                }
            }
            CopySource::Table { name, columns }
        };
        let out = if self.take("to") {
            true
        } else {
            self.expect("from")?;
            false
        };
        if !(self.take("stdin") || self.take("stdout")) {
            if self.string().is_ok() || self.take("program") {
                return Err(Error::unsupported("COPY to or from a file of the server")
                    .hint("Use COPY FROM STDIN or TO STDOUT, or psql's \\copy."));
            }
            return Err(self.unexpected());
        }
        if let (CopySource::Query(_), false) = (&source, out) {
            return Err(self.unexpected());
        }
        self.skip(&["with"]);
        let options = self.copy_options()?;
        Ok(Statement::Copy(Box::new(Copy { source, out, options })))
    }

    fn copy_options(&mut self) -> Result<CopyOptions> {
        let mut csv = false;
        let mut delimiter = None;
        let mut null = None;
        let mut header = false;
        let mut quote = None;
        let mut escape = None;
        let parenthesised = self.symbol(&Token::LParen);
        while self.at < self.tokens.len() {
            let option = self.name()?;
            match option.as_str() {
                "format" => match self.name()?.as_str() {
                    "csv" => csv = true,
                    "text" => csv = false,
                    other => return Err(Error::unsupported(format!("the COPY format {other}"))),
                },
                "csv" if !parenthesised => csv = true,
                "delimiter" | "delimiters" => {
                    self.skip(&["as"]);
                    delimiter = Some(self.one_byte("delimiter")?);
                }
                "null" => {
                    self.skip(&["as"]);
                    null = Some(self.string()?);
                }
                "header" => {
                    header = !(self.take("off") || self.take("false"));
                    if header {
                        self.skip(&["on", "true"]);
                    }
                }
                "quote" => {
                    self.skip(&["as"]);
                    quote = Some(self.one_byte("quote")?);
                }
                "escape" => {
                    self.skip(&["as"]);
                    escape = Some(self.one_byte("escape")?);
                }
                "freeze" => {
                    if !(self.take("off") || self.take("false")) {
                        self.skip(&["on", "true"]);
                    }
                }
                "encoding" => {
                    let encoding = self.string()?;
                    if !matches!(encoding.to_lowercase().as_str(), "utf8" | "utf-8" | "unicode") {
                        return Err(Error::unsupported(format!("the encoding {encoding}")));
                    }
                }
                "binary" => return Err(Error::unsupported("the COPY format binary")),
                other => return Err(Error::unsupported(format!("the COPY option {other}"))),
            }
            if parenthesised && !self.symbol(&Token::Comma) {
                break;
            }
        }
        if parenthesised && !self.symbol(&Token::RParen) {
            return Err(self.unexpected());
        }
        if !csv && (quote.is_some() || escape.is_some()) {
            return Err(Error::new(
                state::FEATURE_NOT_SUPPORTED,
                "COPY quote and escape are available only in CSV mode",
            ));
        }
        let quote = quote.unwrap_or(b'"');
        Ok(CopyOptions {
            csv,
            delimiter: delimiter.unwrap_or(if csv { b',' } else { b'\t' }),
            null: null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() }),
            header,
            quote,
            escape: escape.unwrap_or(quote),
        })
    }

    fn one_byte(&mut self, what: &str) -> Result<u8> {
        match self.string()?.as_bytes() {
            [byte] if *byte != b'\n' && *byte != b'\r' => Ok(*byte),
            _ => Err(Error::new(
                state::INVALID_PARAMETER,
                format!("COPY {what} must be a single one-byte character"),
            )),
        }
    }

    // ---- sequences, SPLIT

    fn sequence_options(&mut self) -> Result<SequenceOptions> {
        let mut options = SequenceOptions::default();
        while let Some(word) = self.word() {
            self.at += 1;
            match word.as_str() {
                "as" => {
                    let token = self.tokens.get(self.at).ok_or_else(|| self.unexpected())?;
                    let tokens = vec![token.clone()];
                    let dialect = Remembering::of(&tokens);
                    let mut parser = parser(&dialect, tokens);
                    let ty = parser.parse_data_type().map_err(|error| syntax(self.sql, error))?;
                    options.ty = Some(type_of(&ty)?);
                    self.at += 1;
                }
                "increment" => {
                    self.skip(&["by"]);
                    options.increment = Some(self.integer()?);
                }
                "minvalue" => options.min = Some(Some(self.integer()?)),
                "maxvalue" => options.max = Some(Some(self.integer()?)),
                "no" => match self.name()?.as_str() {
                    "minvalue" => options.min = Some(None),
                    "maxvalue" => options.max = Some(None),
                    "cycle" => options.cycle = Some(false),
                    _ => {
                        self.at -= 1;
                        return Err(self.unexpected());
                    }
                },
                "start" => {
                    self.skip(&["with"]);
                    options.start = Some(self.integer()?);
                }
                "restart" => {
                    self.skip(&["with"]);
                    options.restart = Some(match self.tokens.get(self.at).map(|t| &t.token) {
                        Some(Token::Number(..) | Token::Minus) => Some(self.integer()?),
                        _ => None,
                    });
                }
                "cache" => options.cache = Some(self.integer()?),
                "cycle" => options.cycle = Some(true),
                "owned" => {
                    self.expect("by")?;
                    if self.take("none") {
                        options.owned_by = Some(None);
                    } else {
                        let mut parts = super::parts(&self.object_name()?)?;
                        let column = parts.pop().unwrap_or_default();
                        options.owned_by = Some(Some((parts, column)));
                    }
                }
                "owner" => {
                    self.expect("to")?;
                    options.owner = Some(self.role_spec()?);
                }
                "rename" => {
                    self.expect("to")?;
                    options.rename = Some(self.name()?);
                }
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected());
                }
            }
        }
        Ok(options)
    }

    fn has_split(&self) -> bool {
        self.tokens.windows(2).any(|pair| {
            word_of(&pair[0]).as_deref() == Some("split")
                && word_of(&pair[1]).as_deref() == Some("at")
        })
    }

    /// `ALTER TABLE t SPLIT AT VALUES (v, …), …`.
    fn split(&mut self) -> Result<Statement> {
        self.at += 2;
        let table = self.object_name()?;
        for word in ["split", "at", "values"] {
            self.expect(word)?;
        }
        let mut rows = vec![self.row()?];
        while self.symbol(&Token::Comma) {
            rows.push(self.row()?);
        }
        Ok(Statement::Split { table, rows })
    }
}

fn word_of(token: &TokenWithSpan) -> Option<String> {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_lowercase()),
        _ => None,
    }
}
