"""Formulas of normalisations: by layers, groups, batches, instances, and of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skerch_ooc.operators.derivatives.columns import Maybe, applied, by_columns, needed


class _Normalized(torch.autograd.Function):
    """``(x - mean) * scale`` and ``scale = 1 / sqrt(var + eps)``, over some dimensions."""

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        scale = (var + eps).rsqrt_()
        return (x - mean).mul_(scale), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.dims = inputs[1]
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Maybe, gscale: Maybe) -> Any:
        y, scale = ctx.saved_tensors
        inner = 0.0 if g is None else (g * y).mean(ctx.dims, keepdim=True)
        if gscale is not None:
            inner = inner + gscale * scale / math.prod(y.shape[d] for d in ctx.dims)
        if g is None:
            return -scale * (y * inner), None, None
        return scale * (g - g.mean(ctx.dims, keepdim=True) - y * inner), None, None


class _LayerNorm(torch.autograd.Function):
    """A layer norm with weights; and what it keeps, which is that of :class:`_Normalized`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Maybe, dims: tuple[int, ...], eps: float) -> Any:
        y, scale = _Normalized.forward(x, dims, eps)
        return y * weight if bias is None else torch.addcmul(bias, y, weight), y, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, ctx.dims, ctx.eps = inputs
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Maybe) -> Any:
        args = (g, *ctx.saved_tensors, ctx.dims, ctx.eps, needed(ctx))
        if torch.is_grad_enabled():
            return *applied(_LayerNormBackward, *args), None, None
        return *by_columns(lambda g: _layer_norm_backward(g, args[1:5], args[-1]), g), None, None


