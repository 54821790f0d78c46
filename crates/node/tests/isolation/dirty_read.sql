-- Dirty read: nothing uncommitted is seen, by scans either.
1: begin
2: begin
1: INSERT INTO test VALUES (3, 30)
1: DELETE FROM test WHERE id = 2
2: SELECT id, value FROM test ORDER BY id
1: commit
2: SELECT id, value FROM test ORDER BY id
2: commit
