"""Checks at the door: that what will be measured is the curvature of the loss that is meant.

The loss of the first batch must repeat, must depend on the parameters, and must have the gradient
that it has without anything of ours around it. One product is compared with a difference of
gradients, in double precision where the loss can be copied to it. Nothing here is written, and the
model is left as it was found.
"""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointFunction

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.derivatives.batches import (
    HALF,
    mapped,
    rows,
    rows_of,
    tensors_of,
    widened,
)
from skerch_ooc.operators.derivatives.formulas import Formulas
from skerch_ooc.operators.derivatives.operator import Curvature, Objective, joined_pieces
from skerch_ooc.operators.derivatives.parameters import Chosen
from skerch_ooc.operators.derivatives.products import (
    Loss,
    begin_of,
    gradient,
    is_drawn,
    linear_in,
    linearised,
)
from skerch_ooc.operators.derivatives.reductions import ADDED
from skerch_ooc.operators.derivatives.surroundings import as_it_is, evaluation

_OURS = str(Path(__file__).parents[2])
"""Frames of a traceback in this folder tell users nothing."""
_ROWS = 4
"""Rows of the batch on which a product is compared: few, as double precision is slow."""
_LARGEST_COPY = 50_000_000
"""Entries of parameters that are copied to double precision for the comparison, at most."""
_STEPS = (1e-6, 1e-4, 3e-3, 3e-8)
"""Lengths of steps, relative to the parameters: short ones pass no kink of a ReLU, long ones help
where a loss rounds to fewer digits within."""
_AGREES = 1e-3
_AGREES_ROUGHLY = 0.1
"""What rounding to fewer digits may leave of a difference of gradients."""
_ROUGH_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_SURELY_AGREES = 1e-2
_SCATTERS = 3
"""Steps for functions of users whose loss rounds to single precision, and what may be left where
those steps agree; if they do not, so many times what they differ by."""
_HALF_AGREES = 0.1
"""What rounding to half precision may change in a gradient."""


def closeness(dtype: torch.dtype) -> float:
    """Relative difference of two gradients that rounding may explain."""
    return float(4 * torch.finfo(dtype).eps ** 0.5)


def apart(first: Tensor, second: Tensor) -> float:
    """The difference of two tensors, relative to the larger."""
    scale = max(float(first.norm()), float(second.norm()))
    return float((first - second).norm()) / scale if scale else 0.0


def require_gradient(objective: Objective, batch: Any, own: Objective) -> list[str]:
    """Requires that the loss of a batch has a gradient that repeats and is that of the user's loss.

    Args:
        objective: The loss as it is differentiated.
        batch: A batch.
        own: The loss as the user gave it.

    Returns:
        What is to be said of it.

    Raises:
        OperatorError: If it is not finite, does not depend on the parameters, does not repeat, or
            has another gradient.
    """
    objective.begin()
    with evaluation(objective.loss.model, objective.device) as guarded, Formulas(), _told():
        value = _value_of_unchanged(objective, batch)
        if not bool(torch.isfinite(value)):
            raise OperatorError(
                f"the loss of the first batch is {float(value.detach())}; look for overflow, "
                "log(0) or 0/0, or for a batch in which no target counts"
            )
        _require_whole_graph(value)
        if objective.widen:
            _require_copied(own.chosen, value)
        remarks = _unused(objective.chosen, value)
        found = joined_pieces(gradient(value, objective.chosen.tensors), False).double()
    # In half precision a gradient may have no digit right: then that of the copy is looked at.
    own = objective if objective.widen else own
    theirs = _own_gradient(own, batch)
    if guarded.autocast:
        remarks.append(
            "autocast is switched off in the loss: these are the derivatives of the loss in "
            f"{_named(objective.chosen.tensors[0].dtype)}"
        )
    if theirs is None:
        return [*remarks, "the loss has no gradient in its own precision here to compare with"]
    exact = closeness(objective.chosen.tensors[0].dtype)
    limit = _HALF_AGREES if guarded.autocast else exact
    if (off := apart(found, theirs)) > limit:
        _refuse_gradient(objective, own, batch, theirs, off)
    return remarks


