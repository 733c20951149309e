"""The formula of attention, whose second derivatives are products of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skerch_ooc.operators.derivatives.columns import Maybe, applied, by_columns, needed
from skerch_ooc.operators.derivatives.entrywise import softmax


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
            return *applied(_AttentionBackward, g, *saved, *ctx.how)[:3], None, None, None
        scale = ctx.how[2]
        found = by_columns(lambda g: _attention_backward(g, saved, scale)[:3], g)
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
        needs = needed(ctx, 4)
        found = by_columns(lambda *v: _attention_twice(v, saved, ctx.how[2], needs), vq, vk, vv)
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


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Maybe = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """Computes attention without dropout."""
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
        return applied(_Attention, query, key, value, attn_mask, blind, scale)[0]
    return _attention_weights(query, key, attn_mask, blind, scale) @ value


def _attention_weights(
    query: Tensor, key: Tensor, added: Maybe, blind: Maybe, scale: float
) -> Tensor:
    scores = (query * scale) @ key.mT
    weights: Tensor = softmax(scores if added is None else scores + added, -1)
    return weights if blind is None else weights.masked_fill(blind, 0)
