"""SIGKILL at a chosen moment: when a process is about to write a file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

KILLER = """
import os, signal, sys
from skerch_ooc.store import sealed
from skerch_ooc.cli.running import run_command_line

target, left = sys.argv[1], int(sys.argv[2])
write_tile = sealed.BulkWriter.write_tile

def write_or_die(self, *tile):
    global left
    if self.layout.name.startswith(target):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return write_tile(self, *tile)

sealed.BulkWriter.write_tile = write_or_die
sys.exit(run_command_line(sys.argv[3:]))
"""


def killed_while_writing(folder: Path, target: str, count: int, *arguments: object) -> None:
    """Runs a command that is killed when it is about to write a tile for the n-th time.

    Args:
        folder: Where it runs.
        target: What the name of the matrix begins with: a role, ``"basis"``, ``"eigenvectors"``.
        count: Which writing of such a tile it does not live to see.
        *arguments: Of the command line.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLER, target, str(count), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


REMOVER = """
import os, signal, sys
from skerch_ooc.cli.running import run_command_line

left = int(sys.argv[1])
unlink = os.unlink

def unlink_or_die(path, *, dir_fd=None):
    global left
    if dir_fd is not None:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return unlink(path, dir_fd=dir_fd)

os.unlink = unlink_or_die
sys.exit(run_command_line(sys.argv[2:]))
"""


def killed_while_removing(folder: Path, count: int, *arguments: object) -> None:
    """Runs a command that is killed when it is about to remove a file of a run for the n-th time.

    Args:
        folder: Where it runs.
        count: Which removal it does not live to see.
        *arguments: Of the command line.
    """
    done = subprocess.run(
        [sys.executable, "-c", REMOVER, str(count), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
