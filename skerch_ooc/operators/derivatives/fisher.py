"""The Fisher matrix as a Gauss-Newton matrix: of a loss that is quadratic in the outputs.

``F = (1/c) sum_n J_n^T s_n s_n^T J_n`` with the gradients ``s_n`` of the loss of each term at its
outputs: at targets that are drawn, or at those of the data (Kunstner et al. 2019, arXiv
1905.12558). It is the Gauss-Newton matrix of ``sum_n (f_n^T s_n)^2 / (2c)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.derivatives.reductions import Reduction

_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
"""Losses whose outputs have their classes in the second dimension, not in the last."""
SAMPLED = (nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)
"""Losses that stand for a likelihood from which targets can be drawn."""


@dataclass
class PseudoLoss:
    """The quadratic loss of outputs.

    Attributes:
        loss: The loss that stands for a likelihood.
        reduction: What it counts.
        samples: Targets that are drawn for each term; ``None`` for those of the data.
        seed: Of the targets.
        generator: What draws them, from the same seed for each product.
    """

    loss: nn.Module
    reduction: Reduction
    samples: int | None
    seed: int
    generator: torch.Generator | None = field(default=None, compare=False)

    def begin(self) -> None:
        """Draws the same targets again from now on."""
        self.generator = None

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        """Returns the quadratic loss of the outputs of a batch."""
        count = 1.0 if self.reduction.count is None else self.reduction.count(batch)
        terms = self._terms(outputs)
        if self.samples is None:
            slopes = self._gradient(outputs, batch, count)[None]
        else:
            slopes = self._drawn(terms.detach(), batch)
        squares = ((terms * slopes).sum(dim=-1) ** 2).sum()
        return squares / (2 * len(slopes) * count)

    def _terms(self, outputs: Tensor) -> Tensor:
        """Returns the outputs as ``(terms, classes)``."""
        if outputs.ndim == 1:
            return outputs[:, None]
        last = outputs.movedim(1, -1) if isinstance(self.loss, _BY_CLASS) else outputs
        return last.reshape(-1, last.shape[-1])

    def _gradient(self, outputs: Tensor, batch: Any, count: float) -> Tensor:
        at = outputs.detach().requires_grad_()
        (found,) = torch.autograd.grad(self.loss(at, batch[1]), at)
        return self._terms(count * found)

    def _drawn(self, terms: Tensor, batch: Any) -> Tensor:
        from curvlinops.fisher import make_grad_output_sampler

        if self.generator is None:
            self.generator = torch.Generator(terms.device).manual_seed(self.seed)
        draw = make_grad_output_sampler(self.loss)
        try:
            drawn: Tensor = draw(terms, self.samples, batch[1], self.generator)
        except NotImplementedError as error:
            raise OperatorError(
                f"no targets can be drawn for {type(self.loss).__name__}: {error} Use ggn"
            ) from error
        if isinstance(self.loss, nn.CrossEntropyLoss) and not batch[1].is_floating_point():
            drawn = drawn * (batch[1].reshape(-1, 1) != self.loss.ignore_index)
        return drawn
