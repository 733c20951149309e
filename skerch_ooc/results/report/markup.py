"""Markup of pages and figures: whatever is not marked as markup is escaped, wherever it stands."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What XML forbids, what cannot be encoded, and what would turn the text around it."""

_VOID = {"meta", "br"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        return Markup(str(self) + escaped(other))


NOTHING = Markup("")


def plain(text: object, longest: int | None = None) -> str:
    """A text that can be shown: nothing invisible in it, and not longer than that."""
    shown = _UNSHOWN.sub("\ufffd", str(text))
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 1]}…"


def escaped(content: object) -> Markup:
    """Markup as it is; anything else as text."""
    return content if isinstance(content, Markup) else Markup(html.escape(plain(content)))


def joined(contents: Iterable[object], by: str = "") -> Markup:
    """Several contents as one."""
    return Markup(by.join(map(escaped, contents)))


def element(name: str, /, *contents: object, **attributes: object) -> Markup:
    """An element of HTML or SVG.

    Args:
        name: Of the element.
        contents: Markup, or text, which is escaped.
        attributes: ``class_`` is the class, and other underscores are hyphens; a number is rounded
            to what can be seen, and ``None`` is left out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{joined(contents)}</{name}>")


def _attribute(value: object) -> str:
    return coordinate(value) if isinstance(value, float) else escaped(str(value))


def coordinate(value: float) -> str:
    """A length in a figure, to a tenth of its unit."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
