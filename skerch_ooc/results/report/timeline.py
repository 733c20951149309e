"""The timeline: which process did what when, with long pauses cut out."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import WIDTH, Axis, across
from skerch_ooc.results.report.figure import RIGHT, Chart
from skerch_ooc.results.report.logs import Logged, WorkSpan, merged_spans
from skerch_ooc.results.report.markup import Markup, element, joined, plain
from skerch_ooc.results.words import format_seconds

MOST_WORKERS = 16
_MOST_PIECES = 1200
_LEFT, _TOP, _ROW, _BAR = 150.0, 40.0, 20.0, 13.0
_LONGEST_NAME = 17
_MIXED = 4.0
"""Where even such gaps are closed, tasks of any kind are drawn as one."""

_PAUSE_SHARE = 0.15
_SHOWN_PAUSE = 0.04
_COLOURS = {
    "right": "blue", "test": "orange", "left": "teal", "inner": "violet", "merge": "grey",
    "basis": "grey", "recover": "rose",
}  # fmt: skip
_LATER_ROUNDS = "teal"


@dataclass(frozen=True)
class Clock:
    """Time at work: moments without the long pauses between spans of work.

    Attributes:
        spans: When anybody was at work, in order, with short pauses.
        starts: Where each of them begins on the clock.
        length: Of all of it, in seconds.
        cut: The pauses that were cut out, in seconds.
    """

    spans: tuple[tuple[float, float], ...]
    starts: tuple[float, ...]
    length: float
    cut: tuple[float, ...]

    @classmethod
    def of(cls, work: list[WorkSpan]) -> Clock:
        """The clock of some work, by its beginning."""
        busy = merged_spans(work)
        total = sum(end - start for start, end in busy) or 1.0
        spans: list[tuple[float, float]] = []
        for start, end in busy:
            if spans and start - spans[-1][1] <= _PAUSE_SHARE * total:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((start, end))
        room = _SHOWN_PAUSE * total
        starts, length = [], 0.0
        for start, end in spans:
            starts.append(length)
            length += end - start + room
        cut = tuple(later[0] - before[1] for before, later in itertools.pairwise(spans))
        return cls(tuple(spans), tuple(starts), max(length - room, 1e-6), cut)

    def at(self, moment: float) -> float:
        """Where a moment of work is."""
        number = max(0, bisect.bisect_right(self.spans, (moment, float("inf"))) - 1)
        return self.starts[number] + moment - self.spans[number][0]


def timeline(logged: Logged) -> Chart | None:
    """Draws who did what when; ``None`` if nothing is known of it."""
    if not logged.work:
        return None
    clock = Clock.of(logged.work)
    workers = list(dict.fromkeys(piece.worker for piece in logged.work))
    shown = {worker: number for number, worker in enumerate(sorted(workers[:MOST_WORKERS]))}
    bottom = _TOP + len(shown) * _ROW + 4
    scale, unit = _unit(clock.length)
    x = Axis(0.0, clock.length / scale, _LEFT, RIGHT)
    pieces = [piece for piece in logged.work if piece.worker in shown]
    parts = [_legend(pieces), *_pauses(clock, x, scale, bottom)]
    parts += [_name(worker, _TOP + number * _ROW) for worker, number in shown.items()]
    parts += _bars(pieces, shown, clock, x, scale)
    pauses = ", pauses cut out" if clock.cut else ""
    parts.append(across(x, bottom, f"{unit} at work{pauses}"))
    caption = "Each bar is a task of a process: point at it to read which columns it measured."
    if clock.cut:
        caption += f" The longest pause that is cut out is {format_seconds(max(clock.cut))}."
    if len(workers) > len(shown):
        caption += f" {numbers.count(len(workers) - len(shown))} further processes are not drawn."
    if logged.more:
        caption += f" {numbers.count(logged.more)} later tasks are not drawn."
    return Chart(
        "timeline", "Who worked when", caption,
        f"{numbers.count(len(logged.work) + logged.more)} pieces of work of "
        f"{numbers.count(len(workers))} process{'es' if len(workers) > 1 else ''} in "
        f"{format_seconds(sum(b - a for a, b in clock.spans))} at work.",
        joined(parts), height=bottom + 46,
    )  # fmt: skip


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def colour_of(piece: WorkSpan) -> str:
    """The colour of what was done."""
    return _COLOURS.get(piece.role, _LATER_ROUNDS)


def _legend(pieces: list[WorkSpan]) -> Markup:
    """What was measured or done, each in its colour."""
    names = {piece.role: colour_of(piece) for piece in pieces}
    parts, x = [], 10.0
    for name in sorted(
        names, key=lambda name: list(_COLOURS).index(name) if name in _COLOURS else 9
    ):
        width = 16 + 7.2 * len(name)
        if x + width > WIDTH:
            break
        parts += [
            element("rect", x=x, y=9.0, width=9, height=9, class_=f"fill-{names[name]}"),
            element("text", name, x=x + 13, y=18.0, class_="strong"),
        ]
        x += width + 10
    return joined(parts)


def _name(worker: tuple[str, int], top: float) -> Markup:
    host, pid = plain(worker[0]), str(worker[1])
    room = max(2, _LONGEST_NAME - len(pid) - 1)
    # Hosts of a cluster differ before the first dot, and mostly at its end.
    first = host if host.replace(".", "").isdigit() else host.partition(".")[0] or host
    short = first if len(first) <= room else f"…{first[1 - room :]}"
    full = element("title", f"{host}, process {pid}")
    return element("text", f"{short} {pid}", full, x=_LEFT - 8, y=top + _BAR - 2, class_="end")


def _pauses(clock: Clock, x: Axis, scale: float, bottom: float) -> list[Markup]:
    """A dotted line in the middle of each pause that was cut out."""
    room = _SHOWN_PAUSE * clock.length
    places = [x.at((start - room / 2) / scale) for start in clock.starts[1:60]]
    return [
        element("line", x1=place, x2=place, y1=_TOP - 6, y2=bottom, class_="dotted")
        for place in places
    ]


def _bars(
    pieces: list[WorkSpan], rows: dict[tuple[str, int], int], clock: Clock, x: Axis, scale: float
) -> list[Markup]:
    """The tasks; those that are too short to be seen are drawn as one with their neighbours."""
    narrow = 1.0
    while True:
        drawn: dict[tuple[str, int], list[tuple[float, float, str, str, int]]] = {}
        for piece in pieces:
            start, end = (x.at(clock.at(moment) / scale) for moment in (piece.start, piece.end))
            bars, colour = drawn.setdefault(piece.worker, []), colour_of(piece)
            last = bars[-1] if bars else None
            short = last and min(end - start, last[1] - last[0]) < narrow
            near = last and short and start - last[1] < narrow
            if last and near and (last[2] == colour or narrow > _MIXED):
                bars[-1] = last[0], max(end, last[1]), last[2], last[3], last[4] + 1
            else:
                said = f"{piece.what}, {format_seconds(piece.end - piece.start)}"
                bars.append((start, max(end, start + 0.75), colour, said, 1))
        if sum(map(len, drawn.values())) <= _MOST_PIECES or narrow > WIDTH:
            break
        narrow *= 2
    return [
        element("rect", element("title", said if count == 1 else f"{count} tasks; first: {said}"),
                x=start, y=_TOP + rows[worker] * _ROW, width=max(end - start - 0.8, 0.4),
                height=_BAR, class_=f"fill-{colour}")
        for worker, bars in drawn.items()
        for start, end, colour, said, count in bars
    ]  # fmt: skip
