"""Hessians by reverse over reverse differentiation: for layers that have no forward mode.

Products with the Hessian are gradients of ``grad(loss)^T v`` (Pearlmutter 1994, "Fast exact
multiplication by the Hessian"). Forward over reverse differentiation is somewhat faster, but some
kernels of torch have no forward derivative, or a wrong one; second derivatives backwards are what
they are tested for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class ReverseHessian:
    """The Hessian of a loss, summed or averaged over batches.

    Args:
        model: The network.
        loss: A module with ``reduction`` ``"mean"`` or ``"sum"``.
        parameters: With respect to which; all of one type and device.
        data: Batches ``(inputs, targets)``.

    Attributes:
        shape: ``(p, p)``.
        dtype: That of the parameters.
        device: That of the parameters.
    """

    def __init__(
        self, model: torch.nn.Module, loss: torch.nn.Module,
        parameters: list[torch.nn.Parameter], data: Iterable[Any],
    ) -> None:  # fmt: skip
        self._model, self._loss, self._parameters = model, loss, parameters
        self._batches = list(data)
        self._weights = weights_of(loss, self._batches)
        self._sizes = [parameter.numel() for parameter in parameters]
        self.shape = (sum(self._sizes), sum(self._sizes))
        self.dtype, self.device = parameters[0].dtype, parameters[0].device

    def __matmul__(self, columns: torch.Tensor) -> torch.Tensor:
        """The products with columns ``(p, b)``, or with a vector ``(p,)``, of the same shape."""
        x = columns[:, None] if columns.ndim == 1 else columns
        out = torch.zeros_like(x)
        for (inputs, targets), weight in zip(self._batches, self._weights, strict=True):
            gradients = self._gradients(_moved(inputs, self.device), _moved(targets, self.device))
            for number in range(x.shape[1]):
                out[:, number] += weight * self._product(gradients, x[:, number])
        return out[:, 0] if columns.ndim == 1 else out

    @property
    def mH(self) -> ReverseHessian:  # noqa: N802 (torch's name)
        """The adjoint: itself."""
        return self

    def _gradients(self, inputs: Any, targets: Any) -> tuple[torch.Tensor, ...]:
        """The gradients of the loss of a batch, as functions of the parameters."""
        # No other kernel of attention can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = self._loss(self._model(inputs), targets)
            return torch.autograd.grad(
                value, self._parameters, create_graph=True, materialize_grads=True
            )

    def _product(self, gradients: tuple[torch.Tensor, ...], v: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(v, self._sizes)
        # Where the loss does not depend on a parameter, or linearly, there is nothing to derive.
        chosen = [
            (gradient, piece.view_as(gradient))
            for gradient, piece in zip(gradients, pieces, strict=True)
            if gradient.requires_grad
        ]
        if not chosen:
            return torch.zeros_like(v)
        products = torch.autograd.grad(
            [gradient for gradient, _ in chosen], self._parameters,
            [piece for _, piece in chosen], retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return torch.cat([product.reshape(-1) for product in products])


def weights_of(loss: torch.nn.Module, batches: list[Any]) -> list[float]:
    """What the terms of batches are multiplied by: their share of the inputs if the loss is a mean.

    Args:
        loss: A module with ``reduction``.
        batches: ``(inputs, targets)``.
    """
    if getattr(loss, "reduction", "mean") == "sum":
        return [1.0] * len(batches)
    counts = [len(targets) for _, targets in batches]
    return [count / sum(counts) for count in counts]


def _moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a collection with tensors, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
