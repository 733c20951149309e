"""Matrix Market files, ``.mtx`` and ``.mtx.gz``: text that is read whole, in pieces."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.matrices.npz import HeldSource, import_scipy
from skerch_ooc.operators.matrices.sources import Meant, SparseSource, checked_shape

_PIECE = 1 << 22
_LINE = 1 << 10
_COPIES = 5
"""Times the size of the entries that putting them in order takes."""
_NUMBERS = {"real": 1, "integer": 1, "double": 1, "complex": 2, "pattern": 0}
_SYMMETRIES = ("general", "symmetric", "skew-symmetric", "hermitian")


@dataclass(frozen=True)
class _Header:
    """What the first lines say."""

    is_dense: bool
    numbers: int
    symmetry: str
    shape: tuple[int, int]
    entries: int


def open_market(path: Path, wanted: Meant) -> SparseSource:
    """Opens a Matrix Market file.

    Raises:
        OperatorError: If SciPy is missing, or the file is something else, or too large.
    """
    import_scipy()
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            header = _header(file)
            checked_shape(str(path), header.shape)
            size = header.entries * (16 + 8 * max(1, header.numbers))
            starts = 16 * header.shape[0]
            wanted.require_room(_COPIES * size + starts, f"{path}, which is read whole,")
            matrix = _matrix(header, _numbers(file))
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise OperatorError(
            f"cannot open {path} as a Matrix Market file: {error}; write it with scipy.io.mmwrite"
        ) from error
    return HeldSource(str(path), matrix, wanted)


def _header(file: BinaryIO) -> _Header:
    words = file.readline(_LINE).decode("ascii", "replace").lower().split()
    if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
        raise ValueError("it does not begin with %%MatrixMarket matrix")
    layout, field, symmetry = words[2:]
    known = layout in ("coordinate", "array") and field in _NUMBERS and symmetry in _SYMMETRIES
    if not known or (layout == "array" and (field == "pattern" or symmetry != "general")):
        raise ValueError(f"it is {' '.join(words[2:])}, which is not read")
    line = file.readline(_LINE)
    while line.startswith(b"%") or (line and not line.strip()):
        # Comments may be longer than what is read at once.
        line = file.readline(_LINE)
    sizes = [int(word) for word in line.split()]
    if len(sizes) != (2 if layout == "array" else 3) or min(sizes) < 0:
        raise ValueError(f"its sizes are {sizes}")
    count = sizes[0] * sizes[1] if layout == "array" else sizes[2]
    return _Header(layout == "array", _NUMBERS[field], symmetry, (sizes[0], sizes[1]), count)


def _numbers(file: BinaryIO) -> Iterator[Array]:
    """The numbers that follow, in pieces of whole lines."""
    while lines := file.readlines(_PIECE):
        with warnings.catch_warnings():
            # What is no number is only warned of.
            warnings.simplefilter("error", DeprecationWarning)
            try:
                yield np.fromstring(b"".join(lines).decode("ascii"), sep=" ")
            except (DeprecationWarning, UnicodeDecodeError) as error:
                raise ValueError("it holds what is no number") from error


def _matrix(header: _Header, pieces: Iterator[Array]) -> Any:
    import scipy.sparse

    across = (0 if header.is_dense else 2) + header.numbers
    found, count = np.empty((header.entries, across)), 0
    flat = found.reshape(-1)
    for piece in pieces:
        if count + len(piece) > len(flat):
            raise ValueError(f"it has more than the {header.entries} entries that it says")
        flat[count : count + len(piece)] = piece
        count += len(piece)
    if count < len(flat):
        raise ValueError(f"it has fewer than the {header.entries} entries that it says")
    values = found[:, across - header.numbers :]
    entries = values[:, 0] if header.numbers == 1 else np.ones(header.entries)
    if header.numbers == 2:
        entries = values[:, 0] + 1j * values[:, 1]
    if header.is_dense:
        return scipy.sparse.csr_array(entries.reshape(header.shape, order="F"))
    rows, columns = (found[:, i].astype(np.int64) - 1 for i in (0, 1))
    for places, size in ((rows, header.shape[0]), (columns, header.shape[1])):
        if len(places) and not 0 <= places.min() <= places.max() < size:
            raise ValueError(f"an entry lies outside of {header.shape}")
    if header.symmetry != "general":
        off = rows != columns
        other = entries[off]
        if header.symmetry == "skew-symmetric":
            other = -other
        elif header.symmetry == "hermitian":
            other = other.conj()
        rows, columns = np.append(rows, columns[off]), np.append(columns, rows[off])
        entries = np.append(entries, other)
    return scipy.sparse.coo_array((entries, (rows, columns)), shape=header.shape)
