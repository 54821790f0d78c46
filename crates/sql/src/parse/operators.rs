//! Operators that the tokenizer takes for one and PostgreSQL for two: `a>-5` is `a > -5`.
//!
//! An operator of several signs ends with `+` or `-` only if it has one of `~ ! @ # % ^ & | ` ?` in it, too
//! (PostgreSQL's manual, 4.1.3). So `@-` is one operator, and `>-` is `>` before a negative number.

use sqlparser::tokenizer::{Token, TokenWithSpan};

/// Splits such tokens in place.
pub fn split(tokens: &mut Vec<TokenWithSpan>) {
    let mut idx = 0;
    while idx < tokens.len() {
        let mut signs = Vec::new();
        if let Token::CustomBinaryOperator(operator) = &tokens[idx].token {
            let mut rest = operator.as_str();
            while rest.len() > 1
                && let Some(before) = rest.strip_suffix(['+', '-'])
                && !rest.contains(['~', '!', '@', '#', '%', '^', '&', '|', '`', '?'])
            {
                signs.push(if rest.ends_with('+') { Token::Plus } else { Token::Minus });
                rest = before;
            }
            if let Some(first) = standard(rest)
                && !signs.is_empty()
            {
                signs.push(first);
            } else {
                signs.clear();
            }
        }
        if !signs.is_empty() {
            let span = tokens[idx].span;
            let signs = signs.into_iter().rev().map(|token| TokenWithSpan::new(token, span));
            let signs: Vec<TokenWithSpan> = signs.collect();
            let n_signs = signs.len();
            tokens.splice(idx..=idx, signs);
            idx += n_signs - 1;
        }
        idx += 1;
    }
}

fn standard(operator: &str) -> Option<Token> {
    Some(match operator {
        "=" => Token::Eq,
        "<>" => Token::Neq,
        "<" => Token::Lt,
        ">" => Token::Gt,
        "<=" => Token::LtEq,
        ">=" => Token::GtEq,
        "+" => Token::Plus,
        "-" => Token::Minus,
        "*" => Token::Mul,
        "/" => Token::Div,
        _ => return None,
    })
}
