-- Explicit row locks: NOWAIT, SKIP LOCKED, shared and exclusive.
1: begin
2: begin
1: SELECT id, value FROM test WHERE id = 1 FOR UPDATE
2: SELECT id, value FROM test WHERE id = 1 FOR UPDATE SKIP LOCKED
2: SELECT id, value FROM test ORDER BY id FOR UPDATE SKIP LOCKED
2: SELECT id, value FROM test WHERE id = 1 FOR SHARE NOWAIT
2: rollback
1: UPDATE test SET value = 11 WHERE id = 1
1: commit
3: SELECT id, value FROM test ORDER BY id
