"""Maps: the leading vectors of a matrix whose columns, or rows, are the places of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OocError
from skerch_ooc.operators.matrices.labels import Axes, Coordinate, Labels
from skerch_ooc.planning.plan import source_of
from skerch_ooc.results.lowrank import LazyMatrix, Svd, open_result
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import WIDTH
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.report.layers import SHOWN
from skerch_ooc.stages.measure.operands import build_for_run
from skerch_ooc.store.result_files import result_path
from skerch_ooc.store.rundir import Run

_ACROSS, _UP = 72, 48
"""A map has so many cells at most."""

_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_GAP, _TOP, _TITLE = 12.0, 30.0, 20.0
_FLATTEST, _STEEPEST = 0.3, 1.2


@dataclass(frozen=True)
class MapSide:
    """A dimension of a map.

    Attributes:
        name: What it is called.
        ends: The coordinates of its ends, as text: left and right, or bottom and top.
        turned: Whether places are drawn from the last to the first.
    """

    name: str
    ends: tuple[str, str]
    turned: bool = False


@dataclass(frozen=True)
class Maps:
    """The leading vectors on a grid.

    Attributes:
        noun: What the vectors are called.
        cells: The entries of each vector, relative to its largest one, ``(k, up, across)``, the
            top first.
        across: The dimension that is drawn from left to right.
        up: The one that is drawn from bottom to top.
        slower: Names of further dimensions, of which the first place is drawn.
        ratio: Height of a map for its width.
        is_divided: Whether the roots of weights were divided out.
    """

    noun: str
    cells: Array
    across: MapSide
    up: MapSide
    slower: tuple[str, ...]
    ratio: float
    is_divided: bool

    @property
    def absent(self) -> Array:
        """Which places no vector has anything at, as land in a field of the sea, ``(up, across)``.

        None are, where all vectors have nothing anywhere.
        """
        found = ~self.cells.any(axis=0)
        return np.asarray(found & ~found.all())


def maps_of(run: Run, name: str) -> Maps | None:
    """Reads the leading vectors of a matrix in a file that is a grid, where the file is still here.

    Only the names and coordinates of the grid are read of it.

    Args:
        run: The run.
        name: The folder of the result.
    """
    plan = run.plan
    if plan.identity.factory != "stored" or plan.summands > 1 or plan.identity.is_complex:
        return None
    arguments = source_of(plan, plan.parts[0]).args
    # What lies elsewhere is not asked for: the run may come from a stranger.
    if not arguments.get("rows") or any("://" in str(one) for one in arguments.values()):
        return None
    try:
        matrix = build_for_run(run)
        labels, roots = matrix.labels(), matrix.roots
    except (OocError, OSError):
        return None
    return _of_sides(result_path(run, name), labels, roots, plan.identity.shape)


def _of_sides(
    path: Path, labels: Labels, roots: tuple[Array | None, Array | None], shape: tuple[int, int]
) -> Maps | None:
    found = open_result(path)
    if not isinstance(found, Svd):
        return None
    sides = (
        ("right singular vectors", found.V, labels.columns, roots[1], shape[1]),
        ("left singular vectors", found.U, labels.rows, roots[0], shape[0]),
    )
    for noun, vectors, axes, root, length in sides:
        if math.prod(axes.sizes) == length and len(axes.sizes) > 1 and min(axes.sizes[-2:]) > 1:
            return _drawn(noun, vectors, axes, labels.along(axes), root)
    return None


def _drawn(
    noun: str, vectors: LazyMatrix, axes: Axes, coordinates: list[Coordinate], root: Array | None
) -> Maps:
    (up_size, across_size), (up_name, across_name) = axes.sizes[-2:], axes.names[-2:]
    known = {one.name: one for one in coordinates if one.dims == (one.name,) and not one.is_text}
    across, up = (_side(one, known.get(one)) for one in (across_name, up_name))
    cells = np.stack([*_cells(vectors, up_size, across_size, root)], axis=1)
    # The first line of an array that falls, as latitudes from the north, is on top.
    cells = cells if up.turned else cells[:, ::-1]
    cells = cells[:, :, ::-1] if across.turned else cells
    largest = np.abs(cells).max(axis=(1, 2), keepdims=True)
    cells = cells / np.where(largest > 0, largest, 1.0)
    ratio = min(max(up_size / across_size, _FLATTEST), _STEEPEST)
    return Maps(noun, cells, across, up, axes.names[:-2], ratio, root is not None)


def _side(name: str, coordinate: Coordinate | None) -> MapSide:
    """Describes a dimension; a falling coordinate, such as latitudes from the north, is turned."""
    if coordinate is None or not len(coordinate.values):
        return MapSide(name, ("", ""))
    first, last = float(coordinate.values[0]), float(coordinate.values[-1])
    turned = first > last
    low, high = sorted((first, last))
    return MapSide(name, (numbers.value(low), numbers.value(high)), turned)


def _cells(vectors: LazyMatrix, up: int, across: int, root: Array | None) -> Iterator[Array]:
    """Reads evenly spread lines of the grid, and the means of neighbours in each, ``(k, across)``.

    Lines come in the order of the grid.
    """
    columns = min(SHOWN, vectors.shape[1])
    lines = min(up, _UP)
    groups = np.array_split(np.arange(across), min(across, _ACROSS))
    starts = [int(group[0]) for group in groups]
    for line in range(lines):
        number = (2 * line + 1) * up // (2 * lines)
        rows = slice(number * across, (number + 1) * across)
        entries = vectors[rows, :columns].numpy().astype(np.float64)
        if root is not None:
            part = root[rows, None]
            entries = np.where(part == 0, 0.0, entries / np.where(part == 0, 1.0, part))
        sums = np.add.reduceat(np.nan_to_num(entries), starts, axis=0)
        yield (sums / np.array([len(group) for group in groups])[:, None]).T


def maps(found: Maps, values: Array) -> Chart:
    """Draws the maps of the leading vectors, two beside each other.

    Args:
        found: The vectors.
        values: The value of each.
    """
    width = (WIDTH - 3 * _GAP) / 2
    height = width * found.ratio
    panels = []
    for number, cells in enumerate(found.cells):
        left = _GAP + (number % 2) * (width + _GAP)
        top = _TOP + _TITLE + (number // 2) * (height + _TITLE + _GAP)
        title = f"{number + 1}: {numbers.value(float(values[number]), 3)}"
        panels.append((left, top, title, _bands(cells)))
    bottom = _TOP + -(-len(panels) // 2) * (height + _TITLE + _GAP)
    lines, columns = found.cells.shape[1:]
    drawn = {"found": found, "panels": panels, "width": width, "height": height,
             "scale": f"{width / columns:.4f} {height / lines:.4f}",
             "largest": [_largest(cells) for cells in found.cells],
             "absent": _outlines(found.absent.astype(int)).get(1)}  # fmt: skip
    return Chart("maps", "maps", drawn, height=bottom + 4)


def _largest(cells: Array) -> tuple[str, str]:
    """Says where the largest entry of a vector lies, in parts of the map."""
    row, column = np.unravel_index(int(np.argmax(np.abs(cells))), cells.shape)
    high = ("top", "middle", "bottom")[min(2, int(3 * row / cells.shape[0]))]
    wide = ("left", "middle", "right")[min(2, int(3 * column / cells.shape[1]))]
    return high, wide


def _bands(cells: Array) -> list[tuple[str, int, str]]:
    """Lists colour, level and outline of the cells of each level and sign, runs of them as one.

    A cell is 1 wide and 1 high.
    """
    levels = (np.searchsorted(_LEVELS, np.abs(cells), side="right") * np.sign(cells)).astype(int)
    return [("orange" if level < 0 else "blue", abs(level), outline)
            for level, outline in _outlines(levels).items()]  # fmt: skip


def _outlines(levels: Array) -> dict[int, str]:
    """Outlines the cells of each level but 0, in ascending order, runs of them as one."""
    outlines: dict[int, list[str]] = {}
    for row, line in enumerate(levels):
        ends = np.flatnonzero(np.diff(line)) + 1
        for start, stop in zip([0, *ends], [*ends, len(line)], strict=True):
            if level := int(line[start]):
                length = stop - start
                outlines.setdefault(level, []).append(f"M{start} {row}h{length}v1h-{length}z")
    return {level: "".join(outlines[level]) for level in sorted(outlines)}
