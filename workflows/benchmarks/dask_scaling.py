"""Where the Dask scheduler saturates: tasks that sleep, on hundreds of workers.

Sleeping tasks need no cores, so that a small machine can have as many workers as a cluster. They
run through the executor itself; the scheduler is a process of its own, and so are the workers.

* *tasks that sleep*, 0.05, 0.2 and 1 s, on ever more workers: the efficiency (what the wall time
  would be if only sleeping took time, over what it is), and what the model of ``plan`` says, over
  what is measured.
* *tasks that take nothing*: the most that scheduler, client and workers can handle, where tasks may
  travel in groups. Processor milliseconds of each for a task are given apart.

A process costs 100 MB and more, so hundreds of workers do not fit. Up to ``--hosted`` workers live
in one process as objects of one event loop, each with its own connection and thread, and the
executor's lock, which lets a process do one task at a time, is replaced there by none. All other
code is as on a cluster. ``--hosted 1`` gives each worker a process of its own, and leaves the lock.

All share the cores of this machine, where a cluster has others for its workers: what is measured
here is at most what a scheduler can do.

Usage: python workflows/benchmarks/dask_scaling.py --repeats 3 --json dask_scaling.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import skerch_ooc as ooc
from skerch_ooc.planning import scaling
from workflows.benchmarks import common

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    # Hundreds of workers in a process would each sample the stacks of all its threads.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.worker.daemon": False,
    # So would each count the open files of all.
    "distributed.admin.system-monitor.interval": "5s",
}


def sleep(seconds: float) -> Callable[[], int]:
    """A task that takes its time and no processor."""
    if seconds:
        time.sleep(seconds)
    return _one


def _one() -> int:
    return 1


def host(scheduler: str, count: int, folder: str) -> None:
    """Hosts workers until the scheduler is gone."""
    import dask
    from distributed import Worker

    from skerch_ooc.executors import dask_workers as ours

    if count > 1:
        ours._one_at_a_time = contextlib.nullcontext()  # type: ignore[assignment]

    async def serve() -> None:
        workers = [
            Worker(
                scheduler_file=scheduler, nthreads=1, memory_limit=0, dashboard=False,
                dashboard_address=":0", local_directory=folder, death_timeout=60,
            )
            for _ in range(count)
        ]  # fmt: skip
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))  # type: ignore[no-untyped-call]

    with dask.config.set(SETTINGS):
        asyncio.run(serve())


def processor_seconds(pids: list[int]) -> float:
    """Processor seconds that processes have taken so far, all threads."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cluster:
    """A scheduler and workers on this machine.

    Attributes:
        file: The scheduler file.
        scheduler: The scheduler's process id.
        hosts: Process ids of those that host the workers.
        workers: How many workers.
    """

    file: Path
    scheduler: int
    hosts: list[int]
    workers: int


@contextlib.contextmanager
def cluster(workers: int, hosted: int, folder: Path) -> Iterator[Cluster]:
    """Starts a scheduler and workers, and ends them."""
    from distributed import Client

    file = folder / f"scheduler-{workers}.json"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        processes.append(
            subprocess.Popen(
                [sys.executable, *command], env=environment, stderr=subprocess.DEVNULL, cwd=folder
            )
        )

    try:
        start("-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0",
              "--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", ":0")  # fmt: skip
        while not (file.exists() and file.stat().st_size):
            time.sleep(common.POLL_SECONDS)
            if processes[0].poll() is not None:
                raise RuntimeError("the scheduler did not start")
        for first in range(0, workers, hosted):
            count = min(hosted, workers - first)
            start(__file__, "--host", str(file), str(count), str(folder))
        with Client(scheduler_file=str(file), set_as_default=False) as client:  # type: ignore[no-untyped-call]
            client.wait_for_workers(workers, timeout=300)
        pids = [process.pid for process in processes]
        yield Cluster(file, pids[0], pids[1:], workers)
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def timed(executor: Any, where: Cluster, seconds: float, tasks: int) -> dict[str, float]:
    """Runs tasks, and says what they took."""
    pids = {"scheduler": [where.scheduler], "client": [os.getpid()], "workers": where.hosts}
    before = {name: processor_seconds(each) for name, each in pids.items()}
    start = time.perf_counter()
    done = sum(executor.run(sleep, itertools.repeat(seconds, tasks), 1))
    wall = time.perf_counter() - start
    took = {name: processor_seconds(each) - before[name] for name, each in pids.items()}
    assert done == tasks
    figures = {
        "task_seconds": seconds,
        "workers": where.workers,
        "tasks": tasks,
        "wall": wall,
        "rate": tasks / wall,
        "scheduler_resident": common.resident_bytes(where.scheduler),
        **{f"{name}_processor": each for name, each in took.items()},
    }
    if seconds:
        figures["efficiency"] = seconds * tasks / where.workers / wall
        figures["model"] = scaling.measure_seconds([seconds] * tasks, where.workers) / wall
    return figures


