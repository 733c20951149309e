"""The graph of a loss: that it is whole, whose functions are in it, and what data depend on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointFunction

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.derivatives.batches import (
    tensors_of,
)
from skerch_ooc.operators.derivatives.parameters import Chosen


def require_whole_graph(value: Tensor) -> None:
    """Refuses a graph that does not reach all parameters.

    Raises:
        OperatorError: If there is a checkpoint that keeps its own graph.
    """
    if CheckpointFunction.__name__ in functions_of_users(value):
        raise OperatorError(
            "the model calls torch.utils.checkpoint in its reentrant way, whose graph does not "
            "reach the parameters within; set use_reentrant=False in that call"
        )


def functions_of_users(value: Tensor) -> list[str]:
    """Names the functions with a backward of their own in the graph of a loss."""
    kinds = {
        type(node)._forward_cls  # type: ignore[attr-defined]
        for node in _graph([value])
        if isinstance(node, BackwardCFunction)
    }
    names = {kind.__name__ for kind in kinds if not kind.__module__.startswith("skerch_ooc.")}
    return sorted(names)


def _graph(values: Iterable[Tensor]) -> set[Any]:
    """Returns all nodes from which values are computed."""
    left: list[Any] = [one.grad_fn for one in values]
    seen = set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [other for other, _ in node.next_functions]
    return seen


def require_data_apart(chosen: Chosen, batches: Iterable[Any]) -> None:
    """Requires that the data are not computed from the parameters.

    Raises:
        OperatorError: If they are; names the parameters.
    """
    computed = (one for batch in batches for one in tensors_of(batch))
    leaves = {id(getattr(node, "variable", None)) for node in _graph(computed)}
    pairs = zip(chosen.names, chosen.tensors, strict=True)
    if held := [name for name, one in pairs if id(one) in leaves]:
        raise OperatorError(
            f"the data hold tensors that were computed from {shown_list(held)}, so that a part of "
            "the loss would not be differentiated; compute them in the loss, or detach() them"
        )
