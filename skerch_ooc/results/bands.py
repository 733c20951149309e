"""Triangular and banded parts of a result, multiplied by one stream over its rows.

Row ``i`` of a lower triangle takes ``U_i diag(values) sum_(j <= i + k) V_j^H x_j``: the sum runs
along with the rows, and only the blocks that the diagonal ``k`` crosses are formed. Upper triangles
are streamed from the last row on, so that nothing is ever subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.indexing import Selection
from skerch_ooc.results.streamed import Block, Factors, Read, StreamedOperator, TorchDtype, Write
from skerch_ooc.results.vectors import BLOCK_ROWS, in_parallel, read_rows

_NARROW = 1024
"""Bands of up to so many diagonals are formed block by block. A wider one is the difference of two
triangles, which would cost a narrow one digits."""


@dataclass(frozen=True)
class Diagonals:
    """The diagonals ``first`` to ``last`` of a matrix, numbered as numpy's: 0 is the main one.

    Attributes:
        first: The lowest; ``None`` for all below ``last``.
        last: The highest; ``None`` for all above ``first``.
    """

    first: int | None
    last: int | None

    @property
    def adjoint(self) -> Diagonals:
        """The same diagonals of the adjoint."""
        return Diagonals(*(None if end is None else -end for end in (self.last, self.first)))

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest; of a triangle twice the one that there is."""
        ends = [end for end in (self.first, self.last) if end is not None]
        return ends[0], ends[-1]

    def hold(self, rows: Array, columns: Array) -> Array:
        """Says which entries of the given rows and columns are on them, as a mask."""
        offsets = columns[None, :] - rows[:, None]
        mask = np.ones(offsets.shape, bool)
        if self.first is not None:
            mask &= offsets >= self.first
        if self.last is not None:
            mask &= offsets <= self.last
        return mask

    def crossing(self, rows: Range, width: int) -> Range:
        """Returns the columns in which their ends cross some rows.

        Of a triangle, one side of these columns is on them in all of the rows, and the other side
        in none. Of a band, all other columns are outside.
        """
        low, high = self.ends
        return Range(*(min(max(at, 0), width) for at in (rows.start + low, rows.stop + high)))


class Band(StreamedOperator):
    """A triangular or banded part of a result, multiplied from both sides in bounded memory.

    Attributes:
        shape: That of the result.
        dtype: That of the result.
        diagonals: Which diagonals it keeps.
    """

    def __init__(self, factors: Factors, dtype: TorchDtype, diagonals: Diagonals) -> None:
        self._factors, self.shape, self.dtype = factors, factors.shape, dtype
        self.diagonals = diagonals
        ends = (diagonals.first, diagonals.last)
        if None not in ends and diagonals.ends[0] > diagonals.ends[1]:
            raise UsageError(
                f"first = {diagonals.first} is above last = {diagonals.last}; give the diagonals "
                "in ascending order"
            )

    def __repr__(self) -> str:
        kept = f"first={self.diagonals.first}, last={self.diagonals.last}"
        return f"Band({kept}, shape={self.shape}, path={str(self._factors.left.path)!r})"

    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        diagonals = self.diagonals.adjoint if adjoint else self.diagonals
        for rows, part in _product(self._factors.turned(adjoint), diagonals, x):
            write(rows, part)

    def _entries(self, rows: Selection, columns: Selection) -> Iterator[Block]:
        for down, across, part in self._factors.entries(rows, columns):
            held = self.diagonals.hold(
                np.asarray(rows.wanted[down.slice]), np.asarray(columns.wanted[across.slice])
            )
            yield down, across, np.where(held, part, 0)


def _product(factors: Factors, diagonals: Diagonals, x: Read) -> Iterator[tuple[Range, Array]]:
    """Multiplies the diagonals; yields rows and what they are in the product, in some order."""
    first, last = diagonals.first, diagonals.last
    if first is None or last is None:
        return _triangles(factors, [(1, diagonals)], x)
    if last - first < _NARROW:
        return _narrow(factors, diagonals, x)
    below = (-1, Diagonals(None, first - 1))
    return _triangles(factors, [(1, Diagonals(None, last)), below], x)


