"""A figure: what is drawn, what it is called, and what is said of it to who cannot see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skerch_ooc.results.report.axes import WIDTH
from skerch_ooc.results.report.markup import Markup, coordinate, element, joined
from skerch_ooc.results.report.style import standalone_style

LEFT, RIGHT, TOP = 62.0, WIDTH - 16, 34.0
"""Where the axes of most figures are."""

HEIGHT = 290.0
BOTTOM = HEIGHT - 46


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        name: Of its file, and of its identifiers on the page.
        title: What it shows.
        caption: How to read it.
        description: What is seen in it, for who cannot see it.
        drawing: SVG, in units of :data:`~skerch_ooc.results.report.axes.WIDTH` for the whole width.
        height: In the same units.
    """

    name: str
    title: str
    caption: str
    description: str
    drawing: Markup
    height: float = HEIGHT

    def svg(self) -> Markup:
        """As a part of the page, whose style it takes."""
        return self._svg(())

    def file(self) -> bytes:
        """As a file of its own."""
        style = element("style", Markup(standalone_style()))
        size = {"width": WIDTH, "height": self.height}
        svg = self._svg([style], xmlns="http://www.w3.org/2000/svg", **size)
        return f"{svg}\n".encode()

    def _svg(self, style: Iterable[Markup], **more: object) -> Markup:
        title, description = f"{self.name}-title", f"{self.name}-desc"
        return element(
            "svg",
            element("title", self.title, id=title),
            element("desc", self.description, id=description),
            *style,
            self.drawing,
            viewBox=f"0 0 {coordinate(WIDTH)} {coordinate(self.height)}",
            role="img",
            aria_labelledby=f"{title} {description}",
            **more,
        )


def path(points: Iterable[tuple[float, float]], *, closed: bool = False) -> str:
    """The data of a path through points."""
    pairs = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in points)
    return f"M{pairs}{'Z' if closed else ''}"


def key(entries: Sequence[tuple[str, str]]) -> Markup:
    """What the colours of a figure mean, at its upper right."""
    parts = [element("tspan", text, class_=f"label fill-{colour}") for text, colour in entries]
    return element("text", joined(parts, "\u2002"), x=RIGHT, y=18.0, class_="end")


def nothing_to_draw(why: str) -> Markup:
    """What stands where there is nothing to be seen."""
    return element("text", why, x=WIDTH / 2, y=HEIGHT / 2, class_="middle")


def thinned(length: int, most: int) -> Sequence[int]:
    """At most so many indices of a sequence: the first third of them one by one, then in steps."""
    if length <= most:
        return range(length)
    head = most // 3
    rest = most - head
    return [*range(head), *(head + (length - 1 - head) * i // (rest - 1) for i in range(rest))]
