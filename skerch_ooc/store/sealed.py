"""Sealed files: HDF5 files in which no byte can change unnoticed; writing, reading, verifying them.

A sealed file starts with a 512-byte HDF5 user block, the *seal*: plain text that states the length
of the file, where its bulk data lie, and the SHA-256 of all other bytes. So libhdf5 never parses
metadata that were altered. Bulk data, too large to be hashed at every opening, are covered tile by
tile by CRC-32 numbers in the dataset ``identity``, which the SHA-256 covers. As each bulk is one
range of unfiltered bytes, it is written, read and verified without libhdf5: by several threads at
once, outside its global lock. Most files have one bulk; a file with the left and the right singular
vectors has two.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.disk_errors import ReadError, cannot_write
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.files import canonical_json, private_file, publish, sync_file
from skerch_ooc.base.partition import Range
from skerch_ooc.store.checksums import (
    LIBVER,
    SEAL_BYTES,
    Checksums,
    Crc32Texts,
    Extent,
    Seal,
    checked_seal,
    hash_of,
    require_tile,
    tile_checksum,
)
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.object_bytes import ObjectBytes, WantedBytes, fetch_together
from skerch_ooc.store.rawfile import DescriptorBytes, RawFile, start_syncing, write_at
from skerch_ooc.store.sources import SealedBytes, opened, source_of
from skerch_ooc.store.tiles import Tiles

_VERIFYING_THREADS = 2


class BulkWriter:
    """Writes the tiles of one bulk of a private file, in any order and from any thread."""

    def __init__(self, descriptor: int, layout: Layout, offset: int) -> None:
        self.layout = layout
        self._descriptor = descriptor
        self._offset = offset
        self._crc32 = np.zeros(layout.tiles, np.uint32)
        self._written = np.zeros(layout.tiles, np.bool_)

    def write_rows(self, row: int, array: Array) -> None:
        """Writes one row tile of all columns.

        Args:
            row: Number of the row tile.
            array: The rows of the tile, with all columns.
        """
        for column in range(self.layout.grid[1]):
            self.write_tile(row, column, array[:, self.layout.columns(column).slice])

    def write_tile(self, row: int, column: int, part: Array) -> None:
        """Writes one tile.

        Args:
            row: Number of the row tile.
            column: Number of the column tile.
            part: Its content, without padding.
        """
        stored_shape = self.layout.stored_shape(row, column)
        # HDF5 stores chunks at the edges whole. They are padded with zeros, so that equal contents
        # are equal bytes.
        if part.shape != stored_shape:
            padded = np.zeros(stored_shape, self.layout.stored_dtype)
            padded[: part.shape[0], : part.shape[1]] = part
            part = padded
        data = np.ascontiguousarray(part, self.layout.stored_dtype).data.cast("B")
        number = self.layout.number(row, column)
        offset = self._offset + number * self.layout.tile_bytes
        write_at(self._descriptor, data, offset)
        start_syncing(self._descriptor, offset, len(data))
        self._crc32[number] = tile_checksum(data)
        self._written[number] = True

    @property
    def crc32(self) -> Checksums:
        """The checksums of its tiles, once all are written.

        Raises:
            ValueError: If a tile was never written.
        """
        if not self._written.all():
            raise ValueError(f"tile {int(self._written.argmin())} was never written")
        return self._crc32


def _create_bulks(path: Path, layouts: Sequence[Layout]) -> list[int]:
    """Makes a file with datasets without content; returns the offsets of their bytes."""
    offsets = []
    with _writable(path, new=True) as file:
        for layout in layouts:
            # Space is allocated now, so that all bytes have their place, and never filled: the
            # tiles are written to that place directly. A fill value of NaN stays in the metadata.
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            fill = np.nan if np.issubdtype(layout.stored_dtype, np.inexact) else 0
            settings.set_fill_value(np.array(fill, layout.stored_dtype))
            # The same contents are the same bytes, whenever they are written.
            settings.set_obj_track_times(False)
            if layout.chunked:
                settings.set_chunk(layout.tile)
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
            offsets.append(extent.offset)
    return offsets


@contextlib.contextmanager
def _writable(path: Path, *, new: bool) -> Iterator[h5py.File]:
    """Opens an HDF5 file for writing; failures to write are OSError, on closing too."""
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)
    raw = RawFile(DescriptorBytes(descriptor))
    try:
        mode, user_block = ("w", SEAL_BYTES) if new else ("r+", None)
        with h5py.File(raw, mode, libver=LIBVER, userblock_size=user_block) as file:
            yield file
        raw.check()
    finally:
        os.close(descriptor)


def _extent(dataset: h5py.Dataset) -> Extent | None:
    """Returns the bytes of a dataset, if they are one range in the order of its tiles."""
    if dataset.chunks is None:
        return Extent(dataset.id.get_offset() or 0, dataset.id.get_storage_size())
    # Only the first and the last chunk are looked up, as there may be many: if these enclose just
    # the bytes of all chunks, the bulk is one range.
    count = dataset.id.get_num_chunks()
    ends = [dataset.id.get_chunk_info(0), dataset.id.get_chunk_info(count - 1)]
    start, stop = ends[0].byte_offset, ends[1].byte_offset + ends[1].size
    in_a_row = stop - start == count * ends[0].size
    return Extent(start, stop - start) if in_a_row else None


@contextlib.contextmanager
def sealed_writer(final: Path, *layouts: Layout) -> Iterator[SealedWriter]:
    """Writes a sealed file under a private name, until :meth:`SealedWriter.publish` publishes it.

    Args:
        final: The name under which it is published.
        layouts: The layouts of its bulks, if it has any.

    Raises:
        IncompleteError: If the file cannot be written (disk full, no permission). Nothing is left
            behind, and nothing that was published before is touched.
    """
    try:
        with private_file(final.parent) as private:
            offsets = _create_bulks(private, layouts) if layouts else []
            descriptor = os.open(private, os.O_RDWR) if layouts else -1
            try:
                yield SealedWriter(
                    private,
                    final,
                    tuple(
                        BulkWriter(descriptor, layout, offset)
                        for layout, offset in zip(layouts, offsets, strict=True)
                    ),
                )
            finally:
                if layouts:
                    os.close(descriptor)
    except ReadError:
        # Of what it is made of.
        raise
    except OSError as error:
        raise cannot_write(final, error) from error


@dataclass(frozen=True)
class SealedWriter:
    """A sealed file in the making.

    Attributes:
        private: Its private name.
        final: The name under which it is published.
        bulks: The writers of its bulks, if it has any.
    """

    private: Path
    final: Path
    bulks: tuple[BulkWriter, ...]

    def write_rows(self, row: int, array: Array) -> None:
        """Writes one row tile of the only bulk; see :meth:`BulkWriter.write_rows`."""
        (bulk,) = self.bulks
        bulk.write_rows(row, array)

    def publish(
        self,
        identity: Mapping[str, Any],
        arrays: Mapping[str, Array] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> bool:
        """Completes, seals, verifies and publishes the file.

        Args:
            identity: The entries of its identity; the description of the bulks is added.
            arrays: Small datasets, covered by the seal.
            provenance: Times, hosts, versions; stored beside the identity.

        Returns:
            Whether this call published the file: the first publication wins.

        Raises:
            CorruptError: If the bytes on the disk are not those that were written.
            ValueError: If a tile was never written.
            OSError: If it cannot be written; :func:`sealed_writer` makes an IncompleteError of it.
        """
        identity = dict(identity)
        described = [bulk.layout.as_json() for bulk in self.bulks]
        if described:
            identity["bulk"] = described[0] if len(described) == 1 else described
        checksums = [bulk.crc32 for bulk in self.bulks]
        stated = Crc32Texts.put_back(canonical_json(identity), checksums)
        with _writable(self.private, new=not self.bulks) as file:
            for name, array in (arrays or {}).items():
                file.create_dataset(name, data=np.asarray(array))
            file.create_dataset("identity", data=np.bytes_(stated))
            file.create_dataset("provenance", data=np.bytes_(canonical_json(provenance or {})))
            found = [_extent(file[bulk.layout.name]) or Extent(0, 0) for bulk in self.bulks]
        extents = sorted(found, key=lambda extent: extent.offset)
        with open(self.private, "r+b") as raw:
            source = DescriptorBytes(raw.fileno())
            length = source.size
            digest = hash_of(source, length, extents)
            raw.write(Seal(length, tuple(extents), digest).as_bytes())
        # Verified before it is published, through a new opening, as whoever reads it will do.
        verify(self.private)
        sync_file(self.private)
        return publish(self.private, self.final)


class Bulk(Tiles):
    """The reader of a bulk: a tall matrix in a sealed file.

    Args:
        source: The bytes of the file.
        layout: How the bulk lies in it.
        crc32: The checksums of its tiles.
        offset: The offset of its first byte in the file.
        advice: How the file is made anew, for messages.

    Attributes:
        crc32: The checksums of its tiles.
        offset: The offset of its first byte in the file.
    """

    def __init__(
        self, source: SealedBytes, layout: Layout, crc32: Checksums, offset: int, advice: str
    ) -> None:
        self.layout, self.crc32, self.offset = layout, crc32, offset
        self._source, self._advice = source, advice

    def checksum(self, number: int) -> int:
        """Returns the checksum of a tile."""
        return int(self.crc32[number])

    def read_tile(self, row: int, column: int = 0, out: Array | None = None) -> Array:
        """Reads one tile and verifies its checksum.

        Args:
            row: Number of the row tile.
            column: Number of the column tile.
            out: The array to read into, C-ordered, with the shape and dtype in which the tile is
                stored; by default a new one.

        Returns:
            The tile without padding, in C order.

        Raises:
            CorruptError: If it was altered, or the file cannot be opened any more.
        """
        layout = self.layout
        rows, columns = layout.rows(row), layout.columns(column)
        stored = out
        if stored is None:
            stored = np.empty(layout.stored_shape(row, column), layout.stored_dtype)
        data = stored.data.cast("B")
        number = layout.number(row, column)
        count = self._source.read(data, self.offset + number * layout.tile_bytes)
        where, stated = f"rows {rows}, columns {columns}", self.checksum(number)
        try:
            require_tile(data[:count], len(data), stated, self._source.path, where, self._advice)
        except CorruptError as error:
            if not self._is_replaced():
                raise
            raise CorruptError(
                f"{self._source.path} was made anew since it was opened; open it again (a result: "
                "by ooc.recover)"
            ) from error
        return stored[: len(rows), : len(columns)]

    def _is_replaced(self) -> bool:
        """Whether a sealed file with other tiles lies where the file did."""
        try:
            there = SealedFile(self._source.path).bulk(self.layout.name)
        except (CorruptError, OSError):
            return False
        return not np.array_equal(there.crc32, self.crc32)

    def wanted(self, rows: Range, columns: Range) -> WantedBytes | None:
        """Returns which bytes are read next, if they lie in an object store; see `expect`."""
        source, layout = self._source, self.layout
        if not isinstance(source, ObjectBytes):
            return None
        first = layout.number(rows.start, columns.start)
        # Some columns of several rows do not lie together.
        last = rows.stop if len(columns) == layout.grid[1] else rows.start + 1
        ends = layout.number(rows.start, columns.stop), layout.number(last - 1, columns.stop)
        offsets = [min(number * layout.tile_bytes, layout.length) for number in (first, *ends)]
        start, stop, until = (self.offset + offset for offset in offsets)
        return WantedBytes(source, start, stop - start, until)

    @property
    def far_bytes(self) -> int:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        return self.layout.row_bytes if isinstance(self._source, ObjectBytes) else 0

    def expect(self, rows: Range, columns: Range) -> None:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        wanted = self.wanted(rows, columns)
        if wanted is not None:
            fetch_together([wanted])


class SealedFile:
    """A sealed file, opened for reading after its seal was verified.

    Args:
        path: The path of the file.
        advice: How the file is made anew; ends all messages that it is damaged.
        keep: Whether tiles are read through the descriptor by which the seal was verified, if the
            process may keep one more.

    Raises:
        CorruptError: If the file is a link, torn, altered, or no sealed file at all.
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.

    The HDF5 file itself is closed again at once: small arrays are read in, and tiles are read
    without libhdf5. So a process may hold more sealed files than it may have file descriptors.

    Attributes:
        path: The path of the file.
        identity: The entries in which the file states what it is, without checksums of tiles.
        arrays: Its small datasets.
        layout: The layout of its bulk, or of the first one; ``None`` if it has none.
        advice: How the file is made anew.
    """

    def __init__(self, path: Path, advice: str = "", *, keep: bool = False) -> None:
        self.path, self.advice = path, advice
        self._source = source_of(path)
        self._bulks: dict[str, Bulk] = {}
        self.arrays: dict[str, Array] = {}
        try:
            self._open(path, keep=keep)
        except CorruptError as error:
            raise CorruptError(f"{error}{advice}") from error

    def _open(self, path: Path, *, keep: bool) -> None:
        with opened(path) as source:
            # libhdf5 gets the bytes of the file that was verified, not its name, under which
            # another file may lie by now.
            seal = checked_seal(source, path)
            raw = RawFile(source)
            try:
                with h5py.File(raw, "r") as file:
                    self._read(file, seal)
            except OSError as error:
                raw.check()
                raise CorruptError(f"{path} cannot be read as HDF5: {error}") from error
            raw.check()
            self._source.take(source, keep=keep)

    def _read(self, file: h5py.File, seal: Seal) -> None:
        # Each dataset is opened once: with thousands of files, opening is what takes the time.
        datasets = _plain_datasets(file, self.path)
        self.identity, checksums = _identity(datasets, self.path)
        _json(datasets, "provenance", self.path)
        # Kept as text, a fifth of the memory of a dict: of thousands of files few are asked for it.
        self._provenance = bytes(_value(datasets["provenance"]))
        described = self.identity.get("bulk", [])
        extents = []
        bulks = described if isinstance(described, list) else [described]
        for value, crc32 in zip(bulks, _of_each(checksums, bulks, self.path), strict=True):
            layout = Layout.from_json(value, self.path)
            if len(crc32) != layout.tiles:
                raise CorruptError(f"{self.path}: its identity does not describe its data")
            extents.append(_checked_extent(datasets, layout, self.path))
            offset = extents[-1].offset
            self._bulks[layout.name] = Bulk(self._source, layout, crc32, offset, self.advice)
        if tuple(sorted(extents, key=lambda extent: extent.offset)) != seal.bulks:
            raise CorruptError(f"{self.path}: its data do not lie where the seal says")
        for name, dataset in datasets.items():
            if name not in ("identity", "provenance", *self._bulks):
                self.arrays[name] = np.asarray(_value(dataset))

    @property
    def provenance(self) -> dict[str, Any]:
        """When, where and with which versions it was made."""
        found: dict[str, Any] = json.loads(self._provenance)
        return found

    @property
    def stated(self) -> bytes:
        """The identity in its canonical spelling, with the checksums of all tiles."""
        checksums = [bulk.crc32 for bulk in self._bulks.values()]
        return Crc32Texts.put_back(canonical_json(self.identity), checksums)

    @property
    def digest(self) -> str:
        """The hash of the identity, and so of all that the file holds but small arrays."""
        return hashlib.sha256(self.stated).hexdigest()

    def states(self, expected: Mapping[str, Any]) -> bool:
        """Whether the identity has the expected entries; it may have more."""
        return all(self.identity.get(key) == value for key, value in expected.items())

    def states_just(self, expected: Mapping[str, Any]) -> bool:
        """Whether the identity has exactly the expected entries, besides those about its data."""
        data = ("bulk", "pieces", "block", "earlier")
        return {k: value for k, value in self.identity.items() if k not in data} == expected

    @property
    def layout(self) -> Layout | None:
        """The layout of the bulk, or of the first one; ``None`` if there is none."""
        return next((bulk.layout for bulk in self._bulks.values()), None)

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of each bulk, by the name of its dataset."""
        return {name: bulk.layout for name, bulk in self._bulks.items()}

    def bulk(self, name: str | None = None) -> Bulk:
        """Returns the bulk ``name``; by default the first.

        Raises:
            CorruptError: If there is none.
        """
        name = next(iter(self._bulks), "matrix") if name is None else name
        if name not in self._bulks:
            raise CorruptError(f"{self.path} holds no {name}")
        return self._bulks[name]

    def verify_bulk(self) -> None:
        """Reads and verifies every tile.

        Raises:
            CorruptError: If one was altered, or the file cannot be opened any more.
        """
        places = (
            (bulk, row, column)
            for bulk in self._bulks.values()
            for row, column in itertools.product(*map(range, bulk.layout.grid))
        )
        if sum(math.prod(bulk.layout.grid) for bulk in self._bulks.values()) == 1:
            # To start threads takes longer than to read what is small.
            Bulk.read_tile(*next(places))
            return
        with ThreadPoolExecutor(_VERIFYING_THREADS) as pool:
            # The results are dropped, so that tiles do not pile up; errors are raised here.
            for _ in pool.map(lambda place: Bulk.read_tile(*place) is None, places):
                pass


