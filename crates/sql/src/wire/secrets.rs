//! What is told of statements that hold a password and fail.
//!
//! An error may quote a piece of its statement: `syntax error at or near "geheim"`. Such errors reach
//! clients' logs and this node's. Where the piece stands behind the word PASSWORD, it is left out; its
//! place in the text is still told. *Example:* `ALTER ROLE r PASWORD 'x'` is told as it is;
//! `ALTER ROLE r PASSWORD geheim` is told as `syntax error at or near "?"`.

use crate::engine::{Lexeme, Lexer};
use crate::error::{Error, state};

/// The error as it may be told. `sql`: the text that it is about.
pub fn hide(error: Error, sql: &str) -> Error {
    // Others name objects and values of rows, not the statement's text.
    if !matches!(error.state(), state::SYNTAX_ERROR | state::FEATURE_NOT_SUPPORTED) {
        return error;
    }
    let Some(password_at) = password_at(sql) else { return error };
    if error.position.is_some_and(|position| position <= password_at) {
        return error;
    }
    const NEAR: &str = " at or near ";
    let told = match error.message.find(NEAR) {
        Some(at) => format!("{}{NEAR}\"?\"", &error.message[..at]),
        None => "syntax error in a statement with a password".to_owned(),
    };
    let hidden = Error::new(error.state(), told);
    match error.position {
        Some(position) => hidden.at(position),
        None => hidden,
    }
}

/// Where the first word PASSWORD ends, in characters from 1.
fn password_at(sql: &str) -> Option<usize> {
    let mut at = 0;
    for (kind, token) in Lexer::new(sql) {
        at += token.chars().count();
        if kind == Lexeme::Word && token.eq_ignore_ascii_case("password") {
            return Some(at);
        }
    }
    // A quotation that is broken swallows the word.
    let is_broken = sql.to_ascii_lowercase().contains("password")
        && Lexer::new(sql).any(|(kind, token)| {
            matches!(kind, Lexeme::Literal | Lexeme::Quoted)
                && token.to_ascii_lowercase().contains("password")
        });
    is_broken.then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_password_is_not_told() {
        let near = |sql: &str, piece: &str| {
            let position = sql.find(piece).map(|at| at + 1);
            let error =
                Error::new(state::SYNTAX_ERROR, format!("syntax error at or near \"{piece}\""));
            hide(position.map_or(error.clone(), |at| error.at(at)), sql).message.clone()
        };
        assert_eq!(near("ALTER ROLE r PASSWORD geheim", "geheim"), "syntax error at or near \"?\"");
        assert_eq!(
            near("ALTER ROLE r 'PASSWORD geheim", "geheim"),
            "syntax error at or near \"?\""
        );
        assert_eq!(near("SELEC password FROM t", "SELEC"), "syntax error at or near \"SELEC\"");
        let unplaced = Error::new(state::SYNTAX_ERROR, "syntax error: geheim");
        let told = hide(unplaced, "ALTER ROLE r PASSWORD geheim");
        assert!(!told.message.contains("geheim"), "{told:?}");
    }
}
