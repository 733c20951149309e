"""Dask: runs tasks on the workers of a cluster, started here or running already."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import UsageError
from skerch_ooc.executors.dask_workers import Flight, LostError, Watch, count_workers, explain
from skerch_ooc.executors.executor import Function, Task

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a running scheduler may be without workers."""

_CONNECT_SECONDS = 15.0
_NO_HISTORY = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-length": 1000,
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 600,
    "distributed.diagnostics.computations.max-history": 0,
}
"""Settings that switch off the history that Dask keeps: nobody looks at it, and some of it grows
without bounds. Profiles alone, two for each second, take 100 MB of a worker's memory in a quarter
of an hour; a computation, which lasts as long as the work, records each group of tasks."""

_WAIT_SECONDS = 0.1
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}")
_MAIN_GUARD = 'inside `if __name__ == "__main__":`'


def _address_in(path: Path) -> str:
    """Reads the address in a scheduler file.

    Raises:
        UsageError: If the file is no scheduler file.
    """
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no scheduler file ({type(error).__name__}); give the one that `dask "
            "scheduler --scheduler-file` writes, or an address such as tcp://host:8786"
        ) from error


def _new_client(arguments: dict[str, Any]) -> Any:
    """Makes a client in bounded time: Dask waits for ever if another kind of service listens.

    Raises:
        TimeoutError: If nobody answers as a scheduler does.
    """
    from distributed import Client

    made: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def make() -> None:
        try:
            made.put(Client(**arguments, set_as_default=False, timeout=_CONNECT_SECONDS))
        except Exception as error:  # noqa: BLE001 (raised again by who waits)
            made.put(error)

    _forget_lost_clients()
    threading.Thread(target=make, daemon=True).start()
    try:
        client = made.get(timeout=2 * _CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError("what answers there is no scheduler of Dask") from None
    if isinstance(client, Exception):
        raise client
    return client


def _forget_lost_clients() -> None:
    """Collects clients that nothing refers to any more, before a new one is made.

    Their finalizers take a lock that a new client holds while it starts. If the garbage collector
    ran just then, in the same thread, that thread would wait for itself for ever.
    """
    gc.collect()


def _threads_of_worker(dask_worker: Any) -> int:
    # Runs on the worker; Dask passes the worker to an argument of this very name.
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else int(dask_worker.state.nthreads)


def _answers(client: Any, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Calls a function on each worker; lists what it returns or raises, an error if one dies."""
    answers = client.run(function, *arguments, on_error="return")
    return list(answers.values())


def visible_gpus() -> list[str]:
    """Lists the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    # Counted by device files, as this process need not load torch for anything else.
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


class Dask:
    """Runs tasks on the workers of a Dask cluster.

    Each worker does one task at a time. Few tasks are in flight at once, so that their number costs
    the scheduler nothing. Only paths, numbers and receipts travel; the workers must see the run
    directory, and the file of the factory, under the same paths.

    A task whose worker dies goes to another worker. A task that fails ``tries`` times stops the
    run. Workers that are started here see one GPU each, where there are any.

    Args:
        scheduler: The address of a scheduler (``"tcp://host:8786"``, ``"tls://..."``, or
            ``"host:8786"`` for ``tcp``), its scheduler file, a
            ``distributed.Client``, or a cluster object (also those of ``dask_jobqueue`` and
            ``dask_kubernetes``). By default worker processes are started on this machine.
        workers: The number of worker processes to start here; by default one.
        tries: How often to try a task that fails.

    Attributes:
        workers: The number of processes that share this machine.

    Raises:
        UsageError: If both are given, or ``workers`` or ``tries`` is not positive.
    """

    remote = True
    share = (0, 1)

    def __init__(
        self, scheduler: Any = None, *, workers: int | None = None, tries: int = 1
    ) -> None:
        if scheduler is not None and workers is not None:
            raise UsageError(
                f"workers = {workers}: those of a scheduler that runs were started with it; give "
                "either workers or a scheduler"
            )
        for name, value in (("workers", workers), ("tries", tries)):
            known = value is None and name == "workers"
            if not known and not (isinstance(value, int) and value >= 1):
                raise UsageError(f"{name} = {value!r}: must be an integer of at least 1")
        if getattr(scheduler, "asynchronous", False):
            raise UsageError(f"{scheduler!r} is asynchronous; give one that is not")
        self._tries = tries
        self.workers = 1 if workers is None else workers
        self._scheduler = scheduler
        self._session: contextlib.ExitStack | None = None
        self._client: Any = None

    @property
    def threads(self) -> int | None:
        """Threads that each worker is meant to use; ``None`` if this machine's cores are shared.

        For running workers it is what ``OMP_NUM_THREADS`` says there, else what Dask was told.

        Raises:
            UsageError: If the scheduler cannot be reached.
            IncompleteError: If the scheduler has no workers.
        """
        if self._scheduler is None:
            return None
        with self._reached() as client:
            answers = _answers(client, _threads_of_worker)
            return min((answer for answer in answers if isinstance(answer, int)), default=1)

    @contextlib.contextmanager
    def session(self, threads: int) -> Iterator[None]:  # noqa: ARG002 (the first run has them)
        """See :class:`.Executor`: nothing is started before a task comes."""
        if self._session is not None:
            # Within another session, whose workers serve.
            yield
            return
        with contextlib.ExitStack() as self._session:
            try:
                yield
            finally:
                self._client = self._session = None

    def chosen(self, tasks: Iterable[Task]) -> list[Task]:
        """See :class:`.Executor`: all."""
        return list(tasks)

    def run(
        self, function: Callable[[Task], Callable[[], Any]], tasks: Iterable[Task], threads: int
    ) -> Iterator[Any]:
        """See :class:`.Executor`.

        Raises:
            UsageError: If the scheduler cannot be reached, or workers cannot be started.
            IncompleteError: If the scheduler has no workers, is lost, or workers keep dying of a
                task.
            Exception: What a task raised in its last try.
        """
        if self._session is None:
            with self._connected(threads) as client:
                yield from self._flown(client, function, tasks)
            return
        if self._client is None:
            self._client = self._session.enter_context(self._connected(threads))
        yield from self._flown(self._client, function, tasks)

    def _flown(self, client: Any, function: Function[Task], tasks: Iterable[Task]) -> Iterator[Any]:
        return Flight(client, function, iter(tasks), self._tries, self._patience).receipts()

    @property
    def _patience(self) -> float | None:
        """The seconds to wait for workers; ``None`` for any time."""
        # A cluster object may still start some: from a queue that can take days.
        given = self._scheduler is None or isinstance(self._scheduler, (str, os.PathLike))
        return PATIENCE if given else None

    @contextlib.contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        with self._local(threads) if self._scheduler is None else self._reached() as client:
            _announce(client)
            yield client

    @contextlib.contextmanager
    def _reached(self) -> Iterator[Any]:
        """Yields a client of a scheduler that is running, and has a worker."""
        from distributed import Client

        if isinstance(self._scheduler, Client):
            self._wait_for_worker(self._scheduler)
            yield self._scheduler
            return
        place = self._scheduler
        if isinstance(place, str) and _HOST_AND_PORT.fullmatch(place) and not Path(place).exists():
            place = f"tcp://{place}"
        arguments: dict[str, Any] = {"address": place}
        if isinstance(place, os.PathLike) or (isinstance(place, str) and "://" not in place):
            if not Path(place).is_file():
                raise UsageError(
                    f"there is no scheduler file {place}; give the file that `dask scheduler "
                    "--scheduler-file` writes, or an address such as tcp://host:8786"
                )
            arguments = {"address": _address_in(Path(place))}
        try:
            client = _new_client(arguments)
        except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
            # Missing certificates end in a TypeError, a closed cluster in a RuntimeError.
            raise UsageError(
                f"no scheduler answers at {place} ({error}); start one with `dask scheduler`, or "
                "leave the scheduler out to use this machine. One with TLS needs the certificates "
                "in Dask's own configuration"
            ) from error
        with client:
            self._wait_for_worker(client)
            yield client

    def _wait_for_worker(self, client: Any) -> None:
        watch = Watch(client, self._patience)
        try:
            while not count_workers(client):
                watch.look()
                time.sleep(_WAIT_SECONDS)
            # A worker that cannot read a task closes, and says so only in its own log.
            answers = _answers(client, exec, "import skerch_ooc")
        except (LostError, OSError, RuntimeError, AttributeError) as error:
            raise UsageError(
                f"{client!r} cannot be used any more ({type(error).__name__}: {error}); give one "
                "that is connected"
            ) from error
        for answer in answers:
            if isinstance(answer, Exception):
                explain(answer)

    @contextlib.contextmanager
    def _local(self, threads: int) -> Iterator[Any]:
        """Yields a client of worker processes that are spawned on this machine."""
        import dask
        from distributed import Client, SpecCluster

        _require_main_guard()
        # Linear algebra libraries read these as they are loaded: so before the worker is spawned.
        environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        settings = {
            "distributed.worker.daemon": False,
            "distributed.nanny.pre-spawn-environ": environment,
        } | _NO_HISTORY
        with contextlib.ExitStack() as stack:
            stack.enter_context(dask.config.set(settings))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="skerch-ooc-"))
            scheduler, workers = _specifications(self.workers, scratch)
            _forget_lost_clients()
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
            yield client


