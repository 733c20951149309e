"""Examines an operator for a plan: how many columns it applies at once, and then the probe.

Some operators go through their data once for a block, and apply a few of its columns at a time
within. How many is best depends on the machine: one by one leaves it idle, and many need memory
that grows with them. So inner calls of several widths are timed, and the narrowest that is about as
quick as the quickest is taken. The probe then looks at the operator as the run will use it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import SPARE_BYTES, PeakWatch, release_memory, resident_memory
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.probe import (
    Probe,
    Timing,
    fingerprint_of,
    probe,
    probe_vectors,
    require_range,
    timed,
)
from skerch_ooc.planning.memory import block_bytes

log = logging.getLogger("skerch_ooc")

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Widths of inner calls that are tried."""

_AS_QUICK = 1.08
"""Times of columns that differ by less count as equal: timing errs, and narrow calls take less
memory."""
_SLOWER = 1.3
_IN_A_ROW = 2
"""So many widths in a row that are slower by so much end the trial."""
_CLEAR = 1.5
"""Two repeats that differ by so much are enough."""
_LONGEST_CALL = 5.0
_LONG_CALL = 0.5
"""A call so long needs neither a warm-up nor repeats to be told from one that is clearly slower."""
_MOST_TIMED = 16
_TIMED_SECONDS = 0.1
"""Columns of the block that is timed, at most, and how long it is expected to take."""
_LEAST_REPEATS, _MOST_REPEATS = 3, 5
_REPEAT_SECONDS = 0.5
_LONG_PAIRS = 4.0
"""Seconds after which no more repeats than the least are needed, and after which one is enough."""
_PRODUCTS, _SECONDS = 30, 3.0
"""Where a trial has taken both, wider calls are tried only while they are clearly quicker."""


@dataclass(frozen=True)
class WidthTrial:
    """What inner calls of several widths took.

    Attributes:
        timings: The best of each width, from the narrowest to the widest; their bytes are those of
            the process beyond what it holds between calls.
        products: Products that it took.
        held_bytes: Resident memory of the process between calls.
    """

    timings: tuple[Timing, ...]
    products: int
    held_bytes: int

    @property
    def best(self) -> Timing:
        """The narrowest width that is about as quick for a column as the quickest."""
        return _best(self.timings)

    def completed(self, findings: Probe) -> Probe:
        """Returns the findings of a probe with what follows from the trial: time and memory."""
        first, best = self.timings[0], self.best
        further = max(1, best.columns - 1)
        column = max(0.0, (best.seconds - first.seconds) / further)
        if best is first:
            column = best.seconds
        return replace(
            findings,
            products=findings.products + self.products,
            call_seconds=max(0.0, best.seconds - best.columns * column),
            column_seconds=column,
            # A block only adds its own columns, which the plan counts.
            column_bytes=0,
            baseline_bytes=self.held_bytes,
            columns_at_once=best.columns,
            inner_bytes=best.bytes,
            widths=self.timings,
        )


def _column_seconds(one: Timing) -> float:
    return one.seconds / one.columns


def _best(timings: Sequence[Timing]) -> Timing:
    """The narrowest width that is about as quick for a column as the quickest."""
    quickest = min(map(_column_seconds, timings))
    return next(one for one in timings if _column_seconds(one) <= _AS_QUICK * quickest)


