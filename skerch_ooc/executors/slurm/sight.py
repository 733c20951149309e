"""Elements whose logs are not here, or that say more than is seen here: late files, blind nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skerch_ooc.base.errors import shown
from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.commands import SlurmError
from skerch_ooc.executors.slurm.logs import read_log
from skerch_ooc.executors.slurm.outcomes import GONE, JobState
from skerch_ooc.executors.slurm.records import Submission

_MOST_NAMED = 3


def blind_nodes(jobs: Sequence[JobState], seconds: float) -> dict[str, list[str]]:
    """Finds the nodes on which elements have ended that left no log here.

    Slurm remembers for some minutes where an element was; what it does not say is left out.

    Args:
        jobs: The jobs of a submission.
        seconds: How long the queue may take to answer.

    Returns:
        The elements of each node.
    """
    silent = {
        (job.job, one.element) for job in jobs for one in job.elements
        if one.log is None and one.state == GONE
    }  # fmt: skip
    found: dict[str, list[str]] = {}
    if silent:
        try:
            ended = commands.ended([job.job for job in jobs], seconds)
        except SlurmError:
            return {}
        for one in ended:
            if (one.job, one.index or 0) in silent and one.node:
                name = one.job if one.index is None else f"{one.job}_{one.index}"
                found.setdefault(one.node, []).append(name)
    return found


def blind_text(nodes: Mapping[str, Sequence[str]], run: Path) -> str:
    """Says which nodes seem not to see a run, and how to do without them."""
    elements = [element for of_node in nodes.values() for element in of_node]
    named = ", ".join(elements[:_MOST_NAMED]) + (", ..." if len(elements) > _MOST_NAMED else "")
    listed = ",".join(nodes)
    return (
        f"{named} ended on {listed} and left no log: look whether {listed} sees {run}. To do "
        f"without, submit with the options of before and: -- --exclude={listed}"
    )


def moved_text(submission: Submission) -> str:
    """Says that the jobs of a submission have no folder to work in."""
    return (
        f"its jobs work in {shown(submission.directory)}, which is not there: if the run was "
        "moved, they fail; cancel those that wait, and submit again"
    )


def logs_of_done(submission: Submission, stage: str, tasks: Sequence[int]) -> Iterator[Path]:
    """Yields the logs of elements by which tasks are done.

    Args:
        submission: The submission.
        stage: The stage.
        tasks: Numbers of tasks that are not seen to be done.
    """
    for job in submission.jobs():
        if job.stage != stage or job.of < 1:
            continue
        for index in sorted({task % job.of for task in tasks} & set(job.indices)):
            path = submission.log_of(job, index)
            log = read_log(path)
            if log and log.exit_code == 0 and not log.last_line.endswith(STOPPED_IN_GOOD_ORDER):
                yield path
