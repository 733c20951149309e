"""Matrices on disk as operators: read in slabs of rows, and never held whole.

Slabs are cut by the shape of the matrix alone, so that sums over them do not depend on memory.
While one is multiplied the next is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skerch_ooc.errors import OperatorError
from skerch_ooc.operators.sources import Source, open_source
from skerch_ooc.partition import Range, cut

Array = npt.NDArray[Any]

SLAB_BYTES = 1 << 25
"""A slab has about this size, and at least one chunk of rows."""

COLUMN_MEAN = "column-mean"


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
        self._source, self._subtract, self._device = source, subtract, device
        self.shape = source.shape
        self.dtype = _floating(source.dtype)
        row = source.shape[1] * np.dtype(self.dtype).itemsize
        chunks = max(1, SLAB_BYTES // (row * source.chunk))
        self._slabs = list(cut(Range(0, source.shape[0]), chunks * source.chunk))
        self._means: torch.Tensor | None = None

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """``A X``, ``(h, b)``."""
        y = torch.empty((self.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
        for rows, slab in self._read(x.dtype):
            torch.matmul(slab, x, out=y[rows.slice])
            self._require_finite(rows, slab, y[rows.slice])
        if self._subtract:
            y -= (self._mean().to(x.dtype) @ x)[None, :]
        return y

    def adjoint(self) -> _Adjoint:
        """``A^H``, which is applied by adding up over the slabs."""
        return _Adjoint(self)

    def applied_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        """``A^H X``, ``(w, b)``; summed over the slabs in double precision."""
        wide = torch.promote_types(x.dtype, torch.float64)
        total = torch.zeros((self.shape[1], x.shape[1]), dtype=wide, device=x.device)
        for rows, slab in self._read(x.dtype):
            part = slab.mH @ x[rows.slice]
            self._require_finite(rows, slab, part)
            total += part
        if self._subtract:
            total -= self._mean().conj()[:, None] * x.to(wide).sum(dim=0)[None, :]
        return total.to(x.dtype)

    def _mean(self) -> torch.Tensor:
        """The mean of each column, ``(w,)``, in double precision."""
        if self._means is None:
            wide = getattr(torch, "complex128" if self.dtype.startswith("complex") else "float64")
            total = torch.zeros(self.shape[1], dtype=wide, device=self._device)
            for _, slab in self._read(wide):
                total += slab.sum(dim=0)
            self._means = total / self.shape[0]
        return self._means

    def _read(self, dtype: torch.dtype) -> Iterator[tuple[Range, torch.Tensor]]:
        """The slabs, each read while the one before it is at work."""

        def read(rows: Range) -> torch.Tensor:
            stored = self._source.read(rows)
            if stored.dtype.byteorder not in "=|":
                stored = stored.astype(stored.dtype.newbyteorder("="))
            if stored.dtype.kind in "ub" or str(stored.dtype) == "float128":
                stored = stored.astype(self.dtype)
            return torch.from_numpy(stored).to(self._device, dtype)

        with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
            following: Future[torch.Tensor] = reader.submit(read, self._slabs[0])
            for number, rows in enumerate(self._slabs):
                slab = following.result()
                if number + 1 < len(self._slabs):
                    following = reader.submit(read, self._slabs[number + 1])
                yield rows, slab

    def _require_finite(self, rows: Range, slab: torch.Tensor, product: torch.Tensor) -> None:
        if bool(torch.isfinite(product).all()):
            return
        bad = (~torch.isfinite(slab)).any(dim=1).nonzero()
        if not len(bad):
            raise OperatorError(
                f"products of the rows {rows} are too large for {slab.dtype}; use a wider dtype"
            )
        row = int(bad[0, 0])
        column = int((~torch.isfinite(slab[row])).nonzero()[0, 0])
        raise OperatorError(
            f"row {rows.start + row} of the matrix holds {slab[row, column].item()} in column "
            f"{column}; replace what is missing before the matrix is decomposed"
        )


class _Adjoint:
    """The adjoint of a stored matrix."""

    def __init__(self, matrix: StoredMatrix) -> None:
        self._matrix = matrix
        height, width = matrix.shape
        self.shape = (width, height)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self._matrix.applied_adjoint(x)


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
