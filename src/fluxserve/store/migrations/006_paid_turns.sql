-- Whose flow a task's place lies on: that key gets back what is not drawn. A follower has a place of its own only once
-- it is promoted.
ALTER TABLE tasks ADD COLUMN payer TEXT;                 -- a key's id; NULL: nobody
UPDATE tasks SET payer = key_id WHERE state IN ('queued', 'running');
CREATE INDEX tasks_of_payer ON tasks (payer) WHERE state IN ('queued', 'running');
