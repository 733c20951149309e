"""Renders the templates of the page and its charts; Jinja2 escapes all that is not markup."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from skerch_ooc.base.resources import format_bytes
from skerch_ooc.planning.parts import UNNAMED
from skerch_ooc.planning.plan import described
from skerch_ooc.results import words
from skerch_ooc.results.assess import CONFIDENCE, FACTORS
from skerch_ooc.results.report import axes, numbers
from skerch_ooc.results.report.axes import coordinate, path

UNKNOWN = "not known"
SERIES = ("blue", "orange", "teal", "violet", "rose", "grey")
LIGHT = {
    "page": "#fbfbf9", "paper": "#ffffff", "ink": "#1d2126", "soft": "#59616b", "line": "#c9cdd2",
    "grid": "#eceef0", "blue": "#1f5fa8", "orange": "#a6480a", "teal": "#0c746a",
    "violet": "#6d46a6", "rose": "#a02c5d", "grey": "#5e6671", "wash": "#e4edf7",
}  # fmt: skip
DARK = {
    "page": "#14161a", "paper": "#1a1d22", "ink": "#e8e6e1", "soft": "#a9b0ba", "line": "#454c56",
    "grid": "#2a2e35", "blue": "#82b5f2", "orange": "#f0a25c", "teal": "#5cc4b5",
    "violet": "#bd9ff2", "rose": "#eb8fb4", "grey": "#9aa3ae", "wash": "#22344a",
}  # fmt: skip
"""Each text colour stands out from page, paper and wash by 4.5 or more."""

_FONT = Markup(
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif"
)
_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What XML forbids, what cannot be encoded, and what would change the direction of the text."""


def rendered(template: str, **facts: Any) -> str:
    """Renders a template with facts."""
    return environment().get_template(template).render(facts)


def plain(text: object, longest: int | None = None) -> str:
    """Makes a text safe to show: without invisible characters, and at most ``longest`` long."""
    shown = _UNSHOWN.sub("\ufffd", str(text))
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 1]}…"


@cache
def environment() -> Environment:
    """Makes the Jinja2 environment: where templates are, and what all of them may use."""
    made = Environment(
        loader=PackageLoader("skerch_ooc.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    made.filters.update(
        whole=numbers.whole, value=numbers.value, share=numbers.share, path=path, plain=plain,
        scientific=numbers.scientific,
        probability=numbers.probability, per_cent=numbers.per_cent,
        vector_name=lambda number: f"vector {number + 1}", bytes=_or_unknown(format_bytes),
        seconds=_or_unknown(words.format_seconds), json=_json,
    )  # fmt: skip
    made.globals.update(
        LEFT=axes.LEFT, RIGHT=axes.RIGHT, TOP=axes.TOP, BOTTOM=axes.BOTTOM, WIDTH=axes.WIDTH,
        HEIGHT=axes.HEIGHT, UNKNOWN=UNKNOWN, CONFIDENCE=CONFIDENCE, FACTORS=FACTORS, FONT=_FONT,
        LIGHT=LIGHT, DARK=DARK, SERIES=SERIES, VARIABLES={name: f"var(--{name})" for name in LIGHT},
        FOCUSED=axes.FOCUSED, words=words, described=described, UNNAMED=UNNAMED,
    )  # fmt: skip
    return made


def _shown(content: object) -> object:
    """Returns the text for the value of an expression in a template, before it is escaped."""
    if isinstance(content, Markup):
        return content
    return coordinate(content) if isinstance(content, float) else plain(content)


def _or_unknown(form: Any) -> Any:
    return lambda number: UNKNOWN if number is None else form(number)


def _json(entries: Any) -> str:
    return json.dumps(dict(entries), sort_keys=True)
