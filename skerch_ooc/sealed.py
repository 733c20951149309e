"""HDF5 files in which no byte can change unnoticed.

Such a file starts with a 512-byte HDF5 user block, the *seal*: plain text that states the length
of the file, where its bulk data lie, and the SHA-256 of all other bytes. So libhdf5 is never let
loose on metadata that were altered. Bulk data, too large to be hashed at every opening, are covered
tile by tile, by CRC-32 numbers in the dataset ``identity``, which the SHA-256 covers. As the bulk
is one run of unfiltered bytes, it is written, read and verified without libhdf5: by several
threads at once, outside its global lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import CorruptError, IncompleteError
from skerch_ooc.files import canonical_json, private_file, publish, require_regular, sync_file
from skerch_ooc.partition import Range, cut, tile, tiles_of

Array = npt.NDArray[Any]

SEAL_BYTES = 512
LIBVER = ("v110", "v110")
"""Files open with HDF5 1.10 and later."""

_MAGIC = "skerch_ooc seal 1"
_READ_BYTES = 1 << 22
_VERIFYING_THREADS = 2


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
        bulk: The one run of bytes that holds all bulk data; of length 0 if there are none.
        sha256: Hash of all bytes outside the seal and outside ``bulk``.
    """

    length: int
    bulk: Extent
    sha256: str

    def as_bytes(self) -> bytes:
        """The seal as it stands at the start of the file."""
        text = (
            f"{_MAGIC}\nlength {self.length}\nbulk {self.bulk.offset} {self.bulk.length}\n"
            f"sha256 {self.sha256}\n"
        )
        return text.encode().ljust(SEAL_BYTES, b"\0")


@dataclass(frozen=True)
class Layout:
    """How a matrix lies in the bulk: row tiles of all columns, or tiles of fewer columns each.

    Attributes:
        name: Name of the dataset.
        shape: Rows and columns.
        dtype: float32, float64, complex64 or complex128; stored little-endian.
        tile: Rows and columns of a tile. With all columns the dataset is contiguous and its last
            tile may be shorter; with fewer it is chunked, and chunks at the edges are padded.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    tile: tuple[int, int]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The type of the stored entries."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunked(self) -> bool:
        """Whether a tile holds only some of the columns."""
        return self.tile[1] < self.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of row tiles and of column tiles."""
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.grid[0] * self.grid[1]

    def rows(self, row: int) -> Range:
        """The rows of a row tile."""
        return tile(Range(0, self.shape[0]), self.tile[0], row)

    def columns(self, column: int) -> Range:
        """The columns of a column tile."""
        return tile(Range(0, self.shape[1]), self.tile[1], column)

    def stored_shape(self, row: int, column: int) -> tuple[int, int]:
        """Rows and columns of a tile as it is stored, padding included."""
        return self.tile if self.chunked else (len(self.rows(row)), len(self.columns(column)))

    @property
    def tile_bytes(self) -> int:
        """Bytes of a full tile."""
        return self.tile[0] * self.tile[1] * self.stored_dtype.itemsize

    @property
    def length(self) -> int:
        """Bytes of the bulk."""
        if self.chunked:
            return self.tiles * self.tile_bytes
        return self.shape[0] * self.shape[1] * self.stored_dtype.itemsize

    def number(self, row: int, column: int) -> int:
        """The position of a tile in the bulk and among the checksums."""
        return row * self.grid[1] + column

    def as_json(self, crc32: list[str]) -> dict[str, Any]:
        """What the identity says of the bulk."""
        return {
            "dataset": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "tile": list(self.tile),
            "crc32": crc32,
        }

    @classmethod
    def from_json(cls, value: Any, path: Path) -> tuple[Layout, list[str]]:
        """Reads what :meth:`as_json` made.

        Raises:
            CorruptError: If it is not that.
        """
        try:
            layout = cls(
                name=str(value["dataset"]),
                shape=(int(value["shape"][0]), int(value["shape"][1])),
                dtype=str(value["dtype"]),
                tile=(int(value["tile"][0]), int(value["tile"][1])),
            )
            crc32 = [str(crc) for crc in value["crc32"]]
            good = min(layout.shape + layout.tile) >= 1 and len(crc32) == layout.tiles
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise CorruptError(f"{path}: its identity does not describe its data") from error
        if not good or layout.as_json(crc32) != value:
            raise CorruptError(f"{path}: its identity does not describe its data")
        return layout, crc32


