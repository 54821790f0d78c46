//! Statements about roles, databases, access lists and comments.

use super::utility::Cursor;
use crate::authority::{Class, Privileges};
use crate::error::{Error, Result, state};
use sqlparser::ast;
use sqlparser::tokenizer::Token;

/// A role as a statement names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleSpec {
    Named(String),
    CurrentUser,
    SessionUser,
    /// Everybody, where privileges are given.
    Public,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleOptions {
    /// `Some(None)` is PASSWORD NULL.
    pub password: Option<Option<String>>,
    pub superuser: Option<bool>,
    pub inherit: Option<bool>,
    pub createrole: Option<bool>,
    pub createdb: Option<bool>,
    pub login: Option<bool>,
    pub replication: Option<bool>,
    pub bypassrls: Option<bool>,
    pub connection_limit: Option<i32>,
    /// As a time stamp's text.
    pub valid_until: Option<String>,
    /// IN ROLE: what the new role becomes a member of.
    pub in_roles: Vec<RoleSpec>,
    /// ROLE and ADMIN: who become its members.
    pub members: Vec<RoleSpec>,
    pub admins: Vec<RoleSpec>,
}

/// GRANT and REVOKE on objects.
#[derive(Clone, Debug)]
pub struct GrantObjects {
    pub is_grant: bool,
    /// WITH GRANT OPTION, GRANT OPTION FOR.
    pub option: bool,
    /// Each with the columns that it is for; none: the whole object. No privilege: ALL.
    pub privileges: Vec<(Option<Privileges>, Vec<String>)>,
    pub target: GrantTarget,
    pub grantees: Vec<RoleSpec>,
    pub granted_by: Option<RoleSpec>,
    pub cascade: bool,
}

