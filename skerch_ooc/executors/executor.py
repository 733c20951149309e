"""Executor: what every executor has to do: run numbered tasks, and yield their receipts.

A task is plain data, a function is one that can be imported by name. It computes and returns a
second function, without arguments, that finishes the task and returns its receipt: so an executor
may let the one task be written while the next is computed. The serial executor is the reference, to
which every other must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Function = Callable[[Task], Callable[[], Any]]
"""Does a task, and returns what finishes it and returns its receipt."""


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

    def run(self, function: Function[Task], tasks: Iterable[Task], threads: int) -> Iterator[Any]:
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
