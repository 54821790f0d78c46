//! What a column without a name is called.

use super::type_of;
use sql::parse;
use sqlparser::ast;
use sqlparser::ast::*;

/// A column's name where none is given, by PostgreSQL's rules (`FigureColname`).
pub fn column_name(expr: &ast::Expr) -> String {
    figure(expr).0.unwrap_or_else(|| "?column?".to_owned())
}

/// The name and how strongly it is meant: 2 for a column or function, 1 for a construct.
fn figure(expr: &ast::Expr) -> (Option<String>, u8) {
    use ast::Expr::*;
    let fixed = |name: &str| (Some(name.to_owned()), 2);
    match expr {
        Identifier(name) => (Some(parse::ident(name)), 2),
        CompoundIdentifier(names) => (names.last().map(parse::ident), 2),
        Function(function) => (parse::last_part(&function.name).ok(), 2),
        Nested(inner) => figure(inner),
        Collate { expr, .. } => figure(expr),
        Cast { expr, data_type, .. } => match figure(expr) {
            (Some(name), 2) => (Some(name), 2),
            _ => (type_of(data_type).map(|ty| ty.short_name()), 1),
        },
        TypedString(typed) => (type_of(&typed.data_type).map(|ty| ty.short_name()), 1),
        Interval(_) => (Some("interval".to_owned()), 1),
        Case { else_result, .. } => match else_result.as_deref().map(figure) {
            Some((Some(name), 2)) => (Some(name), 2),
            _ => (Some("case".to_owned()), 1),
        },
        CompoundFieldAccess { root, .. } => figure(root),
        Extract { .. } => fixed("extract"),
        Substring { shorthand: true, .. } => fixed("substr"),
        Substring { .. } => fixed("substring"),
        Position { .. } => fixed("position"),
        Trim { trim_where, .. } => match trim_where {
            Some(TrimWhereField::Leading) => fixed("ltrim"),
            Some(TrimWhereField::Trailing) => fixed("rtrim"),
            _ => fixed("btrim"),
        },
        Overlay { .. } => fixed("overlay"),
        Ceil { .. } => fixed("ceil"),
        Floor { .. } => fixed("floor"),
        AtTimeZone { .. } => fixed("timezone"),
        Exists { .. } => fixed("exists"),
        Array(_) => fixed("array"),
        Tuple(_) => fixed("row"),
        Subquery(query) => match &*query.body {
            SetExpr::Select(select) => match select.projection.first() {
                Some(SelectItem::UnnamedExpr(expr)) => figure(expr),
                Some(SelectItem::ExprWithAlias { alias, .. }) => (Some(parse::ident(alias)), 2),
                _ => (None, 0),
            },
            _ => (None, 0),
        },
        _ => (None, 0),
    }
}
