"""Files for libhdf5 that never lock and never fail in its midst.

libhdf5 takes locks on its own files where the environment says so, which network folders refuse;
and where a disk is full, it fails again at each attempt to close what is open, with a traceback for
each. Here it reads and writes through a descriptor of ours: what fails is remembered, libhdf5 goes
on as if nothing had happened, and who opened the file is told.
"""

from __future__ import annotations

import io
import os
from typing import Any

_WRITE_BYTES = 1 << 18
"""At once. For larger writes Linux caches the file in larger runs of pages, just those that virtual
machines hand back to their host when they are free: to get one again took ten times as long as the
writing, where that was measured. Smaller ones save nothing."""


def read_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Fills ``data`` from a file; how many bytes there were."""
    position = 0
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


class RawFile(io.RawIOBase):
    """A file as h5py takes one instead of a name.

    Args:
        descriptor: Of the open file; remains the caller's.

    Attributes:
        error: What failed first, if anything did.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """Whether it is, the first write tells."""
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
        """Fills the buffer; what is not there reads as zeros."""
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            done = read_at(self._descriptor, view, self._position)
        except OSError as error:
            self._failed(error)
        view[done:] = bytes(len(view) - done)
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Writes all of it, or remembers why not."""
        view = memoryview(data).cast("B")
        try:
            if self.error is None:
                write_at(self._descriptor, view, self._position)
        except OSError as error:
            self._failed(error)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """See :class:`io.RawIOBase`."""
        size = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._failed(error)
        return size

    def check(self) -> None:
        """Says what failed.

        Raises:
            OSError: The first failure.
        """
        if self.error is not None:
            raise self.error

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _failed(self, error: OSError) -> None:
        self.error = self.error or error
