"""Formulas of activations, max pooling, softmax, and of the losses that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from skerch_ooc.operators.derivatives.columns import Maybe, applied, needed

_LARGEST_IN_DOUBLE = 1 << 24
"""So many inputs of a loss are computed in double precision: 128 MiB of them."""


class _Entrywise(torch.autograd.Function):
    """A function of each entry: ``of(x, order)`` gives it and its first two derivatives."""

    @staticmethod
    def forward(x: Tensor, of: Callable[[Tensor, int], Tensor]) -> Tensor:
        return of(x, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.of = inputs
        ctx.save_for_backward(x, ctx.of(x, 1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            return applied(_EntrywiseBackward, g, x, slope, ctx.of), None
        return g * slope, None


class _EntrywiseBackward(torch.autograd.Function):
    """The gradient of a function of each entry; both derivatives are kept for many products."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, slope: Tensor, of: Any) -> Tensor:
        return g * slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, slope, ctx.of = inputs
        ctx.save_for_backward(g, x, slope, g * ctx.of(x, 2))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        g, x, slope, bend = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope, bend = ctx.of(x, 1), g * ctx.of(x, 2)
        needs = needed(ctx)
        return v * slope if needs[0] else None, v * bend if needs[1] else None, None, None


class _Relu(torch.autograd.Function):
    """The larger of zero and each entry: torch adds zeros for the second derivative of its own."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.relu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return torch.ops.aten.threshold_backward(g, ctx.saved_tensors[0].detach(), 0)


class _MaxPool(torch.autograd.Function):
    """The largest entry of each window of an image, for which the same holds."""

    @staticmethod
    def forward(x: Tensor, how: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.ops.aten.max_pool2d_with_indices(x, *how)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.how = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Maybe) -> Any:
        x, places = ctx.saved_tensors
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g, x.detach(), *ctx.how, places
        ), None


class _Softmax(torch.autograd.Function):
    """The softmax; its derivatives are formulas in its own output."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return torch.softmax(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        product = g * y
        return product - y * product.sum(ctx.dim, keepdim=True), None


class _LogSumExp(torch.autograd.Function):
    """The logarithm of a sum of exponentials, whose dimension is kept."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return torch.logsumexp(x, dim, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.dim = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        softmax = applied(_Softmax, x, ctx.dim) if torch.is_grad_enabled() else x.softmax(ctx.dim)
        return g * softmax, None


def _gelu_of(x: Tensor, order: int) -> Any:
    if order == 0:
        return F.gelu(x)
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(x) + x * density if order == 1 else density * (2 - x.square())


def _silu_of(x: Tensor, order: int) -> Tensor:
    if order == 0:
        return F.silu(x)
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    return s + x * slope if order == 1 else slope * (2 + x * (1 - 2 * s))


def gelu(input: Tensor, approximate: str = "none") -> Any:
    """Computes GELU, but for its approximation."""
    return applied(_Entrywise, input, _gelu_of) if approximate == "none" else NotImplemented


def silu(input: Tensor, inplace: bool = False) -> Any:
    """Computes SiLU."""
    return NotImplemented if inplace else applied(_Entrywise, input, _silu_of)


def relu(input: Tensor, inplace: bool = False) -> Any:
    """Computes ReLU."""
    return NotImplemented if inplace else applied(_Relu, input)


def max_pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    **flags: bool,
) -> Any:  # fmt: skip
    """Computes max pooling of images."""
    if flags.get("return_indices", False):
        return NotImplemented
    sizes = (kernel_size, stride or [], padding, dilation)
    how = (*([a] if isinstance(a, int) else list(a) for a in sizes), flags.get("ceil_mode", False))
    return applied(_MaxPool, input, how)[0]


def softmax(input: Tensor, dim: Any = None, *more: Any, dtype: Any = None, **names: Any) -> Any:
    """Computes a softmax."""
    if dim is None or dtype is not None or more or names:
        return NotImplemented
    return applied(_Softmax, input, dim)


def in_double(formula: Callable[..., Any], function: Any = None) -> Callable[..., Any]:
    """Returns a formula that computes in double precision what has single precision.

    In single precision ``1 - p`` of a probability near 1 keeps few digits, and so do the second
    derivatives of a loss that is small. Large inputs, of many words, stay as they are.

    Args:
        formula: What takes the place of a function of torch.
        function: That of torch, if it is to compute so what the formula leaves to it.
    """

    def computed(input: Tensor, *args: Any, **names: Any) -> Any:
        is_exact = input.dtype != torch.float32 or input.device.type == "mps"
        has_dtype = any(isinstance(one, torch.dtype) for one in (*args, *names.values()))
        if is_exact or has_dtype or input.numel() > _LARGEST_IN_DOUBLE:
            return formula(input, *args, **names)
        args = tuple(_widened(one) for one in args)
        names = {name: _widened(one) for name, one in names.items()}
        made = formula(input.double(), *args, **names)
        if made is NotImplemented and function is not None:
            made = function(input.double(), *args, **names)
        return made if made is NotImplemented else made.to(input.dtype)

    return computed


def _widened(value: Any) -> Any:
    is_single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.double() if is_single else value


def left_to_torch(*args: Any, **names: Any) -> Any:
    """Returns what says that there is no formula."""
    return NotImplemented


def log_softmax(input: Tensor, *args: Any, **names: Any) -> Any:
    """Computes the logarithm of a softmax."""
    dim = names.pop("dim", args[0] if len(args) == 1 else None)
    names.pop("_stacklevel", None)
    if dim is None or len(args) > 1 or names.pop("dtype", None) is not None or names:
        return NotImplemented
    return input - applied(_LogSumExp, input, dim)


def mse_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean", weight: Maybe = None,
) -> Any:  # fmt: skip
    """Computes the mean squared error."""
    if not size_average is reduce is weight is None or input.shape != target.shape:
        return NotImplemented
    return _reduced((input - target).square(), reduction)


def _reduced(values: Tensor, reduction: str) -> Any:
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def cross_entropy(
    input: Tensor, target: Tensor, weight: Maybe = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Computes the cross entropy with classes."""
    if not size_average is reduce is None or target.is_floating_point() or label_smoothing:
        return NotImplemented
    dim = min(1, input.ndim - 1)
    if target.shape != input.shape[:dim] + input.shape[dim + 1 :]:
        # Torch has the words for it.
        return NotImplemented
    counts = target != ignore_index
    place = torch.where(counts, target, 0).long()
    share = counts.to(input.dtype) if weight is None else weight[place] * counts
    of_each = applied(_LogSumExp, input, dim) - input.gather(dim, place.unsqueeze(dim))
    of_each = of_each.squeeze(dim) * share
    return of_each.sum() / share.sum() if reduction == "mean" else _reduced(of_each, reduction)
