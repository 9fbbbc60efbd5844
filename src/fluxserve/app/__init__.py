"""The one place where parts are wired together: a server, and commands that need none.

Everything that runs is started in `server`, in order, and stopped in the opposite order.
What it does not know: how any part works.
"""
