"""How elements ended, by the last lines of their logs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.posix import regular_status

BEGINNING = "begins on"
"""How the first line of a script's log begins; what follows is the host."""

_TAIL = 4096
_ENDING = re.compile(r"ended with exit code ([0-9]+)")
_LACKING = re.compile(r"\S*python[0-9.]*: (No module named|Error while finding module) .*")
"""What a Python that lacks the package says last; it ends with 1, and nothing of ours begins."""


def ending(code: int | str) -> str:
    """The last line of the log of an element; a shell may fill in the code."""
    return f"ended with exit code {code}"


@dataclass(frozen=True)
class Log:
    """What the log of an element says.

    Attributes:
        path: The log.
        exit_code: How the element ended; ``None`` if it is at work, or was killed.
        last_line: What it said last before that.
        modified: When, in seconds since 1970.
    """

    path: Path
    exit_code: int | None
    last_line: str
    modified: float


def read_log(path: Path) -> Log | None:
    """Reads the end of a log; ``None`` if there is none."""
    try:
        status = regular_status(path)
        with open(path, "rb") as file:
            file.seek(max(0, status.st_size - _TAIL))
            lines = file.read(_TAIL).decode(errors="replace").splitlines()
    except (OSError, CorruptError):
        return None
    code, said = None, ""
    for line in lines:
        found = _ENDING.fullmatch(line.strip())
        if found:
            code = int(found[1])
        elif line.startswith(BEGINNING):
            # Requeued: what it said before is of another time.
            code, said = None, ""
        elif code is None and line.strip():
            # What the cluster adds after the end is not the element's own.
            said = line
    if code is None and _LACKING.fullmatch(said.strip()):
        code = 1
    return Log(path, code, said, status.st_mtime)
