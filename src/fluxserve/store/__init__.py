"""The only holder of SQL: tasks, ledger, keys, outbox. Batch-shaped values in, outcomes out.

A transaction spans these nouns (a task is accepted together with its reservation and its idempotency key), so
their SQL lives in one room instead of in each noun's own.
`base.Store` is the seam; `sqlite` is the embedded implementation; one shared test suite proves every one.
What it does not know: HTTP, workers' sockets, files of pictures, when to do what.
"""
