//! Pieces of a syntax tree, built by hand.

use sql::error::Result;
use sql::types::{Datum, Type, text};
use sqlparser::ast::{self, *};
use sqlparser::tokenizer::Span;

pub fn value(value: ast::Value) -> ast::Expr {
    ast::Expr::Value(ValueWithSpan { value, span: Span::empty() })
}

pub fn number(digits: &str) -> ast::Expr {
    match digits.strip_prefix('-') {
        Some(digits) => ast::Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr: Box::new(value(ast::Value::Number(digits.to_owned(), false))),
        },
        None => value(ast::Value::Number(digits.to_owned(), false)),
    }
}

pub fn string(text: &str) -> ast::Expr {
    value(ast::Value::SingleQuotedString(text.to_owned()))
}

pub fn cast(expr: ast::Expr, data_type: ast::DataType) -> ast::Expr {
    ast::Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(expr),
        data_type,
        array: false,
        format: None,
    }
}

pub fn call(name: &str, args: Vec<ast::Expr>) -> ast::Expr {
    let args = args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg)));
    ast::Expr::Function(ast::Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

pub fn binary(left: ast::Expr, op: BinaryOperator, right: ast::Expr) -> ast::Expr {
    ast::Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

/// A datum written as a literal of its type.
pub fn literal(datum: &Datum, ty: &Type) -> Result<ast::Expr> {
    use ast::DataType as To;
    let shown = || text::to_string(datum, ty, &sql::types::Zone::UTC);
    let custom = |name: &str| To::Custom(ObjectName::from(vec![Ident::new(name)]), Vec::new());
    let to = match ty {
        Type::Bool => To::Boolean,
        Type::Int2 => To::SmallInt(None),
        Type::Int4 => To::Integer(None),
        Type::Int8 | Type::Oid => To::BigInt(None),
        Type::Float4 => To::Real,
        Type::Float8 => To::DoublePrecision,
        Type::Numeric(_) => To::Numeric(ExactNumberInfo::None),
        Type::Bytea => To::Bytea,
        Type::Date => To::Date,
        Type::Time => To::Time(None, TimezoneInfo::None),
        Type::Timestamp => To::Timestamp(None, TimezoneInfo::None),
        Type::TimestampTz => To::Timestamp(None, TimezoneInfo::Tz),
        Type::Interval => To::Interval { fields: None, precision: None },
        Type::Uuid => To::Uuid,
        Type::Json => To::JSON,
        Type::Name => custom("name"),
        Type::Array(element) => {
            return Ok(match datum {
                Datum::Array(values) => {
                    let elem = values
                        .iter()
                        .map(|value| literal(value, element))
                        .collect::<Result<Vec<_>>>()?;
                    ast::Expr::Array(ast::Array { elem, named: true })
                }
                _ => cast(value(Value::Null), array_type(literal_type(element))),
            });
        }
        _ => To::Text,
    };
    Ok(match datum {
        Datum::Null => cast(value(Value::Null), to),
        Datum::Bool(is) => value(Value::Boolean(*is)),
        Datum::Int2(_) | Datum::Int4(_) | Datum::Int8(_) => cast(number(&shown()), to),
        // Digits that DataFusion reads as a decimal of just their scale.
        Datum::Numeric(numeric) if numeric.scale() > 0 => number(&shown()),
        Datum::Numeric(_) => {
            cast(number(&shown()), To::Numeric(ExactNumberInfo::PrecisionAndScale(38, 0)))
        }
        Datum::Text(text) => string(text),
        _ => cast(string(&shown()), to),
    })
}

fn literal_type(ty: &Type) -> ast::DataType {
    match literal(&Datum::Null, ty) {
        Ok(ast::Expr::Cast { data_type, .. }) => data_type,
        _ => ast::DataType::Text,
    }
}

fn array_type(element: ast::DataType) -> ast::DataType {
    ast::DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(element), None))
}
