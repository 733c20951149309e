"""Axes of charts, linear and logarithmic: from values to places, and the numbers beside an axis."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skerch_ooc.results.report import numbers

WIDTH = 440.0
"""The width of all charts: about that of a telephone, so that their text is legible there."""

HEIGHT = 290.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, WIDTH - 16, 34.0, HEIGHT - 46
"""The places of the axes of most charts."""

_LARGEST = sys.float_info.max

MOST_DECADES = 18.0
"""A logarithmic axis shows no more than what double precision can tell apart, and some."""


FOCUSED = 12
"""So many leading values of a chart are reached by the keyboard."""


@dataclass(frozen=True)
class Axis:
    """A mapping of values to places.

    Attributes:
        low: The value at ``start``.
        high: The value at ``stop``; above ``low``.
        start: A place.
        stop: A place.
        log: Whether the axis is logarithmic.
        whole: Whether only whole numbers are marked.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """Returns the place of a value; the end of the axis for a value outside it."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        # Halved, as the difference of two large numbers may overflow.
        part = (value / 2 - low / 2) / (high / 2 - low / 2)
        return self.start + part * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Lists the values to mark, with the text at each mark."""
        return _decades(self, most) if self.log else _round_steps(self, most)


def _decades(axis: Axis, most: int) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9)
    step = max(1, -(-(last - first + 1) // most))
    exponents = [e for e in range(first, last + 1) if e % step == 0]
    if len(exponents) >= 2:
        return [(10.0**e, numbers.power(e)) for e in exponents]
    return [
        (value, numbers.value(value, 1))
        for e in range(first - 1, last + 1)
        for digit in (1.0, 2.0, 5.0)
        if axis.low <= (value := digit * 10.0**e) <= axis.high
    ] or [(axis.low, numbers.value(axis.low, 5)), (axis.high, numbers.value(axis.high, 5))]


def _round_steps(axis: Axis, most: int) -> list[tuple[float, str]]:
    rough = max((axis.high / 2 - axis.low / 2) / most * 2, sys.float_info.min)
    exponent = math.floor(math.log10(rough))
    unit = 10.0**exponent
    step = next((m * unit for m in (1, 2, 5, 10) if m * unit >= rough * (1 - 1e-9)), 10 * unit)
    step = max(step, 1.0) if axis.whole else step
    first, last = math.ceil(axis.low / step - 1e-6), math.floor(axis.high / step + 1e-6)
    return [(n * step, numbers.tick(n * step, step)) for n in range(first, last + 1)]


def linear(low: float, high: float, start: float, stop: float, *, whole: bool = False) -> Axis:
    """Makes a linear axis that holds two values, with some room beyond those that are not 0."""
    # Halved as in Axis.at: the smallest numbers of all have no half.
    if not high / 2 > low / 2:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    room = 0.04 * (high / 2 - low / 2) * 2
    low, high = low - room if low != 0 else low, high + room if high != 0 else high
    return Axis(max(low, -_LARGEST), min(high, _LARGEST), start, stop, whole=whole)


def logarithmic(values: Sequence[float], start: float, stop: float) -> Axis | None:
    """Makes a logarithmic axis for the positive values among some; ``None`` if there are none."""
    positive = [value for value in values if 0 < value < math.inf]
    if not positive:
        return None
    high = max(positive)
    low = max(min(positive), high * 10**-MOST_DECADES, 1e-300)
    high = max(high, low)
    room = max((high / low) ** 0.05, 1.3)
    return Axis(max(low / room, 1e-305), min(high * room, 1e308), start, stop, log=True)


def whole_numbers(last: int, start: float, stop: float) -> Axis:
    """Makes an axis of the numbers 1 to ``last``, with some room on both sides."""
    return Axis(0.4, last + max(0.6, 0.02 * last), start, stop, whole=True)


def thinned(length: int, most: int) -> Sequence[int]:
    """Picks at most so many indices of a sequence: the first third one by one, then in steps."""
    if length <= most:
        return range(length)
    head = most // 3
    rest = most - head
    return [*range(head), *(head + (length - 1 - head) * i // (rest - 1) for i in range(rest))]


def coordinate(value: float) -> str:
    """Writes a length in a chart, to a tenth of its unit."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def path(points: Iterable[tuple[float, float]], closed: bool = False) -> str:
    """Returns the data of an SVG path through points."""
    pairs = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
    return f"M{pairs}{'Z' if closed else ''}"
