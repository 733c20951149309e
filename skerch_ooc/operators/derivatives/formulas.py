"""Formulas with second derivatives that are right and quick, for some of torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """What torch differentiates wrongly the second time: the norms are constants there."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


_TABLE: dict[Any, Callable[..., Any]] = {torch._weight_norm: _weight_norm}


class Formulas(TorchFunctionMode):
    """Functions called within are computed by our formulas, if there is one for the arguments."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        if func in _TABLE:
            found = _TABLE[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)
