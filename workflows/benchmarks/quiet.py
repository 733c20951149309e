"""Whether a machine is quiet: the cores that programs other than ours are using, from ``/proc``."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from workflows.benchmarks import common

MOST_CORES = 0.15
"""Of other programs, on a machine that is quiet."""

LOOK_SECONDS = 3.0
PAUSE_SECONDS = 20.0
NAMED = 3
_BUSY = (0, 1, 2, 7)
"""Places in the first line of ``/proc/stat``: of users, nice ones, the system, other guests."""

_KERNEL = 2
"""The process of which all threads of the kernel are children: they write what we have written."""


@dataclass(frozen=True)
class Look:
    """What processors have done so far, in seconds.

    Attributes:
        clock: The time.
        busy: Of all programs, and what other guests of the host took; not of the kernel's threads.
        ours: Of this process, and of its children that have ended.
    """

    clock: float
    busy: float
    ours: float

    @classmethod
    def now(cls) -> Look | None:
        """At this moment; ``None`` where that cannot be seen."""
        try:
            line = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        ticks = [int(field) for field in line.split()[1:]]
        busy = sum(ticks[place] for place in _BUSY) / os.sysconf("SC_CLK_TCK")
        kernel = sum(one.spent for one in _processes().values() if one.parent == _KERNEL)
        return cls(time.monotonic(), busy - kernel, _ours())

    def others(self) -> float | None:
        """Cores that other programs have used since, on average."""
        later = Look.now()
        if later is None:
            return None
        spent = later.busy - self.busy - (later.ours - self.ours)
        return max(0.0, spent / (later.clock - self.clock))


def _ours() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def busy() -> str | None:
    """Says which other programs are at work; ``None`` if the machine is quiet."""
    look, before = Look.now(), _processes()
    if look is None:
        return None
    time.sleep(LOOK_SECONDS)
    cores = look.others()
    if cores is None or cores <= MOST_CORES:
        return None
    later = _processes()
    spent = {pid: one.spent - before[pid].spent if pid in before else one.spent
             for pid, one in later.items() if one.parent != _KERNEL}  # fmt: skip
    most = sorted(spent, key=lambda pid: -spent[pid])[:NAMED]
    named = ", ".join(f"{later[pid].name} ({pid})" for pid in most if spent[pid])
    return f"other programs use {cores:.1f} cores" + (f": {named}" if named else "")


@dataclass(frozen=True)
class _Process:
    """A process: its name, who started it, and its seconds of processors so far."""

    name: str
    parent: int
    spent: float


def _processes() -> dict[int, _Process]:
    """All processes but this one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found[int(folder.name)] = _Process(head.partition("(")[2], int(fields[1]), spent)
    found.pop(os.getpid(), None)
    return found


def wait_until_quiet(seconds: float) -> str | None:
    """Waits until no other program is at work, so long at most; returns what :func:`busy` says."""
    end = time.monotonic() + seconds
    while (said := busy()) and time.monotonic() < end:
        common.say(f"waiting: {said}")
        time.sleep(PAUSE_SECONDS)
    return said
