"""Bytes of sealed files in object stores: metadata in two requests, tiles in long ranges.

A single tile of a narrow shard would come at a twentieth of the rate of a long range, so tiles that
follow one another are fetched together, those of several shards at once. What is held at a time is
bounded for the whole process.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.object_cache import cached_range
from skerch_ooc.base.object_store import RANGE_BYTES, Listed
from skerch_ooc.base.places import ObjectPath
from skerch_ooc.base.resources import SPARE_BYTES, Resources, resident_memory
from skerch_ooc.base.streams import tiles_in_flight
from skerch_ooc.planning.memory import WINDOWS, Needed, held_by_windows, window_room
from skerch_ooc.planning.requests import HEAD_BYTES, window_share
from skerch_ooc.store.names import RESULTS

WINDOW_BYTES = 256 << 20
"""Bytes that a process holds of files which are read tile by tile, unless a stage says how many."""

_NEAR = 4
"""Reads that are at most so many lengths further than the one before count as in order."""


_TAIL_BYTES = 1 << 20
"""So much at the end of a file is fetched as a whole."""


class ObjectHead:
    """An object that is being opened: all of it but its bulks is fetched, and held meanwhile.

    Args:
        path: The object.

    Attributes:
        size: Its bytes.
        status: What the store says of it.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self.status: Listed
        self.status, self.first = path.store.open(path.key, HEAD_BYTES)
        self.size = self.status.size
        self._fetched = [(0, self.first)]

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were."""
        wanted = min(len(data), max(self.size - offset, 0))
        done = 0
        while done < wanted:
            found = self._piece(offset + done, wanted - done)
            if not found:
                break
            data[done : done + len(found)] = found
            done += len(found)
        return done

    def _piece(self, offset: int, length: int) -> memoryview:
        for start, content in self._fetched:
            if start <= offset < start + len(content):
                inside = offset - start
                return memoryview(content)[inside : inside + length]
        # With a small bulk in between: libhdf5 looks a little beyond what it needs.
        rest = self.size - offset
        count = rest if rest <= _TAIL_BYTES else length
        content = self._path.store.read_range(self._path.key, offset, count, self.status.version)
        self._fetched.append((offset, content))
        return memoryview(content)[:length]


@dataclass(frozen=True)
class _Window:
    """Bytes of an object that are held.

    Attributes:
        start: The offset of the first.
        data: The bytes.
    """

    start: int
    data: memoryview


@dataclass(frozen=True)
class WantedBytes:
    """What is read next of an object.

    Attributes:
        source: The object.
        offset: The first byte.
        length: How many bytes are read first.
        stop: Up to where it will be read on.
    """

    source: ObjectBytes
    offset: int
    length: int
    stop: int

    def window(self, share: int) -> int:
        """Returns the bytes to be fetched: whole tiles, as many as the share of the object has."""
        whole = self.length * max(1, share // max(1, self.length))
        return min(whole, self.source.bounded(self.stop) - self.offset)


class ObjectBytes:
    """The bytes of an object whose tiles are read, in windows of several tiles.

    Args:
        path: The object.
        size: Its bytes, or up to where they are read, if that is known.

    Attributes:
        path: The object.
        lock: Is held while its windows change.
        coming: The next windows of all objects that are read with it, while they are fetched.
        used: When it was read last, in calls of :func:`fetch_together`.
    """

    def __init__(self, path: ObjectPath, size: int | None = None) -> None:
        self.path, self.lock, self.used = path, threading.RLock(), 0
        self._version: str | None = None
        self._size = size
        self._windows: list[_Window] = []
        self._next = -1
        self.coming: Future[_Fetched | None] | None = None

    def take(self, opened: ObjectHead, *, keep: bool) -> None:
        """Takes over what is known of the object that was verified: later reads are of that one."""
        del keep
        self._version, self._size = opened.status.version, opened.size
        if len(opened.first) == opened.size:
            self._windows = [_Window(0, memoryview(opened.first))]

    @property
    def held_bytes(self) -> int:
        """The bytes of its windows."""
        return sum(len(window.data) for window in self._windows)

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were.

        Raises:
            CorruptError: If the object is gone, or was replaced.
            ReadError: If the store refuses, or does not answer.
        """
        length = len(data)
        with self.lock:
            found, in_order = self._held(offset, length), self._is_next(offset, length)
            self._next = offset + length
        if found is None and in_order:
            fetch_together([WantedBytes(self, offset, length, self.bounded(1 << 62))])
            found = self._held(offset, length)
        if found is None:
            return self._read_into(data, offset)
        data[: len(found)] = found
        return len(found)

    def _is_next(self, offset: int, length: int) -> bool:
        return 0 <= self._next <= offset <= self._next + _NEAR * length

    def bounded(self, stop: int) -> int:
        """Returns an offset, or the end of the object if that comes before."""
        return stop if self._size is None else min(stop, self._size)

    @property
    def end(self) -> int:
        """Where its last window ends; 0 if there is none."""
        return self._windows[-1].start + len(self._windows[-1].data) if self._windows else 0

    def is_behind(self, offset: int) -> bool:
        """Whether bytes come before its last window."""
        return not self._windows or offset < self._windows[-1].start

    def lacks(self, offset: int, length: int) -> bool:
        """Whether bytes are not held."""
        return self._held(offset, length) is None

    def _held(self, offset: int, length: int) -> memoryview | None:
        for window in self._windows:
            start = offset - window.start
            stop = self.bounded(offset + length) - window.start
            if 0 <= start < len(window.data) >= stop:
                return window.data[start:stop]
        return None

    def give_up(self, kept: int) -> None:
        """Gives up the windows that were fetched first, so that so many are left."""
        self._windows = self._windows[max(0, len(self._windows) - kept) :]

    def hold(self, offset: int, data: memoryview) -> None:
        """Holds a window."""
        self._windows = [*self._windows, _Window(offset, data)]

    def fetch(self, offset: int, length: int) -> memoryview:
        """Fetches bytes by one request; fewer if the object ends before."""
        store, key, version = self.path.store, self.path.key, self._version
        return self._cached(offset, length, lambda: store.read_view(key, offset, length, version))

    def _read_into(self, data: memoryview, offset: int) -> int:
        store, key, version = self.path.store, self.path.key, self._version
        found = self._cached(
            offset, len(data), lambda: data[: store.read_into(data, key, offset, version)]
        )
        if found.obj is not data.obj:
            data[: len(found)] = found
        return len(found)

    def _cached(self, offset: int, length: int, read: Callable[[], memoryview]) -> memoryview:
        try:
            # What sketches are made of is read once.
            if RESULTS not in self.path.parts:
                return read()
            return cached_range(str(self.path), self._version, offset, length, read)
        except FileNotFoundError as error:
            raise self._gone() from error

    def _gone(self) -> CorruptError:
        return CorruptError(f"{self.path} cannot be opened any more: it is gone")