def try_widths(product: Product, seed: int, *, most: int, memory: int) -> WidthTrial:
    """Times inner calls of ever larger widths, each in turn with the best so far.

    It ends where two widths in a row are clearly slower, a call is expected to take longer than
    some seconds, or to need more memory than there is; the widths 1 and 2 are tried whatever they
    take. Where it has taken both 30 products and three seconds, two widths in a row that are not
    clearly quicker end it, too.

    Args:
        product: An operator that can be told how many columns to apply at once.
        seed: The run's seed.
        most: The most columns that a block will have.
        memory: Peak resident memory that the process may have, in bytes.

    Raises:
        OperatorError: If the operator fails on a single column.
    """
    stopwatch = _Stopwatch(product, seed)
    # The first product also makes what the operator keeps for all others.
    stopwatch.seconds(WIDTHS[0], 1)
    release_memory()
    stopwatch.held = held = resident_memory()
    free = memory - held - SPARE_BYTES - block_bytes(product.shape, product.dtype)
    found = [stopwatch.one_column()]
    widest = min(most, *product.shape)
    # What a block takes whatever its width is to weigh little, as it will in the run.
    usual = min(widest, _MOST_TIMED, _power_of_two(_TIMED_SECONDS / found[0].seconds))
    for width in WIDTHS[1:]:
        if width > widest or not _is_worth(found, free) or _is_over(found, stopwatch.is_spent):
            break
        try:
            timing = stopwatch.against(_best(found), width, max(width, usual))
        except (MemoryError, OperatorError) as error:
            log.info("%d columns at once are too many: %s", width, error)
            break
        if timing.bytes > free:
            break
        found.append(timing)
    release_memory()
    return WidthTrial(stopwatch.scaled(found), stopwatch.products, held)


class _Stopwatch:
    """Times inner calls of several widths, and counts the products that this takes.

    A processor is busier at one time than at another. So what counts is by how much a width is
    quicker than another one that is timed in turn with it, the least seconds of each.

    Attributes:
        products: Products so far.
        held: Resident memory of the process between calls.
    """

    def __init__(self, product: Product, seed: int) -> None:
        self._product, self._seed = product, seed
        self.products, self.held = 0, 0
        self._taken = 0.0
        self._least: dict[int, float] = {}
        """Seconds of a column, at each width, of the widest blocks that it was timed with."""
        self._vectors = probe_vectors(product, seed, Range(0, 1))

    @property
    def is_spent(self) -> bool:
        """Whether the trial has taken its products and its time."""
        return self._is_spent_after(0)

    def _is_spent_after(self, products: int) -> bool:
        return self.products + products > _PRODUCTS and self._taken > _SECONDS

    def seconds(self, width: int, columns: int) -> float:
        """Times a block with inner calls of some width."""
        if columns > self._vectors.shape[1]:
            self._vectors = probe_vectors(self._product, self._seed, Range(0, columns))
        _, took, _ = timed(self._product.narrowed(width), self._vectors[:, :columns])
        self.products += columns
        self._taken += took
        return took

    def _watched(self, width: int) -> tuple[float, int]:
        """Makes one inner call; returns its seconds, and bytes beyond what the process holds."""
        with PeakWatch() as watch:
            seconds = self.seconds(width, width)
        return seconds, max(0, watch.peak - self.held)

    def one_column(self) -> Timing:
        """Times inner calls of one column."""
        seconds, size = self._watched(1)
        if seconds < _LONG_CALL:
            # The watch looks often, which takes longer than a short call does.
            seconds = min(self.seconds(1, 1) for _ in range(_LEAST_REPEATS))
        self._least[1] = seconds
        return Timing(1, seconds, size)

    def against(self, best: Timing, width: int, columns: int) -> Timing:
        """Times inner calls of a width, in turn with the best so far.

        Args:
            best: What the best width so far took.
            width: The width.
            columns: Columns of the block that is timed.

        Returns:
            What they took, if the best take what was found before.
        """
        seconds, size = self._watched(width)
        self._least[width] = seconds / width
        ratio = self._least[width] / self._least[best.columns]
        if seconds < _LONG_CALL or not _is_clear(ratio):
            ratio = self._ratio(best.columns, width, columns)
        return Timing(width, ratio * _column_seconds(best) * width, size)

    def _ratio(self, narrow: int, wide: int, columns: int) -> float:
        """Compares the least seconds of two widths, which are timed in turn."""
        least, before, repeats = dict.fromkeys((narrow, wide), math.inf), self._taken, 0
        while True:
            for width in least:
                least[width] = min(least[width], self.seconds(width, columns))
            repeats += 1
            ratio, took = least[wide] / least[narrow], self._taken - before
            if (
                repeats == _MOST_REPEATS
                or (_is_clear(ratio) and (repeats > 1 or took > _LONG_CALL))
                or (repeats > 1 and self._is_spent_after(2 * columns))
                or (repeats >= _LEAST_REPEATS and took > _REPEAT_SECONDS)
                or took > _LONG_PAIRS
            ):
                break
        self._least |= {width: seconds / columns for width, seconds in least.items()}
        return ratio

    def scaled(self, found: list[Timing]) -> tuple[Timing, ...]:
        """Scales timings so that the best has the seconds that it was seen to take."""
        best = _best(found)
        factor = self._least[best.columns] / _column_seconds(best)
        return tuple(replace(one, seconds=factor * one.seconds) for one in found)


