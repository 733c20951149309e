"""Verbs that look after a run: status, verify, clean, rm."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.progress import terminal_progress
from skerch_ooc.cli.group import json_of, show, verb
from skerch_ooc.cli.options import DIR, JSON, OBJECT, positive


@verb("status runs/hessian --watch", DIR, JSON)
@click.option("--watch", is_flag=True, help="Show it again until all is done, or nobody works.")
@click.option(
    "--interval", type=float, default=5.0, show_default=True, metavar="S", callback=positive,
    help="Seconds between two looks of --watch.",
)  # fmt: skip
def status(directory: Path, as_json: bool, watch: bool, interval: float) -> None:
    """Show what is done, what is in Slurm's queue, and what comes next."""
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline.status import looks

    shown = None
    for state, queue in looks(directory, interval):
        if as_json:
            text = json_of(asdict(state) | {"slurm": queue and asdict(queue)})
        else:
            text = tables.status_table(state, queue)
        if text != shown:
            if shown is not None and sys.stdout.isatty() and not as_json:
                click.clear()
            click.echo(text)
        if not watch:
            return
        shown = text


@verb("verify runs/hessian", DIR)
def verify(directory: Path) -> None:
    """Read every byte of every file of a run, and check it.

    Exits with 5, and names the files, if any is damaged.
    """
    from skerch_ooc.pipeline.status import status as status_of
    from skerch_ooc.pipeline.verify import verify_run
    from skerch_ooc.store import rundir

    opened = rundir.open_run(directory)
    wrong = verify_run(opened, terminal_progress())
    if wrong:
        raise CorruptError("\n".join(wrong))
    click.echo("every byte is as it was published")
    missing = status_of(opened).columns_missing
    if missing:
        click.echo(f"not measured, or gone: {missing}; next: {opened.how_to_measure()}")


@verb("clean runs/hessian --sketch --dry-run", DIR, JSON)
@click.option("--sketch", is_flag=True, help="Also what merge made, and can make again.")
@click.option("--shards", is_flag=True, help="Also the shards of a finished run; results stay.")
@click.option(
    "--older-than", default="1d", show_default=True, metavar="T",
    help="Age at which other hosts' files are leftovers.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would go, and remove nothing.")
def clean(
    directory: Path, as_json: bool, sketch: bool, shards: bool, older_than: str, dry_run: bool
) -> None:
    """Free disk space; refuses while anything still needs the files.

    Without options: leftovers of processes that have ended, and files that nothing uses any more.
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import clean as cleaning
    from skerch_ooc.store import rundir

    done = cleaning.clean(
        rundir.open_run(directory), sketch=sketch, shards=shards, older_than=older_than,
        dry_run=dry_run, progress=terminal_progress() if shards else None,
    )  # fmt: skip
    show(done, tables.cleaning_table, as_json=as_json)


@verb("rm s3://bucket/runs/hessian/results/other -r", OBJECT)
@click.option("-r", "below", is_flag=True, help="All that lies below URL, in a run.")
def rm(path: Path, below: bool) -> None:
    """Remove an object of a run in a bucket, as a message tells to.

    Files in folders are removed by the system's own rm.
    """
    from skerch_ooc.store.inventory import remove_named

    click.echo(f"{path}: {remove_named(path, below=below)} object(s) removed")
