"""Checks at the door: that what will be measured is the curvature of the loss that is meant.

The loss of the first batch must repeat, must depend on the parameters, and must have the gradient
that it has without anything of ours around it. Nothing here is written, and the model is left as it
was found.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.figures import short
from skerch_ooc.operators.derivatives.batches import (
    mapped,
    tensors_of,
)
from skerch_ooc.operators.derivatives.formulas import Formulas, losses_in_double
from skerch_ooc.operators.derivatives.graphs import require_whole_graph
from skerch_ooc.operators.derivatives.operator import Objective, joined_pieces
from skerch_ooc.operators.derivatives.parameters import Chosen
from skerch_ooc.operators.derivatives.products import (
    gradient,
)
from skerch_ooc.operators.derivatives.surroundings import as_it_is, evaluation

_OURS = str(Path(__file__).parents[2])
"""Frames of a traceback in this folder tell users nothing."""
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
    taken = objective.chosen.tensors[0].dtype if objective.widen else None
    with evaluation(objective.loss.model, objective.device) as guarded, Formulas(), _told(taken):
        value = _value_of_unchanged(objective, batch)
        if not bool(torch.isfinite(value)):
            raise OperatorError(
                f"the loss of the first batch is {float(value.detach())}; look for overflow, "
                "log(0) or 0/0, or for a batch in which no target counts"
            )
        require_whole_graph(value)
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
    if (off := apart(found, theirs)) <= limit:
        return remarks
    # A small loss has a gradient of few digits in single precision.
    with losses_in_double():
        exactly = _own_gradient(own, batch)
    if exactly is None or apart(found, exactly) > limit:
        _refuse_gradient(objective, own, batch, theirs, off)
    said = f"the gradient of the loss is off by {short(off)} where that is computed in float32"
    return [*remarks, f"{said}: here the loss is computed in float64"]


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
def _told(taken: torch.dtype | None = None) -> Iterator[None]:
    """Turns whatever model and loss raise into an error for users.

    Args:
        taken: The dtype that a copy of the model is in; ``None``: it is the model itself.

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
        advice = "mend the model, the loss or the data"
        if taken is not None:
            advice = (
                f"all parameters and data are taken in {_named(taken)} here: where model or loss "
                "cast to a dtype of their own, let them cast to that of their weights"
            )
        raise OperatorError(
            f"the loss of the first batch cannot be computed and differentiated: "
            f"{type(error).__name__}: {str(error).strip()} (in {frame.name}, {frame.filename}:"
            f"{frame.lineno}); {advice}"
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
            f"{short(off)}), so that products would, too: something in model or loss is random; "
            "seed it anew in each call, or take it out"
        )
    raise OperatorError(
        f"the gradient of the loss of the first batch is off by {short(off)} where attention, "
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
