"""The operator: the weighted sum of the curvature matrices of batches, applied to columns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.progress import note_share, one_of_calls
from skerch_ooc.operators.derivatives.batches import moved, rows, rows_of, widened
from skerch_ooc.operators.derivatives.formulas import Formulas
from skerch_ooc.operators.derivatives.parameters import Chosen
from skerch_ooc.operators.derivatives.products import Linear, Loss, gradient
from skerch_ooc.operators.derivatives.reductions import Reduction
from skerch_ooc.operators.derivatives.surroundings import evaluation

COLUMNS_AT_ONCE = 8
"""Columns of an inner call, unless somebody who has timed it says otherwise."""


@dataclass(frozen=True)
class Objective:
    """A loss with the parameters that it is differentiated by.

    Attributes:
        loss: The loss.
        chosen: The parameters.
        widen: Whether data of fewer digits are given to it in single precision.
        begin: Called before the first batch of each product.
    """

    loss: Loss
    chosen: Chosen
    widen: bool = False
    begin: Callable[[], None] = field(default=lambda: None)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.chosen.tensors[0].device

    def given(self, batch: Any) -> Any:
        """Returns a batch as the loss is given it."""
        batch = moved(batch, self.device)
        return widened(batch, self.chosen.tensors[0].dtype) if self.widen else batch

    def gradient(self, batch: Any) -> Tensor:
        """Returns the gradient of the loss of a batch, as a vector in double precision."""
        self.begin()
        with evaluation(self.loss.model, self.device), Formulas():
            found = gradient(self.loss.value(self.given(batch)), self.chosen.tensors)
        return joined_pieces(found, False).double()


class Curvature:
    """The Hessian or Gauss-Newton matrix of a loss over batches.

    Args:
        objective: The loss and its parameters.
        batches: The data.
        reduction: How the losses of batches add up.
        rows_at_once: Rows of the pieces into which batches are cut; ``None`` for whole batches.

    Attributes:
        shape: ``(p, p)``.
        dtype: That of the products: of the parameters, or single precision.
        device: That of the parameters.
        layout: The parameters in the vector.
        remarks: What was made of the loss, in sentences.
        content: Hashes of weights and data.
        columns_at_once: Columns that one inner call takes.
    """

    def __init__(
        self, objective: Objective, batches: list[Any], reduction: Reduction,
        rows_at_once: int | None = None,
    ) -> None:  # fmt: skip
        self._objective = objective
        pieces = [piece for batch in batches for piece in cut_by_rows(batch, rows_at_once)]
        weights = reduction.weights(pieces)
        # What does not count may have no loss at all: the mean of nothing is not a number.
        self._pieces = [(b, w) for b, w in zip(pieces, weights, strict=True) if w]
        self._batched = True
        self.layout: ParameterLayout = objective.chosen.layout
        self.shape = (self.layout.size, self.layout.size)
        self.device = objective.device
        self.dtype = objective.chosen.tensors[0].dtype
        self.remarks: tuple[str, ...] = ()
        self.content: Mapping[str, str] = {}
        self.columns_at_once: int | None = COLUMNS_AT_ONCE

    def narrowed(self, columns_at_once: int) -> Self:
        """Returns the same operator, with inner calls of so many columns."""
        made = copy.copy(self)
        made.columns_at_once = columns_at_once
        return made

    def one_by_one(self) -> Self:
        """Returns the same operator, which takes columns one after the other."""
        made = copy.copy(self)
        made._batched, made.columns_at_once = False, None
        return made

    @torch.inference_mode(False)
    def __matmul__(self, columns: Tensor) -> Tensor:
        """The products with columns ``(p, b)``, or with a vector ``(p,)``, of the same shape.

        Raises:
            OperatorError: If the columns have more digits than the parameters.
        """
        given = columns[:, None] if columns.ndim == 1 else columns
        if given.is_inference():
            given = given.clone()
        if torch.promote_types(given.dtype, self.dtype) != self.dtype:
            own = str(self.dtype).removeprefix("torch.")
            raise OperatorError(
                f"the model's parameters are {own}, the columns {given.dtype}: products would not "
                f'have so many digits; set dtype = "{own}", or give a model in {given.dtype}'
            )
        # Each column lies together from here on: torch adds what lies alike much quicker, and
        # transposes by blocks what lies together, but all else entry by entry.
        x = given.to(self.device, self.dtype).contiguous().mT.contiguous()
        total = torch.zeros_like(x)
        self._objective.begin()
        for number, (batch, weight) in enumerate(self._pieces):
            with one_of_calls(number, len(self._pieces)):
                self._add(total, x, batch, weight)
        total = total.mT.contiguous().to(given.device, given.dtype)
        return total[:, 0] if columns.ndim == 1 else total

    @property
    def mH(self) -> Curvature:  # noqa: N802 (torch's name)
        """The adjoint: itself."""
        return self

    def _add(self, total: Tensor, x: Tensor, batch: Any, weight: float) -> None:
        """Adds the weighted products of a batch; columns come first."""
        objective = self._objective
        with evaluation(objective.loss.model, self.device), Formulas():
            _, apply = objective.loss.prepared(objective.given(batch), objective.chosen.tensors)
            width = (self.columns_at_once or 1) if self._batched else 1
            for columns in cut(Range(0, len(x)), width):
                self._add_applied(total[columns.slice], apply, x[columns.slice], weight)
                note_share(columns.stop / len(x))

    def _add_applied(self, total: Tensor, apply: Linear, x: Tensor, weight: float) -> None:
        several = len(x) > 1
        shape = x.shape[:1] if several else ()
        sizes = [one.size for one in self.layout]
        # Pairs of numbers are looked at as complex ones only where they begin at an even place.
        pieces = [
            (piece.clone() if piece.storage_offset() % 2 else piece).reshape((*shape, *one.shape))
            for piece, one in zip(torch.split(x, sizes, dim=1), self.layout, strict=True)
        ]
        sums = torch.split(total, sizes, dim=1)
        for one, piece in zip(sums, apply(pieces, several), strict=True):
            one.add_(piece.detach().reshape(one.shape), alpha=weight)


def joined_pieces(pieces: list[Tensor], several: bool) -> Tensor:
    """Joins pieces ``(w, *shape)`` to columns ``(p, w)``; those of one column to ``(p, 1)``."""
    width = len(pieces[0]) if several else 1
    return torch.cat([one.detach().reshape(width, -1) for one in pieces], dim=1).mT


def cut_by_rows(batch: Any, rows_at_once: int | None) -> Iterator[Any]:
    """Yields the pieces of a batch with so many rows at most.

    Raises:
        OperatorError: If its tensors do not agree on their rows.
    """
    if rows_at_once is None:
        yield batch
        return
    height = rows_of(batch)
    if height is None:
        raise OperatorError(
            f"rows_at_once = {rows_at_once}: the tensors of a batch do not have the same number of "
            "rows, so that it cannot be cut; give smaller batches instead"
        )
    for piece in cut(Range(0, height), rows_at_once):
        yield rows(batch, piece)
