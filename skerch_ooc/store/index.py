"""The index of a sketch: what its shards state, in one file, which is read instead of all of them.

The hash of a sketch is made of the checksums of all tiles of all shards. A process that merges some
rows would open and parse every shard to know it, and so would the next. The first process that has
opened them publishes their names, offsets and checksums; others make the same hash of these. So an
index cannot say anything else than the shards have said, and each tile that is read is compared
with it. A shard that does not agree is opened, as without an index, which tells what is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.files import canonical_json, make_folder
from skerch_ooc.base.object_store import THREADS
from skerch_ooc.base.places import is_object
from skerch_ooc.base.provenance import count_versions, provenance
from skerch_ooc.base.streams import ordered_map
from skerch_ooc.planning.disk import INDEX_WINDOW
from skerch_ooc.planning.plan import Plan
from skerch_ooc.store import names
from skerch_ooc.store.anew import how_made_anew
from skerch_ooc.store.checksums import SEAL_BYTES, Checksums, Crc32Texts
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.origin import Origins
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import Bulk, SealedFile, sealed_writer
from skerch_ooc.store.shards import Rectangle, open_shard, shard_dtype, shard_layout
from skerch_ooc.store.sources import SealedBytes, unopened_source

_CHECKSUMS, _NAMES, _OFFSETS, _VERSIONS = "crc32", "shards", "offsets", "versions_of_shards"
_MOST_OFFSET = 1 << 53


def digest_of(stated: Iterable[bytes], plan: Plan) -> str:
    """Hashes the JSON list of what shards state, one by one: together they may be gigabytes."""
    found = hashlib.sha256(b"[")
    for number, text in enumerate(stated):
        found.update(b"," * (number > 0) + text)
    # Shards do not state the scale of their summand, which an update may change.
    if plan.summands > 1:
        found.update(b"," + canonical_json([part.scale for part in plan.parts]))
    found.update(b"]")
    return found.hexdigest()


def in_order(
    folder: Path, opening: Callable[[Rectangle], SealedFile], shards: Sequence[Rectangle]
) -> Iterator[SealedFile]:
    """Opens shards, and yields them in order; of those in an object store several at once."""
    if is_object(folder) and len(shards) > 1:
        return ordered_map(opening, shards, THREADS)
    return map(opening, shards)


def of_own_operator(
    run: Run, opening: Callable[[Rectangle], SealedFile], shards: Sequence[Rectangle]
) -> Iterator[SealedFile]:
    """Opens shards in order, and refuses them if those of a part are all of another operator.

    Raises:
        DriftError: If they are, after the last.
    """
    parts = (shard.part for shard in shards)
    return Origins(run).each(in_order(run.shards, opening, shards), parts)


def _layout_of(plan: Plan, shard: Rectangle) -> Layout:
    return shard_layout(plan, shard, shard_dtype(plan, shard))


def _index_layout(plan: Plan, shards: Sequence[Rectangle]) -> Layout:
    """Returns the layout of the checksums: a row for each shard, filled up with zeros."""
    most = max(_layout_of(plan, shard).tiles for shard in shards)
    tile = 1, min(most, INDEX_WINDOW)
    return Layout(_CHECKSUMS, (len(shards), most), "uint32", tile)


def write_index(
    run: Run,
    shards: Sequence[Rectangle],
    opening: Callable[[Rectangle], SealedFile],
    folder_of: Callable[[str], Path],
) -> str:
    """Publishes the index of a sketch.

    Args:
        run: The run.
        shards: The shards that are used, in order.
        opening: Opens a shard; of those in an object store several at once.
        folder_of: Returns the folder of what is derived from the sketch with a digest.

    Returns:
        The digest of the sketch.

    Raises:
        CorruptError: If a shard is damaged.
        DriftError: If all shards of a part are of another operator.
        IncompleteError: If a shard is gone, or the index cannot be written.
    """
    layout, name = _index_layout(run.plan, shards), names.INDEX.name()
    offsets = np.zeros(len(shards), np.int64)
    records: list[Mapping[str, Any]] = []
    make_folder(run.sketch)
    # Its own folder is known only once all shards are opened.
    with sealed_writer(run.sketch / name, layout) as writer:

        def each() -> Iterator[bytes]:
            for row, file in enumerate(of_own_operator(run, opening, shards)):
                bulk, checksums = file.bulk(), np.zeros((1, layout.shape[1]), np.uint32)
                checksums[0, : len(bulk.crc32)] = bulk.crc32
                writer.write_rows(row, checksums)
                offsets[row] = bulk.offset
                records.append({"versions": file.provenance.get("versions")})
                yield file.stated

        digest = digest_of(each(), run.plan)
        final = folder_of(digest) / name
        make_folder(final.parent)
        stated = np.array([shard.name for shard in shards], np.bytes_)
        dataclasses.replace(writer, final=final).publish(
            names.INDEX.identity(run.plan.run_id, sketch=digest),
            {_NAMES: stated, _OFFSETS: offsets},
            provenance(**{_VERSIONS: count_versions(records)}),
        )
    return digest


@dataclass(frozen=True)
class Index:
    """The index of a sketch.

    Attributes:
        file: Its file.
        run: The run.
    """

    file: SealedFile
    run: Run

    @classmethod
    def read(cls, run: Run, path: Path) -> Index | None:
        """Opens the index of a sketch, and checks that it is that; ``None`` if it is not there.

        Raises:
            CorruptError: If it is damaged, or of another sketch than it says.
        """
        with contextlib.suppress(FileNotFoundError):
            index = cls(SealedFile(path, how_made_anew(path), keep=True), run)
            index.require_true()
            return index
        return None

    def require_true(self) -> None:
        """Checks that the hash of what it says of its shards is that of the sketch.

        Raises:
            CorruptError: If it is not, or the file is no index.
        """
        said = digest_of(map(self._stated, self.shards), self.run.plan)
        wanted = names.INDEX.identity(self.run.plan.run_id, sketch=said)
        if not self.file.states_just(wanted) or not self._offsets:
            raise self._unlike

    @property
    def digest(self) -> str:
        """The digest of the sketch."""
        return str(self.file.identity["sketch"])

    @cached_property
    def shards(self) -> dict[Rectangle, int]:
        """Its shards in order, and the number of each."""
        stated = self.file.arrays.get(_NAMES, np.empty(0))
        if stated.ndim != 1 or stated.dtype.kind != "S":
            raise self._unlike
        # What is not ASCII is no name.
        found = [Rectangle.from_name(name.decode("ascii", "replace")) for name in stated.tolist()]
        shards = [shard for shard in found if shard is not None]
        if not shards or len(shards) < len(found) or shards != sorted(set(shards)):
            raise self._unlike
        return {shard: number for number, shard in enumerate(shards)}

    @cached_property
    def _offsets(self) -> list[int]:
        offsets = self.file.arrays.get(_OFFSETS, np.empty(0))
        if offsets.shape != (len(self.shards),) or offsets.dtype.kind != "i":
            raise self._unlike
        found: list[int] = offsets.tolist()
        if not SEAL_BYTES <= min(found) <= max(found) <= _MOST_OFFSET:
            raise self._unlike
        return found

    @cached_property
    def _checksums(self) -> Bulk:
        wanted = _index_layout(self.run.plan, list(self.shards))
        if self.file.layouts != {_CHECKSUMS: wanted}:
            raise self._unlike
        return self.file.bulk()

    @property
    def _unlike(self) -> CorruptError:
        return CorruptError(f"{self.file.path} is not of this sketch{self.file.advice}")

    @property
    def versions(self) -> dict[str, dict[str, int]]:
        """How many shards were made with which versions of libraries."""
        found = self.file.provenance.get(_VERSIONS)
        # Provenance is no identity: anything may stand there.
        each = found.items() if isinstance(found, Mapping) else ()
        return {name: dict(counts) for name, counts in each if isinstance(counts, Mapping)}

    def _stated(self, shard: Rectangle) -> bytes:
        """Returns what a shard states, as it spells it."""
        described = {"bulk": _layout_of(self.run.plan, shard).as_json()}
        identity = shard.identity(self.run.plan.run_id) | described
        return Crc32Texts.put_back(canonical_json(identity), [self.checksums(shard)])

    def checksums(self, shard: Rectangle) -> Checksums:
        """Returns the checksums of all tiles of a shard."""
        windows = range(self._checksums.layout.grid[1])
        row = np.concatenate([self.window(self.shards[shard], window) for window in windows])
        return row[: _layout_of(self.run.plan, shard).tiles]

    def window(self, row: int, number: int) -> Checksums:
        """Returns checksums of some tiles of a shard: as many as lie together."""
        found: Checksums = self._checksums.read_tile(row, number)[0]
        return found

    def bulk(self, shard: Rectangle) -> Bulk:
        """Returns the content of a shard, whose file is opened and not verified as a whole.

        Raises:
            CorruptError: If it is not as the index says, and is damaged; or is a link.
            IncompleteError: If it is gone.
        """
        path, offset = self.run.shards / shard.name, self._offsets[self.shards[shard]]
        try:
            source = unopened_source(path, offset + _layout_of(self.run.plan, shard).length)
        except (CorruptError, FileNotFoundError):
            return self.reopened(shard)
        return _IndexedBulk(self, shard, source, offset)

    def reopened(self, shard: Rectangle) -> Bulk:
        """Opens a shard that does not agree with the index, which tells why.

        Raises:
            CorruptError: If it is damaged, or another than that of which the sketch was made.
            IncompleteError: If it is gone.
        """
        file = open_shard(self.run, self.run.shards, shard)
        if not np.array_equal(file.bulk().crc32, self.checksums(shard)):
            raise CorruptError(
                f"{file.path} holds other data than {self.file.path} says{file.advice}"
            )
        return file.bulk()


class _IndexedBulk(Bulk):
    """The content of a shard, whose tiles are compared with the index.

    Checksums are read some thousands at a time: those of all tiles of all shards may be gigabytes.
    """

    def __init__(self, index: Index, shard: Rectangle, source: SealedBytes, offset: int) -> None:
        layout, none = _layout_of(index.run.plan, shard), np.empty(0, np.uint32)
        # How it is made anew is said by whoever opens it because it does not agree.
        super().__init__(source, layout, none, offset, advice="")
        self._index, self._shard, self._row = index, shard, index.shards[shard]
        self._held: tuple[int, Checksums] | None = None
        self._reopened: Bulk | None = None

    def checksum(self, number: int) -> int:
        """See :class:`~skerch_ooc.store.sealed.Bulk`."""
        window, place = divmod(number, INDEX_WINDOW)
        held = self._held
        if held is None or held[0] != window:
            held = self._held = window, self._index.window(self._row, window)
        return int(held[1][place])

    def read_tile(self, row: int, column: int = 0, out: Array | None = None) -> Array:
        """See :class:`~skerch_ooc.store.sealed.Bulk`."""
        if self._reopened is None:
            try:
                return super().read_tile(row, column, out)
            except CorruptError:
                self._reopened = self._index.reopened(self._shard)
        return self._reopened.read_tile(row, column, out)


class OpenedShards:
    """The shards in a folder of a run, each opened once, when it is first read.

    Args:
        run: The run.
        folder: The folder: that of the run, or of the row shards of a merged sketch.
        index: The index of the sketch, if there is one.

    Attributes:
        run: The run.
        folder: The folder.
        merged: Whether they are row shards, which hold the sum of all parts and summands.
    """

    def __init__(self, run: Run, folder: Path, index: Index | None = None) -> None:
        self.run, self.folder = run, folder
        self.merged = folder != run.shards
        self._index, self._lock = index, threading.Lock()
        self._files: dict[Rectangle, SealedFile] = {}
        self._bulks: dict[Rectangle, Bulk] = {}
        self._digests: dict[Rectangle, str] = {}

    def glance(self, shard: Rectangle) -> SealedFile:
        """Opens a shard and does not hold it: only one that states the same is read later.

        Raises:
            CorruptError: If it is damaged, foreign, swapped or a link.
            IncompleteError: If it is gone.
        """
        file = open_shard(self.run, self.folder, shard)
        self._digests[shard] = file.digest
        return file

    def file(self, shard: Rectangle) -> SealedFile:
        """Returns an opened shard.

        Raises:
            CorruptError: If it is damaged, foreign, swapped or a link.
            IncompleteError: If it is gone.
        """
        with self._lock:
            if shard not in self._files:
                file = open_shard(self.run, self.folder, shard)
                self._files[shard] = self._as_before(shard, file)
            return self._files[shard]

    def _as_before(self, shard: Rectangle, file: SealedFile) -> SealedFile:
        if shard in self._digests and file.digest != self._digests[shard]:
            raise CorruptError(
                f"{file.path} was replaced by another one meanwhile; run the same command again"
            )
        return file

    def open_together(self, shards: Iterable[Rectangle]) -> None:
        """Opens shards that are not, which lie in an object store, by several requests at once.

        Raises:
            CorruptError: If one is damaged, foreign, swapped or a link.
            IncompleteError: If one is gone.
        """
        if self._index is not None:
            return
        with self._lock:
            lacking = [shard for shard in shards if shard not in self._files]
            opening = partial(open_shard, self.run, self.folder)
            for shard, file in zip(lacking, in_order(self.folder, opening, lacking), strict=True):
                self._files[shard] = self._as_before(shard, file)

    def bulk(self, shard: Rectangle) -> Bulk:
        """Returns the content of a shard.

        Raises:
            CorruptError: If the shard is damaged, foreign, swapped or a link.
            IncompleteError: If it is gone.
        """
        if self._index is None:
            return self.file(shard).bulk()
        with self._lock:
            if shard not in self._bulks:
                self._bulks[shard] = self._index.bulk(shard)
            return self._bulks[shard]
