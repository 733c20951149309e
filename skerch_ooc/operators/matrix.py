"""Matrices on disk as operators: read in slabs of rows, and never held whole.

While a slab is in memory all sketches are taken of it, of both sides: one reading of the matrix
makes them all. While one is at work the next is read.

Slabs and terms are cut by the shape of the matrix alone, so that sums over them do not depend on
memory, nor on the parts in which the matrix is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skerch_ooc.arrays import empty_aligned
from skerch_ooc.errors import OperatorError
from skerch_ooc.noise import Entries
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.rows import SLAB_BYTES, Backward, Forward, Inner, Request
from skerch_ooc.operators.sources import Source, open_source
from skerch_ooc.partition import Range, cut, tree_sum
from skerch_ooc.sparse import add_transposed_times
from skerch_ooc.spec import TILE_ROWS

Array = npt.NDArray[Any]

TERM_BYTES = 1 << 29
"""The rows that are measured together have at least this size, or are all there are."""

COLUMN_MEAN = "column-mean"
_SAMPLED_ROWS = 64
_BUFFERS = 2
_SLABS_ADDED = 4
_ROWS_ADDED = 64
_WAITING = 0.3
"""Share of its time that a reading must have waited for the next to be begun early."""


class StoredMatrix:
    """A matrix whose rows are read when it is applied.

    Args:
        source: Where the rows come from.
        subtract: ``"column-mean"`` to subtract from each column its mean, as principal component
            analysis does; the means are found by one more reading of the rows.
        device: The torch device on which slabs are multiplied.

    Attributes:
        shape: ``(height, width)``.
        dtype: A floating-point dtype that holds what is stored, as a name.

    Raises:
        OperatorError: If ``subtract`` is something else.
    """

    def __init__(self, source: Source, subtract: str | None = None, device: str = "cpu") -> None:
        if subtract not in (None, COLUMN_MEAN):
            raise OperatorError(f'subtract = {subtract!r}: must be "{COLUMN_MEAN}", or left out')
        self._source, self._subtract, self.device = source, subtract, device
        self.shape = source.shape
        self.dtype = _floating(source.dtype)
        row = source.shape[1] * np.dtype(self.dtype).itemsize
        # Powers of two, so that terms are whole slabs, and whole tiles of the sketches.
        self.term_rows = TILE_ROWS * _power_of_two(-(-TERM_BYTES // (row * TILE_ROWS)))
        self._slab_rows = min(self.term_rows, _power_of_two(max(1, SLAB_BYTES // row), down=True))

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab."""
        return min(self._slab_rows, self.shape[0]) * self.shape[1] * np.dtype(self.dtype).itemsize

    def as_product(self, dtype: str, device: str) -> RowsProduct:
        """What applies the matrix, and sketches it in one reading."""
        return RowsProduct(self, dtype, device)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A X``, ``(h, b)``."""
        return self._applied(x, adjoint=False)

    def rmatmat(self, x: torch.Tensor) -> torch.Tensor:
        """``A^H X``, ``(w, b)``."""
        return self._applied(x, adjoint=True)

    def _applied(self, x: torch.Tensor, *, adjoint: bool) -> torch.Tensor:
        columns = x.detach().cpu().numpy()
        product = RowsProduct(self, str(columns.dtype), self.device)
        return torch.from_numpy(product(columns, adjoint=adjoint)).to(x.device)

    def read(
        self, rows: Range, dtype: torch.dtype, *, centred: bool = True
    ) -> Iterator[tuple[Range, torch.Tensor]]:
        """The slabs of some rows, each read while the one before it is at work.

        Args:
            rows: Which; from the first row of a term.
            dtype: Of the slabs.
            centred: Whether means are subtracted, if that is wanted at all.

        Returns:
            Rows and the entries in them, which are overwritten when the next is asked
            for.
        """
        slabs = cut(rows, self._slab_rows)
        means = self._means.to(dtype) if centred and self._subtract else None
        buffers = self._buffers

        def read(number: int) -> tuple[torch.Tensor, bool]:
            begin, working = time.perf_counter(), time.thread_time()
            out = buffers[number % _BUFFERS][: len(slabs[number])]
            tensor = self._as_tensor(self._source.read(slabs[number], out), dtype)
            wall, working = time.perf_counter() - begin, time.thread_time() - working
            return tensor, wall - working > _WAITING * wall

        # What is in the page cache already takes a core to read, which arithmetic wants too. Only
        # where the disk is waited for, the next slab is read meanwhile.
        waits = False
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            following: Future[tuple[torch.Tensor, bool]] | None = None
            for number, inside in enumerate(slabs):
                slab, waited = following.result() if following else read(number)
                waits |= waited
                following = None
                if waits and number + 1 < len(slabs):
                    following = reader.submit(read, number + 1)
                if means is not None:
                    _require_entries(inside, slab)
                    slab -= means
                yield inside, slab

    def _as_tensor(self, stored: Array, dtype: torch.dtype) -> torch.Tensor:
        if not stored.dtype.isnative:
            stored = stored.astype(stored.dtype.newbyteorder("="))
        if stored.dtype.kind in "ub" or str(stored.dtype) == "float128":
            stored = stored.astype(self.dtype)
        return torch.from_numpy(stored).to(self.device, dtype)

    @cached_property
    def _buffers(self) -> list[Array]:
        """Where slabs are read to, one after the other: fresh memory is slow memory."""
        shape = (min(self._slab_rows, self.shape[0]), self.shape[1])
        return [empty_aligned(shape, self._source.dtype) for _ in range(_BUFFERS)]

    @cached_property
    def _means(self) -> torch.Tensor:
        """The mean of each column, ``(w,)``, in double precision."""
        wide = getattr(torch, "complex128" if self.dtype.startswith("complex") else "float64")
        total = torch.zeros(self.shape[1], dtype=wide, device=self.device)
        for _, slab in self.read(Range(0, self.shape[0]), wide, centred=False):
            total += slab.sum(dim=0)
        return total / self.shape[0]

    def sample(self, rows: Range, dtype: str) -> Array:
        """A few rows, spread over a range, without means subtracted."""
        step = max(1, len(rows) // _SAMPLED_ROWS)
        chosen = range(rows.start, rows.stop, step)[:_SAMPLED_ROWS]
        kind = getattr(torch, dtype)
        parts = [
            self._as_tensor(self._source.read(Range(row, row + 1)), kind).cpu() for row in chosen
        ]
        return np.asarray(torch.cat(parts).numpy())


class RowsProduct(Product):
    """Applies some rows of a matrix on disk.

    Args:
        matrix: The matrix.
        dtype: Name of the plan's dtype.
        device: The torch device that the plan names; the matrix has its own.
        chosen: Which terms; all by default.
    """

    together = True

    def __init__(
        self, matrix: StoredMatrix, dtype: str, device: str, chosen: Range | None = None
    ) -> None:
        self._matrix = matrix
        self._chosen = Range(0, self._count(matrix)) if chosen is None else chosen
        self._rows = self.rows(self._chosen)
        self.shape = (len(self._rows), matrix.shape[1])
        self.dtype, self.device = dtype, device

    @staticmethod
    def _count(matrix: StoredMatrix) -> int:
        return -(-matrix.shape[0] // matrix.term_rows)

    @property
    def content(self) -> dict[str, str]:
        """See :class:`Product`: files are not hashed."""
        return {}

    @property
    def terms(self) -> int:
        """How many terms the whole matrix has."""
        return self._count(self._matrix)

    @property
    def slab_bytes(self) -> int:
        """Memory that reading takes."""
        return _BUFFERS * self._matrix.slab_bytes

    @property
    def slab_device(self) -> str:
        """The torch device on which slabs are multiplied."""
        return self._matrix.device

    @property
    def first_row(self) -> int:
        """The first of its rows."""
        return self._rows.start

    def tensor(self, array: Array, dtype: torch.dtype) -> torch.Tensor:
        """An array on the device of the slabs."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.slab_device, dtype)

    def rows(self, terms: Range) -> Range:
        """See :meth:`skerch_ooc.operators.adapters.Product.rows`."""
        unit, height = self._matrix.term_rows, self._matrix.shape[0]
        return Range(terms.start * unit, min(terms.stop * unit, height))

    def part(self, terms: Range) -> RowsProduct:
        """See :meth:`skerch_ooc.operators.adapters.Product.part`."""
        return RowsProduct(self._matrix, self.dtype, self.device, terms)

    @property
    def sampled(self) -> Product:
        """A few of its rows, in memory: what is compared with the fingerprint.

        Raises:
            OperatorError: If one of them holds NaN or infinity.
        """
        rows = self._matrix.sample(self._rows, self.dtype)
        return Product(rows, self.dtype, "cpu")

    def __call__(self, columns: Array, *, adjoint: bool = False, wide: bool = False) -> Array:
        """See :class:`Product`: reads the rows once."""
        start = self._rows.start

        def vectors(rows: Range) -> Array:
            return columns[rows.shifted(-start).slice]

        request = Backward(vectors, columns.shape[1]) if adjoint else Forward(columns)
        (found,) = self.sketch([request], wide=wide)
        return found

    def sketch(self, requests: Sequence[Request], *, wide: bool = False) -> list[Array]:
        """Takes any number of sketches in one reading of the rows.

        Args:
            requests: What is wanted.
            wide: Whether sums over rows are to be left in double precision.

        Returns:
            What was wanted, in this order.

        Raises:
            OperatorError: If a row holds NaN or infinity, or a product overflows; names the row.
        """
        dtype = getattr(torch, self.dtype)
        forward = _Forward(self, dtype, [r.columns for r in requests if isinstance(r, Forward)])
        sums = [_Sum(self, dtype, r) for r in requests if not isinstance(r, Forward)]

        def of_term(number: int) -> list[torch.Tensor]:
            for inside, slab in self._matrix.read(self.rows(Range(number, number + 1)), dtype):
                product = forward.take(inside, slab)
                for one in sums:
                    total = one.take(inside, slab)
                    product = total if product is None else product
                _require_finite(inside, slab, product)
            return [one.total() for one in sums]

        numbers = range(self._chosen.start, self._chosen.stop)

        def add(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
            for each, total, more in zip(sums, one, other, strict=True):
                total += more
                each.give_back(more)
            return one

        added_up: list[torch.Tensor] = tree_sum(map(of_term, numbers), add)
        totals = iter(added_up)
        found, added = iter(forward.results()), iter(sums)
        return [
            next(found)
            if isinstance(request, Forward)
            else next(added).result(next(totals), wide=wide)
            for request in requests
        ]


class _Forward:
    """Rows of ``A [X_1 X_2 ...]``: one product, as narrow ones are slow.

    Args:
        product: The rows.
        dtype: Of the slabs.
        columns: The blocks ``X_i``; there may be none.
    """

    def __init__(self, product: RowsProduct, dtype: torch.dtype, columns: Sequence[Array]) -> None:
        self._first, height = product.first_row, product.shape[0]
        self._found = [np.empty((height, x.shape[1]), product.dtype) for x in columns]
        self._x: torch.Tensor | None = None
        if columns:
            self._x = product.tensor(np.concatenate(columns, axis=1), dtype)

    def take(self, rows: Range, slab: torch.Tensor) -> torch.Tensor | None:
        """Takes a slab; returns what it made of it."""
        if self._x is None:
            return None
        product = slab @ self._x
        start, y = 0, product.cpu().numpy()
        for found in self._found:
            stop = start + found.shape[1]
            found[rows.shifted(-self._first).slice] = y[:, start:stop]
            start = stop
        return product

    def results(self) -> list[Array]:
        """The sketches."""
        return self._found


class _Sum:
    """``A^H N``, or ``Phi^H A X``: summed over slabs, and kept as ``N^H A``.

    A few slabs are added in the precision of the matrix, as one product of them all would be; their
    sums in double precision.

    Args:
        product: The rows.
        dtype: Of the slabs.
        request: What is wanted.
    """

    def __init__(self, product: RowsProduct, dtype: torch.dtype, request: Backward | Inner) -> None:
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

    def take(self, rows: Range, slab: torch.Tensor) -> torch.Tensor:
        """Takes a slab; returns the sum so far."""
        right = slab if self._x is None else slab @ self._x
        vectors = self._vectors(rows)
        if isinstance(vectors, Entries):
            add_transposed_times(vectors, right, self._few)
        else:
            left = self._product.tensor(vectors, self._dtype).mH
            torch.addmm(self._few, left, right, out=self._few)
        self._slabs += 1
        if self._slabs % _SLABS_ADDED == 0:
            self._flush()
        return self._few

    def _flush(self) -> None:
        if self._sum is None:
            wide = torch.promote_types(self._dtype, torch.float64)
            self._sum = (
                self._free.pop() if self._free else self._few.new_empty(self._few.shape, dtype=wide)
            )
            self._sum.copy_(self._few)
        else:
            for rows in cut(Range(0, len(self._few)), _ROWS_ADDED):
                # Of two types torch makes one first: a whole copy would be fresh memory each time.
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

    def result(self, total: torch.Tensor, *, wide: bool) -> Array:
        """The sketch of a sum over all terms."""
        kept = total if wide else total.to(self._dtype)
        if self._x is None:
            kept = kept.mH.resolve_conj()
        return np.ascontiguousarray(kept.cpu().numpy())


def _require_finite(rows: Range, slab: torch.Tensor, product: torch.Tensor | None) -> None:
    # A sum is finite only if all summands are, and quickly made.
    if product is None or bool(torch.isfinite(product.sum())):
        return
    _require_entries(rows, slab)
    if bool(torch.isfinite(product).all()):
        return
    raise OperatorError(
        f"products of the rows {rows} are too large for {slab.dtype}; use a wider dtype"
    )


def _require_entries(rows: Range, slab: torch.Tensor) -> None:
    """Refuses NaN and infinity.

    Raises:
        OperatorError: Naming the row.
    """
    if bool(torch.isfinite(slab.sum())):
        return
    bad = (~torch.isfinite(slab)).any(dim=1).nonzero()
    if not len(bad):
        return
    row = int(bad[0, 0])
    column = int((~torch.isfinite(slab[row])).nonzero()[0, 0])
    raise OperatorError(
        f"row {rows.start + row} of the matrix holds {slab[row, column].item()} in column "
        f"{column}; replace what is missing before the matrix is decomposed"
    )


def _power_of_two(number: int, *, down: bool = False) -> int:
    """The power of two that is at least a number, or at most."""
    up = 1 << (max(1, number) - 1).bit_length()
    return up // 2 if down and up > number else up


def stored(
    path: str | list[str], dataset: str | None = None, subtract: str | None = None,
    device: str = "cpu", folder: str = ".",
) -> StoredMatrix:  # fmt: skip
    """A matrix in HDF5 or ``.npy`` files: the factory ``"stored"``.

    Args:
        path: A file, a folder of files, which are stacked in the order of their names, or a list
            of either, from top to bottom; relative to the spec.
        dataset: Name of the dataset in HDF5 files; may be left out if each holds just one matrix.
        subtract: ``"column-mean"`` for principal component analysis.
        device: The torch device on which slabs are multiplied.
        folder: The spec's folder.

    Raises:
        OperatorError: If a file is missing or holds no matrix of numbers.
    """
    names = [path] if isinstance(path, str) else path
    source = open_source([Path(folder, name) for name in names], dataset)
    return StoredMatrix(source, subtract, device)


def sparse(path: str, folder: str = ".") -> Any:
    """A sparse matrix that SciPy saved as ``.npz``, held in memory: the factory ``"sparse"``.

    Args:
        path: The file, relative to the spec.
        folder: The spec's folder.

    Raises:
        OperatorError: If SciPy or the file is missing, or holds something else, or NaN.
    """
    try:
        import scipy.sparse
    except ImportError as error:
        raise OperatorError("sparse matrices need SciPy; install it: pip install scipy") from error
    file = Path(folder, path)
    try:
        matrix = scipy.sparse.load_npz(file).tocsr()
    except (OSError, ValueError, KeyError) as error:
        raise OperatorError(f"cannot open {file} as a sparse .npz file: {error}") from error
    bad = np.flatnonzero(~np.isfinite(matrix.data))
    if len(bad):
        row = int(np.searchsorted(matrix.indptr, bad[0], side="right")) - 1
        raise OperatorError(f"row {row} of {file} holds {matrix.data[bad[0]]}")
    return matrix.astype(_floating(matrix.dtype))


def _floating(dtype: np.dtype[Any]) -> str:
    """The dtype of products with entries of a dtype: its own, or one that holds integers."""
    name = str(dtype.newbyteorder("="))
    if name in ("float32", "float64", "complex64", "complex128"):
        return name
    if dtype.kind == "c":
        return "complex128"
    return "float32" if dtype.itemsize <= 2 else "float64"
