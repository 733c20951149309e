"""The group of verbs, how a verb is declared, and what several of them print."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from skerch_ooc.base.progress import STOPPED_IN_GOOD_ORDER
from skerch_ooc.base.version import __version__
from skerch_ooc.cli.options import Option, with_options

if TYPE_CHECKING:
    from skerch_ooc.cli.options import ResultOptions
    from skerch_ooc.executors.work import Work
    from skerch_ooc.pipeline.start import Planned
    from skerch_ooc.results.assess import Assessment
    from skerch_ooc.store.rundir import Run


class Verb(click.Command):
    """A verb, whose help ends with an example and the page of the documentation."""

    @property
    def page(self) -> str:
        """The page of the documentation, relative to its folder."""
        return _PAGES[self.name or ""]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See :class:`click.Command`."""
        super().format_epilog(ctx, formatter)
        formatter.write(f"  Docs:     {_address(self.page)}\n")


class _Verbs(click.Group):
    """Verbs, which help lists by what they are for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See :class:`click.Group`."""
        del ctx
        formatter.write(f"\n  Docs:     {_address('command-line.md')}\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See :class:`click.Group`."""
        del ctx
        for title, names in _SECTIONS.items():
            rows = [(f"{name:9}", self.commands[name].get_short_help_str(80)) for name in names]
            with formatter.section(title):
                formatter.write_dl(rows)


_SECTIONS = {
    "Start": ("init", "probe", "plan", "run"),
    "Stages, one by one": ("measure", "merge", "recover", "assess"),
    "Look": ("status", "estimates", "density", "report", "compare", "scores", "loadings",
             "export", "verify"),
    "Grow": ("extend", "update"),
    "On a cluster": ("submit", "task"),
    "Tidy": ("clean", "rm"),
}  # fmt: skip


_PAGES = {
    "init": "tutorial.md", "probe": "tutorial.md", "plan": "tutorial.md", "run": "resuming.md",
    "measure": "how-it-works.md", "merge": "memory.md", "recover": "methods.md",
    "assess": "error.md", "status": "resuming.md", "estimates": "error.md",
    "density": "methods.md", "report": "report.md", "compare": "error.md", "scores": "pca.md",
    "loadings": "pca.md", "export": "matrices.md", "verify": "resuming.md",
    "extend": "growing.md", "update": "growing.md", "submit": "slurm.md", "task": "slurm.md",
    "clean": "disk.md", "rm": "object-stores.md",
}  # fmt: skip
"""The page of the documentation on which each verb is told best."""


def _address(page: str) -> str:
    """Returns where a page is: at the address that the project states, or in the repository."""
    from importlib.metadata import PackageNotFoundError, metadata

    with contextlib.suppress(PackageNotFoundError):
        for entry in metadata("skerch_ooc").get_all("Project-URL") or []:
            name, _, url = entry.partition(", ")
            if name == "Documentation":
                return f"{url.rstrip('/')}/{page.removesuffix('.md')}.html"
    return f"docs/{page}"


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skerch-ooc")
def cli() -> None:
    """Eigen- and singular value decompositions of operators too large for memory.

    Example:  skerch-ooc run hessian.toml --run runs/hessian
    """


def verb(example: str, *options: Option) -> Callable[[Callable[..., Any]], click.Command]:
    """Makes a function a verb of these options and arguments, whose help ends with an example."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        declare = cli.command(cls=Verb, epilog=f"\b\nExample:  skerch-ooc {example}")
        return declare(with_options(function, *options))

    return decorate


@contextlib.contextmanager
def operators_print_to_stderr() -> Iterator[None]:
    """Keeps standard output for results: what an operator prints would spoil the JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def complete(planned: Planned, work: Work, shown: ResultOptions) -> None:
    """Does all stages, shows what they led to, and holds it against what was asked for."""
    from skerch_ooc.pipeline.run import run_all
    from skerch_ooc.pipeline.steps import require_quality
    from skerch_ooc.results.assess import require_tolerance
    from skerch_ooc.results.pairs import require_pairs

    with operators_print_to_stderr():
        assessment = run_all(planned, work)
    if assessment is None:
        work.progress.say(STOPPED_IN_GOOD_ORDER)
        return
    show_result(planned.run, "default", assessment, as_json=shown.as_json)
    require_tolerance(planned.run.plan, assessment)
    require_pairs(planned.run, assessment.pairs)
    require_quality(assessment, shown.max_relative_error)


def show_result(run: Run, name: str, assessment: Assessment, *, as_json: bool) -> None:
    """Prints the figures of a result, and what they advise."""
    from skerch_ooc.cli import tables

    show(assessment, lambda found: tables.result_text(run, name, found), as_json=as_json)


def show(found: Any, text_of: Callable[[Any], str], *, as_json: bool) -> None:
    """Prints figures as text, or as JSON."""
    click.echo(json_of(found.as_json()) if as_json else text_of(found))


def json_of(value: Any) -> str:
    """Figures as JSON, in the order of their names."""
    return json.dumps(value, indent=1, sort_keys=True)
