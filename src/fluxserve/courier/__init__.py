"""The one process that calls addresses which callers chose: it runs the server's errands and reports.

It takes them over the worker protocol and calls by `delivery.outbound` alone. It holds no key, no secret and no file.
What it does not know: tasks, accounts, what an errand is for.
"""
