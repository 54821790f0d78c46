//! The schema `atoll`: the cluster's state as tables. The CLI and the dashboard read these.

use super::{AtollView, Definition, Rows};
use crate::engine::Engine;
use crate::types::{Datum, Row};

const fn node(name: &'static str, view: AtollView) -> Definition {
    Definition { schema: "atoll", name, columns: columns(view), rows: Rows::Node(view) }
}

/// Times are wall clocks' and for people; durations and sizes have their unit last.
pub const fn columns(view: AtollView) -> &'static str {
    match view {
        AtollView::Nodes => {
            "id:int8 zone:text address:text sql_address:text state:text worker_state:text boot:int8 \
             since:timestamptz name:text"
        }
        AtollView::Tablets => {
            "id:int8 start_key:text end_key:text leader:int8 replicas:text zones:text \
             size_bytes:int8 applied_index:int8 closed_scn:int8 term:int8 members:text"
        }
        AtollView::Transactions => {
            "id:int8 state:text scn:int8 node:int8 isolation:text started:timestamptz"
        }
        AtollView::Locks => {
            "tablet:int8 key:text mode:text txn:int8 granted:bool waiting_since_ms:int8 \
             blocked_by:int8"
        }
        AtollView::RollbackSegments => {
            "node:int8 id:int8 age_s:int8 bytes:int8 lowest_scn:int8 highest_scn:int8 held_by:text"
        }
        AtollView::Settings => "name:text value:text unit:text description:text",
        AtollView::Access => {
            "position:int8 address:text database:text role:text tls:text method:text"
        }
    }
}

pub static VIEWS: &[Definition] = &[
    node("nodes", AtollView::Nodes),
    node("tablets", AtollView::Tablets),
    node("transactions", AtollView::Transactions),
    node("locks", AtollView::Locks),
    node("rollback_segments", AtollView::RollbackSegments),
    node("settings", AtollView::Settings),
    node("access", AtollView::Access),
    Definition {
        schema: "atoll",
        name: "statements",
        columns: "query:text count:int8 mean_us:float8 p99_us:int8",
        rows: Rows::Statements,
    },
];

/// What this node's engine has run.
pub fn statements(engine: &Engine) -> Vec<Row> {
    let row = |stat: crate::engine::StatementStat| {
        let number = |value: u64| Datum::Int8(i64::try_from(value).unwrap_or(i64::MAX));
        vec![
            Datum::text(&stat.query),
            number(stat.count),
            Datum::Float8(stat.mean_us),
            number(stat.p99_us),
        ]
    };
    engine.statements().into_iter().map(row).collect()
}
