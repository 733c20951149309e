"""Formulas with second derivatives that are right and quick, for some of torch's functions.

Torch differentiates the gradient of a convolution by convolutions with swapped dimensions, those of
normalisations by many passes, and some for one column at a time only. Here each function is a
formula, or a function whose gradient is another one whose gradients are made of quick kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten

Maybe = Tensor | None


def _apply(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def _needed(ctx: Any, arguments: int = 3) -> tuple[bool, ...]:
    """Which gradients of the first arguments the call under way asks for.

    ``needs_input_grad`` says which it may ask for: of a weight, too, where only the derivative with
    respect to the outputs is wanted.
    """
    nodes = [*(node for node, _ in ctx.next_functions), *[None] * arguments]
    needs = zip(ctx.needs_input_grad, nodes, strict=False)
    return tuple(need and node is not None and _is_visited(node) for need, node in needs)[
        :arguments
    ]


def _is_visited(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):
        # Torch answers so where a node is a parameter whose gradient is wanted.
        return True


def _by_columns(compute: Callable[..., Any], *given: Maybe) -> tuple[Maybe, ...]:
    """Computes from tensors that may have columns, within ``vmap``, what they give.

    Args:
        compute: Is given them as plain tensors whose first dimension is that of columns, and
            returns such tensors. What it makes it may change in place.
        given: The tensors.
    """
    level, is_batched, kind = _columns_of_here()
    batched = [a for a in given if a is not None and level and is_batched(a)]
    if not batched:
        found = compute(*(a if a is None else a[None] for a in given))
        return tuple(one if one is None else one[0] for one in found)
    width = len(kind._remove_batch_dim(batched[0], level, 1, 0))
    plain = [a if a is None else kind._remove_batch_dim(a, level, width, 0) for a in given]
    with temporarily_pop_interpreter_stack() if kind is not torch else nullcontext():
        found = compute(*plain)
    return tuple(one if one is None else kind._add_batch_dim(one, 0, level) for one in found)


def _columns_of_here() -> tuple[int | None, Callable[[Tensor], bool], Any]:
    """The level of the innermost ``vmap``, what tells its tensors, and what wraps them.

    The engine, asked for several columns at once, has a ``vmap`` of its own.
    """
    kind = torch._C._functorch
    if level := kind.maybe_current_level():
        return level, kind.is_batchedtensor, kind
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level, kind.is_legacy_batchedtensor, torch


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
        args = (g, *ctx.saved_tensors, ctx.how, _needed(ctx))
        if torch.is_grad_enabled():
            return *_apply(_ConvolutionBackward, *args), None
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
        needs = _needed(ctx)
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
        args = (*ctx.saved_tensors, _needed(ctx))
        if torch.is_grad_enabled():
            return _apply(_LinearBackward, g, *args)
        return _by_columns(lambda g: _linear_backward(g, *args), g)


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
        saved, needs = ctx.saved_tensors, _needed(ctx)
        found = _by_columns(lambda *v: _linear_twice(saved, v, needs), vx, vweight, vbias)
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
            return _apply(_EntrywiseBackward, g, x, slope, ctx.of), None
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
        needs = _needed(ctx)
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
        return _aten.threshold_backward(g, ctx.saved_tensors[0].detach(), 0)


class _MaxPool(torch.autograd.Function):
    """The largest entry of each window of an image, for which the same holds."""

    @staticmethod
    def forward(x: Tensor, how: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _aten.max_pool2d_with_indices(x, *how)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.how = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Maybe) -> Any:
        x, places = ctx.saved_tensors
        return _aten.max_pool2d_with_indices_backward(g, x.detach(), *ctx.how, places), None


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
        softmax = _apply(_Softmax, x, ctx.dim) if torch.is_grad_enabled() else x.softmax(ctx.dim)
        return g * softmax, None


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
        args = (g, *ctx.saved_tensors, ctx.dims, ctx.eps, _needed(ctx))
        if torch.is_grad_enabled():
            return *_apply(_LayerNormBackward, *args), None, None
        return *_by_columns(lambda g: _layer_norm_backward(g, args[1:5], args[-1]), g), None, None


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
            saved, needs = ctx.saved_tensors, _needed(ctx)
            columns = _by_columns(lambda *v: _layer_norm_twice(v, saved, needs), vx, vweight, vbias)
            return *columns, *[None] * 5
        y, scale = _apply(_Normalized, x, ctx.dims, ctx.eps)
        slope = _projected(g * weight, y, ctx.dims) * scale
        needs = _needed(ctx)
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


class _Attention(torch.autograd.Function):
    """Attention; and its weights."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        weights = _attention_weights(q, k, *how)
        return weights @ v, weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        q, k, v, added, blind, scale = inputs
        ctx.how = (added, blind, scale)
        ctx.save_for_backward(q, k, v, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Maybe) -> Any:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_apply(_AttentionBackward, g, *saved, *ctx.how)[:3], None, None, None
        scale = ctx.how[2]
        found = _by_columns(lambda g: _attention_backward(g, saved, scale)[:3], g)
        return *found, None, None, None


