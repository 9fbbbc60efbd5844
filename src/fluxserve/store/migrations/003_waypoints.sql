-- Where the drawing of an unfinished task was last written down; its file lies in the storage of waypoints.
CREATE TABLE waypoints (
    task_id     TEXT PRIMARY KEY,
    object_name TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,                           -- of what drew it: others cannot go on from it
    step        INTEGER NOT NULL,
    steps       INTEGER NOT NULL,
    size        INTEGER NOT NULL CHECK (size >= 0),      -- bytes of the file
    waits_since REAL NOT NULL,                           -- when the task last began to wait for another worker
    CHECK (0 < step AND step < steps)
) STRICT, WITHOUT ROWID;
