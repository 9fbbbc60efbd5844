-- Equal requests of an account share one drawing: those that come while it is made follow it, later ones find it.
ALTER TABLE tasks ADD COLUMN recipe BLOB;                -- HMAC of account and generation; NULL: it shares nothing
ALTER TABLE tasks ADD COLUMN repeatable INTEGER NOT NULL DEFAULT 0;  -- 1: its seed was asked for
CREATE UNIQUE INDEX tasks_leading ON tasks (recipe) WHERE repeatable = 1 AND state IN ('queued', 'running');
CREATE INDEX tasks_following ON tasks (recipe) WHERE state = 'following';
DROP INDEX tasks_active_of_key;
CREATE INDEX tasks_active_of_key ON tasks (key_id) WHERE state IN ('preparing', 'queued', 'following', 'running');

CREATE TABLE result_cache (
    recipe      BLOB PRIMARY KEY,
    fingerprint TEXT NOT NULL,                           -- of what drew it
    object_name TEXT NOT NULL UNIQUE,                    -- ready tasks hold it, and their result is the answer
    size        INTEGER NOT NULL CHECK (size >= 0),      -- bytes of the picture
    used_at     REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX result_cache_used ON result_cache (used_at);

CREATE TABLE result_cache_size (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    bytes    INTEGER NOT NULL CHECK (bytes >= 0)         -- of all pictures in result_cache
) STRICT;
INSERT INTO result_cache_size VALUES (1, 0);
