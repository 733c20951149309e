"""Differences: one matrix less another, of two checkpoints for instance, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.matrices.alike import remarks_on_units, require_same_columns
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrices.sources import Rows, Source

_PIECE = 1 << 23
"""Bytes of both that are read together."""


class DifferenceSource(Source):
    """The rows of one source less those of another.

    Args:
        first: What is subtracted from.
        second: What is subtracted.

    Raises:
        OperatorError: If one is sparse, or they have different shapes or columns.
    """

    def __init__(self, first: Rows, second: Rows) -> None:
        for one in (first, second):
            if not isinstance(one, Source):
                raise OperatorError(
                    f"minus: {one.name} is sparse, and differences are taken of dense matrices; "
                    "write the difference to a file, and give that"
                )
        assert isinstance(first, Source)
        assert isinstance(second, Source)
        if first.shape != second.shape or first.is_transposed != second.is_transposed:
            raise OperatorError(
                f"minus: {second.name} is {_size(second)}, and {first.name} is {_size(first)}; "
                "give matrices of one shape, stored alike"
            )
        labels, names = [first.labels(), second.labels()], [first.name, second.name]
        require_same_columns(labels, names)
        self._first, self._second = first, second
        dtypes = (_floating(first.dtype), _floating(second.dtype))
        self._describe(f"{first.name} minus {second.name}", first.shape, np.result_type(*dtypes))
        self.is_transposed = first.is_transposed
        self.rows_together = max(first.rows_together, second.rows_together)
        self.held_bytes = first.held_bytes + second.held_bytes + 2 * _PIECE
        units = remarks_on_units([one.attributes for one in labels], names)
        self.remarks = tuple(dict.fromkeys((*first.remarks, *second.remarks, *units)))

    def _read_to(self, out: Array, rows: Range) -> None:
        most = max(1, _PIECE // (self.shape[1] * self.dtype.itemsize))
        for piece in cut(rows, most):
            one, other = self._first.read(piece), self._second.read(piece)
            part = out[piece.shifted(-rows.start).slice]
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(one, other, out=part, dtype=self.dtype, casting="unsafe")

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`: the most of either."""
        rows = min(slab_rows, max(1, _PIECE // (self.shape[1] * self.dtype.itemsize)))
        return max(self._first.readings(rows), self._second.readings(rows))

    def meaning(self, row: int, column: int) -> str:
        """See :class:`Rows`."""
        return self._first.meaning(row, column) or self._second.meaning(row, column)

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`: those of the first."""
        return self._first.coordinates(name)

    def labels(self) -> Labels:
        """See :class:`Rows`: those of the first."""
        return self._first.labels()


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype in which differences are taken: of integers and half precision a wider one."""
    if dtype.kind == "c" or (dtype.kind == "f" and dtype.itemsize > 2):
        return dtype.newbyteorder("=")
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def _size(source: Source) -> str:
    turned = ", by columns" if source.is_transposed else ""
    return f"{source.shape[0]} x {source.shape[1]}{turned}"
