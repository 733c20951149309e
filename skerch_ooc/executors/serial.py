"""The reference executor: this process, one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from skerch_ooc.executors.executor import Task


class Serial:
    """Runs tasks in this process, one at a time.

    While a task computes, the one before it is being finished (written out) in a second thread. It
    is the default everywhere, and the reference: every other executor gives the same bits, with
    equal threads.
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
                if before is not None:
                    yield before.result()
                before = finisher.submit(finish)
            if before is not None:
                yield before.result()
