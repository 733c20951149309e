"""What a billion rows take, stage by stage: rates of a small run, counts of the large plan.

Two runs of ``--rows`` rows, one with a quarter of ``--columns`` columns and one with all of them,
go through their stages in this process, with one thread. A stage takes ``a h m + b h m^2`` seconds
for ``h`` rows and ``m`` columns: ``a`` is what each number costs that is drawn, written, read,
checked; ``b`` what each product of two columns costs. Both follow from the two runs. Bytes, files
and memory are those of a plan of ``--target-rows`` rows and ``--target-columns`` columns, from its
own lists of tasks; nothing of that size is computed.

The operator costs next to nothing: what its products take comes on top. Seconds are divided by
``--workers``, processes of one thread as this one, as far as there are tasks; the disk has to keep
up with them, so the table has the bytes a second that it would have to give.

Usage: python workflows/benchmarks/billion_rows.py --json billion_rows.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import skerch_ooc as ooc
from skerch_ooc.pipeline.cost import estimate
from skerch_ooc.planning.plan import Cut, Plan
from workflows.benchmarks import common

TESTS = 10
STAGES = ("measure", "merge", "recover")
MEMORY = "2GiB"


@dataclass(frozen=True)
class Took:
    """What the stages of a run took.

    Attributes:
        plan: The plan of the run.
        seconds: Of each stage.
        written: Bytes of the files that each stage left.
    """

    plan: Plan
    seconds: dict[str, float]
    written: dict[str, int]


def took(folder: Path, rows: int, columns: int, block: int) -> Took:
    """Runs the stages of a run, one after the other, and removes it."""
    folder.mkdir()
    common.write_spec(folder / "spec.toml", rows, columns, TESTS, block, columns // 2, 4.0)
    run = ooc.plan(folder / "spec.toml", folder / "run", threads=1, memory=MEMORY)
    stages: tuple[Any, ...] = (ooc.measure, ooc.merge, ooc.recover)
    seconds, written = {}, {}
    for name, stage in zip(STAGES, stages, strict=True):
        start, before = time.perf_counter(), common.folder_bytes(run.directory)
        stage(run, threads=1, memory=MEMORY)
        seconds[name] = time.perf_counter() - start
        written[name] = common.folder_bytes(run.directory) - before
        common.say(f"  {rows} x {columns}, {name}: {seconds[name]:.1f} s")
    common.remove(folder)
    return Took(run.plan, seconds, written)


@dataclass(frozen=True)
class Rate:
    """Seconds of a stage for each number of the sketch, and for each product of two columns.

    Attributes:
        number: Seconds for each of ``h m`` numbers.
        product: Seconds for each of ``h m^2`` products.
    """

    number: float
    product: float

    def seconds(self, rows: int, columns: int) -> float:
        """Seconds that a stage takes."""
        return rows * columns * (self.number + columns * self.product)


def rate_of(rows: int, seconds: Mapping[int, float]) -> Rate:
    """The rate that explains what runs of two widths took; neither part is negative."""
    few, many = sorted(seconds)
    each = {columns: seconds[columns] / rows / columns for columns in seconds}
    product = max(0.0, (each[many] - each[few]) / (many - few))
    return Rate(max(0.0, each[many] - many * product), product)


def plan_of(plan: Plan, rows: int, columns: int, block: int) -> Plan:
    """The same plan of another size."""
    blocks = {"right": Cut(0, columns, block), "test": Cut(0, TESTS, block)}
    amendment = replace(plan.amendments[0], blocks=blocks)
    return Plan(replace(plan.identity, shape=(rows, rows)), (amendment,))


def study(options: Any, folder: Path) -> dict[str, Any]:
    """Measures both runs, and returns all figures."""
    # What the first stages of a process load and start is not counted.
    took(folder / "first", 10_000, 32, 16)
    widths = (options.columns // 4, options.columns)
    runs = {m: took(folder / str(m), options.rows, m, options.columns // 8) for m in widths}
    rates = {name: rate_of(options.rows, {m: runs[m].seconds[name] for m in widths})
             for name in STAGES}  # fmt: skip
    rows, columns = options.target_rows, options.target_columns + TESTS
    wide = runs[options.columns]
    costs = estimate(plan_of(wide.plan, rows, options.target_columns, options.block), None)
    larger = rows / options.rows * columns / (options.columns + TESTS)
    stages = {}
    for name in STAGES:
        seconds = rates[name].seconds(rows, columns)
        # Merging, and recovering vectors, read the sketch once.
        read = 0 if name == "measure" else costs.shard_bytes
        written = larger * wide.written[name] + (name == "merge") * costs.partial_sums_bytes
        stages[name] = {
            "core_hours": seconds / 3600,
            "minutes": seconds / options.workers / 60,
            "read": read / 1e12,
            "written": written / 1e12,
            "rate": (read + written) * options.workers / seconds / 1e9,
            "memory": costs.peak_bytes[name] / 1e9,
        }
    head = ["stage", "core hours", f"minutes, {options.workers} workers", "read, TB",
            "written, TB", "GB/s of all", "a process, GB"]  # fmt: skip
    table = [[name, *(f"{value:.3g}" for value in stages[name].values())] for name in STAGES]
    says = (
        f"{rows} rows, {columns} columns: {costs.tasks} tasks, {costs.files} files, "
        f"{costs.partial_sums_bytes / 1e9:.0f} GB of partial sums"
    )
    return {
        "settings": {"rows": options.rows, "columns": options.columns,
                     "target": [rows, columns], "workers": options.workers},
        "measured": {str(m): runs[m].seconds for m in widths},
        "rates": {name: vars(rate) for name, rate in rates.items()},
        "stages": stages,
        "tasks": costs.tasks,
        "files": costs.files,
        "partial_sums": costs.partial_sums_bytes,
        "text": f"{common.text_table(head, table)}\n\n{says}",
    }  # fmt: skip


def main() -> None:
    """Reads the command line and runs the study."""
    parser = common.argument_parser(__doc__, rows=1_000_000, columns=512, repeats=1)
    parser.add_argument("--target-rows", type=int, default=10**9, help="10^9")
    parser.add_argument("--target-columns", type=int, default=1000, help="1000")
    parser.add_argument("--block", type=int, default=1, help="columns of a task of the target, 1")
    parser.add_argument("--workers", type=int, default=100, help="of one thread each, 100")
    options = parser.parse_args()
    needed = 12 * options.rows * (options.columns + TESTS) + 10**8
    with common.scratch(options.folder, needed) as folder:
        figures = study(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
