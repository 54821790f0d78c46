//! TPC-H's 22 queries at scale factor 0.01, row for row as PostgreSQL 15 answers them.
//!
//! `tests/tpch/expected.txt` was recorded from PostgreSQL 15 (`psql -At`) over the same data.

use sql::session::{Outcome, Session};
use sql::types::text;
use sql::views::{AtollView, Source};
use sql::{Auth, Datum, Engine};
use std::fmt::Display;
use std::sync::Arc;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

const SCALE_FACTOR: f64 = 0.01;

struct Alone;

#[async_trait::async_trait]
impl Source for Alone {
    async fn rows(&self, _: AtollView) -> Vec<Vec<Datum>> {
        Vec::new()
    }
}

async fn run(session: &mut Session, sql: &str) -> Vec<String> {
    let prepared = session.prepare(sql, &[]).await.expect(sql);
    let zone = session.zone();
    let mut lines = Vec::new();
    if let Outcome::Rows { columns, mut rows, .. } =
        session.execute(&prepared, Vec::new()).await.expect(sql)
    {
        use futures::StreamExt;
        while let Some(batch) = rows.next().await {
            for row in batch.expect(sql) {
                let shown = row.iter().zip(columns.iter()).map(|(datum, column)| match datum {
                    Datum::Null => String::new(),
                    datum => text::to_string(datum, &column.ty, &zone),
                });
                lines.push(shown.collect::<Vec<_>>().join("|"));
            }
        }
    }
    session.finish(false).await.expect(sql);
    lines
}

async fn load(session: &mut Session, table: &str, rows: impl Iterator<Item = impl Display>) {
    let sql = format!("COPY {table} FROM STDIN WITH (DELIMITER '|')");
    let prepared = session.prepare(&sql, &[]).await.expect(table);
    let outcome = session.execute(&prepared, Vec::new()).await.expect(table);
    let Outcome::CopyIn(mut copy) = outcome else { panic!("{table}: not a COPY") };
    for row in rows {
        let row = row.to_string();
        let row = format!("{}\n", row.strip_suffix('|').unwrap_or(&row));
        copy.data(row.as_bytes()).await.expect(table);
    }
    session.copy_end(copy).await.expect(table);
    session.finish(false).await.expect(table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queries_answer_as_postgresql_does() {
    let dir = tempfile::tempdir().unwrap();
    let solo = txn::testing::solo(dir.path()).await.unwrap();
    let engine = Engine::new(solo.env.clone(), solo.client.clone(), Arc::new(Alone), Auth::Trust);
    engine.bootstrap().await.unwrap();
    let mut session = engine.session("atoll".into(), "atoll".into());
    for statement in include_str!("tpch/schema.sql").split(';') {
        if !statement.trim().is_empty() {
            run(&mut session, statement).await;
        }
    }
    let sf = SCALE_FACTOR;
    load(&mut session, "region", RegionGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "nation", NationGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "part", PartGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "supplier", SupplierGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "partsupp", PartSuppGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "customer", CustomerGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "orders", OrderGenerator::new(sf, 1, 1).iter()).await;
    load(&mut session, "lineitem", LineItemGenerator::new(sf, 1, 1).iter()).await;

    let mut expected = include_str!("tpch/expected.txt").lines();
    for query in include_str!("tpch/queries.sql").split(";\n") {
        let Some((number, query)) = query.trim().split_once('\n') else { continue };
        for line in run(&mut session, query).await {
            assert_eq!(Some(line.as_str()), expected.next(), "query {number}");
        }
    }
    assert_eq!(expected.next(), None);
    drop(session);
}
