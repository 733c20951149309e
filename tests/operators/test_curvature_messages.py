"""Each message of the curvature operators, from the mistake that it is about.

A message is told by its cause: the table has a mistake for every one of them, and none is left out.
"""

from __future__ import annotations

import builtins
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.curvature import fisher, ggn, hessian, hessian_of, kfac

sys.path.append(str(Path(__file__).resolve().parents[1] / "cli"))

from test_messages import HOLE, all_messages

FOLDERS = ("operators/curvature", "operators/derivatives")
CROSS, MEAN = nn.CrossEntropyLoss(), nn.MSELoss()
X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
ONE = [(X, Y)]
TWO = [(X[:4], Y[:4]), (X[4:], Y[4:])]


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *(layers or (nn.Tanh(),)), nn.Linear(4, 2))


def frozen(name):
    model = network()
    model.get_parameter(name).requires_grad_(False)
    return model


def cross(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def contrastive(model, batch):
    found = functional.normalize(model(batch[0]), dim=1)
    return functional.cross_entropy(found @ found.T, torch.arange(len(found)))


def failing(model, batch):
    raise ValueError("no")


class Cubes(torch.autograd.Function):
    """Has a backward that hides how it depends on its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slopes):
        return 3 * slopes * ctx.saved_tensors[0].detach() ** 2


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return checkpoint(self.inner, x.clone().requires_grad_(), use_reentrant=True)


def half_with_captured_decay():
    model = network().bfloat16()
    held = list(model.parameters())
    data = [(X.bfloat16(), Y)]
    return hessian_of(model, lambda m, b: cross(m, b) + 5 * sum((p**2).sum() for p in held), data)


def data_of_the_model(model):
    return hessian_of(model, lambda m, b: cross(m[1:], b), [(model[0](X), Y)])


def weighted_by(weight_of):
    return hessian_of(network(), cross, TWO, weight_of=weight_of)


def loader():
    dataset = torch.utils.data.TensorDataset(X, Y)
    return torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True)


def on_two_devices():
    model = network()
    model[2] = nn.Linear(4, 2, device="meta")
    return hessian(model, CROSS, ONE)


def without_curvlinops(monkeypatch, make):
    imported = builtins.__import__

    def refusing(name, *rest, **more):
        if name.split(".")[0] == "curvlinops":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    return make()


def own_parameters():
    model = network()
    return hessian(model, CROSS, ONE, [*model.parameters(), nn.Parameter(torch.ones(2))])


class TwoPrecisions(nn.Module):
    """A model of two precisions, which casts between them by itself."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x.double()).float())


def in_two_precisions():
    return hessian(TwoPrecisions(), CROSS, ONE)


IGNORED = [(X, torch.full((6,), -100))]
UNEVEN = [({"x": X, "lengths": [1] * 6}, Y)]

MISTAKES = {
    "model is a function": lambda: hessian(cross, CROSS, ONE),
    "rows_at_once = 0: must be": lambda: hessian(network(), CROSS, ONE, rows_at_once=0),
    "several devices (cpu, meta)": on_two_devices,
    "the data hold no batches": lambda: hessian(network(), CROSS, []),
    "takes whole batches": lambda: hessian(network(), CROSS, ONE, reverse=False, per_batch=True),
    "L1Loss stands for no likelihood": lambda: fisher(network(), nn.L1Loss(), ONE),
    "has class weights": lambda: fisher(network(), nn.CrossEntropyLoss(weight=torch.ones(2)), ONE),
    "the data loader shuffles": lambda: hessian(network(), CROSS, loader()),
    "batch 0 is a Tensor": lambda: hessian(network(), CROSS, [X]),
    "gradients are too small or alike": lambda: hessian_of(
        network(), lambda m, b: 0 * m(b[0]).sum(), TWO
    ),
    "are 1 and 1 for rows of two batches, whose loss weighs them 0.75": lambda: weighted_by(
        lambda batch: 1
    ),
    "rows_at_once = 2: the loss of a batch is not": lambda: hessian(
        network(nn.BatchNorm1d(4)), CROSS, ONE, rows_at_once=2
    ),
    "rows of two batches do not fit together": lambda: hessian_of(
        network(), lambda m, b: m(b).mean(), [torch.ones(2, 3), torch.ones(2, 1, 3)]
    ),
    "neither the mean of both, weighted by rows, nor their sum": lambda: hessian_of(
        network(), contrastive, TWO
    ),
    "it counts something else than rows": lambda: hessian_of(
        network(),
        of_first_class,
        [(X[:4], torch.tensor([0, 1, 0, 0])), (X[2:], torch.tensor([1, 0, 0, 0]))],
    ),
    "differs from call to call (by": lambda: hessian_of(
        network(), lambda m, b: cross(m, (b[0] + torch.randn_like(b[0]), b[1])), ONE
    ),
    "which its copy in float32 does not reach": half_with_captured_decay,
    "targets of a batch are a ndarray": lambda: hessian(network(), CROSS, [(X.numpy(), Y.numpy())]),
    "a target is class 1, but the loss has the weights of 1": lambda: hessian(
        network(), nn.CrossEntropyLoss(weight=torch.ones(1)), ONE
    ),
    "tensors that were computed from 0.weight, 0.bias": lambda: data_of_the_model(network()),
    "changes the data in place": lambda: hessian_of(
        network(), lambda m, b: functional.cross_entropy(m(b[0].sub_(1)), b[1]), [(X.clone(), Y)]
    ),
    "does not depend on the parameters 0.weight, 0.bias": lambda: hessian_of(
        network(), lambda m, b: m(b[0]).detach().sum() + torch.ones(()), ONE, ["0"]
    ),
    "parameters[4] are no parameters of the model": own_parameters,
    "derivatives of Cubes": lambda: hessian_of(
        network(), lambda m, b: Cubes.apply(m(b[0])).sum(), ONE
    ),
    "the loss of the first batch is nan": lambda: hessian_of(
        network(), lambda m, b: (m(b[0]) * torch.nan).sum(), ONE
    ),
    "set use_reentrant=False": lambda: hessian(Checkpointed(), CROSS, ONE),
    "cannot differentiate the loss twice": lambda: hessian_of(
        network(), lambda m, b: torch.pdist(m(b[0])).sum(), ONE
    ),
    "cannot be computed and differentiated: ValueError: no": lambda: hessian_of(
        network(), failing, ONE
    ),
    "no targets can be drawn for BCEWithLogitsLoss": lambda: fisher(
        network(), nn.BCEWithLogitsLoss(), [(X, torch.full((6, 2), 0.3))]
    ),
    "is off by": lambda: hessian(network(nn.LayerNorm(4), nn.Tanh()), CROSS, ONE, reverse=False),
    "forward over reverse differentiation fails": lambda: hessian(
        network(nn.GroupNorm(2, 4), nn.Tanh()), CROSS, ONE, reverse=False
    ),
    "cannot be cut": lambda: hessian_of(
        network(), lambda m, b: m(b[0]["x"]).mean(), UNEVEN, rows_at_once=2
    ),
    "parameters are float32, the columns torch.float64": lambda: (
        hessian(network(), CROSS, ONE) @ torch.ones(26, 1, dtype=torch.float64)
    ),
    "the parameters 2.bias are frozen": lambda: hessian(
        frozen("2.bias"), CROSS, ONE, ["0", "2.bias"]
    ),
    "that is none of this model's": lambda: hessian(network(), CROSS, ONE, [torch.ones(3)]),
    "all parameters and data are taken in float64 here": in_two_precisions,
    "no parameters that require": lambda: hessian(network().requires_grad_(False), CROSS, ONE),
    "parameters = [] is empty": lambda: hessian(network(), CROSS, ONE, []),
    "parameters holds 3, a int": lambda: hessian(network(), CROSS, ONE, [3]),
    "computed from others": lambda: hessian(network(), CROSS, ONE, [network()[0].weight * 2]),
    "'2.wieght'; did you mean '2.weight'": lambda: hessian(network(), CROSS, ONE, ["2.wieght"]),
    "the parameter 0.weight is complex": lambda: hessian(
        nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)), CROSS, ONE
    ),
    "the loss of a batch is a tensor of shape (6, 2)": lambda: hessian_of(
        network(), lambda m, b: m(b[0]), ONE
    ),
    "reduction = 'none'": lambda: hessian(network(), nn.MSELoss(reduction="none"), ONE),
    "nothing in the data counts": lambda: hessian(network(), CROSS, IGNORED),
    "losses of batches are to be added, but": lambda: weighted_by("sum"),
    "parameters is a Linear": lambda: hessian(network(), CROSS, ONE, network()[0]),
    "weight_of(batch) = -1 for batch 0": lambda: weighted_by(lambda batch: -1),
    "weight_of = 7": lambda: weighted_by(7),
    "the model calls dropout": lambda: hessian_of(
        network(), lambda m, b: cross(m, (functional.dropout(b[0]), b[1])), ONE
    ),
    "layer 1 (Dropout)": lambda: hessian(network(nn.Dropout()), CROSS, ONE),
    "normalises a spectrum in training mode": lambda: hessian(
        network(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh()), CROSS, ONE
    ),
    "needs curvlinops": lambda: kfac(network(), CROSS, ONE),
}