def verify(path: Path) -> SealedFile:
    """Reads every byte of a sealed file and checks it.

    Raises:
        CorruptError: If the file is torn or altered, a link, or no sealed file.
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """
    # A bulk may have many thousand tiles: they are read through one opening.
    file = SealedFile(path, keep=True)
    file.verify_bulk()
    return file


def _checked_extent(
    datasets: Mapping[str, h5py.h5d.DatasetID], layout: Layout, path: Path
) -> Extent:
    """Returns the bytes of a bulk, after its dataset was compared with its description."""
    if layout.name not in datasets:
        raise CorruptError(f"{path} has no dataset {layout.name}")
    dataset = h5py.Dataset(datasets[layout.name])
    if dataset.shape != layout.shape or dataset.dtype != layout.stored_dtype:
        raise CorruptError(
            f"{path}: {layout.name} is {dataset.dtype} {dataset.shape}, "
            f"its identity says {layout.stored_dtype} {layout.shape}"
        )
    if dataset.chunks != (layout.tile if layout.chunked else None):
        raise CorruptError(f"{path}: {layout.name} is not tiled as its identity says")
    extent = _extent(dataset)
    if extent is None or extent.length != layout.length:
        raise CorruptError(f"{path}: {layout.name} does not lie where the seal says")
    return extent


