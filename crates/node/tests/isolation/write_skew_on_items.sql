-- Write skew on items (G2-item): each reads both rows and writes the one the other did not.
1: begin
2: begin
1: SELECT id, value FROM test WHERE id IN (1, 2) ORDER BY id
2: SELECT id, value FROM test WHERE id IN (1, 2) ORDER BY id
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 21 WHERE id = 2
1: commit
2: commit
3: SELECT id, value FROM test ORDER BY id
