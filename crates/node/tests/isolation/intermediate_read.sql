-- Intermediate read (G1b): only the last value that a transaction writes is seen by others.
1: begin
2: begin
1: UPDATE test SET value = 101 WHERE id = 1
2: SELECT id, value FROM test WHERE id = 1
1: UPDATE test SET value = 11 WHERE id = 1
1: commit
2: SELECT id, value FROM test WHERE id = 1
2: commit
