"""Formulas of convolutions and linear layers, whose second derivatives are quick kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from skerch_ooc.operators.derivatives.columns import Maybe, applied, by_columns, needed

_aten = torch.ops.aten


class _Convolution(torch.autograd.Function):
    """A convolution; ``how`` is what ``aten.convolution`` takes after the bias."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Maybe, how: tuple[Any, ...]) -> Any:
        return _aten.convolution(x, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        args = (g, *ctx.saved_tensors, ctx.how, needed(ctx))
        if torch.is_grad_enabled():
            return *applied(_ConvolutionBackward, *args), None
        return *_convolution_backward(*args), None


def _convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, how: tuple[Any, ...], mask: Sequence[bool]
) -> Any:
    return _aten.convolution_backward(g, x, weight, [g.shape[1]], *how, mask)


class _ConvolutionBackward(torch.autograd.Function):
    """The gradients of a convolution."""

    forward = staticmethod(_convolution_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, weight, ctx.how, _ = inputs
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, vx: Maybe, vweight: Maybe, vbias: Maybe) -> Any:
        g, x, weight = ctx.saved_tensors
        needs = needed(ctx)
        of_g = of_x = of_weight = None
        if needs[0]:
            of_g = _sum(
                None if vweight is None else _aten.convolution(x, vweight, None, *ctx.how),
                None if vx is None else _aten.convolution(vx, weight, None, *ctx.how),
            )
            if vbias is not None:
                of_g = _sum(of_g, vbias.reshape(-1, *[1] * (g.ndim - 2)).expand_as(g))
        if needs[1] and vweight is not None:
            of_x = _convolution_backward(g, x, vweight, ctx.how, (True, False, False))[0]
        if needs[2] and vx is not None:
            of_weight = _convolution_backward(g, vx, weight, ctx.how, (False, True, False))[1]
        return of_g, of_x, of_weight, None, None


def _sum(a: Maybe, b: Maybe) -> Maybe:
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b) if a.shape == b.shape else a + b


class _Linear(torch.autograd.Function):
    """A linear layer."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        args = (*ctx.saved_tensors, needed(ctx))
        if torch.is_grad_enabled():
            return applied(_LinearBackward, g, *args)
        return by_columns(lambda g: _linear_backward(g, *args), g)


def _linear_backward(g: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool]) -> Any:
    """The gradients of a linear layer; ``g`` may have a first dimension more: that of columns."""
    columns = g.shape[: g.ndim - x.ndim]
    rows = g.reshape(*columns, -1, g.shape[-1])
    return (
        g @ weight if needs[0] else None,
        rows.mT @ x.reshape(-1, x.shape[-1]) if needs[1] else None,
        rows.sum(-2) if needs[2] else None,
    )


class _LinearBackward(torch.autograd.Function):
    """The gradients of a linear layer."""

    forward = staticmethod(_linear_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, vx: Maybe, vweight: Maybe, vbias: Maybe) -> Any:
        if vx is vweight is vbias is None:
            return None, None, None, None
        if torch.is_grad_enabled():
            return *_linear_twice_plainly((vx, vweight, vbias), *ctx.saved_tensors), None
        saved, needs = ctx.saved_tensors, needed(ctx)
        found = by_columns(lambda *v: _linear_twice(saved, v, needs), vx, vweight, vbias)
        return *found, None


def _linear_twice(saved: Sequence[Tensor], columns: Sequence[Maybe], needs: Sequence[bool]) -> Any:
    """Sums of products of matrices, for columns that come first."""
    (g, x, weight), (vx, vweight, vbias) = saved, columns
    width = next(len(v) for v in columns if v is not None)
    rows, flat = (a.reshape(-1, a.shape[-1]) for a in (g, x))
    stacked = rows.expand(width, *rows.shape)
    many = None if vx is None else vx.reshape(width, *flat.shape)
    of_g = of_x = of_weight = None
    if needs[0]:
        of_g = rows.new_zeros(1) if vbias is None else vbias[:, None]
        of_g = of_g.expand(width, *rows.shape)
        if vweight is not None:
            of_g = torch.baddbmm(
                of_g, flat.expand(width, *flat.shape), vweight.mT, beta=int(vbias is not None)
            )
        if many is not None:
            a = many.reshape(-1, many.shape[-1])
            of_g = of_g.reshape(-1, rows.shape[1])
            of_g = of_g.addmm_(a, weight.mT) if vweight is not None else of_g + a @ weight.mT
        of_g = of_g.reshape(width, *g.shape)
    if needs[1] and vweight is not None:
        of_x = torch.bmm(stacked, vweight).view(width, *x.shape)
    if needs[2] and many is not None:
        of_weight = torch.bmm(stacked.mT, many)
    return of_g, of_x, of_weight


def _linear_twice_plainly(
    column: tuple[Maybe, Maybe, Maybe], g: Tensor, x: Tensor, weight: Tensor
) -> tuple[Maybe, Maybe, Maybe]:
    """The same for one column, in functions that can be differentiated again."""
    vx, vweight, vbias = column
    of_g = vbias
    if vx is not None:
        of_g = F.linear(vx, weight, of_g)
    if vweight is not None:
        of_g = F.linear(x, vweight) if of_g is None else F.linear(x, vweight) + of_g
    of_x = None if vweight is None else g @ vweight
    rows, many = g.reshape(-1, g.shape[-1]), None if vx is None else vx.reshape(-1, x.shape[-1])
    return (
        None if of_g is None else of_g.expand_as(g),
        of_x,
        None if many is None else rows.mT @ many,
    )


def convolution(
    input: Tensor, weight: Tensor, bias: Maybe = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Computes a convolution, but for words as padding."""
    n = weight.ndim - 2
    if isinstance(padding, str) or input.ndim != weight.ndim:
        return NotImplemented
    sizes = ([a] if isinstance(a, int) else list(a) for a in (stride, padding, dilation))
    how = (*(a * (n // len(a)) for a in sizes), False, [0] * n, groups)
    return applied(_Convolution, input, weight, bias, how)


def linear(input: Tensor, weight: Tensor, bias: Maybe = None) -> Any:
    """Computes a linear layer."""
    if input.ndim < 2 or weight.ndim != 2:
        return NotImplemented
    return applied(_Linear, input, weight, bias)
