"""The directive ``spec-keys``: a table of the keys of a spec, from the dataclasses that read it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from skerch_ooc.base.errors import UsageError
from skerch_ooc.planning.spec import MAX_SEED
from skerch_ooc.planning.values import MAX_SIZE

TITLES = ("key", "value", "default", "meaning")
_POWERS = {MAX_SIZE: "2^48", MAX_SEED: "2^64 - 1"}


class _Nonsense:
    """What no key allows: each check then says what it does allow."""

    def __repr__(self) -> str:
        return "this"


class SpecKeys(SphinxDirective):
    """Argument: ``module.Class``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Makes the table; a row can be linked to by its key."""
        module, _, name = self.arguments[0].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        self.env.note_dependency(inspect.getfile(kind))
        keys = [item for item in dataclasses.fields(kind) if item.metadata.get("check")]
        meanings = described(kind)
        rows = [_row(item, kind.section, meanings[item.name]) for item in keys]
        lines = [_line(TITLES), _line("---" for _ in TITLES), *map(_line, rows)]
        made = self.parse_text_to_nodes("\n".join(lines))
        body = next(node for one in made for node in one.findall(nodes.tbody))
        for row, item in zip(body.children, keys, strict=True):
            row["ids"].append("-".join(filter(None, (kind.section, item.name))))
        return made


def described(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes, by their names."""
    _, _, listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", listed, re.M)
    return {name: " ".join(text.split()) for name, text in found}


def _row(item: dataclasses.Field[Any], section: str, meaning: str) -> tuple[str, ...]:
    key = f"{section}.{item.name}" if section else item.name
    return f"`{key}`", _allowed(item), _default(item), _as_markdown(meaning)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _allowed(item: dataclasses.Field[Any]) -> str:
    """What the key's own check says that it allows."""
    try:
        item.metadata["check"](item.name, _Nonsense())
    except UsageError as error:
        found = str(error).partition("must be ")[2].partition(", not this")[0]
    for number, power in _POWERS.items():
        found = found.replace(str(number), power)
    return re.sub(r"^an? ", "", found)


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default
    if value is dataclasses.MISSING:
        return "none" if item.default_factory is not dict else "empty"
    return "none" if value is None else f"`{json.dumps(value)}`"


def _as_markdown(text: str) -> str:
    """Roles and literals of reStructuredText as MyST writes them."""
    text = re.sub(r":(\w+):`(~?)([\w.]+)`", r"{py:\1}`\2\3`", text)
    return text.replace("``", "`")


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes the directive known."""
    app.add_directive("spec-keys", SpecKeys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