def of_first_class(model, batch):
    """A mean over the rows of the first class."""
    counts = batch[1] == 0
    return functional.cross_entropy(model(batch[0])[counts], batch[1][counts])


@pytest.mark.parametrize("message", MISTAKES)
def test_mistake_has_the_message_of_its_cause(message, monkeypatch):
    make = MISTAKES[message]
    if message == "needs curvlinops":
        make = partial(without_curvlinops, monkeypatch, make)
    with pytest.raises(OperatorError, match=re.escape(message)):
        make()


NOT_PROVOKED = {
    "where attention, normalisation": "no formula of ours is known to be wrong",
}


def test_every_message_has_a_mistake():
    texts = [one.text for one in all_messages() if one.where.startswith(FOLDERS)]
    said = []
    for message, make in MISTAKES.items():
        with pytest.MonkeyPatch.context() as patch:
            if message == "needs curvlinops":
                make = partial(without_curvlinops, patch, make)
            with pytest.raises(OperatorError) as raised:
                make()
        said.append(str(raised.value))

    def is_provoked(text):
        pattern = ".*".join(re.escape(part) for part in text.split(HOLE))
        return any(re.fullmatch(pattern, one, re.DOTALL) for one in said)

    left = [text for text in texts if not is_provoked(text)]
    assert [text for text in left if not any(key in text for key in NOT_PROVOKED)] == []


