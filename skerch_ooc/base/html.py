"""Tables of HTML with which objects show themselves in a notebook."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from html import escape
from typing import TypeVar

Shown = TypeVar("Shown")

_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;white-space:pre-wrap"
_LONGEST = 500


def table(
    title: str, rows: Iterable[tuple[object, ...]], below: str = "", heads: Iterable[str] = ()
) -> str:
    """Makes a small table of figures.

    Args:
        title: What it is of.
        rows: Names, and a figure of each or several; where one is ``None`` the row is left out.
        below: HTML that follows it, such as a chart.
        heads: What is in each column, where that is not plain.
    """
    lines = "".join(
        f'<tr><th scope="row" style="{_CELL}">{text(name)}</th>{_cells("td", figures)}</tr>'
        for name, *figures in rows
        if None not in figures
    )
    above = _cells('th scope="col"', heads)
    head = f"<thead><tr>{above}</tr></thead>" if above else ""
    return (
        f"<div><strong>{text(title)}</strong>"
        f'<table style="border:none;margin:0">{head}<tbody>{lines}</tbody></table>{below}</div>'
    )


def _cells(tag: str, figures: Iterable[object]) -> str:
    return "".join(f'<{tag} style="{_CELL}">{text(one)}</{tag[:2]}>' for one in figures)


def text(value: object) -> str:
    """Escapes a value, cut to a few lines."""
    # A path may hold bytes that are no text, as surrogates that cannot be encoded.
    plain = str(value).encode("utf-8", "backslashreplace").decode()
    return escape(plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}...")


def never_raising(make: Callable[[Shown], str]) -> Callable[[Shown], str]:
    """Makes a method show the message of an error instead of raising it.

    A notebook shows an object after the work on it is done: that must not fail, whatever has become
    of its files.
    """

    @functools.wraps(make)
    def shown(self: Shown) -> str:
        try:
            return make(self)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is shown)
            return table(type(self).__name__, [(type(error).__name__, error)])

    return shown
