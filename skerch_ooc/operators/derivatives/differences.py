"""A product is compared with a difference of gradients, and several columns with each alone.

In double precision where the loss can be copied to it. The model is left as it was found.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.figures import short
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.derivatives.batches import (
    HALF,
    rows,
    rows_of,
    tensors_of,
    widened,
)
from skerch_ooc.operators.derivatives.checks import apart, closeness, first_words
from skerch_ooc.operators.derivatives.formulas import Formulas
from skerch_ooc.operators.derivatives.graphs import functions_of_users
from skerch_ooc.operators.derivatives.operator import Curvature, Objective, joined_pieces
from skerch_ooc.operators.derivatives.products import (
    Loss,
    begin_of,
    is_drawn,
    linear_in,
    linearised,
)
from skerch_ooc.operators.derivatives.reductions import ADDED
from skerch_ooc.operators.derivatives.surroundings import evaluation

_ROWS = 4
"""Rows of the batch on which a product is compared: few, as double precision is slow."""
_ROWS_OF_DIGITS, _ENTRIES_OF_DIGITS = 64, 4096
"""Rows on which one product is compared with itself in double precision, and entries of data that
more than four rows may have."""
_LARGEST_COPY = 50_000_000
"""Entries of parameters that are copied to double precision for the comparison, at most."""
_STEPS = (1e-6, 1e-4, 3e-3, 3e-8)
"""Lengths of steps, relative to the parameters: short ones pass no kink of a ReLU, long ones help
where a loss rounds to fewer digits within."""
_AGREES = 1e-3
_AGREES_ROUGHLY = 0.1
"""What rounding to fewer digits may leave of a difference of gradients."""
_ROUGH_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_BOUNDS_ALLOW = 8
"""The bounds of values have so many epsilons of the largest for the rounding of products."""
_SURELY_AGREES = 1e-2
_SCATTERS = 3
"""Steps for functions of users whose loss rounds to single precision, and what may be left where
those steps agree; if they do not, so many times what they differ by."""


def converted(objective: Objective, dtype: torch.dtype) -> Objective:
    """Returns a copy of an objective in another floating-point type.

    Raises:
        Exception: Whatever the user's objects raise when they are copied.
    """
    memo: dict[int, Any] = {}
    # Targets that were drawn are not copied, but drawn again.
    objective.begin()
    loss: Loss = copy.deepcopy(objective.loss, memo)
    held = [getattr(one, "loss", None) for one in (loss.of_batch, loss.of_outputs)]
    for module in (loss.model, *held):
        if isinstance(module, nn.Module):
            module.to(dtype)
    tensors = tuple(memo[id(one)] for one in objective.chosen.tensors)
    return replace(
        objective, loss=loss, chosen=replace(objective.chosen, tensors=tensors), widen=True
    )


def compared(objective: Objective, batch: Any) -> str:
    """Compares a product with a difference of gradients.

    Args:
        objective: The loss.
        batch: A batch, of which a few rows are used.

    Returns:
        What came out, for people.

    Raises:
        OperatorError: If they differ.
    """
    few = _few_rows(objective, batch)
    with evaluation(objective.loss.model, objective.device), Formulas():
        strangers = functions_of_users(objective.loss.value(objective.given(few)))
    double = _in_double(objective, few)
    if isinstance(double, str) and not strangers:
        return f"not compared with a difference of gradients in float64, as {double}"
    compares, given = objective, few
    if not isinstance(double, str):
        compares, given = double, widened(few, torch.float64)
    is_rough = _rounds(compares, given)
    off, limit = _difference(compares, given), _AGREES_ROUGHLY if is_rough else _AGREES
    if is_rough and strangers and _AGREES < off <= limit:
        off, limit = _sharper(compares, given) or (off, limit)
    if not off <= limit:
        cause = (
            f"the derivatives of {shown_list(strangers)}, a torch.autograd.Function, cannot be "
            "differentiated: compute its backward by operations of torch on saved tensors"
            if strangers
            else "its second derivatives are not those of its first: look for .detach(), for "
            "torch.no_grad(), or for a layer that torch does not differentiate rightly"
        )
        raise OperatorError(
            f"a product differs from a difference of gradients by {short(off)} (allowed: "
            f"{short(limit, 1)}); {cause}"
        )
    found = f"one product agrees with a difference of gradients to {short(off, 1)}"
    return found if isinstance(double, str) else found + _said_of_digits(objective, batch, double)


def _said_of_digits(objective: Objective, batch: Any, double: Objective) -> str:
    """Says what a product has of rounding, where that is more than bounds of values allow for."""
    tensors = objective.chosen.tensors
    dtype = tensors[0].dtype
    if dtype == torch.float64 or is_drawn(objective.loss):
        return ""
    entries = sum(one.numel() for one in tensors_of(batch)) or 1
    able = _ENTRIES_OF_DIGITS * (rows_of(batch) or 0) // entries
    batch = _few_rows(objective, batch, max(_ROWS, min(able, _ROWS_OF_DIGITS)))
    generator = torch.Generator().manual_seed(1)
    column = torch.randn(sum(one.numel() for one in tensors), generator=generator).to(tensors[0])
    mine = Curvature(objective, [batch], ADDED) @ column
    wide = Curvature(double, [widened(batch, torch.float64)], ADDED) @ column.double()
    off = apart(mine.double(), wide)
    if off <= 2 * _BOUNDS_ALLOW * torch.finfo(dtype).eps:
        return ""
    return (
        f", and with itself in float64 to {short(off, 1)}: values may be off by about that part of "
        "the largest, whatever their bounds, unless model and data are float64"
    )


def _rounds(objective: Objective, batch: Any) -> bool:
    """Whether a loss is computed in less than double precision somewhere."""
    with evaluation(objective.loss.model, objective.device) as guarded, Formulas():
        objective.loss.value(objective.given(batch))
    return bool(guarded.dtypes & {torch.float32, *HALF})


def _few_rows(objective: Objective, batch: Any, most: int = _ROWS) -> Any:
    """Returns some rows of a batch; all where fewer have no gradient, as if none of them counts."""
    height = rows_of(batch)
    if not height:
        return batch
    few = rows(batch, Range(0, min(height, most)))
    try:
        is_usable = bool(torch.isfinite(objective.gradient(few)).all())
    except (RuntimeError, ValueError, LookupError, TypeError):
        # Whatever a model raises that wants batches of a certain size.
        return batch
    return few if is_usable else batch


def _in_double(objective: Objective, batch: Any) -> Objective | str:
    """Returns the objective in double precision, or why there is none with the same gradient."""
    tensors = objective.chosen.tensors
    if sum(one.numel() for one in tensors) > _LARGEST_COPY:
        return f"there are more than {_LARGEST_COPY} parameters"
    try:
        double = converted(objective, torch.float64)
        double = replace(double, widen=False, begin=begin_of(double.loss))
        if is_drawn(double.loss):
            # The same draws of other digits may be other targets.
            return double
        theirs = double.gradient(widened(batch, torch.float64))
    except Exception as error:  # noqa: BLE001 (said in the remarks)
        # Whatever a user's own objects raise: they need not be made for copies, nor for double.
        return f"a copy of model and loss fails there ({first_words(error)})"
    off = apart(theirs, objective.gradient(batch))
    if off > closeness(tensors[0].dtype):
        return f"a copy of model and loss has another gradient there (off by {short(off, 1)})"
    return double


def _difference(objective: Objective, batch: Any) -> float:
    """How far a product is from a difference of gradients, with the best of some steps."""
    best = math.inf
    for off, _ in _differences(objective, batch, _STEPS):
        best = min(best, off)
        if best <= _AGREES:
            break
    return best


def _sharper(objective: Objective, batch: Any) -> tuple[float, float] | None:
    """The same with the step whose slope is most like that of another; and what rounding explains.

    A wrong derivative is told from rounding by that: the slopes of all steps agree on it. Where
    they do not agree, as near a kink, there is nothing to tell.
    """
    taken = list(_differences(objective, batch, _ROUGH_STEPS))
    scatters = [
        min(_scatter(mine, theirs) for _, theirs in taken if theirs is not mine)
        for _, mine in taken
    ]
    least = min(scatters)
    limit = max(_SURELY_AGREES, _SCATTERS * least)
    return (taken[scatters.index(least)][0], limit) if limit < _AGREES_ROUGHLY else None


def _scatter(first: Tensor, second: Tensor) -> float:
    """How far two slopes are apart; infinite where rounding leaves nothing of one."""
    return apart(first, second) if bool(first.any()) and bool(second.any()) else math.inf


def _differences(
    objective: Objective, batch: Any, steps: Iterable[float]
) -> Iterator[tuple[float, Tensor]]:
    """Yields how far a product is from the slope that each step finds, and this slope."""
    tensors = objective.chosen.tensors
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(one.shape, generator=generator).to(one) for one in tensors]
    slopes = objective.gradient(batch).to(tensors[0])
    if bool((slopes != 0).any()):
        # What has no gradient stays: torch takes the row of an embedding's padding for fixed.
        cuts = torch.split(slopes, [one.numel() for one in tensors])
        v = [one * (cut.view_as(one) != 0) for one, cut in zip(v, cuts, strict=True)]
    flat = joined_pieces(v, False)
    found = Curvature(objective, [batch], ADDED) @ flat
    size = 1 + float(torch.cat([one.detach().reshape(-1) for one in tensors]).double().norm())
    derivative = _slope_of_gauss_newton if objective.loss.outputs else _slope_of_gradient
    for step in steps:
        h = step * size / float(flat.double().norm())
        yield derivative(objective, batch, v, h, found.double())


@contextmanager
def _displaced(tensors: tuple[Tensor, ...], v: list[Tensor], h: float) -> Iterator[None]:
    """Adds ``h v`` to parameters for a while."""
    kept = [one.data for one in tensors]
    try:
        for one, piece in zip(tensors, v, strict=True):
            one.data = one.data + h * piece
        yield
    finally:
        for one, data in zip(tensors, kept, strict=True):
            one.data = data


def _central(tensors: Any, v: list[Tensor], h: float, function: Callable[[], Tensor]) -> Tensor:
    """The derivative of a function of the parameters in a direction, by a central difference."""
    with _displaced(tensors, v, h):
        upper = function()
    with _displaced(tensors, v, -h):
        lower = function()
    return (upper - lower) / (2 * h)


def _slope_of_gradient(
    objective: Objective, batch: Any, v: list[Tensor], h: float, found: Tensor
) -> tuple[float, Tensor]:
    slope = _central(objective.chosen.tensors, v, h, lambda: objective.gradient(batch))
    level = _error_of_gradient(objective, batch, v, h)
    # Both relative, so that steps differ by what either of them differs by.
    relative = slope.reshape(-1) / (float(slope.norm()) or 1.0)
    measured = torch.cat([relative, slope.new_tensor([level])])
    return max(apart(found, slope), abs(level)), measured


def _error_of_gradient(objective: Objective, batch: Any, v: list[Tensor], h: float) -> float:
    """How far the slope of the loss is from what its gradient says, relatively."""

    def value() -> Tensor:
        with evaluation(objective.loss.model, objective.device), Formulas():
            return objective.loss.value(objective.given(batch)).detach()

    slopes, direction = objective.gradient(batch), joined_pieces(v, False).double()
    expected = float((slopes * direction).sum())
    # A direction that happens to be level says little.
    usual = float(slopes.norm() * direction.norm()) / math.sqrt(len(slopes))
    off = float(_central(objective.chosen.tensors, v, h, value)) - expected
    return off / max(abs(expected), usual / 4, 1e-300)


def _slope_of_gauss_newton(
    objective: Objective, batch: Any, v: list[Tensor], h: float, found: Tensor
) -> tuple[float, Tensor]:
    """The same for ``v^T J^T H J v``, with ``J v`` as a difference of outputs."""
    loss, given, tensors = objective.loss, objective.given(batch), objective.chosen.tensors
    objective.begin()
    with evaluation(loss.model, objective.device), Formulas():
        cut = linearised(loss, given, tensors)

        def outputs() -> Tensor:
            made = linearised(loss, given, tensors).outputs
            return torch.cat([one.detach().reshape(-1) for one in made])

        pushed = _central(tensors, v, h, outputs)
        pieces = [
            piece.view_as(one)
            for piece, one in zip(
                torch.split(pushed, [one.numel() for one in cut.at]), cut.at, strict=True
            )
        ]
        curved = joined_pieces(linear_in(cut.slopes, cut.at)(pieces, False), False).double()
    expected = float(pushed.double() @ curved[:, 0])
    actual = float((joined_pieces(v, False).double() * found).sum())
    return abs(actual - expected) / max(abs(actual), abs(expected), 1e-300), pushed


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """Holds where a loss is differentiated for the first time.

    Raises:
        OperatorError: If torch has no derivative of something in it; names what torch names.
    """
    try:
        yield
    except RuntimeError as error:
        # Of which NotImplementedError is one.
        if not any(words in str(error) for words in ("not implemented", "differentiate twice")):
            raise
        raise OperatorError(
            f"torch cannot differentiate the loss twice: {first_words(error)}; compute it by other "
            "layers or functions"
        ) from error


def why_one_by_one(objective: Objective, batch: Any) -> str | None:
    """Says why columns are to be taken one by one; ``None`` if several come out as one by one do.

    Functions of users, and some of torch, cannot be differentiated for several at once.
    """
    operator = Curvature(objective, [_few_rows(objective, batch)], ADDED)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(operator.shape[0], 2, generator=generator).to(operator.device, operator.dtype)
    alone = operator.one_by_one() @ v
    try:
        together = operator @ v
    except Exception as error:  # noqa: BLE001 (said in the remarks)
        # torch raises errors of many kinds where it has no rule for several columns.
        return f"several at once fail ({first_words(error)})"
    off = apart(together, alone)
    return (
        None if off <= closeness(operator.dtype) else f"several at once are off by {short(off, 1)}"
    )
