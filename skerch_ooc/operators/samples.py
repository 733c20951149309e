"""Samples: the rows of whatever people have, read slab by slab in double precision.

Arrays, frames, tensors and sparse matrices in memory, datasets of open files, and matrices on
disk look the same here. Slabs, and the runs of rows that are summed together, are cut by the shape
alone, so that sums over them depend on nothing else.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.matrices.slabs import SparseSlab
from skerch_ooc.operators.matrix import StoredMatrix
from skerch_ooc.planning.memory import SLAB_BYTES
from skerch_ooc.planning.plan import TILE_ROWS

RUN_BYTES = 1 << 29
"""Rows that are summed together have at least this size, in double precision."""

MOST_RUNS = 16
_TOGETHER = 8
"""They are also so many times as many as there are columns, so that sums are the smaller part."""

DENSE = 1 / 32
"""Sparse matrices with at least this share of entries are summed as dense ones."""

Get = Callable[[slice], Any]


class Samples(ABC):
    """Rows of a matrix.

    Attributes:
        shape: ``(samples, features)``.
        dtype: Of the scores, float32 or float64.
        is_sparse: Whether slabs are SciPy's compressed rows.
        is_held: Whether the whole matrix is in memory.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    is_sparse = False
    is_held = True

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
        """All slabs, in the dtype of the scores, for those who do not overwrite them."""
        for inside, slab in self._slabs(Range(0, self.shape[0])):
            yield inside, slab.astype(self.dtype, copy=False)

    def columns(self) -> Iterator[tuple[Range, Array]]:
        """All rows of some columns after the other; only where all is held.

        Raises:
            OperatorError: If an entry is NaN or infinite.
        """
        for inside in cut(Range(0, self.shape[1]), max(1, SLAB_BYTES // (8 * self.shape[0]))):
            block = self._block(inside)
            require_finite(block)
            yield inside, block

    def _block(self, columns: Range) -> Array:
        raise NotImplementedError

    def held(self) -> Samples:
        """The same, read into memory as a whole."""
        made = np.empty(self.shape, self.dtype)
        for inside, slab in self.views():
            made[inside.slice] = slab
        return ArraySamples(made.__getitem__, self.shape, self.dtype)

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
    """

    def __init__(
        self, get: Get, shape: tuple[int, ...], dtype: np.dtype[Any], *, held: bool = True
    ) -> None:
        self._get, self.shape, self.dtype = get, _checked(shape), _of_scores(dtype)
        self.is_held = held

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Array]]:
        for inside in cut(rows, self.slab_rows):
            yield inside, np.array(self._get(inside.slice), np.float64)

    def views(self) -> Iterator[tuple[Range, Array]]:
        """See :class:`Samples`."""
        for inside in cut(Range(0, self.shape[0]), self.slab_rows):
            yield inside, np.asarray(self._get(inside.slice), self.dtype)

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
    """Rows of a matrix on disk.

    Args:
        matrix: The matrix.

    Raises:
        OperatorError: If its rows are not those of the file.
    """

    is_held = False

    def __init__(self, matrix: StoredMatrix) -> None:
        if matrix.is_turned:
            raise OperatorError(
                f"the samples of {matrix.name} are the columns of the file, and are read by rows; "
                "write it by samples, or decompose it by a spec with transpose = true"
            )
        self.matrix = matrix
        self.is_sparse = matrix.is_sparse and not matrix.steps.rows.centre
        self.shape, self.dtype = matrix.shape, _of_scores(np.dtype(matrix.dtype))

    def _slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        # In the type of the file: NaN and infinity are as they are stored.
        for inside, slab in self.matrix.read(rows, torch.float64):
            if isinstance(slab, SparseSlab):
                yield inside, slab.rows if self.is_sparse else slab.dense()
            else:
                yield inside, slab.cpu().numpy()


class CentredSamples:
    """Samples as an operator whose columns have the mean zero, for those who apply it.

    Args:
        samples: The rows.
        mean: Of each column.

    Attributes:
        shape: ``(samples, features)``.
        dtype: Of the products, as a name.
    """

    def __init__(self, samples: Samples, mean: Array) -> None:
        self._samples, self._mean = samples, torch.from_numpy(mean)
        self.shape, self.dtype = samples.shape, samples.dtype.name

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A X``."""
        made = x.new_empty((self.shape[0], *x.shape[1:]))
        for inside, slab in self._samples.views():
            made[inside.slice] = _times(slab, x)
        return made.sub_((self._mean @ x.double()).to(x))

    def rmatmat(self, x: torch.Tensor) -> torch.Tensor:
        """``A^T X``."""
        made = x.new_zeros((self.shape[1], *x.shape[1:]), dtype=torch.float64)
        for inside, slab in self._samples.views():
            made += _times(slab.T, x[inside.slice])
        made -= self._mean[:, None] * x.sum(dim=0, dtype=torch.float64)
        return made.to(x)


def _times(slab: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(slab, np.ndarray):
        # torch warns of what may not be written, though it only reads.
        return torch.from_numpy(slab if slab.flags.writeable else slab.copy()) @ x
    return torch.from_numpy(slab @ x.numpy())


def samples_of(data: Any) -> Samples:
    """Adapts what holds samples in its rows.

    Args:
        data: A numpy array, a frame of pandas or polars, a torch tensor, a SciPy sparse matrix or
            array, a matrix on disk, or what has a shape and gives rows when it is sliced, such as a
            dataset of h5py.

    Raises:
        OperatorError: If it is something else, or holds no real numbers.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, StoredMatrix):
        return StoredSamples(data)
    for adapt in (_of_sparse, _of_tensor, _of_frame, _of_array):
        found = adapt(data)
        if found is not None:
            return found
    raise OperatorError(
        f"cannot take samples of {type(data).__name__}: give an array, a frame, a tensor, a sparse "
        "matrix, the path of a file, or a spec"
    )


def _of_sparse(data: Any) -> Samples | None:
    return SparseSamples(data) if hasattr(data, "tocsr") else None


def _of_tensor(data: Any) -> Samples | None:
    if not isinstance(data, torch.Tensor):
        return None
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


def require_finite(entries: Array, rows: Range | None = None) -> None:
    """Refuses NaN and infinity.

    Raises:
        OperatorError: Naming the row and column, where they are known.
    """
    if np.isfinite(entries.sum()) or np.isfinite(entries).all():
        return
    where = ""
    if rows is not None and entries.ndim == 2:
        row, column = np.argwhere(~np.isfinite(entries))[0]
        where = f" in row {rows.start + row}, column {column}"
    raise OperatorError(
        f"the samples hold NaN or infinity{where}; replace what is missing before they are used"
    )
