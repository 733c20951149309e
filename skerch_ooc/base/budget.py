"""When to stop in good order: at a time budget, or when somebody asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Task = TypeVar("Task")


WALLTIME_RESERVE = 30.0
"""Seconds before the end of a Slurm job that are left for the process to end in."""


def walltime_left(environment: Mapping[str, str]) -> float | None:
    """Seconds that a process in a Slurm job may work; ``None`` where Slurm does not say.

    ``SLURM_JOB_END_TIME`` is in seconds since 1970.
    """
    end = environment.get("SLURM_JOB_END_TIME", "")
    return float(end) - WALLTIME_RESERVE - time.time() if end.isdigit() else None


class Budget:
    """Lets tasks start as long as they will probably end in time.

    Args:
        seconds: Time from now; ``None`` for no limit.

    Attributes:
        active: Whether tasks are being handed out, so that stopping would be heard.
        stopped: Whether a task was kept from starting.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0
        self._asked = False
        self.active = False
        self.stopped = False

    def stop(self) -> None:
        """Lets no further task start."""
        self._asked = True

    def took(self, seconds: float) -> None:
        """Notes how long a task took: the longest one so far is expected of the next."""
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
        """The tasks, until the budget is spent."""
        self.active = True
        try:
            for task in tasks:
                if self.spent:
                    self.stopped = True
                    return
                yield task
        finally:
            self.active = False
