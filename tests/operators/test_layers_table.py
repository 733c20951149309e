"""The table of layers in docs/operators.md: each of its lines is true.

A product of the operator is compared with differences in float64: of gradients for the Hessian, of
outputs for the Jacobian of the others, so that no second derivative of torch is taken for granted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.curvature import fisher, ggn, hessian

PAGE = (Path(__file__).resolve().parents[2] / "docs/operators.md").read_text()
ROWS, CLASSES = 4, 3
LOSS = nn.CrossEntropyLoss()
TABLE, PLACES, IMAGES, WORDS = (5,), (4, 6), (2, 5, 5), (3,)


# The lines.


class Line(NamedTuple):
    """What the table says of a layer: ``right`` or ``refused`` for each matrix, and of its own."""

    says: dict[str, str]
    remark: str


def lines() -> Iterator[tuple[str, Line]]:
    """Yields each layer that the table names, with its state, and what is said of it."""
    head = r"^\| layer +\| `hessian` +\| `ggn` +\| `fisher` +\|"
    below = PAGE[re.search(head, PAGE, re.M).start() :].partition("\n\n")[0]
    for line in below.splitlines()[2:]:
        layers, *cells, remark = (cell.strip() for cell in line.strip("|").split("|"))
        state = layers.rpartition("`")[2].strip()
        says = dict(zip(("hessian", "ggn", "fisher"), cells, strict=True))
        for name in re.findall(r"`([^`]+)`", layers):
            yield f"{name} {state}".strip(), Line(says, remark)


# What is built for them.


class Through(nn.Module):
    """A model whose way is a function of its layers and its inputs."""

    def __init__(self, way: Callable[[Any, Any], Any], **layers: Any) -> None:
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Any) -> Any:
        return self.way(self, x)


class Case(NamedTuple):
    """A model, the shape of a row of its inputs, and the model that is meant, if not itself."""

    model: nn.Module
    shape: tuple[int, ...]
    meant: nn.Module | None = None


def between(layer: nn.Module, width: int = 6) -> Case:
    """A layer between two that are linear."""
    return Case(
        nn.Sequential(nn.Linear(*TABLE, 6), nn.Tanh(), layer, nn.Tanh(), nn.Linear(width, CLASSES)),
        TABLE,
    )


def of_images(layer: nn.Module, *more: nn.Module) -> Case:
    """A layer that is given images of two channels."""
    first = nn.Conv2d(2, 2, 2)
    return Case(
        nn.Sequential(first, nn.Tanh(), layer, *more, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
        IMAGES,
    )


def of_words(layer: nn.Module, *, width: int) -> Case:
    return Case(nn.Sequential(layer, nn.Flatten(), nn.Tanh(), nn.Linear(width, CLASSES)), WORDS)


def of_sequences(way: Callable[[Any, Any], Any], layer: nn.Module) -> Case:
    return Case(
        Through(
            lambda model, x: model.last(way(model.layer, x)), layer=layer, last=nn.Linear(6, 3)
        ),
        PLACES,
    )


def recurrent(kind: Any, **options: Any) -> Case:
    return of_sequences(
        lambda layer, x: layer(x)[0][:, -1], kind(6, 6, batch_first=True, **options)
    )


def attending(dropout: float = 0.0) -> Case:
    layer = nn.MultiheadAttention(6, 2, dropout, batch_first=True)
    return of_sequences(lambda layer, x: layer(x, x, x, need_weights=False)[0].mean(1), layer)


def encoder(dropout: float = 0.1, **options: Any) -> Case:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout, batch_first=True, **options)
    return of_sequences(lambda layer, x: layer(x).mean(1), layer)


def encoders() -> Case:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return of_sequences(lambda layer, x: layer(x).mean(1), stack)


def decoder() -> Case:
    layer = nn.TransformerDecoderLayer(6, 2, 8, batch_first=True)
    return of_sequences(lambda layer, x: layer(x, x.flip(1)).mean(1), layer)


def dot_product(**options: Any) -> Case:
    def way(layer: Any, x: Any) -> Any:
        return functional.scaled_dot_product_attention(layer(x), x, x, **options).mean(1)

    return of_sequences(way, nn.Linear(6, 6))


def checkpointed(*, use_reentrant: bool) -> Case:
    def way(model: Any, x: Any) -> Any:
        return model.last(checkpoint(model.inner, model.first(x), use_reentrant=use_reentrant))

    inner = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    return Case(Through(way, first=nn.Linear(5, 6), inner=inner, last=nn.Linear(6, 3)), TABLE)


def weight_norm() -> Case:
    def meant(model: Any, x: Any) -> Any:
        layer = model.model[2]
        g, v = layer.parametrizations.weight.parameters()
        weight = g * v / v.norm(dim=1, keepdim=True)
        hidden = functional.linear(model.model[:2](x), weight, layer.bias)
        return model.model[3:](hidden)

    case = between(parametrizations.weight_norm(nn.Linear(6, 6)))
    return case._replace(meant=Through(meant, model=case.model))


def spectral_norm() -> Case:
    return between(parametrizations.spectral_norm(nn.Linear(6, 6)))


def bilinear() -> Case:
    way = lambda model, x: model.last(torch.tanh(model.layer(x, x)))  # noqa: E731
    return Case(Through(way, layer=nn.Bilinear(5, 5, 6), last=nn.Linear(6, CLASSES)), TABLE)


def warped() -> Case:
    def way(model: Any, x: Any) -> Any:
        theta = torch.eye(2, 3, dtype=x.dtype) + 0.3 * model.where(x.flatten(1)).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        seen = functional.grid_sample(model.first(x), grid, align_corners=False)
        return model.last(torch.tanh(seen).flatten(1))

    layers = {"where": nn.Linear(50, 6), "first": nn.Conv2d(2, 2, 1), "last": nn.Linear(50, 3)}
    return Case(Through(way, **layers), IMAGES)


def enlarged() -> Case:
    def way(model: Any, x: Any) -> Any:
        seen = functional.interpolate(model.first(x), scale_factor=2, mode="bilinear")
        return model.last(torch.tanh(seen).flatten(1))

    return Case(Through(way, first=nn.Conv2d(2, 2, 1), last=nn.Linear(200, 3)), IMAGES)


def distances() -> Case:
    points = nn.Parameter(torch.randn(4, 6))
    way = lambda model, x: model.last(torch.cdist(model.first(x), model.points))  # noqa: E731
    return Case(
        Through(way, first=nn.Linear(5, 6), points=points, last=nn.Linear(4, CLASSES)), TABLE
    )


def dropped(function: Any) -> Case:
    way = lambda model, x: model.last(function(model.first(x)))  # noqa: E731
    return Case(Through(way, first=nn.Linear(5, 6), last=nn.Linear(6, CLASSES)), TABLE)


def compiled() -> Case:
    case = between(nn.Linear(6, 6))
    return case._replace(model=torch.compile(case.model, backend="aot_eager"), meant=case.model)


def activation(name: str) -> Case:
    options = {"Softmax": {"dim": -1}, "Threshold": {"threshold": 0.1, "value": 0.0}}
    layer = getattr(nn, name)(**options.get(name, {}))
    return between(layer, 3 if name == "GLU" else 6)


ACTIVATIONS = (
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish",
    "Softplus", "Tanh", "Sigmoid", "Softmax", "GLU", "Hardswish", "Hardtanh", "Softsign",
    "LogSigmoid", "Tanhshrink", "Softshrink", "Threshold",
)  # fmt: skip

BUILDERS: dict[str, Callable[[], Case]] = {
    "Linear": lambda: between(nn.Linear(6, 6)),
    "Bilinear": bilinear,
    "Conv1d": lambda: of_images(nn.Flatten(2), nn.Conv1d(2, 3, 2)),
    "Conv2d": lambda: of_images(nn.Conv2d(2, 3, 2)),
    "Conv3d": lambda: of_images(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, 2)),
    "ConvTranspose2d": lambda: of_images(nn.ConvTranspose2d(2, 3, 2)),
    "AvgPool2d": lambda: of_images(nn.AvgPool2d(2)),
    "MaxPool2d": lambda: of_images(nn.MaxPool2d(2)),
    "AdaptiveAvgPool2d": lambda: of_images(nn.AdaptiveAvgPool2d(2)),
    "BatchNorm1d in evaluation": lambda: between(nn.BatchNorm1d(6)),
    "BatchNorm2d in evaluation": lambda: of_images(nn.BatchNorm2d(2)),
    "BatchNorm1d in training mode": lambda: between(nn.BatchNorm1d(6)),
    "BatchNorm2d in training mode": lambda: of_images(nn.BatchNorm2d(2)),
    "LayerNorm": lambda: between(nn.LayerNorm(6)),
    "GroupNorm": lambda: between(nn.GroupNorm(2, 6)),
    "InstanceNorm2d": lambda: of_images(nn.InstanceNorm2d(2, affine=True)),
    "RMSNorm": lambda: between(nn.RMSNorm(6)),
    "Embedding": lambda: of_words(nn.Embedding(7, 4), width=12),
    "Embedding(sparse=True)": lambda: of_words(nn.Embedding(7, 4, sparse=True), width=12),
    "EmbeddingBag": lambda: of_words(nn.EmbeddingBag(7, 4), width=4),
    "RNN": lambda: recurrent(nn.RNN),
    "LSTM": lambda: recurrent(nn.LSTM, num_layers=2),
    "GRU": lambda: recurrent(nn.GRU),
    "MultiheadAttention in evaluation": lambda: attending(0.1),
    "TransformerEncoderLayer in evaluation": encoder,
    "TransformerDecoderLayer in evaluation": decoder,
    "TransformerEncoder in evaluation": encoders,
    "MultiheadAttention(dropout=0.1) in training mode": lambda: attending(0.1),
    "TransformerEncoderLayer in training mode": encoder,
    "LSTM(dropout=0.1) in training mode": lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.1),
    "TransformerEncoderLayer(dropout=0.0) in training mode": lambda: encoder(0.0),
    "scaled_dot_product_attention": dot_product,
    "scaled_dot_product_attention(is_causal=True)": lambda: dot_product(is_causal=True),
    "scaled_dot_product_attention(dropout_p=0.1)": lambda: dot_product(dropout_p=0.1),
    "checkpoint(use_reentrant=False)": lambda: checkpointed(use_reentrant=False),
    "checkpoint(use_reentrant=True)": lambda: checkpointed(use_reentrant=True),
    "weight_norm": weight_norm,
    "spectral_norm in evaluation": spectral_norm,
    "spectral_norm in training mode": spectral_norm,
    "Dropout in evaluation": lambda: between(nn.Dropout(0.5)),
    "RReLU in evaluation": lambda: between(nn.RReLU()),
    "Dropout in training mode": lambda: between(nn.Dropout(0.5)),
    "RReLU in training mode": lambda: between(nn.RReLU()),
    "functional.dropout in training mode": lambda: dropped(functional.dropout),
    "torch.rand_like": lambda: dropped(lambda x: x * torch.rand_like(x)),
    **{name: partial(activation, name) for name in ACTIVATIONS},
    "Hardsigmoid": partial(activation, "Hardsigmoid"),
    "grid_sample": warped,
    "interpolate": enlarged,
    "cdist": distances,
    "torch.compile": compiled,
}  # fmt: skip


def test_each_layer_of_the_table_is_built_and_each_that_is_built_is_in_the_table():
    named = [name for name, _ in lines()]
    assert sorted(named) == sorted(BUILDERS)


# What is true.


def batches(shape: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randint(7, (2, ROWS, *shape)) if shape == WORDS else torch.randn(2, ROWS, *shape)
    return list(zip(inputs, torch.arange(2 * ROWS).view(2, ROWS) % CLASSES, strict=True))


def flat(parts: Any) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def slope(model: nn.Module, v: torch.Tensor, function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The derivative of a function of the parameters in the direction ``v``."""
    at = [one for one in model.parameters() if one.requires_grad]
    start, step = flat(at).detach(), 1e-5 / float(v.norm())
    ends = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * step * v, at)
        ends.append(function().detach())
    nn.utils.vector_to_parameters(start, at)
    return (ends[0] - ends[1]) / (2 * step)


