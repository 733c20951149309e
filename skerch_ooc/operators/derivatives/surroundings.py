"""What holds while a loss is evaluated: a model that stays as it is, and operations that repeat.

Inside, buffers are copies, so that batch normalisation and others change nothing that lasts;
compiled code runs as it was written; autocast is off; attention takes the formula that has second
derivatives; and dropout is refused by the name of its function.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode

from skerch_ooc.base.errors import OperatorError

_TRAINS = {
    functional.dropout: True, functional.dropout1d: True, functional.dropout2d: True,
    functional.dropout3d: True, functional.alpha_dropout: False,
    functional.feature_alpha_dropout: False,
}  # fmt: skip
"""Functions that draw numbers, and whether they do so unless told otherwise."""


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function of torch is dropout at work."""
    if func is functional.scaled_dot_product_attention:
        names = ("query", "key", "value", "attn_mask", "dropout_p")
        return bool((dict(zip(names, args, strict=False)) | kwargs).get("dropout_p", 0))
    if func not in _TRAINS:
        return False
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return bool(given.get("training", _TRAINS[func])) and given.get("p", 0.5) > 0


class Guarded(TorchFunctionMode):
    """Refuses functions that draw numbers, and switches autocast off around all others.

    Attributes:
        autocast: Whether autocast was on around all, or in some call.
        dtypes: The dtypes of all that was computed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device.type
        # Not all kinds of devices know it.
        self._casts = torch.amp.is_autocast_available(device.type)
        self.autocast = self._casts and torch.is_autocast_enabled(device.type)
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls a function of torch."""
        kwargs = kwargs or {}
        if _draws(func, args, kwargs):
            raise OperatorError(
                f"the model calls {func.__name__} in training mode, so that products would differ "
                "from call to call; call model.eval() first, or set its probability to 0"
            )
        if self._casts and torch.is_autocast_enabled(self._device):
            self.autocast = True
            with self.exact():
                made = func(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
        if isinstance(made, torch.Tensor):
            self.dtypes.add(made.dtype)
        return made

    def exact(self) -> contextlib.AbstractContextManager[Any]:
        """Switches autocast off."""
        if not self._casts:
            return contextlib.nullcontext()
        off: contextlib.AbstractContextManager[Any] = torch.autocast(self._device, enabled=False)
        return off


def require_deterministic(model: nn.Module) -> None:
    """Refuses layers that draw numbers, or that iterate without derivatives.

    Raises:
        OperatorError: If there is one in training mode; names it.
    """
    for name, module in model.named_modules():
        if module.training and _iterates(module):
            raise OperatorError(
                f"layer {name or type(module).__name__} normalises a spectrum in training mode, "
                "where each call moves the vectors of its power iteration, which torch does not "
                "differentiate; call model.eval() first"
            )
        p = getattr(module, "p", getattr(module, "dropout", 0.0))
        if isinstance(module, nn.RReLU):
            p = float(module.upper > module.lower)
        kinds = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
        draws = isinstance(p, float) and p > 0
        if isinstance(module, nn.RNNBase):
            draws = draws and module.num_layers > 1
        if isinstance(module, kinds) and module.training and draws:
            raise OperatorError(
                f"layer {name or type(module).__name__} ({type(module).__name__}) is in training "
                "mode, so that products would differ from call to call; call model.eval() first, "
                "or set its dropout to 0"
            )


def _iterates(module: nn.Module) -> bool:
    """Whether a module, or what comes before its call, is spectral normalisation."""
    before = module._forward_pre_hooks.values()
    return isinstance(module, nn.utils.parametrizations._SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in before
    )


def mixes_rows(model: nn.Module) -> str | None:
    """Returns the name of a layer that takes statistics of the batch, if there is one."""
    for name, module in model.named_modules():
        takes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if takes and (module.training or module.running_mean is None):
            return name or type(module).__name__
    return None


@contextlib.contextmanager
def evaluation(model: nn.Module, device: torch.device) -> Iterator[Guarded]:
    """Holds while a loss is evaluated and differentiated.

    Args:
        model: The model, which is left as it was found.
        device: Where it is.
    """
    guarded = Guarded(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_it_is(model))
        stack.enter_context(guarded.exact())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_slow_path_of_encoders())
        stack.enter_context(_kernels_of_cudnn(model, device))
        stack.enter_context(guarded)
        yield guarded


@contextlib.contextmanager
def as_it_is(model: nn.Module) -> Iterator[None]:
    """Lets a loss be evaluated as its author would; only copies of buffers are updated."""
    kept = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    copies: dict[int, Any] = {}
    for module, buffers in kept:
        for name, buffer in buffers.items():
            if buffer is not None:
                copies.setdefault(id(buffer), buffer.detach().clone())
                module._buffers[name] = copies[id(buffer)]
    try:
        with torch.inference_mode(False), torch.enable_grad(), _as_written():
            yield
    finally:
        for module, buffers in kept:
            module._buffers.clear()
            module._buffers.update(buffers)


def _kernels_of_cudnn(
    model: nn.Module, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """Those of recurrent layers cannot be differentiated twice; others may round to TF32."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    if device.type != "cuda" and not recurrent:
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    chosen: contextlib.AbstractContextManager[Any] = cudnn.flags(
        enabled=cudnn.enabled and not recurrent, benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic, allow_tf32=False,
    )  # fmt: skip
    return chosen


def _as_written() -> contextlib.AbstractContextManager[Any]:
    """What torch has compiled cannot be differentiated twice."""
    if "torch._dynamo" in sys.modules:
        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return contextlib.nullcontext()


@contextlib.contextmanager
def _slow_path_of_encoders() -> Iterator[None]:
    """The fast path of ``TransformerEncoder`` has no derivatives."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
