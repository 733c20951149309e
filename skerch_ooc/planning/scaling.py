"""A model of how measuring scales: wall time on many workers, and how many workers help.

It is a list schedule. Tasks are handed in order to the next free worker, but one after the other,
as the scheduler takes some time for each. So in the end the scheduler is the limit, however many
workers there are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TASK_OVERHEAD = 0.0005
"""Least seconds between two tasks that a Dask cluster finishes, measured by
``workflows/benchmarks/dask_scaling.py`` with 256 workers and tasks of 0.05 s, on two cores."""

WORKER_START = 2.5
"""Seconds until a new worker process is ready to build its operator; the same benchmark measured
2.1 to 2.4 s from a local disk."""

FILE_SECONDS = 0.004
"""Seconds that writing a small file takes until it is on the disk, verified and published."""

WRITE_RATE = 500e6
"""Bytes that all processes together write in a second; a local disk is rarely slower, and a shared
file system rarely faster for one run."""


@dataclass(frozen=True)
class Alike:
    """Tasks that take equally long.

    Attributes:
        seconds: Seconds of each.
        count: How many.
    """

    seconds: float
    count: int = 1


def measure_seconds(
    task_seconds: Sequence[float],
    workers: int,
    *,
    overhead: float = TASK_OVERHEAD,
) -> float:
    """Predicts the wall time of independent tasks on equal workers.

    Args:
        task_seconds: Seconds of each task, in the order in which they are handed out.
        workers: How many workers there are, from the beginning to the end.
        overhead: Seconds of the scheduler for each task.

    Returns:
        Seconds until the last task is done; 0 if there are no tasks.

    Raises:
        ValueError: If there are no workers.
    """
    return wall_seconds([Alike(seconds) for seconds in task_seconds], workers, overhead=overhead)


def wall_seconds(tasks: Iterable[Alike], workers: int, *, overhead: float = TASK_OVERHEAD) -> float:
    """Does what :func:`measure_seconds` does, in a time that equal tasks do not add to.

    Args:
        tasks: The tasks, in the order in which they are handed out.
        workers: As of :func:`measure_seconds`.
        overhead: The same.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}: must be at least 1")
    tasks = list(tasks)
    ends = [0.0] * min(workers, sum(alike.count for alike in tasks))
    number = 0
    for alike in tasks:
        left = alike.count
        while left:
            wave = min(left, len(ends))
            bound = _hand_out(ends, number, wave, alike.seconds, overhead)
            number, left = number + wave, left - wave
            # As that wave went, so go all of such tasks that follow.
            more = 0 if bound is None else left // len(ends)
            step = alike.seconds if bound == "workers" else wave * overhead
            ends = [end + more * step for end in ends]
            number, left = number + more * len(ends), left - more * len(ends)
    return max(ends, default=0.0)


def _hand_out(
    ends: list[float], number: int, count: int, seconds: float, overhead: float
) -> str | None:
    """Hands out tasks to the workers that are free first.

    Args:
        ends: When the workers are free, a heap; afterwards when they are free again.
        number: How many tasks were handed out before.
        count: How many are handed out.
        seconds: What each takes.
        overhead: Seconds of the scheduler for each.

    Returns:
        Whether ``"workers"`` or the ``"scheduler"`` will be waited for by all further waves of such
        tasks, as each worker got one, all waited for the same, and that takes longer than the
        other; else ``None``.
    """
    last, free, waited = max(ends), 0.0, set()
    # The task begins when a worker is free, and the scheduler has handed out all tasks before it.
    for place in range(number + 1, number + count + 1):
        free = ends[0]
        waited.add("workers" if free > place * overhead else "scheduler")
        heapq.heapreplace(ends, max(free, place * overhead) + seconds)
    longer = "workers" if seconds >= count * overhead else "scheduler"
    return longer if waited == {longer} and free >= last and count == len(ends) else None


def useful_workers(task_seconds: Sequence[float], *, overhead: float = TASK_OVERHEAD) -> int:
    """Predicts the number of workers beyond which more do not help.

    Args:
        task_seconds: Seconds of each task.
        overhead: Seconds of the scheduler for each task.

    Returns:
        The number of tasks, or of workers that the scheduler can keep busy if that is less: while
        one task runs it hands out ``mean task seconds / overhead`` others. At least 1.
    """
    return useful_workers_of([Alike(seconds) for seconds in task_seconds], overhead=overhead)


def useful_workers_of(tasks: Sequence[Alike], *, overhead: float = TASK_OVERHEAD) -> int:
    """Does what :func:`useful_workers` does with tasks, many of which are equal."""
    count = sum(alike.count for alike in tasks)
    if not count:
        return 1
    mean = math.fsum(alike.seconds * alike.count for alike in tasks) / count
    busy = mean / overhead if overhead > 0 else math.inf
    return max(1, math.ceil(min(count, busy)))
