"""What a task is: its states, what may happen to it, and when a lost worker counts against it.

Everything here is a pure value or function; `store` writes them down, `service` decides when.
What it does not know: SQL, HTTP, accounts, how a picture is drawn.
"""
