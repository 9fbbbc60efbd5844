-- Turns count predicted work (TFLOP) and no longer tasks. What waits already keeps its turn, and comes first.
ALTER TABLE api_keys ADD COLUMN weight REAL NOT NULL DEFAULT 1 CHECK (weight > 0);  -- share of the drawing
ALTER TABLE api_keys ADD COLUMN ends TEXT;               -- fair turns: where the key's flows end, JSON; NULL: at the clock
ALTER TABLE api_keys DROP COLUMN last_turn;
ALTER TABLE tasks ADD COLUMN start REAL NOT NULL DEFAULT 0;  -- fair turns: where the task begins; its turn is its end
ALTER TABLE tasks ADD COLUMN work REAL NOT NULL DEFAULT 1 CHECK (work > 0);  -- predicted TFLOP
UPDATE tasks SET start = turn;
