"""A model of how measuring scales: wall time on many workers, and how many workers help.

It is a list schedule. Tasks are handed in order to the next free worker, but one after the other,
as the scheduler takes some time for each. So in the end the scheduler is the limit, however many
workers there are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

TASK_OVERHEAD = 0.0005
"""Least seconds between two tasks that a Dask cluster finishes, measured by
``workflows/benchmarks/dask_scaling.py`` with 256 workers and tasks of 0.05 s, on two cores."""

WORKER_START = 2.5
"""Seconds until a new worker process is ready to build its operator; the same benchmark measured
2.1 to 2.4 s from a local disk."""


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
    if workers < 1:
        raise ValueError(f"workers = {workers}: must be at least 1")
    if not task_seconds:
        return 0.0
    ends = [0.0] * min(workers, len(task_seconds))
    # The task begins when a worker is free, and the scheduler has handed out all tasks before it.
    for number, seconds in enumerate(task_seconds, 1):
        heapq.heapreplace(ends, max(ends[0], number * overhead) + seconds)
    return max(ends)


def useful_workers(task_seconds: Sequence[float], *, overhead: float = TASK_OVERHEAD) -> int:
    """Predicts the number of workers beyond which more do not help.

    Args:
        task_seconds: Seconds of each task.
        overhead: Seconds of the scheduler for each task.

    Returns:
        The number of tasks, or of workers that the scheduler can keep busy if that is less: while
        one task runs it hands out ``mean task seconds / overhead`` others. At least 1.
    """
    if not task_seconds:
        return 1
    mean = math.fsum(task_seconds) / len(task_seconds)
    busy = mean / overhead if overhead > 0 else math.inf
    return max(1, math.ceil(min(len(task_seconds), busy)))
