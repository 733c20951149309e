"""Curvature matrices over curvlinops: against dense ones, and with mistakes that people make."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from specs import FACTORIES, write_spec

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError, OperatorError
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.curvature import fisher, ggn, ggn_of, hessian, hessian_of, kfac
from skerch_ooc.pipeline.run import run_all
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec

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


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("reduction", "is_mean"), [("mean", 1), ("sum", 0)])
def test_empirical_fisher_of_squares_counts_the_mean_over_outputs_once(outputs, reduction, is_mean):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, outputs))
    x, y, at = torch.randn(7, 4), torch.randn(7, outputs), list(model.parameters())
    squares = [((model(x[n]) - y[n]) ** 2).sum() for n in range(7)]
    slopes = torch.stack(
        [torch.cat([g.reshape(-1) for g in torch.autograd.grad(one, at)]) for one in squares]
    )
    expected = slopes.T @ slopes / (7 * outputs) ** is_mean
    operator = fisher(model, torch.nn.MSELoss(reduction=reduction), [(x, y)], samples=None)
    torch.testing.assert_close(operator @ torch.eye(len(expected)), expected)


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


class TestBatches:
    """A sum with a term for each batch."""

    @pytest.fixture
    def data(self):
        torch.manual_seed(3)
        return [(torch.randn(n, SIZES[0]), torch.randn(n, SIZES[2])) for n in (4, 7, 1, 5)]

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize(
        "make",
        [hessian, ggn, partial(fisher, samples=None)],
        ids=["hessian", "ggn", "empirical fisher"],
    )
    def test_sum_over_batches_is_the_operator_of_all(self, model, data, make, reduction):
        loss = torch.nn.MSELoss(reduction=reduction)
        whole, terms = make(model, loss, data), make(model, loss, data, per_batch=True)
        assert len(terms) == len(data)
        x = torch.randn(whole.shape[0], 3)
        torch.testing.assert_close(terms @ x, whole @ x, rtol=1e-4, atol=1e-6)

    def test_sampled_targets_differ_from_batch_to_batch(self, model):
        torch.manual_seed(3)
        batch = (torch.randn(4, SIZES[0]), torch.randn(4, SIZES[2]))
        terms = fisher(model, torch.nn.MSELoss(), [batch, batch], per_batch=True)
        x = torch.randn(terms.shape[0], 1)
        assert not torch.equal(terms.term(0) @ x, terms.term(1) @ x)


class TestContent:
    """Weights and data are fingerprinted, so that what has changed can be named."""

    def measured(self, run_dir, model, data):
        return ooc.plan(
            {"measurements": 8, "sketch": {"block": 4}}, run_dir,
            operator=hessian(model, torch.nn.MSELoss(), data),
        )  # fmt: skip

    @pytest.mark.parametrize("what", ["weights", "data"])
    def test_what_has_changed_is_named(self, tmp_path, model, what):
        data = batches(torch.nn.MSELoss())
        run = self.measured(tmp_path / "run", model, data)
        if what == "weights":
            with torch.no_grad():
                model[0].weight[0, 0] += 1
        else:
            data[0][0][0, 0] += 1
        with pytest.raises(DriftError, match=f"What has changed: its {what}"):
            ooc.measure(run, operator=hessian(model, torch.nn.MSELoss(), data))

    def test_change_within_rounding_is_told_and_accepted(self, tmp_path, model, caplog):
        data = batches(torch.nn.MSELoss())
        run = self.measured(tmp_path / "run", model, data)
        with torch.no_grad():
            model[0].weight[0, 0] *= 1 + 2e-7
        assert ooc.measure(run, operator=hessian(model, torch.nn.MSELoss(), data))
        assert "the weights of the operator are others" in caplog.text


SPEC = {"sketch": {"block": 16, "test_measurements": 16}}


class TestDataParallel:
    """Eight batches in parts on two workers; three more come later."""

    @staticmethod
    def spec(folder, factory, name, *, first=0, count=11, per_batch=True):
        args = {"first": first, "count": count, "per_batch": per_batch}
        return write_spec(folder, factory, 40, name=f"{name}.toml", operator={"args": args}, **SPEC)

    @staticmethod
    def run(spec, run_dir, executor, *overrides):
        work = Work.of(executor, "4GiB", 1)
        planned = make_plan(Spec.from_toml(spec, overrides), run_dir, work)
        run_all(planned, work)
        return planned.run

    @staticmethod
    def values(run):
        return ooc.recover(run).eigenvalues

    @pytest.mark.thorough
    def test_batches_in_parts_give_the_whole_and_batches_added_later_the_sum(
        self, tmp_path, inside
    ):
        spec = self.spec(tmp_path, "batches_hessian", "eight", count=8)
        workers = ("--executor", "dask", "--workers", 2, "--threads", 1)
        done = inside("run", spec, "--run", "eight", *workers, "--set", "operator.parts=8")
        assert done.returncode == 0, done.stderr
        run = ooc.open_run(tmp_path / "eight")
        assert len(run.plan.parts) == 8
        # 40 right columns and 16 of the test, in four blocks for each part.
        assert len(list(run.shards.iterdir())) == 8 * 4
        whole = self.run(
            self.spec(tmp_path, "batches_hessian", "whole", count=8, per_batch=False),
            tmp_path / "whole", ooc.Serial(),
        )  # fmt: skip
        torch.testing.assert_close(self.values(run), self.values(whole), rtol=1e-4, atol=1e-6)

        later = ooc.OperatorSpec(
            f"{FACTORIES}:batches_hessian", {"first": 8, "count": 3, "per_batch": True}
        )
        run = ooc.update(run, later, scale=3 / 11, forget=8 / 11)
        all_at_once = self.run(
            self.spec(tmp_path, "batches_hessian", "all"), tmp_path / "all", ooc.Serial()
        )
        torch.testing.assert_close(self.values(run), self.values(all_at_once), rtol=1e-4, atol=1e-6)
        found, expected = ooc.assess(run), ooc.assess(all_at_once)
        assert found.relative_error == pytest.approx(expected.relative_error, rel=1e-2)
        assert found.norm == pytest.approx(expected.norm, rel=1e-5)


def test_loss_may_be_a_function(model):
    data = batches(torch.nn.CrossEntropyLoss())
    eye = torch.eye(39)
    found = hessian(model, torch.nn.functional.cross_entropy, data) @ eye
    torch.testing.assert_close(found, hessian(model, torch.nn.CrossEntropyLoss(), data) @ eye)


class WithAttention(torch.nn.Module):
    """A transformer's layer, as small as can be."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.last = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.layer(x).mean(dim=1))


