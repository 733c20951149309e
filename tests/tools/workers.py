"""Workers of Dask in this process's own clusters, forked from one process that has torch loaded."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator

import dask
from distributed.utils import get_mp_context

LOADED = ("distributed", "torch", "skerch_ooc.operators.synthetic", "skerch_ooc.pipeline.run",
          "skerch_ooc.results.lowrank", "skerch_ooc.stages.measure.task")  # fmt: skip


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """While it is entered, ``ooc.Dask`` forks its workers; they see the tests' own variables."""
    variables = {k: v for k, v in os.environ.items() if k.startswith("SKERCH_OOC_TEST")}
    settings = {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.nanny.environ": variables,
    }
    with dask.config.set(settings):
        # Dask names what it wants to be loaded when it asks first.
        get_mp_context()
        multiprocessing.set_forkserver_preload([*LOADED])
        yield
