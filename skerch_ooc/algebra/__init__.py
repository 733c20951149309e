"""Arrays in, arrays out: test matrices, small dense problems, recovery methods.

No file, no run.
"""
