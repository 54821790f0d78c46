//! The door to wide queries: joins, aggregates, subqueries, whatever goes beyond the fast path.
//!
//! The fast path answers statements on one table by itself. All other queries go through [`Wide`], which the
//! node fills with its query engine. So this crate does not know DataFusion, is compiled beside it, and a
//! change here compiles nothing of it anew.
//!
//! Example: `SELECT a.id FROM a JOIN b USING (id)`. The planner meets the join, asks [`Wide::describe`] for
//! the answer's columns, and the run asks [`Wide::run`] for its rows, at the statement's snapshot.

use crate::engine::Engine;
use crate::error::Result;
use crate::session::{Column, RowStream, View};
use crate::types::{Datum, Type};
use sqlparser::ast::Query;
use std::sync::Arc;

/// What a query is run with.
#[derive(Clone)]
pub struct QueryContext {
    pub engine: Engine,
    /// The statement's snapshot. None to describe a query, which reads nothing.
    pub reader: Option<txn::Reader>,
    /// The session's side: its user and settings, and the tables that the statement names.
    pub view: Arc<View>,
}

/// The types of a query's parameters, and the columns of its answer.
pub type Described = (Vec<Type>, Vec<Column>);

/// An engine for wide queries.
#[async_trait::async_trait]
pub trait Wide: Send + Sync {
    /// What a query takes and answers. `hints` are what the client says of the parameters; the context
    /// decides the others.
    async fn describe(
        &self,
        cx: &QueryContext,
        query: &Query,
        hints: &[Option<Type>],
    ) -> Result<Described>;

    /// Runs a query. `types` and `params` go together; see [`Wide::describe`].
    async fn run(
        &self,
        cx: &QueryContext,
        query: &Query,
        types: &[Type],
        params: &[Datum],
    ) -> Result<(Arc<[Column]>, RowStream)>;

    /// The plan as text, one line each; with `analyze` it is run first and tells what it took.
    async fn explain(
        &self,
        cx: &QueryContext,
        query: &Query,
        types: &[Type],
        params: &[Datum],
        analyze: bool,
    ) -> Result<Vec<String>>;
}
