"""Models, losses and data as people have them: operators are what is meant, or are refused.

A situation is built twice: in single precision for the operator, and in double precision for the
dense matrix of the loss that a user would write down, over all data at once.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import networks as of
import pytest
import torch
from dense_curvature import dense_ggn, dense_hessian, leading
from networks import CLASSES, INPUTS, LENGTH, ROWS, WORDS, cut, integers, normal, perceptron, seeded
from torch import nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import (
    cross_entropy,
    gaussian_nll_loss,
    linear,
    mse_loss,
    normalize,
    smooth_l1_loss,
)
from torch.nn.utils import parametrizations

import skerch_ooc as ooc
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.curvature import ggn, ggn_of, hessian, hessian_of

TOLERANCE = 2e-5
"""Of the largest eigenvalue: some roundings of single precision."""

X, CLASS = normal(ROWS, INPUTS), torch.arange(ROWS) % CLASSES
NUMBERS, WORD = normal(ROWS, CLASSES, seed=5), integers(WORDS, ROWS, LENGTH, seed=6)
SEQUENCES = {length: normal(6, length, 2, seed=length) for length in (3, 6)}
PLACES, IMAGES = normal(ROWS, 3, 4, seed=7), normal(ROWS, 1, 6, 6, seed=8)
CE = nn.CrossEntropyLoss
AT = 17
"""Where the data are cut into two batches: of unequal size."""


@dataclass(frozen=True)
class Meant:
    """An operator as a user asks for it, and the matrix that is meant.

    Attributes:
        operator: Makes the operator.
        matrix: Computes the matrix by plain autograd.
        model: What must be left as it was found.
        remark: What the operator's remarks say.
    """

    operator: Callable[[], Any]
    matrix: Callable[[], torch.Tensor]
    model: nn.Module
    remark: str = ""


@dataclass(frozen=True)
class Refused:
    """An operator that is refused.

    Attributes:
        operator: Makes the operator.
        why: What the message says.
        by_probe: Whether only the probe finds it.
    """

    operator: Callable[[], Any]
    why: str
    by_probe: bool = False


SITUATIONS: dict[str, Callable[[Callable[[Any], Any]], Meant | Refused]] = {}


def situation(function):
    """Enters a situation in the table; it gets what casts modules and tensors."""
    SITUATIONS[function.__name__.replace("_", " ")] = function
    return function


def of_value(operator, value, model, parameters=None, remark=""):
    """The Hessian of a value, in parameters of the model."""
    at = list(model.parameters()) if parameters is None else parameters
    return Meant(operator, lambda: dense_hessian(value, at), model, remark)


def joined(data):
    """Inputs and targets of all batches."""
    return tuple(torch.cat(parts) for parts in zip(*data, strict=True))


def plain(model, loss, data, at=None, remark="", **options):
    """``hessian(model, loss, data)`` is that of the loss of all data at once."""
    x, y = joined(data)
    operator = partial(hessian, model, loss, data, **options)
    return of_value(operator, lambda: loss(model(x), y), model, at, remark)


def of_loss(model, loss_of, data, whole, remark="", **options):
    """``hessian_of(model, loss_of, data)`` is that of the loss of ``whole``, one batch."""
    operator = partial(hessian_of, model, loss_of, data, **options)
    return of_value(operator, lambda: loss_of(model, whole), model, None, remark)


def gauss_newton(model, loss, data, at=None, **options):
    """``ggn(model, loss, data)`` is that of all data at once."""
    x, y = joined(data)
    at = list(model.parameters()) if at is None else at
    return Meant(
        partial(ggn, model, loss, data, **options),
        lambda: dense_ggn(lambda: model(x), lambda out: loss(out, y), at),
        model,
    )


def state(model):
    """What must not be changed: weights, buffers, flags and gradients."""
    flags = {name: module.training for name, module in model.named_modules()}
    frozen = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return flags, frozen, copy.deepcopy(OrderedDict(model.state_dict()))


# --- Losses that hold the parameters -------------------------------------------------------------


class Decayed(nn.Module):
    """Cross entropy and weight decay of some parameters, which the user holds."""

    reduction = "mean"

    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs

    def forward(self, outputs, targets):
        decay = sum(rate / 2 * (p**2).sum() for p, rate in self.pairs)
        return cross_entropy(outputs, targets) + decay


class OfModel(nn.Module):
    """The same, of a model that the loss knows."""

    reduction = "mean"

    def __init__(self, model):
        super().__init__()
        object.__setattr__(self, "model", model)

    def forward(self, outputs, targets):
        squares = sum((p**2).sum() for p in self.model.parameters())
        return cross_entropy(outputs, targets) + 0.05 * squares


@situation
def weight_decay_by_a_loss_that_knows_the_model(to):
    model = to(seeded(perceptron))
    return plain(model, OfModel(model), [(to(X), CLASS)])


@situation
def weight_decay_of_a_list_of_parameters(to):
    model = to(seeded(perceptron))
    loss = Decayed([(p, 0.1) for p in model.parameters()])
    return plain(model, loss, cut(to(X), CLASS, at=AT))


@situation
def weight_decay_that_leaves_out_biases(to):
    model = to(seeded(perceptron))
    loss = Decayed([(p, 0.1) for name, p in model.named_parameters() if "bias" not in name])
    return plain(model, loss, cut(to(X), CLASS, at=AT))


def with_optimizer(to):
    model = to(seeded(perceptron))
    groups = [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 0.2},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    pairs = [(p, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    return model, optimizer, Decayed(pairs), [p for p, _ in pairs]


@situation
def decay_and_parameters_of_an_optimizer(to):
    model, optimizer, loss, at = with_optimizer(to)
    return plain(model, loss, [(to(X), CLASS)], at, parameters=optimizer.param_groups)


@situation
def decay_added_by_a_function(to):
    model = to(seeded(perceptron))

    def loss(outputs, targets):
        return cross_entropy(outputs, targets) + 0.1 * (model[0].weight ** 4).sum()

    return plain(model, loss, cut(to(X), CLASS, at=AT))


@situation
def decay_beside_a_sum_in_two_batches(to):
    model = to(seeded(perceptron))

    def loss(outputs, targets):
        return cross_entropy(outputs, targets, reduction="sum") + (model[0].weight ** 2).sum()

    return Refused(partial(hessian, model, loss, cut(to(X), CLASS, at=AT)), "added to a sum")


@situation
def temperature_that_the_loss_learns(to):
    model = to(seeded(perceptron))
    temperature = nn.Parameter(to(torch.tensor(0.7)))

    def loss(outputs, targets):
        return cross_entropy(outputs * temperature.exp(), targets)

    at = [*model.parameters(), temperature]
    return plain(model, loss, cut(to(X), CLASS, at=AT), at, parameters=at)


@situation
def parameter_that_the_loss_does_not_depend_on(to):
    model, foreign = to(seeded(perceptron)), nn.Parameter(torch.ones(2))
    at = [*model.parameters(), foreign]
    return Refused(partial(hessian, model, CE(), [(to(X), CLASS)], at), "(?i)depend")


# --- Torch's own losses, over two batches of unequal size ----------------------------------------


SHARES = torch.softmax(NUMBERS, dim=-1)
ONES = (NUMBERS > 0).float()
IGNORING = CLASS.clone()
IGNORING[:12] = of.IGNORED
WEIGHTS = torch.tensor([0.2, 1.0, 3.0])

SMALL = CLASS.to(torch.uint8)

LOSSES: dict[str, tuple[Any, torch.Tensor]] = {
    "mean square": (nn.MSELoss(), NUMBERS),
    "sum of squares": (nn.MSELoss(reduction="sum"), NUMBERS),
    "mean square by function": (mse_loss, NUMBERS),
    "sum of squares by function": (partial(mse_loss, reduction="sum"), NUMBERS),
    "absolute values": (nn.SmoothL1Loss(), NUMBERS),
    "Huber": (nn.HuberLoss(delta=0.5), NUMBERS),
    "Poisson": (nn.PoissonNLLLoss(), NUMBERS.abs()),
    "binary with weights of positives": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), ONES),
    "binary with weights": (nn.BCEWithLogitsLoss(weight=WEIGHTS), ONES),
    "soft margin": (nn.SoftMarginLoss(), 2 * ONES - 1),
    "labels of several kinds": (nn.MultiLabelSoftMarginLoss(), ONES),
    "cross entropy": (CE(), CLASS),
    "cross entropy of small integers": (CE(), SMALL),
    "weights of small integers": (CE(weight=WEIGHTS), SMALL),
    "cross entropy by function": (cross_entropy, CLASS),
    "cross entropy that sums": (CE(reduction="sum"), CLASS),
    "cross entropy by a function that sums": (
        lambda out, y: cross_entropy(out, y, reduction="sum"), CLASS,
    ),
    "classes with weights": (CE(weight=WEIGHTS), CLASS),
    "classes that are ignored": (CE(), IGNORING),
    "weights of classes of which some are ignored": (CE(weight=WEIGHTS, ignore_index=1), CLASS),
    "smoothed labels": (CE(label_smoothing=0.1), CLASS),
    "smoothed labels with weights and ignored ones": (
        CE(weight=WEIGHTS, label_smoothing=0.2), IGNORING,
    ),
    "probabilities as targets": (CE(), SHARES),
    "probabilities as targets with weights": (CE(weight=WEIGHTS), SHARES),
    "a batch in which nothing counts": (CE(), CLASS.masked_fill(torch.arange(ROWS) < AT, -100)),
    "a loss that means rows": (lambda out, y: ((out - y) ** 4).sum(dim=1).mean(), NUMBERS),
    "a loss that sums rows": (lambda out, y: ((out - y) ** 4).sum(), NUMBERS),
    "a focal loss": (
        lambda out, y: ((1 - (p := out.softmax(1)[range(len(y)), y])) ** 2 * -p.log()).mean(),
        CLASS,
    ),
}  # fmt: skip


def with_loss(loss, targets, to):
    return plain(to(seeded(perceptron)), to(copy.deepcopy(loss)), cut(to(X), to(targets), at=AT))


for _name, _pair in LOSSES.items():
    SITUATIONS[f"loss: {_name}"] = partial(with_loss, *_pair)

OF_LOGARITHMS = {
    "negative logarithms": (nn.NLLLoss(), CLASS),
    "negative logarithms with weights": (nn.NLLLoss(weight=WEIGHTS), IGNORING),
    "divergence by rows": (nn.KLDivLoss(reduction="batchmean"), SHARES),
    "divergence by elements": (nn.KLDivLoss(reduction="sum", log_target=True), SHARES.log()),
}


def with_loss_of_logarithms(loss, targets, to):
    model = to(seeded(perceptron)).append(nn.LogSoftmax(dim=-1))
    return plain(model, to(copy.deepcopy(loss)), cut(to(X), to(targets), at=AT))


for _name, _pair in OF_LOGARITHMS.items():
    SITUATIONS[f"loss: {_name}"] = partial(with_loss_of_logarithms, *_pair)


class SquaresOfAll(nn.Module):
    """A loss module that does not say whether it is a sum: it is."""

    def forward(self, outputs, targets):
        return ((outputs - targets) ** 2).sum()


class SquaresOfEach(nn.Module):
    """A loss module that does not say whether it is a mean: it is."""

    def forward(self, outputs, targets):
        return ((outputs - targets) ** 2).mean()


@situation
def module_that_sums_without_saying_so(to):
    return plain(to(seeded(perceptron)), SquaresOfAll(), cut(to(X), to(NUMBERS), at=AT))


@situation
def module_that_means_without_saying_so(to):
    return plain(to(seeded(perceptron)), SquaresOfEach(), cut(to(X), to(NUMBERS), at=AT))


@situation
def likelihood_with_a_variance_of_its_own(to):
    def loss(outputs, targets):
        return gaussian_nll_loss(outputs[:, 0], targets[:, 0], outputs[:, 1].exp())

    return plain(to(seeded(perceptron)), loss, cut(to(X), to(NUMBERS), at=AT))


@situation
def segmentation_with_pixels_that_are_ignored(to):
    def layers():
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 3, 1))

    model = to(seeded(layers))
    classes = integers(CLASSES, 8, 6, 6, seed=11)
    classes[:5, :4] = 255
    return plain(model, CE(ignore_index=255), cut(to(IMAGES[:8]), classes, at=5))


def dice(outputs, targets):
    """Overlap of all rows together: neither a mean over rows nor a sum."""
    shares = outputs.softmax(dim=1)
    return 1 - 2 * (shares * targets).sum() / (shares.sum() + targets.sum() + shares.norm())


@situation
def overlap_of_all_rows_in_one_batch(to):
    return plain(to(seeded(perceptron)), dice, [(to(X), to(ONES))])


@situation
def overlap_of_all_rows_in_two_batches(to):
    data = cut(to(X), to(ONES), at=AT)
    return Refused(partial(hessian, to(seeded(perceptron)), dice, data), "weight_of")


@situation
def overlap_of_all_rows_in_batches_that_are_added(to):
    model, data = to(seeded(perceptron)), cut(to(X), to(ONES), at=AT)
    return of_value(
        partial(hessian, model, dice, data, weight_of="sum"),
        lambda: sum(dice(model(x), y) for x, y in data),
        model,
    )


@situation
def targets_that_are_broadcast(to):
    model, target = to(seeded(perceptron, outputs=1)), to(NUMBERS[:, 0])
    data = cut(to(X), target, at=AT)
    return Refused(partial(hessian, model, nn.MSELoss(), data), "(?i)size|shape")


# --- Other losses --------------------------------------------------------------------------------


@situation
def physics_with_second_derivatives_of_the_inputs(to):
    points = to(torch.linspace(-1, 1, 12)[:, None])

    def residual(model, batch):
        x = batch.clone().requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return ((bend + math.pi**2 * torch.sin(math.pi * x) + u**3) ** 2).mean() / 100

    model = to(seeded(perceptron, inputs=1, outputs=1))
    return of_loss(model, residual, cut(points, at=7), points)


@situation
def physics_by_functional_derivatives(to):
    points = to(torch.linspace(-1, 1, 9)[:, None])

    def residual(model, batch):
        weights = dict(model.named_parameters())

        def u(x):
            return functional_call(model, weights, (x[None],))[0, 0]

        bend = vmap(jacrev(jacrev(u)))(batch)[:, 0, 0]
        return ((bend + batch[:, 0]) ** 2).mean()

    model = to(seeded(perceptron, inputs=1, outputs=1))
    return of_loss(model, residual, cut(points, at=5), points)


@situation
def penalty_on_the_gradient_of_a_critic(to):
    def critic(model, batch):
        x = batch.clone().requires_grad_()
        scores = model(x)[:, 0]
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return scores.mean() + ((slope.norm(dim=1) - 1) ** 2).mean()

    model = to(seeded(perceptron, nn.Softplus(), outputs=1))
    return of_loss(model, critic, cut(to(X), at=AT), to(X))


def info_nce(model, batch):
    """Each row against the other rows of the batch."""
    one, other = (normalize(model(view), dim=1) for view in batch)
    return cross_entropy(one @ other.T / 0.5, torch.arange(len(one)))


VIEWS = (X, X + 0.3 * normal(ROWS, INPUTS, seed=12))


@situation
def contrastive_in_one_batch(to):
    return of_loss(to(seeded(perceptron)), info_nce, [to(VIEWS)], to(VIEWS))


@situation
def contrastive_in_two_batches(to):
    data = cut(*to(VIEWS), at=AT)
    return Refused(partial(hessian_of, to(seeded(perceptron)), info_nce, data), "weight_of")


@situation
def contrastive_in_two_batches_with_weights(to):
    model, data = to(seeded(perceptron)), cut(*to(VIEWS), at=AT)
    return of_value(
        partial(hessian_of, model, info_nce, data, weight_of=lambda batch: len(batch[0])),
        lambda: sum(len(batch[0]) / ROWS * info_nce(model, batch) for batch in data),
        model,
        remark="mean of",
    )


@situation
def likelihood_of_a_gaussian_process(to):
    def loss_of(model, batch):
        x, y = batch
        features = model(x)
        squares = ((features[:, None] - features) ** 2).sum(dim=2)
        root = torch.linalg.cholesky((-squares).exp() + 0.5 * torch.eye(len(x), dtype=x.dtype))
        solved = torch.cholesky_solve(y[:, None], root)[:, 0]
        return (y @ solved) / 2 + root.diagonal().log().sum()

    whole = (to(X[:10]), to(NUMBERS[:10, 0]))
    return of_loss(to(seeded(perceptron)), loss_of, [whole], whole)


@situation
def target_network_that_is_detached(to):
    target = to(seeded(nn.Linear, INPUTS, CLASSES))

    def loss_of(model, batch):
        return ((model(batch) - target(batch).detach()) ** 2).mean()

    return of_loss(to(seeded(perceptron)), loss_of, cut(to(X), at=AT), to(X))


@situation
def bootstrapped_target_of_the_same_network(to):
    """What is differentiated then is the gradient of no loss."""

    def loss_of(model, batch):
        now, then, reward = batch
        with torch.no_grad():
            target = reward + 0.9 * model(then).max(dim=1).values
        return smooth_l1_loss(model(now)[:, 0], target)

    batches = cut(to(X), to(VIEWS[1]), to(NUMBERS[:, 0]), at=AT)
    return Refused(partial(hessian_of, to(seeded(perceptron)), loss_of, batches), "detach")


# --- Data of other structure ---------------------------------------------------------------------


@situation
def several_outputs(to):
    def loss(outputs, targets):
        return cross_entropy(outputs[0], targets[0]) + mse_loss(outputs[1], targets[1])

    model, x, y = to(seeded(of.TwoHeads)), to(X), (CLASS, to(NUMBERS[:, :1]))
    data = [(x[rows], tuple(one[rows] for one in y)) for rows in (slice(AT), slice(AT, None))]
    return of_value(partial(hessian, model, loss, data), lambda: loss(model(x), y), model)


@situation
def inputs_with_names(to):
    model, x = to(seeded(of.OfDictionary)), {"one": to(X), "other": to(X.flip(0))}
    data = [
        ({name: one[rows] for name, one in x.items()}, CLASS[rows])
        for rows in (slice(AT), slice(AT, None))
    ]
    return of_value(
        partial(hessian, model, CE(), data), lambda: cross_entropy(model(x), CLASS), model
    )


@situation
def batches_that_are_dictionaries(to):
    def loss_of(model, batch):
        return cross_entropy(model(batch["x"]), batch["y"])

    batches = [{"x": x, "y": y} for x, y in cut(to(X), CLASS, at=AT)]
    return of_loss(to(seeded(perceptron)), loss_of, batches, {"x": to(X), "y": CLASS})


@situation
def batches_that_are_tensors(to):
    def loss_of(model, batch):
        return mse_loss(model(batch), batch)

    model = to(seeded(perceptron, outputs=INPUTS))
    return of_loss(model, loss_of, cut(to(X), at=AT), to(X))


@situation
def tasks_that_take_turns(to):
    """What the first batch does not use, another may."""

    def loss_of(model, batch):
        classes, number = model(batch["x"])
        if batch["first"]:
            return cross_entropy(classes, batch["y"])
        return mse_loss(number, torch.ones_like(number))

    model, x = to(seeded(of.TwoHeads)), to(X)
    data = [
        {"x": x[:AT], "y": CLASS[:AT], "first": True},
        {"x": x[AT:], "y": CLASS[AT:], "first": False},
    ]
    return of_value(
        partial(hessian_of, model, loss_of, data, weight_of=lambda batch: len(batch["x"])),
        lambda: sum(len(one["x"]) / ROWS * loss_of(model, one) for one in data),
        model,
        remark="the loss of the first batch does not depend on number.weight",
    )


@situation
def loader_of_a_data_set(to):
    model, x = to(seeded(perceptron)), to(X)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, CLASS), batch_size=7)
    return of_value(
        partial(hessian, model, CE(), loader), lambda: cross_entropy(model(x), CLASS), model
    )


@situation
def loader_that_shuffles(to):
    data = torch.utils.data.TensorDataset(to(X), CLASS)
    loader = torch.utils.data.DataLoader(data, batch_size=7, shuffle=True)
    return Refused(partial(hessian, to(seeded(perceptron)), CE(), loader), "shuffle=False")


@situation
def no_data(to):
    return Refused(partial(hessian, to(seeded(perceptron)), CE(), []), "(?i)no batch|empty|no data")


@situation
def data_that_the_model_changes_in_place(to):
    def loss_of(model, batch):
        return cross_entropy(model(batch[0].sub_(0.5)), batch[1])

    data = [(to(X).clone(), CLASS)]
    return Refused(partial(hessian_of, to(seeded(perceptron)), loss_of, data), "in place")


@situation
def data_that_can_be_gone_through_once(to):
    model, data = to(seeded(perceptron)), cut(to(X), CLASS, at=AT)
    return of_value(
        partial(hessian, model, CE(), iter(data)),
        lambda: cross_entropy(model(to(X)), CLASS),
        model,
    )


@situation
def sequences_of_several_lengths(to):
    """Each place of each row counts."""
    model = to(seeded(perceptron, inputs=2, outputs=2))
    data = [(to(x), to(0.5 * x.cos())) for x in SEQUENCES.values()]
    return of_value(
        partial(hessian, model, nn.MSELoss(), data),
        lambda: (
            sum(mse_loss(model(x), y, reduction="sum") for x, y in data)
            / sum(y.numel() for _, y in data)
        ),
        model,
    )


def hugging(model, batch):
    out = model(**batch)
    return out["loss"] if isinstance(out, dict) else out.loss


LANGUAGE = [of.language_batch(4, 6, 3, seed=21), of.language_batch(3, 4, 1, seed=22)]


@situation
def model_that_computes_its_loss_in_one_batch(to):
    return of_loss(to(seeded(of.CausalLM)), hugging, LANGUAGE[:1], LANGUAGE[0])


@situation
def model_that_computes_its_loss_in_two_batches(to):
    return Refused(partial(hessian_of, to(seeded(of.CausalLM)), hugging, LANGUAGE), "weight_of")


@situation
def model_that_computes_its_loss_in_two_batches_with_weights(to):
    model = to(seeded(of.CausalLM, as_dict=True))
    counts = [int(of.shifted_count(batch)) for batch in LANGUAGE]
    return of_value(
        partial(hessian_of, model, hugging, LANGUAGE, weight_of=of.shifted_count),
        lambda: (
            sum(n * hugging(model, one) for n, one in zip(counts, LANGUAGE, strict=True))
            / sum(counts)
        ),
        model,
    )


@situation
def padding_of_a_language_model(to):
    tokens, targets = of.padded_tokens()
    return plain(to(seeded(of.Attention)), CE(), cut(tokens, targets, at=8))


@situation
def attention_with_a_mask(to):
    tokens, targets = of.padded_tokens()
    return plain(to(seeded(of.Attention, masked=True)), CE(), [(tokens, targets)])


@situation
def classes_that_are_ignored_in_micro_batches(to):
    data = cut(to(X), IGNORING, at=AT)
    return plain(to(seeded(perceptron)), CE(weight=to(WEIGHTS)), data, rows_at_once=5)


@situation
def padding_of_a_language_model_by_batches(to):
    tokens, targets = of.padded_tokens()
    return plain(to(seeded(of.Attention)), CE(), cut(tokens, targets, at=8), per_batch=True)


# --- Layers --------------------------------------------------------------------------------------

NARROW = (INPUTS, 4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "LSTM": (of.Recurrent, SEQUENCES[3]),
    "GRU": (partial(of.Recurrent, "GRU"), SEQUENCES[3]),
    "LSTM of two layers": (partial(of.Recurrent, num_layers=2), SEQUENCES[3]),
    "checkpointing": (of.Checkpointed, X),
    "attention with its weights": (of.SelfAttention, PLACES),
    "attention without its weights": (partial(of.SelfAttention, weights=False), PLACES),
    "transformer in evaluation": (of.Transformer, PLACES),
    "dropout in evaluation": (lambda: perceptron(nn.Tanh(), nn.Dropout(0.5)), X),
    "BatchNorm in evaluation": (lambda: of.convolutional(nn.BatchNorm2d(2)), IMAGES),
    "InstanceNorm": (lambda: of.convolutional(nn.InstanceNorm2d(2, affine=True)), IMAGES),
    "GroupNorm": (lambda: of.convolutional(nn.GroupNorm(1, 2)), IMAGES),
    "convolution": (lambda: of.convolutional(nn.Softplus()), IMAGES),
    "LayerNorm": (lambda: perceptron(nn.LayerNorm(6), nn.Tanh()), X),
    "RMSNorm": (lambda: perceptron(nn.RMSNorm(6), nn.Tanh()), X),
    "ReLU": (lambda: perceptron(nn.ReLU()), X),
    "PReLU": (lambda: perceptron(nn.PReLU()), X),
    "Softplus": (lambda: perceptron(nn.Softplus()), X),
    "GELU": (lambda: perceptron(nn.GELU()), X),
    "SiLU in place": (lambda: perceptron(nn.SiLU(inplace=True)), X),
    "an embedding with padding": (of.OfWords, WORD),
    "spectral norm in evaluation": (lambda: of.reparametrised(parametrizations.spectral_norm), X),
    "a function of one's own": (lambda: perceptron(of.Applying(of.Cube.apply, False)), X),
    "a layer that is used twice": (of.Twice, X),
    "Fourier transforms": (of.Spectral, X),
    "sequences that are packed": (of.Packed, SEQUENCES[6]),
    "neighbours in a graph": (of.GraphConvolution, X),
    "sampling where the network says": (of.Warped, IMAGES),
}


def with_layer(make, x, to):
    return plain(to(seeded(make)), CE(), [(to(x), CLASS[: len(x)])])


for _name, _pair in LAYERS.items():
    SITUATIONS[f"layer: {_name}"] = partial(with_layer, *_pair)


@situation
def weight_norm(to):
    """The second derivative that torch has of it is wrong (2.13): the formula is what is meant."""
    model = to(seeded(of.reparametrised, parametrizations.weight_norm))
    length, direction = model[0].parametrizations.weight.parameters()

    def value():
        weight = length * direction / direction.norm(dim=1, keepdim=True)
        hidden = linear(to(X), weight, model[0].bias)
        return cross_entropy(model[2](torch.tanh(hidden)), CLASS)

    return of_value(partial(hessian, model, CE(), [(to(X), CLASS)]), value, model)


def trained(make, x):
    """A model in training mode."""

    def built(to):
        model = to(seeded(make)).train()
        return plain(model, CE(), [(to(x), CLASS[: len(x)])])

    return built


IN_TRAINING = {
    "a transformer without dropout": (of.Transformer, PLACES),
    "BatchNorm": (lambda: of.convolutional(nn.BatchNorm2d(2)), IMAGES),
    "BatchNorm of a table": (lambda: perceptron(nn.BatchNorm1d(6), nn.Tanh()), X),
    "a buffer that each call changes": (of.RunningMean, X),
}
for _name, _pair in IN_TRAINING.items():
    SITUATIONS[f"in training: {_name}"] = trained(*_pair)


def means_of_batches(to, **options):
    """What BatchNorm in training mode makes of two batches: no mean over rows."""
    model = to(seeded(lambda: perceptron(nn.BatchNorm1d(6), nn.Tanh()))).train()
    data = cut(to(X), CLASS, at=AT)
    fresh = copy.deepcopy(model.state_dict())

    def value():
        model.load_state_dict(fresh)
        return sum(len(x) / ROWS * cross_entropy(model(x), y) for x, y in data)

    operator = partial(hessian, model, CE(), data, **options)
    return of_value(operator, value, model, remark="mean")


@situation
def batch_norm_in_training_over_two_batches(to):
    return means_of_batches(to)


@situation
def batch_norm_in_training_by_batches(to):
    return means_of_batches(to, per_batch=True)


# --- Parameters ----------------------------------------------------------------------------------


@situation
def unused_parameters(to):
    return plain(to(seeded(of.WithUnusedHead)), CE(), [(to(X), CLASS)], remark="head.weight")


@situation
def frozen_layer(to):
    model = to(seeded(perceptron))
    model[0].requires_grad_(False)
    return plain(model, CE(), cut(to(X), CLASS, at=AT), list(model[2].parameters()))


@situation
def frozen_parameter_by_its_name(to):
    model = to(seeded(perceptron))
    model[0].weight.requires_grad_(False)
    return Refused(partial(hessian, model, CE(), [(to(X), CLASS)], ["0.weight"]), r"0\.weight")


@situation
def name_that_is_misspelt(to):
    model = to(seeded(perceptron))
    return Refused(partial(hessian, model, CE(), [(to(X), CLASS)], ["0.wieght"]), r"0\.wieght")


@situation
def pattern_of_names(to):
    model = to(seeded(perceptron))
    at = [model[0].weight, model[2].weight]
    return plain(model, CE(), [(to(X), CLASS)], at, parameters=["*.weight"])


@situation
def pairs_of_names_and_parameters(to):
    model = to(seeded(perceptron))
    return plain(model, CE(), [(to(X), CLASS)], parameters=model.named_parameters())


@situation
def embedding_that_is_tied_to_the_output(to):
    model = to(seeded(of.Tied))
    data = cut(WORD[:, :2], WORD[:, 2], at=AT)
    return plain(model, CE(), data, [model.out.weight], parameters=["out.weight"])


@situation
def no_parameter_that_the_loss_depends_on(to):
    def loss(outputs, targets):
        return (targets**2).mean().requires_grad_()

    data = [(to(X), to(NUMBERS))]
    return Refused(partial(hessian, to(seeded(perceptron)), loss, data), "(?i)depend")


@situation
def complex_parameters(to):
    def loss(outputs, targets):
        return ((outputs.abs() - targets) ** 2).mean()

    return Refused(partial(hessian, of.ComplexScale(), loss, [(X, X)]), "complex")


# --- Numbers and compilers -----------------------------------------------------------------------


@situation
def double_precision(to):
    return plain(seeded(perceptron).double(), CE(), cut(X.double(), CLASS, at=AT))


def of_half_precision(dtype, to):
    """A model in half precision is differentiated in single precision, at its values."""
    model = seeded(perceptron).to(dtype)
    if to(X).dtype == torch.float64:
        return plain(model.double(), CE(), [(X.to(dtype).double(), CLASS)])
    return plain(model, CE(), [(X.to(dtype), CLASS)], remark="float32")


SITUATIONS["numbers of type bfloat16"] = partial(of_half_precision, torch.bfloat16)
SITUATIONS["numbers of type float16"] = partial(of_half_precision, torch.float16)


class Narrowing(nn.Module):
    """A model that computes in fewer digits where it can."""

    def __init__(self):
        super().__init__()
        self.body = perceptron()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).to(x.dtype)


@situation
def autocast_in_the_model(to):
    model = to(seeded(Narrowing))
    value = partial(lambda x: cross_entropy(model.body(x), CLASS), to(X))
    operator = partial(hessian, model, CE(), [(to(X), CLASS)])
    return of_value(operator, value, model, remark="autocast is switched off")


@situation
def autocast_around_all(to):
    model = to(seeded(perceptron))

    def built():
        with torch.autocast("cpu", torch.bfloat16):
            return hessian(model, CE(), [(to(X), CLASS)])

    value = partial(lambda x: cross_entropy(model(x), CLASS), to(X))
    return of_value(built, value, model, remark="autocast is switched off")


class WithWideHead(nn.Module):
    """A model whose last layer has more digits than its others."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES).double()

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).double())


