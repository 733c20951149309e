"""Progress of long work: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LINE_SECONDS = 30.0
STOPPED_IN_GOOD_ORDER = "stopped in good order; the same command goes on where it stopped"

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Stage:
    """What a stage consists of.

    Attributes:
        name: What it is called.
        total: Units to be done.
        unit: What they are: ``"products"``, ``"tiles"``.
        unit_bytes: Bytes that one of them stands for, about; 0 if that says nothing.
        tasks: Tasks that they come in, each of which is reported at once; 0 if they are not.
    """

    name: str
    total: int
    unit: str
    unit_bytes: float = 0.0
    tasks: int = 0

    def said(self, done: int, reports: int, seconds: float) -> str:
        """How far it is, for people.

        Args:
            done: Units done.
            reports: How often units were reported.
            seconds: Time since the stage was entered.
        """
        parts = []
        if self.tasks:
            parts.append(f"{reports} of {self.tasks} tasks")
        if self.unit_bytes:
            gigabytes = self.unit_bytes / 1e9
            parts.append(f"{done * gigabytes:.3g} of {self.total * gigabytes:.3g} GB")
        if done and seconds > 0:
            parts.append(f"{done / seconds:.3g} {self.unit}/s")
            parts.append(f"{_clock((self.total - done) * seconds / done)} left")
        return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows how far a stage has come; this one shows nothing."""

    @contextmanager
    def stage(
        self, name: str, total: int, unit: str, unit_bytes: float = 0.0, tasks: int = 0
    ) -> Iterator[Advance]:
        """Enters a stage of ``total`` units; yields a function that reports units done.

        See :class:`Stage`.
        """
        with self.entered(Stage(name, total, unit, unit_bytes, tasks)) as advance:
            yield advance

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """Shows a stage while it is entered."""
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
                more = stage.said(done, reports, now - start)
                self.say(f"{stage.name}: {done} of {stage.total} {stage.unit}, {more}")

        self.say(f"{stage.name}: {stage.total} {stage.unit}")
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
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn(f"{stage.name:8}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(stage.unit),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
        )
        start = time.monotonic()
        done = reports = 0
        with bar:
            task = bar.add_task(stage.name, total=stage.total, said="")

            def advance(count: int) -> None:
                nonlocal done, reports
                done += count
                reports += 1
                said = stage.said(done, reports, time.monotonic() - start)
                bar.update(task, completed=done, said=said)

            yield advance

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, file=sys.stderr, flush=True)


def for_terminal() -> Progress:
    """A bar where standard error is a terminal, lines where it is a file or a pipe."""
    return Bar() if sys.stderr.isatty() else Lines()
