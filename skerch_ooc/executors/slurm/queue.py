"""What Slurm's queue says of the jobs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.commands import Queued, SlurmError
from skerch_ooc.executors.slurm.records import FOLDER, Submission, submissions
from skerch_ooc.executors.slurm.state import QueueStatus, last_failing, reason_of, state_of

_RECENT = 8
"""Submissions whose jobs may still be in the queue; the chain cancels what it replaces."""

_LOOKED_AT = 3
"""Submissions whose logs are searched for the last that failed."""


def those_of(answer: Sequence[Queued], known: Sequence[Submission]) -> list[Queued]:
    """Elements that are of some submissions: the same number may be somebody else's job."""
    marks = [mark for one in known for mark in (one.token, str(one.folder))]
    return [queued for queued in answer if any(mark in queued.marks for mark in marks)]


def elements_in_queue(logs: Path) -> set[Queued]:
    """The elements of jobs of a run, of its last submissions, that are waiting or at work.

    Raises:
        SlurmError: If the queue does not tell.
    """
    recent = submissions(logs)[-_RECENT:]
    if not any((logs / FOLDER).glob("[0-9]*")):
        return set()
    jobs = [job.job for submission in recent for job in submission.jobs()]
    # Who was killed while submitting may have left jobs that nobody noted, but they are marked.
    marks = [submission.token for submission in recent] + [f"{logs.absolute() / FOLDER}/"]
    try:
        answers = commands.Question().answer(commands.ASK_SECONDS)
        if jobs:
            # Also those of other users who submitted this run.
            answers += commands.Question(jobs).answer(commands.ASK_SECONDS)
    except SlurmError as error:
        raise SlurmError(
            f"{error}; so nobody knows whether jobs of an earlier submission are still queued"
        ) from error
    return {one for one in answers if any(mark in one.marks for mark in marks)}


class QueueQuestion:
    """What became of the last submission; the queue is asked at once, and answers later.

    Args:
        logs: The folder of its logs.
    """

    def __init__(self, logs: Path) -> None:
        self._known = submissions(logs)[-_RECENT:]
        self._question: commands.Question | None = None
        jobs = [job.job for submission in self._known for job in submission.jobs()]
        self._failure = "there is no squeue here"
        if self._known and commands.available("squeue"):
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
        *before, last = self._known
        answer = None
        if self._question is not None:
            try:
                answer, self._failure = self._question.answer(seconds), "squeue answered"
            except SlurmError as error:
                self._failure = str(error)
        queued = None if answer is None else those_of(answer, [last])
        others = {one.number: len(those_of(answer or [], [one])) for one in before}
        state = replace(
            state_of(last, queued, self._failure),
            others={number: count for number, count in others.items() if count},
        )
        if state.last_failing:
            return state
        # What the chain has submitted again failed in a submission before.
        for failing in map(last_failing, reversed(before[-_LOOKED_AT:])):
            if failing is not None and failing.exit_code != IncompleteError.exit_code:
                reason = reason_of(failing)
                return replace(state, last_failing=str(failing.path), reason=reason)
        return state
