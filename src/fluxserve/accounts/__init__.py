"""Who may ask and what they pay: API keys, credits, limits.

Pure values and functions; `store` writes them down.
What it does not know: SQL, HTTP, tasks, pictures.
"""
