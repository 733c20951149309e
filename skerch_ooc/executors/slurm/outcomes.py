"""What became of the elements of a submission: by their logs, and by the queue if it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.executors.slurm.commands import Queued
from skerch_ooc.executors.slurm.failures import Failure, cause_of
from skerch_ooc.executors.slurm.logs import Log, read_log
from skerch_ooc.executors.slurm.records import Submission

_FAILED = "failed"
GONE = "killed or cancelled"


@dataclass(frozen=True)
class ElementState:
    """What became of an element.

    Attributes:
        element: Its number.
        state: ``"done"``, ``"stopped early"``, ``"failed"``, ``"killed or cancelled"``, as Slurm
            calls it while it is in the queue, or ``"unknown"`` if the queue did not answer.
        reason: Why it waits, as Slurm calls it.
        exit_code: How it ended.
        log: Its log; ``None`` if there is none yet.
    """

    element: int
    state: str
    reason: str | None
    exit_code: int | None
    log: str | None


@dataclass(frozen=True)
class JobState:
    """What became of a job array.

    Attributes:
        stage: What it does.
        job: Its number.
        elements: Its elements.
    """

    stage: str
    job: str
    elements: list[ElementState]

    @property
    def reasons(self) -> list[str]:
        """Why elements wait, other than for the job before."""
        found = {element.reason for element in self.elements}
        return sorted(reason for reason in found if reason and reason != "Dependency")

    @property
    def counts(self) -> dict[str, int]:
        """How many elements are in each state."""
        return dict(Counter(element.state for element in self.elements))


@dataclass(frozen=True)
class QueueStatus:
    """The last submission of a run.

    Attributes:
        submission: Its number.
        folder: Its scripts and logs.
        queue: Whether squeue answered, or why not.
        jobs: Its jobs, in order.
        waiting: How many of its elements are in the queue; ``None`` if nobody knows.
        others: Elements in the queue of submissions before it, by their numbers.
        last_failing: The log of the element that failed last.
        reason: What that log says.
        blind: The nodes whose elements left no log here, and how to do without them; or that the
            run was moved.
    """

    submission: str
    folder: str
    queue: str
    jobs: list[JobState]
    waiting: int | None
    others: dict[str, int]
    last_failing: str | None
    reason: str | None
    blind: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether none of its jobs, nor of those before, is in the queue, as far as is known."""
        return self.waiting == 0 and not self.others


def look_at(
    submission: Submission, queued: Sequence[Queued] = (), over: Collection[str] = ()
) -> tuple[list[JobState], Failure | None]:
    """What became of the jobs of a submission, and the failure that is shown as the cause.

    Args:
        submission: The submission.
        queued: Its elements that are known to be in the queue.
        over: Jobs of which no other elements are in the queue: who did not say how it ended was
            killed.
    """
    waiting = {(one.job, one.index): one for one in queued}
    jobs, failures = [], []
    for position, job in enumerate(submission.jobs()):
        elements = []
        for index in job.indices or (0,):
            log = read_log(submission.log_of(job, index))
            one = waiting.get((job.job, index if job.indices else None))
            element = _element(index, log, one, known=job.job in over)
            elements.append(element)
            if log is not None and element.state in (_FAILED, GONE):
                failures.append(Failure(position, log))
        jobs.append(JobState(job.stage, job.job, elements))
    return jobs, cause_of(failures)


def _element(index: int, log: Log | None, queued: Queued | None, *, known: bool) -> ElementState:
    code = log.exit_code if log and queued is None else None
    if queued is not None:
        state = queued.state
    elif code is None:
        state = GONE if known else "unknown"
    elif code:
        state = _FAILED
    else:
        state = "stopped early" if log and log.last_line.endswith(STOPPED_IN_GOOD_ORDER) else "done"
    reason = queued.reason if queued and queued.reason != "None" else None
    return ElementState(index, state, reason, code, str(log.path) if log else None)
