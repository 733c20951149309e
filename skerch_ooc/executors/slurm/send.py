"""Jobs are sent to Slurm, all of them or none, whatever is refused or interrupts it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence

from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.commands import SlurmError
from skerch_ooc.executors.slurm.queue import those_of
from skerch_ooc.executors.slurm.records import Submission, SubmittedJob
from skerch_ooc.executors.slurm.scripts import Job

log = logging.getLogger("skerch_ooc")

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send(submission: Submission, jobs: Sequence[Job], after: str | None) -> list[str]:
    """Submits jobs, all of them or none, each after the one before it.

    Args:
        submission: What they belong to; it notes each that sbatch took.
        jobs: The jobs, whose scripts are written.
        after: The job that must have ended before the first begins; ``None`` for none.

    Returns:
        Their numbers.

    Raises:
        SlurmError: If one was refused; those before it are cancelled.
    """
    numbers: list[str] = []
    with _heard_later() as heard:
        for job in jobs:
            before = numbers[-1] if numbers else after
            try:
                numbers.append(commands.submit(job.arguments(submission.folder, before)))
                submission.note(SubmittedJob(numbers[-1], job.stage, job.indices, job.of))
                if heard:
                    raise KeyboardInterrupt
            except (SlurmError, OSError) as error:
                undone = _undo(submission, numbers)
                raise SlurmError(f"{job.stage} was not submitted: {error}{undone}") from error
            except KeyboardInterrupt:
                log.warning("nothing was submitted%s", _undo(submission, numbers))
                raise
    return numbers


@contextlib.contextmanager
def _heard_later() -> Iterator[list[int]]:
    """Keeps signals that ask to end until sbatch has said what it did; the second one is heard."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def note(number: int, _: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        log.warning("ending as soon as sbatch has answered")

    before = {number: signal.signal(number, note) for number in _ENDING_SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _undo(submission: Submission, numbers: Sequence[str]) -> str:
    """Cancels jobs, also one that sbatch had no time to name; what people are told of that."""
    try:
        own = commands.Question().answer(commands.ASK_SECONDS)
        unnamed = {queued.job for queued in those_of(own, [submission])}
        jobs = [*numbers, *sorted(unnamed - {*numbers}, key=int)]
        commands.cancel(jobs)
    except SlurmError as error:
        left = ", ".join(numbers) or "perhaps one"
        return f". Jobs that were submitted before are still there ({left}): {error}"
    return f". The jobs {', '.join(jobs)} before it were cancelled" if jobs else ""
