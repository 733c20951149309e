"""Numerical algebra on arrays: test matrices (noise) and small dense linear algebra.

Its functions know no file and no run.
"""
