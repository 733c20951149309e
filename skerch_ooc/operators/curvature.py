"""Curvature operators of neural networks, over curvlinops (the extra ``curvature``)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.reverse import ReverseHessian, weights_of
from skerch_ooc.operators.terms import Sum

Data = Iterable[tuple[torch.Tensor, torch.Tensor]]
Parameters = Iterable[torch.nn.Parameter] | Iterable[str]

_WITHOUT_FORWARD = "for layers without a forward derivative there is hessian(..., reverse=True)"


def hessian(
    model: torch.nn.Module,
    loss: torch.nn.Module,
    data: Data,
    parameters: Parameters | None = None,
    *,
    per_batch: bool = False,
    reverse: bool = False,
) -> Any:
    """The Hessian of the loss of a model, summed or averaged over all data.

    Args:
        model: The network; in evaluation mode, or without layers whose output is random.
        loss: A module with ``reduction`` ``"mean"`` or ``"sum"``.
        data: Batches ``(inputs, targets)``, the same ones in the same order at each pass.
        parameters: With respect to which; by default all that require a gradient. Names of layers
            or parameters stand for all that are below them, such as ``["fc1", "fc2.bias"]``.
        per_batch: Whether the operator is to be a :class:`skerch_ooc.Sum` with a term for each
            batch, which can be measured in parts (``operator.parts``). Where the loss is a mean, a
            term has the weight of its share of the inputs.
        reverse: Whether to differentiate reverse over reverse, by torch alone. Takes somewhat
            longer, one column after the other, and is right for all layers that can be
            differentiated twice: LayerNorm, GroupNorm and attention among them, which forward over
            reverse differentiation gets wrong or does not know. Inputs may be dictionaries, lists
            or tuples then.

    Returns:
        An operator ``(p, p)``, ``p`` being the number of parameters in the order given, that is
        applied to tensors ``(p, b)``. (Pearlmutter 1994, "Fast exact multiplication by the
        Hessian"; by forward over reverse differentiation unless ``reverse``.)

    Raises:
        OperatorError: If curvlinops is not installed, or the model is in training mode with
            layers that make it random, or the data are shuffled, or a name is that of nothing.
    """
    name = "ReverseHessian" if reverse else "HessianLinearOperator"
    return _operator(name, model, loss, data, parameters, per_batch)


def ggn(
    model: torch.nn.Module, loss: torch.nn.Module, data: Data,
    parameters: Parameters | None = None, *, per_batch: bool = False,
) -> Any:  # fmt: skip
    """The generalised Gauss-Newton matrix: positive semidefinite, where the loss is convex.

    Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".

    Args:
        model: As for :func:`hessian`.
        loss: As for :func:`hessian`.
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        per_batch: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    return _operator("GGNLinearOperator", model, loss, data, parameters, per_batch)


def fisher(
    model: torch.nn.Module, loss: torch.nn.Module, data: Data,
    parameters: Parameters | None = None, samples: int | None = 1, seed: int = 0, *,
    per_batch: bool = False,
) -> Any:  # fmt: skip
    """The Fisher information matrix, by sampled targets, or the empirical one.

    Args:
        model: As for :func:`hessian`.
        loss: As for :func:`hessian`; one that stands for a likelihood (mean square, cross entropy).
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        samples: Targets that are drawn for each input; ``None`` for the empirical Fisher matrix,
            of the gradients at the targets of the data (Kunstner et al. 2019, arXiv 1905.12558).
        seed: Of the targets: each product draws the same. The terms of a sum count on from it, so
            that their targets are others than those of the whole.
        per_batch: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    if samples is None:
        return _operator("EFLinearOperator", model, loss, data, parameters, per_batch)
    return _operator(
        "FisherMCLinearOperator", model, loss, data, parameters, per_batch,
        mc_samples=samples, seed=seed,
    )  # fmt: skip


def kfac(
    model: torch.nn.Module, loss: torch.nn.Module, data: Data,
    parameters: Parameters | None = None, samples: int = 1, seed: int = 0,
) -> Any:  # fmt: skip
    """The Kronecker-factored approximation of the Fisher matrix of linear layers and convolutions.

    Martens and Grosse 2015, arXiv 1503.05671. Its factors are computed at the first product, in
    each process.

    Args:
        model: As for :func:`hessian`.
        loss: As for :func:`fisher`.
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        samples: Targets that are drawn for each input.
        seed: Of the targets.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    return _operator(
        "KFACLinearOperator", model, loss, data, parameters, mc_samples=samples, seed=seed
    )


def _require_loss(loss: object) -> None:
    if not isinstance(loss, torch.nn.Module):
        raise OperatorError(
            f"loss = {getattr(loss, '__name__', loss)!r} must be a module of torch.nn, such as "
            "torch.nn.CrossEntropyLoss(), as it says whether it is a sum or a mean"
        )


def _constructor(name: str) -> Callable[..., Any]:
    """The class of that name: ours, or that of curvlinops."""
    if name == ReverseHessian.__name__:
        return ReverseHessian
    try:
        import curvlinops
    except ImportError as error:
        raise OperatorError(
            "curvature operators need curvlinops; install it with: "
            "pip install 'skerch_ooc[curvature]'"
        ) from error
    constructor: Callable[..., Any] = getattr(curvlinops, name)
    if "check_deterministic" in inspect.signature(constructor).parameters:
        # It costs further passes over the data, and the probe checks the same.
        return partial(constructor, check_deterministic=False)
    return constructor


def _operator(
    name: str, model: torch.nn.Module, loss: torch.nn.Module, data: Data,
    parameters: Parameters | None, per_batch: bool = False, **more: Any,
) -> Any:  # fmt: skip
    """The operator of all batches, or the sum of those of each."""
    constructor = _constructor(name)
    _require_loss(loss)
    _require_deterministic(model)
    _require_order(data)
    chosen, batches = _chosen(model, parameters), list(data)

    def operator_of(some: list[Any], number: int = 0) -> Any:
        seed = {"seed": more["seed"] + number} if "seed" in more else {}
        made = constructor(model, loss, chosen, some, **more | seed)
        if name == "HessianLinearOperator":
            # Product quotes this when the operator fails.
            made.advice = _WITHOUT_FORWARD
        return made

    if not per_batch:
        operator = operator_of(batches)
    else:
        operator = Sum(
            [partial(operator_of, [batch], number) for number, batch in enumerate(batches)],
            weights_of(loss, batches),
            shape=2 * (sum(parameter.numel() for parameter in chosen),),
            dtype=str(chosen[0].dtype).removeprefix("torch."),
        )
    operator.content = {
        "weights": _sha256(model.state_dict().values()),
        "data": _sha256(tensor for batch in batches for tensor in batch),
    }
    return operator


def _sha256(values: Iterable[Any]) -> str:
    """A hash of the entries of all tensors among some values."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(repr((value.dtype, tuple(value.shape))).encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _chosen(model: torch.nn.Module, parameters: Parameters | None) -> list[torch.nn.Parameter]:
    """The parameters that are meant, of those that require a gradient."""
    named = dict(model.named_parameters())
    wanted: list[Any] = list(named.values() if parameters is None else parameters)
    chosen: list[torch.nn.Parameter] = []
    for one in wanted:
        if isinstance(one, str):
            below = [p for name, p in named.items() if name == one or name.startswith(f"{one}.")]
            if not below:
                raise OperatorError(
                    f"the model has no layer or parameter {one!r}; give layers or parameters of "
                    f"these: {shown_list(list(named))}"
                )
            chosen += below
        else:
            chosen.append(one)
    chosen = [parameter for parameter in dict.fromkeys(chosen) if parameter.requires_grad]
    if not chosen:
        raise OperatorError(
            "the model has no parameters that require a gradient; call requires_grad_() on it"
        )
    return chosen


def _require_order(data: Data) -> None:
    """Refuses loaders that would give each process other batches."""
    sampler = getattr(data, "sampler", None)
    shuffles = isinstance(sampler, torch.utils.data.RandomSampler)
    if shuffles and getattr(sampler, "generator", None) is None:
        raise OperatorError(
            "the data loader shuffles, so that products would differ from process to process; make "
            "it with shuffle=False, or with a generator that is seeded where it is made"
        )


def _require_deterministic(model: torch.nn.Module) -> None:
    random = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, random) and module.training:
            raise OperatorError(
                f"layer {name or type(module).__name__} ({type(module).__name__}) is in training "
                "mode, so that products would differ from call to call; call model.eval() first"
            )
