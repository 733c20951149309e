"""Writes the report of a result: one HTML page, and its charts as SVG files."""

from __future__ import annotations

from pathlib import Path

from skerch_ooc.base import files
from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.results.advice import Found, advise
from skerch_ooc.results.report import numbers, quality
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.report.convergence import convergence
from skerch_ooc.results.report.facts import Facts, gather
from skerch_ooc.results.report.leading import leading_vectors
from skerch_ooc.results.report.maps import maps
from skerch_ooc.results.report.render import rendered
from skerch_ooc.results.report.spectrum import density, linear_spectrum, logarithmic_spectrum
from skerch_ooc.results.report.timeline import timeline
from skerch_ooc.results.report.whole import density_of_the_whole
from skerch_ooc.store.result_files import (
    command_on,
    report_path,
    result_path,
    values_path,
    write_figures,
)
from skerch_ooc.store.rundir import Run


@tells_keywords
def report(run: Run, name: str = "default", *, output: str | Path | None = None) -> Path:
    """Writes a page about a result: what was found, how sure that is, and what it took.

    The page is one HTML file that needs no other. Beside it are all values, ``values.csv``, and in
    ``figures`` its charts as files of their own. The same run gives the same bytes. Nothing that
    the run names is imported.

    Args:
        run: The run.
        name: The folder of the result.
        output: The file to write the page to, without figures; by default ``report.html`` in the
            folder of the result, and values and figures are written, too.

    Returns:
        The path of the page.

    Raises:
        IncompleteError: If there is no such result, it is not assessed, the run has grown since
            either was made, or the page cannot be written.
        CorruptError: If a file is damaged.
        UsageError: If the name cannot be that of a folder.
    """
    facts = gather(run, name)
    drawn = charts(facts)
    content = page(facts, drawn)
    result = result_path(run, name)
    path = report_path(result) if output is None else Path(output)
    try:
        if output is None:
            write_figures(result, {chart.name: chart.file() for chart in drawn})
            files.replace_bytes(values_path(result), facts.values.csv())
        files.replace_bytes(path, content)
    except OSError as failure:
        command = f"{command_on('report', run.directory, name)} --output FILE"
        raise IncompleteError(
            f"cannot write {path}: {failure.strerror}; write the page elsewhere with: {command}"
        ) from failure
    return path


def charts(facts: Facts) -> list[Chart]:
    """Draws all charts of a report; leaves out those of what is unknown."""
    layers = () if facts.shares is None else facts.shares.layers
    made = [
        linear_spectrum(facts.values), logarithmic_spectrum(facts.values), density(facts.values),
        None if facts.density is None else density_of_the_whole(facts.density),
        None if facts.progression is None else convergence(facts.progression),
        quality.error(facts.assessment), quality.scree(facts.assessment),
        *(leading_vectors(leading, facts.values.values, name, noun, layers)
          for name, noun, leading in facts.vectors),
        None if facts.maps is None else maps(facts.maps, facts.values.values),
        timeline(facts.logged),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def page(facts: Facts, drawn: list[Chart]) -> bytes:
    """Renders the page of a report: one HTML file with its style and charts inside."""
    found = Found(facts.run, facts.name, facts.settings, facts.assessment, "DIR")
    advice = advise(found, numbers.share)
    return rendered("page.html.jinja", facts=facts, charts=drawn, advice=advice).encode()
