//! What DataFusion plans and runs queries with: functions, rules, limits.
//!
//! One [`Setup`] is made per node and never changes. It is DataFusion's [`Session`] in name only:
//! what belongs to a client's session is in [`sql::wide::QueryContext`].
//!
//! Absent: catalogs, file formats, object stores, settings that a client may change.

use super::batch::BATCH_ROWS;
use super::memory::Share;
use super::physical::{self, Joins};
use base::Budget;
use chrono::{DateTime, Utc};
use datafusion_common::alias::AliasGenerator;
use datafusion_common::config::{ConfigOptions, TableOptions};
use datafusion_common::{DFSchema, DataFusionError};
use datafusion_execution::TaskContext;
use datafusion_execution::config::SessionConfig;
use datafusion_execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion_execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::planner::ExprPlanner;
use datafusion_expr::registry::{
    ExtensionTypeRegistryRef, FunctionRegistry, MemoryExtensionTypeRegistry,
};
use datafusion_expr::{AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, WindowUDF};
use datafusion_optimizer::{Analyzer, Optimizer, OptimizerConfig};
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion_physical_plan::ExecutionPlan;
use datafusion_session::{
    CatalogProviderList, EmptyCatalogProviderList, PhysicalOptimizerRule, Session,
};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

type Df<T> = Result<T, DataFusionError>;

/// What each sort keeps aside to merge its files with.
const MERGE_BYTES: usize = 1 << 20;
const N_PARTITIONS: usize = 2;

/// Names of the functions over many rows.
static AGGREGATES: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let known = datafusion_functions_aggregate::all_default_aggregate_functions();
    let ours = ["every", "variance", "single_value"];
    by_name(known, |f| (f.name(), f.aliases())).into_keys().chain(ours.map(str::to_owned)).collect()
});

pub fn is_aggregate(name: &str) -> bool {
    AGGREGATES.contains(name)
}

/// Functions, rules and limits.
pub struct Setup {
    config: SessionConfig,
    scalars: HashMap<String, Arc<ScalarUDF>>,
    higher: HashMap<String, Arc<HigherOrderUDF>>,
    aggregates: HashMap<String, Arc<AggregateUDF>>,
    windows: HashMap<String, Arc<WindowUDF>>,
    planners: Vec<Arc<dyn ExprPlanner>>,
    analyzer: Analyzer,
    optimizer: Optimizer,
    physical: PhysicalOptimizer,
    props: ExecutionProps,
    runtime: Arc<RuntimeEnv>,
    types: ExtensionTypeRegistryRef,
    formats: TableOptions,
}

impl Setup {
    /// `files` is where what does not fit into memory is put; it holds `file_bytes_max` at most.
    pub fn new(files: PathBuf, file_bytes_max: usize) -> Df<Setup> {
        let mut config = SessionConfig::new().with_target_partitions(N_PARTITIONS);
        let options = config.options_mut();
        options.sql_parser.parse_float_as_decimal = true;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.sort_spill_reservation_bytes = MERGE_BYTES;
        // A constant that cannot be computed is the user's error, at the user's time: not a rule's.
        options.optimizer.skip_failed_rules = false;
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![files]))
            .with_max_temp_directory_size(file_bytes_max as u64);
        let runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc()?;
        let mut scalars = datafusion_functions::all_default_functions();
        scalars.extend(datafusion_functions_nested::all_default_nested_functions());
        let scalars = by_name(scalars, |f| (f.name(), f.aliases()));
        let higher = datafusion_functions_nested::all_default_higher_order_functions();
        let higher = by_name(higher, |f| (f.name(), f.aliases()));
        let aggregates = datafusion_functions_aggregate::all_default_aggregate_functions();
        let aggregates = by_name(aggregates, |f| (f.name(), f.aliases()));
        let windows = datafusion_functions_window::all_default_window_functions();
        let windows = by_name(windows, |f| (f.name(), f.aliases()));
        let mut props = ExecutionProps::new();
        props.config_options = Some(config.options().clone());
        Ok(Setup {
            scalars,
            higher,
            aggregates,
            windows,
            planners: vec![
                Arc::new(datafusion_functions::core::planner::CoreFunctionPlanner::default()),
                Arc::new(datafusion_functions_nested::planner::NestedFunctionPlanner),
                Arc::new(datafusion_functions_nested::planner::FieldAccessPlanner),
                Arc::new(datafusion_functions::datetime::planner::DatetimeFunctionPlanner),
                Arc::new(datafusion_functions::unicode::planner::UnicodeFunctionPlanner),
                Arc::new(datafusion_functions_aggregate::planner::AggregateFunctionPlanner),
                Arc::new(datafusion_functions_window::planner::WindowFunctionPlanner),
            ],
            analyzer: Analyzer::new(),
            optimizer: Optimizer::new(),
            physical: PhysicalOptimizer::new(),
            props,
            runtime,
            types: Arc::new(MemoryExtensionTypeRegistry::default()),
            formats: TableOptions::default(),
            config,
        })
    }

    /// What a query is run with: its own share of the memory. The functions are in the plan by then.
    pub fn task(&self, share: Share, batch_rows: usize) -> Arc<TaskContext> {
        let runtime =
            RuntimeEnv { memory_pool: Arc::new(share), ..RuntimeEnv::clone(&self.runtime) };
        Arc::new(TaskContext::new(
            None,
            String::new(),
            self.config.clone().with_batch_size(batch_rows),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            Arc::new(runtime),
        ))
    }

    pub fn planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    pub fn analyze(&self, plan: LogicalPlan) -> Df<LogicalPlan> {
        self.analyzer.execute_and_check(plan, self.config_options(), |_, _| {})
    }

    pub fn optimize_whole(&self, plan: LogicalPlan) -> Df<LogicalPlan> {
        self.optimizer.optimize(plan, self, |_, _| {})
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Setup")
    }
}

