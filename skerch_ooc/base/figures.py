"""Writes measured numbers for people in plain characters."""

from __future__ import annotations

import math


def short(number: complex, digits: int = 2) -> str:
    """Writes a number to so many digits: ``0.58``, ``120`` and ``2.1e-05``."""
    if isinstance(number, complex):
        sign = "-" if math.copysign(1.0, number.imag) < 0 else "+"
        return f"{short(number.real, digits)}{sign}{short(abs(number.imag), digits)}j"
    rounded = f"{number:.{digits - 1}e}"
    _, _, power = rounded.partition("e")
    if number == 0 or not power or not -3 <= int(power) < max(3, digits):
        return "0" if number == 0 else rounded
    return f"{float(rounded):.{max(0, digits - 1 - int(power))}f}"
