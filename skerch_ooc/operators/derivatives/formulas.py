"""Formulas with second derivatives that are right and quick, for some of torch's functions.

Torch differentiates the gradient of a convolution by convolutions with swapped dimensions, those of
normalisations by many passes, and some for one column at a time only. Here each function is a
formula, or a function whose gradient is another one whose gradients are made of quick kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skerch_ooc.operators.derivatives import affine, attention, entrywise, norms

_LOG_SOFTMAX: tuple[Any, ...] = (F.log_softmax, torch.log_softmax, Tensor.log_softmax)
_LOSSES = (*_LOG_SOFTMAX, F.cross_entropy, F.binary_cross_entropy_with_logits)
_IN_DOUBLE = {one: entrywise.in_double(entrywise.left_to_torch, one) for one in _LOSSES}
"""Functions of torch as they are, but for the precision that they are computed in."""

_TABLE: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), affine.convolution),
    F.linear: affine.linear,
    F.gelu: entrywise.gelu,
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), entrywise.relu),
    F.max_pool2d: entrywise.max_pool,
    F.silu: entrywise.silu,
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), entrywise.softmax),
    **dict.fromkeys(_LOG_SOFTMAX, entrywise.in_double(entrywise.log_softmax)),
    F.layer_norm: norms.layer_norm,
    F.group_norm: norms.group_norm,
    F.batch_norm: norms.batch_norm,
    F.instance_norm: norms.instance_norm,
    F.scaled_dot_product_attention: attention.attention,
    torch._weight_norm: norms.weight_norm,
    F.mse_loss: entrywise.mse_loss,
    F.cross_entropy: entrywise.in_double(entrywise.cross_entropy, F.cross_entropy),
    F.binary_cross_entropy_with_logits: _IN_DOUBLE[F.binary_cross_entropy_with_logits],
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

    def __init__(self, table: Mapping[Any, Callable[..., Any]] = _TABLE) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch, or what takes its place."""
        kwargs = kwargs or {}
        if func in self._table and _are_wanted():
            found = self._table[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)


def losses_in_double() -> Formulas:
    """Returns what computes losses in double precision, and leaves all else to torch."""
    return Formulas(_IN_DOUBLE)
