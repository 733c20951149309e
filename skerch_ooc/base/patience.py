"""How long to wait for files that other processes have published, and that are seen late."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from skerch_ooc.base.errors import UsageError

LATE_FILES_SECONDS = (0.2, 1.0)
"""Seconds to wait before a file counts as missing: network folders show new files late."""

FILE_WAIT = "SKERCH_OOC_FILE_WAIT"
"""The variable that says how many seconds to wait for files that are known to be published."""

_FILE_WAIT_SECONDS = 90.0
"""Network file systems remember for up to a minute that a file was not there."""


def file_wait() -> float:
    """Returns the seconds to wait for files that other processes say they have published.

    Raises:
        UsageError: If the variable that says so is no number of seconds.
    """
    said = os.environ.get(FILE_WAIT)
    if said is None:
        return _FILE_WAIT_SECONDS
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(said)) < float("inf"):
            return seconds
    raise UsageError(f"{FILE_WAIT}={said}: must be a number of seconds, at least 0")


def looks_for_late_files() -> Iterator[bool]:
    """Yields for each look at a folder that lacks something whether it is the last; pauses between.

    Network folders show late what other hosts have published.
    """
    for pause in LATE_FILES_SECONDS:
        yield False
        time.sleep(pause)
    yield True
