"""Waiting for workers of a Dask cluster: what for, how long, and what keeps them from starting."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from skerch_ooc.base.errors import IncompleteError, counted

log = logging.getLogger(__name__)

_QUIET_SECONDS = 5.0
_SAY_SECONDS = 60.0
_MOST_REFUSALS = 3
_START_SECONDS = 60.0


class LostError(Exception):
    """The scheduler does not answer."""


def count_workers(client: Any) -> int:
    """Counts the workers that a cluster has now.

    Raises:
        LostError: If the scheduler does not answer.
    """
    try:
        return int(client.scheduler_info(0)["n_workers"])
    except (OSError, KeyError) as error:
        raise LostError(str(error)) from error


class Watch:
    """Notices when a cluster has been without workers for too long, or cannot start any.

    Args:
        client: A client of the cluster.
        patience: Seconds that a cluster may be without workers; ``None`` for any time.
        look_closer: Is called when there are no workers; raises an error if it knows why.
        last_death: Says how the last worker ended that was at work, as far as that was seen.
    """

    def __init__(
        self, client: Any, patience: float | None, look_closer: Callable[[], None] = lambda: None,
        last_death: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        self._client, self._patience, self._look_closer = client, patience, look_closer
        self.last_death = last_death
        self._since: float | None = None
        self._say_at = 0.0
        self._refused = 0

    def look(self) -> None:
        """Looks whether there are workers.

        Raises:
            IncompleteError: If there have been none for too long, or they cannot be started.
            LostError: If the scheduler does not answer.
        """
        if count_workers(self._client):
            self._since = None
            return
        self._look_closer()
        now = time.monotonic()
        if self._since is None:
            self._since, self._say_at, self._refused = now, now + _QUIET_SECONDS, 0
        waited = now - self._since
        if self._patience is not None and waited > self._patience:
            raise IncompleteError(
                f"the cluster has had no workers for {self._patience:.0f} s, though it was waited "
                f"for {self._awaited()}; start some, or wait longer with --patience, then run the "
                "same command again. What was published is untouched"
            )
        if now >= self._say_at:
            self._say(waited)
            self._try_refused()

    def _say(self, waited: float) -> None:
        most = "" if self._patience is None else f", at most {self._patience:.0f} s"
        log.warning(
            "the cluster has no workers now; waiting for %s (%.0f s so far%s)",
            self._awaited(), waited, most,
        )  # fmt: skip
        self._say_at += _SAY_SECONDS

    def _awaited(self) -> str:
        """Says what is waited for, as far as a cluster object tells."""
        cluster = self._client.cluster
        if cluster is None:
            return "workers that somebody starts by `dask worker`"
        name, asked = type(cluster).__name__, getattr(cluster, "requested", None)
        if not isinstance(asked, set):
            return f"workers of {name}"
        if not asked and getattr(cluster, "_adaptive", None) is not None:
            return f"{name}, which adapts, and has asked for none yet"
        if not asked:
            return f"{name}, which has been asked for none yet: scale or adapt it"
        return f"{counted(len(asked), 'worker')} that {name} has asked for"

    def _try_refused(self) -> None:
        """Starts workers once more whose start was refused, and raises what that says.

        Raises:
            IncompleteError: If it was refused several times.
        """
        said = _start_refused(self._client.cluster, is_last=self._refused + 1 >= _MOST_REFUSALS)
        if said is None:
            return
        self._refused += 1
        self._say_at = time.monotonic() + _QUIET_SECONDS
        if self._refused >= _MOST_REFUSALS:
            raise IncompleteError(
                f"{type(self._client.cluster).__name__} cannot start workers: {said}. Mend that, "
                "then run the same command again; what was published is untouched"
            )


def _start_refused(cluster: Any, *, is_last: bool) -> str | None:
    """Starts the workers of a cluster object whose start has failed; returns what is said again.

    Dask notes of such failures no more than that the worker is not running, and starts no other.

    Args:
        cluster: The cluster object, if there is one.
        is_last: Whether those that fail again are given up.
    """
    from distributed import SpecCluster
    from distributed.core import Status

    if not isinstance(cluster, SpecCluster) or cluster.asynchronous:
        return None

    async def start() -> str | None:
        said = None
        for worker in list(cluster.workers.values()):
            if worker.status not in (Status.created, Status.failed):
                continue
            try:
                await worker
            except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
                said = first_cause(error)
                if is_last and worker.status == Status.created:
                    # Else Dask cannot close the cluster: it knows no worker that never started.
                    worker.status = Status.failed
        return said

    try:
        said: str | None = cluster.sync(start, callback_timeout=_START_SECONDS)
    except TimeoutError:
        return None
    return said


def first_cause(error: BaseException) -> str:
    """Returns the words of what failed first: Dask raises an error for each layer above it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())
