"""Pace of measuring: seconds per product and workers at work, by receipts, else by the plan.

Nothing in a log is trusted: what is not as this package writes it is left out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from skerch_ooc.planning.plan import Plan
from skerch_ooc.store.rundir import Run

_LAST_TASKS = 64
_MOST_SECONDS = 1e9
_SLACK_SECONDS = 60.0
"""A worker is at work if its last task ended no longer ago than it takes, twice, and this."""


@dataclass(frozen=True)
class Pace:
    """How quickly a run is measured.

    Attributes:
        seconds: Seconds that a product takes in one process; ``None`` if nothing is known.
        tasks: How many of the last tasks it is known by; 0 if by the plan's probe.
        workers: Processes that have been at work lately.
    """

    seconds: float | None
    tasks: int
    workers: int


@dataclass(frozen=True)
class _Done:
    """A task that was done: its products and seconds, who did it, and when it ended."""

    products: float
    seconds: float
    worker: tuple[Any, Any]
    ended: float


def pace_of(run: Run, summands: frozenset[int], now: float) -> Pace:
    """Tells the pace by the last receipts, else by what the probe of the plan took.

    Args:
        run: The run.
        summands: The summands of the operator that count; others may take longer or shorter.
        now: The time, in seconds since 1970.
    """
    read = (_done(record, run.plan, summands) for record in run.receipts())
    last = deque((done for done in read if done is not None), maxlen=_LAST_TASKS)
    products = sum(done.products for done in last)
    if not products:
        return Pace(foretold_seconds(run) if summands == {0} else None, 0, 0)
    workers = {
        done.worker for done in last if now - done.ended <= 2 * done.seconds + _SLACK_SECONDS
    }
    return Pace(sum(done.seconds for done in last) / products, len(last), len(workers))


def foretold_seconds(run: Run) -> float | None:
    """Returns the seconds per product in one process that the plan's probe foretold, if it did."""
    found = None
    for record in run.log("plan"):
        estimate = record.get("estimate")
        if isinstance(estimate, Mapping):
            seconds, products = _number(estimate.get("seconds")), _number(estimate.get("products"))
            found = seconds / products if seconds is not None and products else None
    return found


def _done(record: Mapping[str, Any], plan: Plan, summands: frozenset[int]) -> _Done | None:
    """Reads a receipt of a measured task; ``None`` if it is another, or not as it should be."""
    part, seconds = record.get("part", 0), _number(record.get("task_seconds"))
    if record.get("stage") != "measure" or not record.get("published") or not seconds:
        return None
    if not isinstance(part, int) or not 0 <= part < len(plan.parts):
        return None
    count = _number(record.get("products"))
    try:
        ended = datetime.fromisoformat(record["time"])
        ended = ended if ended.tzinfo else ended.replace(tzinfo=UTC)
        worker = (str(record["host"]), str(record["pid"]))
    except (KeyError, TypeError, ValueError):
        return None
    if not count or plan.parts[part].summand not in summands:
        return None
    return _Done(count * plan.parts[part].weight, seconds, worker, ended.timestamp())


def _number(stated: Any) -> float | None:
    """Returns a number that may be true; ``None`` for what is none."""
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return None
    return float(stated) if math.isfinite(stated) and 0 <= stated <= _MOST_SECONDS else None
