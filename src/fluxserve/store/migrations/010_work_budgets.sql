-- How much predicted work a key's unfinished tasks may be together, in TFLOP.
ALTER TABLE api_keys ADD COLUMN max_work REAL CHECK (max_work > 0);
