//! Stored tables as DataFusion reads them: at one snapshot, only the columns asked for, only the
//! key range that the filters leave.
//!
//! Access is by the longest run of leading key columns with a known value, and a range on
//! the next one: of the primary key, or of a secondary index when that has the longer run. The filters
//! are never taken over (`Inexact`): the range is an optimisation and the operators above
//! decide. Rows go from their stored bytes straight into Arrow builders.
//!
//! A scan that ends having read a whole relation remembers how many rows there were: the only
//! statistics there are, which tell joins which side is the smaller.
//!
//! Absent: sorted output, several partitions of one table, limits on index access.

use super::batch::{BATCH_BYTES, BATCH_ROWS, BatchRows, RowsSeen};
use super::{failure, shape};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use base::KeyRange;
use base::key::prefix_end;
use datafusion_common::DataFusionError;
use datafusion_common::stats::Precision;
use datafusion_common::tree_node::TreeNodeRecursion;
use datafusion_common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion_execution::{SendableRecordBatchStream, TaskContext};
use datafusion_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion_physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion_physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion_physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion_physical_plan::stream::RecordBatchStreamAdapter;
use datafusion_physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use datafusion_session::{Session, TableProvider};
use futures::TryStreamExt;
use sql::catalog::{IndexState, RelationId, Table};
use sql::codec::{self, RowReader};
use sql::error::{Error, Result};
use sql::run::rows::row_key_of_entry;
use sql::types::{Datum, Type};
use std::fmt;
use std::sync::Arc;

type Df<T> = Result<T, DataFusionError>;

/// Rows looked up at once by an index.
const LOOKUP_ROWS: usize = 1024;

/// A table at a snapshot.
pub struct Stored {
    table: Arc<Table>,
    reader: Option<txn::Reader>,
    seen: Arc<RowsSeen>,
    batch_rows: BatchRows,
    schema: SchemaRef,
}

impl Stored {
    pub fn new(
        table: Arc<Table>,
        reader: Option<txn::Reader>,
        seen: Arc<RowsSeen>,
        batch_rows: BatchRows,
    ) -> Stored {
        let field = |column: &sql::catalog::Column| {
            let attnum = i16::try_from(column.id).unwrap_or_default();
            // Nullable even where it is not: DataFusion forgets that a subquery without rows is NULL.
            shape::field(&column.name, &column.ty, true, Some((table.id, attnum)))
        };
        let schema = Arc::new(Schema::new(table.columns.iter().map(field).collect::<Vec<_>>()));
        Stored { table, reader, seen, batch_rows, schema }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({})", self.table.name)
    }
}

#[async_trait::async_trait]
impl TableProvider for Stored {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Df<Vec<TableProviderFilterPushDown>> {
        let useful = |filter: &&Expr| match Bound::of(filter, &self.table) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(useful).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Df<Arc<dyn ExecutionPlan>> {
        let Some(reader) = self.reader.clone() else {
            return Err(failure::through(Error::internal("a scan without a snapshot")));
        };
        let bounds: Vec<Bound> =
            filters.iter().filter_map(|filter| Bound::of(filter, &self.table)).collect();
        let projection = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.table.columns.len()).collect(),
        };
        let schema = Arc::new(self.schema.project(&projection)?);
        let access = Access::choose(&self.table, &bounds);
        // A filter above may drop rows, so that more are needed than asked for: DataFusion sends no
        // limit then.
        let sizes = (self.seen.clone(), self.batch_rows.clone());
        Ok(Arc::new(Scan::new(
            self.table.clone(),
            reader,
            sizes,
            access,
            projection,
            schema,
            limit,
        )))
    }
}

/// `column <op> literal`.
struct Bound {
    column_idx: usize,
    op: Operator,
    value: Datum,
}

