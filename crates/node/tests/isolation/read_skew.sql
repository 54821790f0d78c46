-- Read skew (G-single): two rows of one invariant are read before and after a change.
1: begin
2: begin
1: SELECT id, value FROM test WHERE id = 1
2: SELECT id, value FROM test WHERE id = 1
2: SELECT id, value FROM test WHERE id = 2
2: UPDATE test SET value = 12 WHERE id = 1
2: UPDATE test SET value = 18 WHERE id = 2
2: commit
1: SELECT id, value FROM test WHERE id = 2
1: commit