#[derive(Clone, Debug)]
pub enum GrantTarget {
    /// Tables, or sequences that are named like tables.
    Tables(Vec<ast::ObjectName>),
    Sequences(Vec<ast::ObjectName>),
    Schemas(Vec<String>),
    Databases(Vec<String>),
    AllTables(Vec<String>),
    AllSequences(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct GrantRoles {
    pub is_grant: bool,
    /// WITH ADMIN OPTION, ADMIN OPTION FOR.
    pub admin: bool,
    pub roles: Vec<String>,
    pub members: Vec<RoleSpec>,
    pub cascade: bool,
}

#[derive(Clone, Debug)]
pub struct AlterDefaults {
    /// None: the current role.
    pub roles: Vec<RoleSpec>,
    /// None: every schema.
    pub schemas: Vec<String>,
    pub class: Class,
    pub is_grant: bool,
    pub option: bool,
    /// None: ALL.
    pub privileges: Vec<Option<Privileges>>,
    pub grantees: Vec<RoleSpec>,
}

#[derive(Clone, Debug, Default)]
pub struct DatabaseOptions {
    pub owner: Option<RoleSpec>,
    pub connection_limit: Option<i32>,
    pub allow_connections: Option<bool>,
    pub is_template: Option<bool>,
    pub rename: Option<String>,
}

/// What COMMENT ON is about.
#[derive(Clone, Debug)]
pub enum CommentOn {
    Table(ast::ObjectName),
    Index(ast::ObjectName),
    Sequence(ast::ObjectName),
    /// Table and column.
    Column(ast::ObjectName, String),
    Schema(String),
    Database(String),
    Role(String),
    /// Name and table.
    Constraint(String, ast::ObjectName),
}

impl Cursor<'_> {
    pub(super) fn role_spec(&mut self) -> Result<RoleSpec> {
        self.skip(&["group"]);
        let is_quoted = matches!(
            self.peek(),
            Some(Token::Word(word)) if word.quote_style.is_some()
        );
        let name = self.name()?;
        Ok(match name.as_str() {
            "public" if !is_quoted => RoleSpec::Public,
            "current_user" | "current_role" | "user" if !is_quoted => RoleSpec::CurrentUser,
            "session_user" if !is_quoted => RoleSpec::SessionUser,
            _ => RoleSpec::Named(name),
        })
    }

    pub(super) fn role_specs(&mut self) -> Result<Vec<RoleSpec>> {
        let mut list = vec![self.role_spec()?];
        while self.symbol(&Token::Comma) {
            list.push(self.role_spec()?);
        }
        Ok(list)
    }

    pub(super) fn names(&mut self) -> Result<Vec<String>> {
        let mut list = vec![self.name()?];
        while self.symbol(&Token::Comma) {
            list.push(self.name()?);
        }
        Ok(list)
    }

    fn object_names(&mut self) -> Result<Vec<ast::ObjectName>> {
        let mut list = vec![self.object_name()?];
        while self.symbol(&Token::Comma) {
            list.push(self.object_name()?);
        }
        Ok(list)
    }

    fn int4(&mut self) -> Result<i32> {
        let value = self.integer()?;
        i32::try_from(value).map_err(|_| {
            Error::new(
                state::OUT_OF_RANGE,
                format!("value \"{value}\" is out of range for type integer"),
            )
        })
    }

    pub(super) fn role_options(&mut self, is_new: bool) -> Result<RoleOptions> {
        let mut options = RoleOptions::default();
        self.skip(&["with"]);
        while let Some(word) = self.word() {
            self.at += 1;
            let (negated, plain) = match word.strip_prefix("no") {
                Some(plain) => (true, plain),
                None => (false, word.as_str()),
            };
            let flag = match plain {
                "superuser" => Some(&mut options.superuser),
                "inherit" => Some(&mut options.inherit),
                "createrole" => Some(&mut options.createrole),
                "createdb" => Some(&mut options.createdb),
                "login" => Some(&mut options.login),
                "replication" => Some(&mut options.replication),
                "bypassrls" => Some(&mut options.bypassrls),
                _ => None,
            };
            if let Some(flag) = flag {
                if flag.is_some() {
                    return Err(redundant());
                }
                *flag = Some(!negated);
                continue;
            }
            match word.as_str() {
                "encrypted" => {
                    self.expect("password")?;
                    options.password = Some(Some(self.string()?));
                }
                "unencrypted" => {
                    return Err(Error::unsupported("UNENCRYPTED PASSWORD").hint(
                        "Remove UNENCRYPTED to store the password in encrypted form instead.",
                    ));
                }
                "password" => {
                    let password = if self.take("null") { None } else { Some(self.string()?) };
                    options.password = Some(password);
                }
                "connection" => {
                    self.expect("limit")?;
                    let limit = self.int4()?;
                    if limit < -1 {
                        return Err(Error::new(
                            state::INVALID_PARAMETER,
                            format!("invalid connection limit: {limit}"),
                        ));
                    }
                    options.connection_limit = Some(limit);
                }
                "valid" => {
                    self.expect("until")?;
                    options.valid_until = Some(self.string()?);
                }
                "in" if is_new => {
                    if !self.take("role") {
                        self.expect("group")?;
                    }
                    options.in_roles = self.role_specs()?;
                }
                "role" | "user" if is_new => options.members = self.role_specs()?,
                "admin" if is_new => options.admins = self.role_specs()?,
                "sysid" if is_new => {
                    self.integer()?;
                }
                _ => {
                    let message = format!("unrecognized role option \"{word}\"");
                    return Err(Error::new(state::SYNTAX_ERROR, message));
                }
            }
        }
        Ok(options)
    }

    // ---- GRANT and REVOKE

    /// Behind GRANT or REVOKE.
    pub(super) fn grant(&mut self, is_grant: bool) -> Result<super::Statement> {
        let begin = self.at;
        let grants_objects = self.find_word("on");
        if !grants_objects {
            return self.grant_roles(is_grant);
        }
        self.at = begin;
        let mut option = false;
        if !is_grant && self.take_all(&["grant", "option", "for"]) {
            option = true;
        }
        let privileges = self.privileges()?;
        self.expect("on")?;
        let target = self.grant_target()?;
        self.expect(if is_grant { "to" } else { "from" })?;
        let grantees = self.role_specs()?;
        if is_grant {
            option = self.take_all(&["with", "grant", "option"]);
        }
        let granted_by = match self.take_all(&["granted", "by"]) {
            true => Some(self.role_spec()?),
            false => None,
        };
        let cascade = !is_grant && self.cascade();
        let grant =
            GrantObjects { is_grant, option, privileges, target, grantees, granted_by, cascade };
        Ok(super::Statement::Grant(Box::new(grant)))
    }

    /// CASCADE; RESTRICT is the default.
    pub(super) fn cascade(&mut self) -> bool {
        let cascade = self.take("cascade");
        if !cascade {
            self.skip(&["restrict"]);
        }
        cascade
    }

    fn grant_roles(&mut self, is_grant: bool) -> Result<super::Statement> {
        let mut admin = !is_grant && self.take_all(&["admin", "option", "for"]);
        let roles = self.names()?;
        self.expect(if is_grant { "to" } else { "from" })?;
        let members = self.role_specs()?;
        if is_grant {
            admin = self.take_all(&["with", "admin", "option"]);
        }
        if self.take_all(&["granted", "by"]) {
            self.role_spec()?;
        }
        let cascade = !is_grant && self.cascade();
        let grant = GrantRoles { is_grant, admin, roles, members, cascade };
        Ok(super::Statement::GrantRoles(Box::new(grant)))
    }

    fn privileges(&mut self) -> Result<Vec<(Option<Privileges>, Vec<String>)>> {
        let mut list = Vec::new();
        loop {
            let word = self.name()?;
            let privilege = if word == "all" {
                self.skip(&["privileges"]);
                None
            } else {
                Some(Privileges::named(&word).ok_or_else(|| {
                    Error::new(
                        state::SYNTAX_ERROR,
                        format!("unrecognized privilege type \"{word}\""),
                    )
                })?)
            };
            let mut columns = Vec::new();
            if self.symbol(&Token::LParen) {
                columns = self.names()?;
                if !self.symbol(&Token::RParen) {
                    return Err(self.unexpected());
                }
            }
            list.push((privilege, columns));
            if !self.symbol(&Token::Comma) {
                return Ok(list);
            }
        }
    }

    fn grant_target(&mut self) -> Result<GrantTarget> {
        if self.take("all") {
            let word = self.name()?;
            self.expect("in")?;
            self.expect("schema")?;
            let schemas = self.names()?;
            return match word.as_str() {
                "tables" => Ok(GrantTarget::AllTables(schemas)),
                "sequences" => Ok(GrantTarget::AllSequences(schemas)),
                other => Err(no_object(other)),
            };
        }
        // A table may have one of these names: then no other name follows.
        let is_kind = self.at_kind();
        let kind = self.word().filter(|_| is_kind).unwrap_or_default();
        Ok(match kind.as_str() {
            "table" => {
                self.at += 1;
                GrantTarget::Tables(self.object_names()?)
            }
            "sequence" => {
                self.at += 1;
                GrantTarget::Sequences(self.object_names()?)
            }
            "schema" => {
                self.at += 1;
                GrantTarget::Schemas(self.names()?)
            }
            "database" => {
                self.at += 1;
                GrantTarget::Databases(self.names()?)
            }
            "function" | "procedure" | "routine" | "language" | "type" | "domain" | "foreign"
            | "tablespace" | "large" | "parameter" => return Err(no_object(&kind)),
            _ => GrantTarget::Tables(self.object_names()?),
        })
    }

    /// Whether the word at hand is followed by a name.
    fn at_kind(&self) -> bool {
        match self.tokens.get(self.at + 1).map(|token| &token.token) {
            Some(Token::Word(word)) => {
                word.quote_style.is_some()
                    || !matches!(word.value.to_ascii_lowercase().as_str(), "to" | "from")
            }
            _ => false,
        }
    }

    pub(super) fn alter_defaults(&mut self) -> Result<super::Statement> {
        let mut roles = Vec::new();
        let mut schemas = Vec::new();
        loop {
            if self.take_all(&["for", "role"]) || self.take_all(&["for", "user"]) {
                roles = self.role_specs()?;
            } else if self.take_all(&["in", "schema"]) {
                schemas = self.names()?;
            } else {
                break;
            }
        }
        let is_grant = self.take("grant");
        if !is_grant {
            self.expect("revoke")?;
        }
        let mut option = !is_grant && self.take_all(&["grant", "option", "for"]);
        let mut privileges = Vec::new();
        for (privilege, columns) in self.privileges()? {
            if !columns.is_empty() {
                return Err(Error::new(
                    state::INVALID_GRANT_OPERATION,
                    "default privileges cannot be set for columns",
                ));
            }
            privileges.push(privilege);
        }
        self.expect("on")?;
        let word = self.name()?;
        let class = match word.as_str() {
            "tables" => Class::Table,
            "sequences" => Class::Sequence,
            "schemas" => Class::Schema,
            other => return Err(no_object(other)),
        };
        self.expect(if is_grant { "to" } else { "from" })?;
        let grantees = self.role_specs()?;
        if is_grant {
            option = self.take_all(&["with", "grant", "option"]);
        } else {
            self.cascade();
        }
        let alter = AlterDefaults { roles, schemas, class, is_grant, option, privileges, grantees };
        Ok(super::Statement::AlterDefaults(Box::new(alter)))
    }

    // ---- databases

    pub(super) fn database_options(&mut self) -> Result<DatabaseOptions> {
        let mut options = DatabaseOptions::default();
        self.skip(&["with"]);
        while let Some(word) = self.word() {
            self.at += 1;
            let begin = self.at;
            self.symbol(&Token::Eq);
            match word.as_str() {
                "owner" => {
                    self.skip(&["to"]);
                    options.owner = Some(self.role_spec()?);
                }
                "rename" => {
                    self.expect("to")?;
                    options.rename = Some(self.name()?);
                }
                "connection" => {
                    self.at = begin;
                    self.expect("limit")?;
                    self.symbol(&Token::Eq);
                    options.connection_limit = Some(self.int4()?);
                }
                "allow_connections" => options.allow_connections = Some(self.boolean()?),
                "is_template" => options.is_template = Some(self.boolean()?),
                "encoding" => {
                    let encoding = self.name_or_string()?.to_lowercase();
                    if !matches!(encoding.as_str(), "utf8" | "utf-8" | "unicode" | "default") {
                        return Err(Error::unsupported(format!("the encoding {encoding}")));
                    }
                }
                "template" => {
                    let template = self.name_or_string()?;
                    if !matches!(template.as_str(), "template0" | "template1" | "default") {
                        return Err(Error::unsupported(format!(
                            "a copy of the database \"{template}\" as a template"
                        )));
                    }
                }
                "locale" | "lc_collate" | "lc_ctype" | "icu_locale" => {
                    let locale = self.name_or_string()?;
                    let known = ["c", "posix", "c.utf-8", "c.utf8", "default"];
                    if !known.contains(&locale.to_lowercase().as_str()) {
                        return Err(Error::unsupported(format!("the locale {locale}"))
                            .hint("Texts are compared byte by byte: use C."));
                    }
                }
                "locale_provider" => {
                    let provider = self.name_or_string()?;
                    if !matches!(provider.as_str(), "libc" | "default") {
                        return Err(Error::unsupported(format!("the locale provider {provider}")));
                    }
                }
                "tablespace" => {
                    let space = self.name_or_string()?;
                    if !matches!(space.as_str(), "pg_default" | "default") {
                        return Err(Error::unsupported("a tablespace"));
                    }
                }
                _ => {
                    self.at -= 1;
                    return Err(self.unexpected());
                }
            }
        }
        Ok(options)
    }

    fn boolean(&mut self) -> Result<bool> {
        let word = self.name_or_string()?;
        match word.to_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => {
                let message = format!("invalid boolean value: \"{word}\"");
                Err(Error::new(state::INVALID_PARAMETER, message))
            }
        }
    }