def _value_of_unchanged(objective: Objective, batch: Any) -> Tensor:
    """Returns the loss of a batch, which must not be changed in place.

    Raises:
        OperatorError: If it is.
    """
    given = objective.given(batch)
    copies = mapped(given, Tensor.clone)
    versions = [one._version for one in tensors_of(copies)]
    value = objective.loss.value(copies)
    each = zip(tensors_of(batch), tensors_of(given), tensors_of(copies), versions, strict=True)
    for theirs, used, copied, version in each:
        # What is moved to a device is moved anew each time.
        if used is theirs and copied._version != version:
            raise OperatorError(
                f"the model or the loss changes the data in place (a tensor of shape "
                f"{tuple(used.shape)}), so that products would differ from call to call; let it "
                "make new tensors, or clone its inputs"
            )
    return value


def _require_copied(originals: Chosen, value: Tensor) -> None:
    """Requires that the loss of a copy of the model has nothing to do with the model itself.

    Raises:
        OperatorError: If it has; names the parameters.
    """
    if not value.requires_grad:
        return
    found = torch.autograd.grad(value, originals.tensors, retain_graph=True, allow_unused=True)
    held = [name for name, one in zip(originals.names, found, strict=True) if one is not None]
    if held:
        raise OperatorError(
            f"the loss uses {shown_list(held)} of the model itself, which its copy in "
            f"{_named(value.dtype)} does not reach; call model.to(torch.{_named(value.dtype)}) "
            "first, and make the loss of that model"
        )


