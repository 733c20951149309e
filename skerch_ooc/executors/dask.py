"""Tasks on the workers of a Dask cluster: one started here, or any that is running already."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import math
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import skerch_ooc
from skerch_ooc.errors import IncompleteError, OocError, UsageError

Task = TypeVar("Task")

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a running scheduler may take to have its first worker."""

_CONNECT_SECONDS = 15.0
_IN_FLIGHT = 2
_LARGEST_GROUP = 64
_GROUP_SECONDS = 0.05
_MOST_DEATHS = 10
_ASK_SECONDS = 2.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MAIN_GUARD = 'inside `if __name__ == "__main__":`'
_one_at_a_time = threading.Lock()


def _perform(function: Callable[[Task], Callable[[], Any]], tasks: list[Task]) -> list[Any]:
    # Workers that others started may have several threads; our tasks bring their own.
    with _one_at_a_time:
        return [_perform_one(function, task) for task in tasks]


def _perform_one(function: Callable[[Task], Callable[[], Any]], task: Task) -> Any:
    try:
        return function(task)()
    except OocError as error:
        raise type(error)(f"{error} ({task}; {_this_worker()})") from error


def _this_worker() -> str:
    from distributed import get_worker

    try:
        return f"worker {get_worker().address} on {socket.gethostname()}"
    except ValueError:
        return f"process {os.getpid()} on {socket.gethostname()}"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


class Dask:
    """Runs tasks on the workers of a Dask cluster.

    Each worker has one task at a time. Few of the tasks are in flight at once, so that their number
    costs the scheduler nothing. What travels are paths, numbers and receipts; the
    workers must see the run directory, and the file of the factory, under the same paths.

    A task whose worker dies is given to another. One that fails stops the run, after ``tries``.
    Workers that are started here see one GPU each, where there are any.

    Args:
        scheduler: The address of a scheduler (``"tcp://host:8786"``), its scheduler file, a
            ``distributed.Client``, or a cluster object (also those of ``dask_jobqueue`` and
            ``dask_kubernetes``). By default worker processes are started on this machine.
        workers: How many worker processes to start here; by default one.
        tries: How often a task that fails is tried.

    Attributes:
        workers: How many processes share this machine.

    Raises:
        UsageError: If both are given, or ``workers`` or ``tries`` is not positive.
    """

    remote = True

    def __init__(
        self, scheduler: Any = None, *, workers: int | None = None, tries: int = 1
    ) -> None:
        if scheduler is not None and workers is not None:
            raise UsageError(
                f"workers = {workers}: they are started with the scheduler; give the one or the "
                "other"
            )
        if workers is not None and workers < 1:
            raise UsageError(f"workers = {workers}: must be at least 1")
        if tries < 1:
            raise UsageError(f"tries = {tries}: must be at least 1")
        self._tries = tries
        self.workers = 1 if workers is None else workers
        self._scheduler = scheduler
        self._session: contextlib.ExitStack | None = None
        self._client: Any = None

    @contextlib.contextmanager
    def session(self, threads: int) -> Iterator[None]:  # noqa: ARG002 (the first run has them)
        """See :class:`skerch_ooc.executors.Executor`: nothing is started before a task comes."""
        with contextlib.ExitStack() as self._session:
            try:
                yield
            finally:
                self._client = self._session = None

    def run(
        self, function: Callable[[Task], Callable[[], Any]], tasks: Iterable[Task], threads: int
    ) -> Iterator[Any]:
        """See :class:`skerch_ooc.executors.Executor`.

        Raises:
            UsageError: If the scheduler cannot be reached.
            IncompleteError: If it has no workers, is lost, or workers keep dying of a task.
        """
        if self._session is None:
            with self._connected(threads) as client:
                yield from _run_on(client, function, iter(tasks), self._tries)
            return
        if self._client is None:
            self._client = self._session.enter_context(self._connected(threads))
        yield from _run_on(self._client, function, iter(tasks), self._tries)

    @contextlib.contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        from distributed import Client

        if isinstance(self._scheduler, Client):
            yield self._scheduler
        elif self._scheduler is None:
            with self._local(threads) as client:
                yield client
        else:
            with self._reached() as client:
                yield client

    @contextlib.contextmanager
    def _reached(self) -> Iterator[Any]:
        """A client of a scheduler that is running."""
        from distributed import Client

        place = self._scheduler
        arguments: dict[str, Any] = {"address": place}
        if isinstance(place, os.PathLike) or (isinstance(place, str) and "://" not in place):
            if not Path(place).is_file():
                raise UsageError(
                    f"there is no scheduler file {place}; give the file that `dask scheduler "
                    "--scheduler-file` writes, or an address such as tcp://host:8786"
                )
            arguments = {"scheduler_file": str(place)}
        try:
            client = Client(**arguments, set_as_default=False, timeout=_CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"no scheduler answers at {place} ({error}); start one with `dask scheduler`, or "
                "leave the scheduler out to use this machine"
            ) from error
        with client:
            try:
                client.wait_for_workers(1, timeout=PATIENCE)
            except TimeoutError as error:
                raise IncompleteError(
                    f"the scheduler at {place} has no workers after {PATIENCE:.0f} s; start some "
                    "with `dask worker`, then run the same command again"
                ) from error
            _announce(client)
            yield client

    @contextlib.contextmanager
    def _local(self, threads: int) -> Iterator[Any]:
        """A client of spawned processes on this machine."""
        import dask
        from distributed import Client, SpecCluster

        _require_main_guard()
        environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        settings = {
            # Workers that die are replaced, and their tasks are idempotent: it is no task's fault.
            "distributed.scheduler.allowed-failures": 100,
            "distributed.worker.daemon": False,
            "distributed.nanny.pre-spawn-environ": environment,
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(dask.config.set(settings))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="skerch-ooc-"))
            scheduler, workers = _specifications(self.workers, scratch)
            try:
                cluster = stack.enter_context(
                    SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
                )
                client = stack.enter_context(Client(cluster, set_as_default=False))
            except RuntimeError as error:
                raise UsageError(
                    f"worker processes could not be started: {error} A script that uses ooc.Dask "
                    f"must do so {_MAIN_GUARD}, as they import it"
                ) from error
            _announce(client)
            yield client


