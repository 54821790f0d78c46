"""psycopg 3: connect, prepare, arrays of parameters, transactions, COPY."""

import datetime
import decimal
import sys
import uuid

import psycopg

dsn = f"host=127.0.0.1 port={sys.argv[1]} user=atoll dbname=atoll"

with psycopg.connect(dsn, autocommit=True) as db:
    db.execute("DROP TABLE IF EXISTS py_items")
    db.execute(
        "CREATE TABLE py_items (id int PRIMARY KEY, name text, price numeric(10,2),"
        " born date, seen timestamptz, tag uuid, raw bytea, live boolean, weight double precision)"
    )
    tag = uuid.UUID("5b0a2d43-7a52-4a5e-9d0c-0d6a5c2f1e11")
    seen = datetime.datetime(2024, 2, 29, 12, 30, 15, 250000, tzinfo=datetime.timezone.utc)
    row = (1, "näme", decimal.Decimal("12.50"), datetime.date(2000, 1, 2), seen, tag, b"\x00\xff", True, 0.5)
    db.execute("INSERT INTO py_items VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", row)
    for binary in (False, True):
        got = db.cursor(binary=binary).execute("SELECT * FROM py_items", prepare=True).fetchone()
        assert got == row, got
    with db.cursor() as cursor:
        cursor.executemany("INSERT INTO py_items (id, name) VALUES (%s, %s)", [(n, f"n{n}") for n in range(2, 50)])
    found = db.execute("SELECT id FROM py_items WHERE id = ANY(%s) ORDER BY id", ([3, 5, 99],)).fetchall()
    assert found == [(3,), (5,)], found
    with db.transaction():
        db.execute("UPDATE py_items SET name = 'in' WHERE id = 2")
        try:
            with db.transaction():
                db.execute("UPDATE py_items SET name = 'out' WHERE id = 3")
                db.execute("INSERT INTO py_items (id) VALUES (2)")
        except psycopg.errors.UniqueViolation as error:
            assert error.diag.constraint_name == "py_items_pkey", error.diag.constraint_name
    assert db.execute("SELECT name FROM py_items WHERE id IN (2, 3) ORDER BY id").fetchall() == [("in",), ("n3",)]
    with db.cursor().copy("COPY py_items (id, name) FROM STDIN") as copy:
        for n in range(1000, 2000):
            copy.write_row((n, f"copied {n}"))
    with db.cursor().copy("COPY (SELECT id FROM py_items WHERE id >= 1000 ORDER BY id) TO STDOUT") as copy:
        assert [int(row[0]) for row in copy.rows()] == list(range(1000, 2000))
    with db.pipeline():
        cursors = [db.execute("SELECT %s::int + 1", (n,)) for n in range(10)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(1, 11))
    db.execute("DROP TABLE py_items")
print("psycopg", psycopg.__version__, "ok")
