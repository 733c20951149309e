"""Tasks on the workers of a Dask cluster: one started here, or any that is running already."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import json
import logging
import math
import multiprocessing
import os
import queue
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from skerch_ooc.base.errors import IncompleteError, OocError, UsageError
from skerch_ooc.base.version import __version__

Task = TypeVar("Task")

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a running scheduler may be without workers."""

_CONNECT_SECONDS = 15.0
_IN_FLIGHT = 2
_NO_HISTORY = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-length": 1000,
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 600,
    "distributed.diagnostics.computations.max-history": 0,
}
"""Nobody looks at the history of processes that end with us, and some of it has no bounds. Profiles
alone, of which two are kept for each second, take 100 MB of a worker's memory in a quarter of an
hour; a computation keeps a record of each group of tasks, and is one while work goes on."""

_MOST_KEYS = 1000
_LARGEST_GROUP = 64
_GROUP_SECONDS = 0.05
_WORD_SECONDS = 1e-3
_MOST_DEATHS = 3
_ASK_SECONDS = 2.0
_WAIT_SECONDS = 0.1
_QUIET_SECONDS = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}")
_MAIN_GUARD = 'inside `if __name__ == "__main__":`'
_one_at_a_time = threading.Lock()


def _perform(
    function: Callable[[Task], Callable[[], Any]], tasks: list[Task]
) -> tuple[list[Any], float]:
    """The receipts of tasks, and the seconds that they took."""
    _forget_keys()
    # Workers that others started may have several threads; our tasks bring their own.
    with _one_at_a_time:
        start = time.perf_counter()
        receipts = [_perform_one(function, task) for task in tasks]
        return receipts, time.perf_counter() - start


def _forget_keys() -> None:
    """Has Dask forget the keys of tasks that are long done.

    It remembers the last 100,000 in each process, with what they begin with: some 30 MB, for
    nothing, as no key of ours comes twice.
    """
    from dask.utils import key_split

    kept = getattr(key_split, "cache_info", None)
    if kept is not None and kept().currsize > _MOST_KEYS:
        key_split.cache_clear()


def _perform_one(function: Callable[[Task], Callable[[], Any]], task: Task) -> Any:
    try:
        return function(task)()
    except OocError as error:
        raise type(error)(f"{error} ({task}; {_this_worker()})") from error
    except (SystemExit, KeyboardInterrupt) as error:
        # These would end the worker, and the next one, and so on.
        raise UsageError(
            f"the operator ended its process: {error!r} ({task}; {_this_worker()}); let it raise "
            "another exception instead"
        ) from error


def _this_worker() -> str:
    from distributed import get_worker

    try:
        return f"worker {get_worker().address} on {socket.gethostname()}"
    except ValueError:
        return f"process {os.getpid()} on {socket.gethostname()}"


