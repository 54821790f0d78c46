-- Predicate-many-preceders for writes: a deletion by predicate meets a concurrent update.
1: begin
2: begin
1: UPDATE test SET value = value + 10
2: DELETE FROM test WHERE value = 20
1: commit
2: SELECT id, value FROM test ORDER BY id
2: commit
3: SELECT id, value FROM test ORDER BY id