class _Windows:
    """The windows of this process: how many bytes they may take, and whose they are."""

    def __init__(self) -> None:
        self.most = WINDOW_BYTES
        self._lock = threading.Lock()
        self._sources: weakref.WeakSet[ObjectBytes] = weakref.WeakSet()
        self._calls = 0

    def allow(self, most: int) -> None:
        """Sets the bytes that windows may take; gives up those that are held."""
        with self._lock:
            for source in self._sources:
                source.give_up(0)
            self._sources.clear()
            self.most = most

    def share(self, sources: Iterable[ObjectBytes]) -> int:
        """Returns the bytes of a window of each object among those that are read now."""
        with self._lock:
            self._calls += 1
            for source in sources:
                source.used = self._calls
                self._sources.add(source)
            count = len(self._sources)
            return window_share(count, self.most)

    def make_room(self, wanted: Sequence[WantedBytes], needed: int) -> None:
        """Gives up the windows that were not used for longest, until there is room for others."""
        with self._lock:
            for one in wanted:
                one.source.give_up(WINDOWS - 1)
            excess = needed + sum(source.held_bytes for source in self._sources) - self.most
            for source in sorted(self._sources, key=lambda source: source.used):
                if excess <= 0:
                    return
                excess -= source.held_bytes
                source.give_up(0)


_PROCESS = _Windows()