@situation
def numbers_of_several_types(to):
    model, is_wide = seeded(WithWideHead), to(X).dtype == torch.float64
    model = model.double() if is_wide else model
    return plain(model, CE(), [(to(X), CLASS)], remark="in float64")


@situation
def compiled_model(to):
    model = to(seeded(perceptron))
    compiled = torch.compile(model)
    at, data = [model[0].weight, model[2].bias], cut(to(X), CLASS, at=AT)
    return of_value(
        partial(hessian, compiled, CE(), data, ["0.weight", "2.bias"]),
        lambda: cross_entropy(model(to(X)), CLASS),
        model, at,
    )  # fmt: skip


@situation
def where_gradients_are_not_recorded(to):
    model = to(seeded(perceptron))

    def built():
        with torch.no_grad():
            return hessian(model, CE(), [(to(X), CLASS)])

    return of_value(built, lambda: cross_entropy(model(to(X)), CLASS), model)


@situation
def data_made_in_inference_mode(to):
    model = to(seeded(perceptron))
    with torch.inference_mode():
        data = [(to(X) + 0, CLASS + 0)]
    value = lambda: cross_entropy(model(to(X)), CLASS)  # noqa: E731 (inputs as they were made)
    return of_value(partial(hessian, model, CE(), data), value, model)


