"""Executor: the protocol of all executors, which run numbered tasks and yield their receipts.

A task is plain data, and the function that does it can be imported by name. The function computes,
and returns a second function without arguments that finishes the task and returns its receipt: so
an executor can write one task while it computes the next. The serial executor is the reference;
every other executor gives the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Task = TypeVar("Task")
Function = Callable[[Task], Callable[[], Any]]
"""Does a task, and returns a function that finishes it and returns its receipt."""


class Executor(Protocol):
    """Runs tasks.

    Attributes:
        workers: How many processes share a machine's cores and memory.
        remote: Whether tasks run in other processes, which know objects by name only.
        threads: Threads that each process is meant to use; ``None`` if this machine's cores decide.
    """

    workers: int
    remote: bool

    @property
    def threads(self) -> int | None:
        """See above."""
        ...

    @property
    def share(self) -> tuple[int, int]:
        """A remainder and a divisor; it runs the tasks whose number leaves that remainder."""
        ...

    def session(self, threads: int) -> AbstractContextManager[None]:
        """Keeps the workers from one :meth:`run` to the next while the context is entered."""
        ...

    def chosen(self, tasks: Iterable[Task]) -> list[Task]:
        """Picks the tasks that this executor is going to run out of those that are to be done."""
        ...

    def run(self, function: Function[Task], tasks: Iterable[Task], threads: int) -> Iterator[Any]:
        """Runs a function over tasks.

        Args:
            function: Does a task. It and the function that it returns are called once for each
                task, or again if a worker dies: tasks are idempotent.
            tasks: Plain data; taken one by one, when there is room for another.
            threads: Threads that each worker may use.

        Yields:
            The receipts, in any order.
        """
        ...
