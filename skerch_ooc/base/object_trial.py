"""A trial of an object store: whether the first publication of an object wins there.

Some stores take the condition that there is no object of a name, and do not heed it: of two
processes that publish one, both would be told that theirs is the one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

from skerch_ooc.base.disk_errors import ReadError
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.object_store import ObjectStore
from skerch_ooc.base.private_names import private_name

KNOWN = "AWS S3, Google Cloud Storage, Azure Blob Storage, and present versions of MinIO"
"""Stores that heed the condition, by their documentation."""

_FIRST, _SECOND = b"first\n", b"second\n"


def require_first_wins(store: ObjectStore, prefix: str) -> None:
    """Tries whether a store heeds the condition of first publication; leaves nothing there.

    Args:
        store: The store.
        prefix: The name below which it is tried.

    Raises:
        UsageError: If the store does not; it says what it did.
        OSError: If the store refuses, or does not answer.
    """
    key, source = (str(private_name(Path(prefix))) for _ in range(2))
    try:
        store.put_if_absent(key, _FIRST)
        _require(store, key, lambda: store.put_new(key, _SECOND), "a second upload")
        store.put_if_absent(source, _SECOND)
        # Large objects are given their names by copies.
        _require(store, key, lambda: store.copy_new(source, key), "a copy")
    finally:
        with contextlib.suppress(OSError):
            store.delete(key)
            store.delete(source)


def _require(store: ObjectStore, key: str, publish: Callable[[], None], second: str) -> None:
    try:
        publish()
        done = "was answered that it succeeded"
    except FileExistsError:
        done = "was refused"
    found = store.read(key)
    if found not in (_FIRST, _SECOND):
        raise ReadError(errno.EIO, "the store gave other bytes than were written", store.name(key))
    kept = found == _FIRST
    if done == "was refused" and kept:
        return
    raise UsageError(
        f"{store.root} does not heed the condition that a name is free: "
        f"{second} to a taken name {done}, and the first object was "
        f"{'kept' if kept else 'replaced'}. Processes would replace each other's files: give a "
        f"store that heeds it ({KNOWN}), or a folder that all hosts see"
    )
