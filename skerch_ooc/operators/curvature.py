"""The curvature matrices that people ask for: Hessian, Gauss-Newton, Fisher and KFAC."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.figures import short
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.operators.adapters import require_device
from skerch_ooc.operators.derivatives import library
from skerch_ooc.operators.derivatives.agreement import agreed
from skerch_ooc.operators.derivatives.batches import HALF, sha256_of
from skerch_ooc.operators.derivatives.checks import require_gradient
from skerch_ooc.operators.derivatives.differences import (
    compared,
    converted,
    differentiable_twice,
    why_one_by_one,
)
from skerch_ooc.operators.derivatives.fisher import SAMPLED, PseudoLoss
from skerch_ooc.operators.derivatives.graphs import require_data_apart
from skerch_ooc.operators.derivatives.operator import Curvature, Objective
from skerch_ooc.operators.derivatives.parameters import Chosen, Parameters, chosen_of
from skerch_ooc.operators.derivatives.products import Loss, begin_of
from skerch_ooc.operators.derivatives.reductions import Reduction, WeightOf, reduction_of
from skerch_ooc.operators.derivatives.surroundings import require_deterministic
from skerch_ooc.operators.terms import Sum

Data = Iterable[Any]


@tells_keywords
def hessian(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Any],
    data: Data,
    parameters: Parameters | None = None,
    *,
    per_batch: bool = False,
    reverse: bool | None = None,
    weight_of: WeightOf = None,
    rows_at_once: int | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The Hessian of the loss of a model on all data.

    Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Args:
        model: The network. It is left as it was found, buffers included (but see ``device``);
            layers that draw numbers must be in evaluation mode. One of half precision is
            differentiated in float32, at the same values.
        loss: ``loss(outputs, targets)``, a number: a module such as
            ``torch.nn.CrossEntropyLoss()``, or a function.
        data: Batches ``(inputs, targets)``, such as a loader that does not shuffle; they are kept
            in memory. The model is called as ``model(inputs)``, with a tensor, tuple or mapping.
        parameters: With respect to which, in this order; by default all that require a gradient.
            Names of layers stand for all parameters below them, as in ``["fc1", "fc2.bias"]``;
            patterns such as ``"layers.*.weight"``, tensors, pairs of name and tensor, and an
            optimiser's ``param_groups`` will do, too.
        per_batch: Whether the operator is to be a :class:`skerch_ooc.Sum` with a term for each
            batch, which can be measured in parts (``operator.parts``).
        reverse: Products are taken reverse over reverse (``None`` or ``True``), which is right for
            all layers that torch can differentiate twice. ``False`` takes the forward over reverse
            products of curvlinops (extra ``curvature``), and refuses them if they differ.
        weight_of: How much the loss of a batch counts, as a function of the batch: the Hessian is
            the mean of the batches' own, weighted by it. ``"sum"`` if it is the sum of them. Of
            torch's own losses it is known (rows, entries, targets that are not ignored, or their
            class weights), and of others found out, if they count rows or are sums.
        rows_at_once: Cuts batches into pieces of so many rows (the first dimension of all tensors
            of a batch), which need less memory; only for losses that are means or sums over rows.
        device: Moves the model there; by default it stays where it is. Data are moved batch by
            batch.

    Returns:
        An operator of shape ``(p, p)``, ``p`` being the number of entries of the parameters. It is
        applied to tensors ``(p, b)`` or ``(p,)`` on any device, whose dtype has no more digits than
        its own: that of the parameters, or float32 for half precision. Its ``layout`` says where
        each parameter is in a vector, and its ``remarks`` what was made of the loss.

    Raises:
        OperatorError: If the loss is no number or not finite, cannot be differentiated twice, is
            random, or does not depend on the parameters; if how much its batches weigh is not
            known, or not what was said; if a name is that of nothing, a parameter that is named is
            frozen or complex, or the parameters are on several devices; if the data are shuffled,
            empty, or no pairs.
    """
    whole = Loss(model, of_batch=PairLoss(loss))
    asked = Asked(parameters, reduction_of(loss, weight_of), per_batch, rows_at_once, device)
    if reverse is False:
        return _forward_over_reverse(whole, loss, data, asked)
    return _operator(whole, _pairs(data), asked)


