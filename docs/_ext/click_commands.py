"""The directive ``click-commands``: what the help of each verb says, from click itself."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Rows = list[tuple[str, str]]


class _Recorded(click.HelpFormatter):
    """Takes what commands write into sections of their help, instead of laying it out."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, Rows] = {}

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """See :class:`click.HelpFormatter`."""
        self.sections[name] = []
        yield

    def write_dl(self, rows: Iterable[tuple[str, str]], *_: object, **__: object) -> None:
        """See :class:`click.HelpFormatter`."""
        self.sections[list(self.sections)[-1]] += rows


class ClickCommands(SphinxDirective):
    """Argument: ``module:group``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Makes a heading for each section of the group, and one below it for each verb."""
        module, _, name = self.arguments[0].partition(":")
        found = importlib.import_module(module)
        self.env.note_dependency(inspect.getfile(found))
        group = getattr(found, name)
        context = click.Context(group, info_name="skerch-ooc", **group.context_settings)
        recorded = _Recorded()
        group.format_commands(context, recorded)
        lines = []
        for title, rows in recorded.sections.items():
            lines += [f"## {title}", ""]
            for verb, _ in rows:
                lines += _described(group.commands[verb.strip()], verb.strip(), context)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _described(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """A verb in Markdown."""
    context = click.Context(command, info_name=name, parent=parent)
    recorded = _Recorded()
    command.format_options(context, recorded)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    said = _prose(inspect.cleandoc(command.help or ""))
    lines = [f"### {name}", "", said, "", "```text", usage, "```", ""]
    for rows in filter(None, recorded.sections.values()):
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_prose(_cell(text))} |" for option, text in rows]
    example = (command.epilog or "").replace("\b", "").strip().removeprefix("Example:").strip()
    lines += ["", *(["Example:", "", "```bash", example, "```", ""] if example else [])]
    page = getattr(command, "page", None)
    return [*lines, *([f"More: [{page}]({page})", ""] if page else [])]


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def _prose(text: str) -> str:
    """Words of click as Markdown: what begins with hyphens is code."""
    return re.sub(r"(?<![`\w-])--[\w-]*(?!`)", r"`\g<0>`", text).replace("<-", "&lt;-")


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes the directive known."""
    app.add_directive("click-commands", ClickCommands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
