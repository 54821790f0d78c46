-- Read skew, then a write that depends on it.
1: begin
2: begin
1: SELECT id, value FROM test WHERE id = 1
2: UPDATE test SET value = 12 WHERE id = 1
2: UPDATE test SET value = 18 WHERE id = 2
2: commit
1: DELETE FROM test WHERE value = 20
1: commit
3: SELECT id, value FROM test ORDER BY id