def _require_main_guard() -> None:
    """Ends a worker process that is about to start workers itself, by an unguarded script."""
    # A spawned process imports the script that started it.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"skerch_ooc: ooc.Dask must be used {_MAIN_GUARD}")


def _specifications(count: int, scratch: str) -> tuple[dict[str, Any], dict[int, Any]]:
    """Describes the scheduler and the workers of this machine, as Dask wants it.

    They talk over the loopback only, on any free ports.
    """
    from distributed import Nanny, Scheduler
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.security import Security

    common = {"host": "127.0.0.1", "protocol": "tcp://", "security": Security()}
    # The extension "spans" keeps a record of each message with tasks as long as there are tasks.
    extensions = {name: made for name, made in DEFAULT_EXTENSIONS.items() if name != "spans"}
    scheduler = {
        "cls": Scheduler,
        "options": common | {
            "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0",
            "extensions": extensions,
        },
    }  # fmt: skip
    # No limit that Dask enforces: it would kill workers, and each keeps its own promise of memory.
    options = common | {
        "extensions": {},
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
    """Logs where the workers are, and where they can be watched."""
    info = client.scheduler_info(0)
    watched = f"dashboard {client.dashboard_link}"
    if importlib.util.find_spec("bokeh") is None and client.cluster is not None:
        watched = "for its dashboard install bokeh"
    log.info("dask: %d worker(s) of %s; %s", info["n_workers"], info["address"], watched)