def cells(workers: int, options: Any, folder: Path) -> list[dict[str, float]]:
    """All figures for so many workers: tasks that sleep, then those that take nothing."""
    figures = []
    with cluster(workers, options.hosted, folder) as where:
        executor = ooc.Dask(where.file)
        with executor.session(1):
            # The first time, workers import the executor.
            assert sum(executor.run(sleep, itertools.repeat(0.0, 2 * workers), 1)) == 2 * workers
            for seconds in options.task_seconds:
                most = max(1, options.tasks // workers)
                rounds = min(most, max(1, round(options.seconds / seconds)))
                figures.append(timed(executor, where, seconds, rounds * workers))
                common.say(f"  {seconds} s, {workers} workers: {figures[-1]['wall']:.2f} s")
            figures.append(timed(executor, where, 0.0, options.tasks))
            common.say(f"  nothing, {workers} workers: {figures[-1]['rate']:.0f} tasks/s")
    return figures


def import_all(_: int) -> Callable[[], int]:
    """A task that imports what a measuring worker does."""
    import torch  # noqa: F401

    from skerch_ooc.stages.measure import task  # noqa: F401

    return _one


def start_seconds() -> float:
    """Seconds until a worker process of this machine has done its first task."""
    start = time.perf_counter()
    assert sum(ooc.Dask(workers=1).run(import_all, [0], 1)) == 1
    return time.perf_counter() - start


def row(cell: dict[str, float]) -> list[str]:
    """A line of the table of cells."""
    shares = [f"{1e3 * cell[f'{name}_processor'] / cell['tasks']:.2f}"
              for name in ("scheduler", "client", "workers")]  # fmt: skip
    some = [f"{cell[name]:.2f}" if name in cell else "" for name in ("efficiency", "model")]
    seconds = f"{cell['task_seconds']:g} s" if cell["task_seconds"] else "nothing"
    return [seconds, f"{cell['workers']:.0f}", f"{cell['tasks']:.0f}", f"{cell['wall']:.2f}",
            f"{cell['rate']:.0f}", *some, *shares]  # fmt: skip


def study(options: Any, folder: Path) -> dict[str, Any]:
    """Does all in turn and returns all figures."""
    runs, starts = [], []
    for _ in range(options.repeats):
        starts.append(start_seconds())
        runs.append([cell for workers in options.workers
                     for cell in cells(workers, options, folder)])  # fmt: skip
    medians = [common.median_of(same) for same in zip(*runs, strict=True)]
    saturated = [cell for cell in medians if not cell["task_seconds"]][-1]
    sleeping = [cell for cell in medians if cell["task_seconds"]]
    resident = max(cell["scheduler_resident"] for cell in medians) / 1e6
    goals = [
        common.Goal("efficiency, longest tasks, most workers", sleeping[-1]["efficiency"],
                    ">=", 0.9),
        common.Goal("tasks/s that take nothing, most workers", saturated["rate"], ">=", 1000),
        common.Goal("model / measured, lowest", min(cell["model"] for cell in sleeping),
                    ">=", 0.7),
        common.Goal("model / measured, highest", max(cell["model"] for cell in sleeping),
                    "<=", 1.3),
        common.Goal("scheduler's memory, MB", resident, "<=", 200),
    ]  # fmt: skip
    head = ["tasks of", "workers", "tasks", "wall, s", "tasks/s", "efficiency", "model",
            "scheduler, ms", "client, ms", "workers, ms"]  # fmt: skip
    highest = max(cell["rate"] for cell in sleeping if cell["workers"] == saturated["workers"])
    says = (
        f"most workers, tasks that sleep: {1e3 / highest:.2f} ms between two at best (the model "
        f"has {1e3 * scaling.TASK_OVERHEAD:.2f})\n"
        f"a worker process is ready after {statistics.median(starts):.2f} s"
    )
    table = common.text_table(head, [row(cell) for cell in medians])
    return {
        "settings": {"workers": options.workers, "task_seconds": options.task_seconds,
                     "tasks": options.tasks, "hosted": options.hosted},
        "runs": runs,
        "medians": medians,
        "starts": starts,
        "goals": {goal.name: goal.as_json() for goal in goals},
        "text": f"{table}\n\n{says}\n\n{common.goal_table(goals)}",
    }  # fmt: skip


def main() -> None:
    """Reads the command line and runs the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--task-seconds", type=float, nargs="+", default=[0.05, 0.2, 1.0])
    parser.add_argument("--seconds", type=float, default=4.0, help="at work in each case, 4")
    parser.add_argument("--tasks", type=int, default=4000, help="that do nothing; at most, 4000")
    parser.add_argument("--hosted", type=int, default=128, help="workers of a process, 128")
    parser.add_argument("--repeats", type=int, default=3, help="3")
    parser.add_argument("--folder", type=Path, help="for all files, removed again; a temporary one")
    common.add_json(parser)
    options = parser.parse_args()
    with common.scratch(options.folder, 10**8) as folder:
        figures = study(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        host(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        # As a module, so that tasks travel by name, as real ones do; not with their code.
        from workflows.benchmarks import dask_scaling

        dask_scaling.main()
