"""Descriptors of sealed files that stay open between the reads of their tiles, within a limit."""

from __future__ import annotations

import os
import resource
import threading
import weakref
from pathlib import Path

from skerch_ooc.base.disk_errors import read_error
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.store.rawfile import DescriptorBytes, read_at

_SHARE = 2
"""One of so many descriptors that a process may have is kept for a shard at most."""

_LOCK = threading.Lock()
_KEPT: set[int] = set()
"""The descriptors that are kept."""


class FileBytes:
    """The bytes of a file: read through a kept descriptor, or by opening the file each time.

    A merge reads each of a thousand shards once for each tile. Opened every time, they would be
    asked for a million times on a shared file system.

    Args:
        path: The path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: int | None = None

    def take(self, opened: DescriptorBytes, *, keep: bool) -> None:
        """Keeps a copy of a descriptor of the file, if asked, and if the process may have more."""
        if not keep:
            return
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
        with _LOCK:
            if len(_KEPT) >= most:
                return
            kept = os.dup(opened.descriptor)
            _KEPT.add(kept)
        self._kept = kept
        weakref.finalize(self, _close, kept).atexit = False

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were.

        Raises:
            CorruptError: If the file cannot be opened any more.
            ReadError: If it cannot be read.
        """
        try:
            return self._read(data, offset)
        except OSError as error:
            raise read_error(self.path, error) from error

    def _read(self, data: memoryview, offset: int) -> int:
        # A file that was removed is missed, as if it were not kept.
        if self._kept is not None and os.fstat(self._kept).st_nlink:
            return read_at(self._kept, data, offset)
        descriptor = _open(self.path)
        try:
            return read_at(descriptor, data, offset)
        finally:
            os.close(descriptor)


def _close(descriptor: int) -> None:
    with _LOCK:
        _KEPT.discard(descriptor)
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise CorruptError(f"{path} cannot be opened any more: {error.strerror}") from error