class BulkWriter:
    """Writes the tiles of a private file; tiles may come in any order and from any thread."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self.layout = layout
        self._offset = _create_bulk(path, layout)
        self._crc32 = [""] * layout.tiles
        self._descriptor = os.open(path, os.O_RDWR)

    def write_rows(self, row: int, array: Array) -> None:
        """Writes one row of tiles.

        Args:
            row: Number of the row tile.
            array: Its rows, all columns.
        """
        for column in range(self.layout.grid[1]):
            part = array[:, self.layout.columns(column).slice]
            stored_shape = self.layout.stored_shape(row, column)
            if part.shape != stored_shape:
                padded = np.zeros(stored_shape, self.layout.stored_dtype)
                padded[: part.shape[0], : part.shape[1]] = part
                part = padded
            data = np.ascontiguousarray(part, self.layout.stored_dtype).data.cast("B")
            number = self.layout.number(row, column)
            _write_at(self._descriptor, data, self._offset + number * self.layout.tile_bytes)
            self._crc32[number] = f"{zlib.crc32(data):08x}"

    def finish(self) -> dict[str, Any]:
        """Closes the file and returns what the identity has to say of the bulk."""
        self.close()
        if "" in self._crc32:
            raise ValueError(f"tile {self._crc32.index('')} was never written")
        return self.layout.as_json(self._crc32)

    def close(self) -> None:
        """Closes the file, complete or not."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _create_bulk(path: Path, layout: Layout) -> int:
    """Makes a file with one empty dataset and returns the offset of its bytes."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_fill_value(np.array(np.nan, layout.stored_dtype))
    if layout.chunked:
        settings.set_chunk(layout.tile)
    with _writable(path, "x", userblock_size=SEAL_BYTES) as file:
        dataset = h5py.Dataset(
            h5py.h5d.create(
                file.id,
                layout.name.encode(),
                h5py.h5t.py_create(layout.stored_dtype, logical=True),
                h5py.h5s.create_simple(layout.shape),
                settings,
            )
        )
        extent = _extent(dataset)
    if extent is None or extent.length != layout.length:
        raise AssertionError(f"HDF5 did not lay out {layout} in one run: {extent}")
    return extent.offset


@contextlib.contextmanager
def _writable(path: Path, mode: str, userblock_size: int | None) -> Iterator[h5py.File]:
    """Opens an HDF5 file for writing; failures to write are OSError, on closing too."""
    try:
        with h5py.File(
            path, mode, libver=LIBVER, userblock_size=userblock_size, locking=False
        ) as file:
            yield file
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _extent(dataset: h5py.Dataset) -> Extent | None:
    """Where the bytes of a dataset lie, if they are one run in the order of its tiles."""
    if dataset.chunks is None:
        return Extent(dataset.id.get_offset() or 0, dataset.id.get_storage_size())
    count = dataset.id.get_num_chunks()
    ends = [dataset.id.get_chunk_info(0), dataset.id.get_chunk_info(count - 1)]
    start, stop = ends[0].byte_offset, ends[1].byte_offset + ends[1].size
    in_a_row = stop - start == count * ends[0].size
    return Extent(start, stop - start) if in_a_row else None


@contextlib.contextmanager
def sealed_writer(final: Path, layout: Layout | None = None) -> Iterator[SealedWriter]:
    """Writes a sealed file under a private name; :meth:`SealedWriter.publish` gives it its own.

    Args:
        final: Its name.
        layout: The bulk, if it has one.

    Raises:
        IncompleteError: If the file cannot be written (disk full, no permission). Nothing is left
            behind, and nothing that was published before is touched.
    """
    try:
        with private_file(final.parent) as private:
            bulk = BulkWriter(private, layout) if layout else None
            try:
                yield SealedWriter(private, final, bulk)
            finally:
                if bulk:
                    bulk.close()
    except OSError as error:
        raise IncompleteError(
            f"cannot write {final}: {error.strerror or error}; what was published before is "
            "untouched: make room or give permission, then run the same command again"
        ) from error


@dataclass(frozen=True)
class SealedWriter:
    """A sealed file in the making.

    Attributes:
        private: Its private name.
        final: The name it will be published under.
        bulk: Where its tiles are written, if it has any.
    """

    private: Path
    final: Path
    bulk: BulkWriter | None

    def write_rows(self, row: int, array: Array) -> None:
        """Writes one row of tiles of the bulk; see :meth:`BulkWriter.write_rows`."""
        if self.bulk is None:
            raise ValueError(f"{self.final} was not given a layout")
        self.bulk.write_rows(row, array)

    def publish(
        self,
        identity: Mapping[str, Any],
        arrays: Mapping[str, Array] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> bool:
        """Completes, seals, verifies and publishes the file.

        Args:
            identity: What the file is; the description of the bulk is added.
            arrays: Small datasets, covered by the seal.
            provenance: Times, hosts, versions: stored, but no part of what the file says.

        Returns:
            Whether this call published the file: the first publication wins.

        Raises:
            CorruptError: If the bytes on the disk are not those that were written.
        """
        identity = dict(identity)
        extent = Extent(0, 0)
        if self.bulk:
            identity["bulk"] = self.bulk.finish()
        with _writable(self.private, "a", None if self.bulk else SEAL_BYTES) as file:
            for name, array in (arrays or {}).items():
                file.create_dataset(name, data=np.asarray(array))
            file.create_dataset("identity", data=np.bytes_(canonical_json(identity)))
            file.create_dataset("provenance", data=np.bytes_(canonical_json(provenance or {})))
            if self.bulk:
                extent = _extent(file[self.bulk.layout.name]) or extent
        with open(self.private, "r+b") as raw:
            length = os.fstat(raw.fileno()).st_size
            digest = _hash(raw.fileno(), length, extent)
            raw.write(Seal(length, extent, digest).as_bytes())
        verify(self.private)
        sync_file(self.private)
        return publish(self.private, self.final)


def _hash(descriptor: int, length: int, bulk: Extent) -> str:
    digest = hashlib.sha256()
    stop_of_bulk = bulk.offset + bulk.length
    pieces = (
        [Range(SEAL_BYTES, bulk.offset), Range(stop_of_bulk, length)]
        if bulk.length
        else [Range(SEAL_BYTES, length)]
    )
    for piece in pieces:
        for part in cut(piece, _READ_BYTES):
            digest.update(os.pread(descriptor, len(part), part.start))
    return digest.hexdigest()


def read_seal(path: Path) -> Seal:
    """Reads the seal and checks it against all bytes but the bulk.

    Raises:
        CorruptError: If the file is a link, torn, altered, or no sealed file at all.
        FileNotFoundError: If there is none.
    """
    status = require_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        head = os.pread(descriptor, SEAL_BYTES, 0)
        seal = _parse_seal(head)
        if seal is None:
            raise CorruptError(f"{path}: the seal in its first {SEAL_BYTES} bytes is damaged")
        if seal.length != status.st_size:
            raise CorruptError(
                f"{path} has {status.st_size} bytes, but was published with {seal.length}"
            )
        found = _hash(descriptor, seal.length, seal.bulk)
    finally:
        os.close(descriptor)
    if found != seal.sha256:
        raise CorruptError(
            f"{path} was altered: the SHA-256 of its metadata is {found[:16]}..., "
            f"it was published with {seal.sha256[:16]}..."
        )
    return seal


def _parse_seal(head: bytes) -> Seal | None:
    try:
        magic, length, bulk, sha256 = head.rstrip(b"\0").decode("ascii").splitlines()
        _, offset, size = bulk.split(" ")
        seal = Seal(int(length.split(" ")[1]), Extent(int(offset), int(size)), sha256.split(" ")[1])
    except (ValueError, IndexError):
        return None
    # Only the one spelling that this module writes will do: then no bit of the seal is free.
    inside = seal.bulk.offset >= 0 and seal.bulk.offset + seal.bulk.length <= seal.length
    return seal if magic == _MAGIC and seal.as_bytes() == head and inside else None


class SealedFile:
    """A sealed file, opened for reading after its seal was verified.

    The HDF5 file itself is closed again at once: small arrays are read in, tiles are read with
    plain reads. So a process may hold thousands of these without a file descriptor.

    Attributes:
        path: Where it is.
        identity: What the file says it is.
        provenance: When, where and with what it was made.
        arrays: Its small datasets.
        layout: Its bulk, if it has one.
        advice: What to do if a tile turns out to be altered; ends the error message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.advice = ""
        seal = read_seal(path)
        self._offset = seal.bulk.offset
        self.layout: Layout | None = None
        self.arrays: dict[str, Array] = {}
        try:
            with h5py.File(path, "r", locking=False) as file:
                self._read(file, seal)
        except OSError as error:
            raise CorruptError(f"{path} cannot be read as HDF5: {error}") from error

    def _read(self, file: h5py.File, seal: Seal) -> None:
        _refuse_links(file, self.path)
        self.identity = _json(file, "identity", self.path)
        self.provenance = _json(file, "provenance", self.path)
        bulk = self.identity.get("bulk")
        if bulk is not None:
            self.layout, self._crc32 = Layout.from_json(bulk, self.path)
            _check_bulk(file, self.layout, seal, self.path)
        for name in file:
            if name not in ("identity", "provenance", self.layout and self.layout.name):
                self.arrays[name] = np.asarray(file[name][()])

    def read_tile(self, row: int, column: int = 0) -> Array:
        """Reads one tile and verifies its checksum.

        Args:
            row: Number of the row tile.
            column: Number of the column tile.

        Returns:
            The tile without padding, in C order.

        Raises:
            CorruptError: If it was altered.
        """
        layout = self._bulk_layout()
        rows, columns = layout.rows(row), layout.columns(column)
        stored = np.empty(layout.stored_shape(row, column), layout.stored_dtype)
        data = stored.data.cast("B")
        number = layout.number(row, column)
        descriptor = _open(self.path)
        try:
            complete = _read_at(descriptor, data, self._offset + number * layout.tile_bytes)
        finally:
            os.close(descriptor)
        if not complete or f"{zlib.crc32(data):08x}" != self._crc32[number]:
            raise CorruptError(
                f"{self.path} was altered: wrong checksum in rows {rows}, columns {columns}"
                f"{self.advice}"
            )
        return stored[: len(rows), : len(columns)]

    def read(self, rows: Range, columns: Range) -> Array:
        """Reads any slice of the bulk, through the tiles that it touches.

        Returns:
            The slice, ``(len(rows), len(columns))``.

        Raises:
            CorruptError: If a tile was altered.
        """
        layout = self._bulk_layout()
        out = np.empty((len(rows), len(columns)), np.dtype(layout.dtype))
        for i in tiles_of(rows, layout.tile[0]):
            tile_rows = layout.rows(i)
            here = tile_rows.common(rows)
            for j in tiles_of(columns, layout.tile[1]):
                tile_columns = layout.columns(j)
                there = tile_columns.common(columns)
                target = out[here.shifted(-rows.start).slice, there.shifted(-columns.start).slice]
                target[:] = self.read_tile(i, j)[
                    here.shifted(-tile_rows.start).slice, there.shifted(-tile_columns.start).slice
                ]
        return out

    def verify_bulk(self) -> None:
        """Reads and verifies every tile.

        Raises:
            CorruptError: If one was altered.
        """
        if self.layout:
            grid = itertools.product(*map(range, self.layout.grid))
            with ThreadPoolExecutor(_VERIFYING_THREADS) as pool:
                for _ in pool.map(lambda place: self.read_tile(*place) is None, grid):
                    pass

    def _bulk_layout(self) -> Layout:
        if self.layout is None:
            raise CorruptError(f"{self.path} holds no matrix")
        return self.layout


