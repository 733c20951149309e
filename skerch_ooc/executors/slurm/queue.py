"""What Slurm's queue says of the jobs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from skerch_ooc.base.files import as_given
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.commands import Queued, SlurmError
from skerch_ooc.executors.slurm.outcomes import QueueStatus, look_at
from skerch_ooc.executors.slurm.records import FOLDER, Submission, submissions
from skerch_ooc.executors.slurm.sight import blind_nodes, blind_text, moved_text

_RECENT = 8
"""Submissions whose jobs may still be in the queue; the chain cancels what it replaces."""

_LOOKED_AT = 3
"""Submissions whose logs are searched for the last that failed."""


def those_of(answer: Sequence[Queued], known: Sequence[Submission], *further: str) -> list[Queued]:
    """Elements that are of some submissions: the same number may be somebody else's job.

    Args:
        answer: What the queue answered.
        known: The submissions.
        further: What else marks those that are wanted.
    """
    marks = [*further, *(mark for one in known for mark in (one.token, str(one.folder)))]
    return [queued for queued in answer if any(mark in queued.marks for mark in marks)]


def elements_in_queue(logs: Path) -> set[Queued]:
    """The elements of jobs of a run, of its last submissions, that are waiting or at work.

    Raises:
        SlurmError: If the queue does not tell.
    """
    if not any((logs / FOLDER).glob("[0-9]*")):
        return set()
    recent = _recent(logs)
    jobs = _jobs_of(recent)
    try:
        answer = commands.Question().answer(commands.ASK_SECONDS)
        if jobs:
            # Also those of other users who submitted this run.
            answer += commands.Question(jobs).answer(commands.ASK_SECONDS)
    except SlurmError as error:
        raise SlurmError(
            f"{error}; so nobody knows whether jobs of an earlier submission are still queued"
        ) from error
    # Who was killed while submitting may have left jobs that nobody noted, but they are marked.
    return set(those_of(answer, recent, f"{as_given(logs) / FOLDER}/"))


def scancel_command(queued: Iterable[Queued]) -> str:
    """The command that stops the jobs of elements, the last one first."""
    return " ".join(["scancel", *sorted({one.job for one in queued}, key=int, reverse=True)])


def _recent(logs: Path) -> list[Submission]:
    """The last submissions of a run, without those of the run that it is a copy of."""
    return [one for one in submissions(logs)[-_RECENT:] if not one.is_of_another]


def _jobs_of(known: Sequence[Submission]) -> list[str]:
    return [job.job for submission in known for job in submission.jobs()]


class QueueQuestion:
    """What became of the last submission; the queue is asked at once, and answers later.

    Args:
        logs: The folder of its logs.
    """

    def __init__(self, logs: Path) -> None:
        self._known = _recent(logs)
        self._question: commands.Question | None = None
        self._said = "there is no squeue here"
        if self._known and commands.available("squeue"):
            try:
                self._question = commands.Question(_jobs_of(self._known))
            except SlurmError as error:
                self._said = str(error)

    def answer(self, seconds: float) -> QueueStatus | None:
        """The state; ``None`` if nothing was ever submitted.

        Args:
            seconds: How long the queue may take; its answer is but decoration.
        """
        if not self._known:
            return None
        *before, last = self._known
        answer = None
        if self._question is not None:
            try:
                answer, self._said = self._question.answer(seconds), "squeue answered"
            except SlurmError as error:
                self._said = str(error)
        own = those_of(answer or [], [last])
        over = () if answer is None else _jobs_of([last])
        jobs, cause = look_at(last, own, over)
        blind = blind_nodes(jobs, seconds)
        why = blind_text(blind, last.folder.parents[2]) if blind else None
        if last.is_nowhere and (own or blind):
            why = moved_text(last)
        others = {one.number: len(those_of(answer or [], [one])) for one in before}
        for one in reversed(before[-_LOOKED_AT:]):
            if cause is None:
                # What the chain has submitted again failed in a submission before.
                _, found = look_at(one)
                cause = None if found and found.follows_another else found
        return QueueStatus(
            submission=last.number,
            folder=str(last.folder),
            queue=self._said,
            jobs=jobs,
            waiting=None if answer is None else len(own),
            others={number: count for number, count in others.items() if count},
            last_failing=str(cause.log.path) if cause else None,
            reason=cause.reason if cause else None,
            blind=why,
        )
