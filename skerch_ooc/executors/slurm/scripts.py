"""The scripts of the jobs, made of templates of shell: each has the line that submits it again."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skerch_ooc.base.errors import counted
from skerch_ooc.executors.slurm.elements import Elements
from skerch_ooc.executors.slurm.logs import BEGINNING, ending
from skerch_ooc.executors.slurm.options import DASK, WARNING_SECONDS
from skerch_ooc.executors.slurm.records import Submission
from skerch_ooc.planning.stage_names import RoundStage

CHECK = "check"
"""What the last job of a submission is called."""

_TEMPLATES = Path(__file__).parent / "templates"
_SHARED = "# --- What follows"
"""The mark in the script that people copy after which a job of Dask is the same."""

_RESERVE_SHARE = 20
_MOST_RESERVE = 60


@dataclass(frozen=True)
class Job:
    """A job to be submitted.

    Attributes:
        stage: What it does, as people are told.
        script: The text of its script.
        options: Of sbatch, but for what it waits for.
        indices: The elements of its array; empty of a job that is no array.
        longest: The most tasks that an element has.
        of: The number by which those of its tasks are divided.
    """

    stage: str
    script: str
    options: tuple[str, ...]
    indices: tuple[int, ...]
    longest: int
    of: int = 0

    @property
    def file(self) -> str:
        """The name of its script."""
        return script_name(self.stage)

    def arguments(self, folder: Path, after: str | None) -> list[str]:
        """The arguments of sbatch.

        Args:
            folder: Where the script is.
            after: The job that must have ended, however it ended.
        """
        wait = [f"--dependency=afterany:{after}"] if after else []
        return [*wait, *self.options, str(folder / self.file)]


def script_name(stage: str) -> str:
    """The name of the script of a stage."""
    return f"{stage}.sh"


def array_job(
    run: Path, submission: Submission, stage: RoundStage, elements: Elements, tasks: int
) -> Job:
    """The job array of a stage.

    Args:
        run: The run directory, absolute.
        submission: What it belongs to.
        stage: The stage.
        elements: Its elements.
        tasks: How many tasks they have.
    """
    options, count = submission.options, len(elements.indices)
    throttle = f"%{options.throttle}" if options.throttle else ""
    sbatch = _sbatch(run, submission, stage.name, str(stage), f"{elements.ranges}{throttle}")
    each = "" if count == 1 else f", at most {elements.longest} each"
    title = f"{counted(tasks, 'task')} in {counted(count, 'element')} of a job array{each}."
    seconds = options.seconds(stage.name)
    limits = _limits(options.memory, options.device_of(stage.name), seconds)
    body = _filled(
        "element.sh",
        stage=str(stage),
        of=str(elements.of),
        submission=submission.number,
        time_left=_time_left(seconds),
        limits="".join(f" {word}" for word in limits),
    )
    script = _script(title, run, submission, str(stage), sbatch, body)
    return Job(str(stage), script, sbatch, elements.indices, elements.longest, elements.of)


def check_job(run: Path, submission: Submission) -> Job:
    """The last job: it looks whether anything is left, and submits that.

    Args:
        run: The run directory, absolute.
        submission: What it belongs to.
    """
    sbatch = _sbatch(run, submission, "assess", CHECK, "0")
    body = _filled("check.sh", submission=submission.number)
    title = "submits what is still missing when all others have ended."
    return Job(CHECK, _script(title, run, submission, CHECK, sbatch, body), sbatch, (0,), 1)


def dask_job(run: Path, submission: Submission, workers: int) -> Job:
    """One job that holds a Dask scheduler, workers and the command.

    Args:
        run: The run directory, absolute.
        submission: What it belongs to.
        workers: Its tasks, each a worker.
    """
    options, seconds = submission.options, submission.options.seconds(DASK)
    sbatch = _sbatch(run, submission, DASK, DASK, None, workers)
    shared = (_TEMPLATES / "dask.sbatch").read_text().partition(_SHARED)[2]
    body = _filled(
        "workers.sh",
        time_left=_time_left(seconds),
        options=" ".join(_limits(options.memory, options.device, seconds)),
        cluster=shared.partition("\n")[2].rstrip("\n"),
    )
    title = f"all stages on {counted(workers, 'worker')}, in one job."
    return Job(DASK, _script(title, run, submission, DASK, sbatch, body), sbatch, (), 0)


def _sbatch(
    run: Path, submission: Submission, stage: str, shown: str, array: str | None, tasks: int = 1
) -> tuple[str, ...]:
    """The options of sbatch for a job.

    Args:
        run: The run directory.
        submission: What it belongs to.
        stage: Whose options it is given.
        shown: What it is called.
        array: The elements of its array; ``None`` of a job that is no array.
        tasks: How many processes it has.
    """
    options = submission.options
    # In the names of logs, %% is a percent sign.
    folder = str(submission.folder).replace("%", "%%")
    return (
        *((f"--array={array}",) if array else ()),
        f"--job-name={options.job_name or f'{run.name} {shown}'}",
        f"--comment={submission.token}",
        f"--output={folder}/{shown}.{'%A_%a' if array else '%j'}.log",
        "--open-mode=append",
        # Where it is known, --max-seconds says when to stop, and Slurm warns far too early.
        *(() if options.seconds(stage) else (f"--signal=B:USR1@{WARNING_SECONDS}",)),
        f"--ntasks={tasks}",
        "--requeue",
        # The workers of other nodes go on if a node is lost.
        *(() if array else ("--no-kill",)),
        *options.sbatch(stage),
    )


def _limits(memory: str | None, device: str | None, seconds: int | None) -> list[str]:
    """The options of a command that say what it may use, as shell words."""
    given = {"--memory": memory, "--device": device}
    words = [f"{name} {shlex.quote(value)}" for name, value in given.items() if value is not None]
    return words + (['--max-seconds "$((left > 0 ? left : 1))"'] if seconds else [])


def _time_left(seconds: int | None) -> str:
    if seconds is None:
        return ""
    reserve = min(_MOST_RESERVE, max(1, seconds // _RESERVE_SHARE))
    return (
        f"# Of {seconds} seconds; the set-up took some, and some are left to end in.\n"
        f"left=$(({seconds} - {reserve} - SECONDS))\n"
    )


def _script(
    title: str, run: Path, submission: Submission, stage: str, sbatch: Sequence[str], body: str
) -> str:
    setup = submission.options.setup.rstrip("\n")
    again = shlex.join(["sbatch", *sbatch, str(submission.folder / script_name(stage))])
    return _filled(
        "job.sh",
        title=f"{stage}: {title}",
        submission=submission.number,
        # A name may have lines, which must stay comments.
        again=again.replace("\n", "\n#"),
        beginning=BEGINNING,
        early_ending=ending("$code"),
        ending=ending("$?"),
        python=shlex.quote(sys.executable),
        setup=f"{setup}\n\n" if setup else "",
        run=shlex.quote(str(run)),
        body=body.rstrip("\n"),
    )


def _filled(template: str, **values: str) -> str:
    """A template with values for its ``{{ names }}``; Jinja2 would take longer than all else."""
    text = (_TEMPLATES / template).read_text()
    return re.sub(r"\{\{ (\w+) \}\}", lambda name: values[name[1]], text)
