"""SIGKILL at a chosen moment: when a process is about to write or to remove a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from commands import CommandLine

VARIABLE = "SKERCH_OOC_TEST_KILL"
"""Says to a forked command when it is to be killed."""


def killed_while_writing(command: CommandLine, target: str, count: int, *arguments: object) -> None:
    """Runs a command that is killed when it is about to write a tile for the n-th time.

    Args:
        command: The forked command line.
        target: What the name of the matrix begins with: a role, ``"basis"``, ``"eigenvectors"``.
        count: Which writing of such a tile it does not live to see.
        *arguments: Of the command line.
    """
    _killed(command, f"write {count} {target}", arguments)


def killed_while_removing(command: CommandLine, count: int, *arguments: object) -> None:
    """Runs a command that is killed when it is about to remove a file of a run for the n-th time.

    Args:
        command: The forked command line.
        count: Which removal it does not live to see.
        *arguments: Of the command line.
    """
    _killed(command, f"remove {count} ", arguments)


def _killed(command: CommandLine, moment: str, arguments: tuple[object, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, moment)
        process = command.start(*arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err


def arm() -> None:
    """Prepares this process, which is to become a command, to be killed if that was said."""
    moment = os.environ.pop(VARIABLE, "")
    if not moment:
        return
    what, count, target = moment.split(" ", 2)
    if what == "write":
        from skerch_ooc.store.sealed import BulkWriter

        BulkWriter.write_tile = _fatal(
            BulkWriter.write_tile, int(count), lambda self, *_: self.layout.name.startswith(target)
        )
    else:
        os.unlink = _fatal(os.unlink, int(count), lambda *_, dir_fd=None: dir_fd is not None)


def _fatal(call: Callable, left: int, counts: Callable[..., bool]) -> Callable:
    """A call that kills its process when it counts for the n-th time."""

    def call_or_die(*args, **kwargs):
        nonlocal left
        left -= counts(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return call_or_die
