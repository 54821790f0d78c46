-- Deadlock of three, across three tablets: the youngest is the victim.
0: INSERT INTO test VALUES (3, 30)
1: begin
2: begin
3: begin
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 22 WHERE id = 2
3: UPDATE test SET value = 33 WHERE id = 3
1: UPDATE test SET value = 12 WHERE id = 2
2: UPDATE test SET value = 23 WHERE id = 3
3: UPDATE test SET value = 31 WHERE id = 1
3: rollback
2: commit
1: commit
0: SELECT id, value FROM test ORDER BY id