@contextmanager
def _told() -> Iterator[None]:
    """Turns whatever model and loss raise into an error for users.

    Raises:
        OperatorError: With the words of the first error.
    """
    try:
        yield
    except (OperatorError, MemoryError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = ([one for one in frames if not one.filename.startswith(_OURS)] or frames)[-1]
        raise OperatorError(
            f"the loss of the first batch cannot be computed and differentiated: "
            f"{type(error).__name__}: {str(error).strip()} (in {frame.name}, {frame.filename}:"
            f"{frame.lineno}); mend the model, the loss or the data"
        ) from error


def first_words(error: Exception) -> str:
    """Returns the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _own_gradient(own: Objective, batch: Any) -> Tensor | None:
    """Returns the gradient of the loss as the user gave it, without anything of ours around it."""
    own.begin()
    with as_it_is(own.loss.model):
        with _told():
            value = own.loss.value(own.given(batch))
        try:
            return joined_pieces(gradient(value, own.chosen.tensors), False).double()
        except (RuntimeError, NotImplementedError):
            # The fast path of encoders has none.
            return None


def _refuse_gradient(
    objective: Objective, own: Objective, batch: Any, theirs: Tensor, off: float
) -> None:
    again = _own_gradient(own, batch)
    if again is None or apart(theirs, again) > closeness(objective.chosen.tensors[0].dtype):
        raise OperatorError(
            "the gradient of the loss of the first batch differs from call to call (by "
            f"{off:.1e}), so that products would, too: something in model or loss is random; "
            "seed it anew in each call, or take it out"
        )
    raise OperatorError(
        f"the gradient of the loss of the first batch is off by {off:.1e} where attention, "
        "normalisation and losses are computed by formulas that have second derivatives; "
        "report it, and give reverse=False meanwhile"
    )


def _unused(chosen: Chosen, value: Tensor) -> list[str]:
    """Names the parameters that a loss does not depend on.

    Raises:
        OperatorError: If it depends on none, or not on one that is not of the model.
    """
    parts: list[Tensor | None] = [None] * len(chosen.tensors)
    if value.requires_grad:
        parts = list(
            torch.autograd.grad(value, chosen.tensors, retain_graph=True, allow_unused=True)
        )
    unused = [name for name, part in zip(chosen.names, parts, strict=True) if part is None]
    if len(unused) == len(parts):
        raise OperatorError(
            "the loss of the first batch does not depend on the parameters "
            f"{shown_list(unused)}: compute it from the model that it is given, and do "
            "not detach it"
        )
    if foreign := [name for name in unused if name in chosen.foreign]:
        raise OperatorError(
            f"{shown_list(foreign)} are no parameters of the model, and the loss does not depend "
            "on them; give parameters of this model"
        )
    if not unused:
        return []
    return [
        f"the loss of the first batch does not depend on {shown_list(unused)}: unless that of "
        "another does, their rows are zero"
    ]


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
        strangers = _functions_of_users(objective.loss.value(objective.given(few)))
    double = _in_double(objective, few)
    if isinstance(double, str) and not strangers:
        return f"not compared with a difference of gradients in float64, as {double}"
    compares, batch = objective, few
    if not isinstance(double, str):
        compares, batch = double, widened(few, torch.float64)
    is_rough = _rounds(compares, batch)
    off, limit = _difference(compares, batch), _AGREES_ROUGHLY if is_rough else _AGREES
    if is_rough and strangers and _AGREES < off <= limit:
        off, limit = _sharper(compares, batch) or (off, limit)
    if not off <= limit:
        cause = (
            f"the derivatives of {shown_list(strangers)}, a torch.autograd.Function, cannot be "
            "differentiated: compute its backward by operations of torch on saved tensors"
            if strangers
            else "its second derivatives are not those of its first: look for .detach(), for "
            "torch.no_grad(), or for a layer that torch does not differentiate rightly"
        )
        raise OperatorError(
            f"a product differs from a difference of gradients by {off:.1e} (allowed: "
            f"{limit:.0e}); {cause}"
        )
    return f"one product agrees with a difference of gradients to {off:.0e}"


def _rounds(objective: Objective, batch: Any) -> bool:
    """Whether a loss is computed in less than double precision somewhere."""
    with evaluation(objective.loss.model, objective.device) as guarded, Formulas():
        objective.loss.value(objective.given(batch))
    return bool(guarded.dtypes & {torch.float32, *HALF})


def _few_rows(objective: Objective, batch: Any) -> Any:
    """Returns some rows of a batch; all where fewer have no gradient, as if none of them counts."""
    height = rows_of(batch)
    if not height:
        return batch
    few = rows(batch, Range(0, min(height, _ROWS)))
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
        return f"a copy of model and loss has another gradient there (off by {off:.0e})"
    return double


def _require_whole_graph(value: Tensor) -> None:
    """Refuses a graph that does not reach all parameters.

    Raises:
        OperatorError: If there is a checkpoint that keeps its own graph.
    """
    if CheckpointFunction.__name__ in _functions_of_users(value):
        raise OperatorError(
            "the model calls torch.utils.checkpoint in its reentrant way, whose graph does not "
            "reach the parameters within; set use_reentrant=False in that call"
        )


def _functions_of_users(value: Tensor) -> list[str]:
    """Names the functions with a backward of their own in the graph of a loss."""
    kinds = {
        type(node)._forward_cls  # type: ignore[attr-defined]
        for node in _graph([value])
        if isinstance(node, BackwardCFunction)
    }
    names = {kind.__name__ for kind in kinds if not kind.__module__.startswith("skerch_ooc.")}
    return sorted(names)


def _graph(values: Iterable[Tensor]) -> set[Any]:
    """Returns all nodes from which values are computed."""
    left: list[Any] = [one.grad_fn for one in values]
    seen = set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [other for other, _ in node.next_functions]
    return seen


def require_data_apart(chosen: Chosen, batches: Iterable[Any]) -> None:
    """Requires that the data are not computed from the parameters.

    Raises:
        OperatorError: If they are; names the parameters.
    """
    computed = (one for batch in batches for one in tensors_of(batch))
    leaves = {id(getattr(node, "variable", None)) for node in _graph(computed)}
    pairs = zip(chosen.names, chosen.tensors, strict=True)
    if held := [name for name, one in pairs if id(one) in leaves]:
        raise OperatorError(
            f"the data hold tensors that were computed from {shown_list(held)}, so that a part of "
            "the loss would not be differentiated; compute them in the loss, or detach() them"
        )


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
    return None if off <= closeness(operator.dtype) else f"several at once are off by {off:.0e}"
