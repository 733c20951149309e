"""Which jobs a run needs: a job array for each stage of which something is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skerch_ooc.executors.slurm.elements import pack
from skerch_ooc.executors.slurm.records import Submission
from skerch_ooc.executors.slurm.scripts import Job, array_job, check_job, dask_job
from skerch_ooc.planning.stage_names import Left

_MOST_WORKERS = 8
"""Workers of one job, if nobody says how many."""

ELEMENT_SECONDS = 600.0
"""What an element has to do at least, where that is known: it has to start Python first."""

_LONGEST = 1e15
"""Seconds; more are none that a probe has found."""

_WALLTIME_SHARE = 0.5
"""How much of its walltime an element is given to do: products may be slower than the probe's."""


def array_jobs(
    run: Path, submission: Submission, left: Sequence[Left], limit: int, task_seconds: float | None
) -> list[Job]:
    """The job arrays of what is left, each of which waits for the one before it.

    Args:
        run: The run directory, absolute.
        submission: What they belong to.
        left: The stages that are not done.
        limit: The most elements of an array on this cluster.
        task_seconds: What a task that measures takes; ``None`` if that is not known.
    """
    jobs = []
    for stage in left:
        wanted = submission.options.elements
        if wanted is None:
            wanted = elements_for(stage, submission.options.seconds(stage.stage.name), task_seconds)
        elements = pack(stage.tasks, min(wanted, limit), limit)
        jobs.append(array_job(run, submission, stage.stage, elements, len(stage.tasks)))
    return [*jobs, check_job(run, submission)]


def dask_jobs(
    run: Path, submission: Submission, left: Sequence[Left], task_seconds: float | None
) -> list[Job]:
    """One job that does all that is left on its workers, and one that looks whether it did.

    Args:
        run: The run directory, absolute.
        submission: What they belong to.
        left: The stages that are not done.
        task_seconds: What a task that measures takes; ``None`` if that is not known.
    """
    wanted = submission.options.workers
    if wanted is None:
        wanted = min(elements_for(left[0], None, task_seconds), _MOST_WORKERS)
    return [dask_job(run, submission, wanted), check_job(run, submission)]


def elements_for(left: Left, walltime: float | None, task_seconds: float | None) -> int:
    """How many elements the array of a stage should have.

    Args:
        left: The stage.
        walltime: Of an element; ``None`` if that is not known.
        task_seconds: What a task that measures takes; ``None`` if that is not known.
    """
    tasks = len(left.tasks)
    if left.stage.name != "measure" or task_seconds is None:
        return tasks
    seconds = min(ELEMENT_SECONDS, (walltime or math.inf) * _WALLTIME_SHARE)
    return min(tasks, max(1, math.ceil(tasks * task_seconds / seconds)))


def task_seconds_of(planned: Iterable[Mapping[str, Any]]) -> float | None:
    """What a task that measures takes, by the probe of the plan; ``None`` without one."""
    try:
        *_, last = planned
        costs = last["estimate"]
        seconds, tasks = float(costs["seconds"]), int(costs["tasks"])
    except (KeyError, TypeError, ValueError, OverflowError):
        # A log: nothing depends on it.
        return None
    return seconds / tasks if tasks > 0 and 0 < seconds < _LONGEST else None
