"""Delivery: where pictures lie and how they are reached.

Storage keeps bytes under names made here, links are signed with a purpose and expire, the server's secrets live in
one file. What it does not know: HTTP, tasks, accounts and how a picture was drawn.
"""
