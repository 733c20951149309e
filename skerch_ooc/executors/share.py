"""Share: runs one share of the tasks in this process, as an element of a job array does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.time_budget import Budget
from skerch_ooc.executors.executor import Function, Task
from skerch_ooc.executors.serial import Serial


class Share:
    """Runs the tasks whose number leaves a given remainder, in this process.

    Other processes run the others. Tasks keep their numbers when some of them are done, so that no
    two shares have a task in common.

    Args:
        index: The remainder, from 0.
        of: The number of shares, by which task numbers are divided.
        budget: When to stop; by default when all is done.

    Raises:
        UsageError: If there is no share of this index.
    """

    workers = 1
    remote = False
    threads: int | None = None

    def __init__(self, index: int, of: int, budget: Budget | None = None) -> None:
        if of < 1:
            raise UsageError(f"--of {of}: must be at least 1")
        if not 0 <= index < of:
            raise UsageError(f"--index {index} --of {of}: the index must be from 0 to {of - 1}")
        self._index, self._of = index, of
        self._budget = budget or Budget()
        self._serial = Serial()

    @property
    def share(self) -> tuple[int, int]:
        """See :class:`.Executor`."""
        return self._index, self._of

    def session(self, threads: int) -> AbstractContextManager[None]:
        """See :class:`.Executor`."""
        return self._serial.session(threads)

    def chosen(self, tasks: Iterable[Task]) -> list[Task]:
        """See :class:`.Executor`: those of this share."""
        return [task for task in tasks if self._has(task)]

    def _has(self, task: Any) -> bool:
        return bool(task.number % self._of == self._index)

    def run(self, function: Function[Task], tasks: Iterable[Task], threads: int) -> Iterator[Any]:
        """See :class:`.Executor`."""

        def timed(task: Task) -> Callable[[], Any]:
            start = time.monotonic()
            finish = function(task)
            self._budget.took(time.monotonic() - start)
            return finish

        mine = self._budget.while_unspent(filter(self._has, tasks))
        return self._serial.run(timed, mine, threads)
