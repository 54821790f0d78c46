//! DataFusion's errors as PostgreSQL's.
//!
//! An error of our own that went through DataFusion comes out as it went in.

use arrow::error::ArrowError;
use datafusion_common::DataFusionError;
use datafusion_common::SchemaError;
use sql::error::{Error, state};

/// PostgreSQL's code for a limit that the server's settings set.
const CONFIGURATION_LIMIT: &str = "53400";

/// What the client is told.
pub fn from(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(error) => match error.downcast::<Error>() {
            Ok(error) => *error,
            Err(error) => Error::internal(error.to_string()),
        },
        DataFusionError::Context(what, error) if what == "Invalid regex" => {
            invalid_regex(error.to_string())
        }
        DataFusionError::Context(_, error) | DataFusionError::Diagnostic(_, error) => from(*error),
        DataFusionError::Shared(error) => from_shared(&error),
        DataFusionError::Collection(mut errors) => match errors.is_empty() {
            true => Error::internal("a query failed without a reason"),
            false => from(errors.swap_remove(0)),
        },
        DataFusionError::ArrowError(error, _) => arrow(*error),
        DataFusionError::SchemaError(error, _) => schema(*error),
        DataFusionError::NotImplemented(what) => unsupported(&what),
        DataFusionError::ResourcesExhausted(what) => exhausted(what),
        DataFusionError::IoError(error) => file(&error),
        DataFusionError::Plan(message) => planning(message),
        DataFusionError::SQL(error, _) => Error::new(state::SYNTAX_ERROR, error.to_string()),
        DataFusionError::Execution(message) => execution(message),
        other => Error::internal(other.strip_backtrace()),
    }
}

/// Memory, or the room for files, is used up.
fn exhausted(what: String) -> Error {
    if what.contains("disk space during the spilling") {
        return Error::new(
            CONFIGURATION_LIMIT,
            "a query's temporary files would take too much disk",
        )
        .detail(what)
        .hint("The limit for all queries of this node is query_file_bytes in atoll.settings.");
    }
    Error::new(state::OUT_OF_MEMORY, "out of memory for queries").detail(what)
}

/// A temporary file failed.
fn file(error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let message = format!("a query's temporary file failed: {error}");
    match error.kind() {
        StorageFull | QuotaExceeded => Error::new(state::DISK_FULL, message)
            .hint("Nothing was changed: run the query again on another node."),
        _ => Error::internal(message),
    }
}

/// Sends one of our errors through DataFusion.
pub fn through(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

fn from_shared(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(error) => error.clone(),
            None => Error::internal(inner.to_string()),
        },
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => {
            from_shared(inner)
        }
        DataFusionError::Shared(inner) => from_shared(inner),
        DataFusionError::ArrowError(error, _) => arrow_text(error),
        DataFusionError::ResourcesExhausted(what) => exhausted(what.clone()),
        DataFusionError::IoError(error) => file(error),
        DataFusionError::Execution(message) => execution(message.clone()),
        other => Error::internal(other.strip_backtrace()),
    }
}

fn arrow(error: ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(error) => match error.downcast::<DataFusionError>() {
            Ok(error) => from(*error),
            Err(error) => match error.downcast::<Error>() {
                Ok(error) => *error,
                Err(error) => Error::internal(error.to_string()),
            },
        },
        other => arrow_text(&other),
    }
}

fn arrow_text(error: &ArrowError) -> Error {
    match error {
        ArrowError::DivideByZero => Error::new(state::DIVISION_BY_ZERO, "division by zero"),
        ArrowError::ArithmeticOverflow(message) => {
            Error::new(state::OUT_OF_RANGE, "value out of range").detail(message.clone())
        }
        ArrowError::CastError(message) => Error::new(state::INVALID_TEXT, message.clone()),
        ArrowError::ParseError(message) => Error::new(state::DATETIME_INVALID, message.clone()),
        ArrowError::NotYetImplemented(what) => unsupported(what),
        // Digits beyond what a decimal holds come as this.
        ArrowError::InvalidArgumentError(message) if message.contains("too large to store") => {
            Error::new(state::OUT_OF_RANGE, "numeric field overflow").detail(message.clone())
        }
        ArrowError::ComputeError(message) if message.contains("did not compile") => {
            invalid_regex(message.clone())
        }
        ArrowError::ComputeError(message) => execution(message.clone()),
        other => Error::internal(other.to_string()),
    }
}

fn invalid_regex(why: String) -> Error {
    Error::new(state::INVALID_REGEX, "invalid regular expression").detail(why)
}

fn schema(error: SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, .. } => {
            let name = match &field.relation {
                Some(relation) => format!("{}.{}", relation.table(), field.name),
                None => format!("\"{}\"", field.name),
            };
            Error::new(state::UNDEFINED_COLUMN, format!("column {name} does not exist"))
        }
        SchemaError::AmbiguousReference { field } => Error::new(
            state::AMBIGUOUS_COLUMN,
            format!("column reference \"{}\" is ambiguous", field.name),
        ),
        other => Error::new(state::DUPLICATE_COLUMN, other.to_string()),
    }
}

fn planning(message: String) -> Error {
    const GROUPING: &str = "42803";
    let message = message.trim().to_owned();
    if message.contains("must be in GROUP BY") || message.contains("must appear in the GROUP BY") {
        let column = message.split("column \"").nth(1).and_then(|rest| rest.split('"').next());
        let column = column.or_else(|| message.split('"').nth(1)).unwrap_or("?");
        let rule = "must appear in the GROUP BY clause or be used in an aggregate function";
        Error::new(GROUPING, format!("column \"{column}\" {rule}"))
    } else if let Some(rest) = message.strip_prefix("Invalid function '") {
        let name = rest.split('\'').next().unwrap_or(rest);
        Error::new(state::UNDEFINED_FUNCTION, format!("function {name} does not exist"))
            .hint("No function matches the given name and argument types.")
    } else if message.contains("not supported") || message.contains("not implemented") {
        Error::new(state::FEATURE_NOT_SUPPORTED, message)
    } else if message.contains("coerce") || message.contains("Cannot infer") {
        Error::new(state::DATATYPE_MISMATCH, message)
    } else {
        Error::new(state::SYNTAX_ERROR, message)
    }
}

fn execution(message: String) -> Error {
    if message.contains("more than one row") || message.contains("returned more than") {
        let message = "more than one row returned by a subquery used as an expression";
        Error::new(state::CARDINALITY_VIOLATION, message)
    } else if message.to_ascii_lowercase().contains("divide by zero") {
        Error::new(state::DIVISION_BY_ZERO, "division by zero")
    } else if message.to_ascii_lowercase().contains("overflow") {
        Error::new(state::OUT_OF_RANGE, "value out of range").detail(message)
    } else {
        Error::new(state::INVALID_PARAMETER, message)
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(state::FEATURE_NOT_SUPPORTED, format!("not supported: {}", what.trim()))
}