@situation
def half_precision_with_decay_that_the_loss_holds(to):
    model = seeded(perceptron).bfloat16()
    if to(X).dtype == torch.float64:
        model = model.double()
    loss = Decayed([(p, 0.1) for p in model.parameters()])
    inputs = X.bfloat16().to(model[0].weight.dtype)
    return plain(model, loss, [(inputs, CLASS)], remark="float32")


@situation
def half_precision_with_decay_of_the_model_itself(to):
    """However small: the model is copied to single precision, and a function is not."""
    model = seeded(perceptron).bfloat16()

    def loss(outputs, targets):
        return cross_entropy(outputs, targets) + 1e-5 * (model[0].weight ** 2).sum()

    return Refused(
        partial(hessian, model, loss, [(X.bfloat16(), CLASS)]), r"0\.weight of the model"
    )


# --- What is refused -----------------------------------------------------------------------------


def refused(make, x, why, loss=None, targets=CLASS, training=True, by_probe=False):
    def built(to):
        model = to(seeded(make)).train(training)
        data = [(to(x), to(targets[: len(x)]))]
        return Refused(partial(hessian, model, loss or CE(), data), why, by_probe)

    return built


def random_loss(outputs, targets):
    return cross_entropy(outputs + 0.1 * torch.randn(outputs.shape), targets)


