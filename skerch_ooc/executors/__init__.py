"""Executors: they run numbered tasks and yield receipts; they know nothing of sketches.

A task is plain data, a function is one that can be imported by name. It computes and returns a
second function, without arguments, that finishes the task and returns its receipt: so an executor
may let the one task be written while the next is computed. The serial executor is the reference, to
which every other must be equal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from skerch_ooc.base.resources import Resources, format_bytes

log = logging.getLogger("skerch_ooc")

Task = TypeVar("Task")


class Executor(Protocol):
    """What runs tasks.

    Attributes:
        workers: How many processes share a machine's cores and memory.
        remote: Whether tasks run in other processes, which know objects by name only.
        threads: Threads that each process is meant to use; ``None`` if that is for this machine's
            cores to decide.
    """

    workers: int
    remote: bool

    @property
    def threads(self) -> int | None:
        """See above."""
        ...

    @property
    def share(self) -> tuple[int, int]:
        """It runs the tasks whose number leaves the first, divided by the second."""
        ...

    def session(self, threads: int) -> AbstractContextManager[None]:
        """Keeps the workers from one :meth:`run` to the next while it is entered."""
        ...

    def chosen(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks that this executor is going to run, of those that are to be done."""
        ...

    def run(
        self, function: Callable[[Task], Callable[[], Any]], tasks: Iterable[Task], threads: int
    ) -> Iterator[Any]:
        """Runs a function over tasks.

        Args:
            function: Called once for each task, and what it returns too, unless a worker dies;
                tasks are idempotent.
            tasks: Plain data; taken one by one, when there is room for another.
            threads: Threads that each worker may use.

        Yields:
            The receipts, in any order.
        """
        ...


def resources_of(
    executor: Executor, memory: int | str | None, threads: int | None, device: str | None = None
) -> Resources:
    """What each process of an executor may use, with what was not said filled in.

    Raises:
        UsageError: If a value is out of range, or a scheduler cannot be reached.
    """
    resources = Resources.of(memory, threads, executor.workers, device)
    if resources.workers > 1:
        each, together = resources.memory, resources.memory * resources.workers
        log.info(
            "memory: at most %s for each of %d workers, %s in all",
            format_bytes(each), resources.workers, format_bytes(together),
        )  # fmt: skip
    return resources if threads else replace(resources, remote_threads=executor.threads)
