"""Records what a command does to the files in a folder: each call, in order, with its data.

The command runs in a process that the kernel stops at each such call, as for a kill.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from faults.calls import touches_files
from faults.tracing import Fault, Traced, Tracer, call_of, follow_from, resume_to_return, returned

_AT_FDCWD = -100
_O_TRUNC = 0o1000
_O_APPEND = 0o2000
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Step:
    """One thing that was done to a file or folder.

    Attributes:
        what: ``make``, ``write``, ``truncate``, ``sync``, ``mkdir``, ``link``, ``rename`` or
            ``remove``.
        path: Of the file or folder, from the recorded one.
        to: The other name of a link or rename.
        offset: Where data were written; the size of what was truncated.
        data: What was written.
        since: Of a sync, how many steps were complete when it began: these it makes sure of.
    """

    what: str
    path: str
    to: str = ""
    offset: int = 0
    data: bytes = b""
    since: int = 0


class Recorder(Tracer):
    """Follows a process, and notes its steps below a folder."""

    def __init__(self, pid: int, root: Path) -> None:
        super().__init__(pid, Fault(0))
        self.steps: list[Step] = []
        self._root = os.path.realpath(root)
        self._begun: dict[int, list[Step]] = {}

    def at_call(self, who: int) -> None:
        name, arguments = call_of(who)
        found: list[Step] = []
        if touches_files(name, arguments):
            found = [step for step in _READERS[name](_Caller(who), arguments) if self._inside(step)]
        self._begun[who] = [replace(step, since=len(self.steps)) for step in found]
        resume_to_return(who)

    def at_return(self, who: int) -> None:
        result = returned(who)
        for step in self._begun.pop(who, []):
            if result >= 0:
                self.steps.append(self._relative(step, result))

    def _inside(self, step: Step) -> bool:
        return (step.path + "/").startswith(self._root + "/")

    def _relative(self, step: Step, result: int) -> Step:
        data = step.data[:result] if step.what == "write" else b""
        path, to = (os.path.relpath(one, self._root) if one else "" for one in (step.path, step.to))
        return replace(step, path=path, to=to, data=data)


def record(pid: int, root: Path, file: Path) -> Traced:
    """Follows a child that waits to be traced, and writes its steps to a file."""
    recorder = Recorder(pid, root)
    traced = follow_from(recorder, pid)
    file.write_bytes(pickle.dumps(recorder.steps))
    return traced


def recorded(file: Path) -> list[Step]:
    """Reads the steps that :func:`record` has written."""
    return list(pickle.loads(file.read_bytes()))


class _Caller:
    """The process that is stopped at a call: what its arguments refer to."""

    def __init__(self, who: int) -> None:
        self._who = who

    def memory(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self._who}/mem", "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, address)

    def path(self, address: int, folder: int = _AT_FDCWD) -> str:
        text = self._text(address)
        signed = struct.unpack("i", struct.pack("I", folder & 0xFFFFFFFF))[0]
        link = "cwd" if signed == _AT_FDCWD else f"fd/{signed}"
        above, name = os.path.split(os.path.join(os.readlink(f"/proc/{self._who}/{link}"), text))
        return os.path.join(os.path.realpath(above), name)

    def _text(self, address: int) -> str:
        # Not beyond the page, which may be the last that there is.
        found = b""
        while b"\0" not in found and len(found) < _LONGEST_PATH:
            at = address + len(found)
            found += self.memory(at, 4096 - at % 4096)
        return os.fsdecode(found.partition(b"\0")[0])

    def opened(self, descriptor: int) -> str:
        return os.readlink(f"/proc/{self._who}/fd/{descriptor}")

    def position(self, descriptor: int) -> int:
        with open(f"/proc/{self._who}/fdinfo/{descriptor}") as file:
            stated = dict(line.split(":", 1) for line in file)
        if int(stated["flags"], 8) & _O_APPEND:
            return os.stat(f"/proc/{self._who}/fd/{descriptor}").st_size
        return int(stated["pos"])

    def vectors(self, address: int, count: int) -> bytes:
        pairs = struct.iter_unpack("QQ", self.memory(address, 16 * count))
        return b"".join(self.memory(base, size) for base, size in pairs)


_Arguments = tuple[int, ...]


def _written(caller: _Caller, descriptor: int, data: bytes, at: int | None = None) -> list[Step]:
    offset = caller.position(descriptor) if at is None else at
    return [Step("write", caller.opened(descriptor), offset=offset, data=data)]


def _made(path: str, flags: int) -> list[Step]:
    if not os.path.lexists(path):
        return [Step("make", path)]
    return [Step("truncate", path)] if flags & _O_TRUNC else []


_READERS: dict[str, Callable[[_Caller, _Arguments], list[Step]]] = {
    "write": lambda c, a: _written(c, a[0], c.memory(a[1], a[2])),
    "pwrite64": lambda c, a: _written(c, a[0], c.memory(a[1], a[2]), a[3]),
    "writev": lambda c, a: _written(c, a[0], c.vectors(a[1], a[2])),
    "pwritev": lambda c, a: _written(c, a[0], c.vectors(a[1], a[2]), a[3]),
    "pwritev2": lambda c, a: _written(c, a[0], c.vectors(a[1], a[2]), a[3]),
    "fsync": lambda c, a: [Step("sync", c.opened(a[0]))],
    "fdatasync": lambda c, a: [Step("sync", c.opened(a[0]))],
    "ftruncate": lambda c, a: [Step("truncate", c.opened(a[0]), offset=a[1])],
    "truncate": lambda c, a: [Step("truncate", c.path(a[0]), offset=a[1])],
    "rename": lambda c, a: [Step("rename", c.path(a[0]), c.path(a[1]))],
    "renameat": lambda c, a: [Step("rename", c.path(a[1], a[0]), c.path(a[3], a[2]))],
    "renameat2": lambda c, a: [Step("rename", c.path(a[1], a[0]), c.path(a[3], a[2]))],
    "link": lambda c, a: [Step("link", c.path(a[0]), c.path(a[1]))],
    "linkat": lambda c, a: [Step("link", c.path(a[1], a[0]), c.path(a[3], a[2]))],
    "mkdir": lambda c, a: [Step("mkdir", c.path(a[0]))],
    "mkdirat": lambda c, a: [Step("mkdir", c.path(a[1], a[0]))],
    "unlink": lambda c, a: [Step("remove", c.path(a[0]))],
    "rmdir": lambda c, a: [Step("remove", c.path(a[0]))],
    "unlinkat": lambda c, a: [Step("remove", c.path(a[1], a[0]))],
    "open": lambda c, a: _made(c.path(a[0]), a[1]),
    "openat": lambda c, a: _made(c.path(a[1], a[0]), a[2]),
}
"""What each call of :data:`faults.calls.RECORDED` is about to do."""