    fn name_or_string(&mut self) -> Result<String> {
        if let Ok(text) = self.string() {
            return Ok(text);
        }
        self.name()
    }

    // ---- comments

    /// Behind COMMENT.
    pub(super) fn comment(&mut self) -> Result<super::Statement> {
        self.expect("on")?;
        let kind = self.name()?;
        let on = match kind.as_str() {
            "table" => CommentOn::Table(self.object_name()?),
            "index" => CommentOn::Index(self.object_name()?),
            "sequence" => CommentOn::Sequence(self.object_name()?),
            "schema" => CommentOn::Schema(self.name()?),
            "database" => CommentOn::Database(self.name()?),
            "role" => CommentOn::Role(self.name()?),
            "column" => {
                let name = self.object_name()?;
                let mut parts = super::parts(&name)?;
                let column = parts.pop().unwrap_or_default();
                if parts.is_empty() {
                    return Err(Error::new(state::SYNTAX_ERROR, "column name must be qualified"));
                }
                let table = parts.into_iter().map(|part| ast::Ident::with_quote('"', part));
                CommentOn::Column(ast::ObjectName::from(table.collect::<Vec<_>>()), column)
            }
            "constraint" => {
                let name = self.name()?;
                self.expect("on")?;
                CommentOn::Constraint(name, self.object_name()?)
            }
            "view" | "materialized" | "function" | "procedure" | "routine" | "aggregate"
            | "type" | "domain" | "extension" | "trigger" | "rule" | "policy" | "operator"
            | "cast" | "collation" | "conversion" | "language" | "foreign" | "server"
            | "tablespace" | "text" | "event" | "publication" | "subscription" | "statistics"
            | "transform" | "access" | "large" => {
                return Err(Error::unsupported(format!("COMMENT ON {}", kind.to_uppercase())));
            }
            _ => {
                self.at -= 1;
                return Err(self.unexpected());
            }
        };
        self.expect("is")?;
        let text = if self.take("null") { None } else { Some(self.string()?) };
        Ok(super::Statement::Comment { on, text: text.filter(|text| !text.is_empty()) })
    }
}

fn redundant() -> Error {
    Error::new(state::SYNTAX_ERROR, "conflicting or redundant options")
}

fn no_object(kind: &str) -> Error {
    Error::unsupported(format!("privileges on {}", kind.to_uppercase()))
}
