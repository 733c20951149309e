"""What became of the elements of a submission: by their logs, and by the queue if it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.executors.slurm.commands import Queued
from skerch_ooc.executors.slurm.logs import Log, read_log
from skerch_ooc.executors.slurm.records import Submission, SubmittedJob

DONE = "done"
FAILED = "failed"
GONE = "killed or cancelled"
STOPPED = "stopped early"
UNKNOWN = "unknown"


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
    """

    submission: str
    folder: str
    queue: str
    jobs: list[JobState]
    waiting: int | None
    others: dict[str, int]
    last_failing: str | None
    reason: str | None

    @property
    def is_over(self) -> bool:
        """Whether none of its jobs, nor of those before, is in the queue, as far as is known."""
        return self.waiting == 0 and not self.others

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return asdict(self)


def state_of(submission: Submission, queued: Sequence[Queued] | None, queue: str) -> QueueStatus:
    """What became of a submission.

    Args:
        submission: The submission.
        queued: Its elements that are in the queue; ``None`` if nobody knows.
        queue: Whether squeue answered, or why not.
    """
    waiting = {(one.job, one.index): one for one in queued or ()}
    jobs, failed = [], []
    for position, job in enumerate(submission.jobs()):
        elements = []
        for index, log in _logs(submission, job):
            one = waiting.get((job.job, index if job.indices else None))
            element = _element(index, log, one, known=queued is not None)
            elements.append(element)
            if log is not None and element.state in (FAILED, GONE):
                failed.append((position, log))
        jobs.append(JobState(job.stage, job.job, elements))
    failing = _cause(failed)
    return QueueStatus(
        submission=submission.number,
        folder=str(submission.folder),
        queue=queue,
        jobs=jobs,
        waiting=None if queued is None else len(queued),
        others={},
        last_failing=str(failing.path) if failing else None,
        reason=reason_of(failing) if failing else None,
    )


def reason_of(log: Log) -> str:
    """Why an element failed, as far as its log says."""
    if log.exit_code is None:
        said = f"it said: {log.last_line}" if log.last_line else "it said nothing"
        return f"killed or cancelled; {said}"
    return log.last_line or f"it said nothing, and ended with {log.exit_code}"


def last_failing(submission: Submission, over: Collection[str] = ()) -> Log | None:
    """The log of the element that failed last, as far as logs tell.

    Of several stages it is the first that counts, as what failed there is why later ones do; and
    elements that only found something missing come after all others.

    Args:
        submission: The submission.
        over: Jobs that have ended, so that elements which did not say how were killed.
    """
    return _cause(
        [
            (position, log)
            for position, job in enumerate(submission.jobs())
            for _, log in _logs(submission, job)
            if log and (log.exit_code or (log.exit_code is None and job.job in over))
        ]
    )


def _cause(failed: Sequence[tuple[int, Log]]) -> Log | None:
    """Of logs of elements that failed, with the positions of their jobs, the one to look at."""
    following = IncompleteError.exit_code
    _, found = max(
        failed,
        key=lambda one: (one[1].exit_code != following, -one[0], one[1].modified),
        default=(0, None),
    )
    return found


def _logs(submission: Submission, job: SubmittedJob) -> Iterator[tuple[int, Log | None]]:
    """The elements of a job, and their logs."""
    for index in job.indices or (0,):
        yield index, read_log(log_path(submission, job, index))


def log_path(submission: Submission, job: SubmittedJob, index: int) -> Path:
    """The log of an element."""
    suffix = f"_{index}" if job.indices else ""
    return submission.folder / f"{job.stage}.{job.job}{suffix}.log"


def _element(index: int, log: Log | None, queued: Queued | None, *, known: bool) -> ElementState:
    code = log.exit_code if log and queued is None else None
    if queued is not None:
        state = queued.state
    elif code is None:
        state = GONE if known else UNKNOWN
    elif code:
        state = FAILED
    else:
        state = STOPPED if log and log.last_line.endswith(STOPPED_IN_GOOD_ORDER) else DONE
    reason = queued.reason if queued and queued.reason != "None" else None
    return ElementState(index, state, reason, code, str(log.path) if log else None)