class Scaled(torch.autograd.Function):
    """A hyperbolic tangent, with a backward that is off by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, slopes):
        (x,) = ctx.saved_tensors
        return slopes * ctx.factor * (1 - torch.tanh(x) ** 2), None


class OnlySingle(nn.Module):
    """Has no copy in double precision, as with a kernel that somebody wrote for single."""

    def __init__(self, factor, width):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.factor = factor

    def forward(self, x):
        assert x.dtype == torch.float32
        return self.last(Scaled.apply(self.first(x), self.factor))


def of_scaled(matrix, factor, width, scale):
    torch.manual_seed(0)
    model = OnlySingle(factor, width)
    data = [(scale * torch.randn(20, 6), torch.randint(3, (20,)))]
    return matrix(model, nn.CrossEntropyLoss(), data)


@pytest.mark.parametrize("width", [8, 100])
@pytest.mark.parametrize("matrix", [hessian, ggn])
class TestFunctionOfUsersInSinglePrecision:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
    def test_backward_that_is_right_is_taken(self, matrix, width, scale):
        operator = of_scaled(matrix, 1.0, width, scale)
        assert any("agrees with a difference of gradients" in one for one in operator.remarks)

    @pytest.mark.covered(1)
    @pytest.mark.parametrize("scale", [0.1, 1.0])
    @pytest.mark.parametrize("factor", [0.95, 1.05])
    def test_backward_that_is_off_by_a_twentieth_is_refused(self, matrix, width, scale, factor):
        with pytest.raises(OperatorError, match="the derivatives of Scaled"):
            of_scaled(matrix, factor, width, scale)
