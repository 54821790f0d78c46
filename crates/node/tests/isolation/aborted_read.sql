-- Aborted read (G1a): what is rolled back was never there.
1: begin
2: begin
1: UPDATE test SET value = 101 WHERE id = 1
2: SELECT id, value FROM test WHERE id = 1
1: rollback
2: SELECT id, value FROM test WHERE id = 1
2: commit
