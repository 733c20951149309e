"""What was submitted: scripts, jobs and options of each submission, in the run directory.

All of it is decoration: nothing is needed to go on, as the shards are the state.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.base.disk_errors import remedy
from skerch_ooc.base.errors import CorruptError, UsageError
from skerch_ooc.base.files import (
    append_line,
    as_given,
    make_folder,
    read_json,
    read_json_lines,
    sync_folder,
    write_json,
)
from skerch_ooc.base.posix import inode_of
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
        of: The number by which those of its tasks are divided; 0 if it is not known.
    """

    job: str
    stage: str
    indices: tuple[int, ...]
    of: int = 0


@dataclass(frozen=True)
class Submission:
    """One submission of a run.

    Attributes:
        folder: Its scripts, records and logs.
        token: What its jobs are marked with.
        options: What they are given.
        left: What was left when it was submitted, hashed.
        unchanged: How many submissions in a row before this one had just as much left.
        amendments: How many amendments the plan had; ``None`` where an older version wrote it.
        directory: The run directory that its scripts name; ``None`` likewise.
    """

    folder: Path
    token: str
    options: JobOptions
    left: str
    unchanged: int
    amendments: int | None = None
    directory: str | None = None

    @property
    def is_of_another(self) -> bool:
        """Whether its jobs work for another folder, of which this one is a copy."""
        return self._is_named_folder() is False

    @property
    def is_nowhere(self) -> bool:
        """Whether the folder that its jobs work for is not there: it was moved, or is not seen."""
        return self.directory is not None and self._is_named_folder() is None

    def _is_named_folder(self) -> bool | None:
        if self.directory is None:
            return True
        named = inode_of(Path(self.directory))
        # Not the device too: a disk that is mounted twice may have two.
        return None if named is None else named == inode_of(self.folder.parents[2])

    @property
    def number(self) -> str:
        """Its name: ``"0001"``."""
        return self.folder.name

    def jobs(self) -> list[SubmittedJob]:
        """The jobs that sbatch took, in order; lines that cannot be read are left out."""
        found = []
        for values in read_json_lines(self.folder / _JOBS):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                found.append(_job_of(values))
        return found

    def log_of(self, job: SubmittedJob, index: int) -> Path:
        """The log of an element of a job."""
        suffix = f"_{index}" if job.indices else ""
        return self.folder / f"{job.stage}.{job.job}{suffix}.log"

    def note(self, job: SubmittedJob) -> None:
        """Notes a job that sbatch took."""
        append_line(self.folder / _JOBS, asdict(job))

    def write_script(self, name: str, script: str) -> None:
        """Writes the script of a job."""
        (self.folder / name).write_text(script, errors="surrogateescape")

    def withdraw(self) -> None:
        """Makes it one that never was; its scripts stay, for who wants to see what was refused."""
        (self.folder / _RECORD).unlink(missing_ok=True)

    def publish(self) -> None:
        """Writes all but the jobs."""
        values = asdict(self)
        del values["folder"]
        write_json(self.folder / _RECORD, values)


def _job_of(values: Mapping[str, Any]) -> SubmittedJob:
    """Reads what :meth:`Submission.note` writes; paths and commands are made of it.

    Raises:
        KeyError, TypeError, ValueError: If it is anything else.
    """
    job = SubmittedJob(
        values["job"], values["stage"], tuple(values["indices"]), values.get("of", 0)
    )
    numbers = (*job.indices, job.of)
    indices = all(type(number) is int and 0 <= number < 10**9 for number in numbers)
    if not (indices and _NUMBER.fullmatch(job.job) and _STAGE.fullmatch(job.stage)):
        raise ValueError(f"{job} is none that sbatch took")
    return job


def submissions(logs: Path) -> list[Submission]:
    """All submissions of a run, in order; those whose record is gone or damaged are left out."""
    found = []
    for folder in sorted(_folders(logs)):
        # Of any damage; it is no part of the state.
        with contextlib.suppress(OSError, CorruptError, UsageError, LookupError, TypeError,
                                 ValueError, AttributeError, ArithmeticError):  # fmt: skip
            values = read_json(folder / _RECORD)
            options, token = JobOptions.from_json(values["options"]), str(values["token"])
            left, unchanged = str(values["left"]), int(values["unchanged"])
            amendments, named = values.get("amendments"), values.get("directory")
            place = named if isinstance(named, str) else None
            found.append(Submission(folder, token, options, left, unchanged, amendments, place))
    return found


def draft(
    logs: Path, options: JobOptions, left: str, unchanged: int, amendments: int | None = None
) -> Submission:
    """The next submission of a run, of which nothing is written yet."""
    names = [folder.name for folder in _folders(logs)]
    highest = max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)
    # Not resolved: other nodes may see it under the path that was given only.
    folder = as_given(logs) / FOLDER / _name_of(highest + 1)
    return Submission(folder, secrets.token_hex(8), options, left, unchanged, amendments,
                      str(folder.parents[2]))  # fmt: skip


def begin(submission: Submission) -> Submission:
    """Makes the folder of a submission, and writes its record.

    Returns:
        The submission; with another number, if another process has taken this one meanwhile.

    Raises:
        UsageError: If nothing can be written there.
    """
    with writing(submission.folder):
        make_folder(submission.folder.parent)
        try:
            submission.folder.mkdir()
        except FileExistsError:
            following = submission.folder.with_name(_name_of(int(submission.number) + 1))
            return begin(replace(submission, folder=following))
        sync_folder(submission.folder.parent)
        submission.publish()
    return submission


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says what to do if a folder of submissions cannot be written.

    Raises:
        UsageError: In place of any error of the system.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}; {remedy(error)}, then submit again"
        ) from error


def _folders(logs: Path) -> Iterator[Path]:
    """The folders of all submissions of a run, in any order."""
    return (logs / FOLDER).glob("[0-9]" * 4 + "*")


def _name_of(number: int) -> str:
    return f"{number:04d}"