def _narrow(factors: Factors, band: Diagonals, x: Read) -> Iterator[tuple[Range, Array]]:
    def tile(number: int) -> Array:
        return _crossed(factors, band, x, number, factors.left.read_wide(number))[0]

    low, high = band.ends
    numbers = factors.left.row_tiles
    size = _tile_bytes(factors) + 2 * (high - low) * factors.right.shape[1] * 16
    for number, part in zip(numbers, in_parallel(tile, numbers, size), strict=True):
        yield factors.left.layout.rows(number), part


def _triangles(
    factors: Factors, signed: list[tuple[int, Diagonals]], x: Read
) -> Iterator[tuple[Range, Array]]:
    """Multiplies a sum of triangles, all lower or all upper ones, with their signs."""
    (height, width), upper = factors.shape, signed[0][1].last is None
    numbers = factors.left.row_tiles[::-1] if upper else factors.left.row_tiles
    totals = []
    for _, triangle in signed:
        below = Range(0, triangle.crossing(Range(0, 0), width).start)
        above = Range(triangle.crossing(Range(height, height), width).stop, width)
        totals.append(_sum_of(factors, above if upper else below, x))

    def tile(number: int) -> tuple[Array, list[tuple[Array, list[Array]]]]:
        u = factors.left.read_wide(number)
        return u, [_crossed(factors, triangle, x, number, u) for _, triangle in signed]

    tiles = in_parallel(tile, numbers, len(signed) * _tile_bytes(factors))
    for number, (u, crossed) in zip(numbers, tiles, strict=True):
        rows = factors.left.layout.rows(number)
        blocks = list(enumerate(cut(Range(0, len(rows)), BLOCK_ROWS)))
        product = _signed_sum(signed, [part for part, _ in crossed])
        for place, block in blocks[::-1] if upper else blocks:
            weighted = factors.values[:, None] * _signed_sum(signed, totals)
            product[block.slice] += u[block.slice] @ weighted
            totals = [one + sums[place] for one, (_, sums) in zip(totals, crossed, strict=True)]
        yield rows, product


def _sum_of(factors: Factors, columns: Range, x: Read) -> Array:
    """Forms ``V^H x`` of the given columns of the product."""
    right = factors.right

    def product(piece: Range) -> Array:
        return np.asarray(read_rows(right, piece).conj().T @ x(piece))

    total = product(Range(0, 0))
    pieces = cut(columns, right.layout.tile[0])
    for part in in_parallel(product, pieces, 2 * right.bytes_per_tile):
        total = total + part
    return total


def _crossed(
    factors: Factors, diagonals: Diagonals, x: Read, number: int, u: Array
) -> tuple[Array, list[Array]]:
    """Multiplies the blocks of a row tile that the ends of the diagonals cross.

    Args:
        factors: The factors of the result.
        diagonals: The diagonals that are kept.
        x: Gives rows of what is multiplied.
        number: The number of the row tile.
        u: The left vectors of its rows.

    Returns:
        What the blocks give, and for each block the sum ``V^H x`` of its columns.
    """
    left, right = factors.left, factors.right
    rows = left.layout.rows(number)
    window = diagonals.crossing(rows, right.shape[0])
    v = u if left is right and window == rows else read_rows(right, window)
    parts, sums = [], []
    for block in cut(rows, BLOCK_ROWS):
        columns = diagonals.crossing(block, right.shape[0])
        there, given = v[columns.shifted(-window.start).slice].conj().T, x(columns)
        entries = u[block.shifted(-rows.start).slice] @ (factors.values[:, None] * there)
        entries[~diagonals.hold(_numbers(block), _numbers(columns))] = 0
        parts.append(entries @ given)
        sums.append(there @ given)
    return np.concatenate(parts), sums


def _signed_sum(signed: list[tuple[int, Diagonals]], arrays: list[Array]) -> Array:
    total = signed[0][0] * arrays[0]
    for (sign, _), one in zip(signed[1:], arrays[1:], strict=True):
        total += sign * one
    return total


def _numbers(of: Range) -> Array:
    return np.arange(of.start, of.stop)


def _tile_bytes(factors: Factors) -> int:
    """Bytes that a row tile, and the two of columns that it needs, take."""
    return factors.left.bytes_per_tile + 2 * factors.right.bytes_per_tile
