"""Counts the files that this process opens, by Python's audit events."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_LISTENING: list[list[str]] = []
_HOOKED: list[bool] = []


def _hear(event: str, arguments: tuple) -> None:
    if event == "open" and _LISTENING and isinstance(arguments[0], (str, bytes, os.PathLike)):
        for heard in _LISTENING:
            heard.append(os.fsdecode(arguments[0]))


@contextlib.contextmanager
def files_opened(below: Path) -> Iterator[list[str]]:
    """Lists the files of a folder that are opened within the context, each time again.

    Files under private names, which are being written, are left out.
    """
    if not _HOOKED:
        # A hook stays for ever; it hears nothing while nobody listens.
        sys.addaudithook(_hear)
        _HOOKED.append(True)
    heard: list[str] = []
    found: list[str] = []
    _LISTENING.append(heard)
    try:
        yield found
    finally:
        _LISTENING.pop()
        inside = (Path(name) for name in heard if name.startswith(str(below)))
        found += [str(path) for path in inside if not path.name.startswith(".")]
