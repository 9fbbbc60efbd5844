"""Moderation: what a text asks for, as a score from 0 to 1 for each category, and which scores are refused.

Pure: words and rules are data files, read once; a text becomes words in linear time, and nothing is asked of a network.
What it does not know: tasks, accounts, who asks, and what becomes of what is refused.
"""
