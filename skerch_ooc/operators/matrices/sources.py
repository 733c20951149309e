"""Sources: what gives the rows of a matrix in a file, dense or sparse, and checks what it says."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.labels import Labels

BROKEN = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, EOFError, AttributeError,
    SyntaxError,    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What libraries raise of files that are altered."""

MEMORY = 4 << 30
"""Bytes that a source may hold where nobody says how many."""


@dataclass(frozen=True)
class Meant:
    """What of a file is meant, and how much memory reading it may take.

    Attributes:
        dataset: Name of the dataset, or of the group of a sparse matrix, in files of several.
        rows: The dimensions that are rows, by name or number, of an array that has more than two.
        codes: Stored values that stand for missing entries.
        memory: Peak resident memory of the process, in bytes.
    """

    dataset: str | None = None
    rows: tuple[str | int, ...] = ()
    codes: tuple[float, ...] = ()
    memory: int = MEMORY

    def require_room(self, needed: int, what: str) -> None:
        """Refuses what does not fit into the memory, before any of it is allocated.

        Raises:
            OperatorError: With both amounts.
        """
        if needed > self.memory:
            raise OperatorError(
                f"{what} takes {format_bytes(needed)}, with memory = {format_bytes(self.memory)}; "
                "give more --memory, or look whether the file is sound"
            )