class _LayerNormBackward(torch.autograd.Function):
    """The gradients of a layer norm."""

    @staticmethod
    def forward(g: Tensor, *args: Any) -> Any:
        found = _layer_norm_backward(g[None], args[:4], args[-1])
        return tuple(one if one is None else one[0] for one in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        g, x, weight, y, scale, ctx.dims, ctx.eps, _ = inputs
        ctx.save_for_backward(g, x, weight, y, scale, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, vx: Maybe, vweight: Maybe, vbias: Maybe) -> Any:
        g, x, weight, y, scale, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            saved, needs = ctx.saved_tensors, needed(ctx)
            columns = by_columns(lambda *v: _layer_norm_twice(v, saved, needs), vx, vweight, vbias)
            return *columns, *[None] * 5
        y, scale = applied(_Normalized, x, ctx.dims, ctx.eps)
        slope = _projected(g * weight, y, ctx.dims) * scale
        needs = needed(ctx)
        of_g = of_x = of_weight = None
        if vx is not None:
            inner = (vx * y).mean(ctx.dims, keepdim=True)
            step = torch.addcmul(vx - vx.mean(ctx.dims, keepdim=True), y, inner, value=-1) * scale
            of_g = step * weight if needs[0] else None
            if needs[1]:
                bend = (g * weight * y).mean(ctx.dims, keepdim=True) * -scale
                of_x = torch.addcmul(step * bend, slope, inner * -scale)
                of_x = torch.addcmul(of_x, y, (vx * slope).mean(ctx.dims, keepdim=True) * -scale)
            if needs[2]:
                of_weight = _summed(step * g, tuple(range(g.ndim - len(ctx.dims))))
        if vweight is not None and needs[0]:
            of_g = y * vweight if of_g is None else torch.addcmul(of_g, y, vweight)
        if vweight is not None and needs[1]:
            more = _projected(g * vweight, y, ctx.dims)
            of_x = more * scale if of_x is None else torch.addcmul(of_x, more, scale)
        if vbias is not None and needs[0]:
            of_g = vbias.expand_as(g) if of_g is None else of_g + vbias
        return of_g, of_x, of_weight, *[None] * 5


def _layer_norm_backward(g: Tensor, saved: Sequence[Tensor], needs: Sequence[bool]) -> Any:
    """The gradients, for columns that come first."""
    _, weight, y, scale = saved
    n, shape = weight.numel(), g.shape
    g, y, scale, flat = (
        g.reshape(len(g), -1, n),
        y.reshape(-1, n),
        scale.reshape(-1, 1),
        weight.reshape(n),
    )
    along = g * y
    of_x = None
    if needs[0]:
        inner = (along @ (flat / n))[..., None] * scale
        of_x = (g * (scale * flat)).sub_((g @ (flat / n))[..., None] * scale)
        of_x = of_x.addcmul_(y, inner, value=-1).view(shape)
    return (
        of_x,
        along.sum(1).view(-1, *weight.shape) if needs[1] else None,
        g.sum(1).view(-1, *weight.shape) if needs[2] else None,
    )


def _layer_norm_twice(columns: Sequence[Maybe], saved: Sequence[Any], needs: Sequence[bool]) -> Any:
    """The gradients of the gradients, for columns that come first."""
    (vx, vweight, vbias), (g, _, weight, y, scale, slope) = columns, saved
    n, shape = weight.numel(), g.shape
    # Where only weights are differentiated there is no slope, nor need of one.
    g, y, slope = (g.reshape(-1, n), y.reshape(-1, n), y if slope is None else slope.reshape(-1, n))
    scale, flat = scale.reshape(-1, 1), weight.reshape(n)
    of_g = of_x = of_weight = None
    if vweight is not None:
        vweight = vweight.reshape(len(vweight), 1, n)
    along: Any = 0.0
    if vx is not None:
        vx = vx.reshape(len(vx), -1, n)
        inner = (vx * y).mean(-1, keepdim=True)
        along = (vx * slope).mean(-1, keepdim=True) if needs[1] else 0.0
        step = (vx - vx.mean(-1, keepdim=True)).addcmul_(y, inner, value=-1)
        if needs[2]:
            of_weight = (step * (g * scale)).sum(1).view(-1, *weight.shape)
        if needs[1]:
            bend = (g * flat * y).mean(-1, keepdim=True) * -scale.square()
            of_x = (step * bend).addcmul_(slope, inner * -scale)
        of_g = step.mul_(scale * flat)
    if vweight is not None and needs[1]:
        across = vweight.squeeze(1) / n
        mean, more = ((across @ a.mT)[..., None] for a in (g, g * y))
        along = along + more
        of_x = vweight * (g * scale) if of_x is None else of_x.addcmul_(vweight, g * scale)
        of_x.sub_(mean * scale)
    if of_x is not None:
        of_x = of_x.addcmul_(y, along * -scale).view(-1, *shape)
    if vweight is not None:
        of_g = y * vweight if of_g is None else of_g.addcmul_(y, vweight)
    if vbias is not None:
        bias = vbias.reshape(len(vbias), 1, n)
        of_g = bias.expand(-1, *g.shape) if of_g is None else of_g.add_(bias)
    of_g = None if of_g is None or not needs[0] else of_g.reshape(-1, *shape)
    return of_g, of_x, of_weight


def _projected(a: Tensor, y: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Takes out the mean and what is along ``y``, which is normalised."""
    inner = (a * y).mean(dims, keepdim=True)
    return torch.addcmul(a - a.mean(dims, keepdim=True), y, inner, value=-1)


def _summed(a: Tensor, dims: tuple[int, ...]) -> Tensor:
    return a.sum(dims) if dims else a.view_as(a)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Maybe = None, bias: Maybe = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    """Computes a layer norm."""
    dims = tuple(range(-len(normalized_shape), 0))
    if weight is not None:
        return applied(_LayerNorm, input, weight, bias, dims, eps)[0]
    y = applied(_Normalized, input, dims, eps)[0]
    return y if bias is None else y + bias


def _per_channel(y: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    shape = (-1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def group_norm(
    input: Tensor, num_groups: int, weight: Maybe = None, bias: Maybe = None, eps: float = 1e-5
) -> Any:
    """Computes a group norm."""
    grouped = input.reshape(input.shape[0], num_groups, -1)
    y = applied(_Normalized, grouped, (2,), eps)[0].view(input.shape)
    return _per_channel(y, weight, bias)


def batch_norm(
    input: Tensor, running_mean: Maybe, running_var: Maybe, weight: Maybe = None,
    bias: Maybe = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """Computes a batch norm, whose running statistics stay."""
    if training:
        y = applied(_Normalized, input, (0, *range(2, input.ndim)), eps)[0]
        return _per_channel(y, weight, bias)
    if running_mean is None or running_var is None:
        return NotImplemented
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return _per_channel(input, scale, shift if bias is None else shift + bias)


def instance_norm(
    input: Tensor, running_mean: Maybe = None, running_var: Maybe = None, weight: Maybe = None,
    bias: Maybe = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """Computes an instance norm."""
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps)
    return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """What torch differentiates wrongly the second time: the norms are constants there."""
    return v * (g / torch.norm_except_dim(v, 2, dim))
