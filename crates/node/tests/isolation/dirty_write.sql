-- Dirty write (G0): two transactions write the same two rows; the writes must not interleave.
-- The rows live in two tablets.
1: begin
2: begin
1: UPDATE test SET value = 11 WHERE id = 1
2: UPDATE test SET value = 12 WHERE id = 1
1: UPDATE test SET value = 21 WHERE id = 2
1: commit
2: UPDATE test SET value = 22 WHERE id = 2
2: commit
3: SELECT id, value FROM test ORDER BY id
