-- An account's own tasks of one state in the order of their coming; the row number is part of every index.
CREATE INDEX tasks_of_account ON tasks (account_id, state);
