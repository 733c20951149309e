"""What was submitted: scripts, jobs and options of each submission, in the run directory.

All of it is decoration: nothing is needed to go on, as the shards are the state.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import CorruptError, UsageError
from skerch_ooc.base.files import append_line, read_json, read_json_lines, write_json
from skerch_ooc.executors.slurm.options import JobOptions

FOLDER = "slurm"
_RECORD = "submission.json"
_JOBS = "jobs.jsonl"
_NUMBER = re.compile(r"[0-9]{1,18}")
_STAGE = re.compile(r"[a-z]{1,20}(\.[0-9]{1,4})?")


@dataclass(frozen=True)
class SubmittedJob:
    """A job array that sbatch took.

    Attributes:
        job: Its number.
        stage: What it does.
        indices: Its elements; empty of a job that is no array.
    """

    job: str
    stage: str
    indices: tuple[int, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it is what :meth:`Submission.note` writes: paths and commands are made of it."""
        numbers = all(type(index) is int and 0 <= index < 10**9 for index in self.indices)
        texts = isinstance(self.job, str) and isinstance(self.stage, str)
        return bool(
            numbers and texts and _NUMBER.fullmatch(self.job) and _STAGE.fullmatch(self.stage)
        )


@dataclass(frozen=True)
class Submission:
    """One submission of a run.

    Attributes:
        folder: Its scripts, records and logs.
        token: What its jobs are marked with.
        options: What they are given.
        left: What was left when it was submitted, hashed.
        unchanged: How many submissions in a row before this one had just as much left.
    """

    folder: Path
    token: str
    options: JobOptions
    left: str
    unchanged: int

    @property
    def number(self) -> str:
        """Its name: ``"0001"``."""
        return self.folder.name

    def jobs(self) -> list[SubmittedJob]:
        """The jobs that sbatch took, in order; lines that cannot be read are left out."""
        found = []
        for values in read_json_lines(self.folder / _JOBS):
            with contextlib.suppress(KeyError, TypeError):
                job = SubmittedJob(values["job"], values["stage"], tuple(values["indices"]))
                if job.is_sound:
                    found.append(job)
        return found

    def note(self, job: SubmittedJob) -> None:
        """Notes a job that sbatch took."""
        values = {"job": job.job, "stage": job.stage, "indices": list(job.indices)}
        append_line(self.folder / _JOBS, values)

    def write_script(self, name: str, script: str) -> None:
        """Writes the script of a job."""
        (self.folder / name).write_text(script, errors="surrogateescape")

    def withdraw(self) -> None:
        """Makes it one that never was; its scripts stay, for who wants to see what was refused."""
        (self.folder / _RECORD).unlink(missing_ok=True)

    def publish(self) -> None:
        """Writes all but the jobs."""
        write_json(
            self.folder / _RECORD,
            {
                "token": self.token,
                "options": self.options.as_json(),
                "left": self.left,
                "unchanged": self.unchanged,
            },
        )


def submissions(logs: Path) -> list[Submission]:
    """All submissions of a run, in order; those whose record is gone or damaged are left out."""
    found = []
    for folder in sorted((logs / FOLDER).glob("[0-9]" * 4 + "*")):
        # Of any damage; it is no part of the state.
        with contextlib.suppress(OSError, CorruptError, UsageError, LookupError, TypeError,
                                 ValueError, AttributeError, ArithmeticError):  # fmt: skip
            found.append(_read(folder, read_json(folder / _RECORD)))
    return found


def _read(folder: Path, values: Mapping[str, Any]) -> Submission:
    return Submission(
        folder=folder,
        token=str(values["token"]),
        options=JobOptions.from_json(values["options"]),
        left=str(values["left"]),
        unchanged=int(values["unchanged"]),
    )


def draft(logs: Path, options: JobOptions, left: str, unchanged: int) -> Submission:
    """The next submission of a run, of which nothing is written yet."""
    numbers = [int(path.name) for path in (logs / FOLDER).glob("[0-9]" * 4 + "*")
               if path.name.isascii() and path.name.isdigit()]  # fmt: skip
    # Not resolved: other nodes may see it under the path that was given only.
    folder = logs.absolute() / FOLDER / f"{max(numbers, default=0) + 1:04d}"
    return Submission(folder, secrets.token_hex(8), options, left, unchanged)


def begin(submission: Submission) -> Submission:
    """Makes the folder of a submission, and writes its record.

    Returns:
        The submission; with another number, if another process has taken this one meanwhile.

    Raises:
        UsageError: If nothing can be written there.
    """
    try:
        submission.folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                submission.folder.mkdir()
                break
            except FileExistsError:
                following = f"{int(submission.number) + 1:04d}"
                folder = submission.folder.with_name(following)
                submission = replace(submission, folder=folder)
        submission.publish()
    except OSError as error:
        raise UsageError(
            f"cannot write {submission.folder}: {error.strerror}; make room or give permission, "
            "then submit again"
        ) from error
    return submission
