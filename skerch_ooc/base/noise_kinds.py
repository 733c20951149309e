"""What kinds of noise there are, and which need whole columns or complex entries."""

from __future__ import annotations

ROLE_NUMBERS = {"right": 1, "left": 2, "inner-left": 3, "inner-right": 4, "test": 5, "probe": 6}

WHOLE_COLUMNS = ("ssrft",)
"""Test matrices that have no slices of rows."""

COMPLEX_ONLY = ("phase",)
"""Test matrices that have no real entries."""

SPARSE = {"sparse-sign": 16, "sparse-sign-64": 64, "sparse-sign-256": 256}
"""Test matrices with one entry in so many columns of a row."""

SIGN_SCALE = {"rademacher": 1, "sparse-sign": 4, "sparse-sign-64": 8, "sparse-sign-256": 16}
"""Test matrices whose entries are zero or plus or minus this; they have int8 entries, too."""

LARGEST_HEIGHT = 2**31
"""Up to here, the product of a frequency and an odd place is exact in 64 bits."""