def _is_clear(ratio: float) -> bool:
    return not 1 / _CLEAR <= ratio <= _CLEAR


def _power_of_two(limit: float) -> int:
    """The largest power of two within a limit, or 1."""
    return 1 << max(0, int(limit).bit_length() - 1)


def _is_over(found: list[Timing], is_spent: bool) -> bool:
    """Whether two widths were slower than the best before them; clearly, while there is time."""
    if len(found) <= _IN_A_ROW:
        return False
    limit = (1 / _AS_QUICK if is_spent else _SLOWER) * _column_seconds(_best(found[:-_IN_A_ROW]))
    return all(_column_seconds(one) > limit for one in found[-_IN_A_ROW:])


def _is_worth(found: list[Timing], free: int) -> bool:
    """Whether a call twice as wide as the last is expected to be short enough, and to fit."""
    if len(found) == 1:
        return found[0].bytes <= free
    before, last = found[-2:]
    # On the line through the last two widths.
    seconds = last.seconds + 2 * max(0.0, last.seconds - before.seconds)
    needed = last.bytes + 2 * max(0, last.bytes - before.bytes)
    return seconds <= _LONGEST_CALL and needed <= free


def probe_at_best_width(
    product: Product, seed: int, kind: str, *, most: int, memory: int
) -> tuple[Product, Probe, dict[str, Any]]:
    """Chooses the width of an operator's inner calls, if it can be told, and probes it.

    Args:
        product: The operator.
        seed: The run's seed.
        kind: ``"eigh"``, if it must be Hermitian, or ``"svd"``.
        most: The most columns that a block will have.
        memory: Peak resident memory that the process may have, in bytes.

    Returns:
        The operator as the run is to apply it, the probe's findings, and the fingerprint.

    Raises:
        OperatorError: As of :func:`skerch_ooc.operators.probe.probe`.
    """
    if product.columns_at_once is None:
        return product, *probe(product, seed, kind == "eigh", memory)
    trial = try_widths(product, seed, most=most, memory=memory)
    product = product.narrowed(trial.best.columns)
    findings, fingerprint = probe(product, seed, kind == "eigh", memory)
    return product, trial.completed(findings), fingerprint


def examine(
    product: Product, seed: int, kind: str, *, most: int, memory: int
) -> tuple[Product, Probe | None, dict[str, Any]]:
    """Does what :func:`probe_at_best_width` does, as far as an operator needs it for a plan.

    A matrix whose rows are at hand surely repeats itself and has the right adjoint. To probe that
    would read all of it several times, so that only a few of its rows are looked at. Of such an
    operator there are no findings then, and the fingerprint is that of a few of its rows.
    """
    if product.together and kind == "svd":
        return product, None, _fingerprint_of_sample(product.sampled, seed)
    product, findings, fingerprint = probe_at_best_width(
        product, seed, kind, most=most, memory=memory
    )
    if product.together:
        fingerprint = fingerprint_of(product.sampled, seed)
    return product, findings, fingerprint


def _fingerprint_of_sample(sampled: Product, seed: int) -> dict[str, Any]:
    """The fingerprint of a few rows, which may be zero, but not out of range."""
    y = sampled(probe_vectors(sampled, seed, Range(0, 1)))
    if y.any():
        require_range(y)
    return fingerprint_of(sampled, seed, y)
