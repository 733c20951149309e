"""Timeline: the chart of which process did what when, with long pauses cut out."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, replace

from skerch_ooc.results.report.axes import FOCUSED, RIGHT, WIDTH, Axis
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.results.report.logs import Logged, WorkSpan, merged_spans
from skerch_ooc.results.report.render import plain
from skerch_ooc.results.words import format_seconds

MOST_WORKERS = 16
_MOST_PIECES = 1200
_LEFT, _TOP, _ROW, _BAR = 150.0, 40.0, 20.0, 13.0
_LONGEST_NAME = 17
_MIXED = 4.0
"""Once gaps wider than this are closed, tasks of different kinds are drawn as one, too."""

_PAUSE_SHARE = 0.15
_SHOWN_PAUSE = 0.04
_COLOURS = {
    "right": "blue", "test": "orange", "left": "teal", "inner": "violet", "merge": "grey",
    "basis": "grey", "recover": "rose",
}  # fmt: skip
_LATER_ROUNDS = "teal"


@dataclass(frozen=True)
class TaskBar:
    """A bar of the chart: one task, or several too short to be seen apart.

    Attributes:
        start: Left end.
        end: Right end.
        colour: The colour of the first task.
        first: What the first task was.
        tasks: Number of tasks.
    """

    start: float
    end: float
    colour: str
    first: str
    tasks: int = 1

    @property
    def width(self) -> float:
        """The width that is drawn, with a little room before the next bar."""
        return max(self.end - self.start - 0.8, 0.4)

    @property
    def said(self) -> str:
        """What is said of the bar when it is pointed at."""
        return f"{self.tasks} tasks; first: {self.first}" if self.tasks > 1 else self.first


@dataclass(frozen=True)
class Clock:
    """A clock that stands still during long pauses between spans of work.

    Attributes:
        spans: When anybody was at work, in order, with short pauses.
        starts: Where each span begins on the clock, in seconds.
        length: Seconds on the clock from the first to the last span.
        cut: The pauses that were cut out, in seconds.
    """

    spans: tuple[tuple[float, float], ...]
    starts: tuple[float, ...]
    length: float
    cut: tuple[float, ...]

    @classmethod
    def of(cls, work: list[WorkSpan]) -> Clock:
        """Makes the clock of some work, which is in the order of its starts."""
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
        """Returns where a moment of work is on the clock, in seconds."""
        number = max(0, bisect.bisect_right(self.spans, (moment, float("inf"))) - 1)
        return self.starts[number] + moment - self.spans[number][0]


def timeline(logged: Logged) -> Chart | None:
    """Draws who did what when; ``None`` if nothing is known of it."""
    if not logged.work:
        return None
    clock = Clock.of(logged.work)
    workers = list(dict.fromkeys(piece.worker for piece in logged.work))
    rows = {worker: _TOP + number * _ROW
            for number, worker in enumerate(sorted(workers[:MOST_WORKERS]))}  # fmt: skip
    scale, unit = _unit(clock.length)
    x = Axis(0.0, clock.length / scale, _LEFT, RIGHT)
    pieces = [piece for piece in logged.work if piece.worker in rows]
    bottom = _TOP + len(rows) * _ROW + 4
    bars = [(rows[worker], bar, _short_name(*worker))
            for worker, of_worker in _bars(pieces, clock, x, scale).items()
            for bar in of_worker]  # fmt: skip
    # By keyboard nobody goes through all.
    longest = sorted(bars, key=lambda one: -one[1].width)[:FOCUSED]
    drawn = {
        "x": x, "unit": unit, "bottom": bottom, "top": _TOP, "height": _BAR,
        "legend": _legend(pieces), "pauses": _pauses(clock, x, scale),
        "names": [(_short_name(*worker), *worker, top) for worker, top in rows.items()],
        "bars": [(top, bar) for top, bar, _ in bars], "longest": sorted(longest, key=_place),
        "longest_pause": max(clock.cut, default=None),
        "workers": len(workers), "hidden": len(workers) - len(rows),
        "tasks": len(logged.work) + logged.more, "more": logged.more,
        "busy": sum(end - start for start, end in clock.spans),
    }  # fmt: skip
    return Chart("timeline", "timeline", drawn, height=bottom + 46)


def _place(one: tuple[float, TaskBar, str]) -> tuple[float, float]:
    return one[0], one[1].start


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _colour(piece: WorkSpan) -> str:
    return _COLOURS.get(piece.role, _LATER_ROUNDS)


def _legend(pieces: list[WorkSpan]) -> list[tuple[float, str, str]]:
    """Lists place, name and colour of the entries of the legend, as far as there is room."""
    order = [*_COLOURS]
    names = {piece.role: _colour(piece) for piece in pieces}
    entries, x = [], 10.0
    for name in sorted(names, key=lambda name: order.index(name) if name in order else 9):
        width = 16 + 7.2 * len(name)
        if x + width > WIDTH:
            break
        entries.append((x, name, names[name]))
        x += width + 10
    return entries


def _short_name(host: str, pid: int) -> str:
    """Shortens the name of a process to the room that there is."""
    host, room = plain(host), max(2, _LONGEST_NAME - len(str(pid)) - 1)
    # The hosts of a cluster differ before the first dot, and there mostly at the end.
    first = host if host.replace(".", "").isdigit() else host.partition(".")[0] or host
    return f"{first if len(first) <= room else f'…{first[1 - room :]}'} {pid}"


def _pauses(clock: Clock, x: Axis, scale: float) -> list[float]:
    """Lists the places of the middles of the pauses that were cut out."""
    room = _SHOWN_PAUSE * clock.length
    return [x.at((start - room / 2) / scale) for start in clock.starts[1:60]]


def _bars(
    pieces: list[WorkSpan], clock: Clock, x: Axis, scale: float
) -> dict[tuple[str, int], list[TaskBar]]:
    """Draws the tasks of each process; the more there are, the more are drawn as one."""
    narrow = 1.0
    while True:
        drawn: dict[tuple[str, int], list[TaskBar]] = {}
        for piece in pieces:
            start, end = (x.at(clock.at(moment) / scale) for moment in (piece.start, piece.end))
            bars, colour = drawn.setdefault(piece.worker, []), _colour(piece)
            last = bars[-1] if bars else None
            short = last and min(end - start, last.end - last.start) < narrow
            near = last and short and start - last.end < narrow
            if last and near and (last.colour == colour or narrow > _MIXED):
                bars[-1] = replace(last, end=max(end, last.end), tasks=last.tasks + 1)
            else:
                said = f"{piece.what}, {format_seconds(piece.end - piece.start)}"
                bars.append(TaskBar(start, max(end, start + 0.75), colour, said))
        if sum(map(len, drawn.values())) <= _MOST_PIECES or narrow > WIDTH:
            return drawn
        narrow *= 2
