-- Deadlock of two, across two tablets: the younger is the victim.
1: begin
2: begin
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 22 WHERE id = 2
1: UPDATE test SET value = 12 WHERE id = 2
2: UPDATE test SET value = 21 WHERE id = 1
2: rollback
1: commit
3: SELECT id, value FROM test ORDER BY id
