"""Examines an operator for a plan: how many columns it applies at once, and then the probe.

Some operators go through their data once for a block, and apply a few of its columns at a time
within. How many is best depends on the machine: one by one leaves it idle, and many need memory
that grows with them. So inner calls of several widths are timed, and the narrowest that is about as
quick as the quickest is taken. The probe then looks at the operator as the run will use it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import SPARE_BYTES, PeakWatch, release_memory, resident_memory
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.probe import Probe, Timing, fingerprint_of, probe, probe_vectors, timed
from skerch_ooc.planning.memory import block_bytes

log = logging.getLogger("skerch_ooc")

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Widths of inner calls that are tried."""

_AS_QUICK = 1.03
"""Times of columns that differ by less count as equal."""
_SLOWER = 1.3
_MOST_SLOWER = 2
"""So many widths in a row that are slower by so much end the trial."""
_LONGEST_CALL = 5.0
_REPEAT_SECONDS = 0.25
_MOST_TIMED = 16
_TIMED_SECONDS = 2.0
"""Columns of the block that is timed, at most, and how long it is expected to take."""
_MOST_REPEATS = 5


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
        quickest = min(map(_column_seconds, self.timings))
        return next(one for one in self.timings if _column_seconds(one) <= _AS_QUICK * quickest)

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


def try_widths(product: Product, seed: int, *, most: int, memory: int) -> WidthTrial:
    """Times inner calls of ever larger widths.

    It ends where widths are clearly slower, a call is expected to take longer than some seconds, or
    to need more memory than there is; the widths 1 and 2 are tried whatever they take.

    Args:
        product: An operator that can be told how many columns to apply at once.
        seed: The run's seed.
        most: The most columns that a block will have.
        memory: Peak resident memory that the process may have, in bytes.

    Raises:
        OperatorError: If the operator fails on a single column.
    """
    # The first product also makes what the operator keeps for all others.
    _, took, _ = timed(product.narrowed(WIDTHS[0]), probe_vectors(product, seed, Range(0, 1)))
    # What a block takes whatever its width is to weigh little, as it will in the run.
    usual = min(most, *product.shape, _MOST_TIMED, max(1, int(_TIMED_SECONDS / took)))
    release_memory()
    held = resident_memory()
    free = memory - held - SPARE_BYTES - block_bytes(product.shape, product.dtype)
    found: list[Timing] = []
    products, slower = 1, 0
    for width in WIDTHS:
        if found and (width > min(most, *product.shape) or not _is_worth(found, free)):
            break
        try:
            timing, columns = _best_of_few(
                product.narrowed(width), seed, max(width, usual), width, held
            )
        except (MemoryError, OperatorError) as error:
            if not found:
                raise
            log.info("%d columns at once are too many: %s", width, error)
            break
        products += columns
        if found and timing.bytes > free:
            break
        found.append(timing)
        quickest = min(map(_column_seconds, found))
        slower = slower + 1 if _column_seconds(timing) > _SLOWER * quickest else 0
        if slower == _MOST_SLOWER:
            break
    release_memory()
    return WidthTrial(tuple(found), products, held)


def _is_worth(found: list[Timing], free: int) -> bool:
    """Whether a call twice as wide as the last is expected to be short enough, and to fit."""
    if len(found) == 1:
        return found[0].bytes <= free
    before, last = found[-2:]
    # On the line through the last two widths.
    seconds = last.seconds + 2 * max(0.0, last.seconds - before.seconds)
    needed = last.bytes + 2 * max(0, last.bytes - before.bytes)
    return seconds <= _LONGEST_CALL and needed <= free


def _best_of_few(
    product: Product, seed: int, columns: int, width: int, held: int
) -> tuple[Timing, int]:
    """Times an inner call of a block, several blocks if they are short; also their columns."""
    x = probe_vectors(product, seed, Range(0, columns))
    taken: list[float] = []
    with PeakWatch() as watch:
        taken.append(timed(product, x)[1])
    # The watch looks often, which takes longer than a short call does.
    while len(taken) < _MOST_REPEATS and sum(taken) < _REPEAT_SECONDS:
        taken.append(timed(product, x)[1])
    seconds = min(taken) * width / columns
    return Timing(width, seconds, max(0, watch.peak - held)), len(taken) * columns


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
        return product, *probe(product, seed, hermitian=kind == "eigh")
    trial = try_widths(product, seed, most=most, memory=memory)
    product = product.narrowed(trial.best.columns)
    findings, fingerprint = probe(product, seed, hermitian=kind == "eigh")
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
        return product, None, fingerprint_of(product.sampled, seed)
    product, findings, fingerprint = probe_at_best_width(
        product, seed, kind, most=most, memory=memory
    )
    if product.together:
        fingerprint = fingerprint_of(product.sampled, seed)
    return product, findings, fingerprint
