"""Indexing of matrices on disk: which rows and columns an index names, and in which tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.base.partition import Range

Indices = npt.NDArray[np.intp]
Places = slice | Indices

_AXES = ("row", "column")


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection of rows, or of columns, in the order in which they are wanted.

    Attributes:
        wanted: The numbers of the rows or columns.
        single: Whether an integer named the only one, so that its dimension is dropped.
    """

    wanted: range | Indices
    single: bool = False

    def __len__(self) -> int:
        return len(self.wanted)

    @property
    def listed(self) -> bool:
        """Whether a list or a mask named the rows or columns."""
        return not isinstance(self.wanted, range)

    def tiles(self, size: int) -> Iterable[int]:
        """Lists the numbers of the tiles of ``size`` that hold any of them, ascending."""
        if not len(self):
            return ()
        if not isinstance(self.wanted, range):
            return [int(number) for number in np.unique(self.wanted // size)]
        ends = sorted((self.wanted[0], self.wanted[-1]))
        tiles = range(ends[0] // size, ends[1] // size + 1)
        # A long stride leaves tiles out.
        return tiles if len(tiles) <= len(self) else sorted({i // size for i in self.wanted})

    def within(self, tile: Range) -> tuple[Places, Places]:
        """Finds those in a tile: their places among all that are wanted, and in the tile."""
        if not isinstance(self.wanted, range):
            order, ascending = self._sorted
            first, last = np.searchsorted(ascending, [tile.start, tile.stop])
            return order[first:last], ascending[first:last] - tile.start
        start, step = self.wanted.start, self.wanted.step
        # The least place whose number is on the far side of either end of the tile.
        ends = [tile.start, tile.stop] if step > 0 else [tile.stop - 1, tile.start - 1]
        first, last = (min(max(0, -((start - end) // step)), len(self)) for end in ends)
        inside = self.wanted[first:last]
        # A slice is a view, where an array of places would copy.
        if step == 1:
            return slice(first, last), slice(inside.start - tile.start, inside.stop - tile.start)
        return slice(first, last), np.array(inside, np.intp) - tile.start

    @cached_property
    def _sorted(self) -> tuple[Indices, Indices]:
        numbers = np.asarray(self.wanted)
        order = np.argsort(numbers, kind="stable")
        return order, numbers[order]


def crossed(rows: Places, columns: Places) -> Any:
    """Makes an index of numpy's for all given columns of all given rows."""
    # Two arrays of places would pick single entries.
    if isinstance(rows, slice) or isinstance(columns, slice):
        return rows, columns
    return np.ix_(rows, columns)


def selections(key: Any, shape: tuple[int, int]) -> tuple[Selection, Selection]:
    """Finds the rows and columns that ``matrix[key]`` names.

    Args:
        key: Slices, integers, and lists or tensors of integers or booleans; ``...`` is allowed.
        shape: The shape of the matrix.

    Raises:
        IndexError: If the key means nothing for a matrix, or is out of range.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [place for place, item in enumerate(keys) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    given = len(keys) - len(dots)
    if given > len(shape):
        raise IndexError(f"too many indices: {given} for a matrix of {len(shape)} dimensions")
    place = dots[0] if dots else len(keys)
    keys[place : place + 1] = [slice(None)] * (len(shape) - given)
    return select(keys[0], shape[0], 0), select(keys[1], shape[1], 1)


def select(index: Any, size: int, axis: int) -> Selection:
    """Finds the rows or columns that an index of one axis names.

    Args:
        index: A slice, an integer, or a list, an array or a tensor of integers or booleans.
        size: The number of rows or columns.
        axis: 0 for rows, 1 for columns.

    Raises:
        IndexError: If the index is none of these, or out of range.
    """
    if isinstance(index, slice):
        return Selection(range(size)[index])
    try:
        given = np.asarray(index.cpu() if hasattr(index, "cpu") else index)
    except ValueError as error:
        raise IndexError(f"{index!r} is no list of {_AXES[axis]} numbers: {error}") from error
    if given.ndim == 1 and not given.size and isinstance(index, (list, tuple)):
        # numpy takes an empty list for floating-point numbers.
        given = given.astype(np.intp)
    if given.ndim == 1 and given.dtype.kind == "b":
        if len(given) != size:
            raise IndexError(
                f"a mask of {len(given)} entries does not fit a matrix of {size} {_AXES[axis]}s"
            )
        return Selection(np.flatnonzero(given))
    # Tensors of uint8 are masks in torch: neither reading of them would be safe.
    ambiguous = given.ndim == 1 and given.dtype == np.uint8
    if given.ndim > 1 or given.dtype.kind not in "iu" or ambiguous:
        raise IndexError(
            f"{index!r} is no index of {_AXES[axis]}s: give an integer, a slice, or a list or "
            "tensor, of one dimension, of integers or booleans"
        )
    outside = given[(given < -size) | (given >= size)]
    if outside.size:
        raise IndexError(
            f"index {outside.flat[0]} is out of range: there are {size} {_AXES[axis]}s"
        )
    wanted = given.astype(np.intp) % max(1, size)
    if given.ndim:
        return Selection(wanted)
    return Selection(range(int(wanted), int(wanted) + 1), single=True)
