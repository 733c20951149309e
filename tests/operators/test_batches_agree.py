"""The operator does not depend on how the data were cut into batches, or it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from networks import CLASSES, IGNORED, INPUTS, ROWS, integers, normal, perceptron, seeded
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.curvature import ggn, ggn_of, hessian, hessian_of

X, CLASS = normal(ROWS, INPUTS), integers(CLASSES, ROWS)
NUMBERS = normal(ROWS, CLASSES, seed=5)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
IGNORING = CLASS.clone()
IGNORING[:9] = IGNORED
PLACES = integers(CLASSES, ROWS, 4, seed=6)
PLACES[:9, 1:] = IGNORED
IN_PLACES = normal(ROWS, 4, INPUTS, seed=7)


class Across(nn.Module):
    """Classes of each place: ``(B, T, inputs)`` to ``(B, C, T)``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        return self.body(x).transpose(1, 2)


class Quartic(nn.Module):
    """A loss of one's own."""

    def __init__(self, reduction):
        super().__init__()
        self.means = reduction == "mean"

    def forward(self, outputs, targets):
        each = ((outputs - targets) ** 4).sum(dim=1)
        return each.mean() if self.means else each.sum()


def quartic(reduction):
    """The same without a module."""
    return lambda outputs, targets: Quartic(reduction)(outputs, targets)


def rows(targets):
    return len(targets)


def not_ignored(targets):
    return (targets != IGNORED).sum()


def of_classes(targets):
    return WEIGHTS[targets[targets != IGNORED]].sum()


@dataclass(frozen=True)
class Kind:
    """A loss with its targets.

    Attributes:
        loss: Makes it from its reduction.
        targets: Of all rows.
        count: What its mean divides by, of some targets.
        model: Makes the model.
        inputs: Of all rows.
    """

    loss: Any
    targets: torch.Tensor
    count: Any = rows
    model: Any = perceptron
    inputs: torch.Tensor = X


CE = nn.CrossEntropyLoss
KINDS = {
    "squares": Kind(lambda kind: nn.MSELoss(reduction=kind), NUMBERS),
    "squares by function": Kind(lambda kind: partial(mse_loss, reduction=kind), NUMBERS),
    "Huber": Kind(lambda kind: nn.HuberLoss(reduction=kind), NUMBERS),
    "Poisson": Kind(lambda kind: nn.PoissonNLLLoss(reduction=kind), NUMBERS.abs()),
    "binary": Kind(
        lambda kind: nn.BCEWithLogitsLoss(pos_weight=WEIGHTS, reduction=kind),
        (NUMBERS > 0).float(),
    ),
    "classes": Kind(lambda kind: CE(reduction=kind), CLASS),
    "probabilities": Kind(lambda kind: CE(reduction=kind), NUMBERS.softmax(dim=1)),
    "weights": Kind(lambda kind: CE(WEIGHTS, reduction=kind), CLASS, of_classes),
    "ignored": Kind(lambda kind: CE(reduction=kind), IGNORING, not_ignored),
    "ignored, by function": Kind(
        lambda kind: cross_entropy if kind == "mean" else partial(cross_entropy, reduction=kind),
        IGNORING, not_ignored,
    ),
    "smoothed": Kind(
        lambda kind: CE(WEIGHTS, label_smoothing=0.1, reduction=kind), IGNORING, of_classes
    ),
    "places": Kind(lambda kind: CE(reduction=kind), PLACES, not_ignored, Across, IN_PLACES),
    "a module of one's own": Kind(Quartic, NUMBERS),
    "a function of one's own": Kind(quartic, NUMBERS),
}  # fmt: skip


def loss_of(loss, model, batch):
    return loss(model(batch[0]), batch[1])


def counted(count, batch):
    return count(batch[1])


def outputs_of(model, batch):
    return model(batch[0])


def output_loss(loss, outputs, batch):
    return loss(outputs, batch[1])


def by_hessian(model, loss, data, weight_of, **options):
    return hessian(model, loss, data, **options)


def by_ggn(model, loss, data, weight_of, **options):
    return ggn(model, loss, data, **options)


