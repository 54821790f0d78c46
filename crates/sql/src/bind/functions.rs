//! Function calls, those included that are computed before rows are looked at.

use super::{Binder, Bound, SlotKind};
use crate::error::{Error, Result, state};
use crate::expr::{Comparison, Expr, Lookup, lookup};
use crate::parse;
use crate::types::cast::Context as CastContext;
use crate::types::{Datum, Type};
use sqlparser::ast;

pub fn no_function(name: &str, types: &[Type]) -> Error {
    let types: Vec<&str> = types.iter().map(Type::base_name).collect();
    let message = format!("function {name}({}) does not exist", types.join(", "));
    Error::new(state::UNDEFINED_FUNCTION, message).hint(
        "No function matches the given name and argument types. You might need to add explicit type casts.",
    )
}

impl Binder<'_> {
    pub(super) fn function(&mut self, function: &ast::Function) -> Result<Bound> {
        let mut parts = parse::parts(&function.name)?;
        let name = parts.pop().unwrap_or_default();
        let plain = function.filter.is_none()
            && function.over.is_none()
            && function.within_group.is_empty()
            && parts.iter().all(|schema| schema == "pg_catalog");
        if !plain {
            return Err(Error::unsupported(format!("the function {name} here")));
        }
        let args = match &function.args {
            ast::FunctionArguments::None => Vec::new(),
            ast::FunctionArguments::List(list)
                if list.duplicate_treatment.is_none() && list.clauses.is_empty() =>
            {
                list.args
                    .iter()
                    .map(|arg| match arg {
                        ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => {
                            Ok(expr.clone())
                        }
                        _ => Err(Error::unsupported(format!("this argument of {name}"))),
                    })
                    .collect::<Result<Vec<_>>>()?
            }
            _ => return Err(Error::unsupported(format!("these arguments of {name}"))),
        };
        self.call(&name, args)
    }

    pub(super) fn call(&mut self, name: &str, args: Vec<ast::Expr>) -> Result<Bound> {
        match (name, args.len()) {
            ("coalesce", 1..) => {
                let list = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
                let (list, ty) = self.same_type("COALESCE", list)?;
                return Ok(Bound { expr: Expr::Coalesce(list), ty });
            }
            ("greatest" | "least", 1..) => {
                let list = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
                let (list, ty) = self.same_type(&name.to_uppercase(), list)?;
                return Ok(Bound { expr: Expr::Extreme { list, least: name == "least" }, ty });
            }
            ("nullif", 2) => {
                // As a CASE: the answer is the left side as it is, and not as it is compared.
                let (left, right) = (self.bind(&args[0])?, self.bind(&args[1])?);
                let ty = if left.ty == Type::Unknown { Type::Text } else { left.ty.clone() };
                let (compared, right, _) = self.unify("=", left.clone(), right)?;
                let answer = self.coerce(left, &ty, CastContext::Implicit)?;
                let equal = Expr::Compare {
                    op: Comparison::Eq,
                    left: Box::new(compared),
                    right: Box::new(right),
                };
                let expr = Expr::Case {
                    operand: None,
                    arms: vec![(equal, Expr::Const(Datum::Null))],
                    otherwise: Some(Box::new(answer)),
                };
                return Ok(Bound { expr, ty });
            }
            ("nextval", 1) => return self.sequence_call(SlotKind::NextVal, &args),
            ("currval", 1) => return self.sequence_call(SlotKind::CurrVal, &args),
            ("lastval", 0) => return Ok(self.slot(SlotKind::LastVal, Vec::new(), Type::Int8)),
            ("setval", 2 | 3) => {
                let mut bound = vec![self.bind_as(&args[0], &Type::Text, CastContext::Implicit)?];
                bound.push(self.bind_as(&args[1], &Type::Int8, CastContext::Assignment)?);
                if let Some(is_called) = args.get(2) {
                    bound.push(self.bind_as(is_called, &Type::Bool, CastContext::Implicit)?);
                }
                return Ok(self.slot(SlotKind::SetVal, bound, Type::Int8));
            }
            ("pg_export_snapshot", 0) => {
                return Ok(self.slot(SlotKind::ExportSnapshot, Vec::new(), Type::Text));
            }
            ("set_config", 3) => {
                let name = self.bind_as(&args[0], &Type::Text, CastContext::Implicit)?;
                let value = self.bind_as(&args[1], &Type::Text, CastContext::Implicit)?;
                let local = self.bind_as(&args[2], &Type::Bool, CastContext::Implicit)?;
                if ![&name, &value, &local].iter().all(|arg| arg.is_row_free()) {
                    return Err(Error::unsupported("set_config of values that depend on rows"));
                }
                return Ok(self.slot(SlotKind::SetConfig, vec![name, value, local], Type::Text));
            }
            // Nobody holds any.
            ("pg_advisory_unlock_all", 0) => {
                return Ok(Bound { expr: Expr::Const(Datum::text("")), ty: Type::Void });
            }
            ("pg_sleep", 1) => {
                let seconds = self.bind_as(&args[0], &Type::Float8, CastContext::Implicit)?;
                return Ok(self.slot(SlotKind::Sleep, vec![seconds], Type::Void));
            }
            _ => {}
        }
        let mut bound = args.iter().map(|arg| self.bind(arg)).collect::<Result<Vec<_>>>()?;
        let types: Vec<Type> = bound.iter().map(|bound| bound.ty.clone()).collect();
        let (function, wanted, ty) = match lookup(name, &types) {
            Lookup::Here(function, wanted, ty) => (function, wanted, ty),
            Lookup::Elsewhere => {
                return Err(Error::unsupported(format!("the function {name} here")));
            }
            Lookup::NoSuch => return Err(no_function(name, &types)),
        };
        let args = bound
            .drain(..)
            .zip(&wanted)
            .map(|(bound, ty)| self.coerce(bound, ty, CastContext::Assignment))
            .collect::<Result<Vec<_>>>()?;
        Ok(Bound { expr: Expr::Call { function, args }, ty })
    }

    pub(super) fn sequence_call(&mut self, kind: SlotKind, args: &[ast::Expr]) -> Result<Bound> {
        let name = self.bind_as(&args[0], &Type::Text, CastContext::Implicit)?;
        if !name.is_row_free() {
            return Err(Error::unsupported("a sequence's name that depends on the row"));
        }
        Ok(self.slot(kind, vec![name], Type::Int8))
    }
}
