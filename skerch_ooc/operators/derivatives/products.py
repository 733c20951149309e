"""Products with the Hessian or the Gauss-Newton matrix of a loss, by torch alone.

All are taken reverse over reverse, with the graph of the gradient kept for a whole block of
columns: the Hessian's are gradients of ``grad(loss)^T v`` (Pearlmutter 1994, "Fast exact
multiplication by the Hessian"); those of the Gauss-Newton matrix ``J^T H J v`` take ``J v`` as the
derivative of ``J^T u`` with respect to ``u``. The parameters that are differentiated are the
model's own, so nothing that a loss makes of them is lost. Forward derivatives are not needed, which
some layers lack and some have wrong.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.derivatives.batches import mapped, tensors_of

Pieces = list[Tensor]
"""A block of columns, cut by parameters: ``(w, *shape)`` each, or ``(*shape)`` for one column."""

Linear = Callable[[Pieces, bool], Pieces]
"""Applies a matrix to one column, or to several at once."""

Prepared = tuple[Tensor, Linear]
"""The loss of a batch, and what applies its curvature matrix."""


@dataclass(frozen=True)
class Loss:
    """A loss of a model, as a function of a batch.

    Attributes:
        model: The model.
        of_batch: The loss ``(model, batch) -> scalar``; ``None`` where there are outputs.
        outputs: The outputs ``(model, batch)`` at which the model is linearised.
        of_outputs: The loss ``(outputs, batch) -> scalar``.
    """

    model: torch.nn.Module
    of_batch: Callable[[Any, Any], Any] | None = None
    outputs: Callable[[Any, Any], Any] | None = None
    of_outputs: Callable[[Any, Any], Any] | None = None

    def value(self, batch: Any) -> Tensor:
        """Returns the loss of a batch.

        Raises:
            OperatorError: If it is no real number.
        """
        if self.of_batch is not None:
            return _scalar(self.of_batch(self.model, batch))
        assert self.outputs is not None
        assert self.of_outputs is not None
        return _scalar(self.of_outputs(self.outputs(self.model, batch), batch))

    def prepared(self, batch: Any, parameters: Sequence[Tensor]) -> Prepared:
        """Evaluates the loss of a batch, and keeps the graph that products need."""
        if self.outputs is None:
            return _hessian(self, batch, parameters)
        return _gauss_newton(self, batch, parameters)


def begin_of(loss: Loss) -> Callable[[], None]:
    """Returns what a loss wants to be called before each product: those that draw begin anew."""
    found: Callable[[], None] = getattr(loss.of_outputs, "begin", _nothing)
    return found


def is_drawn(loss: Loss) -> bool:
    """Whether a loss draws its targets."""
    return bool(getattr(loss.of_outputs, "samples", None))


def _nothing() -> None:
    pass


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        what = (
            f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        raise OperatorError(
            f"the loss of a batch is {what}; it must be a tensor that holds one real number, such "
            "as a mean over the batch"
        )
    return value.reshape(())


def gradient(value: Tensor, parameters: Sequence[Tensor], keep: bool = False) -> Pieces:
    """Returns the gradient of a loss; zeros where it does not depend on a parameter."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in parameters]
    return list(
        torch.autograd.grad(value, list(parameters), create_graph=keep, materialize_grads=True)
    )


def linear_in(values: Sequence[Tensor], sources: Sequence[Tensor]) -> Linear:
    """Returns what multiplies by ``(d values / d sources)^T``; the graph of both is kept."""
    depending = [number for number, one in enumerate(values) if one.requires_grad]
    pullback = _Pullback([values[number] for number in depending], list(sources))

    def apply(columns: Pieces, several: bool) -> Pieces:
        if not depending:
            width = columns[0].shape[:1] if several else ()
            return [one.new_zeros((*width, *one.shape)) for one in sources]
        chosen = [columns[number] for number in depending]
        return list(pullback.of_several(chosen) if several else pullback(*chosen))

    return apply


