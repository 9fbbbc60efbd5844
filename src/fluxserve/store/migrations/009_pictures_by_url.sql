-- Tasks whose pictures are still to be fetched: what their requests said. Gone once they are there.
CREATE TABLE preparations (
    task_id TEXT PRIMARY KEY,
    request TEXT NOT NULL                                -- JSON: fields, URLs
) STRICT;

-- What was reserved for such a task at most is lowered to its price: another kind of move, and all else as it was.
CREATE TABLE ledger_anew (
    seq        INTEGER PRIMARY KEY,
    account_id TEXT NOT NULL,
    task_id    TEXT,
    kind       TEXT NOT NULL CHECK (kind IN ('grant', 'reserve', 'lower', 'settle', 'refund')),
    amount     INTEGER NOT NULL,                         -- thousandths of a credit, as the balance moves
    at         REAL NOT NULL
) STRICT;
INSERT INTO ledger_anew SELECT seq, account_id, task_id, kind, amount, at FROM ledger;
DROP TABLE ledger;
ALTER TABLE ledger_anew RENAME TO ledger;
CREATE UNIQUE INDEX ledger_once ON ledger (task_id, kind) WHERE task_id IS NOT NULL;
CREATE INDEX ledger_account ON ledger (account_id);
