"""The reference executor: this process, one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Task = TypeVar("Task")


class Serial:
    """Runs tasks in this process, one at a time."""

    workers = 1
    remote = False

    def run(
        self,
        function: Callable[[Task], Any],
        tasks: Iterable[Task],
        threads: int,  # noqa: ARG002 (this process has its threads already)
    ) -> Iterator[Any]:
        """See :class:`skerch_ooc.executors.Executor`."""
        yield from map(function, tasks)
