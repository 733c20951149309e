"""Dense Hessians and Gauss-Newton matrices by plain autograd: what operators are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def _flat(gradients: Sequence[torch.Tensor | None], at: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gradients as one vector, with zeros where there is none."""
    pairs = zip(gradients, at, strict=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).reshape(-1) for g, x in pairs])


def _rows(vector: torch.Tensor, at: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Jacobian of a vector, one row after the other."""
    if not vector.requires_grad:
        return torch.zeros(len(vector), sum(x.numel() for x in at), dtype=vector.dtype)
    return torch.stack(
        [
            _flat(torch.autograd.grad(one, at, retain_graph=True, allow_unused=True), at)
            for one in vector
        ]
    )


def dense_hessian(value: Callable[[], torch.Tensor], at: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Hessian of ``value()`` by reverse over reverse differentiation.

    Args:
        value: The scalar, computed from the tensors.
        at: The tensors.
    """
    # No other kernel of attention can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(value(), at, create_graph=True, allow_unused=True)
        return _rows(_flat(first, at), at).detach()


def dense_ggn(
    outputs: Callable[[], Any], loss: Callable[[Any], torch.Tensor], at: Sequence[torch.Tensor]
) -> torch.Tensor:
    """``J^T H J`` from the Jacobian ``J`` of the outputs and the Hessian ``H`` of the loss in them.

    Args:
        outputs: Returns a tensor, or a tuple of tensors, computed from the parameters.
        loss: The scalar of such outputs.
        at: The parameters.
    """
    with sdpa_kernel(SDPBackend.MATH):
        found = outputs()
        found = found if isinstance(found, tuple) else (found,)
        jacobian = _rows(torch.cat([one.reshape(-1) for one in found]), at)
    ends = tuple(one.detach().requires_grad_() for one in found)
    curvature = dense_hessian(lambda: loss(ends if len(ends) > 1 else ends[0]), ends)
    return (jacobian.T @ curvature @ jacobian).detach()


def leading(matrix: torch.Tensor, many: int = 10) -> torch.Tensor:
    """The eigenvalues of largest magnitude of a symmetric matrix, ascending."""
    values = torch.linalg.eigvalsh((matrix + matrix.T).double() / 2)
    return values[values.abs().argsort(descending=True)[:many]].sort().values
