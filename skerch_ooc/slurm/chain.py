"""Which jobs a run needs: a job array for each stage of which something is left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from skerch_ooc.rundir import Run
from skerch_ooc.slurm.elements import pack
from skerch_ooc.slurm.records import Submission
from skerch_ooc.slurm.scripts import Job, array_job, dask_job
from skerch_ooc.workload import Left, Stage

_MOST_WORKERS = 8
"""Workers of one job, if nobody says how many."""

ELEMENT_SECONDS = 600.0
"""What an element has to do at least, where that is known: it has to start Python first."""


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
        most = elements_for(stage, submission.options.elements, limit, task_seconds)
        elements = pack(stage.tasks, most)
        jobs.append(array_job(run, submission, stage.stage, elements, len(stage.tasks)))
    return jobs


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
        wanted = elements_for(left[0], None, _MOST_WORKERS, task_seconds)
    last = array_job(run, submission, Stage("assess"), pack([0], 1), 1)
    return [dask_job(run, submission, wanted), last]


def elements_for(left: Left, wanted: int | None, limit: int, task_seconds: float | None) -> int:
    """The most elements that the array of a stage is to have."""
    tasks = len(left.tasks)
    if wanted is None:
        wanted = tasks
        if left.stage.name == "measure" and task_seconds is not None:
            wanted = max(1, int(tasks * task_seconds / ELEMENT_SECONDS))
    return min(wanted, limit, tasks)


def task_seconds_of(run: Run) -> float | None:
    """What a task that measures takes, by the probe of the plan; ``None`` without one."""
    try:
        lines = (run.logs / "plan.jsonl").read_text(errors="replace").splitlines()
        costs = json.loads(lines[-1])["estimate"]
        seconds, tasks = float(costs["seconds"]), int(costs["tasks"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        # A log: nothing depends on it.
        return None
    return seconds / tasks if tasks > 0 and seconds > 0 else None
