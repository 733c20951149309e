"""When, where and with what a file was made; part of every file, but not of what it says."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import sys
from functools import cache
from typing import Any

import skerch_ooc


@cache
def _versions() -> dict[str, str]:
    """Versions of the libraries that are loaded (none is loaded for this)."""
    names = ("numpy", "torch", "h5py", "scipy", "curvlinops", "distributed")
    versions = {"skerch_ooc": skerch_ooc.__version__, "python": platform.python_version()}
    for name in names:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version:
            versions[name] = str(version)
    return versions


def provenance(**more: Any) -> dict[str, Any]:
    """A record of this moment: time, host, process, versions, and whatever is added."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "processor": platform.machine(),
        "pid": os.getpid(),
        "versions": _versions(),
        **more,
    }
