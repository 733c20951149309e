"""System calls that leave something on a disk, and filters that stop a process at them.

A filter is the kernel's own (seccomp, classic BPF): what is not asked for runs at full speed, and
what libhdf5 does is seen as well as what Python does.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable, Mapping

_NUMBERS = {
    "x86_64": {
        "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "flock": 73, "fsync": 74,
        "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84,
        "link": 86, "unlink": 87, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264,
        "linkat": 265, "pwritev": 296, "renameat2": 316, "pwritev2": 328,
    },
    "aarch64": {
        "flock": 32, "mkdirat": 34, "unlinkat": 35, "linkat": 37, "renameat": 38, "truncate": 45,
        "ftruncate": 46, "openat": 56, "write": 64, "writev": 66, "pwrite64": 68, "pwritev": 70,
        "fsync": 82, "fdatasync": 83, "renameat2": 276, "pwritev2": 287,
    },
}  # fmt: skip
"""From the kernel's tables of system calls."""

NUMBERS: Mapping[str, int] = _NUMBERS.get(platform.machine(), {})
NAMES = {number: name for name, number in NUMBERS.items()}

WRITING = (
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "fsync", "fdatasync", "ftruncate",
    "truncate", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "unlink",
    "unlinkat", "open", "openat",
)  # fmt: skip
"""Calls that change files or make sure of them; opening counts where it may make a file."""

RECORDED = (*WRITING, "rmdir")
"""Calls that matter to what a power failure may leave."""

_O_CREAT = 0o100
_FLAGS_ARGUMENT = {"open": 1, "openat": 2}
_DESCRIPTOR_FIRST = ("write", "writev", "pwrite64", "pwritev", "pwritev2")

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_TRACE = 0x7FF00000
_ERROR = 0x00050000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K


def _install(actions: Mapping[int, int]) -> None:
    """Gives this process, and those it starts, a filter: what happens at which call."""
    program = [(_LOAD, 0, 0, 0)]
    for number, action in actions.items():
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(described), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def stop_at(names: Iterable[str] = WRITING) -> None:
    """Has the tracer of this process stop it at each of these calls."""
    _install({NUMBERS[name]: _TRACE for name in names if name in NUMBERS})


def deny(names: Iterable[str], error: int = errno.EPERM) -> None:
    """Makes calls fail in this process, and in those it starts, with an error number."""
    _install({NUMBERS[name]: _ERROR | error for name in names if name in NUMBERS})


def touches_files(name: str, arguments: tuple[int, ...]) -> bool:
    """Whether a call at which a process was stopped is about a file that may change."""
    if name in _FLAGS_ARGUMENT:
        return bool(arguments[_FLAGS_ARGUMENT[name]] & _O_CREAT)
    # Not what is said on standard output and standard error.
    return not (name in _DESCRIPTOR_FIRST and arguments[0] in (1, 2))
