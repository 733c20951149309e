"""Tasks on local worker processes, through a local Dask cluster."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from skerch_ooc.errors import UsageError

Task = TypeVar("Task")

_IN_FLIGHT_PER_WORKER = 2
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _perform(function: Callable[[Task], Callable[[], Any]], task: Task) -> Any:
    return function(task)()


class Dask:
    """Runs tasks on spawned worker processes of this machine.

    Args:
        workers: How many.

    Attributes:
        workers: How many.
    """

    remote = True

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise UsageError(f"workers = {workers}: must be at least 1")
        self.workers = workers

    def run(
        self, function: Callable[[Task], Callable[[], Any]], tasks: Iterable[Task], threads: int
    ) -> Iterator[Any]:
        """See :class:`skerch_ooc.executors.Executor`.

        Each worker is a process with one task at a time, which may use ``threads`` threads. Of the
        tasks, two for each worker are in flight, so that their number costs the scheduler nothing.
        """
        import dask
        from distributed import Client, LocalCluster, as_completed

        environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        settings = {
            # Workers that die are replaced, and their tasks are idempotent: it is no task's fault.
            "distributed.scheduler.allowed-failures": 100,
            "distributed.worker.daemon": False,
            "distributed.nanny.pre-spawn-environ": environment,
        }
        with (
            dask.config.set(settings),
            tempfile.TemporaryDirectory(prefix="skerch-ooc-") as scratch,
            LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=None,
                # Else it asks for the port that every cluster asks for, and warns if it is taken.
                scheduler_kwargs={"dashboard_address": ":0"},
                local_directory=scratch,
                silence_logs=logging.ERROR,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            waiting = iter(tasks)

            def submit(task: Task) -> Any:
                return client.submit(_perform, function, task, pure=False)

            first = [
                submit(task)
                for _, task in zip(
                    range(_IN_FLIGHT_PER_WORKER * self.workers), waiting, strict=False
                )
            ]
            flying = as_completed(first, loop=client.loop)
            for future in flying:
                result = future.result()
                future.release()
                following = next(waiting, None)
                if following is not None:
                    flying.add(submit(following))
                yield result
