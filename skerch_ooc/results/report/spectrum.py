"""Figures of the values: on a linear and on a logarithmic axis, and how densely they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import (
    MOST_DECADES,
    Axis,
    across,
    linear,
    logarithmic,
    up,
    whole_numbers,
)
from skerch_ooc.results.report.figure import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    key,
    nothing_to_draw,
    thinned,
)
from skerch_ooc.results.report.markup import NOTHING, Markup, coordinate, element, joined

_MOST_POINTS = 600
_MOST_STEMS = 80
_MOST_BINS = 30
_FEWEST_BINS = 9
_BINS_IN_A_DECADE = (8, 4, 2, 1)


@dataclass(frozen=True)
class Values:
    """The values of a result.

    Attributes:
        values: In descending magnitude, float64.
        kind: ``"eigh"`` or ``"svd"``.
        error: Estimate of ``||A - Ahat||_F``; ``None`` if unknown.
        bounds: What each value is off by at most, with 95 % probability; ``None`` if unknown.
    """

    values: Array
    kind: str
    error: float | None
    bounds: Array | None = None

    @property
    def noun(self) -> str:
        """What they are called."""
        return "eigenvalues" if self.kind == "eigh" else "singular values"

    @property
    def positive(self) -> int:
        """How many are above 0."""
        return int(np.count_nonzero(self.values > 0))

    @property
    def negative(self) -> int:
        """How many are below 0."""
        return int(np.count_nonzero(self.values < 0))

    @property
    def zero(self) -> int:
        """How many are 0."""
        return len(self.values) - self.positive - self.negative

    @property
    def certain(self) -> int | None:
        """How many are larger, in magnitude, than what they may be off by."""
        limits = self.error if self.bounds is None else self.bounds
        return None if limits is None else int(np.count_nonzero(abs(self.values) > limits))

    @property
    def shown(self) -> list[tuple[int, float]]:
        """Those that are drawn, with their numbers from 1."""
        return [(i + 1, float(self.values[i])) for i in thinned(len(self.values), _MOST_POINTS)]

    @property
    def thinning(self) -> str:
        """What is said where not all are drawn."""
        drawn = min(len(self.values), _MOST_POINTS)
        missing = len(self.values) - drawn
        return f" {numbers.count(drawn)} of the {numbers.count(len(self.values))} are drawn." \
            if missing else ""  # fmt: skip


def linear_spectrum(found: Values) -> Chart:
    """The values as they are, with their signs."""
    values = found.values
    lowest, highest = _ends(found)
    low, high = min(0.0, float(lowest.min())), max(0.0, float(highest.max()))
    x, y = whole_numbers(len(values), LEFT, RIGHT), linear(low, high, BOTTOM, TOP)
    parts = [_within_error(found, y)] if found.error is not None and found.bounds is None else []
    parts += [up(y, LEFT, RIGHT, "value"), _zero_line(y)]
    if found.bounds is not None:
        parts.append(_whiskers(found, x, y))
    stems = len(values) <= _MOST_STEMS
    for number, value in found.shown:
        parts.append(_point(x.at(number), y.at(value), value, y.at(0.0) if stems else None))
    parts += [across(x, BOTTOM, "number, by magnitude"), _sign_labels(found)]
    return Chart(
        "spectrum",
        _titled(found),
        f"The {found.noun} by their number, the largest in magnitude first."
        + _uncertainty_said(found)
        + found.thinning,
        f"{_range_said(found)} {_signs_said(found)}",
        joined(parts),
    )  # fmt: skip


def logarithmic_spectrum(found: Values) -> Chart:
    """Magnitudes on a logarithmic axis, with the error below which none can be told from 0."""
    sizes = np.abs(found.values)
    limits = [] if found.bounds is None else [float(found.bounds.min())]
    drawn = [*_with_error(found), *limits]
    x, y = whole_numbers(len(sizes), LEFT, RIGHT), logarithmic(drawn, BOTTOM, TOP)
    title = f"{_titled(found)}, logarithmic"
    if y is None:
        said = f"All {numbers.count(len(sizes))} {found.noun} are zero."
        return Chart("spectrum-log", title, said, said, nothing_to_draw(said))
    hidden = int(np.count_nonzero(sizes < y.low))
    wash, line = _below_error(found.error, y) if found.error else (NOTHING, NOTHING)
    if found.bounds is not None:
        wash = _dashes(found, x, y)
    parts = [wash, up(y, LEFT, RIGHT, "magnitude"), across(x, BOTTOM, "number, by magnitude")]
    parts += [
        _point(x.at(number), y.at(abs(value)), value, None)
        for number, value in found.shown
        if abs(value) >= y.low
    ]
    caption = "The same, as magnitudes."
    if found.bounds is not None:
        caption += (
            " The grey dashes are what each value may be off by, with 95 % probability: values "
            "above theirs differ from zero. The line is the error of the whole."
        )
    elif found.error:
        caption += (
            " No value is off by more than the error, of which the line is the estimate: those "
            "above stand out of it, those below cannot be told from zero one by one."
        )
    if hidden:
        caption += f" {numbers.count(hidden)} that are zero, or nearly, are not drawn."
    return Chart(
        "spectrum-log", title, caption + found.thinning,
        f"{_range_said(found)} {_above_said(found)}",
        joined([*parts, line, _sign_labels(found)]),
    )  # fmt: skip


def density(found: Values) -> Chart:
    """How many values there are of which magnitude; negative ones downwards."""
    sizes = np.abs(found.values)
    largest = float(sizes.max())
    seen = sizes > max(largest * 10**-MOST_DECADES, 1e-300)
    if not seen.any():
        said = f"All {numbers.count(len(sizes))} {found.noun} are zero."
        return Chart("density", "Spectral density", said, said, nothing_to_draw(said))
    logs = np.log10(sizes[seen])
    first, last, per_decade = _bins(float(logs.min()), float(logs.max()))
    places = np.floor(logs * per_decade + 1e-9).astype(int) - first
    above = np.bincount(places[found.values[seen] > 0], minlength=last - first + 1)
    below = np.bincount(places[found.values[seen] < 0], minlength=last - first + 1)
    x = Axis(_magnitude(first / per_decade), _magnitude((last + 1) / per_decade), LEFT, RIGHT,
             log=True)  # fmt: skip
    y = linear(-float(below.max()), float(above.max()), BOTTOM, TOP, whole=True)
    width = f"1/{per_decade} of a decade" if per_decade > 1 else "decade"
    drawing = [up(y, LEFT, RIGHT, f"values in each {width}", 5, signed=False), _zero_line(y),
               *_bars(above, x, y, "blue"),
               *_bars(-below, x, y, "orange"), across(x, BOTTOM, "magnitude"),
               _sign_labels(found)]  # fmt: skip
    peak = int(np.argmax(above + below))
    ends = [_magnitude((first + peak + n) / per_decade) for n in (0, 1)]
    caption = (
        f"How many of the {found.noun} that were found have which magnitude"
        + ("; negative ones are counted downwards." if found.negative else ".")
        + " Those that were not recovered are not counted."
    )
    hidden = len(sizes) - int(np.count_nonzero(seen))
    if hidden:
        caption += f" {numbers.count(hidden)} are zero, or nearly, and are left out."
    most = int((above + below)[peak])
    return Chart(
        "density", "Spectral density", caption,
        f"Most of them, {numbers.count(most)} in one bar, lie between {numbers.value(ends[0], 2)} "
        f"and {numbers.value(ends[1], 2)}. {_signs_said(found)}",
        joined(drawing),
    )  # fmt: skip


def _bins(low: float, high: float) -> tuple[int, int, int]:
    """Numbers of the first and of the last bar, and bars of a decade."""
    for per_decade in _BINS_IN_A_DECADE:
        first = math.floor(low * per_decade + 1e-9)
        last = math.floor(high * per_decade + 1e-9)
        if last - first < _MOST_BINS:
            break
    last = max(last, first)
    beside = max(0, _FEWEST_BINS - (last - first + 1))
    return first - beside // 2, last + beside - beside // 2, per_decade


def _magnitude(exponent: float) -> float:
    """A power of ten, within the range of double precision."""
    return float(10 ** min(max(exponent, -307.0), 308.0))


def _bars(counts: Array, x: Axis, y: Axis, colour: str) -> list[Markup]:
    width = (x.stop - x.start) / len(counts)
    bars = []
    for place, number in enumerate(counts):
        ends = sorted((y.at(0.0), y.at(float(number))))
        if number:
            bars.append(element("rect", x=x.start + place * width + 0.75, y=ends[0],
                                width=max(1.0, width - 1.5), height=ends[1] - ends[0],
                                class_=f"fill-{colour}"))  # fmt: skip
    return bars


def _point(x: float, y: float, value: float, zero: float | None) -> Markup:
    """A value, by its sign; from the line of zero if there are few of them."""
    colour = "orange" if value < 0 else "blue"
    stem = NOTHING
    if zero is not None:
        stem = element("line", x1=x, x2=x, y1=zero, y2=y, class_=f"stem line-{colour}")
    return stem + element("circle", cx=x, cy=y, r=2.2, class_=f"fill-{colour}")


def _ends(found: Values) -> tuple[Array, Array]:
    """The least and the largest that each value may be."""
    if found.bounds is None:
        return found.values, found.values
    with np.errstate(over="ignore"):
        ends = found.values - found.bounds, found.values + found.bounds
    most = np.finfo(np.float64).max
    return np.clip(ends[0], -most, most), np.clip(ends[1], -most, most)


def _whiskers(found: Values, x: Axis, y: Axis) -> Markup:
    """What each value may be, as one path."""
    low, high = _ends(found)
    drawn = [
        f"M{coordinate(x.at(number))} {coordinate(y.at(float(low[number - 1])))}"
        f"V{coordinate(y.at(float(high[number - 1])))}"
        for number, _ in found.shown
    ]
    return element("path", d="".join(drawn), class_="curve line-grey")


def _dashes(found: Values, x: Axis, y: Axis) -> Markup:
    """What each value may be off by, as one path."""
    assert found.bounds is not None
    drawn = [
        f"M{coordinate(x.at(number) - 2)} {coordinate(y.at(float(found.bounds[number - 1])))}h4"
        for number, _ in found.shown
        if y.low <= found.bounds[number - 1] <= y.high
    ]
    return element("path", d="".join(drawn), class_="curve line-grey")


def _uncertainty_said(found: Values) -> str:
    if found.bounds is not None:
        return " The grey lines are what each may be, with 95 % probability."
    if found.error is not None:
        return " The band is the error estimate: inside it, values may be due to it."
    return ""


def _zero_line(y: Axis) -> Markup:
    place = y.at(0.0)
    return element("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="axis")


def _within_error(found: Values, y: Axis) -> Markup:
    top, bottom = y.at(found.error or 0.0), y.at(-(found.error or 0.0))
    return element("rect", x=LEFT, y=top, width=RIGHT - LEFT, height=max(bottom - top, 1.0),
                   class_="wash")  # fmt: skip


def _below_error(error: float, y: Axis) -> tuple[Markup, Markup]:
    """What lies behind the values, and what is written over them."""
    place = y.at(error)
    wash = element("rect", x=LEFT, y=place, width=RIGHT - LEFT, height=BOTTOM - place,
                   class_="wash")  # fmt: skip
    line = element("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="mark")
    high = place < TOP + 50
    said = element("text", f"error estimate {numbers.value(error, 3)}", x=RIGHT - 6,
                   y=place + 16 if high else place - 6, class_="end halo strong")  # fmt: skip
    return wash, line + said


def _sign_labels(found: Values) -> Markup:
    """How many there are of each sign, in its colour."""
    if found.kind != "eigh" or not found.negative:
        return NOTHING
    return key([(f"{numbers.count(found.positive)} positive", "blue"),
                (f"{numbers.count(found.negative)} negative", "orange")])  # fmt: skip


def _with_error(found: Values) -> list[float]:
    return [*map(float, np.abs(found.values)), *([found.error] if found.error else [])]


def _titled(found: Values) -> str:
    return found.noun.capitalize()


def _range_said(found: Values) -> str:
    sizes = np.abs(found.values)
    return (
        f"{numbers.count(len(sizes))} {found.noun}; their magnitudes fall from "
        f"{numbers.value(float(sizes.max()))} to {numbers.value(float(sizes.min()))}."
    )


def _signs_said(found: Values) -> str:
    zero = f", {numbers.count(found.zero)} are zero" if found.zero else ""
    if found.kind == "svd":
        return f"{numbers.count(found.zero)} are zero." if found.zero else ""
    return (
        f"{numbers.count(found.positive)} are positive, {numbers.count(found.negative)} "
        f"negative{zero}."
    )


def _above_said(found: Values) -> str:
    if found.certain is None:
        return "The error is unknown."
    limit = "the error estimate" if found.bounds is None else "what they may be off by"
    return f"{numbers.count(found.certain)} are larger than {limit}."
