"""Writes numbers for people: few digits, true minus signs, legible powers of ten."""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN = "\u202f"


def whole(number: int) -> str:
    """Writes a whole number with its thousands apart."""
    return _signed(f"{number:,}" if abs(number) >= 10_000 else str(number))


def power(exponent: int) -> str:
    """Writes a power of ten; those near one are written out."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else _power(exponent)


def value(number: float, digits: int = 4) -> str:
    """Writes a measured number to so many digits."""
    if not math.isfinite(number):
        return "unknown"
    if number == 0:
        return "0"
    rounded = f"{number:.{digits - 1}e}"
    mantissa, exponent = rounded.split("e")
    if -4 <= int(exponent) < max(5, digits):
        places = max(0, digits - 1 - int(exponent))
        return _signed(f"{float(rounded):.{places}f}")
    return f"{_signed(mantissa)} × {_power(int(exponent))}"


def scientific(number: float) -> str:
    """Writes a small number, such as a tolerance, to two digits; below 0.001 by a power of ten."""
    if number == 0 or not math.isfinite(number) or 1e-3 <= abs(number) < 1e3:
        return value(number, 2)
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{_signed(mantissa)} × {_power(int(exponent))}"


def tick(number: float, step: float) -> str:
    """Writes a number beside an axis whose numbers are ``step`` apart."""
    if number == 0:
        return "0"
    if max(abs(number), step) >= 1e5 or step < 1e-4:
        mantissa, exponent = f"{number:.2e}".split("e")
        return f"{_signed(mantissa.rstrip('0').rstrip('.'))}·{_power(int(exponent))}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return _signed(f"{number:,.{places}f}" if abs(number) >= 10_000 else f"{number:.{places}f}")


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def _signed(text: str) -> str:
    """Gives a number a true minus sign, and thin spaces between thousands."""
    return text.replace("-", "−").replace(",", _THIN)


def share(number: float) -> str:
    """Writes a share of a whole in per cent, unless it is too small for that."""
    if not math.isfinite(number):
        return "unknown"
    if 1e-4 <= abs(number) < 10:
        text = value(100 * number, 3 if abs(number) >= 0.1 else 2)
        return f"{text.removesuffix('.0')} %"
    return value(number, 2)


def per_cent(number: float) -> str:
    """Writes a share of a whole in per cent, however small, to half a per cent or better."""
    if 0 < number < 0.0005:
        return "< 0.1 %"
    return f"{100 * number:.{1 if number < 0.0995 else 0}f} %"


def probability(number: float) -> str:
    """Writes a lower bound of a probability, never rounded up to certainty."""
    if number >= 0.99995:
        return "> 0.9999"
    return f"{number:.{2 if number < 0.99 else 4}f}"
