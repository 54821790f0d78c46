-- Lost update (P4): both read, both write what they computed.
1: begin
2: begin
1: SELECT id, value FROM test WHERE id = 1
2: SELECT id, value FROM test WHERE id = 1
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 11 WHERE id = 1
1: commit
2: commit
3: SELECT id, value FROM test WHERE id = 1