class _Pullback:
    """Multiplies by the transposed Jacobian of values that have a graph."""

    def __init__(self, values: Pieces, sources: Pieces) -> None:
        self._ends = values, sources
        self._has_rules = True

    def __call__(self, *column: Tensor, batched: bool = False) -> tuple[Tensor, ...]:
        values, sources = self._ends
        return torch.autograd.grad(
            values, sources, column, retain_graph=True, materialize_grads=True,
            is_grads_batched=batched,
        )  # fmt: skip

    def of_several(self, columns: Pieces) -> tuple[Tensor, ...]:
        """Multiplies several columns at once.

        ``vmap`` knows the rules of our formulas, and many that the engine replaces by loops; where
        it has none, the engine may still have one.
        """
        if self._has_rules:
            with warnings.catch_warnings():
                # Of what it does by loops.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                try:
                    found: tuple[Tensor, ...] = torch.vmap(self)(*columns)
                    return found
                except RuntimeError:
                    self._has_rules = False
        return self(*columns, batched=True)


def _hessian(loss: Loss, batch: Any, parameters: Sequence[Tensor]) -> Prepared:
    value = loss.value(batch)
    return value.detach(), linear_in(gradient(value, parameters, keep=True), parameters)


@dataclass(frozen=True)
class Linearised:
    """A loss as a function of its model's outputs.

    Parameters from which the loss itself computes, such as those that decay, are outputs, too.

    Attributes:
        value: The loss.
        outputs: The outputs, as computed from the parameters.
        at: Where the loss is computed from them, cut off from the model; and those parameters.
        slopes: The derivatives of the loss there, with their graph.
    """

    value: Tensor
    outputs: Pieces
    at: Pieces
    slopes: Pieces


def linearised(loss: Loss, batch: Any, parameters: Sequence[Tensor]) -> Linearised:
    """Evaluates a loss and its derivatives in the outputs."""
    assert loss.outputs is not None
    assert loss.of_outputs is not None
    made = loss.outputs(loss.model, batch)
    outputs = _differentiable(made)
    leaves: dict[int, Tensor] = {id(one): one.detach().requires_grad_() for one in outputs}
    value = _scalar(loss.of_outputs(mapped(made, lambda one: leaves.get(id(one), one)), batch))
    held = _held(value, parameters)
    at = [*(leaves[id(one)] for one in outputs), *held]
    outputs += [one.view_as(one) for one in held]
    return Linearised(value.detach(), outputs, at, gradient(value, at, keep=True) if at else [])


def _differentiable(outputs: Any) -> Pieces:
    """Lists the tensors among outputs that depend on parameters, each once."""
    return list({id(one): one for one in tensors_of(outputs) if one.requires_grad}.values())


def _held(value: Tensor, parameters: Sequence[Tensor]) -> Pieces:
    """Lists the parameters on which a loss depends otherwise than by its outputs."""
    if not value.requires_grad:
        return []
    found = torch.autograd.grad(value, list(parameters), retain_graph=True, allow_unused=True)
    return [one for one, slope in zip(parameters, found, strict=True) if slope is not None]


def _gauss_newton(loss: Loss, batch: Any, parameters: Sequence[Tensor]) -> Prepared:
    cut = linearised(loss, batch, parameters)
    if not cut.at:
        return cut.value, linear_in([], parameters)
    curvature = linear_in(cut.slopes, cut.at)
    given = [torch.zeros_like(one, requires_grad=True) for one in cut.at]
    pulled = torch.autograd.grad(
        cut.outputs, list(parameters), given, create_graph=True, materialize_grads=True
    )
    forward, backward = linear_in(pulled, given), linear_in(cut.outputs, parameters)

    def apply(columns: Pieces, several: bool) -> Pieces:
        return backward(curvature(forward(columns, several), several), several)

    return cut.value, apply
