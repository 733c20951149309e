"""What formulas share: which gradients are asked for, and columns of ``vmap`` as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

Maybe = Tensor | None


def applied(function: Any, *args: Any) -> Any:
    """Applies a function of autograd, of which torch says no types."""
    return function.apply(*args)


def needed(ctx: Any, arguments: int = 3) -> tuple[bool, ...]:
    """Returns which gradients of the first arguments the call under way asks for.

    ``needs_input_grad`` says which it may ask for: of a weight, too, where only the derivative with
    respect to the outputs is wanted.
    """
    nodes = [*(node for node, _ in ctx.next_functions), *[None] * arguments]
    needs = [*zip(ctx.needs_input_grad, nodes, strict=False)][:arguments]
    return tuple(need and node is not None and _is_visited(node) for need, node in needs)


def _is_visited(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):
        # Torch answers so where a node is a parameter whose gradient is wanted.
        return True


def by_columns(compute: Callable[..., Any], *given: Maybe) -> tuple[Maybe, ...]:
    """Computes from tensors that may have columns, within ``vmap``, what they give.

    Args:
        compute: Is given them as plain tensors whose first dimension is that of columns, and
            returns such tensors. What it makes it may change in place.
        given: The tensors.
    """
    level, is_batched, kind = _columns_of_here()
    batched = [a for a in given if a is not None and is_batched(a)]
    if not batched:
        found = compute(*(a if a is None else a[None] for a in given))
        return tuple(one if one is None else one[0] for one in found)
    width = len(kind._remove_batch_dim(batched[0], level, 1, 0))
    plain = [a if a is None else kind._remove_batch_dim(a, level, width, 0) for a in given]
    with temporarily_pop_interpreter_stack() if kind is not torch else nullcontext():
        found = compute(*plain)
    return tuple(one if one is None else kind._add_batch_dim(one, 0, level) for one in found)


def _columns_of_here() -> tuple[int, Callable[[Tensor], bool], Any]:
    """The level of the innermost ``vmap``, what tells its tensors, and what wraps them.

    The engine, asked for several columns at once, has a ``vmap`` of its own.
    """
    kind = torch._C._functorch
    if level := kind.maybe_current_level():
        return level, kind.is_batchedtensor, kind
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # The engine's threads for other devices do not know how deep it is.
    return max(level, 1), kind.is_legacy_batchedtensor, torch
