"""Whether the losses of batches make up the loss of all data, as it is said or supposed.

Verified by gradients: that of rows of two batches together must be the weighted mean, or the sum,
of those of both. No more rows are put together than a batch has, so that it takes no more memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.derivatives.batches import joined, rows, rows_of
from skerch_ooc.operators.derivatives.checks import apart, closeness
from skerch_ooc.operators.derivatives.operator import Objective, cut_by_rows
from skerch_ooc.operators.derivatives.products import is_drawn
from skerch_ooc.operators.derivatives.reductions import ADDED, ROWS, SUPPOSED, Reduction
from skerch_ooc.operators.derivatives.surroundings import mixes_rows

_FEW_ROWS = 8

_ADVICE = (
    "give weight_of, a function of a batch that returns how much its loss counts (its rows, or "
    'the targets that are not ignored), or "sum" where the losses of batches are added'
)

_ROUNDINGS = 64
"""So many roundings are always allowed to gradients that are compared."""
_TIMES_NOISE = 16
"""And so many times the noise that is observed."""


class Together:
    """Gradients of some rows of one batch, some of another, and of both together.

    Args:
        objective: The loss.
        first: Rows of one batch.
        second: Rows of another.
        both: All of them.
    """

    def __init__(self, objective: Objective, first: Any, second: Any, both: Any) -> None:
        self._halves = (first, second)
        self.first, self.second, self.both = map(objective.gradient, (first, second, both))
        self._limit = self._rounding(objective)

    def _rounding(self, objective: Objective) -> float:
        """How far rounding may take gradients apart, relative to that of both."""
        dtype = objective.chosen.tensors[0].dtype
        sizes = [float(one.norm()) for one in (self.both, self.first, self.second)]
        noise = max(
            _ROUNDINGS * torch.finfo(dtype).eps * max(sizes),
            _TIMES_NOISE * _noise(objective, self._halves[0]),
        )
        return min(closeness(dtype), noise / sizes[0]) if sizes[0] else closeness(dtype)

    def fits(self, reduction: Reduction) -> bool:
        """Whether the gradients add up as a reduction says."""
        counts = self.counts(reduction)
        total = 1.0 if reduction.count is None else sum(counts)
        gradients = (self.first, self.second)
        made = sum(w / total * g for w, g in zip(counts, gradients, strict=True) if w)
        return isinstance(made, Tensor) and self._off(made) <= self._limit

    def counts(self, reduction: Reduction) -> list[float]:
        """What a reduction counts in the two."""
        return [
            1.0 if reduction.count is None else float(reduction.count(one)) for one in self._halves
        ]

    def share(self) -> float | None:
        """The weight of the first in a mean of both, as observed; ``None`` if it is no mean."""
        difference = self.first - self.second
        size = float((difference * difference).sum())
        if not size:
            return None
        share = float(((self.both - self.second) * difference).sum()) / size
        fits = self._off(share * self.first + (1 - share) * self.second) <= self._limit
        return share if fits and 0 <= share <= 1 else None

    def _off(self, made: Tensor) -> float:
        return apart(made, self.both)


def _noise(objective: Objective, batch: Any) -> float:
    """The error of a gradient by rounding: what changes if all rows come three times."""
    few = rows(batch, Range(0, max(1, (rows_of(batch) or 1) // 3)))
    thrice = joined(few, joined(few, few))
    once, found = objective.gradient(few), objective.gradient(thrice)
    return min(float((times * once - found).norm()) for times in (1, 3))


def agreed(
    objective: Objective, batches: list[Any], reduction: Reduction | None, rows_at_once: int | None
) -> tuple[Reduction, list[str]]:
    """Finds out how the losses of batches add up, or verifies what is said of it.

    Args:
        objective: The loss.
        batches: The data.
        reduction: What torch or the user says; ``None`` if nobody does.
        rows_at_once: Rows of the pieces into which batches are cut, if they are.

    Returns:
        The reduction, and what is to be said of it.

    Raises:
        OperatorError: If it can't be known, or is another than was said.
    """
    if is_drawn(objective.loss):
        # Drawn targets are others for each batch, so that gradients do not add up.
        assert reduction is not None
        return reduction, []
    pieces = [piece for batch in batches for piece in cut_by_rows(batch, rows_at_once)]
    if len(pieces) == 1:
        return reduction or ADDED, []
    if reduction is None:
        return _supposed(objective, pieces), []
    if sum(1 for weight in reduction.weights(pieces) if weight) == 1:
        return reduction, []
    looked_at: Iterable[Any] = pieces
    if reduction.is_known:
        # Then a few rows will do.
        looked_at = (next(cut_by_rows(one, _FEW_ROWS)) if rows_of(one) else one for one in pieces)
    is_verified = False
    for together in _pairs(objective, looked_at, within=True):
        if together is None or not any(together.counts(reduction)):
            continue
        if not together.fits(reduction):
            return reduction, [_said(together, objective, reduction, rows_at_once)]
        is_verified = True
        if reduction.is_known:
            break
    if not is_verified and mixes_rows(objective.loss.model):
        return reduction, [_said(None, objective, reduction, rows_at_once)]
    return reduction, []


def _supposed(objective: Objective, pieces: list[Any]) -> Reduction:
    """Returns the reduction that all batches show."""
    found = list(SUPPOSED)
    for together in _pairs(objective, pieces):
        if together is None:
            raise OperatorError(
                "how much the loss of each batch counts cannot be known, as rows of two batches do "
                "not fit together: tensors have other lengths, or there are lists beside them; "
                f"{_ADVICE}"
            )
        fitting = [one for one in found if together.fits(one)]
        if not fitting:
            raise OperatorError(f"{_observed(together, objective)}; {_ADVICE}")
        found = fitting
    if len(found) > 1:
        raise OperatorError(
            "how much the loss of each batch counts cannot be known, as their gradients are too "
            f"small or alike; {_ADVICE}"
        )
    return found[0]


def _observed(together: Together, objective: Objective) -> str:
    """Says how the losses of rows of two batches add up, which is not as it was supposed."""
    share, (first, second) = together.share(), together.counts(ROWS)
    rows_say = f"{first:.0f} and {second:.0f} rows of two batches"
    if share is None:
        layer = mixes_rows(objective.loss.model)
        why = (
            f"layer {layer} takes statistics of the batch; call model.eval(), if you mean the "
            "function that the model is then"
            if layer
            else "as where a batch is compared with itself, or a term is added to a sum"
        )
        return (
            f"the loss of {rows_say} together is neither the mean of both, weighted by rows, nor "
            f"their sum: {why}"
        )
    return (
        f"the loss of {rows_say} together is the mean of both with the weights {share:.3g} and "
        f"{1 - share:.3g}: it counts something else than rows, such as tokens"
    )


def _said(
    together: Together | None,
    objective: Objective,
    reduction: Reduction,
    rows_at_once: int | None,
) -> str:
    """Says that data mean the weighted mean of their batches.

    Raises:
        OperatorError: If batches are cut, which would change the loss, or weights are wrong.
    """
    layer = mixes_rows(objective.loss.model)
    why = (
        f"layer {layer} takes statistics of the batch"
        if layer
        else "rows of two batches together have another"
    )
    share = together.share() if together else None
    if together and share is not None and reduction.count is None:
        raise OperatorError(
            f"the {reduction.name} of batches are to be added, but that of rows of two batches "
            f"together is the mean of both, with the weights {share:.3g} and {1 - share:.3g}; "
            f"{_ADVICE}"
        )
    if together and share is not None:
        first, second = together.counts(reduction)
        raise OperatorError(
            f"the {reduction.name} are {first:.6g} and {second:.6g} for rows of two batches, whose "
            f"loss weighs them {share:.4g} to {1 - share:.4g}; {_ADVICE}"
        )
    if rows_at_once is not None:
        raise OperatorError(
            f"rows_at_once = {rows_at_once}: the loss of a batch is not that of its pieces, as "
            f"{why}; leave it out"
        )
    how = "sum" if reduction.count is None else "weighted mean"
    instead = "; model.eval() would make it one" * bool(layer)
    return (
        f"the loss is no sum over rows ({why}): that of the data is the {how} of the batches' own"
        f"{instead}"
    )


def _pairs(
    objective: Objective, pieces: Iterable[Any], *, within: bool = False
) -> Iterator[Together | None]:
    """Yields parts of each batch and of the next together; ``None`` where they do not fit.

    Args:
        objective: The loss.
        pieces: The batches.
        within: Whether to take parts of one batch instead where those of two do not fit.
    """
    for first, second in pairwise(pieces):
        for number in (0, 1):
            parts = _part(first, number), _part(second, 1 - number)
            both = None if any(one is None for one in parts) else joined(*parts)
            if both is None and within:
                parts, both = (_part(first, 0), _part(first, 1)), first
            usable = both is not None and all(one is not None for one in parts)
            yield _together(objective, *parts, both) if usable else None


def _together(objective: Objective, first: Any, second: Any, both: Any) -> Together | None:
    """Returns gradients of rows together; ``None`` if the model takes no such batches."""
    try:
        return Together(objective, first, second, both)
    except (RuntimeError, ValueError):
        # Batch normalisation wants more than one row, and others a number of them.
        return None


def _part(batch: Any, number: int) -> Any:
    """Returns the first two thirds of a batch, or the last third; ``None`` if it has no rows.

    They are not of equal size, so that weights that are all the same do not pass.
    """
    height = rows_of(batch)
    if not height:
        return None
    middle = -(-2 * height // 3)
    chosen = Range(0, middle) if number == 0 else Range(min(middle, height - 1), height)
    return rows(batch, chosen)
