"""A chart: what its template draws, as a part of the page and as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from skerch_ooc.results.report.axes import HEIGHT
from skerch_ooc.results.report.render import rendered


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        name: What its file is called; its identifiers on the page begin with it.
        template: What draws it: ``TEMPLATE.svg.jinja``.
        drawn: What the template is given.
        height: In units of which the width has :data:`~skerch_ooc.results.report.axes.WIDTH`.
        empty: What is said where there is nothing to be drawn.
    """

    name: str
    template: str
    drawn: Mapping[str, Any]
    height: float = HEIGHT
    empty: str = ""

    def html(self) -> Markup:
        """Renders the chart as a part of the page, whose style it takes."""
        return Markup(self._rendered(alone=False))

    def file(self) -> bytes:
        """Renders the chart as an SVG file of its own."""
        return self._rendered(alone=True).encode()

    def _rendered(self, *, alone: bool) -> str:
        return rendered(f"{self.template}.svg.jinja", chart=self, alone=alone, **self.drawn)
