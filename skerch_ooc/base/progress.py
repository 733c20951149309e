"""Progress display of long work: a live bar on a terminal or in a notebook, or lines in a log."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from typing import Any, TextIO

LINE_SECONDS = 30.0
NOTEBOOK_SECONDS = 0.5
_NAME_WIDTH = 8
_BAR_WIDTH = 16
_CLOCK_WIDTH = 7
_LOOK_SECONDS = 1.0
_RATE = 2
"""The rank of the rate among the parts of a description."""
_MOST_OF_TASKS = 0.95
"""Share of the tasks at work that is taken for done by time alone."""

STOPPED_IN_GOOD_ORDER = "stopped in good order; the same command goes on where it stopped"

Advance = Callable[[int], None]


def ignore_progress(_: int) -> None:
    """Shows nothing, where another process shows the progress."""


def _nobody(_: float) -> None:
    """Hears of no share, where nobody shows the progress of a call."""


_HEARS: ContextVar[Callable[[float], None]] = ContextVar("skerch_ooc_hears", default=_nobody)


def note_share(share: float) -> None:
    """Says how much of the call at hand is done, from 0 to 1, to whoever shows it."""
    _HEARS.get()(share)


@contextmanager
def shares_heard(hear: Callable[[float], None]) -> Iterator[None]:
    """Hears the shares that are noted in this thread while the context is entered."""
    token = _HEARS.set(hear)
    try:
        yield
    finally:
        _HEARS.reset(token)


@contextmanager
def one_of_calls(number: int, count: int) -> Iterator[None]:
    """Takes the shares that are noted for those of one of several equal calls."""
    hear = _HEARS.get()
    with shares_heard(lambda share: hear((number + share) / count)):
        yield
    hear((number + 1) / count)


@dataclass(frozen=True)
class Stage:
    """A stage whose progress is shown.

    Attributes:
        name: Its name.
        total: How many units of work it has.
        unit: Name of the units: ``"products"``, ``"tiles"``.
        unit_bytes: Bytes that one unit stands for, about; 0 to show no bytes.
        tasks: How many tasks the units come in, if every task is reported once; 0 otherwise.
        pace: Units per second that are foretold; 0 if nothing is known.
        parallel: How many tasks are at work at once.
    """

    name: str
    total: int
    unit: str
    unit_bytes: float = 0.0
    tasks: int = 0
    pace: float = 0.0
    parallel: int = 1

    @property
    def noun(self) -> str:
        """Name of the units, in the singular if there is only one."""
        return self.unit.removesuffix("s") if self.total == 1 else self.unit

    def said(
        self, done: float, reports: int, seconds: float, width: float = math.inf, *,
        foretold: bool = False,
    ) -> str:  # fmt: skip
        """Describes how far the stage is, for people.

        Args:
            done: Units done; a share of one counts for the rate, and is not shown.
            reports: How often units were reported.
            seconds: Seconds since the stage was entered.
            width: Characters that the text may have; the least important parts are left out.
            foretold: Whether nobody has seen any of it: not one worker may be at work yet.
        """
        parts = self._parts(done, reports, seconds)
        if foretold and done:
            parts = [(0, f"{parts[0][1]} if at the plan's pace"), *parts[1:]]
            # A rate would be taken for one that was measured.
            parts = [part for part in parts if part[0] != _RATE]
        while len(parts) > 1 and len(", ".join(text for _, text in parts)) > width:
            parts.remove(max(parts))
        return ", ".join(text for _, text in parts)

    def _parts(self, done: float, reports: int, seconds: float) -> list[tuple[int, str]]:
        """Returns the parts of the description, each with a rank; the highest rank goes first."""
        parts = [(0, f"{int(done)} of {self.total} {self.noun}")]
        if self.tasks:
            parts.append((3, f"{reports} of {self.tasks} tasks"))
        if self.unit_bytes:
            scale, name = _bytes_unit(self.total * self.unit_bytes)
            amount = self.unit_bytes / scale
            parts.append((4, f"{done * amount:.3g} of {self.total * amount:.3g} {name}"))
        if done and seconds > 0:
            parts.append((_RATE, f"{done / seconds:.3g} {self.noun}/s"))
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


class Meter:
    """How far a stage is, also between two reports, when a task of ten minutes is at work.

    It goes by what this process says of its task, and on from there by time: at the pace so far, or
    at the one that was foretold, but never to the end of the tasks at work. It never goes back.

    Args:
        stage: The stage.
        clock: Tells the seconds.
    """

    def __init__(self, stage: Stage, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._clock = stage, clock
        self._start = self._last = clock()
        self._done = self._reports = 0
        self._computed = self._shown = 0.0

    def __call__(self, count: int) -> None:
        """Counts units that are done, and a report."""
        self._done += count
        self._reports += 1
        self._last = self._clock()

    def computed(self, units: float) -> None:
        """Notes how many units this process has computed, in all, which it has yet to report."""
        if units > max(self._computed, self._done):
            self._computed, self._last = units, self._clock()

    @property
    def seconds(self) -> float:
        """The seconds since the stage was entered."""
        return self._clock() - self._start

    @property
    def far(self) -> float:
        """The units that are done by now, as far as anybody can tell."""
        stage, known = self._stage, max(float(self._done), self._computed)
        at_work = stage.parallel * stage.total / stage.tasks if stage.tasks else 0.0
        most = _MOST_OF_TASKS * min(at_work, stage.total - known)
        further = min(self._pace(known) * (self._clock() - self._last), most)
        self._shown = max(self._shown, known + further)
        return self._shown

    def _pace(self, known: float) -> float:
        spent = self._last - self._start
        return known / spent if known > 0 and spent > 0 else self._stage.pace

    def said(self, width: float = math.inf) -> str:
        """Describes how far the stage is: see :meth:`Stage.said`."""
        unseen = not (self._done or self._computed)
        return self._stage.said(self.far, self._reports, self.seconds, width, foretold=unseen)


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
        self.say(f"{stage.name}: {stage.total} {stage.noun}")
        meter = _MeterOfLines(stage, self._every, self.say)
        with meter.watched():
            yield meter
        self.say(f"{stage.name}: done in {meter.seconds:.1f} s")

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class _MeterOfLines(Meter):
    """A meter that says a line from time to time, when something was done since the last."""

    def __init__(self, stage: Stage, every: float, say: Callable[[str], None]) -> None:
        super().__init__(stage)
        self._every, self._say, self._before = every, say, (0.0, 0)
        self._ended, self._speaking = threading.Event(), threading.Lock()

    def __call__(self, count: int) -> None:
        super().__call__(count)
        self._tell()

    def _tell(self) -> None:
        with self._speaking:
            said, now = self._before[0], self.seconds
            if now - said >= self._every and int(self.far) > self._before[1]:
                self._before = now, int(self.far)
                self._say(f"{self._stage.name}: {self.said()}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks for something to say also while no task reports."""
        watcher = threading.Thread(target=self._watch, name="progress", daemon=True)
        if self._stage.tasks:
            watcher.start()
        try:
            yield
        finally:
            self._ended.set()
            if watcher.is_alive():
                watcher.join()

    def _watch(self) -> None:
        # A thread cannot wait for ever, as somebody may ask who wants no lines between.
        pause = min(max(_LOOK_SECONDS, self._every), threading.TIMEOUT_MAX)
        while not self._ended.wait(pause):
            self._tell()


