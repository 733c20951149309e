"""Where the bytes of a sealed file come from: a file of this machine, or an object of a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from skerch_ooc.base.disk_errors import read_error
from skerch_ooc.base.files import require_regular
from skerch_ooc.base.places import ObjectPath
from skerch_ooc.store.descriptors import FileBytes
from skerch_ooc.store.object_bytes import ObjectBytes, ObjectHead
from skerch_ooc.store.rawfile import DescriptorBytes, OpenedBytes


class SealedBytes(Protocol):
    """The bytes of a sealed file that was opened before.

    Attributes:
        path: The path of the file.
    """

    path: Any

    def take(self, opened: Any, *, keep: bool) -> None:
        """Takes over what is of use of the file as it was opened and verified."""

    def read(self, data: memoryview, offset: int) -> int:
        """Reads bytes; returns how many there were."""


def source_of(path: Path) -> SealedBytes:
    """Returns the bytes of a file."""
    return ObjectBytes(path) if isinstance(path, ObjectPath) else FileBytes(path)


def unopened_source(path: Path, length: int) -> SealedBytes:
    """Returns the bytes of a file of which another one tells where they lie.

    Args:
        path: The file.
        length: Up to which byte it is read.

    Raises:
        CorruptError: If it is a link, folder or device.
        OSError: If it is seen that it is not there, or cannot be read.
    """
    if isinstance(path, ObjectPath):
        return ObjectBytes(path, length)
    source = FileBytes(path)
    with _opened_file(path) as found:
        source.take(found, keep=True)
    return source


@contextlib.contextmanager
def opened(path: Path) -> Iterator[OpenedBytes]:
    """Opens a plain file for reading. Errors of reading name the file.

    Raises:
        CorruptError: If it is a link, folder or device.
        OSError: If it is not there, or cannot be read.
    """
    if isinstance(path, ObjectPath):
        yield ObjectHead(path)
    else:
        with _opened_file(path) as found:
            yield found


@contextlib.contextmanager
def _opened_file(path: Path) -> Iterator[DescriptorBytes]:
    require_regular(path)
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        yield DescriptorBytes(descriptor)
    except OSError as error:
        raise read_error(path, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
