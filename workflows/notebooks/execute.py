"""Executes the notebooks of this folder in place, and strips what differs from time to time.

    python workflows/notebooks/execute.py                          # all
    python workflows/notebooks/execute.py matrix_on_disk.ipynb

Needs the extra ``notebooks``. Each is executed in an empty temporary folder, by a kernel that draws
figures as SVG. What is kept of its outputs tells nothing of the machine, and is the same each time
but for the rounding of floating point numbers.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 300

FIGURES = """
c.InlineBackend.figure_formats = {"svg"}
c.InlineBackend.print_figure_kwargs = {"metadata": {"Date": None}, "bbox_inches": "tight"}
c.InlineBackend.rc = {"svg.hashsalt": "figure", "svg.fonttype": "none", "figure.figsize": (6, 3.5)}
"""
"""Settings of the kernel: figures that are small, and the same each time."""

TIMES = re.compile(r", [0-9.]+ s in all")
BREAKS = re.compile(r"\s*\n\s*")


def executed(path: Path, folder: Path) -> Any:
    """Executes a notebook in a folder; an error in a cell is raised.

    Args:
        path: The notebook, which is not altered.
        folder: Where it is executed, and where all that it makes is left.

    Returns:
        The notebook with its outputs.
    """
    settings = folder / ".ipython"
    (settings / "profile_default").mkdir(parents=True)
    (settings / "profile_default" / "ipython_kernel_config.py").write_text(FIGURES)
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    # One thread: sums are rounded alike on machines of any number of cores.
    client.execute(env=os.environ | {"IPYTHONDIR": str(settings), "OMP_NUM_THREADS": "1"})
    return notebook


def strip(notebook: Any) -> None:
    """Takes from an executed notebook the times, the warnings, and what describes the machine."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        outputs = cell.get("outputs", [])
        # Warnings of other packages are of their versions and of this machine.
        outputs[:] = [output for output in outputs if output.get("name") != "stderr"]
        for output in outputs:
            output.get("metadata", {}).clear()
            data = output.get("data", {})
            for kind in data:
                data[kind] = TIMES.sub("", data[kind])
            if "image/svg+xml" in data:  # Else the file has a quoted line for each of its lines.
                data["image/svg+xml"] = BREAKS.sub(" ", data["image/svg+xml"])


def main(arguments: Sequence[str]) -> None:
    """Executes the notebooks that are named, or all."""
    for path in [HERE / name for name in arguments] or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(path, Path(folder))
        strip(notebook)
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