def verify(path: Path) -> SealedFile:
    """Reads every byte of a sealed file and checks it.

    Raises:
        CorruptError: If the file is torn or altered, a link, or no sealed file.
        FileNotFoundError: If there is none.
    """
    file = SealedFile(path)
    file.verify_bulk()
    return file


def _check_bulk(file: h5py.File, layout: Layout, seal: Seal, path: Path) -> None:
    dataset = file.get(layout.name)
    if not isinstance(dataset, h5py.Dataset):
        raise CorruptError(f"{path} has no dataset {layout.name}")
    if dataset.shape != layout.shape or dataset.dtype != layout.stored_dtype:
        raise CorruptError(
            f"{path}: {layout.name} is {dataset.dtype} {dataset.shape}, "
            f"its identity says {layout.stored_dtype} {layout.shape}"
        )
    if dataset.chunks != (layout.tile if layout.chunked else None):
        raise CorruptError(f"{path}: {layout.name} is not tiled as its identity says")
    if _extent(dataset) != seal.bulk or seal.bulk.length != layout.length:
        raise CorruptError(f"{path}: {layout.name} does not lie where the seal says")


def _json(file: h5py.File, name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(file[name][()])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path} has no readable {name}: {error}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} has no readable {name}")
    return value


def _refuse_links(file: h5py.File, path: Path) -> None:
    """Only plain datasets in this very file: links, external or virtual data can be anything."""
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise CorruptError(f"{path}: {name} is a link to elsewhere, not data")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise CorruptError(f"{path}: {name} is not a dataset")
        if dataset.is_virtual or dataset.external:
            raise CorruptError(f"{path}: {name} keeps its data in other files")
        if dataset.id.get_create_plist().get_nfilters():
            raise CorruptError(f"{path}: {name} is filtered; sealed files are not")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise CorruptError(f"{path} cannot be opened any more: {error.strerror}") from error


def _read_at(descriptor: int, data: memoryview, offset: int) -> bool:
    """Fills ``data`` from a file; whether there were enough bytes."""
    position = 0
    while position < len(data):
        count = os.preadv(descriptor, [data[position:]], offset + position)
        if count == 0:
            return False
        position += count
    return True


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    position = 0
    while position < len(data):
        position += os.pwrite(descriptor, data[position:], offset + position)
