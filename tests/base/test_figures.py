"""How measured numbers are written for people."""

from __future__ import annotations

import math

import pytest

from skerch_ooc.base.figures import short


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(0.58, 2, "0.58"), (0.001, 2, "0.0010"), (0.00099, 2, "9.9e-04"), (123.4, 2, "120"),
     (999.6, 3, "1.00e+03"), (2081.93, 5, "2081.9"), (-0.25, 2, "-0.25"), (0, 2, "0"),
     (math.inf, 2, "inf"), (math.nan, 2, "nan"), (0.5 - 2e-5j, 3, "0.500-2.00e-05j")],
)  # fmt: skip
def test_numbers_near_one_are_decimals(number, digits, text):
    assert short(number, digits) == text
