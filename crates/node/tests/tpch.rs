//! TPC-H at scale factor 0.1, generated, loaded with COPY: all 22 queries answer row for row as
//! PostgreSQL 15 answers them.
// The test stands outside of what is simulated.
#![allow(clippy::disallowed_methods)]

mod support;

use anyhow::Result;
use futures::SinkExt;
use std::fmt::Display;
use std::time::{Duration, Instant};
use support::{Cluster, connect};
use tokio_postgres::{Client, SimpleQueryMessage};
use tpchgen::csv::{
    CustomerCsv, LineItemCsv, NationCsv, OrderCsv, PartCsv, PartSuppCsv, RegionCsv, SupplierCsv,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};
use xtask::postgres::Postgres;

const SCALE: f64 = 0.1;
const SCHEMA: &str = include_str!("tpch/schema.sql");
const QUERIES: &str = include_str!("tpch/queries.sql");
const CHUNK_BYTES: usize = 1 << 20;

async fn copy(sql: &Client, table: &str, lines: impl Iterator<Item = impl Display>) -> Result<u64> {
    let sink = sql.copy_in(&format!("COPY {table} FROM STDIN (FORMAT csv)")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut chunk = String::new();
    for line in lines {
        chunk.push_str(&line.to_string());
        chunk.push('\n');
        if chunk.len() > CHUNK_BYTES {
            sink.send(bytes::Bytes::from(std::mem::take(&mut chunk))).await?;
        }
    }
    sink.send(bytes::Bytes::from(chunk)).await?;
    Ok(sink.finish().await?)
}

async fn load(sql: &Client) -> Result<u64> {
    sql.batch_execute(SCHEMA).await?;
    let mut n = 0;
    n += copy(sql, "region", RegionGenerator::new(SCALE, 1, 1).iter().map(RegionCsv::new)).await?;
    n += copy(sql, "nation", NationGenerator::new(SCALE, 1, 1).iter().map(NationCsv::new)).await?;
    n += copy(sql, "part", PartGenerator::new(SCALE, 1, 1).iter().map(PartCsv::new)).await?;
    n += copy(sql, "supplier", SupplierGenerator::new(SCALE, 1, 1).iter().map(SupplierCsv::new))
        .await?;
    n += copy(sql, "partsupp", PartSuppGenerator::new(SCALE, 1, 1).iter().map(PartSuppCsv::new))
        .await?;
    n += copy(sql, "customer", CustomerGenerator::new(SCALE, 1, 1).iter().map(CustomerCsv::new))
        .await?;
    n += copy(sql, "orders", OrderGenerator::new(SCALE, 1, 1).iter().map(OrderCsv::new)).await?;
    n += copy(sql, "lineitem", LineItemGenerator::new(SCALE, 1, 1).iter().map(LineItemCsv::new))
        .await?;
    Ok(n)
}

async fn answer(sql: &Client, query: &str) -> Result<Vec<Vec<Option<String>>>> {
    let mut rows = Vec::new();
    for message in sql.simple_query(query).await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect());
        }
    }
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_queries_answer_as_postgresql_does() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres"), 26_432).unwrap();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(postgres.port).user("atoll").dbname("atoll");
    let theirs = connect(&config).await.unwrap();
    let cluster = Cluster::start(3).await;
    let ours = cluster.connect(2).await;
    load(&theirs).await.unwrap();
    theirs.batch_execute("ANALYZE").await.unwrap();
    let begun = Instant::now();
    let n_rows = load(&ours).await.unwrap();
    println!("{n_rows} rows loaded in {:.1?}", begun.elapsed());
    let mut wrong = Vec::new();
    let mut spent = (Duration::ZERO, Duration::ZERO);
    for (n, query) in
        QUERIES.split(';').map(str::trim).filter(|query| !query.is_empty()).enumerate()
    {
        let begun = Instant::now();
        let expected = answer(&theirs, query).await.unwrap();
        spent.0 += begun.elapsed();
        let begun = Instant::now();
        match answer(&ours, query).await {
            Ok(rows) if rows == expected => {}
            Ok(rows) => {
                let differs = rows.iter().zip(&expected).find(|(a, b)| a != b);
                wrong.push(format!(
                    "query {}: {} rows, expected {}; {differs:?}",
                    n + 1,
                    rows.len(),
                    expected.len()
                ));
            }
            Err(error) => wrong.push(format!("query {}: {error:?}", n + 1)),
        }
        spent.1 += begun.elapsed();
    }
    println!("22 queries: PostgreSQL {:.1?}, Atoll {:.1?}", spent.0, spent.1);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
