"""Samples: the rows of whatever people have, read slab by slab in double precision.

Arrays, frames, tensors and sparse matrices in memory, datasets of open files, and matrices on
disk look the same here. Slabs, and the runs of rows that are summed together, are cut by the shape
alone, so that sums over them depend on nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from skerch_ooc.algebra.principal import are_far
from skerch_ooc.base.arrays import Array, empty_aligned
from skerch_ooc.base.errors import OperatorError, shown
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.matrices.preparation import Preparation
from skerch_ooc.operators.matrices.slabs import SparseSlab
from skerch_ooc.operators.matrices.sources import MEMORY
from skerch_ooc.operators.matrices.weights import require_weights
from skerch_ooc.operators.matrix import StoredMatrix
from skerch_ooc.operators.objects import adapted, is_lazy
from skerch_ooc.planning.memory import SLAB_BYTES
from skerch_ooc.planning.plan import TILE_ROWS

RUN_BYTES = 1 << 29
"""Rows that are summed together have at least this size, in double precision."""

MOST_RUNS = 16
_TOGETHER = 8
"""They are also so many times as many as there are columns, so that sums are the smaller part."""

_SHARE = 4
"""The share of the memory, as a divisor, that samples may take that are held."""

DENSE = 1 / 32
"""Sparse matrices with at least this share of entries are summed as dense ones."""

Get = Callable[[slice], Any]


@dataclass(frozen=True)
class Learned:
    """What was learned of columns when they were prepared, for samples that come later.

    Attributes:
        fill: What stands where entries are missing, for each column; ``None`` for nothing.
        factors: What columns are multiplied by; ``None`` for nothing.
    """

    fill: Array | None = None
    factors: Array | None = None


class WeightsError(OperatorError, ValueError):
    """Weights of samples cannot be used; of the type that scikit-learn raises then, too."""


class Samples(ABC):
    """Rows of a matrix.

    Attributes:
        shape: ``(samples, features)``.
        dtype: Of the scores, float32 or float64.
        is_sparse: Whether slabs are SciPy's compressed rows.
        is_held: Whether the whole matrix is in memory.
        is_turned: Whether samples are the columns of a file, so that some features after the other
            are at hand.
        weights: Of the samples; ``None`` where all count the same.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    is_sparse = False
    is_held = True
    is_turned = False
    held_bytes = 0
    """Memory that slabs of them take beside themselves."""
    weights: Array | None = None
    _learned = Learned()

    def weighted(self, weights: Any) -> Samples:
        """The same with weights.

        Raises:
            WeightsError: If they are not one number for each sample, or not positive, or there
                are others.
        """
        numbers = np.asarray(weights, np.float64)
        if self.weights is not None:
            raise WeightsError(
                "the samples have weights already, by the option row_weights; leave out these, or "
                "those"
            )
        try:
            require_weights("sample_weight", numbers, self.shape[0])
        except OperatorError as error:
            raise WeightsError(str(error)) from error
        if not numbers.any():
            raise WeightsError("sample_weight is zero throughout; give some that are not")
        made = copy.copy(self)
        made.weights = numbers
        return made

    def runs(self) -> list[Range]:
        """The runs of rows that are summed together: each a power of two of rows, but the last."""
        height, width = self.shape
        rows = max(RUN_BYTES // (8 * width), _TOGETHER * width, height // MOST_RUNS, TILE_ROWS)
        return cut(Range(0, height), 1 << (rows - 1).bit_length())

    def slabs(self, rows: Range | None = None) -> Iterator[tuple[Range, Any]]:
        """The slabs of some rows, or of all; each may be overwritten.

        Raises:
            OperatorError: If an entry is NaN or infinite; names it.
        """
        for inside, slab in self._slabs(rows or Range(0, self.shape[0])):
            require_finite(slab.data if self.is_sparse else slab, inside)
            yield inside, slab

    @abstractmethod
    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        """The slabs of some rows."""

    def views(self) -> Iterator[tuple[Range, Any]]:
        """All slabs, for those who do not overwrite them."""
        return self._slabs(Range(0, self.shape[0]))

    def columns(self) -> Iterator[tuple[Range, Array]]:
        """All rows of some columns after the other; only where all is held, or turned.

        Raises:
            OperatorError: If an entry is NaN or infinite.
        """
        for inside in cut(Range(0, self.shape[1]), max(1, SLAB_BYTES // (8 * self.shape[0]))):
            block = self._block(inside)
            require_finite(block, Range(0, self.shape[0]), inside.start)
            yield inside, block

    def _block(self, columns: Range) -> Array:
        raise NotImplementedError

    def learned(self) -> Learned:
        """What was learned of the columns when they were prepared."""
        return self._learned

    def filled_by(self, learned: Learned) -> Samples:  # noqa: ARG002 (what is in memory is whole)
        """The same, filled by what was learned of other samples, and not multiplied yet."""
        return self

    def held(self) -> Samples:
        """The same, read into memory as a whole."""
        made = np.empty(self.shape, self.dtype)
        for inside, slab in self.slabs():
            made[inside.slice] = slab.toarray() if self.is_sparse else slab
        held = ArraySamples(made.__getitem__, self.shape, self.dtype, learned=self.learned())
        held.weights = self.weights
        return held

    @property
    def slab_rows(self) -> int:
        """Rows of a slab: a power of two."""
        return 1 << (max(1, SLAB_BYTES // (8 * self.shape[1])).bit_length() - 1)

    def digest(self) -> str:
        """SHA-256 of all entries, by which a matrix without a name is known again."""
        found = hashlib.sha256(f"{self.shape} {self.dtype}".encode())
        for _, slab in self._slabs(Range(0, self.shape[0])):
            parts = (slab.indptr, slab.indices, slab.data) if self.is_sparse else (slab,)
            for part in parts:
                found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


class ArraySamples(Samples):
    """Rows of anything that can be sliced by rows.

    Args:
        get: Returns some rows as an array of numbers.
        shape: The whole shape.
        dtype: Of the entries.
        held: Whether all is in memory.
        learned: What was learned of its columns when they were prepared.
    """

    def __init__(
        self, get: Get, shape: tuple[int, ...], dtype: np.dtype[Any], *, held: bool = True,
        learned: Learned | None = None,
    ) -> None:  # fmt: skip
        self._get, self.shape, self.dtype = get, _checked(shape), _of_scores(dtype)
        self.is_held, self._learned = held, learned or Learned()

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Array]]:
        pieces = cut(rows, self.slab_rows)
        yield from _widened((inside, np.asarray(self._get(inside.slice))) for inside in pieces)

    def views(self) -> Iterator[tuple[Range, Array]]:
        """See :class:`Samples`."""
        for inside in cut(Range(0, self.shape[0]), self.slab_rows):
            yield inside, np.asarray(self._get(inside.slice), np.float64)

    def _block(self, columns: Range) -> Array:
        block = np.empty((self.shape[0], len(columns)))
        for inside in cut(Range(0, self.shape[0]), self.slab_rows):
            block[inside.slice] = self._get(inside.slice)[:, columns.slice]
        return block


class SparseSamples(Samples):
    """Rows of a sparse matrix in memory.

    Args:
        matrix: SciPy's, of any format.
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix.tocsr()
        if not self._matrix.has_canonical_format:
            self._matrix = self._matrix.copy()
            self._matrix.sum_duplicates()
        self.shape, self.dtype = _checked(matrix.shape), _of_scores(matrix.dtype)
        self.is_sparse = matrix.nnz < DENSE * self.shape[0] * self.shape[1]

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        for inside in cut(rows, self._rows_together):
            slab = self._matrix[inside.slice]
            yield inside, slab if self.is_sparse else slab.toarray().astype(np.float64)

    @property
    def _rows_together(self) -> int:
        if not self.is_sparse:
            return self.slab_rows
        of_row = max(1, int(self._matrix.nnz) // self.shape[0])
        return 1 << max(0, (SLAB_BYTES // (16 * of_row)).bit_length() - 1)

    def _block(self, columns: Range) -> Array:
        return np.asarray(self._matrix[:, columns.slice].toarray(), np.float64)


class StoredSamples(Samples):
    """Rows of a matrix on disk, as its options make them, but for means of columns.

    Args:
        matrix: The matrix.
        filled: What was learned of other samples: entries are filled by it, and columns are not
            multiplied yet. By default both are done by what these samples have themselves.
    """

    is_held = False

    def __init__(self, matrix: StoredMatrix, filled: Learned | None = None) -> None:
        if matrix.steps.rows.weights is not None:
            # They count where sums are made, and are no part of the samples.
            self.weights = matrix.steps.rows.weights**2
            matrix = copy.copy(matrix)
            matrix.steps = replace(matrix.steps, rows=replace(matrix.steps.rows, weights=None))
        self.matrix, self._filled = matrix, filled
        self.is_sparse = matrix.is_sparse and not matrix.steps.rows.centre
        self.shape, self.dtype = matrix.shape, _of_scores(np.dtype(matrix.dtype))

    def learned(self) -> Learned:
        """What options have made of the columns."""
        matrix, columns = self.matrix, self.matrix.steps.columns
        factors = columns.weights
        if columns.scale:
            found = 1 / matrix.moments.deviations(matrix.rows_shape[0])
            factors = found if factors is None else found * factors
        return Learned(matrix.moments.mean if columns.fill else None, factors)

    def filled_by(self, learned: Learned) -> Samples:
        """See :class:`Samples`."""
        return StoredSamples(self.matrix, learned)

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        # In the type of the file: NaN and infinity are as they are stored.
        if self.is_sparse:
            for inside, slab in self._prepared(rows):
                yield inside, slab.rows
            return
        yield from _widened(
            (inside, slab.dense() if isinstance(slab, SparseSlab) else slab.cpu().numpy())
            for inside, slab in self._prepared(rows)
        )

    def _prepared(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        steps = self.matrix.steps
        if self._filled is None and not self.is_sparse and steps.is_plain:
            # As they are stored: to be widened into memory that is used again.
            yield from self.matrix.read(rows, getattr(torch, self.matrix.dtype))
            return
        if self._filled is None:
            yield from self.matrix.read(rows, torch.float64)
            return
        matrix = copy.copy(self.matrix)
        fills = self._filled.fill is not None
        columns = replace(matrix.steps.columns, fill=fills, scale=False, weights=None)
        matrix.steps = replace(matrix.steps, columns=columns)
        prepared = Preparation(matrix, torch.float64, fillings=self._filled.fill)
        for inside, stored in matrix.stored_slabs(rows):
            slab, of_rows = prepared.of_slab(inside, stored)
            yield inside, prepared.with_rows(slab, of_rows)
        if len(rows) == self.shape[0]:
            prepared.require_all()


class TurnedSamples(Samples):
    """Samples that are the columns of a file: each reading gives some features after the other.

    Slabs of samples are taken from as many readings as fit into a quarter of the memory each.

    Args:
        matrix: The matrix, of which nothing is made.
        memory: Peak resident memory of the process, in bytes.
    """

    is_held, is_turned = False, True

    def __init__(self, matrix: StoredMatrix, memory: int) -> None:
        self.matrix, self._memory = matrix, memory
        self.shape, self.dtype = matrix.shape, _of_scores(np.dtype(matrix.dtype))

    @property
    def held_bytes(self) -> int:  # type: ignore[override]
        """See :class:`Samples`."""
        return min(8 * math.prod(self.shape), self._memory // _SHARE)

    def columns(self) -> Iterator[tuple[Range, Array]]:
        """See :class:`Samples`: in one reading."""
        for inside, slab in self.matrix.read(Range(0, self.shape[1]), torch.float64):
            block = slab.dense() if isinstance(slab, SparseSlab) else slab.cpu().numpy()
            require_finite(block.T, Range(0, self.shape[0]), inside.start)
            yield inside, block.T

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Array]]:
        # However many are read at once, slabs are the same, and so are sums over them.
        slab = min(self.slab_rows, len(rows))
        fitting = self._memory // _SHARE // (8 * self.shape[1])
        pieces = cut(rows, slab * max(1, fitting // slab))
        # One space for all: who has had the slabs of the last still holds on to it.
        space = np.empty((len(pieces[0]), self.shape[1]))
        for many in pieces:
            self._fill(space, many)
            for few in cut(many, slab):
                yield few, space[few.shifted(-many.start).slice]

    def _fill(self, space: Array, rows: Range) -> None:
        """Takes some samples from a reading of all."""
        for inside, block in self.columns():
            space[: len(rows), inside.slice] = block[rows.slice]

    def centred(self) -> StoredMatrix:
        """The matrix less the mean of each feature, which each row of the file tells by itself."""
        made = copy.copy(self.matrix)
        made.steps = replace(made.steps, rows=replace(made.steps.rows, centre=True))
        return made


class CentredSamples:
    """Samples as an operator whose columns have the mean zero, for those who apply it.

    Args:
        samples: The rows; where they have weights each is multiplied by the root of its own.
        mean: Of each column.
        variance: The same. Columns far from zero are centred before they are multiplied.

    Attributes:
        shape: ``(samples, features)``.
        dtype: Of the products, as a name: of double precision, so that large means cost nothing.
    """

    dtype = "float64"

    def __init__(self, samples: Samples, mean: Array, variance: Array) -> None:
        self._samples, self.shape = samples, samples.shape
        self._far = are_far(mean, variance)
        if not samples.is_sparse:
            self._far[:] = self._far.any()
        self._mean, self._space = mean, np.empty((0, 0))
        self._left = torch.from_numpy(np.where(self._far, 0.0, mean))
        self._roots: torch.Tensor | None = None
        if samples.weights is not None:
            self._roots = torch.from_numpy(np.sqrt(samples.weights))

    def _parts(self) -> Iterator[tuple[Range, Any, Any]]:
        """Slabs: sparse columns near zero as they are; the others, centred if they are far."""
        for inside, slab in self._samples.views():
            if isinstance(slab, np.ndarray):
                yield inside, None, self._centred(slab)
            elif self._far.any():
                centred = slab[:, self._far].toarray() - self._mean[self._far]
                near = slab.copy()
                near.data[self._far[near.indices]] = 0
                yield inside, near, torch.from_numpy(centred)
            else:
                yield inside, slab, None

    def _centred(self, slab: Array) -> torch.Tensor:
        """A dense slab, centred if any column is far from zero."""
        if not self._far.any():
            # torch warns of what may not be written, though it only reads.
            return torch.from_numpy(slab if slab.flags.writeable else slab.copy())
        if len(self._space) < len(slab):
            self._space = np.empty(slab.shape)
        return torch.from_numpy(np.subtract(slab, self._mean, out=self._space[: len(slab)]))

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A X``."""
        made = x.new_empty((self.shape[0], *x.shape[1:])).copy_(-self._left @ x)
        for inside, near, centred in self._parts():
            if near is not None:
                made[inside.slice] += torch.from_numpy(near @ x.numpy())
            if centred is not None:
                made[inside.slice] += centred @ (x if near is None else x[self._far])
        return self._weighted(made)

    def _weighted(self, x: torch.Tensor) -> torch.Tensor:
        if self._roots is None:
            return x
        return x * (self._roots if x.ndim == 1 else self._roots[:, None])

    def rmatmat(self, x: torch.Tensor) -> torch.Tensor:
        """``A^T X``."""
        x = self._weighted(x)
        made = -self._left[:, None] * x.sum(dim=0)
        for inside, near, centred in self._parts():
            if near is not None:
                made += torch.from_numpy(near.T @ x[inside.slice].numpy())
            if near is None:
                made += centred.mT @ x[inside.slice]
            elif centred is not None:
                made[self._far] += centred.mT @ x[inside.slice]
        return made


def _widened(slabs: Iterator[tuple[Range, Array]]) -> Iterator[tuple[Range, Array]]:
    """Slabs in double precision, each in the place of the one before: fresh memory is slow."""
    space = np.empty((0, 0))
    for inside, slab in slabs:
        if len(space) < len(slab):
            space = empty_aligned(slab.shape, np.float64)
        np.copyto(space[: len(slab)], slab)
        yield inside, space[: len(slab)]


def samples_of(data: Any, memory: int = MEMORY) -> Samples:
    """Adapts what holds samples in its rows.

    Args:
        data: A numpy array, a frame of pandas or polars, a torch tensor, a SciPy sparse matrix or
            array, a matrix on disk, or what has a shape and gives rows when it is sliced, such as a
            dataset of h5py.
        memory: Peak resident memory of the process, in bytes.

    Raises:
        OperatorError: If it is something else, or holds no real numbers.
    """
    if isinstance(data, Samples):
        return data
    data = adapted(data, memory) if is_lazy(data) else data
    if isinstance(data, StoredMatrix):
        return _turned(data, memory) if data.is_turned else StoredSamples(data)
    for adapt in (_of_sparse, _of_tensor, _of_frame, _of_array):
        found = adapt(data)
        if found is not None:
            return found
    raise OperatorError(
        f"cannot take samples of {type(data).__name__}: give an array, a frame, a tensor, a sparse "
        "matrix, the path of a file, or a spec"
    )


def _turned(matrix: StoredMatrix, memory: int) -> Samples:
    """Samples that are the columns of a file: held where that takes a small part of the memory.

    Raises:
        OperatorError: If they are prepared.
    """
    steps, weights = matrix.steps, matrix.steps.columns.weights
    steps = replace(steps, columns=replace(steps.columns, weights=None))
    if not (steps.rows.is_none and steps.columns.is_none) or steps.columns.centre:
        raise OperatorError(
            f"the samples of {matrix.name} are the columns of the file, which are taken as they "
            "are: leave out what is to be made of them, or write the file by samples"
        )
    plain = copy.copy(matrix)
    # Means of features, here those of rows, are taken off by the components.
    plain.steps = replace(steps, rows=replace(steps.rows, centre=False))
    found: Samples = TurnedSamples(plain, memory)
    if 8 * math.prod(matrix.shape) <= memory // _SHARE:
        made = np.empty(matrix.shape, found.dtype)
        for inside, block in found.columns():
            made[:, inside.slice] = block
        found = ArraySamples(made.__getitem__, matrix.shape, made.dtype)
    found.weights = None if weights is None else weights**2
    return found


def _of_sparse(data: Any) -> Samples | None:
    return SparseSamples(data) if hasattr(data, "tocsr") else None


def _of_tensor(data: Any) -> Samples | None:
    if not isinstance(data, torch.Tensor):
        return None
    if data.layout != torch.strided:
        raise OperatorError(
            f"cannot take samples of a tensor with layout {data.layout}; give a dense one, or a "
            "sparse matrix of SciPy"
        )
    kind = torch.empty(0, dtype=data.dtype).to("cpu")
    wide = torch.float32 if data.dtype in (torch.bfloat16, torch.float16) else data.dtype
    detached = data.detach()

    def get(rows: slice) -> Array:
        return np.asarray(detached[rows].to("cpu", wide).resolve_conj().numpy())

    return ArraySamples(get, tuple(data.shape), kind.to(wide).numpy().dtype)


def _of_frame(data: Any) -> Samples | None:
    """A frame of pandas or polars; its columns may be of several types."""
    if not (hasattr(data, "columns") and hasattr(data, "to_numpy")):
        return None
    sliced = data.iloc.__getitem__ if hasattr(data, "iloc") else data.__getitem__
    few = np.asarray(sliced(slice(0, 1)).to_numpy())
    dtype = few.dtype if few.dtype.kind in "biuf" else np.dtype(np.float64)

    def get(rows: slice) -> Array:
        try:
            return np.asarray(sliced(rows).to_numpy()).astype(dtype)
        except (TypeError, ValueError) as error:
            raise OperatorError(
                f"the frame holds what is no number ({error}); give its columns of numbers alone"
            ) from error

    return ArraySamples(get, tuple(data.shape), dtype)


def require_unmasked(data: Any) -> None:
    """Refuses arrays of numpy with masked entries: what lies below a mask is no number.

    Raises:
        OperatorError: With how many there are.
    """
    masked = np.argwhere(np.ma.getmaskarray(data)) if np.ma.isMaskedArray(data) else np.empty(0)
    if len(masked):
        place = ", ".join(
            f"{axis} {i}" for axis, i in zip(("row", "column"), masked[0], strict=False)
        )
        raise OperatorError(
            f"{len(masked)} entries of the array are masked, the first in {place}; replace them "
            'before they are used, or give missing="column-mean"'
        )


def _of_array(data: Any) -> Samples | None:
    if not (hasattr(data, "shape") and hasattr(data, "dtype") and hasattr(data, "__getitem__")):
        return None
    held = isinstance(data, np.ndarray) and not isinstance(data, np.memmap)
    return ArraySamples(data.__getitem__, tuple(data.shape), np.dtype(data.dtype), held=held)


def _checked(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise OperatorError(
            f"the samples have shape {tuple(shape)}; give a matrix: two sizes, both at least 1"
        )
    return int(shape[0]), int(shape[1])


def _of_scores(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "biuf":
        raise OperatorError(
            f"the samples are of dtype {shown(str(dtype))}; principal components are taken of real "
            "numbers: give those"
        )
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def require_finite(entries: Array, rows: Range | None = None, first: int = 0) -> None:
    """Refuses NaN and infinity.

    Raises:
        OperatorError: Naming the row and column, where they are known.
    """
    if np.isfinite(entries.sum()) or np.isfinite(entries).all():
        return
    where = ""
    if rows is not None and entries.ndim == 2:
        row, column = np.argwhere(~np.isfinite(entries))[0]
        where = f" in row {rows.start + row}, column {first + column}"
    raise OperatorError(
        f"the samples hold NaN or infinity{where}; replace what is missing before they are used"
        ', or give missing = "column-mean", and drop columns without any entry'
    )
