"""Leftovers of killed processes: who owns an unpublished file, and whether the owner may be alive.

Such a file is named after the host and the number (PID) of the process that writes it. On this host
the number tells whether the process lives, with two exceptions. Containers may share a host name
but not their processes: so a file that was written a moment ago is kept. And the number may belong
to another process by now: that one started long after the file was written. For other hosts only
the age of the file tells.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass

import psutil

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.private_names import PRIVATE_NAME

DAY = 86400.0
MOMENT = 60.0
"""Seconds for which a file whose process is not found here may belong to another container."""

_CLOCKS = 3600.0
"""Seconds by which the clock of a file server may differ from that of this host."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}


def seconds_of(duration: float | str) -> float:
    """Returns the seconds of a number, or of a text such as ``"90s"``, ``"12h"``, ``"1d"``.

    Raises:
        UsageError: If it is no duration.
    """
    found = _DURATION.fullmatch(str(duration).strip())
    if found is None:
        raise UsageError(f"{duration!r}: must be a time such as 90s, 30m, 12h or 1d")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class Owner:
    """The process that a private file is named after.

    Attributes:
        host: Name of its host.
        pid: Its number on that host.
    """

    host: str
    pid: int

    @classmethod
    def of(cls, name: str) -> Owner | None:
        """Returns the owner of a private file; ``None`` if its name does not state one."""
        found = PRIVATE_NAME.fullmatch(name)
        return cls(found["host"], int(found["pid"])) if found else None

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}"


def may_be_at_work(name: str, written: float, older_than: float) -> bool:
    """Whether the process that writes a private file may still be alive.

    Args:
        name: The name of the file.
        written: When it was last written, in seconds since the epoch.
        older_than: Seconds after which a file of another host counts as abandoned.
    """
    owner, age = Owner.of(name), time.time() - written
    if owner is None or owner.host != socket.gethostname():
        return age < older_than
    try:
        # A process that started after the file was written is another one with the same number.
        return bool(psutil.Process(owner.pid).create_time() < written + _CLOCKS)
    except psutil.NoSuchProcess:
        return age < min(MOMENT, older_than)
    except psutil.AccessDenied:
        return True
