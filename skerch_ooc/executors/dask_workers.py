"""Tasks on the workers of a Dask cluster: sent few at a time, watched, sent again when one dies."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any, Generic

from skerch_ooc.base.disk_errors import explained
from skerch_ooc.base.errors import IncompleteError, OocError, UsageError
from skerch_ooc.base.version import __version__
from skerch_ooc.executors.dask_inside import performing
from skerch_ooc.executors.dask_waiting import LostError, Watch, count_workers
from skerch_ooc.executors.executor import Function, Task
from skerch_ooc.executors.sight import Answer, Proof, Sight, Sights, doubt_of

log = logging.getLogger(__name__)

# Groups of tasks: so many for each worker, at most so large, and worth at least so much time.
_IN_FLIGHT = 2
_LARGEST_GROUP = 64
_GROUP_SECONDS = 0.05

# About what one exchange of messages costs the scheduler.
_WORD_SECONDS = 1e-3
_MOST_KEYS = 1000
_MOST_DEATHS = 3
_ASK_SECONDS = 2.0
_DOUBTFUL_SECONDS = 0.2
_one_at_a_time = threading.Lock()


def _perform(
    function: Function[Task], tasks: list[Task], proof: Proof | None
) -> tuple[list[Any] | Answer, float]:
    """Does tasks on a worker; returns their receipts, and the seconds that they took.

    A worker that has not proven yet that it sees the run returns what it finds, and does nothing.
    """
    _forget_keys()
    # Workers that others started may have several threads; a task of ours uses them all by itself.
    with _one_at_a_time, performing():
        if (doubt := doubt_of(proof)) is not None:
            return doubt, 0.0
        start = time.perf_counter()
        receipts = [_perform_one(function, task) for task in tasks]
        return receipts, time.perf_counter() - start


def _forget_keys() -> None:
    """Makes Dask forget the keys of tasks that are long done.

    Each process caches the prefixes of the last 100,000 keys: some 30 MB, and of no use, as no key
    of ours comes twice.
    """
    from dask.utils import key_split

    kept = getattr(key_split, "cache_info", None)
    if kept is not None and kept().currsize > _MOST_KEYS:
        key_split.cache_clear()


def _perform_one(function: Function[Task], task: Task) -> Any:
    try:
        receipt = function(task)()
        return receipt | {"by": _this_worker()} if isinstance(receipt, dict) else receipt
    except OocError as error:
        # Of the same type, as the type decides the exit code.
        raise type(error)(f"{error} ({task}; {_this_worker()})") from error
    except OSError as error:
        # It is said here whether reading or writing failed: elsewhere the disk may be sound.
        if (told := explained(error)) is not None:
            raise type(told)(f"{told} ({task}; {_this_worker()})") from error
        raise
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


class _Pace:
    """Decides how many tasks are in flight, and how many travel together as one group.

    Two groups for each worker are in flight: one at work, and one that waits. A group is one task;
    where tasks are so short that messages to the scheduler take longer, it is as many tasks as are
    worth a message. The more workers there are, the longer each waits for its turn with the
    scheduler, and the larger are the groups.
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
        """Returns how many groups may be in flight; asks the scheduler now and then."""
        now = time.monotonic()
        if now > self._asked + _ASK_SECONDS:
            # Workers come and go.
            self._workers = max(1, count_workers(self._client))
            self._asked = now
        return _IN_FLIGHT * self._workers

    def group(self) -> int:
        """Returns how many tasks make a group."""
        worth = max(_GROUP_SECONDS, _IN_FLIGHT * _WORD_SECONDS * self._workers)
        mean = self._seconds / self._done if self._done else math.inf
        return int(min(_LARGEST_GROUP, max(1.0, worth / max(mean, 1e-9))))


@dataclass(frozen=True)
class FlightTerms:
    """How long and how often a cluster is tried, and what its workers have to see.

    Attributes:
        tries: How often to try a task that fails.
        watch: Looks whether there are workers.
        sights: The folders that tasks are about, each with the workers that see it.
    """

    tries: int
    watch: Watch
    sights: Sights


@dataclass(frozen=True)
class _Group(Generic[Task]):
    """Tasks that travel together, and what happened to them.

    Attributes:
        tasks: The tasks, in order.
        deaths: How often the scheduler has given up on the group because its workers died.
        failures: How often one of the tasks has failed.
    """

    tasks: list[Task]
    deaths: int = 0
    failures: int = 0


