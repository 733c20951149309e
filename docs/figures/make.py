"""Makes the pictures of the documentation: plain SVG, readable on light and on dark pages.

    python docs/figures/make.py

Colours come from a style of each file that follows the reader's setting, so that it works within
``<img>``, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

STYLE = """
.page { fill: #ffffff; }
text { font: 15px system-ui, sans-serif; fill: #1f2933; }
.small { font-size: 13px; fill: #52606d; }
.strong { font-weight: 600; }
.mono { font-family: ui-monospace, monospace; font-size: 13px; }
.box { fill: #ffffff; stroke: #52606d; stroke-width: 1.5; }
.data { fill: #e3f0fb; stroke: #1f6fb2; stroke-width: 1.5; }
.work { fill: #fdeccf; stroke: #b8700f; stroke-width: 1.5; }
.mark { fill: #f7c469; stroke: #b8700f; stroke-width: 1.5; }
.none { fill: none; stroke: #52606d; stroke-width: 1.5; stroke-dasharray: 5 4; }
.line { fill: none; stroke: #52606d; stroke-width: 1.5; }
.head { fill: #52606d; }
@media (prefers-color-scheme: dark) {
  .page { fill: #131416; }
  text { fill: #e4e7eb; }
  .small { fill: #b3bcc7; }
  .box { fill: #20262d; stroke: #9aa5b1; }
  .data { fill: #15324a; stroke: #62a8e0; }
  .work { fill: #46310f; stroke: #e0a03e; }
  .mark { fill: #8a5f16; stroke: #e0a03e; }
  .none, .line { stroke: #9aa5b1; }
  .head { fill: #9aa5b1; }
}
"""


class Picture:
    """An SVG in the making.

    Args:
        width: In units of a pixel.
        height: The same.
        title: What it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>',
        ]
        # A page that is dark where the reader's setting is light must not hide dark text.
        self.rectangle(0, 0, width, height, "page", 8)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "middle") -> None:
        """A line of text."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{style}">{text}</text>'
        )

    def rectangle(
        self, x: float, y: float, width: float, height: float, style: str, radius: float = 0
    ) -> None:
        """A rectangle of a style."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'class="{style}"/>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: Sequence[str], style: str
    ) -> None:
        """A rounded box with centred lines, the first of them strong."""
        self.rectangle(x, y, width, height, style, 6)
        first = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            kind = "strong" if number == 0 else "small"
            self.text(x + width / 2, first + 18 * number, line, kind)

    def arrow(self, *points: tuple[float, float], head: bool = True) -> None:
        """A line through some points, with a head at the last."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if head else ""
        self._parts.append(f'<path class="line" d="M{path}"{end}/>')

    def write(self, name: str) -> None:
        """Writes it beside this script."""
        (FOLDER / name).write_text("\n".join([*self._parts, "</svg>"]) + "\n", "utf-8")


def way_of_the_data() -> None:
    """Stages above, files below, and what each stage reads."""
    picture = Picture(900, 300, "The way of the data: five stages, and the files between them")
    stages = [
        ("plan", "probe: 18 or", "34 products"),
        ("measure", "all products,", "in parallel"),
        ("merge", "one stream", "over the sketch"),
        ("recover", "small matrices,", "one more stream"),
        ("assess", "no stream:", "figures only"),
    ]
    files = [
        ("plan.json", "plan.d/"),
        ("shards/*.h5", "A times noise"),
        ("sketch/*.h5", "sums, m x m"),
        ("results/*.h5", "values, vectors"),
        ("assessment.json", "the error"),
    ]
    for number, (stage, file) in enumerate(zip(stages, files, strict=True)):
        x = 20 + 175 * number
        picture.box(x, 20, 150, 78, stage, "work")
        picture.box(x, 150, 150, 60, file, "data")
        picture.arrow((x + 75, 98), (x + 75, 148))
        if number < 4:
            picture.arrow((x + 150, 180), (x + 162, 180), (x + 162, 59), (x + 173, 59))
    picture.arrow((270, 210), (270, 250), (620, 250), (620, 212))
    picture.text(445, 270, "recover reads the shards once more: U = Y T", "small")
    picture.write("way.svg")


def tiles_of_a_sketch() -> None:
    """A sketch cut into column shards and row tiles, and what one tile gives."""
    picture = Picture(900, 360, "Column shards, row tiles, and the sums of one tile")
    left, top, tile = 150, 60, 40
    widths = [70, 70, 70, 40, 50]
    x = left
    for number, width in enumerate(widths):
        picture.rectangle(x, top, width - 4, 6 * tile - 14, "data")
        picture.text(x + width / 2 - 2, top - 10, f"{number + 1}", "small")
        x += width
    picture.text(left + 148, 30, "column shards: what a task measured", "strong")
    for number in range(6):
        height = tile if number < 5 else tile - 14
        y = top + tile * number
        if number == 2:
            picture.rectangle(left - 6, y, 308, height, "none")
        elif number:
            picture.arrow((left - 6, y), (left + 302, y), head=False)
        rows = "4096 rows" if number < 5 else "the rest"
        picture.text(left - 14, y + height / 2 + 5, f"tile {number}: {rows}", "small", "end")
    picture.text(left + 123, 325, "Y = A Omega", "mono")
    picture.text(left + 270, 325, "T = A G", "mono")
    middle = top + 2.5 * tile
    picture.arrow((left + 304, middle), (562, middle))
    picture.text(506, middle - 12, "one at a time", "small")
    picture.rectangle(567, top + 8, 120, 40, "data", 4)
    picture.text(627, top + 33, "Z: rows of [Y T]", "small")
    picture.rectangle(567, top + 72, 120, 40, "none", 4)
    picture.text(627, top + 97, "N: drawn anew", "small")
    picture.text(627, top + 145, "N = rows of [Omega G],", "small")
    picture.text(627, top + 163, "never stored", "small")
    picture.arrow((689, top + 28), (765, top + 28))
    picture.arrow((689, top + 92), (765, top + 92))
    picture.rectangle(770, top, 56, 56, "work")
    picture.text(798, top + 33, "ZᴴZ", "strong")
    picture.rectangle(770, top + 64, 56, 56, "work")
    picture.text(798, top + 97, "NᴴZ", "strong")
    picture.text(798, top + 145, "small: as many rows", "small")
    picture.text(798, top + 163, "and columns as the", "small")
    picture.text(798, top + 181, "sketch has columns", "small")
    picture.write("tiles.svg")


def tree_of_sums() -> None:
    """The fixed tree over tile numbers, and an aligned run of it that is a task."""
    picture = Picture(900, 330, "The tree in which the sums of tiles are added")
    left, gap, leaves = 60, 78, 11
    levels: list[dict[int, float]] = [{i: left + gap * i for i in range(leaves)}]
    y = [270 - 58 * level for level in range(5)]
    picture.rectangle(left - 30, y[2] - 30, 3 * gap + 60, y[0] - y[2] + 64, "none", 8)
    picture.rectangle(left + 4 * gap - 30, y[2] - 30, 3 * gap + 60, y[0] - y[2] + 64, "none", 8)
    picture.rectangle(left + 8 * gap - 30, y[2] - 30, 2 * gap + 60, y[0] - y[2] + 64, "none", 8)
    while len(levels[-1]) > 1:
        level, below = len(levels), levels[-1]
        above: dict[int, float] = {}
        for node in range((len(below) + 1) // 2):
            children = [below[i] for i in (2 * node, 2 * node + 1) if i in below]
            above[node] = sum(children) / len(children)
            for child in children:
                picture.arrow((child, y[level - 1]), (above[node], y[level]), head=False)
        levels.append(above)
    for level, nodes in enumerate(levels):
        for node, x in nodes.items():
            alone = level > 0 and 2 * node + 1 not in levels[level - 1]
            style = "data" if level == 0 else "box" if alone else "mark"
            picture.rectangle(x - 15, y[level] - 13, 30, 26, style, 13 if level else 4)
            picture.text(
                x, y[level] + 5, str(node) if level == 0 else "" if alone else "+", "small"
            )
    picture.text(left + 1.5 * gap, 322, "one task", "small")
    picture.text(left + 5.5 * gap, 322, "another, on another machine", "small")
    picture.text(left + 9 * gap, 322, "a third, killed and done again", "small")
    picture.text(
        left, 30, "Numbers are row tiles; an empty node is passed up as it is.", "small", "start"
    )
    picture.text(left, 50, "The additions are the same, whoever makes them.", "small", "start")
    picture.write("tree.svg")


def publication() -> None:
    """How a file comes into being, and what is there if it is killed on the way."""
    picture = Picture(900, 250, "How a file is published, and what a kill leaves at each moment")
    steps = [
        ("write", "private name"),
        ("reopen", "verify all bytes"),
        ("fsync", "the file"),
        ("link", "public name"),
        ("fsync", "the folder"),
    ]
    for number, step in enumerate(steps):
        x = 20 + 175 * number
        picture.box(x, 30, 150, 60, step, "work" if number < 3 else "data")
        if number < 4:
            picture.arrow((x + 150, 60), (x + 173, 60))
    picture.arrow((20, 130), (542, 130), head=False)
    picture.arrow((558, 130), (870, 130), head=False)
    for x in (20, 542, 558, 870):
        picture.arrow((x, 122), (x, 138), head=False)
    picture.text(281, 160, "killed here: no file, a private leftover", "strong")
    picture.text(281, 182, "the task is done again; clean removes the leftover", "small")
    picture.text(714, 160, "killed here: the file, complete", "strong")
    picture.text(714, 182, "the task is never done again", "small")
    picture.text(
        445,
        225,
        "The link fails where the name exists: of two processes the first one counts.",
        "small",
    )
    picture.write("publication.svg")


def house() -> None:
    """The wings of the package, floor by floor."""
    picture = Picture(900, 440, "The ten wings of the package on seven floors")
    floors = [
        [("cli", "what people type and read")],
        [("pipeline", "what a run is told, how far it is")],
        [("results", "values, vectors, errors, advice, report")],
        [("stages", "measure, merge, recover")],
        [
            ("store", "the files of a run"),
            ("operators", "anything with .shape and @"),
            ("executors", "here, Dask, Slurm"),
        ],
        [("planning", "what follows from the plan"), ("algebra", "arrays in, arrays out")],
        [("base", "tools that know no sketch")],
    ]
    for number, wings in enumerate(floors):
        y, width = 16 + 56 * number, 790 / len(wings)
        picture.text(40, y + 28, str(len(floors) - number), "small")
        for place, wing in enumerate(wings):
            style = "work" if wing[0] == "stages" else "data"
            picture.box(70 + width * place, y, width - 8, 46, wing, style)
    picture.arrow((880, 24), (880, 400))
    picture.text(
        470, 426, "Imports go down only; wings of one floor do not know each other.", "small"
    )
    picture.write("house.svg")


def main() -> None:
    """Makes all pictures."""
    house()
    way_of_the_data()
    tiles_of_a_sketch()
    tree_of_sums()
    publication()


if __name__ == "__main__":
    main()
