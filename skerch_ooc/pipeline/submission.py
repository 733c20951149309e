"""Submit: sends a planned run to Slurm as job arrays, and sends again what is missing.

No process stays behind to watch. Each array starts when the one before it has ended, whether that
failed or not. If the first element of an array finds work of an earlier stage undone, it submits
what is missing and cancels the jobs that follow; so does the last job of all. This repeats as long
as anything gets done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skerch_ooc.base.errors import IncompleteError, UsageError, quoted
from skerch_ooc.base.files import as_given, digest, locked
from skerch_ooc.base.patience import FILE_WAIT, file_wait
from skerch_ooc.base.places import is_object
from skerch_ooc.base.resources import MIB, ask_for, format_bytes
from skerch_ooc.base.time_budget import Budget
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.chain import array_jobs, dask_jobs, task_seconds_of
from skerch_ooc.executors.slurm.commands import SlurmError
from skerch_ooc.executors.slurm.options import DASK, JobOptions
from skerch_ooc.executors.slurm.outcomes import look_at
from skerch_ooc.executors.slurm.queue import elements_in_queue, scancel_command
from skerch_ooc.executors.slurm.records import (
    FOLDER,
    Submission,
    begin,
    draft,
    submissions,
    writing,
)
from skerch_ooc.executors.slurm.scripts import Job
from skerch_ooc.executors.slurm.send import send
from skerch_ooc.executors.slurm.sight import blind_nodes, blind_text, logs_of_done, moved_text
from skerch_ooc.pipeline.cost import least_memory
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.stage_names import STAGES, Left, RoundStage
from skerch_ooc.store.rundir import Run, look_again, open_run

log = logging.getLogger("skerch_ooc")

_SHORT_WAIT = 1.2
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0
_QUIET_SECONDS = 5.0
_DEFAULT_ARRAY_SIZE = 1001
"""Slurm's default; for a dry run away from any cluster."""


@dataclass(frozen=True)
class Submitted:
    """A submission: its record, its jobs and their numbers.

    Attributes:
        submission: The record of the submission.
        jobs: The jobs.
        numbers: The numbers that Slurm gave the jobs; none in a dry run.
        options_of: The submission whose options were taken, if none were given.
    """

    submission: Submission
    jobs: Sequence[Job]
    numbers: Sequence[str]
    options_of: str | None = None

    def commands(self) -> list[str]:
        """Lists the commands that submit the jobs; in a dry run names stand for job numbers."""
        numbers = self.numbers or [f"JOB_OF_{job.stage}" for job in self.jobs]
        folder = self.submission.folder
        return [
            shlex.join(["sbatch", "--parsable", *job.arguments(folder, before)])
            for job, before in zip(self.jobs, [None, *numbers], strict=False)
        ]


def submit(
    run: Run, options: JobOptions, *, again: bool = False, dry_run: bool = False
) -> Submitted | None:
    """Submits what is left of a run.

    Args:
        run: The run.
        options: The options of the jobs; if none is given, those of the last submission.
        again: Submit even while jobs of an earlier submission are waiting or at work.
        dry_run: Write and submit nothing.

    Returns:
        What was submitted; ``None`` if nothing is left to be done.

    Raises:
        UsageError: If an earlier submission is not over, Slurm refuses, or the run is in an object
            store.
        CorruptError: If a shard or another file of the run is damaged.
    """
    _require_local(run)
    left = _left_of(run)
    if not left:
        return None
    before = submissions(run.logs)[-1:] if options == JobOptions() else []
    options = before[0].options if before else options
    _require_shell(options.setup)
    _require_memory(run, options, left)
    if dry_run:
        submission = _draft(run, options, left, unchanged=0)
        return Submitted(submission, _jobs(run, submission, left, dry_run=True), [])
    with _alone(run):
        if not again:
            _require_over(run)
        done = _submit(run, options, left, unchanged=0)
    return replace(done, options_of=before[0].number if before else None)


def _require_local(run: Run) -> None:
    """Refuses a run in an object store.

    Raises:
        UsageError: It says what works on any store.
    """
    if is_object(run.directory):
        name = quoted(run.directory)
        raise UsageError(
            f"{run.directory} is in an object store, and Slurm reads scripts and writes logs in a "
            "folder only: go on with --executor dask, or let an array of your own call: "
            f"skerch-ooc task {name} STAGE --index I --of N"
        )


def _left_of(run: Run) -> list[Left]:
    """Lists what is left by names alone: there may be thousands of shards, and as many askers."""
    return State(run, by_notes=True).left


def _submit(
    run: Run, options: JobOptions, left: Sequence[Left], *, unchanged: int, after: str | None = None
) -> Submitted:
    _require_name(run)
    submission = begin(_draft(run, options, left, unchanged))
    try:
        jobs = _jobs(run, submission, left, dry_run=False)
        for job in jobs:
            submission.write_script(job.file, job.script)
        return Submitted(submission, jobs, send(submission, jobs, after))
    except BaseException:
        # A submission that was refused or interrupted must not be taken for the one at work.
        submission.withdraw()
        raise


