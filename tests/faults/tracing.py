"""Kills a process, or has a system call fail, at the n-th call that concerns a file.

The calls are counted over all threads and processes that the command starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import time
from dataclasses import dataclass

from faults.calls import NAMES, touches_files

_SETOPTIONS, _CONT, _SYSCALL, _TRACEME = 0x4200, 7, 24, 0
_GET_SYSCALL_INFO = 0x420E
_GETREGS, _SETREGS = 12, 13
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
"""Mark stops at calls; follow fork, vfork, clone and exec; stop at filters; die with the tracer."""

PATIENCE = 30.0
"""Seconds that processes may outlive the one that started them."""

_EVENT_SECCOMP = 7
_WAIT_ALL = 0x40000000
_RAX, _ORIG_RAX, _REGISTERS = 10, 15, 27

CAN_FAIL_CALLS = platform.machine() == "x86_64"
"""Whether it is known here how to have a call fail."""


@dataclass(frozen=True)
class Fault:
    """What is to happen at the n-th call that concerns a file.

    Attributes:
        call: Which, from 1; 0: none, calls are counted only.
        after: Whether the process is killed after the call instead of before it.
        error: Instead of a kill: the call does nothing and fails with this error number.
        lasting: With an error: all later calls of the same kind fail too.
    """

    call: int
    after: bool = False
    error: int = 0
    lasting: bool = False


@dataclass(frozen=True)
class Traced:
    """How a traced process ended.

    Attributes:
        status: As ``os.waitpid`` gives it.
        calls: The calls that concerned files, in order, up to the end.
        struck: Whether the fault happened.
    """

    status: int
    calls: list[str]
    struck: bool


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    if isinstance(data, int):
        data = ctypes.c_void_p(data)
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")
    return result


def let_be_traced() -> None:
    """To be called by the process that is to be traced; waits for its parent."""
    _ptrace(_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def trace(pid: int, fault: Fault) -> Traced:
    """Follows a child that called :func:`let_be_traced` until it and all it started have ended."""
    return follow_from(Tracer(pid, fault), pid)


def follow_from(tracer: Tracer, pid: int) -> Traced:
    """Has a tracer follow a child that waits, from the start to the end."""
    os.waitpid(pid, _WAIT_ALL)
    _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
    _resume(_CONT, pid)
    return tracer.follow()


class Tracer:
    """Follows a process and all that it starts; brings about the fault, and counts the calls."""

    def __init__(self, pid: int, fault: Fault) -> None:
        self._pid, self._fault = pid, fault
        self._calls: list[str] = []
        self._status = 0
        self._struck = False
        self._leaving: set[int] = set()
        self._known = {pid}
        self._kind = ""

    def follow(self) -> Traced:
        ended = None
        while True:
            try:
                who, status = os.waitpid(-1, _WAIT_ALL | (os.WNOHANG if ended else 0))
            except ChildProcessError:
                return Traced(self._status, self._calls, self._struck)
            if who == 0:
                self._wait_for_orphans(ended)
            elif os.WIFSTOPPED(status):
                self._go_on(who, status)
            elif who == self._pid:
                self._status, ended = status, time.monotonic()

    def _wait_for_orphans(self, since: float | None) -> None:
        """Gives what the process has started some time to notice that it is gone."""
        time.sleep(0.01)
        if since is not None and time.monotonic() - since > PATIENCE:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    def _go_on(self, who: int, status: int) -> None:
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_SECCOMP:
            self.at_call(who)
        elif event or (number == signal.SIGSTOP and who not in self._known):
            self._known.add(who)
            _resume(_CONT, who)
        elif number == signal.SIGTRAP | 0x80:
            self.at_return(who)
            _resume(_CONT, who)
        else:
            _resume(_CONT, who, number)

    def at_return(self, who: int) -> None:
        """What is done when a call ends of which that was asked for."""
        if who in self._leaving:
            self._kill(who)

    def at_call(self, who: int) -> None:
        """What is done at a call that the filter stops at."""
        name, arguments = call_of(who)
        if not touches_files(name, arguments):
            _resume(_CONT, who)
            return
        self._calls.append(name)
        fault = self._fault
        now = len(self._calls) == fault.call
        later = fault.lasting and self._struck and name == self._kind
        if not now and not later:
            _resume(_CONT, who)
        elif fault.error:
            self._struck, self._kind = True, name
            _fail(who, fault.error)
            _resume(_CONT, who)
        elif fault.after:
            # The stop at the end of the call.
            self._leaving.add(who)
            resume_to_return(who)
        else:
            self._kill(who)

    def _kill(self, who: int) -> None:
        self._struck = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(who, signal.SIGKILL)


def _resume(how: int, who: int, number: int = 0) -> None:
    # It may have been killed meanwhile.
    with contextlib.suppress(OSError):
        _ptrace(how, who, 0, number)


def resume_to_return(who: int) -> None:
    """Lets a stopped thread make its call, and stops it again at the end of it."""
    _resume(_SYSCALL, who)


def returned(who: int) -> int:
    """The result of the call at whose end a thread is stopped; negative if it failed."""
    buffer = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, who, len(buffer), ctypes.cast(buffer, ctypes.c_void_p))
    return int(struct.unpack_from("<q", buffer.raw, 24)[0])


def call_of(who: int) -> tuple[str, tuple[int, ...]]:
    """The name and the arguments of the call at which a thread was stopped by its filter."""
    buffer = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, who, len(buffer), ctypes.cast(buffer, ctypes.c_void_p))
    number, *arguments = struct.unpack_from("<Q6Q", buffer.raw, 24)
    return NAMES[number], tuple(arguments)


def _fail(who: int, error: int) -> None:
    """Skips the call at which a thread is stopped; it returns an error number instead."""
    registers = (ctypes.c_ulonglong * _REGISTERS)()
    pointer = ctypes.cast(registers, ctypes.c_void_p)
    _ptrace(_GETREGS, who, 0, pointer)
    registers[_ORIG_RAX] = 2**64 - 1
    registers[_RAX] = 2**64 - error
    _ptrace(_SETREGS, who, 0, pointer)
