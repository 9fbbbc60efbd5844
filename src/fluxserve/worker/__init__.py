"""A worker: keeps its engine full, checks and encodes what comes out, and hands it to the server.

It speaks one small protocol (`protocol`) over a socket and knows no database.
What it does not know: accounts, prices, dialects, where pictures are kept.
"""
