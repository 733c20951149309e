"""Dask: runs tasks on the workers of a cluster, started here or running already."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skerch_ooc.base.errors import UsageError, counted, shown_list
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.executors.dask_inside import out_of_the_pool
from skerch_ooc.executors.dask_local import Ends, forget_lost_clients, local_client
from skerch_ooc.executors.dask_waiting import LostError, Watch, count_workers
from skerch_ooc.executors.dask_workers import Flight, FlightTerms, explain
from skerch_ooc.executors.executor import Function, Task
from skerch_ooc.executors.sight import Sights

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that a running scheduler may be without workers."""

_CONNECT_SECONDS = 15.0
_WAIT_SECONDS = 0.1
_DASHBOARD_SECONDS = 2.0
_PAGE_BYTES = 4096
_NO_BOKEH = re.compile(rb"needs bokeh\S* for the dashboard")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]):[0-9]{1,5}")


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

    forget_lost_clients()
    threading.Thread(target=make, daemon=True).start()
    try:
        client = made.get(timeout=2 * _CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError("what answers there is no scheduler of Dask") from None
    if isinstance(client, Exception):
        raise client
    return client


def _threads_of_worker(dask_worker: Any) -> int:
    # Runs on the worker; Dask passes the worker to an argument of this very name.
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else int(dask_worker.state.nthreads)


def _answers(client: Any, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Calls a function on each worker; returns by address what it returns, raises or dies of."""
    return dict(client.run(function, *arguments, on_error="return"))


@tells_keywords
class Dask:
    """Runs tasks on the workers of a Dask cluster.

    Each worker does one task at a time. Few tasks are in flight at once, so that their number costs
    the scheduler nothing. Only paths, numbers and receipts travel; the workers must see the run
    directory, and the file of the factory, under the same paths. Of a run in an object store they
    need no file: that of the factory travels with the tasks.

    A task whose worker dies goes to another worker. A task that fails ``tries`` times stops the
    run. Workers that are started here see one GPU each, where there are any.

    Args:
        scheduler: The address of a scheduler (``"tcp://host:8786"``, ``"tls://..."``, or
            ``"host:8786"`` for ``tcp``), its scheduler file, a
            ``distributed.Client``, or a cluster object (also those of ``dask_jobqueue`` and
            ``dask_kubernetes``). By default worker processes are started on this machine.
        workers: The number of worker processes to start here; by default one.
        tries: How often to try a task that fails.
        patience: Seconds that the cluster may be without workers; by default 120, and any time for
            a client or a cluster object, which may have asked for some in a queue. A cluster
            object that adapts to the work need not have any.

    Attributes:
        workers: The number of processes that share this machine.

    Raises:
        UsageError: If both are given, or ``workers``, ``tries`` or ``patience`` is not positive.
    """

    remote = True
    share = (0, 1)

    def __init__(
        self, scheduler: Any = None, *, workers: int | None = None, tries: int = 1,
        patience: float | None = None,
    ) -> None:  # fmt: skip
        if scheduler is not None and workers is not None:
            raise UsageError(
                f"workers = {workers}: those of a scheduler that runs were started with it; give "
                "either workers or a scheduler"
            )
        for name, value in (("workers", workers), ("tries", tries)):
            known = value is None and name == "workers"
            if not known and not (isinstance(value, int) and value >= 1):
                raise UsageError(f"{name} = {value!r}: must be an integer of at least 1")
        if patience is not None and not (isinstance(patience, (int, float)) and patience > 0):
            raise UsageError(f"patience = {patience!r}: must be a positive number of seconds")
        if getattr(scheduler, "asynchronous", False):
            raise UsageError(f"{scheduler!r} is asynchronous; give one that is not")
        self._tries, self._given_patience = tries, patience
        self._ends = Ends()
        self.workers = 1 if workers is None else workers
        self._scheduler = scheduler
        self._session: contextlib.ExitStack | None = None
        self._client: Any = None
        self._sights = Sights()

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
            answers = _answers(client, _threads_of_worker).values()
            return min((answer for answer in answers if isinstance(answer, int)), default=1)

    @contextlib.contextmanager
    def session(self, threads: int) -> Iterator[None]:  # noqa: ARG002 (the first run has them)
        """See :class:`.Executor`: nothing is started before a task comes."""
        if self._session is not None:
            # Within another session, whose workers serve.
            yield
            return
        with contextlib.ExitStack() as self._session:
            self._sights = self._session.enter_context(Sights())
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
            with self._connected(threads) as client, Sights() as sights:
                yield from self._flown(client, function, tasks, sights)
            return
        if self._client is None:
            self._client = self._session.enter_context(self._connected(threads))
        yield from self._flown(self._client, function, tasks, self._sights)

    def _flown(
        self, client: Any, function: Function[Task], tasks: Iterable[Task], sights: Sights
    ) -> Iterator[Any]:
        terms = FlightTerms(self._tries, self._watch(client), sights)
        return Flight(client, function, iter(tasks), terms).receipts()

    def _watch(self, client: Any) -> Watch:
        return Watch(
            client, self._patience, self._ends.require_none_given_up, self._ends.last_death
        )

    @property
    def _patience(self) -> float | None:
        """The seconds to wait for workers; ``None`` for any time."""
        if self._given_patience is not None:
            return self._given_patience if math.isfinite(self._given_patience) else None
        # A cluster object may still start some: from a queue that can take days.
        given = self._scheduler is None or isinstance(self._scheduler, (str, os.PathLike))
        return PATIENCE if given else None

    @contextlib.contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        if self._scheduler is None:
            with local_client(self.workers, threads) as (client, self._ends):
                _announce(client)
                yield client
            return
        with self._reached() as client:
            _announce(client)
            yield client

    @contextlib.contextmanager
    def _reached(self) -> Iterator[Any]:
        """Yields a client of a scheduler that is running, and has a worker."""
        with out_of_the_pool(), self._client_of_scheduler() as client:
            self._wait_for_worker(client)
            yield client

    @contextlib.contextmanager
    def _client_of_scheduler(self) -> Iterator[Any]:
        from distributed import Client

        if isinstance(self._scheduler, Client):
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
            by_tls = re.search(r"\btls\b|ssl", f"{place} {error}", re.IGNORECASE)
            raise UsageError(
                f"no scheduler answers at {place} ({error}); start one with `dask scheduler`, or "
                "leave the scheduler out to use this machine"
                + ("; TLS needs the certificates in Dask's own configuration" if by_tls else "")
            ) from error
        with client:
            yield client

    def _wait_for_worker(self, client: Any) -> None:
        watch = self._watch(client)
        try:
            if not count_workers(client):
                # A cluster that adapts to its work asks for workers only if there is some.
                greeting = client.submit(int, pure=False)
                while not count_workers(client):
                    watch.look()
                    time.sleep(_WAIT_SECONDS)
                greeting.release()
            # A worker that cannot read a task closes, and says so only in its own log.
            answers = _answers(client, exec, "import skerch_ooc")
        except (LostError, OSError, RuntimeError, AttributeError) as error:
            raise UsageError(
                f"{client!r} cannot be used any more ({type(error).__name__}: {error}); give one "
                "that is connected"
            ) from error
        lacking = [place for place, said in answers.items() if isinstance(said, ImportError)]
        who = [f"{counted(len(lacking), 'worker')} ({shown_list(lacking)})"] if lacking else []
        for answer in answers.values():
            if isinstance(answer, Exception):
                explain(answer, *who)


def _announce(client: Any) -> None:
    """Logs where the workers are, and where they can be watched."""
    info = client.scheduler_info(0)
    log.info("dask: %d worker(s) of %s%s", info["n_workers"], info["address"], _watched(client))


def _watched(client: Any) -> str:
    """Says where the work can be watched; nothing where nobody answers: Dask names what may be."""
    try:
        link = client.dashboard_link
        parts = urlsplit(link)
        if not parts.hostname:
            return ""
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        # Asked directly: a proxy for the internet knows no hosts of a cluster.
        connection = kind(parts.hostname, parts.port, timeout=_DASHBOARD_SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", parts.path)
            answer = connection.getresponse()
            page = answer.read(_PAGE_BYTES)
            if answer.status != HTTPStatus.OK:
                return ""
    except (OSError, ValueError, KeyError, AttributeError, TypeError, HTTPException):
        return ""
    if _NO_BOKEH.search(page):
        return "; for its dashboard install bokeh"
    return f"; dashboard {link}"
