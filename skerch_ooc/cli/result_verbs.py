"""Verbs that say how good a result is: assess, estimates, report."""

from __future__ import annotations

from pathlib import Path

import click

from skerch_ooc.base.progress import terminal_progress
from skerch_ooc.cli.group import show, show_result, verb
from skerch_ooc.cli.options import DIR, JSON, MAX_ERROR, MEMORY, RESULT, THREADS


@verb("assess runs/hessian --max-relative-error 0.01", DIR, RESULT, MAX_ERROR, JSON)
def assess(directory: Path, name: str, max_relative_error: float | None, as_json: bool) -> None:
    """Estimate the error of a result, with its probability bounds."""
    from skerch_ooc.pipeline import steps

    opened = steps.open_run(directory)
    assessment = steps.assess(opened, name)
    show_result(opened, name, assessment, as_json=as_json)
    steps.require_quality(assessment, max_relative_error)


@verb("estimates runs/hessian --json", DIR, RESULT, MEMORY, THREADS, JSON)
def estimates(
    directory: Path, name: str, memory: str | None, threads: int | None, as_json: bool
) -> None:
    """Estimate the operator's trace and norms, at no product."""
    from skerch_ooc.cli import tables
    from skerch_ooc.pipeline import steps

    found = steps.estimates(
        steps.open_run(directory), name, memory=memory,
        threads=threads, progress=terminal_progress(),
    )  # fmt: skip
    show(found, tables.estimates_table, as_json=as_json)


@verb("report runs/hessian --output hessian.html", DIR, RESULT)
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path),
    help="Write the page alone there; default: to the result.",
)  # fmt: skip
def report(directory: Path, name: str, output: Path | None) -> None:
    """Write a page about a result: spectrum, error, vectors, costs.

    One HTML file that needs nothing else; its figures are written as files, too.
    """
    from skerch_ooc.results.report.write import report as write_report
    from skerch_ooc.store import rundir

    path = write_report(rundir.open_run(directory), name, output=output)
    click.echo(path)
    if output is None:
        click.echo(path.parent / "figures")