def not_finite(outputs, targets):
    return cross_entropy(outputs, targets) + outputs[0, 0].detach().abs().neg().log()


REFUSALS = {
    "targets of fewer rows": refused(perceptron, X, "batch_size", targets=CLASS[:1]),
    "weights of too few classes": refused(
        perceptron, X, "weights of 2 classes", CE(weight=WEIGHTS[:2])
    ),
    "statistics of one row": refused(
        lambda: perceptron(nn.BatchNorm1d(6)), X[:1], "more than 1 value"
    ),
    "a spectral norm in training": refused(
        lambda: of.reparametrised(parametrizations.spectral_norm), X, "normalises a spectrum"
    ),
    "dropout": refused(lambda: perceptron(nn.Tanh(), nn.Dropout(0.5)), X, "Dropout"),
    "dropout of a recurrent layer": refused(
        partial(of.Recurrent, num_layers=2, dropout=0.5), SEQUENCES[3], "(?i)layer.*LSTM|dropout"
    ),
    "dropout of attention": refused(
        partial(of.SelfAttention, dropout=0.5), PLACES, "(?i)attention|dropout"
    ),
    "dropout of a transformer": refused(partial(of.Transformer, 0.1), PLACES, "(?i)dropout"),
    "dropout that no layer shows": refused(
        of.FunctionalDropout, X, "(?i)random|repeat|differ", training=False, by_probe=True
    ),
    "a loss that is random": refused(
        perceptron, X, "(?i)random|repeat|differ", random_loss, by_probe=True
    ),
    "a loss that is no scalar": refused(
        perceptron, X, "no number", CE(reduction="none")
    ),
    "a loss that is not finite": refused(
        perceptron, X, "(?i)finite|nan", not_finite, by_probe=True
    ),
    "checkpointing that is reentrant": refused(
        partial(of.Checkpointed, reentrant=True), X, "use_reentrant=False"
    ),
    "a derivative that is detached": refused(
        lambda: perceptron(of.Applying(of.Cube.apply, True)), X, "(?i)differen|detach",
        by_probe=True,
    ),
    "a derivative that can be taken once": refused(
        lambda: perceptron(of.Applying(of.OnceDifferentiable.apply)), X, "OnceDifferentiable",
        by_probe=True,
    ),
}  # fmt: skip
SITUATIONS |= {f"refused: {name}": case for name, case in REFUSALS.items()}


