"""What Dask costs for each task, and what a second worker gains.

* *overhead*: tasks that do nothing, on the serial executor and on one and two workers, in turn; the
  scheduler is in this process, so its memory is that of this process.
* *scaling*: measuring a dense matrix, merging a tall sketch and recovering from it, on one and on
  two worker processes of one thread each, whose start is not counted.

Usage: python workflows/benchmarks/dask_overhead.py --repeats 3 --json dask_overhead.json
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import skerch_ooc as ooc
from skerch_ooc.base.resources import resident_memory
from skerch_ooc.stages.measure.missing import MeasureTask
from workflows.benchmarks import common

TASKS = 16
TESTS = 4


def nothing() -> int:
    """Finishes a task that does nothing."""
    return 1


def do_nothing(_: int) -> Callable[[], int]:
    """A task that does nothing."""
    return nothing


def dense(n: int) -> Any:
    """A dense symmetric matrix, the operator that is measured."""
    import torch

    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    return a + a.T


def overhead(tasks: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a task, and by how much this process has grown, for each executor."""
    figures = {}
    for name, executor in (
        ("serial", ooc.Serial()),
        ("one worker", ooc.Dask(workers=1)),
        ("two workers", ooc.Dask(workers=2)),
    ):
        with executor.session(1):
            assert sum(executor.run(do_nothing, range(8), 1)) == 8
            before = resident_memory()
            watch = common.Stopwatch()
            assert sum(executor.run(do_nothing, range(tasks), 1)) == tasks
            milliseconds = 1e3 * watch.figures()["seconds"] / tasks
            figures[name] = {
                "milliseconds": milliseconds,
                "grown": resident_memory() - before,
            }
        common.say(f"  {tasks} tasks, {name}: {milliseconds:.3f} ms each")
    return figures


def seconds_of(stage: Callable[[Any], None], workers: int, folder: Path) -> float:
    """Seconds of a stage whose results are removed before, on workers that are warm."""
    executor = ooc.Dask(workers=workers)
    with executor.session(1):
        # The first time, workers start and build the operator.
        stage(executor)
        common.clear(folder)
        start = time.perf_counter()
        stage(executor)
        return time.perf_counter() - start


def scaling(options: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of measuring, merging and recovering with one and with two workers."""
    measurements = options.size // 2
    dense_run = ooc.plan(
        {
            "measurements": measurements,
            "operator": {"factory": f"{__file__}:dense", "args": {"n": options.size}},
            "sketch": {"test_measurements": 0, "block": max(1, measurements // TASKS)},
        },
        folder / "dense",
        threads=1,
    )
    common.write_spec(folder / "tall.toml", options.rows, options.columns, TESTS,
                      max(1, options.columns // 4), max(1, options.columns // 2), 2.0)  # fmt: skip
    tall_run = ooc.plan(folder / "tall.toml", folder / "tall", threads=1)
    ooc.measure(tall_run, threads=1)

    def measure(executor: Any) -> None:
        ooc.measure(dense_run, executor, threads=1)

    def merge(executor: Any) -> None:
        ooc.merge(tall_run, executor=executor, threads=1, memory="1GiB", rechunk=False)

    def recover(executor: Any) -> None:
        ooc.recover(tall_run, executor=executor, threads=1, memory="1GiB")

    figures: dict[str, dict[str, float]] = {}
    for name, stage, output in (
        ("measure", measure, dense_run.shards),
        ("merge", merge, tall_run.sketch),
        ("recover", recover, tall_run.results),
    ):
        figures[name] = {}
        for workers in (1, 2):
            seconds = seconds_of(stage, workers, output)
            figures[name][str(workers)] = seconds
            common.say(f"  {name}, {workers} worker(s): {seconds:.2f} s")
            if name != "merge" or workers == 1:
                common.clear(output)
    return figures


def task_bytes() -> int:
    """Bytes of a pickled task, with a long path."""
    task = MeasureTask("/" + "a" * 200, 1, None, 0, (("right", 0, 64),), "cpu", 1, 0)
    return len(pickle.dumps(task))


def compare(options: Any, folder: Path) -> dict[str, Any]:
    """Does all in turn and returns all figures."""
    few = overhead(max(8, options.tasks // 10))
    many = [overhead(options.tasks) for _ in range(options.repeats)]
    scaled = [scaling(options, numbered(folder, n)) for n in range(options.repeats)]
    medians = {name: common.median_of([each[name] for each in many]) for name in many[0]}
    beyond = max(
        medians[name]["milliseconds"] - medians["serial"]["milliseconds"]
        for name in ("one worker", "two workers")
    )
    grown = max(each["grown"] for each in medians.values()) / 1e6
    gains = {
        name: common.median_ratio([each[name]["1"] for each in scaled],
                                  [each[name]["2"] for each in scaled])
        for name in ("measure", "merge", "recover")
    }  # fmt: skip
    goals = [
        common.Goal("ms for a task beyond the serial executor", beyond, "<=", 2.0),
        common.Goal("scheduler's memory for all tasks, MB", grown, "<=", 20.0),
        common.Goal("bytes of a task", task_bytes(), "<=", 10_000),
        common.Goal("measure, one worker / two", gains["measure"], ">=", 1.7),
        common.Goal("merge, one worker / two", gains["merge"], ">=", 1.5),
        common.Goal("recover, one worker / two", gains["recover"], ">=", 1.5),
    ]
    rows = [
        [name, f"{few[name]['milliseconds']:.3f}", f"{each['milliseconds']:.3f}",
         f"{each['grown'] / 1e6:.1f}"]
        for name, each in medians.items()
    ]  # fmt: skip
    head = [f"{options.tasks} tasks", "ms each, of a tenth", "ms each", "grown, MB"]
    return {
        "settings": {"tasks": options.tasks, "size": options.size, "rows": options.rows,
                     "columns": options.columns},
        "overhead": {"few": few, "many": many},
        "scaling": scaled,
        "goals": {goal.name: goal.as_json() for goal in goals},
        "text": common.text_table(head, rows) + "\n\n" + common.goal_table(goals),
    }  # fmt: skip


def numbered(folder: Path, number: int) -> Path:
    """A folder for one repetition."""
    made = folder / str(number)
    made.mkdir()
    return made


def main() -> None:
    """Reads the command line and runs the comparison."""
    parser = common.argument_parser(__doc__, rows=1_200_000, columns=128, repeats=3)
    parser.add_argument("--tasks", type=int, default=10_000, help="that do nothing, 10000")
    parser.add_argument("--size", type=int, default=8000, help="of the dense matrix, 8000")
    options = parser.parse_args()
    needed = 8 * options.rows * options.columns + 4 * options.size**2 + 10**8
    with common.scratch(options.folder, options.repeats * needed) as folder:
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
