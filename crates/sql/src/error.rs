//! What a statement answers when it cannot be done: PostgreSQL's five-letter SQLSTATE, one line
//! that says what and where, and, when it helps, a detail and a hint.
//!
//! Drivers decide by the state and people read the message, so both are PostgreSQL's own wherever
//! PostgreSQL has one.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Boxed inside, so that a `Result` stays small on the hot path.
#[derive(Clone)]
pub struct Error(Box<Fields>);

/// `position` counts characters of the statement's text from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    pub state: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub position: Option<usize>,
    pub constraint: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    /// What the transaction layer said, for the retry loop of a statement; never shown.
    pub(crate) cause: Cause,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cause {
    #[default]
    Sql,
    /// The statement was planned with an older definition of this table.
    SchemaChanged(u32),
    /// A row that the statement's snapshot has is gone now that its lock is there.
    RowGone,
}

/// The SQLSTATEs used, by PostgreSQL's names for them.
pub mod state {
    pub const SUCCESSFUL: &str = "00000";
    pub const WARNING: &str = "01000";
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    pub const OUTCOME_UNKNOWN: &str = "08007";
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub const CARDINALITY_VIOLATION: &str = "21000";
    pub const STRING_TOO_LONG: &str = "22001";
    pub const OUT_OF_RANGE: &str = "22003";
    pub const NULL_NOT_ALLOWED: &str = "22004";
    pub const DATETIME_INVALID: &str = "22007";
    pub const DATETIME_OVERFLOW: &str = "22008";
    pub const DIVISION_BY_ZERO: &str = "22012";
    pub const INVALID_PARAMETER: &str = "22023";
    pub const INVALID_ENCODING: &str = "22021";
    pub const INVALID_TEXT: &str = "22P02";
    pub const INVALID_BINARY: &str = "22P03";
    pub const BAD_COPY: &str = "22P04";
    pub const INVALID_REGEX: &str = "2201B";
    pub const NOT_NULL_VIOLATION: &str = "23502";
    pub const UNIQUE_VIOLATION: &str = "23505";
    pub const CHECK_VIOLATION: &str = "23514";
    pub const ACTIVE_TRANSACTION: &str = "25001";
    pub const READ_ONLY_TRANSACTION: &str = "25006";
    pub const NO_ACTIVE_TRANSACTION: &str = "25P01";
    pub const FAILED_TRANSACTION: &str = "25P02";
    pub const INVALID_STATEMENT_NAME: &str = "26000";
    pub const INVALID_AUTHORIZATION: &str = "28000";
    pub const INVALID_PASSWORD: &str = "28P01";
    pub const INVALID_GRANT_OPERATION: &str = "0LP01";
    pub const DEPENDENT_OBJECTS: &str = "2BP01";
    pub const NO_SUCH_DATABASE: &str = "3D000";
    pub const DUPLICATE_DATABASE: &str = "42P04";
    pub const RESERVED_NAME: &str = "42939";
    pub const OBJECT_IN_USE: &str = "55006";
    pub const NO_SUCH_SAVEPOINT: &str = "3B001";
    pub const NO_SUCH_SCHEMA: &str = "3F000";
    pub const SERIALIZATION_FAILURE: &str = "40001";
    pub const DEADLOCK: &str = "40P01";
    pub const SYNTAX_ERROR: &str = "42601";
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub const CANNOT_COERCE: &str = "42846";
    pub const DUPLICATE_COLUMN: &str = "42701";
    pub const AMBIGUOUS_COLUMN: &str = "42702";
    pub const UNDEFINED_COLUMN: &str = "42703";
    pub const UNDEFINED_OBJECT: &str = "42704";
    pub const DUPLICATE_OBJECT: &str = "42710";
    pub const UNDEFINED_FUNCTION: &str = "42883";
    pub const UNDEFINED_TABLE: &str = "42P01";
    pub const UNDEFINED_PARAMETER: &str = "42P02";
    pub const DUPLICATE_STATEMENT: &str = "42P05";
    pub const DUPLICATE_SCHEMA: &str = "42P06";
    pub const DUPLICATE_TABLE: &str = "42P07";
    pub const AMBIGUOUS_PARAMETER: &str = "42P08";
    pub const INVALID_COLUMN_REFERENCE: &str = "42P10";
    pub const INVALID_TABLE_DEFINITION: &str = "42P16";
    pub const INDETERMINATE_TYPE: &str = "42P18";
    pub const DATATYPE_MISMATCH: &str = "42804";
    pub const WRONG_OBJECT_TYPE: &str = "42809";
    pub const DISK_FULL: &str = "53100";
    pub const OUT_OF_MEMORY: &str = "53200";
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    pub const LIMIT_EXCEEDED: &str = "54000";
    pub const TOO_COMPLEX: &str = "54001";
    pub const NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    pub const QUERY_CANCELED: &str = "57014";
    pub const UNAVAILABLE: &str = "57P01";
    pub const SNAPSHOT_TOO_OLD: &str = "72000";
    pub const INTERNAL: &str = "XX000";
}

