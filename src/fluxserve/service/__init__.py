"""The product's verbs: submit, look, watch, cancel, list, claim, complete, fail, release. One transaction each.

It joins the catalogue, accounts, store and delivery, and keeps in memory what polls ask for.
What it does not know: HTTP, dialects, sockets, how a picture is drawn.
"""