def _require_main_guard() -> None:
    """Ends a worker process that was about to start workers, as it imports an unguarded script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"skerch_ooc: ooc.Dask must be used {_MAIN_GUARD}")


def _specifications(count: int, scratch: str) -> tuple[dict[str, Any], dict[int, Any]]:
    """The scheduler and the workers of this machine, as Dask wants them described.

    They talk over the loopback only; the ports are any that are free.
    """
    from distributed import Nanny, Scheduler
    from distributed.security import Security

    common = {"host": "127.0.0.1", "protocol": "tcp://", "security": Security()}
    scheduler = {
        "cls": Scheduler,
        "options": common | {"port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0"},
    }
    options = common | {
        "nthreads": 1,
        "memory_limit": 0,
        "dashboard": False,
        "local_directory": scratch,
        "silence_logs": logging.CRITICAL,
    }
    gpus = visible_gpus()
    workers = {}
    for number in range(count):
        one = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        workers[number] = {"cls": Nanny, "options": options | {"env": one}}
    return scheduler, workers


def _announce(client: Any) -> None:
    """Says where the workers are, and where they can be watched."""
    info = client.scheduler_info(0)
    watched = f"dashboard {client.dashboard_link}"
    if importlib.util.find_spec("bokeh") is None and client.cluster is not None:
        watched = "for its dashboard install bokeh"
    log.info("dask: %d worker(s) of %s; %s", info["n_workers"], info["address"], watched)


class _Pace:
    """How many tasks are in flight, and how many travel together.

    Two groups for each worker are in flight: one at work, and one that waits for it. A group is one
    task; where tasks take less time than a word with the scheduler, as many as take a few words.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._begin = time.monotonic()
        self._asked = -math.inf
        self._workers = 1
        self._done = 0

    def took(self, count: int) -> None:
        """Notes that tasks are done."""
        self._done += count

    def groups(self) -> int:
        """How many groups may be in flight; the scheduler is asked now and then."""
        now = time.monotonic()
        if now > self._asked + _ASK_SECONDS:
            # Workers come and go.
            self._workers = max(1, len(self._client.scheduler_info(-1)["workers"]))
            self._asked = now
        return _IN_FLIGHT * self._workers

    def group(self) -> int:
        """How many tasks make a group."""
        rate = self._done / max(1e-3, time.monotonic() - self._begin) / self._workers
        return int(min(_LARGEST_GROUP, max(1.0, rate * _GROUP_SECONDS)))


def _run_on(
    client: Any, function: Callable[[Task], Callable[[], Any]], waiting: Iterator[Task], tries: int
) -> Iterator[Any]:
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    flying = as_completed(loop=client.loop)
    # Of each future its tasks, how many futures before it died with their workers or failed.
    groups: dict[Any, tuple[list[Task], int, int]] = {}
    pace = _Pace(client)

    def submit(group: list[Task], deaths: int = 0, failures: int = 0) -> None:
        future = client.submit(_perform, function, group, pure=False)
        groups[future] = group, deaths, failures
        flying.add(future)

    def fill() -> None:
        for _ in range(pace.groups() - len(groups)):
            group = list(itertools.islice(waiting, pace.group()))
            if not group:
                return
            submit(group)

    try:
        fill()
        while groups:
            future = next(flying)
            group, deaths, failures = groups.pop(future)
            try:
                results = future.result()
            except KilledWorker as error:
                if deaths == _MOST_DEATHS:
                    raise IncompleteError(
                        f"{group[0]} keeps killing its workers ({error}); give them more memory, "
                        "or plan smaller blocks. What was published is untouched"
                    ) from error
                submit(group, deaths + 1, failures)
                continue
            except (CommClosedError, FutureCancelledError):
                raise
            except Exception as error:
                _explain(error)
                if failures + 1 >= tries:
                    raise
                log.warning("try %d of %d failed: %s", failures + 1, tries, error)
                submit(group, deaths, failures + 1)
                continue
            future.release()
            pace.took(len(results))
            fill()
            yield from results
    except (CommClosedError, FutureCancelledError) as error:
        raise IncompleteError(
            f"the scheduler was lost ({error}); what was published is untouched, the same command "
            "goes on"
        ) from error
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(groups))


def _explain(error: Exception) -> None:
    """Says what is wrong with a cluster that cannot even read a task.

    Raises:
        UsageError: If that is so.
    """
    ours = isinstance(error, ImportError) and str(error.name).startswith("skerch_ooc")
    if ours or "deserialization of the task graph" in str(error):
        raise UsageError(
            "the scheduler or a worker cannot import skerch_ooc as it is here "
            f"({type(error).__name__}: {error}); install this version, "
            f"{skerch_ooc.__version__}, for all of them"
        ) from error
