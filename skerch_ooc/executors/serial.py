"""Serial: the reference executor, which runs one task after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from skerch_ooc.executors.executor import Task


class Serial:
    """Runs tasks in this process, one at a time.

    While a task computes, a second thread finishes (writes) the one before. This executor is the
    default everywhere, and the reference: with equal threads every other gives the same bits.
    """

    workers = 1
    remote = False
    threads: int | None = None
    share = (0, 1)

    def session(self, threads: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """See :class:`.Executor`: there is nothing to keep."""
        return nullcontext()

    def chosen(self, tasks: Iterable[Task]) -> list[Task]:
        """See :class:`.Executor`: all."""
        return list(tasks)

    def run(
        self,
        function: Callable[[Task], Callable[[], Any]],
        tasks: Iterable[Task],
        threads: int,  # noqa: ARG002 (this process has its threads already)
    ) -> Iterator[Any]:
        """See :class:`.Executor`."""
        with ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher:
            before: Future[Any] | None = None
            for task in tasks:
                finish = function(task)
                # Only one waits to be finished, so at most two tasks hold memory.
                if before is not None:
                    yield before.result()
                before = finisher.submit(finish)
            if before is not None:
                yield before.result()