class Rows(ABC):
    """Rows of a matrix in a file, of whatever kind.

    Attributes:
        name: The file, and what of it, for messages.
        shape: ``(height, width)`` of the rows as they lie in the file.
        dtype: Of the entries, as they are meant: scaled, if the file says so.
        is_transposed: Whether the rows that are meant are the columns of these.
        rows_together: How many rows the file can only be read together with: those of a chunk, or
            all rows of what is compressed as one stream.
        held_bytes: Memory that it holds beside the rows that are asked for.
        remarks: Sentences for people about what was made of the file.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    is_transposed: bool = False
    rows_together: int = 1
    held_bytes: int = 0
    remarks: tuple[str, ...] = ()
    decoding: Decoding | None = None

    def readings(self, slab_rows: int) -> float:  # noqa: ARG002 (most read what they are asked for)
        """How often each byte is read, when all rows are read once, slab by slab."""
        return 1.0

    def meaning(self, row: int, column: int) -> str:  # noqa: ARG002 (a stack looks into its files)
        """Why an entry counts as missing; empty where it is stored as NaN."""
        return ""

    def coordinates(self, name: str) -> Array | None:  # noqa: ARG002 (few files have any)
        """A dataset beside the matrix; ``None`` if there is none of that name."""
        return None

    def labels(self) -> Labels:
        """What the rows and columns that are meant are called."""
        height, width = self.meant_shape
        return Labels.of([("", height)], [("", width)])

    @property
    def meant_shape(self) -> tuple[int, int]:
        """``(height, width)`` of the matrix that the file means."""
        return self.shape[::-1] if self.is_transposed else self.shape


class Source(Rows):
    """Rows of a dense matrix, read when they are asked for.

    Attributes:
        stored_dtype: Of the entries as they are stored.
    """

    stored_dtype: np.dtype[Any]

    def read(self, rows: Range, out: Array | None = None) -> Array:
        """The rows as they are meant, ``(len(rows), width)``; NaN stands for what is missing.

        Args:
            rows: Which.
            out: Where to, of this shape and of the dtype; a new array by default.
        """
        out = np.empty((len(rows), self.shape[1]), self.dtype) if out is None else out
        if self.decoding is None:
            self._read_to(out, rows)
            return out
        stored = np.empty(out.shape, self.stored_dtype)
        self._read_to(stored, rows)
        self.decoding.decode(stored, out)
        return out

    @abstractmethod
    def _read_to(self, out: Array, rows: Range) -> None:
        """Fills an array with the rows, as they are stored."""

    def meaning(self, row: int, column: int) -> str:
        """See :class:`Rows`."""
        if self.decoding is None:
            return ""
        stored = np.empty((1, self.shape[1]), self.stored_dtype)
        self._read_to(stored, Range(row, row + 1))
        return self.decoding.reason(stored[0, column])

    def _describe(
        self, name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any],
        decoding: Decoding | None = None,
    ) -> None:  # fmt: skip
        """Notes what the source is, once it is known to be a matrix of numbers."""
        self.name, self.shape = name, checked_shape(name, shape)
        self.stored_dtype = checked_dtype(name, dtype)
        self.decoding = decoding
        self.dtype = self.stored_dtype if decoding is None else decoding.dtype


class SparseSource(Rows):
    """Rows of a sparse matrix, read as compressed rows.

    Attributes:
        starts: Where each row begins among the entries, and behind the last where that ends.
    """

    starts: Array

    def read(self, rows: Range) -> Any:
        """The rows, as ``scipy.sparse.csr_array`` of the dtype.

        Raises:
            OperatorError: If a column of an entry is none, or the file cannot be read.
        """
        import scipy.sparse

        first, last = int(self.starts[rows.start]), int(self.starts[rows.stop])
        columns, entries = self._read_entries(first, last)
        if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < self.shape[1]:
            bad = int(np.flatnonzero((columns < 0) | (columns >= self.shape[1]))[0])
            row = int(np.searchsorted(self.starts, first + bad, side="right")) - 1
            raise OperatorError(
                f"{self.name} is broken: row {row} has an entry in column {columns[bad]}, and "
                f"there are {self.shape[1]}; write the file again"
            )
        if self.decoding is not None:
            entries = self.decoding.decode(entries, np.empty(entries.shape, self.dtype))
        if max(len(columns), self.shape[1]) <= np.iinfo(np.int32).max:
            # Half the bytes for products to read.
            columns = columns.astype(np.int32, copy=False)
        starts = (self.starts[rows.start : rows.stop + 1] - first).astype(columns.dtype)
        shape = (len(rows), self.shape[1])
        made = scipy.sparse.csr_array(shape, dtype=entries.dtype)
        # Set, not handed over: what was checked already is not to be checked and copied again.
        made.data, made.indices, made.indptr = entries, columns, starts
        return made

    @abstractmethod
    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        """The columns, as int32 or int64, and the values of the entries ``first <= i < last``."""

    @property
    def entries(self) -> int:
        """How many entries are stored."""
        return int(self.starts[-1])

    def _describe(
        self, name: str, shape: Any, starts: Array, counts: tuple[int, int], dtype: np.dtype[Any],
        codes: tuple[float, ...],
    ) -> None:  # fmt: skip
        """Notes what the source is, once its sizes are known to agree.

        Args:
            name: The file, and what of it.
            shape: As the file says.
            starts: Where each row begins.
            counts: How many columns of entries, and how many values, the file has.
            dtype: Of the values.
            codes: Values that stand for missing entries.

        Raises:
            OperatorError: If they do not agree.
        """
        self.name, self.shape = name, checked_shape(name, shape)
        dtype = checked_dtype(name, dtype)
        self.decoding = Decoding.of({}, dtype, codes)
        self.dtype = dtype if self.decoding is None else self.decoding.dtype
        self.starts = require_starts(name, self.shape[0], starts, counts)


def require_starts(name: str, height: int, starts: Array, counts: tuple[int, int]) -> Array:
    """Checks where rows of a sparse matrix begin; returns it as int64.

    Raises:
        OperatorError: If it does not fit the rows and the entries.
    """
    wrong = None
    if starts.dtype.kind not in "iu" or starts.shape != (height + 1,):
        wrong = f"it must say where each of {height} rows begins, and has {starts.shape} of them"
    elif counts[0] != counts[1]:
        wrong = f"it has {counts[0]} indices and {counts[1]} values"
    else:
        starts = starts.astype(np.int64, copy=False)
        if starts[0] != 0 or starts[-1] != counts[0] or bool((starts[1:] < starts[:-1]).any()):
            wrong = f"its rows do not lie one behind the other in {counts[0]} entries"
    if wrong:
        raise OperatorError(f"{name} is broken: {wrong}; write the file again")
    return starts


def checked_shape(name: str, shape: Any) -> tuple[int, int]:
    """Checks that a shape is that of a matrix.

    Raises:
        OperatorError: If it is not.
    """
    sizes = tuple(int(size) for size in shape) if shape is not None else ()
    if len(sizes) != 2 or min(sizes) < 1:
        raise OperatorError(
            f"{name} has shape {shape if shape is None else sizes}; give a matrix: two sizes, both "
            "at least 1"
        )
    return sizes[0], sizes[1]


def checked_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Checks that entries are numbers.

    Raises:
        OperatorError: If they are not.
    """
    if dtype.kind not in "biufc":
        raise OperatorError(f"{name} holds {dtype}; give a matrix of numbers, real or complex")
    return dtype


def unreadable(name: str, error: Exception) -> OperatorError:
    """What is said where a file turns out to be broken while it is read."""
    return OperatorError(f"{name} cannot be read: {error}; copy or write the file again")
