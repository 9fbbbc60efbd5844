"""Who keeps workers alive: local processes, or nobody (`fluxserve worker` started by other means).

What it does not know: tasks, leases, the database.
"""
