"""How elements ended, by the last lines of their logs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TAIL = 4096
_ENDING = re.compile(r"^ended with exit code ([0-9]+)$")


def ending(code: int | str) -> str:
    """The last line of the log of an element; a shell may fill in the code."""
    return f"ended with exit code {code}"


@dataclass(frozen=True)
class Log:
    """What the log of an element says.

    Attributes:
        path: The log.
        exit_code: How the element ended; ``None`` if it is at work, or was killed.
        last_line: What it said last, but for that.
        modified: When, in seconds since 1970.
    """

    path: Path
    exit_code: int | None
    last_line: str
    modified: float


def read_log(path: Path) -> Log | None:
    """Reads the end of a log; ``None`` if there is none."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    lines = [line for line in lines if line.strip()]
    found = _ENDING.match(lines[-1]) if lines else None
    said = [line for line in lines if not _ENDING.match(line)]
    return Log(path, int(found[1]) if found else None, said[-1] if said else "", status.st_mtime)