# --- Gauss-Newton --------------------------------------------------------------------------------


def with_ggn(make, x, loss, targets, at, to):
    """Two batches, with ``at`` rows in the first; one where it is 0."""
    pair = to(x), to(targets[: len(x)])
    data = cut(*pair, at=at) if at else [pair]
    return gauss_newton(to(seeded(make)), to(copy.deepcopy(loss)), data)


FEW = slice(8)
GAUSS_NEWTON = {
    "cross entropy": (perceptron, X[FEW], CE(), CLASS, 5),
    "sum of squares": (perceptron, X[FEW], nn.MSELoss(reduction="sum"), NUMBERS, 5),
    "weights of classes": (perceptron, X[FEW], CE(weight=WEIGHTS), CLASS, 5),
    "smoothed labels": (perceptron, X[FEW], CE(label_smoothing=0.1), CLASS, 5),
    "weights of positives": (perceptron, X[FEW], nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), ONES, 5),
    "probabilities as targets": (perceptron, X[FEW], CE(), SHARES, 5),
    "a loss that is no module": (perceptron, X[FEW], LOSSES["a focal loss"][0], CLASS, 5),
    "Huber": (perceptron, X[FEW], nn.HuberLoss(), NUMBERS, 5),
    "attention": (of.SelfAttention, PLACES[FEW], CE(), CLASS, 0),
    "a transformer": (of.Transformer, PLACES[FEW], CE(), CLASS, 5),
    "LSTM": (of.Recurrent, SEQUENCES[3], CE(), CLASS, 4),
    "GRU": (partial(of.Recurrent, "GRU"), SEQUENCES[3], CE(), CLASS, 4),
    "checkpointing": (of.Checkpointed, X[FEW], CE(), CLASS, 5),
    "unused parameters": (of.WithUnusedHead, X[FEW], CE(), CLASS, 0),
    "an embedding with padding": (of.OfWords, WORD[FEW], CE(), CLASS, 5),
    "BatchNorm in evaluation": (
        LAYERS["BatchNorm in evaluation"][0], IMAGES[FEW], CE(), CLASS, 5,
    ),
    "spectral norm": (LAYERS["spectral norm in evaluation"][0], X[FEW], CE(), CLASS, 0),
    "RMSNorm": (LAYERS["RMSNorm"][0], X[FEW], CE(), CLASS, 5),
}  # fmt: skip
for _name, _row in GAUSS_NEWTON.items():
    SITUATIONS[f"ggn: {_name}"] = partial(with_ggn, *_row)