def tiles_beside_windows(stage: str, resources: Resources, needed: Needed, row_bytes: int) -> int:
    """Returns how many tiles may be held at once, and gives what memory is left to windows.

    Args:
        stage: Name of the stage, for the error message.
        resources: Memory and cores.
        needed: What the stage needs besides.
        row_bytes: Bytes of a row tile of all that is read from an object store; 0 if nothing is.

    Raises:
        UsageError: If not even one tile fits.
    """
    least = held_by_windows(row_bytes)
    in_flight = tiles_in_flight(stage, resources, needed.fixed + least, needed.per_tile)
    if row_bytes:
        taken = resident_memory() + SPARE_BYTES + needed.fixed + in_flight * needed.per_tile
        _PROCESS.allow(window_room(max(least, resources.memory - taken)))
    return in_flight


def fetch_together(wanted: Iterable[WantedBytes]) -> None:
    """Fetches what is read next of several objects, in long ranges, by several requests at once.

    What comes after it is fetched meanwhile.

    Args:
        wanted: What is read next of each.

    Raises:
        CorruptError: If an object is gone, or was replaced.
        ReadError: If the store refuses, or does not answer.
    """
    every = list(wanted)
    if not every:
        return
    first = every[0].source
    with contextlib.ExitStack() as locked:
        # Another thread, which wants the next row, waits here, and then finds it held. They are
        # locked in one order, so that no two threads wait for each other.
        for one in sorted(every, key=lambda one: id(one.source)):
            locked.enter_context(one.source.lock)
        if first.coming is not None and any(map(_lacks, every)):
            # If it failed, it is tried again below, where the error is of use.
            for one, window in first.coming.result() or ():
                one.source.give_up(WINDOWS - 1)
                one.source.hold(one.offset, window)
            first.coming = None
        lacking = list(filter(_lacks, every))
        if lacking:
            for one, window in _fetched(lacking, _lengths(lacking, every)):
                one.source.hold(one.offset, window)
        if first.coming is None:
            first.coming = _ahead(every)


def _lacks(one: WantedBytes) -> bool:
    return one.source.lacks(one.offset, one.length)


def _lengths(lacking: Sequence[WantedBytes], every: Sequence[WantedBytes]) -> list[int]:
    share = _PROCESS.share(one.source for one in every)
    lengths = [one.window(share) for one in lacking]
    _PROCESS.make_room(lacking, sum(lengths))
    return lengths


_Fetched = list[tuple[WantedBytes, memoryview]]


def _ahead(every: Sequence[WantedBytes]) -> Future[_Fetched | None] | None:
    """Begins to fetch what comes after the windows that are read now, if all are in their last."""
    following = [replace(one, offset=end) for one in every if (end := one.source.end) < one.stop]
    if len(following) < len(every) or any(one.source.is_behind(one.offset) for one in every):
        return None
    lengths = _lengths(following, every)
    pool = following[0].source.path.store.ahead

    def fetch() -> _Fetched | None:
        with contextlib.suppress(CorruptError, OSError):
            return _fetched(following, lengths)
        return None

    return pool.submit(fetch)


def _fetched(wanted: Sequence[WantedBytes], lengths: Sequence[int]) -> _Fetched:
    # All requests are told apart here: a thread of the pool must not wait for others of it.
    ranges = [
        (number, start, min(start + RANGE_BYTES, length))
        for number, length in enumerate(lengths)
        for start in range(0, length, RANGE_BYTES)
    ]
    whole = {
        number: np.empty(n, np.uint8).data for number, n in enumerate(lengths) if n > RANGE_BYTES
    }
    counts = [0] * len(wanted)

    def fetch(part: tuple[int, int, int]) -> tuple[int, memoryview]:
        number, start, stop = part
        one = wanted[number]
        found = one.source.fetch(one.offset + start, stop - start)
        if number in whole:
            whole[number][start : start + len(found)] = found
        return number, found

    alone: dict[int, memoryview] = {}
    pool = wanted[0].source.path.store.pool
    for number, found in pool.map(fetch, ranges) if len(ranges) > 1 else map(fetch, ranges):
        counts[number] += len(found)
        if number not in whole:
            alone[number] = found
    each = whole | alone
    return [(one, each[n][: counts[n]]) for n, one in enumerate(wanted) if n in each]