/// Each by its name and its other names.
fn by_name<F>(
    functions: Vec<Arc<F>>,
    names: impl Fn(&F) -> (&str, &[String]),
) -> HashMap<String, Arc<F>> {
    let mut named = HashMap::new();
    for function in functions {
        let (name, aliases) = names(&function);
        for alias in aliases {
            named.insert(alias.clone(), function.clone());
        }
        named.insert(name.to_owned(), function.clone());
    }
    named
}

impl OptimizerConfig for Setup {
    /// The rewriting puts the transaction's own time in: no rule may.
    fn query_execution_start_time(&self) -> Option<DateTime<Utc>> {
        None
    }

    fn alias_generator(&self) -> &Arc<AliasGenerator> {
        &self.props.alias_generator
    }

    fn options(&self) -> Arc<ConfigOptions> {
        self.config.options().clone()
    }

    fn function_registry(&self) -> Option<&dyn FunctionRegistry> {
        Some(self)
    }
}

impl FunctionRegistry for Setup {
    fn udfs(&self) -> HashSet<String> {
        self.scalars.keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> HashSet<String> {
        self.higher.keys().cloned().collect()
    }

    fn udafs(&self) -> HashSet<String> {
        self.aggregates.keys().cloned().collect()
    }

    fn udwfs(&self) -> HashSet<String> {
        self.windows.keys().cloned().collect()
    }

    fn udf(&self, name: &str) -> Df<Arc<ScalarUDF>> {
        known(self.scalars.get(name), name)
    }

    fn higher_order_function(&self, name: &str) -> Df<Arc<HigherOrderUDF>> {
        known(self.higher.get(name), name)
    }

    fn udaf(&self, name: &str) -> Df<Arc<AggregateUDF>> {
        known(self.aggregates.get(name), name)
    }

    fn udwf(&self, name: &str) -> Df<Arc<WindowUDF>> {
        known(self.windows.get(name), name)
    }

    fn expr_planners(&self) -> Vec<Arc<dyn ExprPlanner>> {
        self.planners.clone()
    }
}

fn known<F>(found: Option<&Arc<F>>, name: &str) -> Df<Arc<F>> {
    found.cloned().ok_or_else(|| DataFusionError::Plan(format!("Invalid function '{name}'")))
}

#[async_trait::async_trait]
impl Session for Setup {
    fn session_id(&self) -> &str {
        ""
    }

    fn config(&self) -> &SessionConfig {
        &self.config
    }

    fn catalog_list(&self) -> Arc<dyn CatalogProviderList> {
        Arc::new(EmptyCatalogProviderList)
    }

    fn physical_optimizers(&self) -> &[Arc<dyn PhysicalOptimizerRule + Send + Sync>] {
        &self.physical.rules
    }

    async fn create_physical_plan(&self, plan: &LogicalPlan) -> Df<Arc<dyn ExecutionPlan>> {
        physical::plan(plan, self, Joins::Hashed, BATCH_ROWS).await
    }

    fn create_physical_expr(&self, expr: Expr, schema: &DFSchema) -> Df<Arc<dyn PhysicalExpr>> {
        create_physical_expr(&expr, schema, &self.props, &PhysicalPlanningContext::default())
    }

    fn scalar_functions(&self) -> &HashMap<String, Arc<ScalarUDF>> {
        &self.scalars
    }

    fn higher_order_functions(&self) -> &HashMap<String, Arc<HigherOrderUDF>> {
        &self.higher
    }

    fn aggregate_functions(&self) -> &HashMap<String, Arc<AggregateUDF>> {
        &self.aggregates
    }

    fn window_functions(&self) -> &HashMap<String, Arc<WindowUDF>> {
        &self.windows
    }

    fn extension_type_registry(&self) -> &ExtensionTypeRegistryRef {
        &self.types
    }

    fn runtime_env(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    fn execution_props(&self) -> &ExecutionProps {
        &self.props
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_options(&self) -> &TableOptions {
        &self.formats
    }

    fn table_options_mut(&mut self) -> &mut TableOptions {
        &mut self.formats
    }

    fn task_ctx(&self) -> Arc<TaskContext> {
        self.task(Share::new(&Budget::new(0), 0), BATCH_ROWS)
    }
}
