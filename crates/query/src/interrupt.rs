//! Joins without an equality, made to stop.
//!
//! Such a join computes its condition for each pair of rows, and may do so for minutes without a pause in which
//! its task could be ended: 200,000 rows beside 200,000 are 40 billion pairs. Its condition is
//! therefore wrapped: before each batch of pairs it asks whether anybody still wants the answer.

use super::aside::Stop;
use super::failure;
use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema};
use datafusion_common::DataFusionError;
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion_expr::ColumnarValue;
use datafusion_physical_expr::PhysicalExpr;
use datafusion_physical_plan::ExecutionPlan;
use datafusion_physical_plan::joins::utils::JoinFilter;
use datafusion_physical_plan::joins::{NestedLoopJoinExec, NestedLoopJoinExecBuilder};
use sql::error::{Error, state};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// The same plan, whose joins look at `stop`.
pub fn interruptible(plan: Arc<dyn ExecutionPlan>, stop: &Stop) -> Df<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|operator| {
        let Some(join) = operator.downcast_ref::<NestedLoopJoinExec>() else {
            return Ok(Transformed::no(operator));
        };
        let Some(filter) = join.filter() else { return Ok(Transformed::no(operator)) };
        let condition = Asking { condition: filter.expression().clone(), stop: stop.clone() };
        let filter = JoinFilter::new(
            Arc::new(condition),
            filter.column_indices().to_vec(),
            filter.schema().clone(),
        );
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?;
        Ok(Transformed::yes(Arc::new(join) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// A condition that asks first.
#[derive(Debug)]
struct Asking {
    condition: Arc<dyn PhysicalExpr>,
    stop: Stop,
}

impl PartialEq for Asking {
    fn eq(&self, other: &Asking) -> bool {
        self.condition.eq(&other.condition)
    }
}

impl Eq for Asking {}

impl Hash for Asking {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)
    }
}

impl PhysicalExpr for Asking {
    fn evaluate(&self, batch: &RecordBatch) -> Df<ColumnarValue> {
        if self.stop.is_set() {
            let message = "canceling statement because nobody waits for it";
            return Err(failure::through(Error::new(state::QUERY_CANCELED, message)));
        }
        self.condition.evaluate(batch)
    }

    fn return_field(&self, schema: &Schema) -> Df<FieldRef> {
        self.condition.return_field(schema)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.condition]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Df<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(condition) => Ok(Arc::new(Asking { condition, stop: self.stop.clone() })),
            None => Err(DataFusionError::Internal("a condition was lost".to_owned())),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(f)
    }
}