class Flight(Generic[Task]):
    """Runs a function over tasks on the workers of a cluster.

    Args:
        client: A client of the cluster.
        function: See :meth:`.Executor.run`.
        tasks: The tasks, taken one by one when there is room for another.
        terms: See :class:`FlightTerms`.
    """

    def __init__(
        self, client: Any, function: Function[Task], tasks: Iterator[Task], terms: FlightTerms
    ) -> None:
        self._client, self._function = client, function
        self._tasks = self._noting_failure(tasks)
        self._tries, self._sights = terms.tries, terms.sights
        self._pace, self._watch = _Pace(client), terms.watch
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._groups: dict[Any, _Group[Task]] = {}
        # Groups that wait for a worker which sees the run; and workers to which others are bound.
        self._held: list[_Group[Task]] = []
        self._bound: dict[Any, set[str]] = {}
        self._sight: Sight | None = None
        self._failure: BaseException | None = None

    def _noting_failure(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """Hands tasks on; if finding them fails, it is not the scheduler that was lost."""
        try:
            yield from tasks
        except OSError as error:
            self._failure = error
            raise

    def receipts(self) -> Iterator[Any]:
        """Yields the receipts of all tasks, as they come.

        Raises:
            IncompleteError: If the scheduler is lost, no worker is left for too long, none sees
                the run, or workers keep dying of a task.
            UsageError: If workers cannot import this package.
            Exception: What a task raised in its last try.
        """
        try:
            self._fill()
            while self._groups or self._held:
                known = [future for future in self._next_finished() if future in self._groups]
                yield from self._landed([one for one in known if one.status == "finished"])
                for future in known:
                    if future in self._groups:
                        self._try_again(self._taken(future), future)
                self._fill()
        except (LostError, CancelledError, OSError) as error:
            if error is self._failure:
                # The task's own OSError, say, not the scheduler's.
                raise
            raise IncompleteError(
                f"the scheduler was lost ({error}); what was published is untouched: once there is "
                "one again, the same command goes on"
            ) from error
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(self._groups))

    def _fill(self) -> None:
        self._look_at_doubts()
        held, self._held = self._held, []
        self._submit(*held)
        if self._held:
            return
        cut = (list(itertools.islice(self._tasks, self._pace.group())) for _ in itertools.count())
        free = max(0, self._pace.groups() - len(self._groups))
        fresh = [_Group(tasks) for tasks in itertools.takewhile(bool, itertools.islice(cut, free))]
        if fresh:
            self._sight = self._sights.of(fresh[0].tasks[0])
            self._submit(*fresh)

    def _submit(self, *groups: _Group[Task]) -> None:
        """Sends groups to the workers that may see the run; holds them while there is none."""
        if not groups:
            return
        sight, allowed = self._sight, None
        if sight is not None and not sight.is_clear and (here := self._workers_here()):
            allowed = sight.allowed(here)
        if allowed == []:
            self._held += groups
        else:
            self._send(groups, sight.proof() if sight else None, allowed)

    def _send(
        self, groups: Sequence[_Group[Task]], proof: Proof | None, workers: list[str] | None
    ) -> None:
        # All in one message: each message costs the scheduler as much as the work on a few tasks.
        tasks = [group.tasks for group in groups]
        _forget_keys()
        # Dask names a pure task by a hash, and takes one that is run again for the same.
        futures = self._client.map(
            _perform, [self._function] * len(tasks), tasks, [proof] * len(tasks),
            pure=False, workers=workers,
        )  # fmt: skip
        for future, group in zip(futures, groups, strict=True):
            self._groups[future] = group
            if workers is not None:
                self._bound[future] = set(workers)
            future.add_done_callback(self._finished.put)

    def _taken(self, future: Any) -> _Group[Task]:
        """Takes the group of a future, which is not waited for any more."""
        self._bound.pop(future, None)
        return self._groups.pop(future)

    def _workers_here(self) -> set[str]:
        """Returns the addresses of the workers that there are now."""
        try:
            return set(self._client.scheduler_info(-1)["workers"])
        except (OSError, KeyError) as error:
            raise LostError(str(error)) from error

    def _look_at_doubts(self) -> None:
        """Asks workers once more that have not seen the run, and leaves those out that never do."""
        sight = self._sight
        if sight is None or sight.is_clear:
            return
        sight.look(self._workers_here())
        for worker in sight.due():
            self._send([_Group([])], sight.proof(), [worker])

    def _hear(self, answer: Answer, group: _Group[Task]) -> None:
        """Hears a worker that has been asked for a proof, and returned its tasks undone."""
        assert self._sight is not None
        admitted = self._sight.admits(answer)
        if admitted and group.tasks:
            self._send([group], self._sight.proof(answer.process), [answer.worker])
        elif group.tasks:
            self._held.append(group)

    def _free_bound(self) -> None:
        """Sends groups elsewhere whose workers are gone: the scheduler would wait for these."""
        if not self._bound:
            return
        here = self._workers_here()
        lost = [
            future
            for future, workers in self._bound.items()
            if future.status in ("pending", "lost") and not workers & here
        ]
        groups = [self._taken(future) for future in lost]
        self._client.cancel(lost)
        self._submit(*(group for group in groups if group.tasks))

    def _next_finished(self) -> list[Any]:
        """Waits until a future is finished; returns all that are finished by now.

        There may be none if workers have to be looked at again.
        """
        futures: list[Any] = []
        doubtful = bool(self._held) or (self._sight is not None and self._sight.is_waiting)
        while not futures:
            try:
                wait = _DOUBTFUL_SECONDS if doubtful else _ASK_SECONDS
                futures.append(self._finished.get(timeout=wait))
            except queue.Empty:
                self._watch.look()
                self._free_bound()
                if doubtful:
                    break
        while not self._finished.empty():
            futures.append(self._finished.get())
        return futures

    def _gathered(self, futures: list[Any]) -> list[tuple[Any, Any]]:
        """Fetches what futures hold, but for those whose workers are gone: these are sent again.

        The scheduler would have such a result made anew, by a worker that it cannot have back.
        """
        while futures:
            try:
                # All at once: one by one they would cost a message to a worker each.
                found = self._client.sync(
                    lambda: self._client.gather(futures, asynchronous=True),  # noqa: B023 (at once)
                    callback_timeout=_ASK_SECONDS,
                )
                return list(zip(futures, found, strict=True))
            except TimeoutError:
                self._watch.look()
                self._free_bound()
                futures = [future for future in futures if future in self._groups]
        return []

    def _landed(self, futures: list[Any]) -> list[Any]:
        """Collects the receipts of groups that are done."""
        receipts = []
        for future, (results, seconds) in self._gathered(futures):
            group = self._taken(future)
            future.release()
            if isinstance(results, Answer):
                self._hear(results, group)
                continue
            self._pace.took(len(results), seconds)
            receipts += results
        return receipts

    def _try_again(self, group: _Group[Task], future: Any) -> None:
        """Submits a group once more, unless its tries or the deaths of its workers are too many."""
        from distributed.scheduler import KilledWorker

        if future.status == "lost" and group.deaths < _MOST_DEATHS:
            # Its worker has died with the result.
            self._client.cancel([future])
            self._submit(replace(group, deaths=group.deaths + 1))
            return
        if future.status != "error":
            raise LostError("it has let go of the tasks")
        error = future.exception()
        if isinstance(error, KilledWorker):
            if group.deaths == _MOST_DEATHS:
                raise IncompleteError(
                    f"{group.tasks[0]} keeps killing its workers ({error}"
                    f"{self._watch.last_death()}); see their logs. If it was for want of memory, "
                    "give them more, or plan smaller blocks. What was published is untouched"
                ) from error
            log.warning("%s has lost its worker several times; trying it again", group.tasks[0])
            self._submit(replace(group, deaths=group.deaths + 1))
            return
        explain(error)
        if group.failures + 1 >= self._tries:
            self._failure = error
            raise error
        log.warning("try %d of %d failed: %s", group.failures + 1, self._tries, error)
        self._submit(replace(group, failures=group.failures + 1))


def explain(error: Exception, who: str = "the scheduler or a worker") -> None:
    """Raises an error that explains why a cluster cannot even read a task, if that is the error.

    Args:
        error: The error.
        who: Who has it, as far as that is known.

    Raises:
        UsageError: If workers cannot import this package.
    """
    ours = isinstance(error, ImportError) and str(error.name).startswith("skerch_ooc")
    if ours or "deserialization of the task graph" in str(error):
        raise UsageError(
            f"{who} cannot import skerch_ooc as it is here ({type(error).__name__}: {error}); "
            f"install this version, {__version__}, for all of them"
        ) from error
