"""The distributions of test matrices (noise) and their limits: whole columns, complex, sparse.

They are constants alone, so that planning can check a spec without the code that draws.
"""

from __future__ import annotations

ROLE_NUMBERS = {
    "right": 1,
    "left": 2,
    "inner-left": 3,
    "inner-right": 4,
    "test": 5,
    "probe": 6,
    "test-left": 7,
}
"""The number of each test matrix in the Philox key; part of noise version 1, so never changed."""

WHOLE_COLUMNS = ("ssrft",)
"""Distributions that can only be drawn as whole columns, not as a range of rows."""

COMPLEX_ONLY = ("phase",)
"""Distributions that have complex entries only."""

SPARSE = {"sparse-sign": 16, "sparse-sign-64": 64, "sparse-sign-256": 256}
"""Sparse distributions; each row has one nonzero entry in every group of so many columns."""

SIGN_SCALE = {"rademacher": 1, "sparse-sign": 4, "sparse-sign-64": 8, "sparse-sign-256": 16}
"""Distributions whose entries are zero or plus or minus this number; they fit into int8."""

LARGEST_HEIGHT = 2**31
"""Most rows of a ``ssrft`` matrix: up to here a frequency times an odd place fits in 64 bits."""

FEW_COLUMNS = 32
"""A square matrix of so many random signs, or fewer, may well be singular."""
