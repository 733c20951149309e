"""Verbs for clusters: submit, and task, which an element of a job array runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from skerch_ooc.base.errors import IncompleteError, UsageError, quoted
from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER, Progress, terminal_progress
from skerch_ooc.cli.group import operators_print_to_stderr, show_result, verb
from skerch_ooc.cli.options import (
    DEVICE,
    DIR,
    MAX_SECONDS,
    MEMORY,
    PATH,
    WORKING,
    WorkOptions,
)
from skerch_ooc.cli.signals import budget_of


@verb("task runs/hessian measure --index 0 --of 16", DIR, WORKING, MAX_SECONDS)
@click.argument("stage", metavar="STAGE")
@click.option("--index", type=int, required=True, metavar="I", help="Which share, from 0.")
@click.option("--of", type=int, required=True, metavar="N", help="How many shares there are.")
@click.option(
    "--submission", metavar="NUMBER", help="The submission it is of, which it goes on with."
)
def task(
    directory: Path, working: WorkOptions, stage: str, index: int, of: int, submission: str | None
) -> None:
    """Do a share of a stage, for job arrays: tasks t with t mod N = I.

    STAGE is measure, merge, solve, vectors or assess; of a later round measure.2 and so on. Nothing
    published is done again, and shares do not know of each other.
    """
    # Before anything else: while libraries are loaded, a signal would end the process.
    budget = budget_of(working.max_seconds, patient=True)
    from skerch_ooc.executors.share import Share
    from skerch_ooc.pipeline import steps
    from skerch_ooc.pipeline.share import perform_share
    from skerch_ooc.planning.stage_names import RoundStage

    opened = steps.open_run(directory)
    wanted = RoundStage.parse(stage, opened.plan.rounds)
    work = working.work(executor=Share(index, of, budget))
    with _told_of_submission(opened, wanted, submission, budget, work.progress):
        with operators_print_to_stderr():
            assessment = perform_share(opened, wanted, work)
        if assessment is not None:
            show_result(opened, "default", assessment, as_json=False)
        elif budget.stopped:
            work.progress.say(STOPPED_IN_GOOD_ORDER)


@contextlib.contextmanager
def _told_of_submission(
    run: Any, stage: Any, number: str | None, budget: Any, progress: Progress
) -> Iterator[None]:
    """Where jobs submit what is missing, that is what they say, and not what people should do."""
    if number is None:
        yield
        return
    from skerch_ooc.pipeline import submission

    try:
        submission.require_earlier_stages(run, stage, number)
    except IncompleteError as error:
        progress.say(str(error))
        if not submission.follow(run.directory, number, budget, progress.say, waited=True):
            progress.say("the first element of this array, or the check at the end, sees to that")
        raise click.exceptions.Exit(error.exit_code) from error
    try:
        yield
    except IncompleteError as error:
        progress.say(f"{error} (the check at the end submits what is missing)")
        raise click.exceptions.Exit(error.exit_code) from error


def _by_stages(_: click.Context, _option: click.Parameter, texts: Sequence[str]) -> Any:
    """Options of sbatch by the stage that they are for."""
    from skerch_ooc.executors.slurm.options import options_of_stages

    return options_of_stages(texts)


def _text_of(_: click.Context, option: click.Parameter, path: Path | None) -> str | None:
    """What a file of shell lines holds."""
    try:
        return None if path is None else path.read_text(errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; give {option.opts[0]} a file of shell lines"
        ) from error


@verb("submit runs/hessian --time 2:00:00 --mem 16G -- --qos=x", DIR)
@click.argument("further", nargs=-1, type=click.UNPROCESSED, metavar="[-- SBATCH-OPTION...]")
@click.option("--time", metavar="T", help="Walltime of an element: 90, or 1:30:00.")
@click.option("--partition", metavar="P", help="Partition of all jobs.")
@click.option("--account", metavar="A", help="Account of all jobs.")
@click.option("--gpus", metavar="G", help="GPUs of an element.")
@click.option("--cpus-per-task", type=int, metavar="C", help="Cores, and threads, of an element.")
@click.option("--mem", metavar="SIZE", help="Memory of an element, such as 16G.")
@click.option("--job-name", metavar="NAME", help="Default: of the run and the stage.")
@click.option(
    "--for", "of_stage", multiple=True, callback=_by_stages, metavar="STAGE=OPTIONS",
    help='Of sbatch, for a stage only: "measure=--gpus=1".',
)  # fmt: skip
@click.option(
    "--setup", type=PATH, callback=_text_of, metavar="FILE",
    help="Shell lines for the nodes, such as module load.",
)  # fmt: skip
@click.option("--elements", type=int, metavar="N", help="The most elements of an array.")
@click.option(
    "--max-array-size", type=int, metavar="N", help="Limit of the cluster; default: asked of it."
)
@click.option("--throttle", type=int, metavar="N", help="The most elements of an array at once.")
@click.option(
    "--tries", type=int, metavar="N",
    help="Resubmissions in a row without progress; default 3.",
)  # fmt: skip
@MEMORY
@DEVICE
@click.option(
    "--executor", type=click.Choice(["arrays", "dask"]), metavar="arrays|dask",
    help="Job arrays (the default), or a job of Dask workers.",
)  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Workers of --executor dask.")
@click.option("--again", is_flag=True, help="Even if jobs of it are in the queue.")
@click.option("--dry-run", is_flag=True, help="Print scripts and commands; submits nothing.")
@click.option("--follow", metavar="NUMBER", hidden=True)
def submit(
    directory: Path, *, again: bool, dry_run: bool, follow: str | None, **given: Any
) -> None:
    """Submit what is left of a planned run to Slurm, as job arrays.

    They wait for each other; `status DIR` shows how far they are. `submit DIR` again submits what
    is missing, by default with the options of the last time. What follows -- goes to sbatch, as do
    all options from --time to --job-name.
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.executors.slurm.options import JobOptions
    from skerch_ooc.pipeline import submission
    from skerch_ooc.store import rundir

    if follow is not None:
        # The last job of a submission.
        budget = budget_of(None, patient=True)
        submission.follow(directory, follow, budget, terminal_progress().say)
        return
    options = JobOptions(**{name: value for name, value in given.items() if value is not None})
    done = submission.submit(rundir.open_run(directory), options, again=again, dry_run=dry_run)
    if done is None:
        where = quoted(directory)
        click.echo(f"nothing to submit: all stages are done; see skerch-ooc status {where}")
    elif dry_run:
        click.echo(tables.dry_run_text(done))
    else:
        click.echo(tables.submitted_table(done, directory))