def _identity(
    datasets: Mapping[str, h5py.h5d.DatasetID], path: Path
) -> tuple[dict[str, Any], list[Checksums]]:
    """Reads the identity of a file; returns the checksums of its tiles apart from it."""
    checksums: list[Checksums] = []

    def without(text: Any) -> bytes:
        kept, found = Crc32Texts.cut_out(bytes(text))
        checksums.extend(found)
        return kept

    return _json(datasets, "identity", path, without), checksums


def _of_each(checksums: list[Checksums], bulks: Sequence[Any], path: Path) -> list[Checksums]:
    """Returns the checksums of each bulk that an identity describes."""
    if len(checksums) != len(bulks):
        raise CorruptError(f"{path}: its identity does not describe its data")
    return checksums


def _json(
    datasets: Mapping[str, h5py.h5d.DatasetID], name: str, path: Path,
    prepared: Callable[[Any], Any] = lambda text: text,
) -> dict[str, Any]:  # fmt: skip
    try:
        value = json.loads(prepared(_value(datasets[name])))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path} has no readable {name}: {error}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} has no readable {name}")
    return value


def _value(dataset: h5py.h5d.DatasetID) -> Any:
    """Reads a small dataset as ``h5py.Dataset`` does, which makes many more objects for it."""
    dtype, space = dataset.dtype, dataset.get_space()
    if dtype.kind not in "Siufc" or space.get_simple_extent_type() == h5py.h5s.NULL:
        return h5py.Dataset(dataset)[()]
    values = np.zeros(space.shape, dtype)
    if values.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values[()]


def _plain_datasets(file: h5py.File, path: Path) -> dict[str, h5py.h5d.DatasetID]:
    """Returns all datasets of a file; refuses links, external, virtual and filtered data.

    The seal does not cover data in other files, and libhdf5 reads zeros for a file that is missing.
    """
    found, hard = {}, h5py.h5l.TYPE_HARD
    for name in file:
        spelt = name.encode("utf-8", "surrogateescape")
        if file.id.links.get_info(spelt).type != hard:
            raise CorruptError(f"{path}: {name} is a link to elsewhere, not data")
        dataset = h5py.h5o.open(file.id, spelt)
        if not isinstance(dataset, h5py.h5d.DatasetID):
            raise CorruptError(f"{path}: {name} is not a dataset")
        made = dataset.get_create_plist()
        if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
            raise CorruptError(f"{path}: {name} keeps its data in other files")
        if made.get_nfilters():
            raise CorruptError(f"{path}: {name} is filtered; sealed files are not")
        found[name] = dataset
    return found