def _jobs(
    run: Run, submission: Submission, left: Sequence[Left], *, dry_run: bool
) -> Sequence[Job]:
    directory, seconds = as_given(run.directory), task_seconds_of(run.log("plan"))
    walltime = submission.options.seconds("measure")
    if seconds and walltime and seconds > walltime:
        log.warning(
            "a task takes about %.0f s by the probe, and --time is %.0f s: elements may end and "
            "have done nothing; plan with a smaller sketch.task_seconds, or give more time",
            seconds, walltime,
        )  # fmt: skip
    if submission.options.executor == DASK:
        return dask_jobs(directory, submission, left, seconds)
    limit = _limit(submission.options, dry_run=dry_run)
    return array_jobs(directory, submission, left, limit, seconds)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Keeps other processes from submitting the run at the same time, where files can be locked."""
    folder = run.logs / FOLDER
    with contextlib.ExitStack() as stack:
        with writing(folder):
            try:
                if not stack.enter_context(locked(folder / "lock")):
                    log.debug("%s cannot be locked", folder)
            except BlockingIOError:
                raise UsageError(
                    f"another process is submitting {run.directory} at this moment; try again later"
                ) from None
        yield


def _require_shell(setup: str) -> None:
    bash = shutil.which("bash")
    if not (setup and bash):
        return
    done = subprocess.run(
        [bash, "-n"], input=setup.encode(errors="surrogateescape"), capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise UsageError(
            f"--setup: bash cannot read these lines: {done.stderr.decode(errors='replace').strip()}"
        )


def _require_memory(run: Run, options: JobOptions, left: Sequence[Left]) -> None:
    """Refuses memory with which the processes of a stage would refuse their work."""
    least = least_memory(run.plan)
    for name in {each.stage.name: None for each in left}:
        given = options.memory_of(name)
        if given is None or given >= least[name]:
            continue
        needed = f"the stage {name} needs about {format_bytes(least[name])}"
        if options.memory is not None:
            raise UsageError(
                f"--memory {options.memory}: {needed}; give --memory {ask_for(least[name])}"
            )
        mem = (least[name] + least[name] // 5) // MIB + 8
        raise UsageError(
            f"{needed}, and its processes take {format_bytes(given)}, nine tenths of their --mem; "
            f"give --mem {mem}M, or --for {name}=--mem={mem}M"
        )


def _require_name(run: Run) -> None:
    if "\\" in str(as_given(run.directory)):
        raise UsageError(
            f"{run.directory}: Slurm cannot write logs into a folder with a backslash in its path; "
            "rename it"
        )


def _limit(options: JobOptions, *, dry_run: bool) -> int:
    if options.max_array_size is not None:
        return options.max_array_size
    try:
        return commands.max_array_size()
    except SlurmError as error:
        if not dry_run:
            raise
        log.warning(
            "not known how large job arrays may be here (%s): taken to be %d; --max-array-size "
            "says it", str(error).partition(";")[0], _DEFAULT_ARRAY_SIZE,
        )  # fmt: skip
        return _DEFAULT_ARRAY_SIZE


def _draft(run: Run, options: JobOptions, left: Sequence[Left], unchanged: int) -> Submission:
    amendments = len(run.plan.amendments)
    return draft(run.logs, options, _digest(run, left), unchanged, amendments)


def _digest(run: Run, left: Sequence[Left]) -> str:
    """Returns a hash of what is left, which changes whenever anything gets done."""
    stages = [[str(stage.stage), list(stage.tasks)] for stage in left]
    return digest([len(run.plan.amendments), stages])


def _require_over(run: Run) -> None:
    try:
        queued = elements_in_queue(run.logs)
    except SlurmError as error:
        raise SlurmError(f"{error}. --again submits nevertheless") from error
    if queued:
        states = sorted({element.state for element in queued})
        if states == ["COMPLETING"]:
            raise UsageError("jobs of an earlier submission are ending; try again in a moment")
        moved = [one for one in submissions(run.logs)[-1:] if one.is_nowhere]
        raise UsageError(
            f"{len(queued)} element(s) of an earlier submission are still in the queue "
            f"({', '.join(states)}): wait for them, or stop them with: {scancel_command(queued)}; "
            f"--again submits nevertheless{''.join(f'; {moved_text(one)}' for one in moved)}"
        )


def require_earlier_stages(run: Run, stage: RoundStage, number: str | None = None) -> None:
    """Refuses to begin a stage while tasks of earlier ones are left.

    Args:
        run: The run.
        stage: The stage.
        number: The submission that the stages belong to.

    Raises:
        IncompleteError: If tasks are left, even after waiting for late files; it names them.
    """
    if stage == RoundStage("measure"):
        return
    first, logs = _seen_late(
        run, number, lambda left: not left or _order(left[0].stage) >= _order(stage)
    )
    if first is not None:
        said = f", though they are by {logs[0]}: look whether all nodes see this" if logs else ""
        raise IncompleteError(f"{stage} is too early: {_not_done(first)}{said}")


def _seen_late(
    run: Run, number: str | None, enough: Callable[[Sequence[Left]], bool]
) -> tuple[Left | None, list[Path]]:
    """Waits for files of stages that ended on other hosts a moment ago.

    Long only for what is done by the logs of its elements.

    Args:
        run: The run.
        number: The submission that the stages belong to.
        enough: Whether no more has to be done than this.

    Returns:
        The first stage that is not done, and the logs by which it is; ``None`` if enough is done.
    """
    # Of a run that has grown since, the logs tell nothing of what is to be done now.
    of = [
        one
        for one in submissions(run.logs)
        if one.number == number and one.amendments == len(run.plan.amendments)
    ]
    begun, pause, told = time.monotonic(), _FIRST_PAUSE, False
    while True:
        look_again(run)
        left = _left_of(run)
        if enough(left):
            return None, []
        first = left[0]
        logs = [path for one in of for path in logs_of_done(one, str(first.stage), first.tasks)]
        waited = time.monotonic() - begun
        if waited >= (file_wait() if logs else _SHORT_WAIT):
            return first, logs
        if not told and waited > _QUIET_SECONDS:
            told = True
            log.warning(
                "%s, though by %s they are: waiting for late files (%s=SECONDS says how long)",
                _not_done(first), logs[0], FILE_WAIT,
            )  # fmt: skip
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _left_in_the_end(run: Run, number: str) -> Sequence[Left]:
    """Lists the stages that are left once late files of a submission had time to show up."""
    _seen_late(run, number, lambda left: not left)
    return _left_of(run)


def _order(stage: RoundStage) -> tuple[bool, int, int]:
    return (stage.name == "assess", stage.round, STAGES.index(stage.name))


def _not_done(left: Left) -> str:
    numbers = ", ".join(map(str, left.tasks[:5])) + (", ..." if len(left.tasks) > 5 else "")
    verb = "task {} is" if len(left.tasks) == 1 else f"{len(left.tasks)} tasks ({{}}) are"
    return f"of {left.stage} {verb.format(numbers)} not done"


def follow(
    directory: Path, number: str, budget: Budget, say: Callable[[str], None], *,
    waited: bool = False,
) -> bool:  # fmt: skip
    """Submits what is missing, from a job of a submission; only one of its jobs does so.

    Args:
        directory: The run directory.
        number: The submission that the job belongs to.
        budget: Nothing is submitted if the job was asked to stop.
        say: Prints a message for people.
        waited: Whether late files were waited for already.

    Returns:
        Whether the matter is settled: this job or a later submission saw to it, or nothing is left.

    Raises:
        IncompleteError: If nothing was done since the submissions before this one.
        SlurmError: If Slurm refuses.
    """
    run, own = open_run(directory), _array_led_by_this_element()
    known = submissions(run.logs)
    if not known or own is None or budget.asked:
        return False
    last = known[-1]
    if last.number != number:
        say(f"submission {last.number} has taken over")
        return True
    left = _left_of(run) if waited else _left_in_the_end(run, number)
    if not left:
        say("nothing is missing: all stages are done")
        return True
    before, later = _around(own, [job.job for job in last.jobs()])
    unchanged = last.unchanged + 1 if last.left == _digest(run, left) else 0
    why = _explain(last, before, directory, say)
    if unchanged > last.options.tries:
        raise IncompleteError(
            f"{_not_done(left[0])}, and the last {unchanged} submission(s) have changed nothing "
            f"about that{why}. When it is mended: skerch-ooc submit {quoted(directory)}"
        )
    # The new jobs start after this array: its other elements may still do tasks that are left.
    again = partial(_submit, run, last.options, left, unchanged=unchanged, after=own)
    with _alone(run):
        try:
            done = again()
        except SlurmError:
            if not later:
                raise
            # Perhaps for want of room in the queue.
            commands.cancel(later)
            done = again()
    say(
        f"{_not_done(left[0])}; submitted again, as {done.submission.number}: job "
        f"{done.numbers[0]} to {done.numbers[-1]}"
    )
    # Cancelled only now: had this submission failed, the later jobs would have tried the same.
    commands.cancel(later)
    commands.cancel([own], waiting=True)
    return True


def _explain(
    last: Submission, over: Sequence[str], directory: Path, say: Callable[[str], None]
) -> str:
    """Names nodes that do not see the run; returns why jobs have not done what they should."""
    jobs, cause = look_at(last, over=over)
    blind = blind_nodes(jobs, commands.ASK_SECONDS)
    if blind:
        say(blind_text(blind, directory))
        return f": {blind_text(blind, directory)}"
    return f": {cause.reason} (in {cause.log.path})" if cause else ""


def _array_led_by_this_element() -> str | None:
    """Returns the job number of the array whose first element this process is, or ``None``."""
    own, index, lowest = (
        os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID", "TASK_MIN")
    )
    return own if index == lowest else None


def _around(own: str, jobs: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the jobs of a submission before and after a job; none if it is not one of them."""
    if own not in jobs:
        return (), ()
    position = jobs.index(own)
    return jobs[:position], jobs[position + 1 :]
