"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PYTHON = (sys.executable, "-m", "skerch_ooc")


class CommandLine:
    """Runs ``skerch-ooc`` in a process of its own, with one thread.

    Args:
        cwd: Where it runs.
        program: What starts it: a new Python, or the command that ``forking`` serves.
    """

    def __init__(self, cwd: Path, program: Sequence[object] = PYTHON) -> None:
        self.cwd = cwd
        self.program = program

    def start(self, *arguments: object, **options) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*map(str, (*self.program, *arguments))],
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
