// node-postgres: connect, prepare, arrays of parameters, transactions, errors.
import assert from "node:assert";
import pg from "pg";

const client = new pg.Client({ host: "127.0.0.1", port: Number(process.argv[2]), user: "atoll", database: "atoll" });
await client.connect();
await client.query("DROP TABLE IF EXISTS js_items");
await client.query("CREATE TABLE js_items (id int PRIMARY KEY, name text, price numeric, live boolean, seen timestamptz)");
const seen = new Date("2024-02-29T12:30:15.250Z");
const inserted = await client.query(
  "INSERT INTO js_items VALUES ($1, $2, $3, $4, $5) RETURNING *",
  [1, "näme", "12.50", true, seen],
);
assert.deepStrictEqual({ ...inserted.rows[0] }, { id: 1, name: "näme", price: "12.50", live: true, seen });
for (let n = 2; n < 20; n++) {
  await client.query({ name: "insert", text: "INSERT INTO js_items (id, name) VALUES ($1, $2)", values: [n, `n${n}`] });
}
const found = await client.query("SELECT id FROM js_items WHERE id = ANY($1) ORDER BY id", [[3, 5, 99]]);
assert.deepStrictEqual(found.rows.map((row) => row.id), [3, 5]);
await client.query("BEGIN ISOLATION LEVEL SERIALIZABLE");
await client.query("UPDATE js_items SET name = $1 WHERE id = $2", ["changed", 2]);
await client.query("ROLLBACK");
const name = await client.query("SELECT name FROM js_items WHERE id = 2");
assert.strictEqual(name.rows[0].name, "n2");
await assert.rejects(client.query("INSERT INTO js_items (id) VALUES (2)"), { code: "23505", constraint: "js_items_pkey" });
await assert.rejects(client.query("SELECT nothing FROM js_items"), { code: "42703" });
const many = await Promise.all([1, 2, 3].map((n) => client.query("SELECT $1::int * 2 AS twice", [n])));
assert.deepStrictEqual(many.map((answer) => answer.rows[0].twice), [2, 4, 6]);
await client.query("DROP TABLE js_items");
await client.end();
console.log("node-postgres ok");