def hessian_product(model: nn.Module, x: Any, y: Any, v: torch.Tensor) -> torch.Tensor:
    at = list(model.parameters())
    return slope(model, v, lambda: flat(torch.autograd.grad(LOSS(model(x), y), at)))


def jacobian_product(model: nn.Module, x: Any, y: Any, v: torch.Tensor, curve: Any) -> torch.Tensor:
    """``J^T C J v`` with ``J v`` as a difference of outputs."""
    pushed = slope(model, v, lambda: model(x))
    outputs = model(x)
    curved = curve(outputs.detach().requires_grad_(), y, pushed)
    return flat(torch.autograd.grad(outputs, list(model.parameters()), curved))


def of_loss(outputs: torch.Tensor, y: Any, pushed: torch.Tensor) -> torch.Tensor:
    (slopes,) = torch.autograd.grad(LOSS(outputs, y), outputs, create_graph=True)
    return torch.autograd.grad(slopes, outputs, pushed)[0]


def of_gradients(outputs: torch.Tensor, y: Any, pushed: torch.Tensor) -> torch.Tensor:
    """The mean of ``s s^T`` over the rows, at the targets of the data."""
    (slopes,) = torch.autograd.grad(len(y) * LOSS(outputs, y), outputs)
    return slopes * (slopes * pushed).sum(dim=1, keepdim=True) / len(y)


