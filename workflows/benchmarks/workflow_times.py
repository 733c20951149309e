"""Processor seconds of the workflows at full size, with all their runs, processes and start-up.

Usage: python workflows/benchmarks/workflow_times.py --json workflow_times.json
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

WORKFLOWS = Path(__file__).resolve().parent.parent
NEEDED_BYTES = 5 * 10**9
SPECS = ("digits_hessian.toml", "mlp_hessian.toml", "three_c3d.toml")
SCRIPTS = (
    "digits_training.py", "digits_layers.py", "digits_ggn.py", "eigenspace_overlap.py",
    "matrix_pca.py", "dask_cluster.py", "kill_and_resume.py", "growing.py", "streaming.py",
)  # fmt: skip
SHELL = ("dask_run.sh",)
"""Those on Slurm take as long as its queue."""


def command(name: str, folder: Path) -> list[str]:
    """The command line of a workflow."""
    path, runs = str(WORKFLOWS / name), str(folder / name)
    if name in SPECS:
        return [sys.executable, "-m", "skerch_ooc", "run", path, "--run", runs]
    if name in SCRIPTS:
        return [sys.executable, path, "--runs", runs]
    return ["bash", path, str(WORKFLOWS / SPECS[0]), runs, "--workers", "2", "--threads", "1"]


def main() -> None:
    """Reads the command line, and runs all workflows."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = (*SPECS, *SCRIPTS, *SHELL)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these workflows")
    parser.add_argument("--folder", type=Path, help="for all files, removed again; a temporary one")
    common.add_json(parser)
    options = parser.parse_args()
    # The shell finds the interpreter, and the command beside it.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if set(SHELL) & set(options.only) and not shutil.which("skerch-ooc"):
        sys.exit(f"{SHELL[0]} needs the command skerch-ooc; install the package: pip install -e .")
    taken: dict[str, dict[str, Any]] = {}
    with common.scratch(options.folder, NEEDED_BYTES) as folder:
        for name in options.only:
            child = common.run_child(command(name, folder), os.cpu_count() or 1)
            taken[name] = child.figures() | {"processor": child.user + child.system}
            common.say(f"{name}: {taken[name]['processor']:.0f} s, wall {child.wall:.0f} s")
    rows = [[name, f"{it['processor']:.1f}", f"{it['wall']:.1f}"] for name, it in taken.items()]
    print(common.text_table(["", "processor, s", "wall, s"], rows))
    common.write_json(options.json, {"workflows": taken})


if __name__ == "__main__":
    main()
