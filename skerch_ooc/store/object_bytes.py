"""Bytes of sealed files in object stores: metadata in two requests, tiles in long ranges.

A single tile of a narrow shard would come at a twentieth of the rate of a long range, so tiles that
follow one another are fetched together, those of several shards at once. What is held at a time is
bounded for the whole process.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.object_store import RANGE_BYTES, Listed
from skerch_ooc.base.places import ObjectPath

HEAD_BYTES = 1 << 16
"""Bytes of the first request: the seal, the metadata before the bulk, and all of a small file."""

WINDOW_BYTES = 256 << 20
"""Bytes that a process holds of files which are read tile by tile."""


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
        content = self._path.store.read_range(self._path.key, offset, length, self.status.version)
        self._fetched.append((offset, content))
        return memoryview(content)


class ObjectBytes:
    """The bytes of an object whose tiles are read, in windows of several tiles.

    Args:
        path: The object.
        size: Its bytes, or up to where they are read, if that is known.

    Attributes:
        path: The object.
    """

    def __init__(self, path: ObjectPath, size: int | None = None) -> None:
        self.path = path
        self._version: str | None = None
        self._size = size
        self._start, self._window = 0, memoryview(b"")
        self._next = -1
        self._lock = threading.Lock()

    def take(self, opened: ObjectHead, *, keep: bool) -> None:
        """Takes over what is known of the object that was verified: later reads are of that one."""
        del keep
        self._version, self._size = opened.status.version, opened.size
        if len(opened.first) == opened.size:
            self._window = memoryview(opened.first)

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were.

        Raises:
            CorruptError: If the object is gone, or was replaced.
            ReadError: If the store refuses, or does not answer.
        """
        with self._lock:
            in_order = offset == self._next
            self._next = offset + len(data)
            found = self._held(offset, len(data))
            if found is None and in_order:
                self._fetch(offset, _share(self))
                found = self._held(offset, len(data))
        if found is None:
            return self._read_into(data, offset)
        data[: len(found)] = found
        return len(found)

    def lacks(self, offset: int, length: int) -> bool:
        """Whether bytes are not held."""
        return self._held(offset, length) is None

    def fetch(self, offset: int, length: int) -> None:
        """Fetches a window that begins with some bytes, which are to be read next."""
        with self._lock:
            if self._held(offset, length) is None:
                self._fetch(offset, max(length, _share(self)))
                self._next = offset

    def _held(self, offset: int, length: int) -> memoryview | None:
        start = offset - self._start
        stop = start + length
        if self._size is not None:
            stop = min(stop, self._size - self._start)
        if start < 0 or stop > len(self._window) or not self._window:
            return None
        return self._window[start:stop]

    def _fetch(self, offset: int, length: int) -> None:
        if self._size is not None:
            length = min(length, self._size - offset)
        # What is held is given up before: two windows would be twice what is promised.
        self._window = memoryview(b"")
        found = memoryview(bytearray(max(length, 0)))
        count = self._read_into(found, offset)
        self._start, self._window = offset, found[:count]

    def _read_into(self, data: memoryview, offset: int) -> int:
        try:
            return self.path.store.read_into(data, self.path.key, offset, self._version)
        except FileNotFoundError as error:
            raise CorruptError(f"{self.path} cannot be opened any more: it is gone") from error


_READ: weakref.WeakSet[ObjectBytes] = weakref.WeakSet()
"""The objects of which windows may be held."""

_READ_LOCK = threading.Lock()


def _share(source: ObjectBytes) -> int:
    """Returns the bytes of the window of an object, among those that are read now."""
    with _READ_LOCK:
        _READ.add(source)
        return min(RANGE_BYTES, WINDOW_BYTES // len(_READ))


def fetch_together(wanted: Iterable[tuple[ObjectBytes, int, int]]) -> None:
    """Fetches what is to be read next of several objects, by several requests at once.

    Args:
        wanted: Each object, and the offset and the length of what is read first.
    """
    lacking = [one for one in wanted if one[0].lacks(one[1], one[2])]
    if len(lacking) < 2:
        return
    for source, *_ in lacking:
        _share(source)
    pool = lacking[0][0].path.store.pool
    for _ in pool.map(lambda one: one[0].fetch(one[1], one[2]), lacking):
        pass