class OfDictionary(torch.nn.Module):
    """A model whose inputs have names."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(5, 3)

    def forward(self, inputs):
        return self.last(torch.tanh(inputs["one"] + inputs["other"]))


def with_norm(layer):
    return torch.nn.Sequential(torch.nn.Linear(5, 6), layer, torch.nn.Tanh(), torch.nn.Linear(6, 3))


NETWORKS = {
    "plain": lambda: with_norm(torch.nn.Identity()),
    "LayerNorm": lambda: with_norm(torch.nn.LayerNorm(6)),
    "GroupNorm": lambda: with_norm(torch.nn.GroupNorm(2, 6)),
    "attention": WithAttention,
}


class TestReverse:
    """Hessians by reverse over reverse differentiation."""

    def data(self, network):
        torch.manual_seed(1)
        shape = (20, 4, 6) if network == "attention" else (20, 5)
        x, y = torch.randn(shape, dtype=torch.float64), torch.randint(3, (20,))
        return [(x[:15], y[:15]), (x[15:], y[15:])]

    def gradient(self, model, loss, data):
        x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
        found = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
        return torch.cat([part.reshape(-1) for part in found])

    @pytest.mark.parametrize("network", NETWORKS)
    def test_products_are_differences_of_gradients(self, network):
        torch.manual_seed(0)
        model, loss = NETWORKS[network]().double().eval(), torch.nn.CrossEntropyLoss()
        data = self.data(network)
        operator = hessian(model, loss, data, reverse=True)
        v = torch.randn(operator.shape[0], dtype=torch.float64)
        weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        found = operator @ v
        step, ends = 1e-5, []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(weights + sign * step * v, model.parameters())
            ends.append(self.gradient(model, loss, data))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((found - expected).norm() / expected.norm()) < 1e-6

    def test_it_is_that_of_forward_over_reverse_differentiation(self, model):
        loss = torch.nn.CrossEntropyLoss()
        data, eye = batches(loss), torch.eye(sum(p.numel() for p in model.parameters()))
        torch.testing.assert_close(
            hessian(model, loss, data, reverse=True) @ eye, hessian(model, loss, data) @ eye,
            rtol=1e-4, atol=1e-6,
        )  # fmt: skip

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_terms_of_the_batches_add_up_to_the_whole(self, model, reduction):
        loss = torch.nn.CrossEntropyLoss(reduction=reduction)
        data, names = batches(loss), ["2"]
        whole = hessian(model, loss, data, names, reverse=True)
        eye = torch.eye(whole.shape[0])
        terms = hessian(model, loss, data, names, reverse=True, per_batch=True)
        torch.testing.assert_close(terms @ eye, whole @ eye)

    def test_inputs_may_have_names(self):
        torch.manual_seed(0)
        x, y = torch.randn(8, 5), torch.randint(3, (8,))
        data = [({"one": x, "other": -2 * x}, y)]
        operator = hessian(OfDictionary(), torch.nn.CrossEntropyLoss(), data, reverse=True)
        found = operator @ torch.eye(operator.shape[0])
        torch.testing.assert_close(found, found.T)

    def test_parameters_that_the_loss_does_not_depend_on_have_rows_of_zeros(self, model):
        model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
        loss = torch.nn.MSELoss()
        operator = hessian(model, loss, batches(loss), ["2", "unused"], reverse=True)
        found = operator @ torch.eye(operator.shape[0])
        assert (int((found[-2:] != 0).sum()), float(found[:-2].abs().max()) > 0) == (0, True)

    def test_loss_that_is_linear_has_a_hessian_of_zeros(self):
        class Sum(torch.nn.Module):
            def forward(self, outputs, targets):
                return (outputs * targets).sum()

        model = torch.nn.Linear(3, 2)
        operator = hessian(model, Sum(), [(torch.ones(4, 3), torch.ones(4, 2))], reverse=True)
        assert int((operator @ torch.eye(8)).count_nonzero()) == 0

    @pytest.mark.thorough
    @pytest.mark.usefixtures("one_thread")
    def test_a_transformer_is_decomposed(self, tmp_path):
        torch.manual_seed(0)
        model, loss = WithAttention().double().eval(), torch.nn.CrossEntropyLoss()
        operator = hessian(model, loss, self.data("attention"), reverse=True)
        found = ooc.eigh(operator, measurements=25, run_dir=tmp_path / "run")
        there = torch.linalg.eigvalsh(operator @ torch.eye(operator.shape[0], dtype=torch.float64))
        off = (found.eigenvalues[:5, None] - there).abs().min(dim=1).values
        assert bool((off <= 2 * found.residuals[:5]).all())

    @pytest.mark.parametrize(
        ("network", "message"),
        [("GroupNorm", "forward over reverse differentiation fails.*leave reverse out"),
         ("LayerNorm", "forward over reverse differentiation is off by.*leave reverse out")],
    )  # fmt: skip
    def test_forward_over_reverse_is_refused_where_it_is_wrong(self, network, message):
        torch.manual_seed(0)
        model, loss = NETWORKS[network]().double().eval(), torch.nn.CrossEntropyLoss()
        with pytest.raises(OperatorError, match=message):
            hessian(model, loss, self.data(network), reverse=False)

    def test_forward_over_reverse_is_taken_where_it_is_right(self, model):
        loss = torch.nn.CrossEntropyLoss()
        data, eye = batches(loss), torch.eye(39)
        forward = hessian(model, loss, data, reverse=False)
        torch.testing.assert_close(
            forward @ eye, hessian(model, loss, data) @ eye, atol=1e-6, rtol=1e-4
        )
        assert "forward over reverse" in forward.remarks[-1]


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes how many entries the largest tensor has that torch makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.entries = max(self.entries, one.numel())
        return made


class Language(torch.nn.Module):
    """A model with a large vocabulary, whose layer is computed again in the backward pass."""

    def __init__(self, words, width=4):
        super().__init__()
        self.embedding = torch.nn.Embedding(words, width)
        self.layer = torch.nn.TransformerEncoderLayer(width, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        inner = torch.utils.checkpoint.checkpoint(
            self.layer, self.embedding(tokens), use_reentrant=False
        )
        return inner @ self.embedding.weight.mT


class TestLargeOutputs:
    """A Gauss-Newton matrix whose outputs are larger than the parameters."""

    WORDS, LENGTH, ROWS = 500, 32, 6

    @pytest.fixture
    def operator_of(self):
        torch.manual_seed(0)
        model = Language(self.WORDS).eval()
        tokens = torch.randint(self.WORDS, (self.ROWS, self.LENGTH))
        labels = torch.randint(self.WORDS, (self.ROWS, self.LENGTH))
        labels[1:, 20:] = -100

        def made(rows_at_once):
            return ggn_of(
                model, lambda m, batch: m(batch["tokens"]),
                lambda out, batch: torch.nn.functional.cross_entropy(
                    out.flatten(0, 1), batch["labels"].flatten()
                ),
                [{"tokens": tokens, "labels": labels}], rows_at_once=rows_at_once,
                weight_of=lambda batch: (batch["labels"] != -100).sum(),
            )  # fmt: skip

        return made

    def test_pieces_of_rows_give_the_product_of_the_whole(self, operator_of):
        whole = operator_of(None)
        columns = torch.randn(whole.shape[0], 3)
        torch.testing.assert_close(operator_of(2) @ columns, whole @ columns, rtol=1e-4, atol=1e-7)

    def test_no_more_outputs_are_in_memory_than_those_of_a_piece_and_an_inner_call(
        self, operator_of
    ):
        operator = operator_of(2).narrowed(2)
        with LargestTensor() as largest:
            operator @ torch.randn(operator.shape[0], 6)
        assert largest.entries <= 2 * 2 * self.LENGTH * self.WORDS


class TestWeights:
    """What users say of the weight of batches is held against the loss."""

    DATA = ((16, 3), (8, 5))

    @pytest.fixture
    def data(self):
        torch.manual_seed(5)
        return [(torch.randn(n, SIZES[0]), torch.randint(SIZES[2], (n,))) for n, _ in self.DATA]

    @pytest.mark.parametrize(
        "weight_of", [len, lambda batch: 1, lambda batch: len(batch[0]) ** 2, "sum"],
        ids=["entries of the pair", "one", "square", "sum"],
    )  # fmt: skip
    @pytest.mark.parametrize("loss", [torch.nn.CrossEntropyLoss(), None], ids=["known", "any"])
    def test_wrong_weights_are_refused(self, model, data, loss, weight_of):
        make = partial(hessian, model, loss, data, weight_of=weight_of)
        if loss is None:
            make = partial(cross_entropy_hessian, model, data, weight_of)
        with pytest.raises(OperatorError, match="rows of two batches"):
            make()

    def test_wrong_weights_of_the_third_batch_are_refused(self, model, data):
        weights = {16: 16, 8: 8, 5: 50}
        third = (torch.randn(5, SIZES[0]), torch.randint(SIZES[2], (5,)))
        with pytest.raises(OperatorError, match="for rows of two batches, whose loss"):
            cross_entropy_hessian(
                model, [*data, third], lambda batch: weights.get(len(batch[0]), 50)
            )

    def test_wrong_weights_are_found_within_a_batch_that_fits_no_other(self):
        torch.manual_seed(0)
        tokens = torch.nn.Embedding(7, 3)

        def mean(model, batch):
            words, targets = batch
            return torch.nn.functional.cross_entropy(
                model(words).flatten(0, 1), targets.flatten(), ignore_index=-100
            )

        data = []
        for length in (4, 6):
            targets = torch.randint(3, (6, length))
            targets[:2, 1:] = -100
            data.append((torch.randint(7, (6, length)), targets))
        with pytest.raises(OperatorError, match="weigh"):
            hessian_of(tokens, mean, data, weight_of=lambda batch: len(batch[1]))
        hessian_of(tokens, mean, data, weight_of=lambda batch: (batch[1] != -100).sum())


def cross_entropy_hessian(model, data, weight_of):
    return hessian_of(
        model, lambda m, batch: torch.nn.functional.cross_entropy(m(batch[0]), batch[1]), data,
        weight_of=weight_of,
    )  # fmt: skip


class TestNamesOfParameters:
    def test_layer_that_is_parametrised_has_its_own_names(self):
        layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        model = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
        data = [(torch.randn(4, 3), torch.randn(4, 2))]
        found = hessian(model, torch.nn.MSELoss(), data, ["0.weight"]).layout.names
        assert found == (
            "0.parametrizations.weight.original0", "0.parametrizations.weight.original1",
        )  # fmt: skip

    def test_wrapper_of_several_devices_adds_nothing_to_names(self, model):
        data = batches(torch.nn.MSELoss())
        wrapped = torch.nn.DataParallel(model)
        found = hessian(wrapped, torch.nn.MSELoss(), data, ["2"])
        assert found.layout.names == ("2.weight", "2.bias")

    def test_optimiser_stands_for_its_parameters(self, model):
        optimiser = torch.optim.SGD(model[2].parameters(), lr=0.1)
        found = hessian(model, torch.nn.MSELoss(), batches(torch.nn.MSELoss()), optimiser)
        assert found.layout.names == ("2.weight", "2.bias")


def test_frozen_base_of_half_precision_is_differentiated_in_single():
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    base = base.bfloat16().requires_grad_(False)
    model = torch.nn.Sequential(*base, Widened(), torch.nn.Linear(3, 3))
    x, y = torch.randn(6, 5).bfloat16(), torch.randint(3, (6,))
    found = hessian(model, torch.nn.CrossEntropyLoss(), [(x, y)])
    wide = copy.deepcopy(model).float()
    expected = dense_hessian_of(wide[4], wide[:4](x.float()).detach(), y)
    torch.testing.assert_close(found @ torch.eye(12), expected, rtol=1e-4, atol=1e-6)
    assert "bfloat16" in found.remarks[0]


class Widened(torch.nn.Module):
    def forward(self, x):
        return x.float()


def dense_hessian_of(layer, x, y):
    return hessian(layer, torch.nn.CrossEntropyLoss(), [(x, y)]) @ torch.eye(12)


class TestSmallLosses:
    def test_are_not_refused_for_the_few_digits_of_their_own_gradient(self):
        inputs, targets = torch.eye(3).repeat(2, 1), torch.arange(6) % 3
        model = torch.nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            model.weight.copy_(18 * torch.eye(3) + torch.arange(9.0).view(3, 3) / 9)
        loss = torch.nn.CrossEntropyLoss()
        found = hessian(model, loss, [(inputs, targets)])
        assert any("is computed in float64" in remark for remark in found.remarks)
        exact = hessian(copy.deepcopy(model).double(), loss, [(inputs.double(), targets)])
        dense, there = (one @ torch.eye(9, dtype=one.dtype) for one in (found, exact))
        torch.testing.assert_close(dense.double(), there, rtol=1e-5, atol=1e-6 * float(there.max()))


class TestRounding:
    @pytest.mark.parametrize(("scale", "is_said"), [(1.0, False), (1e3, True)])
    def test_of_products_is_said_where_bounds_leave_it_out(self, model, scale, is_said):
        loss = torch.nn.MSELoss()
        data = [(scale * x, y) for x, y in batches(loss)]
        assert ("with itself in float64 to" in hessian(model, loss, data).remarks[-1]) == is_said
