"""The commands of Slurm: the only place that starts them, and reads what they answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerch_ooc.base.errors import UsageError

SUBMIT_SECONDS = 300.0
"""A busy controller lets sbatch wait for minutes."""

ASK_SECONDS = 60.0

_FORMAT = "%i|%T|%r|%k|%o"
_LARGEST_ANSWER = 2000


class SlurmError(UsageError):
    """A command of Slurm refused, did not answer, or answered what cannot be understood."""


@dataclass(frozen=True)
class Queued:
    """An element of a job array that is waiting or at work.

    Attributes:
        job: Number of the job.
        index: Number of the element; ``None`` of a job that is no array.
        state: As Slurm calls it, such as ``"RUNNING"``.
        reason: Why it waits.
        marks: What the job was marked with, and its script.
    """

    job: str
    index: int | None
    state: str
    reason: str
    marks: str


@dataclass(frozen=True)
class Ended:
    """An element that has ended, and that Slurm still remembers.

    Attributes:
        job: Number of the job.
        index: Number of the element; ``None`` of a job that is no array.
        node: The node that it was on; empty if it was on none.
    """

    job: str
    index: int | None
    node: str


def ended(jobs: Sequence[str], seconds: float) -> list[Ended]:
    """The elements of jobs that ended by themselves, as far as Slurm remembers.

    Args:
        jobs: Their numbers.
        seconds: How long to wait for the answer.

    Raises:
        SlurmError: If squeue refused, or did not answer in time.
    """
    states = "--states=COMPLETED,FAILED,NODE_FAIL"
    which = f"--jobs={','.join([*jobs, jobs[0]])}"
    answer = _call(["squeue", "--noheader", "--array", "--format=%i|%N", states, which], seconds)
    found = []
    for line in answer.splitlines():
        number, _, node = line.strip().partition("|")
        job, _, index = number.partition("_")
        found.append(Ended(job, int(index) if index.isdigit() else None, node))
    return found


def available(command: str) -> bool:
    """Whether there is such a command here."""
    return shutil.which(command) is not None


def submit(arguments: Sequence[str]) -> str:
    """Submits a job.

    Args:
        arguments: Of sbatch, script included.

    Returns:
        Its number.

    Raises:
        SlurmError: With what sbatch said, if it refused, or answered something else than a number.
    """
    # Ctrl-C in this terminal must not end it while nobody knows what it has done.
    answer = _call(["sbatch", "--parsable", *arguments], SUBMIT_SECONDS, apart=True)
    lines = answer.strip().splitlines()
    found = re.fullmatch(r"([0-9]+)(;.*)?", lines[-1].strip()) if lines else None
    if found is None:
        raise SlurmError(
            f"sbatch answered {answer.strip()[:_LARGEST_ANSWER]!r}, which is no job number; see "
            "with squeue whether the job is there nevertheless, and scancel it before you go on"
        )
    return found[1]


def cancel(jobs: Sequence[str], *, waiting: bool = False) -> None:
    """Cancels jobs that are waiting or at work; others are left out.

    Args:
        jobs: Their numbers. The last is cancelled first, as it may wait for the one before.
        waiting: Only those elements that are not at work yet.

    Raises:
        SlurmError: If scancel refused.
    """
    if jobs:
        states = ["--state=PENDING"] if waiting else []
        _call(["scancel", "--quiet", *states, *reversed(jobs)], ASK_SECONDS)


def max_array_size() -> int:
    """How many elements an array may have, and its largest index plus one.

    Raises:
        SlurmError: If Slurm does not say.
    """
    answer = _call(["scontrol", "show", "config"], ASK_SECONDS)
    size = re.search(r"^MaxArraySize\s*=\s*([0-9]+)\s*$", answer, re.M)
    if size is None or int(size[1]) < 1:
        raise SlurmError(
            "scontrol show config says no MaxArraySize that arrays could have; give "
            f"--max-array-size. It said: {answer.strip()[:_LARGEST_ANSWER]!r}"
        )
    fewer = re.search(r"^SchedulerParameters\s*=.*\bmax_array_tasks=([1-9][0-9]*)", answer, re.M)
    return min(int(size[1]), int(fewer[1])) if fewer else int(size[1])


class Question:
    """What the queue is asked; asked at once, answered later.

    Args:
        jobs: Numbers of the jobs that are asked about; none for all of this user's.
    """

    def __init__(self, jobs: Sequence[str] = ()) -> None:
        # With a second number the one of a job that has ended long ago is no error.
        which = f"--jobs={','.join([*jobs, jobs[0]])}" if jobs else f"--user={os.getuid()}"
        arguments = ["squeue", "--noheader", "--array", f"--format={_FORMAT}", which]
        try:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, errors="replace", env=_environment(os.environ),
            )  # fmt: skip
        except OSError as error:
            raise SlurmError(
                f"cannot start squeue: {error.strerror}; look for it on a node of the cluster"
            ) from error

    def answer(self, seconds: float) -> list[Queued]:
        """The elements that are waiting or at work.

        Args:
            seconds: How long to wait for it.

        Raises:
            SlurmError: If squeue refused, or did not answer in time.
        """
        with self._process as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise SlurmError(f"squeue did not answer within {seconds:g} s") from None
        if process.returncode and "Invalid job id" not in err:
            raise SlurmError(f"squeue failed: {err.strip()[:_LARGEST_ANSWER]}")
        return [_queued(line) for line in out.splitlines() if line.count("|") >= 3]


def _queued(line: str) -> Queued:
    number, state, reason, marks = line.split("|", 3)
    job, _, index = number.partition("_")
    return Queued(job, int(index) if index.isdigit() else None, state, reason, marks)


def _call(command: Sequence[str], seconds: float, *, apart: bool = False) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=seconds, env=_environment(os.environ), start_new_session=apart,
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(
            f"there is no command {command[0]} here; run this on a node of the cluster from which "
            "jobs can be submitted"
        ) from None
    except OSError as error:
        raise SlurmError(
            f"cannot start {command[0]}: {error.strerror}; mend that, then run the same command "
            "again"
        ) from error
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {seconds:g} s; see with squeue what it has done"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[:_LARGEST_ANSWER]
        raise SlurmError(f"{command[0]} refused ({done.returncode}): {said}")
    return done.stdout


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment outside of any job: what a job was given is not for those that it submits."""
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}
    # What people set for their own eyes would hide jobs from us, have sbatch wait for them, or take
    # their errors out of the logs.
    foreign = ("SLURM_", "SLURMD_", "SQUEUE_", "SBATCH_WAIT", "SBATCH_ERROR")
    return {
        name: value
        for name, value in inherited.items()
        if name in kept or not name.startswith(foreign)
    }
