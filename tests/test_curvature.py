"""Curvature matrices over curvlinops: against dense ones, and with mistakes that people make."""

from __future__ import annotations

import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.errors import OperatorError
from skerch_ooc.operators.curvature import fisher, ggn, hessian, kfac

SIZES = (5, 4, 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(*SIZES[:2]), torch.nn.Tanh(), torch.nn.Linear(*SIZES[1:])
    )


def batches(loss):
    torch.manual_seed(1)
    x = torch.randn(20, SIZES[0])
    y = torch.randn(20, SIZES[2])
    if isinstance(loss, torch.nn.CrossEntropyLoss):
        y = torch.randint(SIZES[2], (20,))
    return [(x[:15], y[:15]), (x[15:], y[15:])]


def functional(model, loss, data):
    """Outputs and loss as functions of all parameters in one vector, and that vector."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))

    def outputs(flat):
        pieces = flat.split(sizes)
        shaped = {n: piece.view_as(p) for (n, p), piece in zip(named.items(), pieces, strict=True)}
        return torch.func.functional_call(model, shaped, (x,))

    flat = torch.cat([p.flatten() for p in named.values()])
    return outputs, lambda point: loss(outputs(point), y), flat


def dense_hessian(model, loss, data):
    _, value, flat = functional(model, loss, data)
    return torch.func.hessian(value)(flat)


def dense_ggn(model, loss, data):
    outputs, _, flat = functional(model, loss, data)
    y = torch.cat([targets for _, targets in data])
    jacobian = torch.func.jacrev(outputs)(flat)
    curvature = torch.func.hessian(lambda out: loss(out, y))(outputs(flat))
    return torch.einsum("nap,nambs,mbq->pq", jacobian, curvature[:, :, :, :, None], jacobian)


@pytest.mark.parametrize("loss", [torch.nn.MSELoss(), torch.nn.CrossEntropyLoss()], ids=repr)
@pytest.mark.parametrize(
    ("make", "dense"), [(hessian, dense_hessian), (ggn, dense_ggn)], ids=["hessian", "ggn"]
)
def test_operator_is_the_dense_matrix(model, loss, make, dense):
    data = batches(loss)
    operator = make(model, loss, data)
    found = operator @ torch.eye(operator.shape[0])
    torch.testing.assert_close(found, dense(model, loss, data), rtol=1e-4, atol=1e-6)


def test_fisher_of_many_samples_comes_near_the_ggn(model):
    loss = torch.nn.CrossEntropyLoss()
    data = batches(loss)
    eye = torch.eye(sum(p.numel() for p in model.parameters()))
    expected = ggn(model, loss, data) @ eye
    found = fisher(model, loss, data, samples=4000) @ eye
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("samples", [1, None], ids=["sampled", "empirical"])
def test_fisher_repeats_itself_and_is_positive(model, samples):
    loss = torch.nn.CrossEntropyLoss()
    operator = fisher(model, loss, batches(loss), samples=samples)
    eye = torch.eye(operator.shape[0])
    first = operator @ eye
    assert torch.equal(first, operator @ eye)
    assert torch.linalg.eigvalsh(first).min() > -1e-6


def test_kfac_is_that_of_each_layer(model):
    loss = torch.nn.CrossEntropyLoss()
    operator = kfac(model, loss, batches(loss))
    found = operator @ torch.eye(operator.shape[0])
    first = SIZES[0] * SIZES[1] + SIZES[1]
    assert found[:first, first:].abs().max() == 0
    torch.testing.assert_close(found, found.T)


@pytest.mark.parametrize(
    ("names", "rows"),
    [(["0"], slice(0, 24)), (["2"], slice(24, 39)), (["2.bias"], slice(36, 39)),
     (["0", "2"], slice(0, 39))],
)  # fmt: skip
def test_names_of_layers_choose_their_parameters(model, names, rows):
    loss = torch.nn.MSELoss()
    data = batches(loss)
    operator = hessian(model, loss, data, names)
    found = operator @ torch.eye(operator.shape[0])
    expected = dense_hessian(model, loss, data)[rows, rows]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_name_of_nothing_is_refused_with_those_that_are(model):
    loss = torch.nn.MSELoss()
    with pytest.raises(OperatorError, match=r"no layer or parameter 'fc1'.* 0\.weight, 0\.bias"):
        hessian(model, loss, batches(loss), ["fc1"])


def test_parameters_without_gradients_are_refused(model):
    loss = torch.nn.MSELoss()
    with pytest.raises(OperatorError, match="require a gradient"):
        hessian(model.requires_grad_(False), loss, batches(loss))


def loader(**options):
    x, y = torch.randn(20, SIZES[0]), torch.randn(20, SIZES[2])
    dataset = torch.utils.data.TensorDataset(x, y)
    return torch.utils.data.DataLoader(dataset, batch_size=5, **options)


def test_loader_that_shuffles_is_refused(model):
    with pytest.raises(OperatorError, match="shuffle=False"):
        hessian(model, torch.nn.MSELoss(), loader(shuffle=True))


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "generator": torch.Generator()}])
def test_loader_that_always_gives_the_same_is_taken(model, options):
    operator = hessian(model, torch.nn.MSELoss(), loader(**options))
    assert operator.shape == (39, 39)


def test_curvature_is_decomposed(model, tmp_path):
    loss = torch.nn.MSELoss()
    operator = ggn(model, loss, batches(loss))
    eig = ooc.eigh(operator, measurements=39, run_dir=tmp_path / "run", noise="gaussian")
    expected = torch.linalg.eigvalsh(operator @ torch.eye(39)).flip(0)
    torch.testing.assert_close(eig.eigenvalues[:5].float(), expected[:5], rtol=1e-3, atol=1e-5)
