"""Work: what runs tasks, with which resources (memory, threads, device), and until when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Progress, Stage
from skerch_ooc.base.resources import Resources, format_bytes
from skerch_ooc.base.time_budget import Budget
from skerch_ooc.executors.executor import Executor, Function
from skerch_ooc.executors.serial import Serial

log = logging.getLogger("skerch_ooc")


class _OfTiles(Protocol):
    """A task that is a run of row tiles."""

    @property
    def tiles(self) -> Range:
        """Numbers of the tiles."""
        ...


TileTask = TypeVar("TileTask", bound=_OfTiles)


@dataclass(frozen=True)
class Work:
    """The executor, resources, progress, device and time budget of a command.

    Attributes:
        resources: What each process may use.
        executor: What runs the tasks.
        progress: Shows how far it is.
        device: The operator's torch device; ``None`` for the plan's.
        budget: When to stop.
    """

    resources: Resources
    executor: Executor = field(default_factory=Serial)
    progress: Progress = field(default_factory=Progress)
    device: str | None = None
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(
        cls,
        executor: Executor | None = None,
        memory: int | str | None = None,
        threads: int | None = None,
        device: str | None = None,
        progress: Progress | None = None,
        budget: Budget | None = None,
    ) -> Work:
        """Makes the work of a command, with defaults for what is left out.

        Args:
            executor: What runs the tasks; this process by default.
            memory: Peak resident memory of each process, in bytes or as text.
            threads: Threads of each process.
            device: The torch device of the operator, and of the arithmetic on tiles.
            progress: Shows how far the work is; by default nothing does.
            budget: When to stop; by default when all is done.

        Raises:
            UsageError: If a value is out of range, or a scheduler cannot be reached.
            IncompleteError: If a scheduler has no workers.
        """
        executor = executor or Serial()
        resources = Resources.of(memory, threads, executor.workers, device)
        if resources.workers > 1:
            each, together = resources.memory, resources.memory * resources.workers
            log.info(
                "memory: at most %s for each of %d workers, %s in all",
                format_bytes(each), resources.workers, format_bytes(together),
            )  # fmt: skip
        if not threads:
            # Only then: to know the threads of running workers, their scheduler has to be asked.
            resources = replace(resources, remote_threads=executor.threads)
        return cls(resources, executor, progress or Progress(), device, budget or Budget())

    @property
    def is_shared(self) -> bool:
        """Whether other processes do tasks, or this one only its share of them."""
        return self.executor.remote or self.executor.share != (0, 1)

    @property
    def here(self) -> Work:
        """The same work, done by this process alone."""
        return replace(self, executor=Serial())

    def run_tiles(
        self, function: Function[TileTask], tasks: Sequence[TileTask], stage: str, tile_bytes: int,
        heard: Callable[[Mapping[str, Any]], None],
    ) -> None:  # fmt: skip
        """Has the executor do tasks that are runs of row tiles, and shows how far they are.

        Args:
            function: Does a task; its receipts say how many ``tiles`` are done.
            tasks: The tasks.
            stage: What the user is told.
            tile_bytes: Bytes of a tile.
            heard: Is called with each receipt.
        """
        total = sum(len(task.tiles) for task in tasks)
        known = Stage(stage, total, "tiles", tile_bytes, len(tasks), parallel=self.executor.workers)
        with self.progress.entered(known) as advance:
            for receipt in self.executor.run(function, tasks, self.resources.task_threads):
                heard(receipt)
                advance(receipt["tiles"])

    def session(self) -> AbstractContextManager[None]:
        """Keeps the workers from one stage to the next while the context is entered."""
        return self.executor.session(self.resources.threads)