@situation
def ggn_of_a_language_model_with_padding(to):
    tokens, targets = (part[6:11] for part in of.padded_tokens())
    return gauss_newton(to(seeded(of.Attention)), CE(), cut(tokens, targets, at=2))


@situation
def ggn_of_several_outputs(to):
    def loss(outputs, batch):
        classes, number = outputs
        return cross_entropy(classes, batch["class"]) + mse_loss(number, batch["number"])

    model, x = to(seeded(of.TwoHeads)), to(X[FEW])
    whole = {"x": x, "class": CLASS[FEW], "number": to(NUMBERS[FEW, :1])}
    batches = [{name: one[rows] for name, one in whole.items()} for rows in (slice(5), slice(5, 8))]
    return Meant(
        partial(ggn_of, model, lambda model, batch: model(batch["x"]), loss, batches),
        lambda: dense_ggn(lambda: model(x), lambda out: loss(out, whole), list(model.parameters())),
        model,
    )


@situation
def ggn_of_an_output_that_comes_twice(to):
    model, x, y = to(seeded(perceptron)), to(X[FEW]), CLASS[FEW]

    def outputs_of(model, batch):
        outputs = model(batch[0])
        return {"one": outputs, "other": outputs}

    def loss(outputs, batch):
        return cross_entropy(outputs["one"] * outputs["other"].tanh(), batch[1])

    return Meant(
        partial(ggn_of, model, outputs_of, loss, cut(x, y, at=5)),
        lambda: dense_ggn(
            lambda: model(x), lambda out: cross_entropy(out * out.tanh(), y), [*model.parameters()]
        ),
        model,
    )


