"""Matrices on disk as operators: read in slabs of rows, and never held whole.

While a slab is in memory all sketches are taken of it, of both sides: one reading of the matrix
makes them all. While one is at work the next is read.

Slabs and terms are cut by the shape of the matrix alone (of a sparse one by its entries), so that
sums over them do not depend on memory, nor on the parts in which the matrix is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array, converted, empty_aligned
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range, cut, tree_sum
from skerch_ooc.base.progress import note_share
from skerch_ooc.operators.adapters import Product, applied
from skerch_ooc.operators.matrices.differences import DifferenceSource
from skerch_ooc.operators.matrices.formats import located, open_source
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrices.options import Options
from skerch_ooc.operators.matrices.preparation import Preparation, moments_of
from skerch_ooc.operators.matrices.preparing import Steps, centre_dense_rows
from skerch_ooc.operators.matrices.slabs import ColumnMoments, Slab, SparseSlab, adding_bytes
from skerch_ooc.operators.matrices.sources import MEMORY, Meant, Rows, Source, SparseSource
from skerch_ooc.operators.matrices.weights import weights_of
from skerch_ooc.operators.rows import Backward, Forward, Request
from skerch_ooc.operators.slab_checks import require_entries, require_finite
from skerch_ooc.operators.slab_sketches import ColumnMeans, ForwardSketch, Slabs, SummedSketch
from skerch_ooc.operators.turned import TurnedProduct
from skerch_ooc.planning.memory import SLAB_BYTES
from skerch_ooc.planning.plan import SAMPLED_ROWS, TILE_ROWS
from skerch_ooc.planning.spec import DTYPES

TERM_BYTES = 1 << 29
"""The rows that are measured together have at least this size, or are all there are."""

_FEW_BLOCKS = 16 * SAMPLED_ROWS
"""With fewer blocks that are read as one, rows that are spread over them would read much of all."""
_BUFFERS = 2
_WAITING = 0.3
"""Share of its time that a reading must have waited for the next to be begun early."""
_CANCELLED = 1e-2
"""Where less is left of a sketch without means, it is made again with means that are known."""
_SPARSE_ENTRY = 4
"""Bytes of the column of an entry, besides its value."""


class StoredMatrix:
    """A matrix whose rows are read when it is applied.

    Args:
        source: Where the rows come from.
        subtract: As in :class:`~skerch_ooc.operators.matrices.options.Options`.
        device: The torch device on which slabs are multiplied.
        options: What else is made of the entries.
        weights: What rows and columns are multiplied by at last; ``None`` for nothing.

    Attributes:
        name: The file.
        shape: ``(height, width)`` of what is meant.
        rows_shape: The same of the rows as they lie in the file.
        is_turned: Whether the columns of these are the rows that are meant.
        dtype: A floating-point dtype that holds what is stored, as a name.
        steps: What is made of the rows.
        known_means: The mean of each column of the file, once it is known.

    Raises:
        OperatorError: If an option is not allowed.
    """

    stated: Mapping[str, Any] | None = None
    """Options of an object, as a plan says them; ``None`` for files, whose factory has them."""

    def __init__(
        self, source: Rows, subtract: str | None = None, device: str = "cpu", *,
        options: Options | None = None, weights: tuple[Array | None, Array | None] = (None, None),
    ) -> None:  # fmt: skip
        options = options or Options.of({"subtract": subtract})
        self._source, self.name = source, source.name
        self.device = device
        self.known_means: torch.Tensor | None = None
        self.is_turned = source.is_transposed != options.transpose
        self.steps = Steps.of(options, *weights, turned=self.is_turned)
        self.rows_shape: tuple[int, int] = source.shape
        self.shape = source.shape[::-1] if self.is_turned else source.shape
        self.dtype = _floating(source.dtype)
        # Powers of two, so that terms are whole slabs, and whole tiles of the sketches.
        row = self._row_bytes
        self.term_rows = TILE_ROWS * _power_of_two(-(-TERM_BYTES // (row * TILE_ROWS)))
        self.terms = -(-source.shape[0] // self.term_rows)
        self._buffers: dict[int, Array] = {}
        fitting = _power_of_two(max(1, SLAB_BYTES // row), down=True)
        self._slab_rows: int = min(self.term_rows, fitting)
        if isinstance(source, SparseSource):
            self._slab_rows = _even_slabs(source, self._slab_rows, row)

    @property
    def _row_bytes(self) -> int:
        """Bytes of a row, on average."""
        size = np.dtype(self.dtype).itemsize
        if isinstance(self._source, SparseSource):
            stored: int = self._source.entries * (size + _SPARSE_ENTRY)
            return max(1, stored // int(self._source.shape[0]))
        return int(self._source.shape[1]) * size

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab."""
        return min(self._slab_rows, self.rows_shape[0]) * self._row_bytes

    @property
    def held_bytes(self) -> int:
        """Memory that reading and preparing takes beside two slabs, once it is at work."""
        size, held = np.dtype(self.dtype).itemsize, self._source.held_bytes
        if isinstance(self._source, SparseSource):
            # The entries are read, checked, transposed for products of the adjoint.
            return held + 3 * self.slab_bytes + adding_bytes(self.rows_shape[1], size)
        prepared = 0 if self.steps.is_plain else 1
        decoded = 0 if self._source.decoding is None else 1
        wide = (prepared + decoded) * self.slab_bytes * 8 // min(size, 8)
        return held + wide

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences for people about what is read, and how often."""
        said = list(self._source.remarks)
        times = 1 + self.steps.need_moments
        if times > 1:
            said.append(
                "the file is read once more than the sketches need it: first for means and "
                "deviations"
            )
        once = self._source.readings(self._slab_rows)
        if once > 1:
            said.append(f"each reading takes its bytes {once:.1f} times")
        if times == 1 and self.is_centred and self.terms > 1:
            said.append("in several parts each process reads the file once more, for means")
        if self.is_turned:
            said.append("rows are the columns of the file, which is read by its own rows")
        return tuple(said)

    def labels(self) -> Labels:
        """What the rows and columns that are meant are called."""
        found = self._source.labels()
        return found.turned if self.is_turned != self._source.is_transposed else found

    @property
    def roots(self) -> tuple[Array | None, Array | None]:
        """What the rows and the columns that are meant are multiplied by: roots of weights."""
        rows, columns = self.steps.rows.weights, self.steps.columns.weights
        return (columns, rows) if self.is_turned else (rows, columns)

    def may_be_left_out(self) -> Array | None:
        """The columns that are meant of which the first entry is missing; ``None`` for any.

        Only these can be missing throughout. Of the transpose all rows would have to be read.
        """
        along = self.steps.rows if self.is_turned else self.steps.columns
        if not along.leave_out:
            return np.zeros(self.shape[1], bool)
        if self.is_turned or not isinstance(self._source, Source):
            return None
        return np.asarray(np.isnan(self._source.read(Range(0, 1))[0]))

    def left_out(self) -> Array | None:
        """The columns that are meant that are missing throughout; ``None`` if sparse.

        All rows are read where the first entries do not tell: of the transpose, and where columns
        of which some entries are missing are filled. Else these were refused.
        """
        may = self.may_be_left_out()
        along = self.steps.rows if self.is_turned else self.steps.columns
        told = may is not None and not (along.fill and bool(may.any()))
        if told or not isinstance(self._source, Source):
            return may
        gone = np.ones(self.shape[1], bool)
        for inside, stored in self.stored_slabs(Range(0, self.rows_shape[0])):
            missing = np.isnan(stored)
            if self.is_turned:
                gone[inside.slice] = missing.all(axis=1)
            else:
                gone &= missing.all(axis=0)
        return gone

    def as_product(self, dtype: str, device: str) -> RowsProduct | TurnedProduct:
        """What applies the matrix, and sketches it in one reading.

        Raises:
            OperatorError: If the matrix is complex and the dtype is real.
        """
        if np.dtype(dtype).kind != "c" and np.dtype(self.dtype).kind == "c":
            raise OperatorError(
                f"{self._source.name} holds complex numbers, and dtype = {dtype!r} would drop "
                f'their imaginary parts; give dtype = "{self.dtype}", or leave it out'
            )
        rows = RowsProduct(self, dtype, device)
        return TurnedProduct(rows) if self.is_turned else rows

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A X``, ``(h, b)``."""
        return applied(self, x, adjoint=False)  # type: ignore[no-any-return]

    def rmatmat(self, x: torch.Tensor) -> torch.Tensor:
        """``A^H X``, ``(w, b)``."""
        return applied(self, x, adjoint=True)  # type: ignore[no-any-return]

    def stored_slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        """The slabs of some rows as they are stored, each read while that before is at work.

        Args:
            rows: Which; from the first row of a term.

        Returns:
            Rows, and what is in them: arrays that are overwritten when the next is asked for, or
            sparse rows.
        """
        slabs, source = cut(rows, self._slab_rows), self._source

        def read(number: int, place: int) -> tuple[Any, bool]:
            begin, working = time.perf_counter(), time.thread_time()
            found: Any
            if isinstance(source, Source):
                out = self._buffer(place)[: len(slabs[number])]
                found = source.read(slabs[number], out)
            else:
                assert isinstance(source, SparseSource)
                found = source.read(slabs[number])
            wall, working = time.perf_counter() - begin, time.thread_time() - working
            return found, wall - working > _WAITING * wall

        # Reading from the page cache takes a core, which arithmetic needs too. So the next slab is
        # read meanwhile only where the disk is waited for.
        waits, place = False, 0
        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            following: Future[tuple[Any, bool]] | None = None
            for number, inside in enumerate(slabs):
                found, waited = following.result() if following else read(number, place)
                waits |= waited
                following = None
                if waits and number + 1 < len(slabs):
                    place = 1 - place
                    following = reader.submit(read, number + 1, place)
                yield inside, found

    def read(self, rows: Range, dtype: torch.dtype) -> Iterator[tuple[Range, Slab]]:
        """The slabs of some rows of the file as they are meant, but for means of columns.

        Args:
            rows: Which; from the first row of a term.
            dtype: Of the slabs.

        Returns:
            Rows and the entries in them, which are overwritten when the next is asked for.
        """
        prepared = Preparation.of(self, dtype, whole=False, centre=False)
        for inside, stored in self.stored_slabs(rows):
            slab, of_rows = prepared.of_slab(inside, stored)
            yield inside, prepared.with_rows(slab, of_rows)

    @property
    def is_sparse(self) -> bool:
        """Whether slabs are sparse."""
        return isinstance(self._source, SparseSource)

    def as_tensor(self, stored: Array, dtype: torch.dtype) -> torch.Tensor:
        """Stored entries in another dtype, on the device of the slabs."""
        if not stored.dtype.isnative:
            stored = stored.astype(stored.dtype.newbyteorder("="))
        if stored.dtype.kind in "ub" or str(stored.dtype) in ("float128", "complex256"):
            stored = converted(stored, self.dtype)
        return torch.from_numpy(stored).to(self.device, dtype)

    def meaning(self, row: int, column: int) -> str:
        """Why an entry counts as missing; empty where it is stored as NaN."""
        return self._source.meaning(row, column)

    def _buffer(self, place: int) -> Array:
        """Where slabs are read to, one after the other: fresh memory is slow memory."""
        if place not in self._buffers:
            shape = (min(self._slab_rows, self.rows_shape[0]), self.rows_shape[1])
            self._buffers[place] = empty_aligned(shape, self._source.dtype)
        return self._buffers[place]

    @property
    def is_centred(self) -> bool:
        """Whether the means of columns of the file are subtracted."""
        return self.steps.columns.centre

    @cached_property
    def moments(self) -> ColumnMoments:
        """Number, mean and spread of the entries of each column of the file; read for it."""
        return moments_of(self)

    def means(self) -> torch.Tensor:
        """The mean of each column, ``(w,)``, in double precision; read for it if not known yet."""
        if self.known_means is None:
            self.known_means = torch.from_numpy(self.moments.mean).to(self.device, self.wide)
        return self.known_means

    def roughly(self) -> torch.Tensor:
        """The mean of each column over a few rows, ``(w,)``; zeros for a sparse matrix."""
        if isinstance(self._source, SparseSource):
            return torch.zeros(self.rows_shape[1], dtype=self.wide, device=self.device)
        rows = self._dense_sample(Range(0, self.rows_shape[0]), self.dtype, None)
        rows = rows.to(self.device, self.wide)
        missing = torch.isnan(rows)
        rows[missing] = 0
        if self.steps.rows.centre:
            centre_dense_rows(rows, missing)
        return rows.mean(dim=0)

    @property
    def wide(self) -> torch.dtype:
        """float64, or complex128."""
        return torch.promote_types(getattr(torch, self.dtype), torch.float64)

    def sample(self, rows: Range, dtype: str, *, spread: bool | None = None) -> Any:
        """A few rows, as they are stored; zeros where entries may be missing.

        Args:
            rows: The range that they are taken of.
            dtype: Of what is returned.
            spread: Whether they are spread over the range; by default where that reads little more
                than these rows.

        Raises:
            OperatorError: If one of them holds NaN or infinity.
        """
        if isinstance(self._source, SparseSource):
            return self._sparse_sample(rows, dtype, spread)
        found = self._dense_sample(rows, dtype, spread)
        found[torch.isnan(found)] = 0
        return np.asarray(found.numpy())

    def _chosen(self, rows: Range, spread: bool | None) -> range:
        if spread is None:
            spread = self.spreads_sample
        step = max(1, len(rows) // SAMPLED_ROWS) if spread else 1
        return range(rows.start, rows.stop, step)[:SAMPLED_ROWS]

    def _dense_sample(self, rows: Range, dtype: str, spread: bool | None) -> torch.Tensor:
        """A few rows, with NaN where entries may be missing."""
        kind, found = getattr(torch, dtype), []
        assert isinstance(self._source, Source)
        for row in self._chosen(rows, spread):
            entries = self.as_tensor(self._source.read(Range(row, row + 1)), kind)
            there = entries[~torch.isnan(entries)] if self.steps.may_miss else entries
            if not bool(torch.isfinite(there).all()):
                self._refuse_first(rows)
            found.append(entries.cpu())
        return torch.cat(found)

    def _refuse_first(self, rows: Range) -> None:
        """Reads on until an entry is not finite, which is refused with all those in its slab."""
        for inside, stored in self.stored_slabs(rows):
            if not isinstance(stored, np.ndarray):
                require_entries(inside, SparseSlab(stored), self.meaning)
                continue
            slab = self.as_tensor(stored, self.wide)
            if self.steps.may_miss:
                slab[torch.isnan(slab)] = 0
            require_entries(inside, slab, self.meaning)

    def _sparse_sample(self, rows: Range, dtype: str, spread: bool | None) -> Any:
        import scipy.sparse

        assert isinstance(self._source, SparseSource)
        chosen = self._chosen(rows, spread)
        found = [self._source.read(Range(row, row + 1)) for row in chosen]
        sample = scipy.sparse.vstack(found, "csr").astype(dtype)
        missing = np.isnan(sample.data)
        if self.steps.may_miss:
            sample.data[missing] = 0
        elif not np.isfinite(sample.data).all():
            self._refuse_first(rows)
        return sample

    @property
    def spreads_sample(self) -> bool:
        """Whether rows are sampled all over the matrix, and not from its first ones."""
        together = self._source.rows_together
        return together == 1 or self.rows_shape[0] >= _FEW_BLOCKS * together


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
        self.shape = (len(self._rows), matrix.rows_shape[1])
        self.dtype, self.device = dtype, device

    @property
    def terms(self) -> int:
        """How many terms the whole matrix has."""
        return int(self._operator.terms)

    @property
    def slab_bytes(self) -> int:  # type: ignore[override]
        """Memory that two slabs take."""
        return _BUFFERS * self._operator.slab_bytes

    @property
    def held_bytes(self) -> int:  # type: ignore[override]
        """Memory that reading takes beside two slabs."""
        return self._operator.held_bytes

    @property
    def slab_device(self) -> str:
        """The torch device on which slabs are multiplied."""
        return self._operator.device

    def rows(self, terms: Range) -> Range:
        """See :meth:`skerch_ooc.operators.adapters.Product.rows`."""
        unit, height = self._operator.term_rows, self._operator.rows_shape[0]
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
        return self.sampled_as({})

    def sampled_as(self, fingerprint: Mapping[str, Any]) -> Product:
        """See :meth:`skerch_ooc.operators.adapters.Product.sampled_as`."""
        spread = self._operator.spreads_sample
        if fingerprint:
            spread = fingerprint.get("rows") != "first"
        rows = self._operator.sample(self._rows, self.dtype, spread=spread)
        made = Product(rows, self.dtype, "cpu")
        made.notes = {} if spread else {"rows": "first"}
        return made

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
        prepared = Preparation.of(matrix, dtype, whole=self._is_whole)
        means = ColumnMeans() if prepared.finds_means else None

        def of_term(number: int) -> list[torch.Tensor]:
            for inside, stored in matrix.stored_slabs(self.rows(Range(number, number + 1))):
                slab, of_rows = prepared.of_slab(inside, stored)
                if means:
                    means.take(slab, prepared.rows_left(inside))
                slab = prepared.with_rows(slab, of_rows)
                self._take(inside, slab, forward, sums, of_rows if means else None)
                note_share((inside.stop - self._rows.start) / len(self._rows))
            return [one.total() for one in sums]

        def add(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[torch.Tensor]:
            for each, total, more in zip(sums, one, other, strict=True):
                total += more
                each.give_back(more)
            return one

        numbers = range(self._chosen.start, self._chosen.stop)
        totals: list[torch.Tensor] = tree_sum(map(of_term, numbers), add)
        prepared.require_all()
        if means:
            rest = means.result()
            left = [forward.subtract(rest, prepared.of_all_rows)]
            left += [one.subtract(total, rest) for one, total in zip(sums, totals, strict=True)]
            matrix.known_means = prepared.means_with(rest)
            if min(left) < _CANCELLED and self.dtype in ("float32", "complex64"):
                # Rows that were looked at first are unlike the others: digits were lost.
                return self.sketch(requests, wide=wide)
        found = iter(forward.results())
        added = iter(one.result(total, wide=wide) for one, total in zip(sums, totals, strict=True))
        return [next(found if isinstance(request, Forward) else added) for request in requests]

    def _take(
        self, inside: Range, slab: Slab, forward: ForwardSketch, sums: list[SummedSketch],
        of_rows: Array | None,
    ) -> None:  # fmt: skip
        product = forward.take(inside, slab)
        for one in sums:
            total = one.take(inside, slab, of_rows)
            product = total if product is None else product
        require_finite(inside, slab, product, self._operator.meaning)

    @property
    def _is_whole(self) -> bool:
        """Whether it is all rows of the file, so that their means can be found by the way.

        Rows are then centred by the means of a few of them, so that nothing is lost by cancellation
        where means are large, and what is left of the means is taken off the sketches.
        """
        return bool(self.shape == self._operator.rows_shape)


def _even_slabs(source: SparseSource, rows: int, row_bytes: int) -> int:
    """Rows of a slab of a sparse matrix: fewer where some rows have many more entries."""
    per_entry = max(1, row_bytes * source.shape[0] // max(1, source.entries))
    while rows > 1:
        ends = np.append(source.starts[:-1:rows], source.starts[-1])
        if int(np.diff(ends).max()) * per_entry <= 2 * SLAB_BYTES:
            break
        rows //= 2
    return rows


def _power_of_two(number: int, *, down: bool = False) -> int:
    """The power of two that is at least a number, or at most."""
    up = 1 << (max(1, number) - 1).bit_length()
    return up // 2 if down and up > number else up


def stored(
    path: str | list[str], dataset: str | None = None, subtract: str | None = None,
    device: str = "cpu", folder: str = ".", memory: int = MEMORY, **options: Any,
) -> StoredMatrix:  # fmt: skip
    """A matrix in files: the factory ``"stored"``.

    Args:
        path: A file, a folder of files, which are stacked in the order of their names, or a list
            of either, from top to bottom; relative to the spec.
        dataset: Name of the dataset, or of the group of a sparse matrix, in HDF5 files; may be left
            out if each holds just one matrix.
        subtract: ``"column-mean"`` for principal component analysis, ``"row-mean"`` or ``"both"``.
        device: The torch device on which slabs are multiplied.
        folder: The spec's folder.
        memory: Peak resident memory of the process, in bytes.
        options: See :class:`~skerch_ooc.operators.matrices.options.Options`; also ``minus``, named
            like ``path``: what is subtracted from the matrix, the dataset of the same name.

    Raises:
        OperatorError: If a file is missing or holds no matrix of numbers, or an option is not
            allowed.
    """
    minus = options.pop("minus", None)
    asked = Options.of({"subtract": subtract} | options)
    wanted = Meant(dataset, asked.rows, asked.missing_codes, memory)
    source: Rows = _opened(path, folder, wanted)
    if minus is not None:
        source = DifferenceSource(source, _opened(minus, folder, wanted))
    _require_row(source, wanted)
    weights = weights_of(asked, source, Path(folder))
    thin = isinstance(source, SparseSource)
    return StoredMatrix(source, device="cpu" if thin else device, options=asked, weights=weights)


def _opened(path: str | list[str], folder: str, wanted: Meant) -> Rows:
    """What gives the rows of the files of a path, or of several."""
    names = [path] if isinstance(path, str) else path
    found: Rows = open_source([located(folder, name) for name in names], wanted=wanted)
    return found


def _require_row(source: Rows, wanted: Meant) -> None:
    """Refuses rows of which a few do not fit into the memory."""
    if isinstance(source, Source):
        row = source.shape[1] * np.dtype(_floating(source.dtype)).itemsize
        wanted.require_room(4 * row, f"{source.name} has rows of which four")


def sparse(
    path: str | list[str], folder: str = ".", memory: int = MEMORY, **options: Any
) -> StoredMatrix:
    """A sparse matrix: the factory ``"sparse"``, another name of ``"stored"``.

    Args:
        path: The file, relative to the spec.
        folder: The spec's folder.
        memory: Peak resident memory of the process, in bytes.
        options: As of :func:`stored`.

    Raises:
        OperatorError: If SciPy or the file is missing, or holds something else.
    """
    return stored(path, folder=folder, memory=memory, **options)


def _floating(dtype: np.dtype[Any]) -> str:
    """The dtype of products with entries of a dtype: its own, or one that holds integers."""
    name = str(dtype.newbyteorder("="))
    if name in DTYPES:
        return name
    if dtype.kind == "c":
        return "complex128"
    return "float32" if dtype.itemsize <= 2 else "float64"
