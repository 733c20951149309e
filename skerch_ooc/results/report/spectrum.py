"""Charts of the values: on a linear and on a logarithmic axis, and how densely they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import (
    BOTTOM,
    LEFT,
    MOST_DECADES,
    RIGHT,
    TOP,
    Axis,
    linear,
    logarithmic,
    whole_numbers,
)
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.report.values import Values

_MOST_STEMS = 80
_MOST_BINS = 30
_FEWEST_BINS = 9
_BINS_IN_A_DECADE = (8, 4, 2, 1)


@dataclass(frozen=True)
class HistogramBar:
    """A bar of the histogram.

    Attributes:
        left: Its left edge.
        top: Its upper edge.
        width: Its width.
        height: Its height.
        colour: Its colour.
        said: How many values it stands for, and which.
    """

    left: float
    top: float
    width: float
    height: float
    colour: str
    said: str


def linear_spectrum(found: Values) -> Chart:
    """Draws the values with their signs."""
    lowest, highest = found.ends
    y = linear(min(0.0, float(lowest.min())), max(0.0, float(highest.max())), BOTTOM, TOP)
    drawn = {"found": found, "x": whole_numbers(len(found), LEFT, RIGHT), "y": y,
             "lowest": lowest, "highest": highest, "stems": len(found) <= _MOST_STEMS}  # fmt: skip
    return Chart("spectrum", "spectrum", drawn)


def logarithmic_spectrum(found: Values) -> Chart:
    """Draws magnitudes on a logarithmic axis, with the error, below which no value is sure."""
    heights = [*map(float, found.sizes), found.error or 0.0]
    heights += [] if found.bounds is None else [float(found.bounds.min())]
    x, y = whole_numbers(len(found), LEFT, RIGHT), logarithmic(heights, BOTTOM, TOP)
    hidden = 0 if y is None else int(np.count_nonzero(found.sizes < y.low))
    drawn = {"found": found, "x": x, "y": y, "hidden": hidden}
    return Chart("spectrum-log", "spectrum-log", drawn, empty=_all_zero(found) * (y is None))


def density(found: Values) -> Chart:
    """Draws a histogram of the magnitudes; negative values count downwards."""
    seen = found.sizes > max(float(found.sizes.max()) * 10**-MOST_DECADES, 1e-300)
    if not seen.any():
        return Chart("density", "density", {"found": found}, empty=_all_zero(found))
    logs = np.log10(found.sizes[seen])
    first, last, per_decade = _bins(float(logs.min()), float(logs.max()))
    places = np.floor(logs * per_decade + 1e-9).astype(int) - first
    above = np.bincount(places[found.values[seen] > 0], minlength=last - first + 1)
    below = np.bincount(places[found.values[seen] < 0], minlength=last - first + 1)
    edges = [_magnitude((first + n) / per_decade) for n in range(last - first + 2)]
    x = Axis(edges[0], edges[-1], LEFT, RIGHT, log=True)
    y = linear(-float(below.max()), float(above.max()), BOTTOM, TOP, whole=True)
    peak = int(np.argmax(above + below))
    drawn = {
        "found": found, "x": x, "y": y, "per_decade": per_decade,
        "bars": [*_bars(above, x, y, edges), *_bars(-below, x, y, edges)],
        "hidden": len(found) - int(np.count_nonzero(seen)),
        "most": int((above + below)[peak]), "low": edges[peak], "high": edges[peak + 1],
    }  # fmt: skip
    return Chart("density", "density", drawn)


def _all_zero(found: Values) -> str:
    return f"All {numbers.whole(len(found))} {found.noun} are zero."


def _bins(low: float, high: float) -> tuple[int, int, int]:
    """Chooses the bins: numbers of the first and the last bar, and bars in a decade."""
    for per_decade in _BINS_IN_A_DECADE:
        first = math.floor(low * per_decade + 1e-9)
        last = math.floor(high * per_decade + 1e-9)
        if last - first < _MOST_BINS:
            break
    last = max(last, first)
    beside = max(0, _FEWEST_BINS - (last - first + 1))
    return first - beside // 2, last + beside - beside // 2, per_decade


def _magnitude(exponent: float) -> float:
    """Returns a power of ten, kept within the range of double precision."""
    return float(10 ** min(max(exponent, -307.0), 308.0))


def _bars(counts: Array, x: Axis, y: Axis, edges: Sequence[float]) -> list[HistogramBar]:
    """Lists the bars that are not empty; those of negative values go downwards."""
    width = (x.stop - x.start) / len(counts)
    bars = []
    for place in map(int, np.flatnonzero(counts)):
        top, bottom = sorted((y.at(0.0), y.at(float(counts[place]))))
        left = x.start + place * width + 0.75
        low, high = (numbers.value(edge, 3) for edge in edges[place : place + 2])
        count = int(counts[place])
        said = f"{numbers.whole(abs(count))}{' negative' * (count < 0)} from {low} to {high}"
        colour = "orange" if count < 0 else "blue"
        bars.append(HistogramBar(left, top, max(1.0, width - 1.5), bottom - top, colour, said))
    return bars
