"""Slabs: rows of a matrix in memory, dense or sparse, and their products with blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from skerch_ooc.algebra.noise import Entries
from skerch_ooc.algebra.sparse import add_transposed_times
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.resources import limit_torch_of_thread

_COLUMNS_ADDED = 64
"""Columns of a sparse test matrix whose products are added at once."""

_MOST_AT_ONCE = 16
"""Threads that multiply sparse rows."""

Made = TypeVar("Made")


@dataclass
class SparseSlab:
    """Sparse rows less matrices of rank one: ``S - sum_i u_i v_i^T``, which is never formed.

    Attributes:
        rows: ``S``, ``scipy.sparse.csr_array``.
        thin: The pairs ``(u_i, v_i)``, in double precision.
    """

    rows: Any
    thin: list[tuple[Array, Array]] = field(default_factory=list)

    def scale(self, of_rows: Array | None, of_columns: Array | None) -> None:
        """Multiplies rows and columns by factors."""
        s = self.rows
        if of_columns is not None:
            s.data *= of_columns[s.indices].astype(s.data.dtype)
        if of_rows is not None:
            s.data *= np.repeat(of_rows, np.diff(s.indptr)).astype(s.data.dtype)
        self.thin = [
            (u if of_rows is None else u * of_rows, v if of_columns is None else v * of_columns)
            for u, v in self.thin
        ]

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """The product with ``X``, ``(w, b)``."""
        dense = x.numpy()
        product = np.concatenate(_at_once(lambda rows: _some_rows(self.rows, rows) @ dense,
                                          _pieces(self.rows.shape[0])))  # fmt: skip
        for u, v in self.thin:
            row = v @ dense.astype(np.result_type(v, dense), copy=False)
            product -= np.outer(u, row).astype(product.dtype)
        return torch.from_numpy(np.ascontiguousarray(product))

    def add_adjoint_to(self, out: torch.Tensor, left: Any) -> None:
        """Adds ``N^H`` times the slab to ``out``, ``(l, w)``, for ``N`` dense or sparse."""
        if isinstance(left, Entries):
            import scipy.sparse

            # N^T by its rows, which are real.
            entries = (left.values.astype(self.rows.dtype), (left.columns, left.rows))
            shape = (len(out), self.rows.shape[0])
            adjoint = scipy.sparse.coo_array(entries, shape=shape).tocsr()

            # A few columns of N at a time: what is added stays small, and in the cache.
            def add(some: Range) -> None:
                product = _some_rows(adjoint, some) @ self.rows
                out[some.slice] += torch.from_numpy(product.toarray())

            _at_once(add, cut(Range(0, len(out)), _COLUMNS_ADDED))
        else:
            n = left.numpy()
            adjoint = n.conj().T

            # (S^T conj(N))^T is N^H S.
            def add(some: Range) -> None:
                product = self.rows.T @ np.ascontiguousarray(n[:, some.slice]).conj()
                out[some.slice] += torch.from_numpy(product).mT

            _at_once(add, _pieces(len(out)))
        for u, v in self.thin:
            column = adjoint @ u.astype(np.result_type(u, np.float64))
            out -= torch.from_numpy(np.outer(column, v)).to(out.dtype)

    def dense(self) -> Array:
        """All entries."""
        found: Array = self.rows.toarray()
        for u, v in self.thin:
            found -= np.outer(u, v).astype(found.dtype)
        return found

    def column_sums(self) -> torch.Tensor:
        """The sum of each column, in double precision."""
        s = self.rows
        total = _counted(s.indices, s.data, s.shape[1])
        for u, v in self.thin:
            total = total - u.sum() * v
        return torch.from_numpy(total)


def _pieces(count: int) -> list[Range]:
    """Rows, or columns, in as many pieces as there are threads."""
    return cut(Range(0, count), -(-count // torch.get_num_threads()))


def _at_once(function: Callable[[Range], Made], pieces: Sequence[Range]) -> list[Made]:
    """Calls a function for each piece, in the threads that torch would compute with.

    SciPy's sparse products take one thread each, and let others run meanwhile.
    """
    threads = min(torch.get_num_threads(), len(pieces), _MOST_AT_ONCE)
    if threads < 2:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(threads, initializer=limit_torch_of_thread) as pool:
        return list(pool.map(function, pieces))


def adding_bytes(width: int, itemsize: int) -> int:
    """The memory that products of sparse rows with a sparse test matrix take until they are added.

    Args:
        width: Of the rows.
        itemsize: Bytes of an entry.
    """
    threads = min(torch.get_num_threads(), _MOST_AT_ONCE)
    # Entries and their columns, hardly any of which is left out; and the same, dense.
    return threads * _COLUMNS_ADDED * width * (2 * itemsize + 4)


def _some_rows(matrix: Any, rows: Range) -> Any:
    """Some rows of compressed rows, without a copy of their entries."""
    import scipy.sparse

    starts = matrix.indptr[rows.start : rows.stop + 1]
    inside = slice(int(starts[0]), int(starts[-1]))
    made = scipy.sparse.csr_array((len(rows), matrix.shape[1]), dtype=matrix.dtype)
    made.data, made.indices = matrix.data[inside], matrix.indices[inside]
    made.indptr = starts - starts[0]
    return made


Slab = torch.Tensor | SparseSlab


def times(slab: Slab, x: torch.Tensor) -> torch.Tensor:
    """The product of a slab with ``X``."""
    return slab.times(x) if isinstance(slab, SparseSlab) else slab @ x


def add_adjoint(out: torch.Tensor, vectors: Any, slab: Slab) -> None:
    """Adds ``N^H`` times a slab to ``out``, ``(l, w)``.

    Args:
        out: What is added to.
        vectors: The rows of ``N`` that go with the slab: a tensor, or :class:`Entries`.
        slab: The slab.
    """
    if isinstance(slab, SparseSlab):
        slab.add_adjoint_to(out, vectors)
    elif isinstance(vectors, Entries):
        add_transposed_times(vectors, slab, out)
    else:
        torch.addmm(out, vectors.mH, slab, out=out)


def column_sums(slab: Slab) -> torch.Tensor:
    """The sum of each column of a slab, in double precision."""
    if isinstance(slab, SparseSlab):
        return slab.column_sums()
    wide = torch.promote_types(slab.dtype, torch.float64)
    # One product, where a sum in double precision would first copy the slab.
    return (torch.ones_like(slab[:, 0]) @ slab).to(wide)


def _counted(indices: Array, values: Array, width: int) -> Array:
    """Sums of values by their index, in double precision."""
    if values.dtype.kind != "c":
        return np.bincount(indices, values.astype(np.float64, copy=False), width)
    real, imag = (np.bincount(indices, part.astype(np.float64), width)
                  for part in (values.real, values.imag))  # fmt: skip
    found: Array = real + 1j * imag
    return found


@dataclass
class ColumnMoments:
    """Number, mean and spread of the entries of each column, over any rows.

    Attributes:
        count: Entries that are there, ``(w,)``.
        mean: Their mean.
        square: The sum of the squares of their differences from it.
    """

    count: Array
    mean: Array
    square: Array

    @classmethod
    def of_dense(cls, slab: torch.Tensor, missing: torch.Tensor | None) -> ColumnMoments:
        """Those of a dense slab in double precision, with zeros where entries are missing."""
        if missing is None:
            mean = slab.mean(dim=0)
            square = torch.var(slab, dim=0, correction=0) * len(slab)
            count = np.full(slab.shape[1], float(len(slab)))
        else:
            there = (~missing).to(torch.float64)
            found = there.sum(dim=0)
            mean = slab.sum(dim=0) / found.clamp(min=1)
            square = (((slab - mean) * there).abs() ** 2).sum(dim=0)
            count = found.cpu().numpy()
        return cls(count, mean.cpu().numpy(), square.cpu().numpy())

    @classmethod
    def of_sparse(
        cls, slab: SparseSlab, nan: Array | None, row_means: Array | None
    ) -> ColumnMoments:
        """Those of a sparse slab without its thin part.

        Args:
            slab: The slab, with zeros where entries are missing.
            nan: Which of the stored entries are missing.
            row_means: What is taken off each row.
        """
        s, width = slab.rows, slab.rows.shape[1]
        count = np.full(width, float(s.shape[0]))
        if nan is not None:
            count -= np.bincount(s.indices[nan], minlength=width)
        total = _counted(s.indices, s.data, width)
        if row_means is None:
            mean = total / np.maximum(count, 1)
            # Around the mean, as the difference of large squares has few digits.
            away = np.abs(s.data - mean[s.indices]) ** 2
            if nan is not None:
                away[nan] = 0
            stored = np.bincount(s.indices, minlength=width)
            missing = 0 if nan is None else np.bincount(s.indices[nan], minlength=width)
            absent = count - stored + missing
            square = np.bincount(s.indices, away, width) + absent * np.abs(mean) ** 2
            return cls(count, mean, square)
        mean = (total - row_means.sum()) / count
        of_rows = np.repeat(row_means, np.diff(s.indptr))
        cross = _counted(s.indices, s.data * of_rows.conj(), width)
        own = np.bincount(s.indices, np.abs(s.data) ** 2, width)
        square = own - 2 * cross.real + float((np.abs(row_means) ** 2).sum())
        return cls(count, mean, np.maximum(0.0, square - count * np.abs(mean) ** 2))

    def joined(self, other: ColumnMoments) -> ColumnMoments:
        """Those of the rows of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        mean = self.mean + apart * share
        square = self.square + other.square + np.abs(apart) ** 2 * self.count * share
        return ColumnMoments(count, mean, square)

    def deviations(self, rows: int) -> Array:
        """The standard deviation of each column; 1 where it is constant to rounding.

        Args:
            rows: How many entries each has, with those that are missing and become the mean.
        """
        variance = self.square / rows
        level = np.finfo(np.float64).eps * np.abs(self.mean)
        constant = variance <= (10 * level) ** 2
        return np.where(constant, 1.0, np.sqrt(variance))


def total(moments: Sequence[ColumnMoments]) -> ColumnMoments:
    """Those of all rows, added in order."""
    first, *others = moments
    for other in others:
        first = first.joined(other)
    return first
