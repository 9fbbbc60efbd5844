"""How mini was made: pictures, captions, training, export, evaluation; each one command, each resumable.

What it does not know: the server. Nothing here is in the wheel.
"""
