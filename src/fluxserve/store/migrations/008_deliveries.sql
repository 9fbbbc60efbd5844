-- Webhooks: what is to be told of an ended task whose request named an address. Written with the task's end.
CREATE TABLE deliveries (
    seq        INTEGER PRIMARY KEY,
    task_id    TEXT NOT NULL UNIQUE,
    account_id TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts   INTEGER NOT NULL DEFAULT 0,               -- since the end of the task, or since the last replay
    created_at REAL NOT NULL,
    due_at     REAL,                                     -- when the next attempt is due
    tried_at   REAL,                                     -- the last attempt, what was answered to it, what went wrong
    status     INTEGER,
    problem    TEXT,
    ended_at   REAL,
    CHECK ((state = 'waiting') = (due_at IS NOT NULL) AND (state = 'waiting') = (ended_at IS NULL))
) STRICT;
CREATE INDEX deliveries_waiting ON deliveries (due_at) WHERE state = 'waiting';
CREATE INDEX deliveries_of_account ON deliveries (account_id, state);
-- No webhook was ever sent of these.
INSERT INTO deliveries (task_id, account_id, state, created_at, problem, ended_at)
    SELECT id, account_id, 'dead', finished_at, 'too_old', finished_at FROM tasks
    WHERE webhook_url IS NOT NULL AND finished_at IS NOT NULL;
-- Secrets are sealed from now on (delivery/sealing); none of these was ever used.
UPDATE tasks SET webhook_secret = NULL;
