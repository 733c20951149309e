"""The chart of the leading vectors, which are read tile by tile, however tall they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.lowrank import LazyMatrix
from skerch_ooc.results.report.axes import LEFT, RIGHT, Axis, path
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.report.layers import SHOWN, Layer

_TILE_ROWS = 4096
_MOST_TILES = 64
_SINGLY = 400
_GROUPS = 384
_PANEL, _TOP, _BELOW = 58.0, 30.0, 46.0


@dataclass(frozen=True)
class Panel:
    """One vector of the chart.

    Attributes:
        value: The eigenvalue or singular value that belongs to it.
        largest: The magnitude of its largest entry.
        position: The place of that entry in the vector, from 1.
        scale: The value at the panel's edge: the largest entry, or 1 where all are 0.
        top: The upper end of the panel.
        zero: The height of the line of zero.
        path: A line through the entries, or a band around groups of them.
        is_band: Whether ``path`` is a band.
    """

    value: float
    largest: float
    position: int
    scale: float
    top: float
    zero: float
    path: str
    is_band: bool


@dataclass(frozen=True)
class Leading:
    """The leading vectors, in groups of neighbouring entries.

    Attributes:
        rows: Number of entries of a vector.
        read: Number of entries that were read.
        is_complex: Whether entries are complex: then ``low`` and ``high`` are magnitudes.
        places: The middle of each group, ``(g,)``.
        low: The smallest entry of each group, ``(g, k)``.
        high: The largest entry of each group, ``(g, k)``.
    """

    rows: int
    read: int
    is_complex: bool
    places: Array
    low: Array
    high: Array


def read_leading(matrix: LazyMatrix, most: int = SHOWN) -> Leading:
    """Reads the leading vectors, one tile at a time; of very tall ones only evenly spread tiles.

    Args:
        matrix: The vectors, stored or implicit.
        most: Number of vectors, at most.

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
        groups = len(tile) if rows <= _SINGLY else min(in_a_tile, max(1, len(tile) // 2))
        first = tile.start
        for group in np.array_split(entries, groups):
            places.append(first + (len(group) - 1) / 2)
            first += len(group)
            low.append(group.min(axis=0))
            high.append(group.max(axis=0))
    return Leading(rows, sum(map(len, tiles)), matrix.dtype.is_complex, np.array(places),
                   np.array(low, np.float64), np.array(high, np.float64))  # fmt: skip


def leading_vectors(
    leading: Leading, values: Array, name: str, noun: str, layers: Sequence[Layer] = ()
) -> Chart | None:
    """Draws the vectors one below the other; ``None`` if each has only one entry.

    Args:
        leading: The vectors.
        values: The value of each vector.
        name: The name of the chart.
        noun: The name of the vectors, in the plural.
        layers: The layers of a model whose borders are drawn.
    """
    shown = leading.low.shape[1]
    if leading.rows < 2 or not shown:
        return None
    x = Axis(1.0, float(leading.rows), LEFT, RIGHT)
    panels = [_panel(leading, number, float(values[number]), x) for number in range(shown)]
    bottom = _TOP + shown * _PANEL
    drawn = {
        "leading": leading,
        "noun": noun,
        "x": x,
        "panels": panels,
        "bottom": bottom,
        "borders": _borders(layers, x),
        "top": _TOP,
    }
    return Chart(name, "vectors", drawn, height=bottom + _BELOW)


def _borders(layers: Sequence[Layer], x: Axis) -> list[tuple[float, str]]:
    """Lists the left end of each layer, with its name where there is room for it."""
    borders, free = [], 0.0
    for layer in layers:
        start, stop = x.at(layer.rows.start + 0.5), x.at(layer.rows.stop + 0.5)
        fits = stop - start > 6.4 * len(layer.name) + 6 and start >= free
        borders.append((start, layer.name if fits else ""))
        free = stop if fits else free
    return borders


def _panel(leading: Leading, number: int, value: float, x: Axis) -> Panel:
    low, high = leading.low[:, number], leading.high[:, number]
    sizes = np.maximum(np.abs(low), np.abs(high))
    position = 1 + round(float(leading.places[int(np.argmax(sizes))]))
    scale, top = float(np.nanmax(sizes)) or 1.0, _TOP + number * _PANEL
    y = Axis(0.0 if leading.is_complex else -scale, scale, top + _PANEL - 9, top + 5)
    places = [x.at(1.0 + place) for place in leading.places]
    above = [(place, y.at(float(entry))) for place, entry in zip(places, high, strict=True)]
    below = [(place, y.at(float(entry))) for place, entry in zip(places, low, strict=True)]
    is_band = not np.array_equal(low, high)
    drawn = path([*above, *reversed(below)], closed=True) if is_band else path(above)
    return Panel(value, float(sizes.max()), position, scale, top, y.at(0.0), drawn, is_band)
