"""Provenance of files: time, host and library versions, stored beside the identity, not in it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import platform
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from skerch_ooc.base.version import __version__

log = logging.getLogger(__name__)

_DRIVER = Path("/proc/driver/nvidia/version")


@cache
def _versions() -> dict[str, str]:
    """Returns the versions of the libraries that are loaded, and of the NVIDIA driver.

    It imports none of them: that would cost seconds, and memory that was not planned.
    """
    names = ("numpy", "torch", "h5py", "scipy", "curvlinops", "distributed")
    versions = {"skerch_ooc": __version__, "python": platform.python_version()}
    for name in names:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version:
            versions[name] = str(version)
    with contextlib.suppress(OSError):
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER.read_text())
        if found:
            versions["nvidia driver"] = found[0]
    return versions


def provenance(**more: Any) -> dict[str, Any]:
    """Makes a record of time, host, process and versions now, with further entries ``more``."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "host": socket.gethostname(),
        "processor": platform.machine(),
        "pid": os.getpid(),
        "versions": _versions(),
        **more,
    }


def count_versions(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts how many files were made with which version of each library.

    Args:
        records: The record of each file, as :func:`provenance` made it.
    """
    seen: dict[str, dict[str, int]] = {}
    for record in records:
        versions = record.get("versions")
        for name, version in versions.items() if isinstance(versions, Mapping) else ():
            counts = seen.setdefault(str(name), {})
            counts[str(version)] = counts.get(str(version), 0) + 1
    return seen


def warn_of_versions(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Warns once of all libraries that had several versions when files were made.

    Args:
        counts: How many files were made with which version of each library.
    """
    several = [
        f"{name} " + ", ".join(f"{version} ({count})" for version, count in sorted(of_each.items()))
        for name, of_each in sorted(counts.items())
        if len(of_each) > 1
    ]
    if several:
        log.warning(
            "shards were measured with different versions (each records its own): %s. Their "
            "products may differ by rounding",
            "; ".join(several),
        )
