"""How long `status` takes on a run of many shards.

``--shards`` shards of single columns, ``--rows`` rows high at least, are published and merged; then
three commands are timed in turn, each in a process of its own:

* *complete*: `status`, with the sketch merged.
* *one missing*: `status`, a shard taken away.
* *a listing*: a Python process that loads numpy and h5py, lists the folder and looks up the size of
  each file: what no `status` that takes the files for the state does without.

Usage: python workflows/benchmarks/status.py --repeats 5 --json status.json
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np

import skerch_ooc as ooc
from skerch_ooc.base.partition import Range
from skerch_ooc.store.shards import Rectangle, publish_shard
from skerch_ooc.store.sketch import Round
from workflows.benchmarks import common

GOAL_SECONDS = 1.0
TEST = 10
LISTING = (
    "import os, sys, numpy, h5py\n"
    "print(sum(entry.stat().st_size for entry in os.scandir(sys.argv[1])))"
)


def run_of(folder: Path, shards: int, rows: int) -> ooc.Run:
    """A run of which all is measured, and nothing was computed."""
    (folder / "nobody.py").write_text("")
    spec = {
        "measurements": shards - TEST,
        "operator": {"factory": f"{folder}/nobody.py:asks", "shape": [rows, rows]},
        "sketch": {"test_measurements": TEST, "block": 1},
    }
    # Nothing is recovered, which would take the memory that the plan asks for.
    run = ooc.plan(ooc.Spec.from_table(spec), folder / "run", memory=1 << 50)
    column = np.ones((rows, 1), np.float32)
    for role, count in (("right", shards - TEST), ("test", TEST)):
        for number in range(count):
            rectangle = Rectangle(role, 0, Range(number, number + 1), Range(0, rows))
            publish_shard(run.shards, run.plan, rectangle, column, {})
    # As merge leaves it behind, as far as status looks.
    sketch = Round(run).sketch
    sketch.folder.mkdir()
    (sketch.folder / "total.h5").touch()
    sketch.note()
    return run


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Builds the run, times the commands and returns all figures."""
    run = run_of(folder, options.shards, max(options.rows, options.shards))
    common.say(f"{options.shards} shards are there")
    taken = next(run.shards.glob("right.*.h5"))
    times: dict[str, list[dict[str, float]]] = {"complete": [], "one missing": [], "a listing": []}
    for _ in range(options.repeats):
        times["complete"].append(common.run_cli("status", run.directory, threads=1).figures())
        os.rename(taken, folder / taken.name)
        times["one missing"].append(common.run_cli("status", run.directory, threads=1).figures())
        os.rename(folder / taken.name, taken)
        command = [sys.executable, "-c", LISTING, str(run.shards)]
        times["a listing"].append(common.run_child(command, 1).figures())
    medians = {name: common.median_of(runs) for name, runs in times.items()}
    floor = [each["wall"] for each in times["a listing"]]
    rows = [
        [name, f"{medians[name]['wall']:.2f}", f"{medians[name]['peak'] / 1e6:.0f}",
         f"{common.median_ratio([each['wall'] for each in runs], floor):.1f}"]
        for name, runs in times.items()
    ]  # fmt: skip
    goals = [
        common.Goal(f"status, {name}, s", medians[name]["wall"], "<=", GOAL_SECONDS)
        for name in ("complete", "one missing")
    ]
    head = ["", "s", "MB", "/ listing"]
    return {
        "settings": {"shards": options.shards, "repeats": options.repeats},
        "medians": medians,
        "goals": {goal.name: goal.as_json() for goal in goals},
        "runs": times,
        "text": f"{common.text_table(head, rows)}\n\n{common.goal_table(goals)}",
    }


def main() -> None:
    """Reads the command line and runs the comparison."""
    parser = common.argument_parser(__doc__, rows=0, columns=1, repeats=5)
    parser.add_argument("--shards", type=int, default=10_000, help="10,000")
    options = parser.parse_args()
    needed = options.shards * (4 * max(options.rows, options.shards) + 8192)
    with common.scratch(options.folder, needed) as folder:
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
