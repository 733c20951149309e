"""Reports: a run and its result on one page that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from skerch_ooc.base import files
from skerch_ooc.base.errors import IncompleteError, quoted
from skerch_ooc.results.report.facts import gather
from skerch_ooc.results.report.page import figures, page
from skerch_ooc.store.result_files import report_path, result_path, write_figures
from skerch_ooc.store.rundir import Run


def report(run: Run, name: str = "default", *, output: str | Path | None = None) -> Path:
    """Writes a page about a result: what was found, how sure that is, and what it took.

    The page is one HTML file that asks for nothing else. Beside it, in ``figures``, its figures are
    files of their own. The same run makes the same bytes. Nothing that the run names is imported.

    Args:
        run: The run.
        name: Folder of the result.
        output: Where the page is written, alone; by default it is ``report.html`` in the folder of
            the result, and figures are written too.

    Returns:
        The path of the page.

    Raises:
        IncompleteError: If there is no such result, it is not assessed, or either is of what the
            run was before it grew; or if the page cannot be written.
        CorruptError: If a file is damaged.
        UsageError: If the name is not one of a folder.
    """
    facts = gather(run, name)
    drawn = figures(facts)
    content = page(facts, drawn)
    result = result_path(run, name)
    path = report_path(result) if output is None else Path(output)
    try:
        if output is None:
            write_figures(result, {figure.name: figure.file() for figure in drawn})
        files.replace_bytes(path, content)
    except OSError as error:
        elsewhere = "" if name == "default" else f" --name {name}"
        command = f"skerch-ooc report {quoted(run.directory)}{elsewhere} --output FILE"
        raise IncompleteError(
            f"cannot write {path}: {error.strerror}; write the page elsewhere with: {command}"
        ) from error
    return path
