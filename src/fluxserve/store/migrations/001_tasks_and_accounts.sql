CREATE TABLE accounts (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    balance    INTEGER CHECK (balance >= 0),            -- thousandths of a credit; NULL: unlimited
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id              TEXT PRIMARY KEY,
    account_id      TEXT NOT NULL REFERENCES accounts (id),
    name            TEXT NOT NULL,
    digest          BLOB NOT NULL UNIQUE,                -- HMAC of the key; the pepper is outside the database
    max_active      INTEGER,                             -- NULL: no limit
    rate_per_minute INTEGER,                             -- NULL: no limit
    last_turn       REAL NOT NULL DEFAULT 0,             -- fair turns: the tag of the key's newest task
    created_at      REAL NOT NULL,
    revoked_at      REAL
) STRICT;

CREATE TABLE clock (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    turn     REAL NOT NULL                               -- fair turns: the tag of the head of the newest claim
) STRICT;
INSERT INTO clock VALUES (1, 0);

CREATE TABLE tasks (
    seq             INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    account_id      TEXT NOT NULL,
    key_id          TEXT NOT NULL,
    state           TEXT NOT NULL,
    model           TEXT NOT NULL,
    batch_key       TEXT NOT NULL,
    turn            REAL NOT NULL,
    generation      TEXT NOT NULL,                       -- JSON
    warnings        TEXT NOT NULL,                       -- JSON
    dialect         TEXT NOT NULL,
    origin          TEXT NOT NULL,
    webhook_url     TEXT,
    webhook_secret  TEXT,
    idempotency_key TEXT,
    request_hash    BLOB NOT NULL,
    cost            INTEGER NOT NULL CHECK (cost >= 0),  -- thousandths of a credit
    fence           INTEGER NOT NULL DEFAULT 0,
    spoiled         INTEGER NOT NULL DEFAULT 0,
    best_step       INTEGER NOT NULL DEFAULT 0,
    worker_id       TEXT,
    lease_until     REAL,
    created_at      REAL NOT NULL,
    started_at      REAL,
    finished_at     REAL,
    object_name     TEXT,
    result          TEXT,                                -- JSON, of a ready task
    error           TEXT                                 -- JSON, of a failed one
) STRICT;
CREATE UNIQUE INDEX tasks_idempotency ON tasks (account_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_queue ON tasks (turn, seq) WHERE state = 'queued';
CREATE INDEX tasks_batch ON tasks (batch_key, turn, seq) WHERE state = 'queued';
CREATE INDEX tasks_running ON tasks (worker_id) WHERE state = 'running';
CREATE INDEX tasks_active_of_key ON tasks (key_id) WHERE state IN ('preparing', 'queued', 'running');
CREATE INDEX tasks_object ON tasks (object_name) WHERE object_name IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE extras (                                    -- apart, so that a task's updates never rewrite a picture
    task_id TEXT PRIMARY KEY,
    fields  TEXT NOT NULL                                -- JSON: accepted fields that are not drawn from
) STRICT;

CREATE TABLE ledger (
    seq        INTEGER PRIMARY KEY,
    account_id TEXT NOT NULL,
    task_id    TEXT,
    kind       TEXT NOT NULL CHECK (kind IN ('grant', 'reserve', 'settle', 'refund')),
    amount     INTEGER NOT NULL,                         -- thousandths of a credit, as the balance moves
    at         REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX ledger_once ON ledger (task_id, kind) WHERE task_id IS NOT NULL;
CREATE INDEX ledger_account ON ledger (account_id);

CREATE TABLE outbox (
    task_id TEXT PRIMARY KEY,
    state   TEXT NOT NULL,
    at      REAL NOT NULL
) STRICT, WITHOUT ROWID;