class Bar(Progress):
    """A live bar on a terminal."""

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """See :class:`Progress`."""
        from rich.console import Console, RenderableType
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        class MovingBar(RichProgress):
            """A bar that moves between reports: it is drawn anew several times a second."""

            def get_renderables(self) -> Iterable[RenderableType]:
                for number in self.task_ids:
                    self.update(number, completed=meter.far, said=meter.said(left))
                return super().get_renderables()

        console, meter = Console(stderr=True), Meter(stage)
        bar = MovingBar(
            TextColumn(f"{stage.name:{_NAME_WIDTH}}"), BarColumn(bar_width=_BAR_WIDTH),
            TimeElapsedColumn(), TextColumn("{task.fields[said]}"), console=console,
        )  # fmt: skip
        # The text gets what the bar leaves of the line: rich squeezes a bar that does not fit to
        # nothing.
        left = console.width - max(len(stage.name), _NAME_WIDTH) - _BAR_WIDTH - _CLOCK_WIDTH - 3
        with bar:
            bar.add_task(stage.name, total=stage.total, said=stage.said(0, 0, 0.0, left))
            yield meter

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, file=sys.stderr, flush=True)


class NotebookLine(Progress):
    """One line below the cell of a notebook, with a bar: the stage at work, in the end the last.

    It is plain HTML, which is replaced a few times a second; widgets need not be installed.

    Args:
        every: Seconds between two pictures of a stage.
    """

    def __init__(self, every: float = NOTEBOOK_SECONDS) -> None:
        self._every = every
        self._cell, self._start = -1, time.monotonic()
        self._handle: Any = None

    @contextmanager
    def entered(self, stage: Stage) -> Iterator[Advance]:
        """See :class:`Progress`."""

        def show(text: str) -> None:
            self._show(text, meter.far / stage.total if stage.total else 1.0)

        meter = _MeterOfLines(stage, self._every, show)
        show(f"{stage.name}: {stage.total} {stage.noun}")
        with meter.watched():
            yield meter
        self._show(f"{stage.name}: done, {time.monotonic() - self._start:.1f} s in all", 1.0)

    def _show(self, text: str, share: float) -> None:
        """Shows a text and a bar, in the place of the last ones of the cell that is run."""
        ipython: Any = sys.modules["IPython"]
        bar = f'<progress value="{share:.3f}" max="1"></progress> {escape(text)}'
        picture = {"text/plain": text, "text/html": bar}
        cell = ipython.get_ipython().execution_count
        if cell == self._cell and self._handle is not None:
            self._handle.update(picture, raw=True)
        else:
            self._cell, self._start = cell, time.monotonic()
            self._handle = ipython.display.display(picture, raw=True, display_id=True)

    def say(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, flush=True)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can replace what it has shown."""
    # It has loaded IPython already: nothing is imported for the question.
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def terminal_progress() -> Progress:
    """Returns what shows progress best where standard error goes.

    A bar on a terminal that can move its cursor; in a notebook one line with a bar; else a line
    when a stage starts and ends, and every 30 seconds between.
    """
    if _in_notebook():
        return NotebookLine()
    able = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return Bar() if able else Lines()
