"""Arrays in ``.npz`` archives, read piece by piece, however they are compressed."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.matrices.places import Places
from skerch_ooc.operators.matrices.sources import BROKEN, Meant, unreadable

try:
    # Several times as fast.
    from isal import isal_zlib as inflating
except ImportError:
    import zlib as inflating  # type: ignore[no-redef]

_FAULTS: tuple[type[Exception], ...] = (zlib.error, getattr(inflating, "error", zlib.error))
_PIECE = 1 << 20
_HEADER = 1 << 16
_LOCAL = struct.Struct("<26xHH")
_MOST_EXPANSION = 1100
"""Deflate makes at most 1032 bytes of one."""


class Archive:
    """An ``.npz`` file.

    Args:
        path: The file.

    Raises:
        OperatorError: If it is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = Places(path)
            with zipfile.ZipFile(self._file.file) as archive:
                self._members = {one.filename: one for one in archive.infolist()}
        except (*BROKEN, NotImplementedError) as error:
            raise self.refusal(error) from error

    def refusal(self, error: Any) -> OperatorError:
        """What is said of a file that is no sparse matrix."""
        return OperatorError(
            f"cannot open {self._path} as a sparse .npz file: {error}; write it with "
            "scipy.sparse.save_npz"
        )

    @property
    def names(self) -> set[str]:
        """Names of the arrays."""
        return {name.removesuffix(".npy") for name in self._members}

    def member(self, name: str) -> Member:
        """An array.

        Raises:
            OperatorError: If there is no such array, or it holds no numbers.
        """
        info = self._members.get(f"{name}.npy")
        if info is None:
            raise self.refusal(f"it has no {name!r}")
        try:
            return Member(f"{self._path}: {name}", self._file, info)
        except BROKEN as error:
            raise self.refusal(error) from error


class Member:
    """One array of an archive, read from the first entry on; going back begins anew.

    Args:
        name: For messages.
        file: The archive.
        info: The entry of the archive.

    Attributes:
        shape: Of the array.
        dtype: Of the array.
        is_stream: Whether it is compressed.
    """

    _place = 0
    """How many bytes of it were taken."""

    def __init__(self, name: str, file: Places, info: zipfile.ZipInfo) -> None:
        self.name, self._file, self._info = name, file, info
        self.is_stream = info.compress_type != zipfile.ZIP_STORED
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed otherwise than numpy does")
        self._begin()
        header = io.BytesIO(self._take(_HEADER, short=True))
        version = np.lib.format.read_magic(header)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        self.shape, by_columns, self.dtype = read(header)
        if self.dtype.hasobject or (by_columns and len(self.shape) > 1):
            raise ValueError(f"{name} holds no plain numbers")
        self._data = header.tell()
        # Before anything is allocated: more than the file can hold is a lie.
        expansion = _MOST_EXPANSION if self.is_stream else 1
        if self.nbytes > expansion * info.compress_size:
            raise ValueError(f"{name} says it has {self.shape} entries, and the file is too small")

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self, wanted: Meant) -> Array:
        """All of it.

        Raises:
            OperatorError: If it does not fit into the memory, or cannot be read.
        """
        wanted.require_room(2 * self.nbytes, self.name)
        return self.read(0, math.prod(self.shape)).reshape(self.shape)

    def read(self, first: int, last: int) -> Array:
        """The entries ``first <= i < last``.

        Raises:
            OperatorError: If the file cannot be read.
        """
        out = np.empty(last - first, self.dtype)
        start = self._data + first * self.dtype.itemsize
        try:
            if start < self._place:
                self._begin()
            while self._place < start and self.is_stream:
                self._take(min(_PIECE, start - self._place))
            self._place = start
            if self.is_stream:
                out.view(np.uint8)[:] = np.frombuffer(self._take(out.nbytes), np.uint8)
            else:
                self._fill(out)
        except BROKEN as error:
            raise unreadable(self.name, error) from error
        return out

    def _begin(self) -> None:
        local = _LOCAL.unpack(self._file.read(self._info.header_offset, _LOCAL.size))
        self._source = self._info.header_offset + _LOCAL.size + sum(local)
        self._end = self._source + self._info.compress_size
        self._place, self._rest = 0, b""
        self._summed, self._sum = 0, 0
        self._inflate: Any = inflating.decompressobj(-15)

    def _fill(self, out: Array) -> None:
        """Fills an array with the next bytes of a member that is not compressed."""
        begin = self._source + self._place
        if begin + out.nbytes > self._end:
            raise EOFError("it ends too early")
        self._file.fill(out, begin)
        self._add(out.view(np.uint8))

    def _take(self, count: int, *, short: bool = False) -> bytes | bytearray:
        """The next bytes of the member; fewer only if that is allowed and it ends."""
        if not self.is_stream:
            begin = self._source + self._place
            found = self._file.read(begin, min(count, max(0, self._end - begin)))
            self._add(found)
            if len(found) < count and not short:
                raise EOFError("it ends too early")
            return found
        taken = bytearray()
        while len(taken) < count:
            if not self._rest and self._source < self._end:
                size = min(_PIECE, self._end - self._source)
                self._rest = self._file.read(self._source, size)
                self._source += len(self._rest)
            try:
                piece = self._inflate.decompress(self._rest, count - len(taken))
            except _FAULTS as error:
                raise ValueError(f"it cannot be decompressed: {error}") from error
            taken += piece
            left = self._inflate.unconsumed_tail
            # Broken streams may neither end nor go on.
            stuck = not piece and len(left) == len(self._rest)
            self._rest = left
            if self._inflate.eof or stuck:
                break
        self._add(taken)
        if len(taken) < count and not short:
            raise EOFError("it ends too early")
        return taken

    def _add(self, taken: bytes | bytearray | Array) -> None:
        """Counts bytes, and compares the checksum of all of them, if they came in order."""
        if self._summed == self._place:
            self._sum = inflating.crc32(taken, self._sum)
            self._summed += len(taken)
        self._place += len(taken)
        if self._summed == self._info.file_size == self._place and self._sum != self._info.CRC:
            raise ValueError("its checksum is not that of its bytes")
