"""``python -m skerch_ooc`` and the command ``skerch-ooc``."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    # Importing torch and an operator makes a million objects that stay: looking through them for
    # garbage again and again takes a tenth of the time of a short run.
    gc.set_threshold(100_000, 50, 100)
    # numpy asks for huge pages. Virtual machines hand just those back to their host when they are
    # free, and getting them again takes longer than they save: 4 % of a run, where it was measured.
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    from skerch_ooc.base.posix import fill_closed_streams

    fill_closed_streams()
    from skerch_ooc.cli.main import run_command_line

    code = run_command_line(sys.argv[1:])
    # Taking them down one by one takes as long again, and frees what the system frees anyway.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
