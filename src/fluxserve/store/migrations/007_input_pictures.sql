-- The input pictures of an unfinished task; their files lie in the storage of inputs.
CREATE TABLE inputs (
    task_id     TEXT NOT NULL,
    name        TEXT NOT NULL,                           -- the field it came in
    object_name TEXT NOT NULL UNIQUE,
    size        INTEGER NOT NULL CHECK (size >= 0),      -- bytes of the file
    PRIMARY KEY (task_id, name)
) STRICT, WITHOUT ROWID;
