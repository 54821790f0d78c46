//! Views of the catalog and the cluster, as DataFusion reads them.
//!
//! Such a view is small: its rows are made whole for each query that names it, and DataFusion filters
//! and joins them like any table's. What the rows are is decided in [`sql::views`].

use super::shape;
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion_common::DataFusionError;
use datafusion_datasource::memory::MemorySourceConfig;
use datafusion_expr::{Expr, TableType};
use datafusion_physical_plan::ExecutionPlan;
use datafusion_session::{Session, TableProvider};
use sql::error::{Error, Result};
use sql::types::{Datum, Row, Type};
use sql::views::{Definition, Snapshot};
use sql::wide::QueryContext;
use std::fmt;
use std::sync::Arc;

pub struct Virtual {
    definition: &'static Definition,
    cx: QueryContext,
    snapshot: Arc<Snapshot>,
    columns: Vec<(String, Type)>,
    schema: SchemaRef,
}

impl Virtual {
    pub fn new(
        definition: &'static Definition,
        cx: QueryContext,
        snapshot: Arc<Snapshot>,
    ) -> Virtual {
        let columns = definition.columns();
        let fields = columns.iter().map(|(name, ty)| shape::field(name, ty, true, None));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Virtual { definition, cx, snapshot, columns, schema }
    }

    fn batch(&self, rows: &[Row]) -> Result<RecordBatch> {
        let column = |(idx, (_, ty)): (usize, &(String, Type))| {
            let mut builder = shape::Builder::new(ty, rows.len());
            for row in rows {
                builder.push(row.get(idx).unwrap_or(&Datum::Null))?;
            }
            builder.finish()
        };
        let arrays = self.columns.iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|error| Error::internal(error.to_string()))
    }
}

impl fmt::Debug for Virtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Virtual({})", self.definition.full_name())
    }
}

#[async_trait::async_trait]
impl TableProvider for Virtual {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let rows = self.definition.rows(&self.cx, &self.snapshot).await;
        let batch =
            self.batch(&rows).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let schema = self.schema.clone();
        let exec = MemorySourceConfig::try_new_exec(&[vec![batch]], schema, projection.cloned())?;
        Ok(exec)
    }
}
