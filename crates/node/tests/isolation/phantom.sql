-- Phantom: a range is counted twice while another transaction inserts into it.
1: begin
2: begin
1: SELECT count(*) FROM test WHERE id BETWEEN 1 AND 9
2: INSERT INTO test VALUES (5, 50)
2: commit
1: SELECT count(*) FROM test WHERE id BETWEEN 1 AND 9
1: commit