@situation
def ggn_of_outputs_with_names(to):
    model, x, y = to(seeded(of.TwoHeads)), to(X[FEW]), CLASS[FEW]

    def outputs_of(model, batch):
        classes, number = model(batch[0])
        return {"classes": classes, "number": number}

    def loss(outputs, batch):
        return cross_entropy(outputs["classes"] * outputs["number"], batch[1])

    return Meant(
        partial(ggn_of, model, outputs_of, loss, cut(x, y, at=5)),
        lambda: dense_ggn(
            lambda: model(x),
            lambda out: cross_entropy(out[0] * out[1], y),
            list(model.parameters()),
        ),
        model,
    )


@situation
def ggn_of_a_residual_with_second_derivatives(to):
    points = to(torch.linspace(-1, 1, 8)[:, None])

    def outputs_of(model, batch):
        x = batch.clone().requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return (bend + u) / 10

    model = to(seeded(perceptron, inputs=1, outputs=1))
    return Meant(
        partial(ggn_of, model, outputs_of, lambda out, batch: (out**2).mean(), cut(points, at=5)),
        lambda: dense_ggn(
            lambda: outputs_of(model, points), lambda out: (out**2).mean(), [*model.parameters()]
        ),
        model,
    )


@situation
def ggn_of_a_model_that_computes_its_loss(to):
    model = to(seeded(of.CausalLM))

    def outputs_of(model, batch):
        return model(**batch).logits

    def loss(outputs, batch):
        return cross_entropy(outputs[:, :-1].transpose(1, 2), batch["labels"][:, 1:])

    counts = [int(of.shifted_count(batch)) for batch in LANGUAGE]

    def matrix():
        at = list(model.parameters())
        return sum(
            n / sum(counts) * dense_ggn(
                partial(outputs_of, model, one), partial(loss, batch=one), at
            )
            for n, one in zip(counts, LANGUAGE, strict=True)
        )  # fmt: skip

    operator = partial(ggn_of, model, outputs_of, loss, LANGUAGE, weight_of=of.shifted_count)
    return Meant(operator, matrix, model)


