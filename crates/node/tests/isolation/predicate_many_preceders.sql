-- Predicate-many-preceders (PMP): a predicate is read twice while another transaction adds to it.
1: begin
2: begin
1: SELECT id, value FROM test WHERE value = 30
2: INSERT INTO test VALUES (3, 30)
2: commit
1: SELECT id, value FROM test WHERE value % 3 = 0
1: commit