MATRICES: dict[str, tuple[Any, Callable[..., torch.Tensor]]] = {
    "hessian": (hessian, hessian_product),
    "ggn": (ggn, partial(jacobian_product, curve=of_loss)),
    "fisher": (partial(fisher, samples=None), partial(jacobian_product, curve=of_gradients)),
}


@pytest.mark.covered(1)
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("name", "line"), list(lines()), ids=[name for name, _ in lines()])
def test_line_is_true(name, line, matrix):
    torch.manual_seed(0)
    case = BUILDERS[name]()
    data = batches(case.shape)
    case.model(data[0][0])  # What is lazy takes its shape.
    for model in (case.model, case.meant):
        if model is not None and not name.endswith("in training mode"):
            model.eval()
    make, expected = MATRICES[matrix]
    if line.says[matrix] == "refused":
        with pytest.raises(OperatorError) as raised:
            make(case.model, LOSS, data)
        quoted = re.findall(r'"([^"]+)"', line.remark)
        assert [words for words in quoted if words not in str(raised.value)] == []
        return
    assert line.says[matrix] == "right"
    operator = make(case.model, LOSS, data)
    v = torch.randn(operator.shape[0], 2)
    double = copy.deepcopy(case.meant or case.model).double()
    total = torch.zeros(len(v), dtype=torch.float64)
    for x, y in data:
        x = x.double() if x.is_floating_point() else x
        total += expected(double, x, y, v[:, 0].double()) / len(data)
    found = operator @ v
    assert float((found[:, 0] - total).norm() / total.norm()) < 1e-4
    # And one after the other as both at once.
    torch.testing.assert_close(operator @ v[:, 1], found[:, 1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "LayerNorm", "Conv2d", "LSTM"])
def test_fisher_of_drawn_targets_is_that_of_gradients_at_them(name):
    from curvlinops.fisher import make_grad_output_sampler

    torch.manual_seed(0)
    case = BUILDERS[name]()
    ((x, y), _) = batches(case.shape)
    case.model(x)
    operator = fisher(case.model.eval(), LOSS, [(x, y)], samples=5, seed=7)
    v = torch.randn(operator.shape[0])
    generator = torch.Generator().manual_seed(7)
    drawn = make_grad_output_sampler(LOSS)(case.model(x).detach(), 5, y, generator).double()

    def of_drawn(outputs: torch.Tensor, y: Any, pushed: torch.Tensor) -> torch.Tensor:
        return (drawn * (drawn * pushed).sum(-1, keepdim=True)).mean(dim=0) / len(y)

    total = jacobian_product(
        copy.deepcopy(case.model).double(), x.double(), y, v.double(), of_drawn
    )
    assert float((operator @ v - total).norm() / total.norm()) < 1e-4
