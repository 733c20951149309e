"""Where files are made before they are sent to a store, and what killed processes left there."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import psutil

from skerch_ooc.base.private_names import PRIVATE_NAME

_MOMENT = 60.0
"""Seconds for which a file whose process is not found may belong to another container."""


def scratch_folder() -> Path:
    """Returns the folder for temporary files, without what killed processes of this host left."""
    folder = Path(tempfile.gettempdir())
    _tidy(folder, os.getpid())
    return folder


@lru_cache(maxsize=4)
def _tidy(folder: Path, pid: int) -> None:
    """Removes what killed processes left, once in a process."""
    del pid
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and _is_left(entry.name, entry.stat()):
                    os.unlink(entry.path)


def _is_left(name: str, status: os.stat_result) -> bool:
    """Whether a file is ours, and the process that it is named after is gone."""
    found = PRIVATE_NAME.fullmatch(name)
    if found is None or found["host"] != socket.gethostname() or status.st_uid != os.getuid():
        return False
    try:
        # A process that started later has the same number by chance, as the first of a container.
        return bool(psutil.Process(int(found["pid"])).create_time() > status.st_mtime)
    except psutil.NoSuchProcess:
        return time.time() - status.st_mtime > _MOMENT
    except psutil.AccessDenied:
        return False
