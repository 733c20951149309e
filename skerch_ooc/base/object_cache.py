"""A bounded folder of this machine with ranges of objects that are read again and again.

It is used where the environment names one. What it holds is named by object, version and range, so
that it is never of another object; it may be removed at any time, and what fails stops nothing.
Whatever else lies in the folder is neither counted nor removed: somebody may name one of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.private_names import private_name
from skerch_ooc.base.resources import parse_bytes

log = logging.getLogger("skerch_ooc")

CACHE = "SKERCH_OOC_CACHE"
"""The variable that names the folder."""

CACHE_SIZE = "SKERCH_OOC_CACHE_SIZE"
"""The variable that says how large it may grow, such as ``10GiB``."""

_SIZE = "10GiB"
_SUFFIX = ".range"
_OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_CHECKSUM = 4
_NOTED: set[str] = set()


def cached_range(
    name: str, version: str | None, offset: int, length: int, read: Callable[[], memoryview]
) -> memoryview:
    """Returns a range of an object from the cache, or reads it and puts it there.

    Args:
        name: The URL of the object.
        version: Its version; without one nothing is cached.
        offset: The first byte.
        length: How many bytes.
        read: Reads them.

    Raises:
        UsageError: If the folder of the cache is none, or its size.
    """
    said = os.environ.get(CACHE)
    if not said or version is None:
        return read()
    require_folder(said)
    most = parse_bytes(os.environ.get(CACHE_SIZE) or _SIZE)
    text = f"{name}\n{version}\n{offset}\n{length}"
    path = Path(said) / f"{hashlib.sha256(text.encode()).hexdigest()}{_SUFFIX}"
    found = _held(path)
    if found is None:
        found = read()
        try:
            _keep(path, found, most)
        except OSError as error:
            if said not in _NOTED:
                log.warning("nothing is cached in %s: %s", said, error.strerror)
            _NOTED.add(said)
    return found


def require_folder(said: str) -> None:
    """Refuses what cannot be the folder of a cache.

    Raises:
        UsageError: If it is no name of a folder, or that of an object store.
    """
    if not said or "\0" in said or "://" in said:
        raise UsageError(f"{said!r} is no folder of this machine; give one for the cache")


def _held(path: Path) -> memoryview | None:
    try:
        content = memoryview(path.read_bytes())
    except OSError:
        return None
    data = content[_CHECKSUM:]
    if content[:_CHECKSUM] != zlib.crc32(data).to_bytes(_CHECKSUM, "little"):
        return None
    with contextlib.suppress(OSError):
        # What was used last is removed last.
        os.utime(path)
    return data


def _keep(path: Path, data: memoryview, most: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_room(path.parent, most - len(data) - _CHECKSUM)
    if len(data) + _CHECKSUM > most:
        return
    private = private_name(path.parent)
    try:
        with open(private, "xb") as file:
            file.write(zlib.crc32(data).to_bytes(_CHECKSUM, "little"))
            file.write(data)
        os.replace(private, path)
    finally:
        private.unlink(missing_ok=True)


def _make_room(folder: Path, most: int) -> None:
    """Removes ranges, those that were not used for longest first, until so many bytes are left."""
    with os.scandir(folder) as entries:
        found = [(one.stat(), one.path) for one in entries if _OURS.fullmatch(one.name)]
    held = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda one: one[0].st_mtime_ns):
        if held <= most:
            return
        held -= status.st_size
        # Another process may have made room, too.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
