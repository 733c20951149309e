"""Streaming over tiles: how many fit into memory, an ordered parallel map, a pool of buffers."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range, tree_sum
from skerch_ooc.base.progress import Advance
from skerch_ooc.base.resources import (
    SPARE_BYTES,
    Resources,
    ask_for,
    format_bytes,
    limit_torch_of_thread,
    operator_threads,
    resident_memory,
)

Item = TypeVar("Item")
Value = TypeVar("Value")


def tiles_in_flight(stage: str, resources: Resources, fixed: int, per_tile: int) -> int:
    """Returns how many tiles may be held at once; the number decides speed, never results.

    Args:
        stage: Name of the stage, for the error message.
        resources: Memory and cores.
        fixed: Bytes that the stage needs besides the tiles.
        per_tile: Bytes that each tile in flight needs.

    Raises:
        UsageError: If not even one tile fits.
    """
    per_tile = max(1, per_tile)
    besides = SPARE_BYTES + fixed
    baseline = resident_memory(besides + resources.cores * per_tile, resources.memory)
    free = resources.memory - baseline - besides
    if free < per_tile:
        needed = baseline + SPARE_BYTES + fixed + per_tile
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: {stage} needs "
            f"{format_bytes(needed)} ({format_bytes(baseline)} of it for Python and its "
            f"libraries); give at least --memory {ask_for(needed)}"
        )
    return max(1, min(resources.cores, free // per_tile))


def ordered_map(
    function: Callable[[Item], Value], items: Iterable[Item], in_flight: int
) -> Iterator[Value]:
    """Applies a function to items in ``in_flight`` threads; yields the results in order.

    Besides those that are being worked on, one finished result may wait to be taken. Meanwhile the
    linear algebra libraries of this process use one thread per call, so that a result does not
    depend on how many tiles are in flight. (torch only if it is loaded before.)
    """
    with operator_threads(1):
        # Nor is a thread started for what is alone: it takes longer than a small tile.
        if in_flight == 1 or (isinstance(items, Sized) and len(items) == 1):
            yield from map(function, items)
            return
        pending: deque[Future[Value]] = deque()
        with ThreadPoolExecutor(in_flight, "tile", limit_torch_of_thread) as pool:
            try:
                for item in items:
                    # Waiting here bounds memory: without it the pool would queue all items at once.
                    if len(pending) > in_flight:
                        yield pending.popleft().result()
                    pending.append(pool.submit(function, item))
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


def sum_of_tiles(
    form: Callable[[int], Value], tiles: Range, in_flight: int, advance: Advance,
    add: Callable[[Value, Value], Value],
) -> Value:  # fmt: skip
    """Forms something of each tile of a run and sums it in the fixed tree.

    Args:
        form: What is formed of a tile, by its number.
        tiles: Numbers of the tiles.
        in_flight: How many are held at once.
        advance: Is told of each tile.
        add: See :func:`skerch_ooc.base.partition.tree_sum`.
    """

    def counted() -> Iterator[Value]:
        for value in ordered_map(form, range(tiles.start, tiles.stop), in_flight):
            advance(1)
            yield value

    return tree_sum(counted(), add)


class Pool(Generic[Value]):
    """A pool of buffers that are made when first needed and then reused.

    Fresh memory is slow: the system zeroes each page of it on first use.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._free: queue.SimpleQueue[Value] = queue.SimpleQueue()

    def take(self) -> Value:
        """Takes a buffer, of unknown content."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return self._make()

    def give(self, value: Value) -> None:
        """Gives a buffer back for reuse."""
        self._free.put(value)