def by_hessian_of(model, loss, data, weight_of, **options):
    return hessian_of(model, partial(loss_of, loss), data, weight_of=weight_of, **options)


def by_ggn_of(model, loss, data, weight_of, **options):
    return ggn_of(
        model, outputs_of, partial(output_loss, loss), data, weight_of=weight_of, **options
    )


WAYS = {"hessian": by_hessian, "ggn": by_ggn, "hessian_of": by_hessian_of, "ggn_of": by_ggn_of}
CUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "two batches": ((17, 24), {}),
    "three by batches": ((4, 15, 24), {"per_batch": True}),
    "one in pieces": ((24,), {"rows_at_once": 5}),
    "three in pieces": ((7, 11, 24), {"rows_at_once": 3}),
    "two by batches in pieces": ((13, 24), {"per_batch": True, "rows_at_once": 6}),
}
"""Where batches end, and in which way they are asked for."""


def cut(inputs, targets, ends):
    """Batches that end there."""
    starts = [0, *ends[:-1]]
    return [(inputs[a:b], targets[a:b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.covered(1)
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight_of"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_make_up_the_whole_or_are_refused(kind, reduction, way, weighted, cuts):
    one = KINDS[kind]
    model, loss, build = seeded(one.model), one.loss(reduction), WAYS[way]
    weight_of = ("sum" if reduction == "sum" else partial(counted, one.count)) if weighted else None
    whole = build(model, loss, cut(one.inputs, one.targets, (ROWS,)), weight_of)
    ends, options = CUTS[cuts]
    data = cut(one.inputs, one.targets, ends)
    # A function of a batch does not show what its mean divides by.
    is_hidden = way.endswith("_of") or isinstance(loss, partial)
    if is_hidden and not weighted and reduction == "mean" and one.count is not rows:
        with pytest.raises(OperatorError, match=r"weight_of|no target counts"):
            build(model, loss, data, weight_of, **options)
        return
    many = build(model, loss, data, weight_of, **options)
    columns = normal(whole.shape[0], 3, seed=9)
    expected = whole @ columns
    bound = 1e-5 * float(expected.norm())
    torch.testing.assert_close(many @ columns, expected, rtol=0, atol=bound)


@pytest.mark.covered(1)
@pytest.mark.parametrize("options", [{}, {"per_batch": True}, {"rows_at_once": 2}], ids=str)
@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("other", range(5))
def test_one_target_that_does_not_count_is_found(other, size, options):
    """In all batches but one every target counts."""
    options = {name: one * size // 4 if one is not True else one for name, one in options.items()}
    inputs, targets = normal(5 * size, INPUTS), integers(CLASSES, 5 * size)
    targets[size * other] = IGNORED
    data = cut(inputs, targets, [size * number for number in range(1, 6)])
    of_batch = partial(loss_of, CE())
    with pytest.raises(OperatorError, match="weight_of"):
        hessian_of(seeded(perceptron), of_batch, data, **options)


@pytest.mark.parametrize("build", [hessian, ggn], ids=["hessian", "ggn"])
def test_batches_without_a_target_that_counts_add_nothing(build):
    model, targets = seeded(perceptron), IGNORING
    whole = build(model, CE(), [(X, targets)])
    cuts = build(model, CE(), cut(X, targets, (4, 9, 24)))
    columns = normal(whole.shape[0], 3, seed=9)
    torch.testing.assert_close(cuts @ columns, whole @ columns, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [hessian, ggn], ids=["hessian", "ggn"])
def test_data_in_which_no_target_counts_are_refused(build):
    targets = torch.full_like(CLASS, IGNORED)
    with pytest.raises(OperatorError, match=r"(?i)count|finite|nan"):
        build(seeded(perceptron), CE(), cut(X, targets, (9, 24)))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "much"], ids=str)
def test_weights_that_are_none_are_refused(weight):
    of_batch = partial(loss_of, CE())
    with pytest.raises(OperatorError, match="weight_of"):
        hessian_of(
            seeded(perceptron), of_batch, cut(X, CLASS, (9, 24)), weight_of=lambda batch: weight
        )
