"""Time budget of a process: when to stop starting tasks, by a limit, a Slurm job or a signal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Task = TypeVar("Task")


WALLTIME_RESERVE = 30.0
"""Seconds before the end of a Slurm job that are kept free, so that the process can end itself."""


def walltime_left(environment: Mapping[str, str]) -> float | None:
    """Returns the seconds that a process in a Slurm job may still work.

    Args:
        environment: Environment variables; ``SLURM_JOB_END_TIME`` is in seconds since 1970.

    Returns:
        The seconds, below 0 if the time is over; ``None`` where Slurm states no end.
    """
    end = environment.get("SLURM_JOB_END_TIME", "")
    return float(end) - WALLTIME_RESERVE - time.time() if end.isdigit() else None


class Budget:
    """Lets a task start only while it will probably end within a time limit.

    Args:
        seconds: Time from now; ``None`` for no limit.

    Attributes:
        active: Whether tasks are being handed out now, so that :meth:`stop` has an effect.
        stopped: Whether a task was left unstarted because the budget was spent.
    """

    def __init__(self, seconds: float | None = None) -> None:
        # A monotonic clock: a host whose time is set meanwhile must not end or extend the budget.
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0
        self._asked = False
        self.active = False
        self.stopped = False

    def stop(self) -> None:
        """Asks that no further task starts."""
        self._asked = True

    def took(self, seconds: float) -> None:
        """Notes how long a task took; the next one is expected to take the longest so far."""
        self._longest = max(self._longest, seconds)

    @property
    def asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self._asked

    @property
    def spent(self) -> bool:
        """Whether no further task should start."""
        late = self._deadline is not None and time.monotonic() + self._longest > self._deadline
        return self._asked or late

    def while_unspent(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yields the tasks one by one until the budget is spent."""
        self.active = True
        try:
            for task in tasks:
                if self.spent:
                    self.stopped = True
                    return
                yield task
        finally:
            self.active = False
