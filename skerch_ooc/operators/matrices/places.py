"""Files read at any place, without a map of them in memory, and closed with what reads them."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array


class Places:
    """A file of bytes.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self._descriptor = self.file.fileno()
        weakref.finalize(self, self.file.close)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._descriptor).st_size

    def read(self, place: int, count: int) -> bytes:
        """At most so many bytes from a place on."""
        return os.pread(self._descriptor, count, place)

    def fill(self, out: Array, place: int) -> None:
        """Fills an array, whose entries lie one behind the other, with the bytes from a place on.

        Raises:
            OSError: If they cannot be read.
            EOFError: If the file ends before.
        """
        left: Any = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(left):
            count = os.preadv(self._descriptor, [left], place)
            if not count:
                raise EOFError("it ends too early")
            left, place = left[count:], place + count
