"""How much memory a process takes at most."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path


def run_with_peak(folder: Path, *arguments: object) -> tuple[subprocess.CompletedProcess, int]:
    """Runs the command line with one thread; how it ended, and its peak resident memory in bytes.

    (Not by ``ru_maxrss``, which a process inherits from the one that started it.)
    """
    with open(folder / "out", "w+") as out, open(folder / "err", "w+") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "skerch_ooc", *map(str, arguments)],
            cwd=folder, stdout=out, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        peak = 0
        while process.poll() is None:
            peak = max(peak, _peak_so_far(process.pid))
            time.sleep(0.01)
    texts = [(folder / name).read_text() for name in ("out", "err")]
    assert "Traceback" not in texts[1], texts[1]
    return subprocess.CompletedProcess(process.args, process.returncode, *texts), peak


def _peak_so_far(number: int) -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{number}/status").read_text())
        # One that has ended and was not waited for has none.
        return int(found[1]) * 1024 if found else 0
    return 0
