"""Worker processes of Dask that are started on this machine, and why they could not be."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import IncompleteError, OocError, UsageError, counted
from skerch_ooc.executors.dask_waiting import first_cause

log = logging.getLogger(__name__)

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

_NO_TLS = {
    "distributed.comm.tls.ca-file": None,
    **{f"distributed.comm.tls.{role}.{what}": None
       for role in ("scheduler", "worker", "client") for what in ("cert", "key")},
}  # fmt: skip
"""Settings by which certificates that are meant for other clusters are not even read."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MAIN_GUARD = 'inside `if __name__ == "__main__":`'
_UNGUARDED = 87
"""With this exit code a worker process ends whose script starts workers when it is imported."""

_MOST_STARTS = 12
_LONGEST_PAUSE = 2.0


@dataclass
class Ends:
    """How worker processes ended before they were ready.

    Attributes:
        codes: Their exit codes, those of signals below 0.
        words: What one of them said of its failure, if it said anything.
        given_up: How many of the workers are not started again.
        deaths: Exit codes of processes that were at work.
    """

    codes: list[int] = field(default_factory=list)
    words: str = ""
    given_up: int = 0
    deaths: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if self.words or not self.codes:
            return self.words
        last, times = self.codes[-1], counted(self.codes.count(self.codes[-1]), "time")
        how = f"a worker process {_how_ended(last)} as it started"
        return f"{how}, {times}" if last < 0 else f"{how}; what it wrote stands above"

    def last_death(self) -> str:
        """Says how the last process ended that was at work; nothing if none did."""
        return f"; the last of them {_how_ended(self.deaths[-1])}" if self.deaths else ""

    def require_none_given_up(self) -> None:
        """Raises an error if workers were given up.

        Raises:
            IncompleteError: With what happened to them.
        """
        if self.given_up:
            raise _not_started(str(self))


def _how_ended(code: int) -> str:
    if code < 0:
        name = signal.strsignal(-code) or "an unknown one"
        return f"was killed by signal {-code} ({name})"
    return f"ended with exit code {code}"


@contextlib.contextmanager
def local_client(count: int, threads: int) -> Iterator[tuple[Any, Ends]]:
    """Yields a client of worker processes that are spawned on this machine.

    A process that is killed while it starts is started again.

    Args:
        count: How many there are.
        threads: Threads of the linear algebra in each.

    Raises:
        UsageError: If this process may not start any.
        IncompleteError: If they do not start.
    """
    import dask
    from distributed import Client, SpecCluster

    _require_may_start()
    # Linear algebra libraries read these as they are loaded: so before the worker is spawned.
    environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    settings = {
        "distributed.worker.daemon": False,
        "distributed.nanny.pre-spawn-environ": environment,
    } | _NO_HISTORY
    ends = Ends()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        if not dask.config.get("distributed.comm.require-encryption", None):
            stack.enter_context(dask.config.set(_NO_TLS))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="skerch-ooc-"))
        forget_lost_clients()
        try:
            scheduler, workers = _specifications(count, scratch, ends)
            cluster = stack.enter_context(
                SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL)
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
        except Exception as error:
            raise _why_not_started(error, ends) from error
        yield client, ends


def forget_lost_clients() -> None:
    """Collects clients that nothing refers to any more, before a new one is made.

    Their finalizers take a lock that a new client holds while it starts. If the garbage collector
    ran just then, in the same thread, that thread would wait for itself for ever.
    """
    gc.collect()


def _require_may_start() -> None:
    """Ends or refuses a process that may not start workers.

    Raises:
        UsageError: If it is a daemonic one.
    """
    process = multiprocessing.current_process()
    # A spawned process imports the script that started it.
    if getattr(process, "_inheriting", False):
        log.warning("ooc.Dask must be used %s", _MAIN_GUARD)
        raise SystemExit(_UNGUARDED)
    if process.daemon:
        raise UsageError(
            f"this process ({process.name}) is daemonic, as workers of Dask are, and may not start "
            "processes; inside a task use ooc.Dask(distributed.get_client()), or ooc.Serial()"
        )


def _why_not_started(error: Exception, ends: Ends) -> OocError:
    """Makes the error of workers that did not start, of what was observed of them."""
    if _UNGUARDED in ends.codes:
        return UsageError(
            "worker processes import the script that starts them, and this one would start others "
            f"then: use ooc.Dask {_MAIN_GUARD}"
        )
    return _not_started(str(ends) or first_cause(error))


def _not_started(cause: str) -> IncompleteError:
    return IncompleteError(
        f"workers could not be started on this machine: {cause}. Mend that, then run the same "
        "command again; what was published is untouched"
    )


def visible_gpus() -> list[str]:
    """Lists the GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    # Counted by device files, as this process need not load torch for anything else.
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _specifications(count: int, scratch: str, ends: Ends) -> tuple[dict[str, Any], dict[int, Any]]:
    """Describes the scheduler and the workers of this machine, as Dask wants it.

    They talk over the loopback only, on any free ports; by TLS where Dask's settings require it.
    """
    from distributed import Scheduler
    from distributed.scheduler import DEFAULT_EXTENSIONS
    from distributed.security import Security

    security = Security()
    protocol = "tls://" if security.require_encryption else "tcp://"
    common = {"host": "127.0.0.1", "protocol": protocol, "security": security}
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
        "ends": ends,
    }
    gpus = visible_gpus()
    workers = {}
    for number in range(count):
        one = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        workers[number] = {"cls": _nanny_class(), "options": options | {"env": one}}
    return scheduler, workers


@cache
def _nanny_class() -> type[Any]:
    """Makes the class of those that watch worker processes; Dask is loaded for it."""
    from distributed import Nanny
    from distributed.core import Status

    class Again(Nanny):
        """Starts a worker process again that is killed as it starts, and notes how it ended."""

        def __init__(self, *arguments: Any, ends: Ends, **options: Any) -> None:
            self._ends, self._is_starting, self._code = ends, False, 0
            super().__init__(*arguments, **options)

        async def instantiate(self) -> Any:
            """See :class:`distributed.Nanny`."""
            self._is_starting = True
            try:
                for number in range(_MOST_STARTS):
                    status = await super().instantiate()
                    if status == Status.running:
                        return status
                    if self._code >= 0 or number == _MOST_STARTS - 1:
                        break
                    log.warning("%s; starting another", self._ends)
                    await asyncio.sleep(min(0.05 * 2**number, _LONGEST_PAUSE))
            except Exception as error:
                self._ends.words = first_cause(error)
                raise
            finally:
                self._is_starting = False
            self._ends.given_up += 1
            return status

        def _on_worker_exit_sync(self, exitcode: int) -> None:
            if self._is_starting:
                self._code = exitcode
                self._ends.codes.append(exitcode)
            else:
                self._ends.deaths.append(exitcode)
                super()._on_worker_exit_sync(exitcode)

    return Again
