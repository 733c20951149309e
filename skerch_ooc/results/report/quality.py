"""Figures of what is left out: the scree curve with its bounds, and how sure the error is."""

from __future__ import annotations

import math

from skerch_ooc.results.assess import FACTORS, Assessment, factor_for
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import Axis, across, linear, logarithmic, up
from skerch_ooc.results.report.figure import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    key,
    nothing_to_draw,
    path,
)
from skerch_ooc.results.report.markup import NOTHING, Markup, element, joined
from skerch_ooc.results.words import bound_text

_CURVE_POINTS = 80
_SURE = 0.995
_WIDEST_FACTOR = 10.0


def scree(assessment: Assessment) -> Chart | None:
    """What share of the operator approximations of lower rank leave out; ``None`` if unknown."""
    bounds = [(rank, lower, upper) for rank, lower, upper in assessment.scree
              if math.isfinite(lower) and math.isfinite(upper)]  # fmt: skip
    if not bounds:
        return None
    y = logarithmic([entry for _, *both in bounds for entry in both], BOTTOM, TOP)
    x = linear(0.0, float(max(rank for rank, _, _ in bounds)), LEFT, RIGHT, whole=True)
    title = "Scree: what a lower rank leaves out"
    if y is None:
        said = "Nothing is left out."
        return Chart("scree", title, said, said, nothing_to_draw(said))
    lower = [(x.at(rank), y.at(low)) for rank, low, _ in bounds if low >= y.low]
    upper = [(x.at(rank), y.at(high)) for rank, _, high in bounds if high >= y.low]
    if len(lower) < len(bounds):
        # The highest rank leaves nothing out for sure: that is below any logarithmic axis.
        lower.append((upper[-1][0] if upper else x.start, BOTTOM))
    parts = [
        up(y, LEFT, RIGHT, "share of ‖A‖² left out"),
        element("path", d=path([*upper, *reversed(lower)], closed=True), class_="band fill-blue"),
        element("path", d=path(lower), class_="curve line-blue"),
        element("path", d=path(upper), class_="curve line-orange"),
        across(x, BOTTOM, "rank"),
        key([("at least", "blue"), ("at most", "orange")]),
    ]
    rank, low, high = bounds[-1]
    half = next((rank for rank, _, high in bounds if high <= 0.01), None)
    enough = f" Rank {numbers.count(half)} leaves out at most 1 %." if half is not None else ""
    return Chart(
        "scree", title,
        "The share of ‖A‖², the squared Frobenius norm, that the best approximation of each rank "
        "leaves out lies between the lines, as far as the error is known; where they are far "
        "apart, the sketch does not tell."
        + enough,
        f"The upper bound falls from {numbers.share(bounds[0][2])} at rank "
        f"{numbers.count(bounds[0][0])} to {numbers.share(high)} at rank {numbers.count(rank)}, "
        f"the lower bound from {numbers.share(bounds[0][1])} to {numbers.share(low)}.",
        joined(parts),
    )  # fmt: skip


def error(assessment: Assessment) -> Chart | None:
    """How probable it is that the true error is below a multiple of the estimate."""
    relative = assessment.relative_error
    if relative is None or not assessment.test_measurements:
        return None
    sure = 1 - (1 - _SURE) / assessment.looks
    widest = factor_for(sure, assessment.test_measurements, assessment.is_complex)
    last = min(_WIDEST_FACTOR, max(2.2, widest))
    x, y = Axis(1.0, last, LEFT, RIGHT - 22), Axis(0.0, 1.0, BOTTOM - 14, TOP)
    factors = [1 + (last - 1) * i / _CURVE_POINTS for i in range(_CURVE_POINTS + 1)]
    curve = [(x.at(factor), y.at(assessment.bounds(factor))) for factor in factors]
    bottom = BOTTOM - 14
    parts = [
        up(y, LEFT, RIGHT, "probability, at least"),
        element("path", d=path([(x.start, bottom), *curve, (x.stop, bottom)], closed=True),
                class_="wash"),
        element("path", d=path(curve), class_="curve line-blue"),
        _factor_axis(x, bottom, relative),
        *(_stated(assessment, factor, x, y) for factor in (1.5, 2.0)),
    ]  # fmt: skip
    said = "; ".join(bound_text(assessment, factor) for factor in FACTORS if factor <= last)
    return Chart(
        "error", "How sure the error is",
        "How probable it is that the true relative error is at most this. The bounds hold for any "
        f"operator and come from {numbers.count(assessment.test_measurements)} test vectors that "
        "had no part in the recovery.",
        f"The true error is {said}.",
        joined(parts),
    )  # fmt: skip


def _factor_axis(x: Axis, bottom: float, relative: float) -> Markup:
    """Multiples of the estimate, and the relative error that each of them is."""
    step = next(step for step in (0.25, 0.5, 1.0, 2.0) if (x.high - 1) / step <= 6.1)
    parts = [element("line", x1=x.start, x2=x.stop, y1=bottom, y2=bottom, class_="axis")]
    for number in range(int((x.high - 1) / step + 1e-9) + 1):
        factor = 1 + number * step
        place = x.at(factor)
        parts += [
            element("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="axis"),
            element("text", f"{factor:g} ×", x=place, y=bottom + 17, class_="middle"),
        ]
        if (factor * 2).is_integer():
            parts.append(element("text", numbers.share(factor * relative), x=place, y=bottom + 33,
                                 class_="middle strong"))  # fmt: skip
    parts.append(element("text", "true relative error, and how many times the estimate that is",
                         x=RIGHT, y=HEIGHT - 10, class_="end"))  # fmt: skip
    return joined(parts)


def _stated(assessment: Assessment, factor: float, x: Axis, y: Axis) -> Markup:
    """A bound that is named beside the curve."""
    if factor > x.high:
        return NOTHING
    probability = assessment.bounds(factor)
    place = x.at(factor), y.at(probability)
    dot = element("circle", cx=place[0], cy=place[1], r=3.5, class_="fill-blue")
    said = numbers.probability(probability)
    below = element("text", said, x=place[0] + 2, y=place[1] + 20, class_="label fill-blue")
    return dot + below
