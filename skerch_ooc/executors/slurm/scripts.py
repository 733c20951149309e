"""The scripts of the jobs: readable shell, each with the line that submits it again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skerch_ooc.executors.slurm.elements import Elements
from skerch_ooc.executors.slurm.logs import BEGINNING, ending
from skerch_ooc.executors.slurm.options import DASK, WARNING_SECONDS
from skerch_ooc.executors.slurm.records import Submission
from skerch_ooc.planning.stage_names import RoundStage

CHECK = "check"
"""What the last job of a submission is called."""

_DASK_BODY = (Path(__file__).parent / "dask.sbatch").read_text()
_DASK_MARK = "# --- What follows"
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
    """

    stage: str
    script: str
    options: tuple[str, ...]
    indices: tuple[int, ...]
    longest: int

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
    options = submission.options
    throttle = f"%{options.throttle}" if options.throttle else ""
    sbatch = _array(run, submission, stage.name, str(stage), f"{elements.ranges}{throttle}")
    one = len(elements.indices) == 1
    title = (
        f"{stage}: {_count(tasks, 'task')} in {_count(len(elements.indices), 'element')} of a job "
        f"array{'' if one else f', at most {elements.longest} each'}."
    )
    words = [
        *("task", '"$run"', str(stage), "--index", '"$SLURM_ARRAY_TASK_ID"'),
        *("--of", str(elements.of), "--threads", '"$cores"', "--submission", submission.number),
        *_quoted("--memory", options.memory),
        *_quoted("--device", options.device_of(stage.name)),
        *(("--max-seconds", '"$((left > 0 ? left : 1))"') if options.seconds(stage.name) else ()),
    ]
    body = [*_threads(), *_time_left(options.seconds(stage.name)), *_exec(words)]
    script = _script(title, run, submission, str(stage), sbatch, body)
    return Job(str(stage), script, sbatch, elements.indices, elements.longest)


def check_job(run: Path, submission: Submission) -> Job:
    """The last job: it looks whether anything is left, and submits that.

    Args:
        run: The run directory, absolute.
        submission: What it belongs to.
    """
    sbatch = _array(run, submission, "assess", CHECK, "0")
    body = _exec(["submit", '"$run"', "--follow", submission.number])
    title = f"{CHECK}: submits what is still missing when all others have ended."
    return Job(CHECK, _script(title, run, submission, CHECK, sbatch, body), sbatch, (0,), 1)


def _exec(words: Sequence[str]) -> list[str]:
    return [
        "# In place of this shell, so that signals reach it.",
        f'exec "${{command[@]}}" {" ".join(words)}',
    ]


def dask_job(run: Path, submission: Submission, workers: int) -> Job:
    """One job that holds a Dask scheduler, workers and the command.

    Args:
        run: The run directory, absolute.
        submission: What it belongs to.
        workers: Its tasks, each a worker.
    """
    options = submission.options
    sbatch = (
        *_common(run, submission, DASK, DASK, f"{DASK}.%j.log"),
        f"--ntasks={workers}",
        "--requeue",
        # The workers of other nodes go on if a node is lost.
        "--no-kill",
        *options.sbatch(DASK),
    )
    words = [
        *_quoted("--memory", options.memory),
        *_quoted("--device", options.device),
        *(("--max-seconds", '"$((left > 0 ? left : 1))"') if options.seconds(DASK) else ()),
    ]
    body = [
        "fail() {",
        '    echo "$*" >&2',
        "    exit 2",
        "}",
        "# This interpreter's Dask, as it is its workers that must have skerch_ooc.",
        'dask=("${command[0]}" -P -m dask)',
        *_time_left(options.seconds(DASK)),
        f"spec='' options=({' '.join(words)})",
        "",
        _DASK_BODY.partition(_DASK_MARK)[2].partition("\n")[2].rstrip("\n"),
    ]
    title = f"{DASK}: all stages on {_count(workers, 'worker')}, in one job."
    return Job(DASK, _script(title, run, submission, DASK, sbatch, body), sbatch, (), 0)


def _array(
    run: Path, submission: Submission, stage: str, shown: str, which: str
) -> tuple[str, ...]:
    return (
        f"--array={which}",
        *_common(run, submission, stage, shown, f"{shown}.%A_%a.log"),
        "--ntasks=1",
        "--requeue",
        *submission.options.sbatch(stage),
    )


def _common(run: Path, submission: Submission, stage: str, shown: str, log: str) -> tuple[str, ...]:
    options = submission.options
    # In the names of logs, %% is a percent sign.
    folder = str(submission.folder).replace("%", "%%")
    return (
        f"--job-name={options.job_name or f'{run.name} {shown}'}",
        f"--comment={submission.token}",
        f"--output={folder}/{log}",
        "--open-mode=append",
        # Where it is known, --max-seconds says when to stop, and Slurm warns far too early.
        *(() if options.seconds(stage) else (f"--signal=B:USR1@{WARNING_SECONDS}",)),
    )


def _threads() -> list[str]:
    return [
        "cores=${SLURM_CPUS_PER_TASK:-1}",
        "export OMP_NUM_THREADS=$cores MKL_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores",
    ]


def _time_left(seconds: int | None) -> list[str]:
    if seconds is None:
        return []
    reserve = min(_MOST_RESERVE, max(1, seconds // _RESERVE_SHARE))
    return [
        f"# Of {seconds} seconds; the set-up took some, and some are left to end in.",
        f"left=$(({seconds} - {reserve} - SECONDS))",
    ]


def _script(
    title: str, run: Path, submission: Submission, stage: str, sbatch: Sequence[str],
    body: Sequence[str],
) -> str:  # fmt: skip
    setup = submission.options.setup.rstrip("\n")
    again = shlex.join(["sbatch", *sbatch, str(submission.folder / script_name(stage))])
    lines = [
        "#!/usr/bin/env bash",
        f"# {title}",
        f"# Written by `skerch-ooc submit`, for submission {submission.number}. By hand again:",
        # A name may have lines, which must stay comments.
        "#   " + again.replace("\n", "\n#"),
        "",
        f'echo "{BEGINNING} $(hostname)"',
        "# The last word on how it ended; exec leaves it to Python.",
        f"trap 'echo \"{ending('$?')}\"' EXIT",
        "# Until Python listens, the warning of the end would end it.",
        "trap '' USR1",
        f"command=({shlex.join([sys.executable, '-P', '-m', 'skerch_ooc'])})",
        "",
        *([setup, ""] if setup else []),
        f"run={shlex.quote(str(run))}",
        "set -euo pipefail",
        'if ! command -v "${command[0]}" >/dev/null; then',
        '    echo "there is no ${command[0]} on $(hostname)" >&2',
        "    exit 127",
        "fi",
        *body,
    ]
    return "\n".join(lines) + "\n"


def _quoted(option: str, value: str | None) -> tuple[str, ...]:
    return () if value is None else (option, shlex.quote(value))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
