"""The leading vectors: read tile by tile, however tall they are, and drawn one below the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.lowrank import LazyMatrix
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import Axis, across
from skerch_ooc.results.report.figure import LEFT, RIGHT, Chart, path
from skerch_ooc.results.report.markup import Markup, element, joined

SHOWN = 6
_TILE_ROWS = 4096
_MOST_TILES = 64
_SINGLY = 400
_GROUPS = 384
_PANEL, _TOP, _BELOW = 58.0, 30.0, 46.0


@dataclass(frozen=True)
class Leading:
    """The leading vectors, in groups of neighbouring entries.

    Attributes:
        rows: Entries of a vector.
        read: How many of them were read.
        is_complex: Whether entries are complex: then these are magnitudes.
        places: The middle of each group, ``(g,)``.
        low: The smallest entry of each group, ``(g, k)``.
        high: The largest, ``(g, k)``.
    """

    rows: int
    read: int
    is_complex: bool
    places: Array
    low: Array
    high: Array


def read_leading(matrix: LazyMatrix, most: int = SHOWN) -> Leading:
    """Reads the leading vectors, of very tall ones evenly spread tiles; one tile at a time.

    Args:
        matrix: The vectors, stored or implicit.
        most: How many of them.

    Raises:
        CorruptError: If a tile was altered.
        IncompleteError: If vectors are to be computed from shards that are gone.
    """
    rows, columns = matrix.shape
    tiles = cut(Range(0, rows), _TILE_ROWS)
    if len(tiles) > _MOST_TILES:
        last = len(tiles) - 1
        tiles = [tiles[last * i // (_MOST_TILES - 1)] for i in range(_MOST_TILES)]
    in_a_tile = -(-_GROUPS // len(tiles))
    places, low, high = [], [], []
    for tile in tiles:
        entries = matrix[tile.slice, : min(most, columns)].numpy()
        entries = abs(entries) if entries.dtype.kind == "c" else entries
        groups = len(tile) if rows <= _SINGLY else min(in_a_tile, len(tile))
        first = tile.start
        for group in np.array_split(entries, groups):
            places.append(first + (len(group) - 1) / 2)
            first += len(group)
            low.append(group.min(axis=0))
            high.append(group.max(axis=0))
    return Leading(rows, sum(map(len, tiles)), matrix.dtype.is_complex, np.array(places),
                   np.array(low, np.float64), np.array(high, np.float64))  # fmt: skip


def figure_of(leading: Leading, values: Array, name: str, noun: str) -> Chart | None:
    """Draws them; ``None`` if there is nothing to be seen, as vectors have a single entry.

    Args:
        leading: The vectors.
        values: The value of each.
        name: Of the figure.
        noun: What the vectors are called.
    """
    shown = leading.low.shape[1]
    if leading.rows < 2 or not shown:
        return None
    bottom = _TOP + shown * _PANEL
    x = Axis(1.0, float(leading.rows), LEFT, RIGHT)
    what = "magnitude of the entries" if leading.is_complex else "entries"
    parts = [element("text", f"{what}, by position", x=10.0, y=18.0)]
    for number in range(shown):
        top = _TOP + number * _PANEL
        parts.append(_panel(leading, number, float(values[number]), top, x))
    parts.append(across(x, bottom, "position in the vector"))
    grouped = len(leading.places) < leading.rows
    return Chart(
        name, f"Leading {noun}",
        f"The {noun} of the {shown} largest values; each to its own scale, whose largest entry is "
        "written beside it."
        + (" The band spans the smallest and the largest entry of groups of neighbours."
           if grouped else "")
        + (f" Of {numbers.count(leading.rows)} entries {numbers.count(leading.read)} were read, "
           "evenly spread." if leading.read < leading.rows else ""),
        "; ".join(_described(leading, number, float(values[number])) for number in range(shown))
        + ".",
        joined(parts), height=bottom + _BELOW,
    )  # fmt: skip


def _panel(leading: Leading, number: int, value: float, top: float, x: Axis) -> Markup:
    low, high = leading.low[:, number], leading.high[:, number]
    largest = float(np.nanmax(np.maximum(np.abs(low), np.abs(high)))) or 1.0
    y = Axis(0.0 if leading.is_complex else -largest, largest, top + _PANEL - 9, top + 5)
    zero = y.at(0.0)
    places = [x.at(1.0 + place) for place in leading.places]
    above = [(place, y.at(float(entry))) for place, entry in zip(places, high, strict=True)]
    below = [(place, y.at(float(entry))) for place, entry in zip(places, low, strict=True)]
    colour = "orange" if value < 0 else "blue"
    drawn = [element("line", x1=LEFT, x2=RIGHT, y1=zero, y2=zero, class_="axis")]
    if np.array_equal(low, high):
        drawn.append(element("path", d=path(above), class_=f"curve line-{colour}"))
    else:
        band = path([*above, *reversed(below)], closed=True)
        drawn.append(element("path", d=band, class_=f"fill-{colour} line-{colour}",
                             stroke_width="0.5"))  # fmt: skip
    drawn += [
        element("text", numbers.value(value, 3), x=LEFT - 8, y=top + 26,
                class_=f"label fill-{colour} end"),
        element("text", f"±{numbers.value(largest, 2)}", x=LEFT - 8, y=top + 42, class_="end"),
    ]  # fmt: skip
    return joined(drawn)


def _described(leading: Leading, number: int, value: float) -> str:
    sizes = np.maximum(np.abs(leading.low[:, number]), np.abs(leading.high[:, number]))
    place = 1 + round(float(leading.places[int(np.argmax(sizes))]))
    largest = numbers.value(float(sizes.max()), 2)
    return (
        f"that of {numbers.value(value, 3)} has its largest entry, {largest} in magnitude, near "
        f"position {numbers.count(place)}"
    )
