"""Sparse matrices that SciPy wrote: ``.npz`` files, read in slabs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.matrices.archives import Archive
from skerch_ooc.operators.matrices.sources import Meant, SparseSource

_WHOLE = ("coo", "bsr", "dia")
"""Formats whose rows are not at hand: they are held in memory, as compressed rows."""

_COPIES = 4
"""Times the size of a file that changing its format takes."""


class NpzSource(SparseSource):
    """A sparse matrix in an ``.npz`` file, by its rows or columns.

    Args:
        path: The file.
        wanted: What else is said of it.

    Raises:
        OperatorError: If it is none, or broken.
    """

    def __init__(self, path: Path, archive: Archive, order: str, wanted: Meant) -> None:
        self._values, self._columns = archive.member("data"), archive.member("indices")
        if self._values.dtype.kind not in "biufc" or self._columns.dtype.kind not in "iu":
            raise archive.refusal(f"it holds {self._values.dtype} at {self._columns.dtype}")
        shape = _sizes(archive, wanted)
        starts = archive.member("indptr").whole(wanted)
        counts = (self._columns.shape, self._values.shape)
        lengths = tuple(one[0] if len(one) == 1 else -1 for one in counts)
        told = shape[::-1] if order == "csc" else shape
        self._describe(
            str(path), told, starts, (lengths[0], lengths[1]), self._values.dtype, wanted.codes
        )
        self.is_transposed = order == "csc"
        if self._values.is_stream or self._columns.is_stream:
            self.rows_together = self.shape[0]
        self.held_bytes = self.starts.nbytes + (4 << 20)

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        columns = self._columns.read(first, last)
        kept = np.int32 if columns.dtype.itemsize <= 4 else np.int64
        return columns.astype(kept, copy=False), self._values.read(first, last)


class HeldSource(SparseSource):
    """A sparse matrix that is held in memory.

    Args:
        name: Of the file.
        matrix: A matrix of SciPy.
        wanted: What else is said of it.
    """

    def __init__(self, name: str, matrix: Any, wanted: Meant) -> None:
        self._held = matrix.tocsr()
        counts = (len(self._held.indices), len(self._held.data))
        starts = self._held.indptr
        self._describe(name, self._held.shape, starts, counts, self._held.dtype, wanted.codes)
        # What it holds is resident already.
        self.held_bytes = 0
        self.remarks = ("the whole sparse matrix is held in memory, as its rows are not in order",)

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        # Copied, as slabs are scaled in place.
        return self._held.indices[first:last], self._held.data[first:last].copy()


def open_npz(path: Path, wanted: Meant) -> SparseSource:
    """Opens what ``scipy.sparse.save_npz`` wrote.

    Raises:
        OperatorError: If SciPy is missing, or the file is something else, or broken.
    """
    import_scipy()
    archive = Archive(path)
    if not archive.names & {"format", "data"}:
        raise OperatorError(
            f"{path} holds arrays ({shown_list(sorted(archive.names))}) and no sparse matrix; "
            "write the one that is meant as .npy by numpy.save"
        )
    told = archive.member("format").whole(wanted).item() if "format" in archive.names else "csr"
    order = told.decode("ascii", "replace") if isinstance(told, bytes) else str(told)
    if order in ("csr", "csc"):
        return NpzSource(path, archive, order, wanted)
    if order not in _WHOLE:
        raise archive.refusal(f"its format is {order!r}")
    arrays = {name: archive.member(name) for name in archive.names - {"format", "_is_array"}}
    size = sum(one.nbytes for one in arrays.values())
    wanted.require_room(_COPIES * size, f"{path}, of the format {order},")
    return HeldSource(str(path), _whole(archive, order, wanted), wanted)


def _whole(archive: Archive, order: str, wanted: Meant) -> Any:
    """The matrix of a format that is read whole."""
    import scipy.sparse as sp

    shape = _sizes(archive, wanted)

    def get(name: str) -> Array:
        return archive.member(name).whole(wanted)

    try:
        if order == "coo":
            names = ("row", "col") if "row" in archive.names else ("coords",)
            places = tuple(get(one) for one in names) if len(names) == 2 else tuple(get("coords"))
            return sp.coo_array((get("data"), places), shape=shape)
        if order == "dia":
            return sp.dia_array((get("data"), get("offsets")), shape=shape)
        made = sp.bsr_array((get("data"), get("indices"), get("indptr")), shape=shape)
        made.check_format(full_check=True)
        return made
    except (ValueError, IndexError, TypeError) as error:
        raise archive.refusal(error) from error


def _sizes(archive: Archive, wanted: Meant) -> tuple[int, int]:
    found = archive.member("shape")
    if found.dtype.kind not in "iu" or found.shape != (2,):
        raise archive.refusal(f"its shape is {found.dtype} of {found.shape}")
    height, width = (int(one) for one in found.whole(wanted))
    return height, width


def import_scipy() -> None:
    """Imports SciPy.

    Raises:
        OperatorError: If it is missing.
    """
    try:
        import scipy.sparse  # noqa: F401
    except ImportError as error:
        raise OperatorError("sparse matrices need SciPy; install it: pip install scipy") from error
