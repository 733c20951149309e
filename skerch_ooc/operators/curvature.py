"""Curvature operators of neural networks, over curvlinops (the extra ``curvature``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from skerch_ooc.errors import OperatorError


def hessian(
    model: torch.nn.Module,
    loss: torch.nn.Module,
    data: Iterable[tuple[torch.Tensor, torch.Tensor]],
    parameters: Iterable[torch.nn.Parameter] | None = None,
) -> Any:
    """The Hessian of the loss of a model, summed or averaged over all data.

    Args:
        model: The network; in evaluation mode, or without layers whose output is random.
        loss: A module with ``reduction`` ``"mean"`` or ``"sum"``.
        data: Batches ``(inputs, targets)``, the same ones in the same order at each pass.
        parameters: With respect to which; by default all that require a gradient.

    Returns:
        An operator ``(p, p)``, ``p`` being the number of parameters in the order given, that is
        applied to tensors ``(p, b)``. (Pearlmutter 1994, "Fast exact multiplication by the
        Hessian", by forward over reverse differentiation.)

    Raises:
        OperatorError: If curvlinops is not installed, or the model is in training mode with
            layers that make it random.
    """
    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise OperatorError(
            "curvature operators need curvlinops; install it with: "
            "pip install 'skerch_ooc[curvature]'"
        ) from error
    _require_deterministic(model)
    chosen = list(model.parameters() if parameters is None else parameters)
    chosen = [parameter for parameter in chosen if parameter.requires_grad]
    if not chosen:
        raise OperatorError("the model has no parameters that require a gradient")
    return HessianLinearOperator(
        model, loss, chosen, list(data), **_unchecked(HessianLinearOperator)
    )


def _require_deterministic(model: torch.nn.Module) -> None:
    random = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, random) and module.training:
            raise OperatorError(
                f"layer {name or type(module).__name__} ({type(module).__name__}) is in training "
                "mode, so that products would differ from call to call; call model.eval() first"
            )


def _unchecked(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Turns off curvlinops' own determinism check, which costs extra passes: the probe does it."""
    parameters = inspect.signature(constructor).parameters
    return {"check_deterministic": False} if "check_deterministic" in parameters else {}
