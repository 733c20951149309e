"""Checksums of a sealed file: CRC-32 of each tile, and the seal, which covers all other bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.files import require_regular
from skerch_ooc.base.partition import Range, cut

try:
    # The same numbers as zlib's, seven times as fast: else they would cost as much as the disk.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

SEAL_BYTES = 512
LIBVER = ("v110", "v110")
"""Files open with HDF5 1.10 and later."""

_MAGIC = "skerch_ooc seal 1"
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Extent:
    """A run of bulk bytes in a file, which the seal's hash leaves out."""

    offset: int
    length: int


@dataclass(frozen=True)
class Seal:
    """The content of the user block.

    Attributes:
        length: Length of the file in bytes.
        bulks: The runs of bytes that hold bulk data, in the order of their offsets.
        sha256: Hash of all bytes outside the seal and outside ``bulks``.
    """

    length: int
    bulks: tuple[Extent, ...]
    sha256: str

    def as_bytes(self) -> bytes:
        """The seal as it stands at the start of the file."""
        bulks = " ".join(f"{bulk.offset} {bulk.length}" for bulk in self.bulks) or "0 0"
        text = f"{_MAGIC}\nlength {self.length}\nbulk {bulks}\nsha256 {self.sha256}\n"
        return text.encode().ljust(SEAL_BYTES, b"\0")


def hash_of(descriptor: int, length: int, bulks: Sequence[Extent]) -> str:
    """The SHA-256 of a file without its seal and its bulks."""
    digest = hashlib.sha256()
    position = SEAL_BYTES
    for bulk in (*bulks, Extent(length, 0)):
        for part in cut(Range(position, bulk.offset), _READ_BYTES):
            digest.update(os.pread(descriptor, len(part), part.start))
        position = bulk.offset + bulk.length
    return digest.hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a plain file; failures to read it name it."""
    require_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield descriptor
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)


def checked_seal(descriptor: int, path: Path) -> Seal:
    """Reads the seal and checks it against all bytes but the bulk."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, SEAL_BYTES, 0)
    seal = _parse_seal(head)
    if seal is None:
        raise CorruptError(f"{path}: the seal in its first {SEAL_BYTES} bytes is damaged")
    if seal.length != size:
        raise CorruptError(f"{path} has {size} bytes, but was published with {seal.length}")
    found = hash_of(descriptor, seal.length, seal.bulks)
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
    # Only the one spelling that this module writes will do: then no bit of the seal is free.
    position = SEAL_BYTES
    for extent in seal.bulks:
        if extent.offset < position or extent.length < 0:
            return None
        position = extent.offset + extent.length
    inside = position <= max(seal.length, SEAL_BYTES)
    return seal if magic == _MAGIC and seal.as_bytes() == head and inside else None


def tile_checksum(data: memoryview) -> str:
    """The CRC-32 of a tile, as the identity of its file states it."""
    return f"{crc32(data):08x}"


def require_tile(
    data: memoryview, length: int, stated: str, path: Path, where: str, advice: str
) -> None:
    """Checks the bytes of a tile.

    Args:
        data: What could be read of it.
        length: How many bytes it has.
        stated: Its checksum, as the identity states it.
        path: The file.
        where: Which rows and columns these are.
        advice: How the file is made anew.

    Raises:
        CorruptError: If bytes are missing, or not those that were written.
    """
    if len(data) != length or tile_checksum(data) != stated:
        raise CorruptError(f"{path} was altered: wrong checksum in {where}{advice}")
