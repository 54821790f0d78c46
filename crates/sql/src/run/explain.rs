//! EXPLAIN for plans of the fast path; the others are DataFusion's to explain.

use super::Exec;
use crate::error::Result;
use crate::plan::change::{Finder, Source};
use crate::plan::{Kind, Plan};
use crate::types::Datum;

/// The plan, one line each. With `analyze` of a query that DataFusion runs, it is run.
pub async fn explain(
    exec: &mut Exec<'_>,
    plan: &Plan,
    params: &[Datum],
    analyze: bool,
) -> Result<Vec<String>> {
    let found = |finder: &Finder, table: &crate::catalog::Table| match finder {
        Finder::Scan { access, filter } => {
            let mut lines = vec![format!("  ->  {}", access.describe(table))];
            if filter.is_some() {
                lines.push("        Filter: yes".to_owned());
            }
            lines
        }
        Finder::Query { query, .. } => vec![format!("  ->  Keys by query: {query}")],
    };
    Ok(match &plan.kind {
        Kind::Query(query) => {
            let cx = exec.query_context(plan).await?;
            let wide = exec.engine.wide();
            return wide.explain(&cx, query, &plan.params, params, analyze).await;
        }
        Kind::Select(select) => match (&select.table, &select.access) {
            (Some(table), Some(access)) => {
                let mut lines = vec![access.describe(table)];
                if select.filter.is_some() {
                    lines.push("  Filter: yes".to_owned());
                }
                if !select.is_sorted {
                    lines.push("  Sort: in memory".to_owned());
                } else if select.reverse {
                    lines.push("  Order: backward".to_owned());
                }
                if let Some((mode, _)) = select.lock {
                    lines.push(format!("  Lock rows: {mode:?}"));
                }
                lines
            }
            _ => vec!["Result".to_owned()],
        },
        Kind::Insert(insert) => {
            let mut lines = vec![format!("Insert on {}", insert.table.name)];
            lines.push(match &insert.source {
                Source::Values(rows) => format!("  ->  Values ({} rows)", rows.len()),
                Source::Query { query, .. } => format!("  ->  Query: {query}"),
            });
            lines
        }
        Kind::Update(update) => {
            let mut lines = vec![format!("Update on {}", update.table.name)];
            lines.extend(found(&update.finder, &update.table));
            lines
        }
        Kind::Delete(delete) => {
            let mut lines = vec![format!("Delete on {}", delete.table.name)];
            lines.extend(found(&delete.finder, &delete.table));
            lines
        }
        Kind::Utility => vec!["Utility statement".to_owned()],
    })
}