@tells_keywords
def ggn(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Any],
    data: Data,
    parameters: Parameters | None = None,
    *,
    per_batch: bool = False,
    weight_of: WeightOf = None,
    rows_at_once: int | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The generalised Gauss-Newton matrix ``J^T H J`` of the outputs' Jacobian and loss.

    It is positive semidefinite where the loss is convex in the outputs. Schraudolph 2002, "Fast
    curvature matrix-vector products for second-order gradient descent".

    Args:
        model: As for :func:`hessian`; what it returns is linearised.
        loss: As for :func:`hessian`; what is within it belongs to ``H``, such as a softmax.
            Parameters that it holds itself, such as those that decay, count as outputs, too.
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        per_batch: As for :func:`hessian`.
        weight_of: As for :func:`hessian`.
        rows_at_once: As for :func:`hessian`. The outputs of so many rows are in memory, several
            times for each column that is applied at once: set it where outputs are large, such as
            the logits of a vocabulary.
        device: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    asked = Asked(parameters, reduction_of(loss, weight_of), per_batch, rows_at_once, device)
    whole = Loss(model, outputs=_outputs_of_pair, of_outputs=PairLoss(loss, outputs=True))
    return _operator(whole, _pairs(data), asked)


@tells_keywords
def hessian_of(
    model: torch.nn.Module,
    loss_of: Callable[[Any, Any], Any],
    data: Data,
    parameters: Parameters | None = None,
    *,
    weight_of: WeightOf = None,
    per_batch: bool = False,
    rows_at_once: int | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The Hessian of any loss of a model and a batch.

    For example ``hessian_of(model, lambda model, batch: model(**batch).loss, data)``.

    Args:
        model: As for :func:`hessian`.
        loss_of: ``loss_of(model, batch)``, a number: with weight decay, derivatives with respect to
            inputs, several outputs, or whatever else it is made of. It has to use the model that it
            is given, which may be a copy of yours in another precision.
        data: Batches of any kind: tensors, tuples, mappings, dataclasses; such as a loader that
            does not shuffle. They are kept in memory.
        parameters: As for :func:`hessian`.
        weight_of: As for :func:`hessian`, such as ``lambda batch: (batch["labels"] != -100).sum()``
            for a mean over tokens. Without it batches are found to be weighted by their rows, or to
            be added, which is verified for each; where neither is so it is needed.
        per_batch: As for :func:`hessian`.
        rows_at_once: As for :func:`hessian`.
        device: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`. Where the loss is no sum over rows, because
        rows are compared with each other, it is the weighted mean of the batches' own.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    asked = Asked(parameters, _said(weight_of), per_batch, rows_at_once, device)
    return _operator(Loss(model, of_batch=loss_of), data, asked)


@tells_keywords
def ggn_of(
    model: torch.nn.Module,
    outputs_of: Callable[[Any, Any], Any],
    output_loss: Callable[[Any, Any], Any],
    data: Data,
    parameters: Parameters | None = None,
    *,
    weight_of: WeightOf = None,
    per_batch: bool = False,
    rows_at_once: int | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The generalised Gauss-Newton matrix ``J^T H J`` of any loss of outputs.

    Args:
        model: As for :func:`hessian`.
        outputs_of: ``outputs_of(model, batch)``, whose Jacobian is ``J``: a tensor, or several in a
            tuple, list, mapping or dataclass.
        output_loss: ``output_loss(outputs, batch)``, a number, whose Hessian with respect to the
            outputs is ``H``; as for :func:`ggn`.
        data: As for :func:`hessian_of`.
        parameters: As for :func:`hessian`.
        weight_of: As for :func:`hessian_of`.
        per_batch: As for :func:`hessian`.
        rows_at_once: As for :func:`ggn`.
        device: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`.
    """
    asked = Asked(parameters, _said(weight_of), per_batch, rows_at_once, device)
    return _operator(Loss(model, outputs=outputs_of, of_outputs=output_loss), data, asked)


@tells_keywords
def fisher(
    model: torch.nn.Module,
    loss: torch.nn.Module,
    data: Data,
    parameters: Parameters | None = None,
    samples: int | None = 1,
    seed: int = 0,
    *,
    per_batch: bool = False,
    rows_at_once: int | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """The Fisher information matrix, by sampled targets, or the empirical one.

    Args:
        model: As for :func:`hessian`; it returns a tensor.
        loss: One that stands for a likelihood: ``MSELoss``, ``CrossEntropyLoss`` or
            ``BCEWithLogitsLoss``, without class weights; for the empirical matrix any of torch's
            losses that is a sum or mean over targets.
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        samples: Targets that are drawn for each input, by curvlinops (extra ``curvature``); with
            more of them the matrix is nearer to the exact one. ``None`` for the empirical Fisher
            matrix, of the gradients at the targets of the data (Kunstner et al. 2019, arXiv
            1905.12558). It is ``(1/c) sum_n g_n g_n^T``, as of curvlinops, with the gradient
            ``g_n`` of what the loss adds up for input ``n``, and the count ``c`` by which a mean
            divides. For a mean square over ``N`` inputs and ``D`` outputs ``g_n`` is that of the
            sum of ``D`` squares, with no 1/2 and no ``1/D``, and ``c = N D``: so the matrix is
            ``D`` times the mean of the outer products of gradients of each input's mean square.
        seed: Of the targets: each product draws the same. The terms of a sum count on from it, so
            that their targets are others than those of the whole.
        per_batch: As for :func:`hessian`.
        rows_at_once: As for :func:`ggn`.
        device: As for :func:`hessian`.

    Returns:
        An operator ``(p, p)``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`hessian`, or if the loss stands for no likelihood, or curvlinops is
            needed and not installed.
    """
    reduction = _require_likelihood(loss, samples)
    if samples is not None:
        library.imported()
    asked = Asked(parameters, reduction, per_batch, rows_at_once, device)
    quadratic = PseudoLoss(loss, reduction, samples, seed)
    whole = Loss(model, outputs=_outputs_of_pair, of_outputs=quadratic)
    return _operator(whole, _pairs(data), asked)


@tells_keywords
def kfac(
    model: torch.nn.Module, loss: torch.nn.Module, data: Data,
    parameters: Parameters | None = None, samples: int = 1, seed: int = 0,
) -> Any:  # fmt: skip
    """The Kronecker-factored approximation of the Fisher matrix of linear layers and convolutions.

    Martens and Grosse 2015, arXiv 1503.05671; by curvlinops (extra ``curvature``), whose conditions
    on model and data hold. Its factors are computed at the first product, in each process.

    Args:
        model: As for :func:`hessian`, but of full precision.
        loss: As for :func:`fisher` with samples.
        data: As for :func:`hessian`.
        parameters: As for :func:`hessian`.
        samples: Targets that are drawn for each input.
        seed: Of the targets.

    Returns:
        An operator ``(p, p)`` with a ``layout``; see :func:`hessian`.

    Raises:
        OperatorError: As :func:`fisher`, as far as it can be told without computing anything.
    """
    _require_likelihood(loss, samples)
    batches, chosen = _taken(model, _pairs(data), Asked(parameters))
    operator = library.constructed(
        "KFACLinearOperator", model, loss, list(chosen.tensors), batches, mc_samples=samples,
        seed=seed,
    )  # fmt: skip
    operator.layout = chosen.layout
    operator.content = _content(model, batches)
    return operator


@dataclass(frozen=True)
class PairLoss:
    """The loss of a model's outputs and the targets of a batch.

    Attributes:
        loss: ``loss(outputs, targets)``.
        outputs: Whether it is given outputs, not the model.
    """

    loss: Callable[[Any, Any], Any]
    outputs: bool = False

    def __call__(self, given: Any, batch: Any) -> Any:
        """Returns the loss of a model, or of its outputs, on a batch."""
        return self.loss(given if self.outputs else given(batch[0]), batch[1])


def _outputs_of_pair(model: Any, batch: Any) -> Any:
    return model(batch[0])


@dataclass(frozen=True)
class Asked:
    """What was asked for beside model, loss and data.

    Attributes:
        parameters: See :func:`hessian`.
        reduction: How losses of batches add up, if that was said.
        per_batch: See :func:`hessian`.
        rows_at_once: See :func:`hessian`.
        device: See :func:`hessian`.
    """

    parameters: Parameters | None
    reduction: Reduction | None = None
    per_batch: bool = False
    rows_at_once: int | None = None
    device: str | torch.device | None = None


def _said(weight_of: WeightOf) -> Reduction | None:
    return None if weight_of is None else reduction_of(None, weight_of)


def _pairs(data: Data) -> Data:
    """Yields batches ``(inputs, targets)``.

    Raises:
        OperatorError: If one is something else.
    """
    _require_order(data)
    for number, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            what = f" of {len(batch)} entries" * isinstance(batch, (tuple, list))
            raise OperatorError(
                f"batch {number} is a {type(batch).__name__}{what}; it must be (inputs, targets), "
                "and the data a list of them, even if there is one: [(inputs, targets)]. For other "
                "batches there are hessian_of and ggn_of"
            )
        yield batch


def _operator(loss: Loss, data: Data, asked: Asked) -> Any:
    """Makes the operator of all batches, or the sum of those of each."""
    batches, chosen = _taken(loss.model, data, asked)
    own = objective = Objective(loss, chosen, begin=begin_of(loss))
    remarks: list[str] = []
    if (dtype := _wide_dtype(loss.model, chosen)) is not None:
        objective, remarks = converted(own, dtype), [_said_of_dtypes(loss.model, chosen, dtype)]
        # A seed is drawn from by the loss that is evaluated.
        objective = replace(objective, begin=begin_of(objective.loss))
    first = _first(batches, asked.reduction)
    with differentiable_twice():
        remarks += require_gradient(objective, first, own)
        reduction, more = agreed(objective, batches, asked.reduction, asked.rows_at_once)
        why = why_one_by_one(objective, first)
        how = f", one column after the other, as {why}" if why else ""
        found = compared(objective, first)
        remarks += [*more, f"differentiated reverse over reverse{how}: {found}"]

    def made(some: list[Any], objective: Objective = objective) -> Curvature:
        operator = Curvature(objective, some, reduction, asked.rows_at_once)
        return operator.one_by_one() if why else operator

    operator: Any = _sum(made, objective, batches, reduction) if asked.per_batch else made(batches)
    operator.layout, operator.remarks = chosen.layout, tuple(remarks)
    operator.content = _content(loss.model, batches)
    return operator


def _sum(
    made: Callable[..., Curvature], objective: Objective, batches: list[Any], reduction: Reduction
) -> Sum:
    """Makes the sum of the operators of batches; those that do not count are left out."""
    weights = reduction.weights(batches)
    counting = [number for number, weight in enumerate(weights) if weight]

    def term(number: int) -> Curvature:
        quadratic = objective.loss.of_outputs
        if not isinstance(quadratic, PseudoLoss):
            return made([batches[number]])
        other = replace(quadratic, seed=quadratic.seed + number)
        loss = replace(objective.loss, of_outputs=other)
        return made([batches[number]], replace(objective, loss=loss, begin=other.begin))

    first = term(counting[0])
    operator = Sum(
        [partial(term, number) for number in counting], [weights[i] for i in counting],
        shape=first.shape, dtype=str(first.dtype).removeprefix("torch."),
    )  # fmt: skip
    operator.columns_at_once = first.columns_at_once
    return operator


def _taken(model: torch.nn.Module, data: Data, asked: Asked) -> tuple[list[Any], Chosen]:
    """Returns batches and parameters, after what can be told without evaluating anything.

    Raises:
        OperatorError: If model, data or parameters are not usable.
    """
    if not isinstance(model, torch.nn.Module):
        raise OperatorError(
            f"model is a {type(model).__name__}; it must be a torch.nn.Module, whose parameters "
            "are differentiated"
        )
    require_deterministic(model)
    _require_order(data)
    cut = asked.rows_at_once
    if cut is not None and not (isinstance(cut, int) and cut >= 1):
        raise OperatorError(f"rows_at_once = {cut}: must be an integer of at least 1")
    if asked.device is not None:
        require_device(str(asked.device))
        model.to(asked.device)
    chosen = chosen_of(model, asked.parameters)
    devices = sorted({str(one.device) for one in chosen.tensors})
    if len(devices) > 1:
        raise OperatorError(
            f"the parameters are on several devices ({', '.join(devices)}); put the model on one, "
            "or choose parameters of one"
        )
    batches = list(data)
    if not batches:
        raise OperatorError("the data hold no batches; give at least one")
    require_data_apart(chosen, batches)
    return batches, chosen


def _wide_dtype(model: torch.nn.Module, chosen: Chosen) -> torch.dtype | None:
    """The dtype to which a model is copied: its parameters have too few digits, or several."""
    dtypes = _dtypes(model, chosen)
    if len(dtypes) == 1 and not dtypes & set(HALF):
        return None
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _dtypes(model: torch.nn.Module, chosen: Chosen) -> set[torch.dtype]:
    """The dtypes of the parameters, and those of half precision of all others of the model."""
    others = {one.dtype for one in model.parameters()} & set(HALF)
    return others | {one.dtype for one in chosen.tensors}


def _said_of_dtypes(model: torch.nn.Module, chosen: Chosen, dtype: torch.dtype) -> str:
    names = sorted(str(one).removeprefix("torch.") for one in _dtypes(model, chosen))
    wide = str(dtype).removeprefix("torch.")
    return (
        f"the parameters are {' and '.join(names)}: these are the derivatives of the loss in "
        f"{wide}, at the same values of the parameters"
    )


def _first(batches: list[Any], reduction: Reduction | None) -> Any:
    """The first batch that counts."""
    weights = reduction.weights(batches) if reduction else [1.0]
    return next(batch for batch, weight in zip(batches, weights, strict=False) if weight)


def _content(model: torch.nn.Module, batches: list[Any]) -> dict[str, str]:
    return {"weights": sha256_of(model.state_dict().values()), "data": sha256_of(batches)}


def _forward_over_reverse(whole: Loss, loss: Any, data: Data, asked: Asked) -> Any:
    batches = list(_pairs(data))
    ours = _operator(whole, batches, replace(asked, per_batch=False))
    if asked.per_batch or asked.rows_at_once:
        raise OperatorError(
            f"reverse = False takes whole batches in one operator: per_batch = {asked.per_batch} "
            f"and rows_at_once = {asked.rows_at_once} must be left out"
        )
    model, tensors = whole.model, chosen_of(whole.model, asked.parameters).tensors
    theirs = library.constructed("HessianLinearOperator", model, loss, list(tensors), batches)
    off = library.require_equal(theirs, ours)
    theirs.layout, theirs.content = ours.layout, ours.content
    theirs.remarks = (
        *ours.remarks[:-1],
        f"differentiated forward over reverse: agrees with reverse over reverse to {short(off, 1)}",
    )
    return theirs


def _require_likelihood(loss: Any, samples: int | None) -> Reduction:
    if samples is not None and type(loss) not in SAMPLED:
        raise OperatorError(
            f"the loss {getattr(loss, '__name__', type(loss).__name__)} stands for no likelihood "
            "that targets are drawn from; give MSELoss, CrossEntropyLoss or BCEWithLogitsLoss, or "
            "use ggn"
        )
    weighted = getattr(loss, "weight", None) is not None
    weighted = weighted or getattr(loss, "label_smoothing", 0.0) > 0
    reduction = reduction_of(loss, None)
    if reduction is None or (samples is not None and weighted):
        raise OperatorError(
            f"the loss {getattr(loss, '__name__', type(loss).__name__)} has class weights, "
            "smoothed labels or a reduction of its own, so that it is no likelihood; use ggn"
        )
    return reduction


def _require_order(data: Data) -> None:
    """Refuses loaders that would give each process other batches."""
    samplers = (getattr(one, "sampler", None) for one in (data, getattr(data, "batch_sampler", 0)))
    shuffling = [one for one in samplers if isinstance(one, torch.utils.data.RandomSampler)]
    if any(one.generator is None for one in shuffling):
        raise OperatorError(
            "the data loader shuffles, so that products would differ from process to process; make "
            "it with shuffle=False, or with a generator that is seeded where it is made"
        )
