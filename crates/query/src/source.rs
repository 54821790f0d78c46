//! Tables as DataFusion's planner holds them, and how the physical planner gets them back.

use arrow::datatypes::SchemaRef;
use datafusion_common::DataFusionError;
use datafusion_expr::{Expr, TableProviderFilterPushDown, TableSource, TableType};
use datafusion_physical_plan::ExecutionPlan;
use datafusion_physical_plan::work_table::WorkTableExec;
use datafusion_session::{Session, TableProvider};
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// A table in a plan.
struct Source(Arc<dyn TableProvider>);

pub fn source(table: impl TableProvider) -> Arc<dyn TableSource> {
    Arc::new(Source(Arc::new(table)))
}

pub fn table_of(source: &dyn TableSource) -> Df<&Arc<dyn TableProvider>> {
    let ours = source.downcast_ref::<Source>();
    let table = ours.map(|Source(table)| table);
    table.ok_or_else(|| DataFusionError::Internal("a table that is not ours".to_owned()))
}

impl TableSource for Source {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        self.0.table_type()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Df<Vec<TableProviderFilterPushDown>> {
        self.0.supports_filters_pushdown(filters)
    }
}

/// What the last round of WITH RECURSIVE brought, as the next round reads it.
#[derive(Debug)]
pub struct LastRound {
    pub name: String,
    pub schema: SchemaRef,
}

#[async_trait::async_trait]
impl TableProvider for LastRound {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Df<Arc<dyn ExecutionPlan>> {
        let (name, schema) = (self.name.clone(), self.schema.clone());
        Ok(Arc::new(WorkTableExec::new(name, schema, projection.cloned())?))
    }
}
