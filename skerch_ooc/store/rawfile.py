"""A file object for h5py that takes no locks and reports failed reads and writes afterwards.

libhdf5 locks the files that it opens where the environment says so, and network folders refuse
locks. And when a disk is full, libhdf5 fails again at each attempt to close an object, with a
traceback for each. So here it reads and writes through a descriptor of ours: the first
failure is remembered, libhdf5 goes on as if nothing had happened, and :meth:`RawFile.check` raises
the failure in the code that opened the file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from typing import Any, Protocol

_WRITE_BYTES = 1 << 18
"""Most bytes of a single write. For larger writes Linux caches the file in larger runs of pages,
just those that a virtual machine returns to its host when they are free; getting one back was
measured to take ten times as long as the write. Smaller writes save nothing."""

_WORTH_SYNCING = 1 << 20


def read_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Reads bytes of a file into ``data``; returns how many there were."""
    position = 0
    # A single call may read less than it is asked for, and reads at most 2 GiB.
    while position < len(data):
        count = os.preadv(descriptor, [data[position:]], offset + position)
        if count == 0:
            break
        position += count
    return position


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of ``data`` to a file."""
    position = 0
    while position < len(data):
        part = data[position : position + _WRITE_BYTES]
        position += os.pwrite(descriptor, part, offset + position)


def start_syncing(descriptor: int, offset: int, length: int) -> None:
    """Lets the system begin to write a range of a file to the disk: a later fsync waits for less.

    That is advice alone, and of use for long ranges only.
    """
    if length >= _WORTH_SYNCING and hasattr(os, "posix_fadvise"):
        # Linux begins to write what is said not to be needed any more. Fresh pages stay cached:
        # only those that were written before the advice are dropped.
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


class DescriptorBytes:
    """The bytes of an open file.

    Args:
        descriptor: Its descriptor; the caller closes it.

    Attributes:
        descriptor: Its descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """Its length."""
        return os.fstat(self.descriptor).st_size

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were."""
        return read_at(self.descriptor, data, offset)

    def write(self, data: memoryview, offset: int) -> None:
        """Writes bytes."""
        write_at(self.descriptor, data, offset)

    def truncate(self, size: int) -> None:
        """Cuts it, or fills it up."""
        os.ftruncate(self.descriptor, size)


class OpenedBytes(Protocol):
    """The bytes of a file that is open for reading."""

    @property
    def size(self) -> int:
        """Its length."""

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were."""


class RawFile(io.RawIOBase):
    """A Python file object, which h5py opens instead of a path.

    Args:
        source: The bytes of the file, which the caller closes.

    Attributes:
        error: The first failure, if there was one.
    """

    def __init__(self, source: OpenedBytes) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It claims to be; the first write shows whether it is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See :class:`io.RawIOBase`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = (self._size() if start is None else start) + offset
        return self._position

    def tell(self) -> int:
        """See :class:`io.RawIOBase`."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer; bytes that are not there read as zeros.

        A read that failed is reported by :meth:`check`.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            done = self._source.read(view, self._position)
        except OSError as error:
            self._failed(error)
        view[done:] = bytes(len(view) - done)
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Writes all of it, or remembers the failure."""
        view = memoryview(data).cast("B")
        try:
            # After a failure the file is useless: libhdf5 may go on, but nothing more is written.
            if self.error is None:
                self._writable().write(view, self._position)
        except OSError as error:
            self._failed(error)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """See :class:`io.RawIOBase`."""
        size = self._position if size is None else size
        try:
            self._writable().truncate(size)
        except OSError as error:
            self._failed(error)
        return size

    def check(self) -> None:
        """Raises the first failure, if there was one.

        Raises:
            OSError: If reading or writing failed.
        """
        if self.error is not None:
            raise self.error

    def _size(self) -> int:
        return self._source.size

    def _writable(self) -> DescriptorBytes:
        if not isinstance(self._source, DescriptorBytes):
            raise OSError(errno.EBADF, "it is open for reading only")
        return self._source

    def _failed(self, error: OSError) -> None:
        self.error = self.error or error
