-- Write skew on predicates (G2): each finds nothing and adds what the other looked for.
1: begin
2: begin
1: SELECT id, value FROM test WHERE value % 3 = 0
2: SELECT id, value FROM test WHERE value % 3 = 0
1: INSERT INTO test VALUES (3, 30)
2: INSERT INTO test VALUES (4, 42)
1: commit
2: commit
3: SELECT id, value FROM test WHERE value % 3 = 0 ORDER BY id
