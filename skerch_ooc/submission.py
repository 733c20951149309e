"""Submit: a planned run as job arrays on Slurm, and again what is missing.

No process stays behind. Each array starts when the one before it has ended, however that was. The
first element of an array that finds work of an earlier stage undone cancels what comes after it,
and submits what is missing, as long as that leads anywhere.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skerch_ooc.errors import IncompleteError, UsageError
from skerch_ooc.files import digest
from skerch_ooc.rundir import Run, open_run
from skerch_ooc.slurm import commands
from skerch_ooc.slurm.chain import array_jobs, dask_jobs, task_seconds_of
from skerch_ooc.slurm.commands import Queued, SlurmError
from skerch_ooc.slurm.options import JobOptions
from skerch_ooc.slurm.records import Submission, SubmittedJob, begun, draft, submissions
from skerch_ooc.slurm.scripts import Job
from skerch_ooc.slurm.state import QueueStatus, last_failing, state_of
from skerch_ooc.workload import STAGES, Left, Stage, work_left

_DEFAULT_ARRAY_SIZE = 1001
"""What Slurm has if nobody says otherwise; for a dry run away from any cluster."""

_LOOKED_AT = 3
"""Submissions whose logs are searched for the last that failed."""

_RECENT = 8
"""Submissions whose jobs may still be in the queue; the chain cancels what it replaces."""


@dataclass(frozen=True)
class Submitted:
    """What was submitted.

    Attributes:
        submission: Its record.
        jobs: Its jobs.
        numbers: Their numbers, given by Slurm; none in a dry run.
    """

    submission: Submission
    jobs: Sequence[Job]
    numbers: Sequence[str]

    def commands(self) -> list[str]:
        """The commands that submit the jobs, in a dry run without the numbers to wait for."""
        found, before = [], None
        for position, job in enumerate(self.jobs):
            words = ["sbatch", "--parsable", *job.arguments(self.submission.folder, before)]
            found.append(shlex.join(words))
            before = self.numbers[position] if self.numbers else f"JOB_OF_{job.stage}"
        return found


def submit(
    run: Run, options: JobOptions | None, *, again: bool = False, dry_run: bool = False
) -> Submitted | None:
    """Submits what is left of a run.

    Args:
        run: The run.
        options: What the jobs are given; ``None`` for what those of the last submission were.
        again: Submit even while jobs of an earlier submission are waiting or at work.
        dry_run: Write and submit nothing.

    Returns:
        What was submitted; ``None`` if nothing is left to be done.

    Raises:
        UsageError: If an earlier submission is not over, or Slurm refuses.
        CorruptError: If a shard or another file of the run is damaged.
    """
    left = work_left(run)
    if not left:
        return None
    if not (again or dry_run):
        _require_over(run)
    if options is None:
        before = submissions(run)
        options = before[-1].options if before else JobOptions()
    return _submit(run, options, left, unchanged=0, dry_run=dry_run)


def _submit(
    run: Run, options: JobOptions, left: Sequence[Left], *, unchanged: int, dry_run: bool = False
) -> Submitted:
    dask = options.executor == "dask"
    limit = 1 if dask else _limit(options, dry_run=dry_run)
    submission = draft(run, options, _digest(run, left), unchanged)
    if not dry_run:
        submission = begun(submission)
    directory, seconds = run.directory.resolve(), task_seconds_of(run)
    if dask:
        jobs = dask_jobs(directory, submission, left, seconds)
    else:
        jobs = array_jobs(directory, submission, left, limit, seconds)
    if dry_run:
        return Submitted(submission, jobs, [])
    for job in jobs:
        path = submission.folder / job.file
        path.write_text(job.script, errors="surrogateescape")
    return Submitted(submission, jobs, _sent(submission, jobs))


def _sent(submission: Submission, jobs: Sequence[Job]) -> list[str]:
    """Submits jobs, all of them or none.

    Returns:
        Their numbers.

    Raises:
        SlurmError: If one was refused; those before it are cancelled.
    """
    numbers: list[str] = []
    for job in jobs:
        before = numbers[-1] if numbers else None
        try:
            number = commands.submit(job.arguments(submission.folder, before))
        except SlurmError as error:
            raise SlurmError(f"{job.stage} was not submitted: {error}{_undone(numbers)}") from error
        numbers.append(number)
        submission.note(SubmittedJob(number, job.stage, job.indices))
    return numbers


def _undone(numbers: Sequence[str]) -> str:
    if not numbers:
        return ""
    try:
        commands.cancel(numbers)
    except SlurmError as error:
        return f". The jobs {', '.join(numbers)} before it are still there: {error}"
    return f". The jobs {', '.join(numbers)} before it were cancelled"


def _limit(options: JobOptions, *, dry_run: bool) -> int:
    if options.max_array_size is not None:
        return options.max_array_size
    if dry_run and not commands.available("scontrol"):
        return _DEFAULT_ARRAY_SIZE
    return commands.max_array_size()


def _digest(run: Run, left: Sequence[Left]) -> str:
    """What is left, in a form that can be compared: it changes whenever anything was done."""
    stages = [[str(stage.stage), list(stage.tasks)] for stage in left]
    return digest([len(run.plan.amendments), stages])


def in_queue(run: Run) -> list[Queued]:
    """The elements of earlier submissions that are waiting or at work.

    Raises:
        SlurmError: If squeue does not answer.
    """
    recent = submissions(run)[-_RECENT:]
    jobs = [job.job for submission in recent for job in submission.jobs()]
    tokens = {submission.token for submission in recent}
    if not jobs:
        return []
    answer = commands.Question(jobs).answer(commands.ASK_SECONDS)
    # The same number may be somebody else's job, on another cluster.
    return [queued for queued in answer if queued.comment in tokens]


def _require_over(run: Run) -> None:
    try:
        queued = in_queue(run)
    except SlurmError as error:
        raise SlurmError(
            f"{error}; so nobody knows whether jobs of an earlier submission are still queued. "
            "--again submits nevertheless"
        ) from error
    if queued:
        jobs = sorted({element.job for element in queued}, key=int)
        states = sorted({element.state for element in queued})
        raise UsageError(
            f"{len(queued)} elements of an earlier submission are still in the queue "
            f"({', '.join(states)}): wait for them, or stop them with: scancel {' '.join(jobs)}; "
            "--again submits nevertheless"
        )


class QueueQuestion:
    """What became of the last submission; the queue is asked at once, and answers later.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._known = submissions(run)[-_LOOKED_AT:]
        self._question: commands.Question | None = None
        self._failure = "there is no squeue here"
        jobs = [job.job for submission in self._known[-1:] for job in submission.jobs()]
        if jobs and commands.available("squeue"):
            try:
                self._question = commands.Question(jobs)
            except SlurmError as error:
                self._failure = str(error)

    def answer(self, seconds: float) -> QueueStatus | None:
        """The state; ``None`` if nothing was ever submitted.

        Args:
            seconds: How long the queue may take; its answer is but decoration.
        """
        if not self._known:
            return None
        queued = None
        if self._question is not None:
            try:
                queued, self._failure = self._question.answer(seconds), "squeue answered"
            except SlurmError as error:
                self._failure = str(error)
        *before, last = self._known
        state = state_of(last, queued, self._failure)
        if state.last_failing:
            return state
        # What the chain has submitted again failed in a submission before.
        for log in (last_failing(submission, None) for submission in reversed(before)):
            if log is not None and log.exit_code != IncompleteError.exit_code:
                return replace(state, last_failing=str(log.path), reason=log.last_line)
        return state


