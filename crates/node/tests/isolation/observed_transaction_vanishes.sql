-- Observed transaction vanishes (OTV): what was seen of a transaction must not go away again.
1: begin
2: begin
3: begin
1: UPDATE test SET value = 11 WHERE id = 1
1: UPDATE test SET value = 19 WHERE id = 2
2: UPDATE test SET value = 12 WHERE id = 1
1: commit
3: SELECT id, value FROM test WHERE id = 1
2: UPDATE test SET value = 18 WHERE id = 2
3: SELECT id, value FROM test WHERE id = 2
2: commit
3: SELECT id, value FROM test WHERE id = 2
3: SELECT id, value FROM test WHERE id = 1
3: commit
