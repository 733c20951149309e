"""What losses of batches weigh: so that the loss of all data does not depend on how they are cut.

A loss that is a mean divides by what it counts: rows, entries, targets that are not ignored, or the
sum of class weights. The loss of all data is then the mean of the batches' losses, weighted by what
each counts. What torch's own losses count is known; of any other loss it is verified, on rows of
two batches together, or the user says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from skerch_ooc.base.errors import OperatorError, shown
from skerch_ooc.operators.derivatives.batches import rows_of

WeightOf = Callable[[Any], Any] | str | None
"""What the loss of a batch counts; ``"sum"`` if losses of batches are added."""


@dataclass(frozen=True)
class Reduction:
    """How the losses of batches make up that of all data.

    Attributes:
        name: What is counted, for people.
        count: The weight of a batch, where the loss is a mean; ``None`` where losses are added.
        is_known: Whether it is known of torch's loss; else it is to be verified.
    """

    name: str
    count: Callable[[Any], float] | None
    is_known: bool = True

    def weights(self, batches: list[Any]) -> list[float]:
        """Returns what the losses of batches are multiplied by.

        Raises:
            OperatorError: If a count is no number of at least 0, or all are 0.
        """
        if self.count is None:
            return [1.0] * len(batches)
        counts = [self._checked(number, batch) for number, batch in enumerate(batches)]
        total = math.fsum(counts)
        if total <= 0:
            raise OperatorError(
                f"nothing in the data counts: the {self.name} of all {len(batches)} batches are 0; "
                "check the targets that are ignored"
            )
        return [count / total for count in counts]

    def _checked(self, number: int, batch: Any) -> float:
        assert self.count is not None
        found = self.count(batch)
        try:
            count = float(found)
        except (TypeError, ValueError, RuntimeError):
            count = math.nan
        if not 0 <= count < math.inf:
            raise OperatorError(
                f"weight_of(batch) = {shown(found)} for batch {number}; it must return how much "
                "the loss of the batch counts, a number of at least 0"
            )
        return count


SUM = Reduction("losses", None)
ROWS = Reduction("rows", lambda batch: float(rows_of(batch) or math.nan), is_known=False)
ADDED = Reduction("losses", None, is_known=False)
SUPPOSED = (ROWS, ADDED)
"""What a loss that torch does not know may be."""


def _rows(targets: Tensor, loss: Any) -> float:  # noqa: ARG001 (all counts are called alike)
    return float(len(targets))


def _entries(targets: Tensor, loss: Any) -> float:  # noqa: ARG001
    return float(targets.numel())


def _classes(targets: Tensor, loss: Any) -> float:
    """Counts targets that are not ignored, each by the weight of its class."""
    if targets.is_floating_point():
        # Probabilities (B, C, ...): the mean is over all but the classes.
        return float(targets.numel() // (targets.shape[1] if targets.ndim > 1 else len(targets)))
    chosen = targets[targets != getattr(loss, "ignore_index", -100)]
    weight = getattr(loss, "weight", None)
    if weight is None:
        return float(chosen.numel())
    # Small integers would choose as a mask does.
    chosen = chosen.long()
    if chosen.numel() and int(chosen.max()) >= len(weight):
        raise OperatorError(
            f"a target is class {int(chosen.max())}, but the loss has the weights of "
            f"{len(weight)} classes, from 0; mend the targets, or give all weights"
        )
    return float(weight.to(chosen.device)[chosen].sum())


Count = Callable[[Tensor, Any], float]

_KNOWN: tuple[tuple[Count, str, tuple[type[nn.Module], ...], tuple[Any, ...]], ...] = (
    (
        _classes, "targets that count", (nn.CrossEntropyLoss, nn.NLLLoss),
        (functional.cross_entropy, functional.nll_loss),
    ),
    (
        _entries, "entries of the targets",
        (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
         nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss, nn.HingeEmbeddingLoss),
        (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss,
         functional.huber_loss, functional.binary_cross_entropy,
         functional.binary_cross_entropy_with_logits, functional.poisson_nll_loss,
         functional.soft_margin_loss, functional.kl_div, functional.hinge_embedding_loss),
    ),
    (
        _rows, "rows",
        (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss),
        (functional.multi_margin_loss, functional.multilabel_margin_loss,
         functional.multilabel_soft_margin_loss),
    ),
)  # fmt: skip
"""What torch's own losses count, where they are means."""


def reduction_of(loss: Any, weight_of: WeightOf) -> Reduction | None:
    """Returns how the losses of batches add up, if torch or the user says so.

    Args:
        loss: A loss of outputs and targets, or ``None`` for another function.
        weight_of: What the user says.

    Raises:
        OperatorError: If ``weight_of`` is none, or the loss is not reduced to a number.
    """
    if weight_of == "sum":
        return SUM
    if weight_of is not None:
        if not callable(weight_of):
            raise OperatorError(
                f"weight_of = {shown(weight_of)}: must be a function of a batch, which returns how "
                'much its loss counts, or "sum" where the losses of batches are added'
            )
        return Reduction("weights that weight_of gives", weight_of, is_known=False)
    stated = getattr(loss, "reduction", "mean")
    if stated == "none":
        raise OperatorError(
            f"the loss {type(loss).__name__} has reduction = 'none', so that it is no number; set "
            "'mean' or 'sum'"
        )
    for count, name, kinds, functions in _KNOWN:
        # By the very class: what a subclass counts, only its author knows.
        if type(loss) in kinds or loss in functions:
            return SUM if stated == "sum" else _of_targets(loss, stated, count, name)
    return None


def _of_targets(loss: Any, stated: str, count: Count, name: str) -> Reduction:
    if stated == "batchmean":
        count, name = _rows, "rows"

    def counted(batch: Any) -> float:
        targets = batch[1]
        if not isinstance(targets, torch.Tensor):
            raise OperatorError(
                f"the targets of a batch are a {type(targets).__name__}, but the loss counts "
                f"{name} of a tensor; give tensors, or give weight_of"
            )
        return count(targets, loss)

    return Reduction(name, counted)
