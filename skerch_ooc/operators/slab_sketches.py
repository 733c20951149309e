"""Sketches of a matrix, taken slab of rows by slab of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from skerch_ooc.algebra.noise import Entries
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.matrices.slabs import Slab, add_adjoint, column_sums, times
from skerch_ooc.operators.rows import Backward, Inner

_SLABS_ADDED = 4
_ROWS_ADDED = 64


class Slabs(ABC):
    """The rows that sketches are taken of.

    Attributes:
        shape: ``(rows, w)``.
        dtype: Name of the dtype of the sketches.
    """

    shape: tuple[int, int]
    dtype: str
    _rows: Range

    @property
    @abstractmethod
    def slab_device(self) -> str:
        """The torch device on which slabs are multiplied."""

    @property
    def first_row(self) -> int:
        """The first of the rows, in the whole matrix."""
        return self._rows.start

    def tensor(self, array: Array, dtype: torch.dtype) -> torch.Tensor:
        """An array on the device of the slabs."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.slab_device, dtype)


class ForwardSketch:
    """Rows of ``A [X_1 X_2 ...]``: one product, as narrow ones are slow.

    Args:
        product: The rows.
        dtype: Of the slabs.
        columns: The blocks ``X_i``; there may be none.
    """

    def __init__(self, product: Slabs, dtype: torch.dtype, columns: Sequence[Array]) -> None:
        self._first, height = product.first_row, product.shape[0]
        self._found = [np.empty((height, x.shape[1]), product.dtype) for x in columns]
        self._x: torch.Tensor | None = None
        if columns:
            self._x = product.tensor(np.concatenate(columns, axis=1), dtype)

    def take(self, rows: Range, slab: Slab) -> torch.Tensor | None:
        """Takes a slab; returns what it made of it."""
        if self._x is None:
            return None
        product = times(slab, self._x)
        for found, y in zip(self._found, self._split(product), strict=True):
            found[rows.shifted(-self._first).slice] = y
        return product

    def subtract(self, means: torch.Tensor, of_rows: Array | None = None) -> float:
        """Takes a row off all rows of ``A``: its product off all rows of the sketches.

        Args:
            means: The row.
            of_rows: What it is multiplied by in each row.

        Returns:
            What is left of the norm, at least, as a share.
        """
        if self._x is None:
            return 1.0
        product, left = means @ self._x.to(means.dtype), 1.0
        for found, y in zip(self._found, self._split(product), strict=True):
            row = y.astype(found.dtype)
            before = float(np.linalg.norm(found))
            found -= row if of_rows is None else np.outer(of_rows, row).astype(found.dtype)
            left = min(left, float(np.linalg.norm(found)) / before if before else 1.0)
        return left

    def _split(self, product: torch.Tensor) -> list[Array]:
        """The products with each block of columns."""
        ends = np.cumsum([found.shape[1] for found in self._found])
        return np.split(product.cpu().numpy(), ends[:-1], axis=-1)

    def results(self) -> list[Array]:
        """The sketches."""
        return self._found


class ColumnMeans:
    """The mean of each column."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum: torch.Tensor | None = None

    def take(self, slab: Slab, rows: int) -> None:
        """Takes a slab, of which so many rows count; the others are zero."""
        total = column_sums(slab)
        self._rows += rows
        self._sum = total if self._sum is None else self._sum + total

    def result(self) -> torch.Tensor:
        """The means, ``(w,)``, in double precision."""
        assert self._sum is not None
        return self._sum / max(1, self._rows)


class SummedSketch:
    """``A^H N``, or ``Phi^H A X``: summed over slabs, and kept as ``N^H A``.

    A few slabs are added in the precision of the matrix, as one product of them all would be; their
    sums in double precision.

    Args:
        product: The rows.
        dtype: Of the slabs.
        request: What is wanted.
    """

    def __init__(self, product: Slabs, dtype: torch.dtype, request: Backward | Inner) -> None:
        self._product, self._dtype, self._vectors = product, dtype, request.vectors
        self._x: torch.Tensor | None = None
        if isinstance(request, Inner):
            self._x = product.tensor(request.columns, dtype)
            shape = (request.rows, request.columns.shape[1])
        else:
            shape = (request.columns, product.shape[1])
        self._few = torch.zeros(shape, dtype=dtype, device=product.slab_device)
        self._slabs = 0
        self._sum: torch.Tensor | None = None
        self._free: list[torch.Tensor] = []
        self._wide = torch.promote_types(dtype, torch.float64)
        self._ones = torch.zeros(shape[0], dtype=self._wide, device=product.slab_device)

    def take(self, rows: Range, slab: Slab, of_rows: Array | None = None) -> torch.Tensor:
        """Takes a slab; returns the sum so far.

        Args:
            rows: Its rows.
            slab: The slab.
            of_rows: What means are multiplied by in each row, when they are taken off.
        """
        right = slab if self._x is None else times(slab, self._x)
        vectors = self._vectors(rows)
        if isinstance(vectors, Entries):
            weights = vectors.values if of_rows is None else vectors.values * of_rows[vectors.rows]
            counts = np.bincount(vectors.columns, weights, len(self._few))
            add_adjoint(self._few, vectors, right)
            self._ones += torch.from_numpy(counts).to(self._ones)
        else:
            left = self._product.tensor(vectors, self._dtype)
            add_adjoint(self._few, left, right)
            ones = left.mH.sum(dim=1) if of_rows is None else left.mH @ self._as_row(of_rows)
            self._ones += ones.to(self._ones)
        self._slabs += 1
        if self._slabs % _SLABS_ADDED == 0:
            self._flush()
        return self._few

    def _as_row(self, of_rows: Array) -> torch.Tensor:
        return self._product.tensor(of_rows, self._dtype)

    def _flush(self) -> None:
        if self._sum is None:
            free = self._free
            self._sum = free.pop() if free else torch.empty_like(self._few, dtype=self._wide)
            self._sum.copy_(self._few)
        else:
            for rows in cut(Range(0, len(self._few)), _ROWS_ADDED):
                # torch converts to one type first: all at once, that takes fresh memory each time.
                self._sum[rows.slice] += self._few[rows.slice]
        self._few.zero_()

    def total(self) -> torch.Tensor:
        """The sum over the slabs since the last call."""
        if self._slabs % _SLABS_ADDED or self._sum is None:
            self._flush()
        total, self._sum, self._slabs = self._sum, None, 0
        assert total is not None
        return total

    def give_back(self, total: torch.Tensor) -> None:
        """Takes a sum whose numbers are no longer needed, to be used again."""
        self._free.append(total)

    def subtract(self, total: torch.Tensor, means: torch.Tensor) -> float:
        """Takes a row off all rows of ``A``: ``N^H 1`` times it off the sum over all rows.

        Returns:
            What is left of the norm, as a share.
        """
        row = means if self._x is None else means @ self._x.to(means.dtype)
        before = float(torch.linalg.norm(total))
        total -= self._ones[:, None] * row[None, :]
        return float(torch.linalg.norm(total)) / before if before else 1.0

    def result(self, total: torch.Tensor, *, wide: bool) -> Array:
        """The sketch of a sum over all terms."""
        kept = total if wide else total.to(self._dtype)
        if self._x is None:
            kept = kept.mH.resolve_conj()
        return np.ascontiguousarray(kept.cpu().numpy())