def require_earlier_stages(run: Run, stage: Stage) -> None:
    """Refuses to begin a stage while tasks of earlier ones are left.

    Raises:
        IncompleteError: Saying what is missing.
    """
    first, *_ = work_left(run) or [Left(stage, ())]
    if _order(first.stage) < _order(stage):
        raise IncompleteError(
            f"{stage} is too early: of {first.stage} {_shown(first)} not done; go on with: "
            f"skerch-ooc submit {shlex.quote(str(run.directory))}"
        )


def _order(stage: Stage) -> tuple[float, int]:
    position = STAGES.index(stage.name)
    return (float("inf"), position) if stage.name == "assess" else (stage.round, position)


def _shown(left: Left) -> str:
    numbers = ", ".join(map(str, left.tasks[:5])) + (", ..." if len(left.tasks) > 5 else "")
    verb = "task {} is" if len(left.tasks) == 1 else f"{len(left.tasks)} tasks ({{}}) are"
    return verb.format(numbers)


def follow(directory: Path, number: str, say: Callable[[str], None]) -> None:
    """Submits what is missing, in a job that found out; only one job of a submission does.

    Args:
        directory: The run directory.
        number: The submission that the job belongs to.
        say: Tells people.

    Raises:
        IncompleteError: If nothing was done since the submissions before this one.
        SlurmError: If Slurm refuses.
    """
    run = open_run(directory)
    known = submissions(run)
    index, lowest = (os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN"))
    if not known or known[-1].number != number or index != lowest:
        return
    last, left = known[-1], work_left(run)
    if not left:
        return
    unchanged = last.unchanged + 1 if last.left == _digest(run, left) else 0
    own = os.environ.get("SLURM_ARRAY_JOB_ID")
    if unchanged >= last.options.tries:
        at_work = [(job.job, i) for job in last.jobs() if job.job == own for i in job.indices]
        log = last_failing(last, at_work)
        why = f": {log.last_line} (in {log.path})" if log else ""
        raise IncompleteError(
            f"of {left[0].stage} {_shown(left[0])} not done, and the last {unchanged} submission(s)"
            f" have changed nothing about that{why}. When it is mended: skerch-ooc submit "
            f"{shlex.quote(str(directory))}"
        )
    jobs = [job.job for job in last.jobs()]
    commands.cancel(jobs[jobs.index(own) + 1 :] if own in jobs else [])
    done = _submit(run, last.options, left, unchanged=unchanged)
    say(
        f"of {left[0].stage} {_shown(left[0])} not done; submitted again, as "
        f"{done.submission.number}: job {done.numbers[0]} to {done.numbers[-1]}"
    )
