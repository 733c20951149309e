"""What became of the elements of a submission: by their logs, and by the queue if it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.errors import IncompleteError
from skerch_ooc.slurm.commands import Queued
from skerch_ooc.slurm.logs import Log, read_log
from skerch_ooc.slurm.records import Submission, SubmittedJob

DONE = "done"
FAILED = "failed"
GONE = "killed or cancelled"
UNKNOWN = "unknown"
_OVER = (DONE, FAILED, GONE, UNKNOWN)


@dataclass(frozen=True)
class ElementState:
    """What became of an element.

    Attributes:
        element: Its number.
        state: ``"done"``, ``"failed"``, ``"killed or cancelled"``, as Slurm calls it while it is in
            the queue, or ``"unknown"`` if the queue did not answer.
        exit_code: How it ended.
        log: Its log; ``None`` if there is none yet.
    """

    element: int
    state: str
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
    def in_queue(self) -> int:
        """How many elements are waiting or at work."""
        return sum(element.state not in _OVER for element in self.elements)

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
        last_failing: The log of the element that failed last.
        reason: What that log says.
    """

    submission: str
    folder: str
    queue: str
    jobs: list[JobState]
    last_failing: str | None
    reason: str | None

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
    waiting = {(one.job, one.index): one.state for one in queued or () if _is_of(one, submission)}
    jobs = []
    for job in submission.jobs():
        elements = []
        for index in _indices(job):
            log = read_log(log_path(submission, job, index))
            state = waiting.get((job.job, index if job.indices else None))
            elements.append(_element(index, log, state, known=queued is not None))
        jobs.append(JobState(job.stage, job.job, elements))
    failing = last_failing(submission, None if queued is None else list(waiting))
    return QueueStatus(
        submission=submission.number,
        folder=str(submission.folder),
        queue=queue,
        jobs=jobs,
        last_failing=str(failing.path) if failing else None,
        reason=failing.last_line if failing else None,
    )


def _is_of(one: Queued, submission: Submission) -> bool:
    return one.comment == submission.token


def _indices(job: SubmittedJob) -> Sequence[int]:
    return job.indices or (0,)


def log_path(submission: Submission, job: SubmittedJob, index: int) -> Path:
    """The log of an element."""
    suffix = f"_{index}" if job.indices else ""
    return submission.folder / f"{job.stage}.{job.job}{suffix}.log"


def _element(index: int, log: Log | None, state: str | None, *, known: bool) -> ElementState:
    code = log.exit_code if log and state is None else None
    if state is None:
        ended = FAILED if code else DONE
        state = (GONE if known else UNKNOWN) if code is None else ended
    return ElementState(index, state, code, str(log.path) if log else None)


def last_failing(
    submission: Submission, queued: Sequence[tuple[str, int | None]] | None
) -> Log | None:
    """The log of the element that failed last, or was killed.

    Of several stages it is the first that counts, as what failed there is why later ones do; and
    elements that only found something missing come after all others.

    Args:
        submission: The submission.
        queued: Jobs and elements that are in the queue still, and so have not failed; ``None`` if
            nobody knows which these are.
    """
    failed = list(_failed(submission, queued))
    following = IncompleteError.exit_code
    _, found = max(
        failed,
        key=lambda one: (one[1].exit_code != following, -one[0], one[1].modified),
        default=(0, None),
    )
    return found


def _failed(
    submission: Submission, queued: Sequence[tuple[str, int | None]] | None
) -> Iterator[tuple[int, Log]]:
    """The logs of elements that failed, with the position of their job."""
    waiting = set(queued or ())
    for position, job in enumerate(submission.jobs()):
        for index in _indices(job):
            log = read_log(log_path(submission, job, index))
            if log is None or (job.job, index if job.indices else None) in waiting:
                continue
            if log.exit_code or (log.exit_code is None and queued is not None):
                yield position, log