impl Bound {
    fn of(filter: &Expr, table: &Table) -> Option<Bound> {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
        let (column, op, value) = match (&**left, &**right) {
            (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
            (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
            _ => return None,
        };
        use Operator::{Eq, Gt, GtEq, Lt, LtEq};
        if !matches!(op, Eq | Lt | LtEq | Gt | GtEq) {
            return None;
        }
        let column_idx = table.column_idx(&column.name)?;
        let value = literal(value, &table.columns[column_idx].ty)?;
        Some(Bound { column_idx, op, value })
    }
}

/// A literal as the column's own type, whose bytes its keys have.
fn literal(value: &ScalarValue, ty: &Type) -> Option<Datum> {
    if value.is_null() || value.data_type() != shape::arrow_type(ty) {
        return None;
    }
    let array = value.to_array().ok()?;
    let datum = shape::datum(&array, 0, ty).ok()?;
    Some(match (datum, ty) {
        (Datum::Int8(value), Type::Int8 | Type::Oid) => Datum::Int8(value),
        (datum, _) => datum,
    })
}

/// Which keys are read.
#[derive(Clone)]
enum Access {
    /// Rows, in the order of their keys.
    Rows(KeyRange),
    /// Entries of the index, and the rows that they name.
    Index { name: String, range: KeyRange },
}

impl Access {
    fn choose(table: &Table, bounds: &[Bound]) -> Access {
        let (range, n_equal, bounded) = key_range(table.relation, &table.primary_idxs(), bounds);
        let mut best = (Access::Rows(range), n_equal, bounded);
        for index in table.indexes.iter().filter(|index| index.state == IndexState::Public) {
            let (range, n_equal, bounded) =
                key_range(index.relation, &index.column_idxs(table), bounds);
            // An index costs a look-up per row: only for known values, not for mere ranges.
            if n_equal > best.1 && !best.2 {
                best = (Access::Index { name: index.name.clone(), range }, n_equal, bounded);
            }
        }
        best.0
    }
}

/// The keys of `relation` that the bounds on its leading columns leave, on how many columns they
/// are one value, and whether the next one has a range.
fn key_range(
    relation: RelationId,
    column_idxs: &[usize],
    bounds: &[Bound],
) -> (KeyRange, usize, bool) {
    let mut prefix = codec::key_prefix(relation, 16);
    let mut n_equal = 0;
    for idx in column_idxs {
        let on_column = || bounds.iter().filter(|bound| bound.column_idx == *idx);
        if let Some(equal) = on_column().find(|bound| bound.op == Operator::Eq) {
            codec::encode_key(&equal.value, &mut prefix);
            n_equal += 1;
            continue;
        }
        let mut range = KeyRange::prefix(prefix.clone());
        let mut bounded = false;
        for bound in on_column() {
            let mut at = prefix.clone();
            codec::encode_key(&bound.value, &mut at);
            let only = match bound.op {
                Operator::GtEq => KeyRange { start: at.into(), end: None },
                Operator::Gt => match prefix_end(&at) {
                    Some(start) => KeyRange { start, end: None },
                    None => continue,
                },
                Operator::Lt => KeyRange { start: Default::default(), end: Some(at.into()) },
                _ => KeyRange { start: Default::default(), end: prefix_end(&at) },
            };
            range = range.intersect(&only);
            bounded = true;
        }
        return (range, n_equal, bounded);
    }
    (KeyRange::prefix(prefix), n_equal, false)
}

/// Reads one table.
struct Scan {
    table: Arc<Table>,
    reader: txn::Reader,
    seen: Arc<RowsSeen>,
    batch_rows: BatchRows,
    access: Access,
    /// Positions in the table's columns, as asked for.
    projection: Vec<usize>,
    schema: SchemaRef,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl Scan {
    fn new(
        table: Arc<Table>,
        reader: txn::Reader,
        (seen, batch_rows): (Arc<RowsSeen>, BatchRows),
        access: Access,
        projection: Vec<usize>,
        schema: SchemaRef,
        limit: Option<usize>,
    ) -> Scan {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        let properties = Arc::new(properties);
        Scan {
            table,
            reader,
            seen,
            batch_rows,
            access,
            projection,
            schema,
            limit,
            properties,
            metrics,
        }
    }

    fn is_whole(&self) -> bool {
        matches!(&self.access, Access::Rows(range) if *range == self.table.relation.range())
    }

    fn estimate(&self) -> Precision<usize> {
        let n_rows = self.seen.n_rows(self.table.relation);
        match (n_rows, &self.access) {
            (None, _) => Precision::Absent,
            (Some(n), _) if self.is_whole() => {
                Precision::Inexact(self.limit.map_or(n, |limit| n.min(limit)))
            }
            // A guess: ranges mostly mean little of a table.
            (Some(n), Access::Rows(_)) => Precision::Inexact(n / 10 + 1),
            (Some(n), Access::Index { .. }) => Precision::Inexact(n / 100 + 1),
        }
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scan({})", self.table.name)
    }
}

impl DisplayAs for Scan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> =
            self.projection.iter().map(|&idx| self.table.columns[idx].name.as_str()).collect();
        write!(f, "Scan: {}", self.table.name)?;
        match &self.access {
            Access::Rows(_) if self.is_whole() => {}
            Access::Rows(_) => write!(f, " by a range of {}", self.table.primary_name)?,
            Access::Index { name, .. } => write!(f, " by {name}")?,
        }
        write!(f, ", columns=[{}]", columns.join(", "))?;
        match self.limit {
            Some(limit) => write!(f, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for Scan {
    fn name(&self) -> &str {
        "Scan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Df<TreeNodeRecursion>,
    ) -> Df<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Df<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, _: Option<usize>) -> Df<Arc<Statistics>> {
        let column_statistics = vec![ColumnStatistics::new_unknown(); self.schema.fields().len()];
        Ok(Arc::new(Statistics {
            num_rows: self.estimate(),
            total_byte_size: Precision::Absent,
            column_statistics,
        }))
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Df<SendableRecordBatchStream> {
        let decoder = Decoder::new(self.table.clone(), &self.projection, self.schema.clone());
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (range, by_index) = match &self.access {
            Access::Rows(range) => (range.clone(), false),
            Access::Index { range, .. } => (range.clone(), true),
        };
        let state = Reading {
            scan: self.reader.scan(range, false, self.limit),
            reader: self.reader.clone(),
            by_index,
            decoder,
            left: self.limit.unwrap_or(usize::MAX),
            n_rows: 0,
            batch_rows: self.batch_rows.get(),
            relation: self.table.relation,
            seen: self.seen.clone(),
            is_whole: self.is_whole(),
            n_bytes: 0,
            metrics,
        };
        let batches = futures::stream::try_unfold(state, |mut state| async move {
            let batch = state.next().await.map_err(failure::through)?;
            Ok(batch.map(|batch| (batch, state)))
        });
        let batches = batches.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}

/// A scan under way.
struct Reading {
    scan: txn::client::Scan,
    reader: txn::Reader,
    by_index: bool,
    decoder: Decoder,
    /// Rows still wanted.
    left: usize,
    n_rows: usize,
    /// What all of them took so far.
    n_bytes: usize,
    batch_rows: usize,
    relation: RelationId,
    seen: Arc<RowsSeen>,
    /// The whole relation is read.
    is_whole: bool,
    metrics: BaselineMetrics,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.left > 0 {
            let rows = self.scan.next_batch().await?;
            if rows.is_empty() {
                if self.is_whole {
                    self.seen.note_rows(self.relation, self.n_rows);
                }
                break;
            }
            if self.by_index {
                let table = &self.decoder.table;
                let keys: Vec<base::Key> =
                    rows.iter().map(|(_, entry)| row_key_of_entry(table, &entry.value)).collect();
                let mut keys = &keys[..];
                while !keys.is_empty() {
                    // Wide rows are looked up few at a time.
                    let row_bytes = self.n_bytes / self.n_rows.max(1);
                    let n = (BATCH_BYTES / row_bytes.max(1)).clamp(1, LOOKUP_ROWS);
                    let (now, later) = keys.split_at(n.min(keys.len()));
                    keys = later;
                    // An entry whose row is gone at the same snapshot would be a bug of the writer.
                    for row in self.reader.get(now).await?.into_iter().flatten() {
                        self.take(&row.value)?;
                    }
                }
            } else {
                for (_, row) in &rows {
                    self.take(&row.value)?;
                }
            }
            let full = self.decoder.n_bytes >= BATCH_BYTES;
            if full || self.decoder.n_rows >= self.batch_rows {
                return self.emit().map(Some);
            }
        }
        if self.decoder.n_rows > 0 { self.emit().map(Some) } else { Ok(None) }
    }

    fn take(&mut self, row: &[u8]) -> Result<()> {
        if self.left > 0 {
            let _timer = self.metrics.elapsed_compute().timer();
            self.decoder.push(row)?;
            self.left -= 1;
            self.n_rows += 1;
            self.n_bytes += row.len();
        }
        Ok(())
    }

    fn emit(&mut self) -> Result<RecordBatch> {
        self.seen.note_width(self.relation, self.n_bytes / self.n_rows.max(1));
        let batch = self.decoder.finish()?;
        self.metrics.record_output(batch.num_rows());
        Ok(batch)
    }
}

/// Stored rows into columns.
struct Decoder {
    table: Arc<Table>,
    schema: SchemaRef,
    /// Wanted columns in the order of their ids: position in the table, position in the output.
    wanted: Vec<(usize, usize)>,
    builders: Vec<shape::Builder>,
    n_rows: usize,
    n_bytes: usize,
}

impl Decoder {
    fn new(table: Arc<Table>, projection: &[usize], schema: SchemaRef) -> Decoder {
        let mut wanted: Vec<(usize, usize)> =
            projection.iter().enumerate().map(|(out, &idx)| (idx, out)).collect();
        wanted.sort_by_key(|&(idx, _)| table.columns[idx].id);
        let mut decoder =
            Decoder { table, schema, wanted, builders: Vec::new(), n_rows: 0, n_bytes: 0 };
        decoder.renew();
        decoder
    }

    fn renew(&mut self) {
        let mut by_output = self.wanted.clone();
        by_output.sort_by_key(|&(_, out)| out);
        self.builders = by_output
            .into_iter()
            .map(|(idx, _)| shape::Builder::new(&self.table.columns[idx].ty, BATCH_ROWS))
            .collect();
        self.n_rows = 0;
        self.n_bytes = 0;
    }

    fn push(&mut self, row: &[u8]) -> Result<()> {
        self.n_bytes += row.len();
        let mut reader = RowReader::new(row);
        let mut pending = None;
        for &(idx, out) in &self.wanted {
            let column = &self.table.columns[idx];
            loop {
                if pending.is_none() {
                    pending = reader.next().transpose()?;
                }
                match pending {
                    Some((id, _)) if id < column.id => pending = None,
                    _ => break,
                }
            }
            match pending.take() {
                Some((id, value)) if id == column.id => self.builders[out].push_value(value)?,
                later => {
                    pending = later;
                    self.builders[out].push(&column.missing)?;
                }
            }
        }
        self.n_rows += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<RecordBatch> {
        let builders = std::mem::take(&mut self.builders);
        let arrays =
            builders.into_iter().map(shape::Builder::finish).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.n_rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options);
        self.renew();
        batch.map_err(|error| Error::internal(error.to_string()))
    }
}