@situation
def ggn_of_dropout(to):
    model = to(seeded(lambda: perceptron(nn.Tanh(), nn.Dropout(0.5)))).train()
    return Refused(partial(ggn, model, CE(), [(to(X), CLASS)]), "Dropout")


@situation
def ggn_in_half_precision(to):
    model, dtype = seeded(perceptron).bfloat16(), torch.bfloat16
    if to(X).dtype == torch.float64:
        return gauss_newton(model.double(), CE(), [(X[FEW].to(dtype).double(), CLASS[FEW])])
    return gauss_newton(model, CE(), [(X[FEW].to(dtype), CLASS[FEW])])


@situation
def ggn_of_a_compiled_model(to):
    model, x, y = to(seeded(perceptron)), to(X[FEW]), CLASS[FEW]
    return Meant(
        partial(ggn, torch.compile(model), CE(), cut(x, y, at=5)),
        lambda: dense_ggn(
            lambda: model(x), lambda out: cross_entropy(out, y), [*model.parameters()]
        ),
        model,
    )


@situation
def ggn_with_decay_that_the_loss_holds(to):
    """The parameters are outputs too: their squares add a multiple of the identity."""
    model, x, y = to(seeded(perceptron)), to(X[FEW]), CLASS[FEW]
    at = list(model.parameters())

    def matrix():
        found = dense_ggn(lambda: model(x), lambda out: cross_entropy(out, y), at)
        return found + 0.1 * torch.eye(len(found), dtype=found.dtype)

    return Meant(partial(ggn, model, OfModel(model), cut(x, y, at=5)), matrix, model)


OF_THE_TABLE = {
    *(f"layer: {name}" for name in (
        "LSTM", "GRU", "checkpointing", "transformer in evaluation", "dropout in evaluation",
        "BatchNorm in evaluation", "InstanceNorm", "GroupNorm", "convolution", "LayerNorm",
        "RMSNorm", "ReLU", "PReLU", "Softplus", "GELU", "spectral norm in evaluation",
    )),
    *(f"ggn: {name}" for name in (
        "attention", "a transformer", "LSTM", "GRU", "checkpointing", "BatchNorm in evaluation",
        "spectral norm", "RMSNorm",
    )),
    "weight norm", "in training: a transformer without dropout", "in training: BatchNorm",
    "refused: a spectral norm in training", "refused: dropout",
    "refused: dropout of a recurrent layer", "refused: dropout of attention",
    "refused: checkpointing that is reentrant",
    "compiled model", "ggn of a compiled model",
}  # fmt: skip
"""Situations of a layer alone."""

LIKE_OTHERS = {
    "layer: LSTM of two layers", "padding of a language model by batches",
    "model that computes its loss in two batches",
    "ggn of a language model with padding", "contrastive in two batches",
    "batch norm in training by batches", "weight decay of a list of parameters",
    "overlap of all rows in batches that are added", "ggn of outputs with names",
    *(f"loss: {name}" for name in (
        "mean square by function", "sum of squares by function", "cross entropy by function",
        "cross entropy by a function that sums", "classes that are ignored", "smoothed labels",
        "probabilities as targets", "classes with weights", "negative logarithms",
        "cross entropy of small integers", "divergence by elements",
    )),
}  # fmt: skip
"""Situations that another of the table has with something more."""


# Making a compiled model imports what torch itself warns of.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        # By default tests/operators/test_layers_table.py has products with the same layers.
        pytest.param(name, marks=[pytest.mark.thorough] * (name in OF_THE_TABLE | LIKE_OTHERS))
        for name in SITUATIONS
    ],
)
def test_operator_is_the_matrix_that_is_meant_or_is_refused(name, tmp_path):
    one = SITUATIONS[name](partial(of.cast, dtype=torch.float32))
    if isinstance(one, Refused):
        with pytest.raises(OperatorError, match=one.why):  # noqa: PT012 (whichever of the two)
            operator = one.operator()
            if one.by_probe:
                ooc.eigh(operator, measurements=4, run_dir=tmp_path / "run")
        return
    before = state(one.model)
    operator = one.operator()
    truth = SITUATIONS[name](partial(of.cast, dtype=torch.float64)).matrix()
    assert tuple(operator.shape) == tuple(truth.shape)
    dtype = getattr(torch, str(operator.dtype).removeprefix("torch."))
    found = (operator @ torch.eye(len(truth), dtype=dtype)).double()
    bound = TOLERANCE * float(leading(truth, 1).abs())
    torch.testing.assert_close(leading(found), leading(truth), rtol=0, atol=bound)
    vector = normal(len(truth), seed=9).to(dtype)
    product, exact = (operator @ vector).double(), truth @ vector.double()
    assert float((product - exact).norm()) <= bound * float(vector.norm())
    assert one.remark in " ".join(operator.remarks)
    for was, now in zip(before, state(one.model), strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True)


def test_products_are_the_same_in_inference_mode():
    operator = hessian(seeded(perceptron), CE(), [(X, CLASS)])
    expected = operator @ torch.eye(operator.shape[0])
    with torch.inference_mode():
        found = operator @ torch.eye(operator.shape[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_the_table_has_too_is_a_situation():
    assert set(SITUATIONS) >= OF_THE_TABLE | LIKE_OTHERS
