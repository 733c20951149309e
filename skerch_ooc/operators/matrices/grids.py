"""Grids: arrays of more than two dimensions as matrices, some dimensions being the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.partition import Range

Slices = tuple[Any, ...]
"""An index for each dimension of an array."""


@dataclass(frozen=True)
class Grid:
    """How the dimensions of an array make up rows and columns.

    Attributes:
        sizes: Of each dimension.
        names: Of each dimension; empty where it has none.
        rows: The numbers of those that are rows, the slowest first; the others are columns, in
            their order.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, name: str, sizes: Sequence[int], names: Sequence[str], rows: Sequence[str | int]
    ) -> Grid:
        """Finds the dimensions that are meant by names or numbers.

        Raises:
            OperatorError: If there is no such dimension, or it is not said which are rows.
        """
        dims = [f"{i} ({one}, {size})" if one else f"{i} ({size})"
                for i, (one, size) in enumerate(zip(names, sizes, strict=True))]  # fmt: skip
        if not rows:
            if len(sizes) == 2:
                rows = [0]
            else:
                example = names[0] or 0
                raise OperatorError(
                    f"{name} has {len(sizes)} dimensions: {shown_list(dims)}; give those that "
                    f"are rows, such as rows = [{example!r}] in [operator.args]; "
                    "the others are columns"
                )
        found: list[int] = []
        for one in rows:
            known = names.index(one) if one in names else one
            if not isinstance(known, int) or not 0 <= known < len(sizes) or known in found:
                raise OperatorError(
                    f"{name} has no dimension {one!r} that could be rows; give some of: "
                    f"{shown_list(dims)}"
                )
            found.append(known)
        if len(found) == len(sizes):
            raise OperatorError(
                f"rows = {list(rows)} are all dimensions of {name}, which leaves no columns; give "
                "fewer"
            )
        return cls(tuple(map(int, sizes)), tuple(names), tuple(found))

    @property
    def columns(self) -> tuple[int, ...]:
        """The numbers of the dimensions that are columns."""
        return tuple(i for i in range(len(self.sizes)) if i not in self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of the matrix."""
        height = math.prod(self.sizes[i] for i in self.rows)
        return height, math.prod(self.sizes[i] for i in self.columns)

    @property
    def is_plain(self) -> bool:
        """Whether it is a matrix of itself: two dimensions, the first of which are the rows."""
        return len(self.sizes) == 2 and self.rows == (0,)

    def read(self, get: Callable[[Slices], Array], rows: Range, out: Array) -> None:
        """Fills an array with rows of the matrix.

        Args:
            get: Reads a rectangle of the array.
            rows: Which rows.
            out: Where to, ``(len(rows), width)``.
        """
        self._read(get, rows, out, {}, self.rows)

    def _read(
        self, get: Callable[[Slices], Array], rows: Range, out: Array, fixed: dict[int, int],
        free: tuple[int, ...],
    ) -> None:  # fmt: skip
        first, *others = free
        inner = math.prod(self.sizes[i] for i in others)
        if not others:
            index = [slice(None)] * len(self.sizes)
            for axis, place in fixed.items():
                index[axis] = slice(place, place + 1)
            index[first] = rows.slice
            found = get(tuple(index))
            out[:] = found.transpose(*self.rows, *self.columns).reshape(out.shape)
            return
        for place in range(rows.start // inner, -(-rows.stop // inner)):
            inside = Range(place * inner, (place + 1) * inner).common(rows)
            part = out[inside.shifted(-rows.start).slice]
            which = inside.shifted(-place * inner)
            self._read(get, which, part, fixed | {first: place}, tuple(others))

    def chunks_across(self, chunks: Sequence[int]) -> tuple[int, int]:
        """How many rows a chunk spans, and how many entries all chunks have that hold one row."""
        first = self.rows[0] if len(self.rows) == 1 else self.rows[-1]
        entries = 1
        for i, (size, chunk) in enumerate(zip(self.sizes, chunks, strict=True)):
            is_row = i in self.rows
            entries *= chunk if is_row else -(-size // chunk) * chunk
        return min(chunks[first], self.sizes[first]), entries
