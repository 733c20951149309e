"""Verbs that say what came out, and how good it is, and those that write it for other programs."""

from __future__ import annotations

import math
from pathlib import Path

import click

from skerch_ooc.base.progress import terminal_progress
from skerch_ooc.cli.group import json_of, show, show_result, verb
from skerch_ooc.cli.options import CACHED, DIR, JSON, MAX_ERROR, MEMORY, PATH, RESULT, THREADS


@verb("assess runs/hessian --max-relative-error 0.01", DIR, RESULT, MAX_ERROR, JSON)
def assess(directory: Path, name: str, max_relative_error: float | None, as_json: bool) -> None:
    """Estimate the error of a result, with its probability bounds."""
    from skerch_ooc.pipeline import steps

    opened = steps.open_run(directory)
    assessment = steps.assess(opened, name)
    show_result(opened, name, assessment, as_json=as_json)
    steps.require_quality(assessment, max_relative_error)


@verb("estimates runs/hessian --json", DIR, RESULT, MEMORY, THREADS, JSON, CACHED)
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


@verb("density runs/hessian --json", DIR, JSON)
@click.option(
    "--from", "low", type=float, metavar="A", help="Count the eigenvalues from A on.",
)  # fmt: skip
@click.option("--to", "high", type=float, metavar="B", help="Count the eigenvalues up to B.")
def density(directory: Path, low: float | None, high: float | None, as_json: bool) -> None:
    """Estimate the density of all eigenvalues from rounds of krylov."""
    from skerch_ooc.cli import tables
    from skerch_ooc.results.density import density as density_of

    found = density_of(directory)
    ends = None if low is None and high is None else (
        -math.inf if low is None else low, math.inf if high is None else high,
    )  # fmt: skip
    if as_json:
        counted = {} if ends is None else {"count": found.count(*ends).as_json()}
        click.echo(json_of(found.as_json() | counted))
    else:
        click.echo(tables.density_table(found, ends))


@verb("report runs/hessian --output hessian.html", DIR, RESULT, CACHED)
@click.option(
    "--output", metavar="FILE", type=PATH,
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


@verb("compare runs/a runs/b", JSON, CACHED)
@click.argument("first", metavar="DIR", type=PATH)
@click.argument("second", metavar="DIR", type=PATH)
@click.option("--rank", type=int, metavar="R", help="Leading values and vectors to compare.")
def compare(first: Path, second: Path, as_json: bool, rank: int | None) -> None:
    """Compare two results: values, spaces of vectors, errors, costs.

    DIR is a run, or the folder of one of its results, DIR/results/NAME.
    """
    from skerch_ooc.cli import tables
    from skerch_ooc.results.compare import compare as compare_results

    show(compare_results(first, second, rank=rank), tables.comparison_table, as_json=as_json)


@verb("scores runs/pca --out scores.parquet", DIR, RESULT, CACHED)
@click.option(
    "--out", metavar="FILE", type=PATH,
    help="A new .h5, .zarr, .parquet or .csv; else by the result.",
)  # fmt: skip
def scores(directory: Path, name: str, out: Path | None) -> None:
    """Write the scores of all samples: rows times components.

    Of a run of kind = "svd" they are U S, with the signs of scikit-learn; of components that PCA
    has left in a run_dir the samples are read once more.
    """
    from skerch_ooc.pipeline.principal import scoring

    progress = terminal_progress()
    if not scoring.is_centred(directory):
        progress.say('columns are not centred; subtract = "column-mean" makes components of them')
    path, sheet = scoring.write_scores_of(directory, name, out, progress)
    click.echo(f"{path}: {sheet.shape[0]} x {sheet.shape[1]}, {sheet.dtype}")


@verb("loadings runs/pca --out loadings.csv", DIR, RESULT, CACHED)
@click.option("--out", metavar="FILE", type=PATH, required=True, help="A new .csv or .parquet.")
def loadings(directory: Path, name: str, out: Path) -> None:
    """Write the components as a table, by the names of the columns.

    They are the right vectors V, a line for each column of the matrix, with the signs of scores.
    """
    from skerch_ooc.pipeline.principal import exporting

    sheet = exporting.write_loadings(directory, name, out)
    click.echo(f"{out}: {sheet.shape[0]} x {sheet.shape[1]}, {sheet.dtype}")


@verb("export runs/pca --out modes.nc", DIR, RESULT, CACHED)
@click.option("--out", metavar="FILE", type=PATH, required=True, help="A new .nc or .h5ad.")
def export(directory: Path, name: str, out: Path) -> None:
    """Write values and vectors, with all names, as netCDF or .h5ad.

    As netCDF the vectors lie on the grid that the matrix was; as .h5ad they are what scanpy calls
    X_pca and PCs. Names are read from the files of the matrix.
    """
    from skerch_ooc.pipeline.principal import exporting

    modes = exporting.export(directory, name, out, terminal_progress())
    sides = [", ".join(one.names) for one in (modes.labels.rows, modes.labels.columns)]
    click.echo(f"{out}: {modes.rank} modes of {sides[0]} x {sides[1]}")
