"""Charts of the error: the scree curve with its bounds, and how sure the error is."""

from __future__ import annotations

import math

from skerch_ooc.results.assess import FACTORS, Assessment, factor_for
from skerch_ooc.results.report.axes import (
    BOTTOM,
    FOCUSED,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    linear,
    logarithmic,
    thinned,
)
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.words import bound_text

_CURVE_POINTS = 80
_SURE = 0.995
_WIDEST_FACTOR = 10.0
_STEPS = (0.25, 0.5, 1.0, 2.0)


def scree(assessment: Assessment) -> Chart | None:
    """Draws the scree curve: the share of the operator that lower ranks leave out.

    Returns:
        The chart; ``None`` if the shares are unknown.
    """
    bounds = [(rank, lower, upper) for rank, lower, upper in assessment.scree
              if math.isfinite(lower) and math.isfinite(upper)]  # fmt: skip
    if not bounds:
        return None
    y = logarithmic([entry for _, *both in bounds for entry in both], BOTTOM, TOP)
    x = linear(0.0, float(max(rank for rank, _, _ in bounds)), LEFT, RIGHT, whole=True)
    if y is None:
        return Chart("scree", "scree", {}, empty="Nothing is left out.")
    lower = [(x.at(rank), y.at(low)) for rank, low, _ in bounds if low >= y.low]
    upper = [(x.at(rank), y.at(high)) for rank, _, high in bounds if high >= y.low]
    if len(lower) < len(bounds):
        # The highest rank leaves nothing out for sure: that is below any logarithmic axis.
        lower.append((upper[-1][0] if upper else x.start, BOTTOM))
    some = (bounds[i] for i in thinned(len(bounds), FOCUSED))
    marked = [(x.at(rank), y.at(max(high, y.low)), rank, low, high) for rank, low, high in some]
    enough = next((rank for rank, _, high in bounds if high <= 0.01), None)
    drawn = {"x": x, "y": y, "lower": lower, "upper": upper, "first": bounds[0],
             "last": bounds[-1], "enough": enough, "marked": marked}  # fmt: skip
    return Chart("scree", "scree", drawn)


def error(assessment: Assessment) -> Chart | None:
    """Draws how probable it is that the true error is below a multiple of the estimate."""
    if assessment.relative_error is None or not assessment.test_measurements:
        return None
    sure = 1 - (1 - _SURE) / assessment.looks
    widest = factor_for(sure, assessment.test_measurements, assessment.is_complex)
    last = min(_WIDEST_FACTOR, max(2.2, widest))
    x, y = Axis(1.0, last, LEFT, RIGHT - 22), Axis(0.0, 1.0, BOTTOM - 14, TOP)
    factors = [1 + (last - 1) * i / _CURVE_POINTS for i in range(_CURVE_POINTS + 1)]
    step = next(step for step in _STEPS if (last - 1) / step <= 6.1)
    drawn = {
        "assessment": assessment, "x": x, "y": y,
        "curve_points": [(x.at(factor), y.at(assessment.bounds(factor))) for factor in factors],
        "ticks": [1 + number * step for number in range(int((last - 1) / step + 1e-9) + 1)],
        "stated": [bound_text(assessment, factor) for factor in FACTORS if factor <= last],
    }  # fmt: skip
    return Chart("error", "error", drawn)