def _address_in(path: Path) -> str:
    """The address in a scheduler file.

    Raises:
        UsageError: If it is none.
    """
    try:
        return str(json.loads(path.read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no scheduler file ({type(error).__name__}); give the one that `dask "
            "scheduler --scheduler-file` writes, or an address such as tcp://host:8786"
        ) from error


def _new_client(arguments: dict[str, Any]) -> Any:
    """A client, in bounded time: Dask waits for ever for the first word of another service.

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
    """Lets clients that nobody refers to any more come to their end now.

    When it is reached they take a lock that a new client holds while it starts. Should the garbage
    collector find them just then, in the same thread, that thread would wait for itself for ever.
    """
    gc.collect()


def _threads_of_worker(dask_worker: Any) -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else int(dask_worker.state.nthreads)


def _answers(client: Any, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns, or raises, on each worker; of those that die meanwhile, an error."""
    answers = client.run(function, *arguments, on_error="return")
    return list(answers.values())


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
        scheduler: The address of a scheduler (``"tcp://host:8786"``, ``"tls://..."``, or
            ``"host:8786"`` for ``tcp``), its scheduler file, a
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
    share = (0, 1)

    def __init__(
        self, scheduler: Any = None, *, workers: int | None = None, tries: int = 1
    ) -> None:
        if scheduler is not None and workers is not None:
            raise UsageError(
                f"workers = {workers}: those of a scheduler that runs were started with it; give "
                "either "
                "workers or a scheduler"
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

        For workers that are running: what ``OMP_NUM_THREADS`` says there, else what Dask was told.

        Raises:
            UsageError: If the scheduler cannot be reached.
            IncompleteError: If it has no workers.
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
            # Inside of another one.
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
            UsageError: If the scheduler cannot be reached.
            IncompleteError: If it has no workers, is lost, or workers keep dying of a task.
        """
        if self._session is None:
            with self._connected(threads) as client:
                yield from self._run_on(client, function, tasks)
            return
        if self._client is None:
            self._client = self._session.enter_context(self._connected(threads))
        yield from self._run_on(self._client, function, tasks)

    def _run_on(
        self, client: Any, function: Callable[[Task], Callable[[], Any]], tasks: Iterable[Task]
    ) -> Iterator[Any]:
        yield from _run_on(client, function, iter(tasks), self._tries, self._patience)

    @property
    def _patience(self) -> float | None:
        """Seconds to wait for workers: any time where an object was given, which may bring some."""
        given = self._scheduler is None or isinstance(self._scheduler, (str, os.PathLike))
        return PATIENCE if given else None

    @contextlib.contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        with self._local(threads) if self._scheduler is None else self._reached() as client:
            _announce(client)
            yield client

    @contextlib.contextmanager
    def _reached(self) -> Iterator[Any]:
        """A client of a scheduler that is running, and has a worker."""
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
            # A TypeError is what lacking certificates end in, a RuntimeError a closed cluster.
            raise UsageError(
                f"no scheduler answers at {place} ({error}); start one with `dask scheduler`, or "
                "leave the scheduler out to use this machine. One with TLS needs the certificates "
                "in Dask's own configuration"
            ) from error
        with client:
            self._wait_for_worker(client)
            yield client

    def _wait_for_worker(self, client: Any) -> None:
        watch = _Watch(client, self._patience)
        try:
            while not _count_workers(client):
                watch.look()
                time.sleep(_WAIT_SECONDS)
            # A worker that cannot read a task closes, and says so only in its own log.
            answers = _answers(client, exec, "import skerch_ooc")
        except (_LostError, OSError, RuntimeError, AttributeError) as error:
            raise UsageError(
                f"{client!r} cannot be used any more ({type(error).__name__}: {error}); give one "
                "that is connected"
            ) from error
        for answer in answers:
            if isinstance(answer, Exception):
                _explain(answer)

    @contextlib.contextmanager
    def _local(self, threads: int) -> Iterator[Any]:
        """A client of spawned processes on this machine."""
        import dask
        from distributed import Client, SpecCluster

        _require_main_guard()
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
    """Ends a worker process that was about to start workers, as it imports an unguarded script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"skerch_ooc: ooc.Dask must be used {_MAIN_GUARD}")


def _specifications(count: int, scratch: str) -> tuple[dict[str, Any], dict[int, Any]]:
    """The scheduler and the workers of this machine, as Dask wants them described.

    They talk over the loopback only; the ports are any that are free.
    """
    from distributed import Nanny, Scheduler
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.security import Security

    common = {"host": "127.0.0.1", "protocol": "tcp://", "security": Security()}
    # Spans keep a line for each message with tasks, for as long as there are tasks.
    extensions = {name: made for name, made in DEFAULT_EXTENSIONS.items() if name != "spans"}
    scheduler = {
        "cls": Scheduler,
        "options": common | {
            "port": 0, "dashboard": True, "dashboard_address": "127.0.0.1:0",
            "extensions": extensions,
        },
    }  # fmt: skip
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
    """Says where the workers are, and where they can be watched."""
    info = client.scheduler_info(0)
    watched = f"dashboard {client.dashboard_link}"
    if importlib.util.find_spec("bokeh") is None and client.cluster is not None:
        watched = "for its dashboard install bokeh"
    log.info("dask: %d worker(s) of %s; %s", info["n_workers"], info["address"], watched)


class _Pace:
    """How many tasks are in flight, and how many travel together.

    Two groups for each worker are in flight: one at work, and one that waits for it. A group is one
    task; where tasks take less time than words with the scheduler, as many as are worth them: the
    more workers there are, the longer each has to wait for its turn to speak.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._asked = -math.inf
        self._workers = 1
        self._done = 0
        self._seconds = 0.0

    def took(self, count: int, seconds: float) -> None:
        """Notes that tasks are done, and how long a worker was busy with them."""
        self._done += count
        self._seconds += seconds

    def groups(self) -> int:
        """How many groups may be in flight; the scheduler is asked now and then."""
        now = time.monotonic()
        if now > self._asked + _ASK_SECONDS:
            # Workers come and go.
            self._workers = max(1, _count_workers(self._client))
            self._asked = now
        return _IN_FLIGHT * self._workers

    def group(self) -> int:
        """How many tasks make a group."""
        worth = max(_GROUP_SECONDS, _IN_FLIGHT * _WORD_SECONDS * self._workers)
        mean = self._seconds / self._done if self._done else math.inf
        return int(min(_LARGEST_GROUP, max(1.0, worth / max(mean, 1e-9))))


class _LostError(Exception):
    """The scheduler does not answer."""


def _count_workers(client: Any) -> int:
    try:
        return int(client.scheduler_info(0)["n_workers"])
    except (OSError, KeyError) as error:
        raise _LostError(str(error)) from error


class _Watch:
    """Notices that no worker is left.

    Args:
        client: Of the cluster.
        patience: Seconds that a cluster may be without workers; ``None`` for any time.
    """

    def __init__(self, client: Any, patience: float | None) -> None:
        self._client, self._patience = client, patience
        self._since: float | None = None
        self._warned = False

    def look(self) -> None:
        """Looks whether there are workers.

        Raises:
            IncompleteError: If there have been none for too long.
        """
        if _count_workers(self._client):
            self._since = None
            return
        now = time.monotonic()
        if self._since is None:
            self._since, self._warned = now, False
        if not self._warned and now > self._since + _QUIET_SECONDS:
            self._warned = True
            log.warning("the cluster has no workers now; waiting for some")
        if self._patience is not None and now > self._since + self._patience:
            raise IncompleteError(
                f"the cluster has had no workers for {self._patience:.0f} s; start some with `dask "
                "worker`, then run the same command again. What was published is untouched"
            )


@dataclass(frozen=True)
class _Group(Generic[Task]):
    """Tasks that travel together.

    Attributes:
        tasks: In order.
        deaths: How often their worker has died, by the scheduler's count.
        failures: How often one of them has failed.
    """

    tasks: list[Task]
    deaths: int = 0
    failures: int = 0


def _run_on(
    client: Any, function: Callable[[Task], Callable[[], Any]], waiting: Iterator[Task],
    tries: int, patience: float | None,
) -> Iterator[Any]:  # fmt: skip
    from distributed.scheduler import KilledWorker

    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    groups: dict[Any, _Group[Task]] = {}
    pace, watch = _Pace(client), _Watch(client, patience)
    failed: list[BaseException] = []

    def submit(*those: _Group[Task]) -> None:
        # All in one message: each costs the scheduler as much as the work on a few tasks.
        tasks = [group.tasks for group in those]
        _forget_keys()
        futures = client.map(_perform, [function] * len(tasks), tasks, pure=False)
        for future, group in zip(futures, those, strict=True):
            groups[future] = group
            future.add_done_callback(finished.put)

    def fill() -> None:
        cut = (list(itertools.islice(waiting, pace.group())) for _ in itertools.count())
        free = max(0, pace.groups() - len(groups))
        fresh = [_Group(tasks) for tasks in itertools.takewhile(bool, itertools.islice(cut, free))]
        if fresh:
            submit(*fresh)

    def next_finished() -> list[Any]:
        """All futures that are finished by now; at least one."""
        futures: list[Any] = []
        while not futures:
            try:
                futures.append(finished.get(timeout=_ASK_SECONDS))
            except queue.Empty:
                watch.look()
        while not finished.empty():
            futures.append(finished.get())
        return futures

    def receipts_of(futures: list[Any]) -> list[Any]:
        # All at once: one by one they would cost a word with a worker each.
        receipts = []
        for future, (results, seconds) in zip(futures, client.gather(futures), strict=True):
            groups.pop(future)
            future.release()
            pace.took(len(results), seconds)
            receipts += results
        return receipts

    def try_again(group: _Group[Task], future: Any) -> None:
        if future.status != "error":
            raise _LostError("it has let go of the tasks")
        error = future.exception()
        if isinstance(error, KilledWorker):
            if group.deaths == _MOST_DEATHS:
                raise IncompleteError(
                    f"{group.tasks[0]} keeps killing its workers ({error}); give them more "
                    "memory, or plan smaller blocks. What was published is untouched"
                ) from error
            log.warning("%s has lost its worker several times; trying it again", group.tasks[0])
            submit(replace(group, deaths=group.deaths + 1))
            return
        _explain(error)
        if group.failures + 1 >= tries:
            failed.append(error)
            raise error
        log.warning("try %d of %d failed: %s", group.failures + 1, tries, error)
        submit(replace(group, failures=group.failures + 1))

    try:
        fill()
        while groups:
            futures = next_finished()
            good = [future for future in futures if future.status == "finished"]
            yield from receipts_of(good)
            for future in futures:
                if future in groups:
                    try_again(groups.pop(future), future)
            fill()
    except (_LostError, CancelledError, OSError) as error:
        if error in failed:
            raise
        raise IncompleteError(
            f"the scheduler was lost ({error}); what was published is untouched: once there is one "
            "again, the same command goes on"
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
            f"{__version__}, for all of them"
        ) from error
