"""Progress display of long work: a live bar on a terminal, or a line every 30 s in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LINE_SECONDS = 30.0
_NAME_WIDTH = 8
_BAR_WIDTH = 16
_CLOCK_WIDTH = 7
STOPPED_IN_GOOD_ORDER = "stopped in good order; the same command goes on where it stopped"

Advance = Callable[[int], None]


def ignore_progress(_: int) -> None:
    """Shows nothing, where another process shows the progress."""


@dataclass(frozen=True)
class Stage:
    """A stage whose progress is shown.

    Attributes:
        name: Its name.
        total: How many units of work it has.
        unit: Name of the units: ``"products"``, ``"tiles"``.
        unit_bytes: Bytes that one unit stands for, about; 0 to show no bytes.
        tasks: How many tasks the units come in, if every task is reported once; 0 otherwise.
    """

    name: str
    total: int
    unit: str
    unit_bytes: float = 0.0
    tasks: int = 0

    @property
    def noun(self) -> str:
        """Name of the units, in the singular if there is only one."""
        return self.unit.removesuffix("s") if self.total == 1 else self.unit

    def said(self, done: int, reports: int, seconds: float, width: float = math.inf) -> str:
        """Describes how far the stage is, for people.

        Args:
            done: Units done.
            reports: How often units were reported.
            seconds: Seconds since the stage was entered.
            width: Characters that the text may have; the least important parts are left out.
        """
        parts = self._parts(done, reports, seconds)
        while len(parts) > 1 and len(", ".join(text for _, text in parts)) > width:
            parts.remove(max(parts))
        return ", ".join(text for _, text in parts)

    def _parts(self, done: int, reports: int, seconds: float) -> list[tuple[int, str]]:
        """Returns the parts of the description, each with a rank; the highest rank goes first."""
        parts = [(0, f"{done} of {self.total} {self.noun}")]
        if self.tasks:
            parts.append((3, f"{reports} of {self.tasks} tasks"))
        if self.unit_bytes:
            scale, name = _bytes_unit(self.total * self.unit_bytes)
            amount = self.unit_bytes / scale
            parts.append((4, f"{done * amount:.3g} of {self.total * amount:.3g} {name}"))
        if done and seconds > 0:
            parts.append((2, f"{done / seconds:.3g} {self.noun}/s"))
        if 0 < done < self.total:
            parts.append((1, f"{_clock((self.total - done) * seconds / done)} left"))
        return parts


def _bytes_unit(size: float) -> tuple[float, str]:
    """Returns the factor and name of the unit in which an amount of bytes has few digits."""
    return next(((s, n) for s, n in ((1e9, "GB"), (1e6, "MB")) if size >= s), (1e3, "kB"))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows how far a stage has come; this base class shows nothing.

    A display of another kind inherits from it and overrides :meth:`entered` and :meth:`say`.
    """

    @contextmanager
    def stage(
        self, name: str, total: int, unit: str, unit_bytes: float = 0.0, tasks: int = 0
    ) -> Iterator[Advance]:
        """Enters a :class:`Stage` of ``total`` units; yields a function that reports units done."""
        with self.entered(Stage(name, total, unit, unit_bytes, tasks)) as advance:
            yield advance

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """Shows a stage while it is entered; yields a function that is called with units done."""
        del stage
        yield lambda _: None

    def say(self, text: str) -> None:
        """Shows a line of text."""


class Lines(Progress):
    """Writes a line when a stage starts and ends, and every 30 seconds between."""

    def __init__(self, stream: TextIO | None = None, every: float = LINE_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._every = every

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """See :class:`Progress`."""
        start = last = time.monotonic()
        done = reports = 0

        def advance(count: int) -> None:
            nonlocal done, reports, last
            done += count
            reports += 1
            now = time.monotonic()
            if now - last >= self._every:
                last = now
                self.say(f"{stage.name}: {stage.said(done, reports, now - start)}")

        self.say(f"{stage.name}: {stage.total} {stage.noun}")
        yield advance
        self.say(f"{stage.name}: done in {time.monotonic() - start:.1f} s")

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class Bar(Progress):
    """A live bar on a terminal."""

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """See :class:`Progress`."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = Console(stderr=True)
        bar = RichProgress(
            TextColumn(f"{stage.name:{_NAME_WIDTH}}"), BarColumn(bar_width=_BAR_WIDTH),
            TimeElapsedColumn(), TextColumn("{task.fields[said]}"), console=console,
        )  # fmt: skip
        # The text gets what the bar leaves of the line: rich squeezes a bar that does not fit to
        # nothing.
        left = console.width - max(len(stage.name), _NAME_WIDTH) - _BAR_WIDTH - _CLOCK_WIDTH - 3
        start = time.monotonic()
        done = reports = 0
        with bar:
            task = bar.add_task(stage.name, total=stage.total, said=stage.said(0, 0, 0.0, left))

            def advance(count: int) -> None:
                nonlocal done, reports
                done += count
                reports += 1
                said = stage.said(done, reports, time.monotonic() - start, left)
                bar.update(task, completed=done, said=said)

            yield advance

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, file=sys.stderr, flush=True)


def terminal_progress() -> Progress:
    """Returns a bar if standard error is a terminal that can move its cursor, else lines."""
    able = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return Bar() if able else Lines()
