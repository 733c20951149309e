"""Progress of long work: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_SECONDS = 30.0

Advance = Callable[[int], None]


class Progress:
    """Shows how far a stage has come; this one shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Enters a stage of ``total`` units; yields a function that reports units done."""
        del name, total, unit
        yield lambda _: None

    def say(self, text: str) -> None:
        """Shows a line of text."""


class Lines(Progress):
    """Writes a line when a stage starts and ends, and every 30 seconds between."""

    def __init__(self, stream: TextIO | None = None, every: float = LINE_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._every = every

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """See :class:`Progress`."""
        start = last = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= self._every:
                last = now
                left = (now - start) / done * (total - done) if done else float("nan")
                self.say(f"{name}: {done} of {total} {unit}, {left:.0f} s left")

        self.say(f"{name}: {total} {unit}")
        yield advance
        self.say(f"{name}: done in {time.monotonic() - start:.1f} s")

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class Bar(Progress):
    """A live bar on a terminal."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """See :class:`Progress`."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn(f"{name:8}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, file=sys.stderr, flush=True)


def for_terminal() -> Progress:
    """A bar where standard error is a terminal, lines where it is a file or a pipe."""
    return Bar() if sys.stderr.isatty() else Lines()
