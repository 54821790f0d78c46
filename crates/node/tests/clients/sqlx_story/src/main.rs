//! sqlx: connect, prepare, arrays of parameters, transactions, COPY, errors.

use sqlx::Row;

#[tokio::main]
async fn main() -> Result<(), sqlx::Error> {
    let port = std::env::args().nth(1).expect("usage: sqlx_story PORT");
    let url = format!("postgres://atoll@127.0.0.1:{port}/atoll");
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(4).connect(&url).await?;
    sqlx::query("CREATE TABLE rs_items (id bigint PRIMARY KEY, name text NOT NULL)").execute(&pool).await?;
    let ids: Vec<i64> = (1..=20).collect();
    let names: Vec<String> = ids.iter().map(|id| format!("n{id}")).collect();
    let inserted = sqlx::query("INSERT INTO rs_items SELECT * FROM unnest($1::bigint[], $2::text[])")
        .bind(&ids)
        .bind(&names)
        .execute(&pool)
        .await?;
    assert_eq!(inserted.rows_affected(), 20);
    let mut txn = pool.begin().await?;
    let update = "UPDATE rs_items SET name = $1 WHERE id = $2";
    sqlx::query(update).bind("changed").bind(3i64).execute(&mut *txn).await?;
    txn.rollback().await?;
    let select = "SELECT name FROM rs_items WHERE id = ANY($1) ORDER BY id";
    let rows = sqlx::query(select).bind(vec![3i64, 7]).fetch_all(&pool).await?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(found, ["n3", "n7"]);
    let twice = sqlx::query("INSERT INTO rs_items VALUES (3, 'twice')").execute(&pool).await;
    assert!(twice.unwrap_err().as_database_error().unwrap().is_unique_violation());
    let mut connection = pool.acquire().await?;
    let mut copy = connection.copy_in_raw("COPY rs_items FROM STDIN").await?;
    copy.send("100\ta\n101\tb\n".as_bytes()).await?;
    assert_eq!(copy.finish().await?, 2);
    println!("sqlx ok");
    Ok(())
}
