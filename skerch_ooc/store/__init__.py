"""Files of a run: what they are called, that they are complete, that they are unaltered.

Knows the plan; no operator, no linear algebra.
"""