impl Error {
    pub fn new(state: &'static str, message: impl Into<String>) -> Error {
        Error(Box::new(Fields {
            state,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            constraint: None,
            table: None,
            column: None,
            cause: Cause::Sql,
        }))
    }

    /// For the retry loop of a statement.
    pub(crate) fn row_gone() -> Error {
        let message = "a row was deleted or got another key while it was waited for";
        let mut error = Error::new(state::SERIALIZATION_FAILURE, message);
        error.0.cause = Cause::RowGone;
        error
    }

    pub(crate) fn is_row_gone(&self) -> bool {
        self.0.cause == Cause::RowGone
    }

    /// A feature of PostgreSQL that is not here.
    pub fn unsupported(feature: impl fmt::Display) -> Error {
        Error::new(state::FEATURE_NOT_SUPPORTED, format!("{feature} is not supported"))
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(state::INTERNAL, message)
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// Characters of the statement's text, from 1.
    pub fn at(mut self, position: usize) -> Error {
        self.0.position = Some(position);
        self
    }

    pub fn constraint(mut self, table: &str, name: &str) -> Error {
        self.0.table = Some(table.to_owned());
        self.0.constraint = Some(name.to_owned());
        self
    }

    pub fn column(mut self, table: &str, column: &str) -> Error {
        self.0.table = Some(table.to_owned());
        self.0.column = Some(column.to_owned());
        self
    }

    pub fn fields(&self) -> &Fields {
        &self.0
    }

    pub fn state(&self) -> &'static str {
        self.0.state
    }

    pub(crate) fn schema_changed(&self) -> Option<u32> {
        match self.0.cause {
            Cause::SchemaChanged(table) => Some(table),
            Cause::Sql | Cause::RowGone => None,
        }
    }

    pub(crate) fn is_unsupported(&self) -> bool {
        self.0.state == state::FEATURE_NOT_SUPPORTED
    }
}

impl std::ops::Deref for Error {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.state, self.0.message)?;
        if let Some(detail) = &self.0.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<txn::Error> for Error {
    fn from(error: txn::Error) -> Error {
        let message = error.to_string();
        match error {
            txn::Error::Serialization { .. } => Error::new(state::SERIALIZATION_FAILURE, message)
                .hint("The transaction might succeed if retried."),
            txn::Error::Deadlock { detail } => Error::new(state::DEADLOCK, message)
                .detail(detail)
                .hint("The transaction might succeed if retried."),
            txn::Error::LockNotAvailable => Error::new(state::LOCK_NOT_AVAILABLE, message),
            txn::Error::Canceled => Error::new(state::QUERY_CANCELED, message),
            txn::Error::SnapshotTooOld { .. } => Error::new(state::SNAPSHOT_TOO_OLD, message)
                .hint("Begin a new transaction, or read at a newer snapshot."),
            txn::Error::SchemaChanged { table } => {
                let mut error = Error::new(
                    state::SERIALIZATION_FAILURE,
                    "could not serialize access due to a concurrent change of a table's definition",
                )
                .hint("The transaction might succeed if retried.");
                error.0.cause = Cause::SchemaChanged(table);
                error
            }
            txn::Error::Unavailable { .. } => Error::new(state::UNAVAILABLE, message)
                .hint("Nothing was changed: run the transaction again."),
            txn::Error::OutcomeUnknown { txn } => Error::new(state::OUTCOME_UNKNOWN, message)
                .hint(format!("Ask later: SELECT state FROM atoll.transactions WHERE id = {txn}.")),
            txn::Error::TooLarge { .. } => Error::new(state::LIMIT_EXCEEDED, message),
            txn::Error::Refused { .. } => Error::new(state::INVALID_PARAMETER, message),
            txn::Error::Internal { .. } => Error::new(state::INTERNAL, message),
            txn::Error::OutOfMemory { .. } => Error::new(state::OUT_OF_MEMORY, message)
                .hint("Nothing was changed: run the transaction again later, or on another node."),
            txn::Error::DiskFull { .. } => Error::new(state::DISK_FULL, message)
                .hint("Nothing was changed: run the transaction again on another node."),
        }
    }
}