class _AttentionBackward(torch.autograd.Function):
    """The gradients of attention; and those of its weights and scores."""

    @staticmethod
    def forward(g: Tensor, *args: Any) -> Any:
        found = _attention_backward(g[None], args[:4], args[-1])
        return tuple(one[0] for one in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.how = inputs[5:]
        ctx.save_for_backward(*inputs[:5], *output[3:])
        ctx.mark_non_differentiable(*output[3:])

    @staticmethod
    def backward(ctx: Any, vq: Tensor, vk: Tensor, vv: Tensor, *_: Maybe) -> Any:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_attention_twice_plainly((vq, vk, vv), saved[:4], ctx.how), *[None] * 4
        needs = _needed(ctx, 4)
        found = _by_columns(lambda *v: _attention_twice(v, saved, ctx.how[2], needs), vq, vk, vv)
        return *found, *[None] * 4


def _attention_backward(g: Tensor, saved: Sequence[Tensor], scale: float) -> tuple[Tensor, ...]:
    """The gradients, for columns that come first; and slopes, of weights and of scores."""
    q, k, v, weights = saved
    scores = torch.einsum("w...ld,...sd->w...ls", g, v)
    inner = (scores * weights).sum(-1, keepdim=True)
    slopes = scores.sub_(inner)
    scores = slopes * weights
    return (
        torch.einsum("w...ls,...sd->w...ld", scores, k * scale),
        torch.einsum("w...ls,...ld->w...sd", scores, q * scale),
        torch.einsum("...ls,w...ld->w...sd", weights, g),
        slopes,
        scores,
    )


def _attention_twice(
    columns: Sequence[Tensor], saved: Sequence[Tensor], scale: float, needs: Sequence[bool]
) -> Any:
    """The gradients of the gradients, for columns that come first."""
    (vq, vk, vv), (g, q, k, v, weights, slopes, scores) = columns, saved
    q, k = q * scale, k * scale
    # The derivative of the weights in the direction of the columns.
    moved = torch.einsum("w...ld,...sd->w...ls", vq, k)
    moved.add_(torch.einsum("...ld,w...sd->w...ls", q, vk)).mul_(weights)
    moved.addcmul_(weights, moved.sum(-1, keepdim=True), value=-1)
    of_g = of_q = of_k = of_v = None
    if needs[0]:
        of_g = torch.einsum("w...ls,...sd->w...ld", moved, v)
        of_g.add_(torch.einsum("...ls,w...sd->w...ld", weights, vv))
    if needs[3]:
        of_v = torch.einsum("w...ls,...ld->w...sd", moved, g)
    if needs[1] or needs[2]:
        bent = torch.einsum("...ld,w...sd->w...ls", g, vv).mul_(weights).addcmul_(slopes, moved)
        bent.addcmul_(weights, bent.sum(-1, keepdim=True), value=-1)
        scores = scores * scale
        of_q = torch.einsum("w...ls,...sd->w...ld", bent, k)
        of_q.add_(torch.einsum("...ls,w...sd->w...ld", scores, vk))
        of_k = torch.einsum("w...ls,...ld->w...sd", bent, q)
        of_k.add_(torch.einsum("...ls,w...ld->w...sd", scores, vq))
    return of_g, of_q, of_k, of_v


def _attention_twice_plainly(
    column: Sequence[Tensor], given: Sequence[Tensor], how: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """The same for one column, in functions that can be differentiated again."""
    g, q, k, v = (a.view_as(a) if a.requires_grad else a.detach().requires_grad_() for a in given)
    value = _attention_weights(q, k, *how) @ v
    slopes = torch.autograd.grad(value, (q, k, v), g, create_graph=True)
    return torch.autograd.grad(slopes, (g, q, k, v), column, create_graph=True)


def _convolution(
    input: Tensor, weight: Tensor, bias: Maybe = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    n = weight.ndim - 2
    if isinstance(padding, str) or input.ndim != weight.ndim:
        return NotImplemented
    sizes = ([a] if isinstance(a, int) else list(a) for a in (stride, padding, dilation))
    how = (*(a * (n // len(a)) for a in sizes), False, [0] * n, groups)
    return _apply(_Convolution, input, weight, bias, how)


def _linear(input: Tensor, weight: Tensor, bias: Maybe = None) -> Any:
    if input.ndim < 2 or weight.ndim != 2:
        return NotImplemented
    return _apply(_Linear, input, weight, bias)


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


def _gelu(input: Tensor, approximate: str = "none") -> Any:
    return _apply(_Entrywise, input, _gelu_of) if approximate == "none" else NotImplemented


def _silu(input: Tensor, inplace: bool = False) -> Any:
    return NotImplemented if inplace else _apply(_Entrywise, input, _silu_of)


def _relu(input: Tensor, inplace: bool = False) -> Any:
    return NotImplemented if inplace else _apply(_Relu, input)


def _max_pool(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    **flags: bool,
) -> Any:  # fmt: skip
    if flags.get("return_indices", False):
        return NotImplemented
    sizes = (kernel_size, stride or [], padding, dilation)
    how = (*([a] if isinstance(a, int) else list(a) for a in sizes), flags.get("ceil_mode", False))
    return _apply(_MaxPool, input, how)[0]


def _softmax(input: Tensor, dim: Any = None, *more: Any, dtype: Any = None, **names: Any) -> Any:
    if dim is None or dtype is not None or more or names:
        return NotImplemented
    return _apply(_Softmax, input, dim)


def _log_softmax(input: Tensor, *args: Any, **names: Any) -> Any:
    dim = names.pop("dim", args[0] if len(args) == 1 else None)
    names.pop("_stacklevel", None)
    if dim is None or len(args) > 1 or names.pop("dtype", None) is not None or names:
        return NotImplemented
    return input - _apply(_LogSumExp, input, dim)


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Maybe = None, bias: Maybe = None,
    eps: float = 1e-5,
) -> Any:  # fmt: skip
    dims = tuple(range(-len(normalized_shape), 0))
    if weight is not None:
        return _apply(_LayerNorm, input, weight, bias, dims, eps)[0]
    y = _apply(_Normalized, input, dims, eps)[0]
    return y if bias is None else y + bias


def _per_channel(y: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    shape = (-1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _group_norm(
    input: Tensor, num_groups: int, weight: Maybe = None, bias: Maybe = None, eps: float = 1e-5
) -> Any:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    y = _apply(_Normalized, grouped, (2,), eps)[0].view(input.shape)
    return _per_channel(y, weight, bias)


def _batch_norm(
    input: Tensor, running_mean: Maybe, running_var: Maybe, weight: Maybe = None,
    bias: Maybe = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if training:
        y = _apply(_Normalized, input, (0, *range(2, input.ndim)), eps)[0]
        return _per_channel(y, weight, bias)
    if running_mean is None or running_var is None:
        return NotImplemented
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return _per_channel(input, scale, shift if bias is None else shift + bias)


def _instance_norm(
    input: Tensor, running_mean: Maybe = None, running_var: Maybe = None, weight: Maybe = None,
    bias: Maybe = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if use_input_stats:
        return _group_norm(input, input.shape[1], weight, bias, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Maybe = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p or (is_causal and attn_mask is not None):
        return NotImplemented
    if enable_gqa:
        key, value = (a.repeat_interleave(query.shape[-3] // a.shape[-3], -3) for a in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        attn_mask = query.new_ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    blind: Maybe = None
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, -math.inf)
        # Rows that see nothing, such as those of padding, are zeros.
        blind = (attn_mask == -math.inf).all(-1, keepdim=True)
        attn_mask = attn_mask.masked_fill(blind, 0)
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    if alike and query.ndim > 2 and not (attn_mask is not None and attn_mask.requires_grad):
        return _apply(_Attention, query, key, value, attn_mask, blind, scale)[0]
    return _attention_weights(query, key, attn_mask, blind, scale) @ value


def _attention_weights(
    query: Tensor, key: Tensor, added: Maybe, blind: Maybe, scale: float
) -> Tensor:
    scores = (query * scale) @ key.mT
    weights: Tensor = _apply(_Softmax, scores if added is None else scores + added, -1)
    return weights if blind is None else weights.masked_fill(blind, 0)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """What torch differentiates wrongly the second time: the norms are constants there."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _mse_loss(
    input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean", weight: Maybe = None,
) -> Any:  # fmt: skip
    if not size_average is reduce is weight is None or input.shape != target.shape:
        return NotImplemented
    return _reduced((input - target).square(), reduction)


def _reduced(values: Tensor, reduction: str) -> Any:
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _cross_entropy(
    input: Tensor, target: Tensor, weight: Maybe = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    if not size_average is reduce is None or target.is_floating_point() or label_smoothing:
        return NotImplemented
    dim = min(1, input.ndim - 1)
    if target.shape != input.shape[:dim] + input.shape[dim + 1 :]:
        # Torch has the words for it.
        return NotImplemented
    counts = target != ignore_index
    place = torch.where(counts, target, 0).long()
    share = counts.to(input.dtype) if weight is None else weight[place] * counts
    of_each = _apply(_LogSumExp, input, dim) - input.gather(dim, place.unsqueeze(dim))
    of_each = of_each.squeeze(dim) * share
    return of_each.sum() / share.sum() if reduction == "mean" else _reduced(of_each, reduction)


_TABLE: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    F.linear: _linear,
    F.gelu: _gelu,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    F.max_pool2d: _max_pool,
    F.silu: _silu,
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), _log_softmax),
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.scaled_dot_product_attention: _attention,
    torch._weight_norm: _weight_norm,
    F.mse_loss: _mse_loss,
    F.cross_entropy: _cross_entropy,
}
"""What takes the place of which function; ``NotImplemented`` stands for torch's own."""


def _are_wanted() -> bool:
    """Whether formulas may take the place of functions here.

    Not where somebody packs what is saved: checkpoints do, who evaluate again without a mode. Nor
    within transforms of ``torch.func``, which need rules that ours do not have.
    """
    is_hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return not is_hooked and not torch._C._are_functorch_transforms_active()


class Formulas(TorchFunctionMode):
    """Puts other formulas in the place of some functions of torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch, or what takes its place."""
        kwargs = kwargs or {}
        if func in _TABLE and _are_wanted():
            found = _TABLE[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)
