"""What was asked, what it is frozen to, and all that follows from it alone.

Sizes, bytes, tasks, looks.
"""
