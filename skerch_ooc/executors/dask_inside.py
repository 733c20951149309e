"""Inside a task of Dask: its thread is left to other tasks, as long as it waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from skerch_ooc.base.errors import UsageError

_performing = threading.local()


@contextlib.contextmanager
def performing() -> Iterator[None]:
    """Notes that this thread does a task of ours."""
    _performing.now = True
    try:
        yield
    finally:
        _performing.now = False


@contextlib.contextmanager
def out_of_the_pool() -> Iterator[None]:
    """Leaves the thread of the task that this is to others, if it is a task of a Dask worker.

    Raises:
        UsageError: If that cannot be done, so that tasks would wait for one another for ever.
    """
    from distributed import get_worker, rejoin, secede
    from distributed.threadpoolexecutor import thread_state

    try:
        worker = get_worker()
    except ValueError:
        yield
        return
    if getattr(_performing, "now", False):
        raise UsageError(
            f"a task of skerch_ooc (on {worker.address}) cannot wait for others on the same "
            "workers; in an operator use ooc.Serial()"
        )
    if _has_running_loop():
        raise UsageError(
            f"a coroutine of a Dask worker ({worker.address}) cannot wait for tasks, as the worker "
            "waits for it; make the task a plain function"
        )
    # The task may have left by itself.
    leaves = getattr(thread_state, "proceed", False)
    if leaves:
        secede()
    try:
        yield
    finally:
        if leaves:
            rejoin()


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
