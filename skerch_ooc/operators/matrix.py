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
import torch

from skerch_ooc.base.arrays import Array, converted, empty_aligned
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range, cut, tree_sum
from skerch_ooc.operators.adapters import Product, applied
from skerch_ooc.operators.matrix_files import Source, open_source
from skerch_ooc.operators.rows import Backward, Forward, Request
from skerch_ooc.operators.slab_sketches import (
    ColumnMeans,
    ForwardSketch,
    Slabs,
    SummedSketch,
    require_entries,
    require_finite,
)
from skerch_ooc.planning.memory import SLAB_BYTES
from skerch_ooc.planning.plan import TILE_ROWS
from skerch_ooc.planning.spec import DTYPES

TERM_BYTES = 1 << 29
"""The rows that are measured together have at least this size, or are all there are."""

COLUMN_MEAN = "column-mean"
_SAMPLED_ROWS = 64
_BUFFERS = 2
_WAITING = 0.3
"""Share of its time that a reading must have waited for the next to be begun early."""


class StoredMatrix:
    """A matrix whose rows are read when it is applied.

    Args:
        source: Where the rows come from.
        subtract: ``"column-mean"`` to subtract from each column its mean, as principal component
            analysis does.
        device: The torch device on which slabs are multiplied.

    Attributes:
        shape: ``(height, width)``.
        dtype: A floating-point dtype that holds what is stored, as a name.
        known_means: The mean of each column, once it is known.

    Raises:
        OperatorError: If ``subtract`` is something else.
    """

    def __init__(self, source: Source, subtract: str | None = None, device: str = "cpu") -> None:
        if subtract not in (None, COLUMN_MEAN):
            raise OperatorError(f'subtract = {subtract!r}: must be "{COLUMN_MEAN}", or left out')
        self._source, self._subtract, self.device = source, subtract, device
        self.known_means: torch.Tensor | None = None
        self.shape = source.shape
        self.dtype = _floating(source.dtype)
        row = source.shape[1] * np.dtype(self.dtype).itemsize
        # Powers of two, so that terms are whole slabs, and whole tiles of the sketches.
        self.term_rows = TILE_ROWS * _power_of_two(-(-TERM_BYTES // (row * TILE_ROWS)))
        self.terms = -(-source.shape[0] // self.term_rows)
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
        return applied(self, x, adjoint=False)  # type: ignore[no-any-return]

    def rmatmat(self, x: torch.Tensor) -> torch.Tensor:
        """``A^H X``, ``(w, b)``."""
        return applied(self, x, adjoint=True)  # type: ignore[no-any-return]

    def read(
        self, rows: Range, dtype: torch.dtype, shift: torch.Tensor | None = None
    ) -> Iterator[tuple[Range, torch.Tensor]]:
        """The slabs of some rows, each read while the one before it is at work.

        Args:
            rows: Which; from the first row of a term.
            dtype: Of the slabs.
            shift: What is subtracted from each row.

        Returns:
            Rows and the entries in them, which are overwritten when the next is asked for.
        """
        slabs = cut(rows, self._slab_rows)
        shift = None if shift is None else shift.to(dtype)
        buffers = self._buffers

        def read(number: int) -> tuple[torch.Tensor, bool]:
            begin, working = time.perf_counter(), time.thread_time()
            out = buffers[number % _BUFFERS][: len(slabs[number])]
            tensor = self._as_tensor(self._source.read(slabs[number], out), dtype)
            wall, working = time.perf_counter() - begin, time.thread_time() - working
            return tensor, wall - working > _WAITING * wall

        # Reading from the page cache takes a core, which arithmetic needs too. So the next slab is
        # read meanwhile only where the disk is waited for.
        waits = False
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            following: Future[tuple[torch.Tensor, bool]] | None = None
            for number, inside in enumerate(slabs):
                slab, waited = following.result() if following else read(number)
                waits |= waited
                following = None
                if waits and number + 1 < len(slabs):
                    following = reader.submit(read, number + 1)
                if shift is not None:
                    require_entries(inside, slab)
                    slab -= shift
                yield inside, slab

    def _as_tensor(self, stored: Array, dtype: torch.dtype) -> torch.Tensor:
        if not stored.dtype.isnative:
            stored = stored.astype(stored.dtype.newbyteorder("="))
        if stored.dtype.kind in "ub" or str(stored.dtype) == "float128":
            stored = converted(stored, self.dtype)
        return torch.from_numpy(stored).to(self.device, dtype)

    @cached_property
    def _buffers(self) -> list[Array]:
        """Where slabs are read to, one after the other: fresh memory is slow memory."""
        shape = (min(self._slab_rows, self.shape[0]), self.shape[1])
        return [empty_aligned(shape, self._source.dtype) for _ in range(_BUFFERS)]

    @property
    def is_centred(self) -> bool:
        """Whether column means are subtracted."""
        return self._subtract is not None

    def means(self) -> torch.Tensor:
        """The mean of each column, ``(w,)``, in double precision; read for it if not known yet."""
        if self.known_means is None:
            total = torch.zeros(self.shape[1], dtype=self._wide, device=self.device)
            for _, slab in self.read(Range(0, self.shape[0]), self._wide):
                total += slab.sum(dim=0)
            self.known_means = total / self.shape[0]
        return self.known_means

    def roughly(self) -> torch.Tensor:
        """The mean of each column over a few rows, ``(w,)``."""
        rows = self.sample(Range(0, self.shape[0]), self.dtype)
        return torch.from_numpy(rows).to(self.device, self._wide).mean(dim=0)

    @property
    def _wide(self) -> torch.dtype:
        """float64, or complex128."""
        return torch.promote_types(getattr(torch, self.dtype), torch.float64)

    def sample(self, rows: Range, dtype: str) -> Array:
        """A few rows, spread over a range, without means subtracted.

        Raises:
            OperatorError: If one of them holds NaN or infinity.
        """
        step = max(1, len(rows) // _SAMPLED_ROWS)
        chosen = range(rows.start, rows.stop, step)[:_SAMPLED_ROWS]
        kind = getattr(torch, dtype)
        found = []
        for row in chosen:
            entries = self._as_tensor(self._source.read(Range(row, row + 1)), kind)
            require_entries(Range(row, row + 1), entries)
            found.append(entries.cpu())
        return np.asarray(torch.cat(found).numpy())


class RowsProduct(Slabs, Product):
    """Applies some rows of a matrix on disk.

    Args:
        matrix: The matrix.
        dtype: Name of the plan's dtype.
        device: The torch device that the plan names; the matrix has its own.
        chosen: Which terms; all by default.
    """

    together = True
    _operator: StoredMatrix

    def __init__(
        self, matrix: StoredMatrix, dtype: str, device: str, chosen: Range | None = None
    ) -> None:
        self._operator = matrix
        self._chosen = Range(0, matrix.terms) if chosen is None else chosen
        self._rows = self.rows(self._chosen)
        self.shape = (len(self._rows), matrix.shape[1])
        self.dtype, self.device = dtype, device

    @property
    def terms(self) -> int:
        """How many terms the whole matrix has."""
        return self._operator.terms

    @property
    def slab_bytes(self) -> int:
        """Memory that reading takes."""
        return _BUFFERS * self._operator.slab_bytes

    @property
    def slab_device(self) -> str:
        """The torch device on which slabs are multiplied."""
        return self._operator.device

    def rows(self, terms: Range) -> Range:
        """See :meth:`skerch_ooc.operators.adapters.Product.rows`."""
        unit, height = self._operator.term_rows, self._operator.shape[0]
        return Range(terms.start * unit, min(terms.stop * unit, height))

    def part(self, terms: Range) -> RowsProduct:
        """See :meth:`skerch_ooc.operators.adapters.Product.part`."""
        return RowsProduct(self._operator, self.dtype, self.device, terms)

    @property
    def sampled(self) -> Product:
        """A few of its rows, in memory: what is compared with the fingerprint.

        Raises:
            OperatorError: If one of them holds NaN or infinity.
        """
        rows = self._operator.sample(self._rows, self.dtype)
        return Product(rows, self.dtype, "cpu")

    def __call__(self, columns: Array, *, adjoint: bool = False, wide: bool = False) -> Array:
        """See :class:`Product`: reads the rows once."""
        request: Request = Forward(columns)
        if adjoint:
            start = self._rows.start
            request = Backward(lambda rows: columns[rows.shifted(-start).slice], columns.shape[1])
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
        dtype, matrix = getattr(torch, self.dtype), self._operator
        forward = ForwardSketch(
            self, dtype, [r.columns for r in requests if isinstance(r, Forward)]
        )
        sums = [SummedSketch(self, dtype, r) for r in requests if not isinstance(r, Forward)]
        means = ColumnMeans(self) if self._finds_means else None
        shift = None
        if matrix.is_centred:
            shift = matrix.roughly() if means else matrix.means()

        def of_term(number: int) -> list[torch.Tensor]:
            for inside, slab in matrix.read(self.rows(Range(number, number + 1)), dtype, shift):
                product = forward.take(inside, slab)
                for one in sums:
                    total = one.take(inside, slab)
                    product = total if product is None else product
                require_finite(inside, slab, product)
                if means:
                    means.take(slab)
            return [one.total() for one in sums]

        def add(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
            for each, total, more in zip(sums, one, other, strict=True):
                total += more
                each.give_back(more)
            return one

        numbers = range(self._chosen.start, self._chosen.stop)
        totals: list[torch.Tensor] = tree_sum(map(of_term, numbers), add)
        if means and shift is not None:
            rest = means.result()
            forward.subtract(rest)
            for one, total in zip(sums, totals, strict=True):
                one.subtract(total, rest)
            matrix.known_means = shift + rest
        found = iter(forward.results())
        added = iter(one.result(total, wide=wide) for one, total in zip(sums, totals, strict=True))
        return [next(found if isinstance(request, Forward) else added) for request in requests]

    @property
    def _finds_means(self) -> bool:
        """Whether the means are found by the reading that makes the sketches.

        Rows are then centred by the means of a few of them, so that nothing is lost by cancellation
        where means are large, and what is left of the means is taken off the sketches.
        """
        matrix = self._operator
        return matrix.is_centred and matrix.known_means is None and self.shape == matrix.shape


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(
            f"cannot open {file} as a sparse .npz file: {error}; write it with "
            "scipy.sparse.save_npz"
        ) from error
    bad = np.flatnonzero(~np.isfinite(matrix.data))
    if len(bad):
        row = int(np.searchsorted(matrix.indptr, bad[0], side="right")) - 1
        raise OperatorError(
            f"row {row} of {file} holds {matrix.data[bad[0]]}; replace what is not finite in it"
        )
    return matrix.astype(_floating(matrix.dtype))


def _floating(dtype: np.dtype[Any]) -> str:
    """The dtype of products with entries of a dtype: its own, or one that holds integers."""
    name = str(dtype.newbyteorder("="))
    if name in DTYPES:
        return name
    if dtype.kind == "c":
        return "complex128"
    return "float32" if dtype.itemsize <= 2 else "float64"
