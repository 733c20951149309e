"""Products are computed where the parameters are: shown with tensors that have no entries.

The device is ``meta``, which every build of torch has. Mixing it with the processor is an error by
torch's fake tensors, as on a GPU, and by what is stricter here where those are not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import networks as of
import pytest
import torch
from torch import nn
from torch._functorch import config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skerch_ooc.operators.curvature import PairLoss, _outputs_of_pair
from skerch_ooc.operators.derivatives.operator import Curvature, Objective
from skerch_ooc.operators.derivatives.parameters import chosen_of
from skerch_ooc.operators.derivatives.products import Loss
from skerch_ooc.operators.derivatives.reductions import ROWS

ELSEWHERE = torch.device("meta")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, but for single numbers and moves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        devices = {one.device.type for one in tensors if one.ndim}
        if len(devices) > 1 and func not in MOVES:
            raise RuntimeError(f"{func} of tensors on {sorted(devices)}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_entries() -> Iterator[None]:
    """Tensors made within have no entries, but devices that do not mix."""
    with config.patch(fake_tensor_allow_meta=True), FakeTensorMode(), OneDevice():
        yield


def parted(model):
    """The loss of a model, as the Hessian and the Gauss-Newton matrix take it."""
    loss = nn.CrossEntropyLoss()
    return {
        "hessian": Loss(model, of_batch=PairLoss(loss)),
        "ggn": Loss(model, outputs=_outputs_of_pair, of_outputs=PairLoss(loss, outputs=True)),
    }


def product_of(make, way, inputs, targets, columns):
    """A product with the data in main memory, as they come."""
    with ELSEWHERE:
        model = make().eval()
    objective = Objective(parted(model)[way], chosen_of(model, None))
    batches = [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])]
    operator = Curvature(objective, batches, ROWS)
    assert operator.device == ELSEWHERE
    return operator @ torch.ones(operator.shape[0], 3, device=columns)


class Careless(nn.Module):
    """Adds what it makes without asking where."""

    def __init__(self):
        super().__init__()
        self.body = of.perceptron()

    def forward(self, x):
        return self.body(x) + torch.ones(len(x), of.CLASSES)


TABLE, PLACES, IMAGES = (6, of.INPUTS), (6, 3, 4), (6, 1, 6, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a perceptron": (of.perceptron, TABLE),
    "LayerNorm": (lambda: of.perceptron(nn.LayerNorm(6), nn.GELU()), TABLE),
    "RMSNorm": (lambda: of.perceptron(nn.RMSNorm(6), nn.SiLU()), TABLE),
    "statistics of the batch": (
        lambda: of.perceptron(nn.BatchNorm1d(6, track_running_stats=False)),
        TABLE,
    ),
    "convolution": (lambda: of.convolutional(nn.PReLU()), IMAGES),
    "LSTM": (of.Recurrent, (6, 3, 2)),
    "GRU": (lambda: of.Recurrent("GRU"), (6, 3, 2)),
    "attention": (of.SelfAttention, PLACES),
    "a transformer": (of.Transformer, PLACES),
    "checkpointing": (of.Checkpointed, TABLE),
    "weight norm": (lambda: of.reparametrised(nn.utils.parametrizations.weight_norm), TABLE),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("way", ["hessian", "ggn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_computed_where_the_parameters_are(name, way):
    make, shape = NETWORKS[name]
    with without_entries():
        inputs, targets = torch.ones(shape), torch.zeros(6, dtype=torch.long)
        found = product_of(make, way, inputs, targets, "meta")
    assert (found.device.type, found.shape[1]) == ("meta", 3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["hessian", "ggn"])
def test_products_come_back_to_where_the_columns_are(way):
    with without_entries():
        words = torch.zeros(6, of.LENGTH, dtype=torch.long)
        found = product_of(of.Attention, way, words, words, "cpu")
    assert found.device.type == "cpu"


@pytest.mark.parametrize("way", ["hessian", "ggn"])
def test_what_is_made_elsewhere_is_found_by_these_tests(way):
    with without_entries(), pytest.raises(RuntimeError, match=r"(?i)device|tensors on"):
        product_of(Careless, way, torch.ones(TABLE), torch.zeros(6, dtype=torch.long), "cpu")
