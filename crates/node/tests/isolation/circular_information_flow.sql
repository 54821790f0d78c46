-- Circular information flow (G1c): each would have to come before the other.
1: begin
2: begin
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 22 WHERE id = 2
1: SELECT id, value FROM test WHERE id = 2
2: SELECT id, value FROM test WHERE id = 1
1: commit
2: commit
3: SELECT id, value FROM test ORDER BY id
