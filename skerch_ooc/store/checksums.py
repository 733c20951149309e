"""Checksums of a sealed file: CRC-32 of each tile, and the seal, which covers all other bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.store.rawfile import OpenedBytes

try:
    # The same numbers as zlib's, seven times as fast: else they would cost as much as the disk.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

SEAL_BYTES = 512
LIBVER = ("v110", "v110")
"""The HDF5 file format: files open with HDF5 1.10 and later.

In the default, older format a flipped bit of metadata could be read as wrong data; in this one
libhdf5 checks metadata too.
"""

Checksums = npt.NDArray[np.uint32]
"""The CRC-32 of each tile of a bulk."""

_MAGIC = "skerch_ooc seal 1"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Extent:
    """The range of bytes in a file that hold a bulk; the hash of the seal leaves it out."""

    offset: int
    length: int


@dataclass(frozen=True)
class Seal:
    """The content of the user block at the start of a sealed file.

    Attributes:
        length: Length of the file in bytes.
        bulks: The ranges of bytes that hold bulk data, in the order of their offsets.
        sha256: Hash of all bytes outside the seal and outside ``bulks``.
    """

    length: int
    bulks: tuple[Extent, ...]
    sha256: str

    def as_bytes(self) -> bytes:
        """Returns the seal as it stands at the start of the file."""
        bulks = " ".join(f"{bulk.offset} {bulk.length}" for bulk in self.bulks) or "0 0"
        text = f"{_MAGIC}\nlength {self.length}\nbulk {bulks}\nsha256 {self.sha256}\n"
        return text.encode().ljust(SEAL_BYTES, b"\0")


def hash_of(source: OpenedBytes, length: int, bulks: Sequence[Extent]) -> str:
    """Returns the SHA-256 of a file without its seal and its bulks."""
    digest = hashlib.sha256()
    position = SEAL_BYTES
    # With an empty bulk at the end of the file, so that the bytes after the last one are hashed.
    for bulk in (*bulks, Extent(length, 0)):
        for part in cut(Range(position, bulk.offset), _READ_BYTES):
            content = memoryview(bytearray(len(part)))
            digest.update(content[: source.read(content, part.start)])
        position = bulk.offset + bulk.length
    return digest.hexdigest()


def checked_seal(source: OpenedBytes, path: Path) -> Seal:
    """Reads the seal of a file and checks it against all bytes outside the bulks.

    Raises:
        CorruptError: If the seal is damaged, or the file is torn or altered.
    """
    size, head = source.size, bytearray(SEAL_BYTES)
    head = head[: source.read(memoryview(head), 0)]
    seal = _parse_seal(bytes(head))
    if seal is None:
        raise CorruptError(f"{path}: the seal in its first {SEAL_BYTES} bytes is damaged")
    if seal.length != size:
        raise CorruptError(f"{path} has {size} bytes, but was published with {seal.length}")
    found = hash_of(source, seal.length, seal.bulks)
    if found != seal.sha256:
        raise CorruptError(
            f"{path} was altered: the SHA-256 of its metadata is {found[:16]}..., "
            f"it was published with {seal.sha256[:16]}..."
        )
    return seal


def _parse_seal(head: bytes) -> Seal | None:
    try:
        magic, length, bulk, sha256 = head.rstrip(b"\0").decode("ascii").splitlines()
        numbers = [int(word) for word in bulk.split(" ")[1:]]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        bulks = tuple(Extent(offset, size) for offset, size in pairs)
        bulks = () if bulks == (Extent(0, 0),) else bulks
        seal = Seal(int(length.split(" ")[1]), bulks, sha256.split(" ")[1])
    except (ValueError, IndexError):
        return None
    # The seal must have exactly the spelling that this module writes, so that no bit of it is free.
    position = SEAL_BYTES
    for extent in seal.bulks:
        if extent.offset < position or extent.length < 0:
            return None
        position = extent.offset + extent.length
    inside = position <= max(seal.length, SEAL_BYTES)
    return seal if magic == _MAGIC and seal.as_bytes() == head and inside else None


def tile_checksum(data: memoryview) -> int:
    """Returns the CRC-32 of a tile."""
    return int(crc32(data))


class Crc32Texts:
    """The checksums of tiles in an identity, which spells each by eight hexadecimal digits.

    There may be a quarter of a million in each of a thousand files: they are held as numbers of 4
    bytes, and neither read nor spelt one by one.
    """

    _KEY, _NONE = b'"crc32":[', b'"crc32":[]'
    _DIGITS = 8
    _STRIDE = _DIGITS + 3
    """Bytes of a checksum in JSON: its digits, two quotes and a comma."""

    @classmethod
    def cut_out(cls, text: bytes) -> tuple[bytes, list[Checksums]]:
        """Takes the checksums of all bulks out of an identity.

        Args:
            text: The identity, in JSON.

        Returns:
            The identity with empty lists in their place, and the checksums of each list; the text
            as it is, and none, if they are not spelt as this class spells them.
        """
        first, *others = text.split(cls._KEY)
        found, kept = [], [first]
        for other in others:
            numbers = cls._read(other[: max(other.find(b"]"), 0)])
            if numbers is None:
                return text, []
            found.append(numbers)
            kept.append(other[other.index(b"]") :])
        return cls._KEY.join(kept), found

    @classmethod
    def _read(cls, text: bytes) -> Checksums | None:
        if not text or (len(text) + 1) % cls._STRIDE:
            return None
        table = np.frombuffer(text + b",", np.uint8).reshape(-1, cls._STRIDE)
        digits = table[:, 1:-2]
        frame = (table[:, [0, -2, -1]] == np.frombuffer(b'"",', np.uint8)).all()
        lower = ((digits >= ord("0")) & (digits <= ord("9"))) | (
            (digits >= ord("a")) & (digits <= ord("f"))
        )
        if not frame or not lower.all():
            return None
        content = bytes.fromhex(digits.tobytes().decode("ascii"))
        return np.frombuffer(content, ">u4").astype(np.uint32)

    @classmethod
    def put_back(cls, text: bytes, checksums: Sequence[Checksums]) -> bytes:
        """Undoes :meth:`cut_out`."""
        first, *others = text.split(cls._NONE)
        spelt = (cls._KEY + cls._spelt(numbers) + b"]" for numbers in checksums)
        return first + b"".join(part for pair in zip(spelt, others, strict=True) for part in pair)

    @classmethod
    def _spelt(cls, numbers: Checksums) -> bytes:
        table = np.empty((len(numbers), cls._STRIDE), np.uint8)
        digits = numbers.astype(">u4").tobytes().hex().encode("ascii")
        table[:, 1:-2] = np.frombuffer(digits, np.uint8).reshape(-1, cls._DIGITS)
        table[:, [0, -2, -1]] = np.frombuffer(b'"",', np.uint8)
        return table.tobytes()[:-1]


def require_tile(
    data: memoryview, length: int, stated: int, path: Path, where: str, advice: str
) -> None:
    """Refuses a tile whose bytes are not those that were written.

    Args:
        data: The bytes that could be read.
        length: How many bytes the tile has.
        stated: Its checksum, as the identity states it.
        path: The file.
        where: The rows and columns of the tile, for the message.
        advice: How the file is made anew, for the message.

    Raises:
        CorruptError: If bytes are missing or altered.
    """
    if len(data) != length or tile_checksum(data) != stated:
        raise CorruptError(f"{path} was altered: wrong checksum in {where}{advice}")
