"""Formulas for functions of torch: against torch's own functions and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from skerch_ooc.operators.derivatives.formulas import _TABLE, Formulas
from skerch_ooc.operators.derivatives.products import linear_in

TOKENS = torch.tensor([[0, 2, -100], [1, 1, 3]])
MASK = torch.ones(3, 3, dtype=torch.bool).tril()


def cross_entropy(*args, **kwargs):
    return lambda x: F.cross_entropy(x, *args, **kwargs)


def attention(**kwargs):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **kwargs)


def norm(function, *args, **kwargs):
    """A normalisation of ``x`` by weight and bias."""
    return lambda x, w, b: function(x, *args, weight=w, bias=b, **kwargs)


def normalized_rows(v, g):
    return F.normalize(v) * g


RUNNING = (torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double())
NORMS = [(2, 4, 3), (4,), (4,)]
HEADS = [(2, 2, 3, 4)] * 3

CASES = {
    "conv1d": (F.conv1d, [(2, 3, 7), (4, 3, 3), (4,)]),
    "conv2d": (F.conv2d, [(2, 3, 5, 4), (4, 3, 3, 2), (4,)]),
    "conv2d, no bias": (F.conv2d, [(2, 3, 5, 4), (4, 3, 3, 2)]),
    "conv2d, options": (
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1, dilation=2, groups=2),
        [(2, 4, 6, 5), (2, 2, 2, 2), (2,)],
    ),
    "conv2d, same": (
        lambda x, w: F.conv2d(x, w, padding="same"), [(2, 2, 4, 4), (2, 2, 3, 3)],
    ),
    "conv2d, no batch": (F.conv2d, [(3, 5, 4), (4, 3, 3, 2), (4,)]),
    "conv2d, depthwise": (
        lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=3), [(2, 3, 4, 4), (3, 1, 3, 3), (3,)],
    ),
    "conv3d": (lambda x, w: F.conv3d(x, w, stride=2), [(1, 2, 3, 3, 3), (2, 2, 2, 2, 2)]),
    "linear": (F.linear, [(5, 3), (4, 3), (4,)]),
    "linear, no bias": (F.linear, [(2, 5, 3), (4, 3)]),
    "linear, 4 dimensions": (F.linear, [(2, 1, 2, 3), (4, 3), (4,)]),
    "linear, vector": (F.linear, [(3,), (4, 3), (4,)]),
    "linear, one output": (F.linear, [(2, 3), (3,)]),
    "relu": (F.relu, [(3, 4)]),
    "relu, in place": (lambda x: F.relu(x * 2, inplace=True), [(3, 4)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), [(2, 3, 6, 5)]),
    "max_pool2d, options": (
        lambda x: F.max_pool2d(x, (2, 3), padding=(0, 1), dilation=(1, 2)), [(3, 6, 6)],
    ),
    "max_pool2d, places": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], [(2, 3, 4, 4)]),
    "gelu": (F.gelu, [(3, 4)]),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), [(3, 4)]),
    "silu": (F.silu, [(3, 4)]),
    "silu, in place": (lambda x: F.silu(x * 2, inplace=True), [(3, 4)]),
    "softmax": (lambda x: F.softmax(x, dim=1), [(2, 3, 2)]),
    "softmax, method": (lambda x: x.softmax(-1), [(2, 3)]),
    "softmax, dtype": (lambda x: F.softmax(x, 1, dtype=torch.float64), [(2, 3)]),
    "log_softmax": (lambda x: F.log_softmax(x, dim=1), [(2, 3, 2)]),
    "log_softmax, method": (lambda x: x.log_softmax(0), [(2, 3)]),
    "log_softmax, dtype": (lambda x: torch.log_softmax(x, 1, torch.float64), [(2, 3)]),
    "layer_norm": (norm(F.layer_norm, (4,)), [(2, 3, 4), (4,), (4,)]),
    "layer_norm, 2 dimensions": (norm(F.layer_norm, (3, 4)), [(2, 3, 4), (3, 4), (3, 4)]),
    "layer_norm, no bias": (lambda x, w: F.layer_norm(x, (4,), w), [(2, 3, 4), (4,)]),
    "layer_norm, one row": (norm(F.layer_norm, (4,)), [(4,)] * 3),
    "layer_norm, plain": (lambda x: F.layer_norm(x, (4,)), [(3, 4)]),
    "group_norm": (norm(F.group_norm, 2), NORMS),
    "group_norm, plain": (lambda x: F.group_norm(x, 2), [(2, 4, 2, 2)]),
    "batch_norm": (norm(F.batch_norm, *RUNNING), NORMS),
    "batch_norm, images": (norm(F.batch_norm, *RUNNING), [(2, 4, 2, 2), (4,), (4,)]),
    "batch_norm, plain": (lambda x: F.batch_norm(x, *RUNNING), [(3, 4)]),
    "batch_norm, training": (norm(F.batch_norm, None, None, training=True), NORMS),
    "instance_norm, running": (
        lambda x, w, b: F.instance_norm(x, *RUNNING, w, b, use_input_stats=False), NORMS,
    ),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b), NORMS),
    "attention": (attention(), HEADS),
    "attention, causal": (attention(is_causal=True, scale=0.3), HEADS),
    "attention, mask": (attention(attn_mask=MASK), HEADS),
    "attention, a row that sees nothing": (
        attention(attn_mask=MASK & (torch.arange(3) != 1)[:, None]), HEADS,
    ),
    "attention, sums": (attention(attn_mask=torch.arange(9.0).double().view(3, 3)), HEADS),
    "attention, groups": (
        attention(enable_gqa=True), [(1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2)],
    ),
    "attention, other lengths": (attention(is_causal=True), [(2, 3, 4), (2, 5, 4), (2, 5, 2)]),
    "weight_norm": (torch._weight_norm, [(3, 4), (3, 1)]),
    "mse_loss": (F.mse_loss, [(3, 4), (3, 4)]),
    "mse_loss, none": (lambda x, y: F.mse_loss(x, y, reduction="none"), [(3, 4), (3, 4)]),
    "mse_loss, sum": (lambda x, y: F.mse_loss(x, y, reduction="sum"), [(3, 4), (3, 4)]),
    "cross_entropy": (cross_entropy(torch.tensor([1, 0])), [(2, 4)]),
    "cross_entropy, tokens": (cross_entropy(TOKENS), [(2, 4, 3)]),
    "cross_entropy, sum": (cross_entropy(TOKENS % 4, reduction="sum", ignore_index=1), [(2, 4, 3)]),
    "cross_entropy, none": (cross_entropy(TOKENS, reduction="none"), [(2, 4, 3)]),
    "cross_entropy, weights": (
        cross_entropy(TOKENS, weight=torch.arange(1.0, 5.0).double()), [(2, 4, 3)],
    ),
    "cross_entropy, no batch": (cross_entropy(torch.tensor(2)), [(4,)]),
    "cross_entropy, smoothed": (cross_entropy(TOKENS, label_smoothing=0.1), [(2, 4, 3)]),
    "cross_entropy, probabilities": (
        lambda x, y: F.cross_entropy(x, y.softmax(1)), [(3, 4), (3, 4)],
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    """A function, and inputs that require gradients."""
    function, shapes = CASES[request.param]
    generator = torch.Generator().manual_seed(3)
    return function, tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )


def ours(function):
    """The function, by our formulas."""

    def computed(*inputs):
        with Formulas():
            return function(*inputs)

    return computed


def functions_of(function, inputs):
    """Values, gradients and products of both kinds, all from the same graph."""
    with sdpa_kernel(SDPBackend.MATH):
        value = function(*inputs)
    generator = torch.Generator().manual_seed(4)

    def drawn(*shapes):
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    (weight,) = drawn(value.shape)
    given = torch.zeros_like(value, requires_grad=True)
    options = {"create_graph": True, "materialize_grads": True}
    gradients = torch.autograd.grad((weight * value.sin()).sum(), inputs, **options)
    pulled = torch.autograd.grad(value, inputs, given, **options)
    columns = [drawn(*(one.shape for one in inputs)) for _ in range(3)]
    outputs = [drawn(value.shape) for _ in range(3)]
    return [value, *gradients], [
        (gradients, inputs, columns), (pulled, [given], columns), ([value], inputs, outputs),
    ]  # fmt: skip


def products(values, sources, columns):
    """Products with each column alone, stacked."""
    found = [
        torch.autograd.grad(values, sources, v, retain_graph=True, materialize_grads=True)
        for v in columns
    ]
    return [torch.stack(several) for several in zip(*found, strict=True)]


def products_at_once(values, sources, columns):
    """Products with all columns at once, by the engine."""
    stacked = [torch.stack(several) for several in zip(*columns, strict=True)]
    return torch.autograd.grad(
        values, sources, stacked, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )


def products_by_rules(values, sources, columns):
    """The same by ``vmap``, for which each formula needs a rule."""

    def pulled(*column):
        return torch.autograd.grad(
            values, sources, column, retain_graph=True, materialize_grads=True
        )

    return torch.vmap(pulled)(*(torch.stack(several) for several in zip(*columns, strict=True)))


def test_values_and_derivatives_are_those_of_torch(case):
    function, inputs = case
    values, linear = functions_of(ours(function), inputs)
    if function is torch._weight_norm:  # Torch's own second derivative is wrong.
        function = normalized_rows
    expected_values, expected_linear = functions_of(function, inputs)
    for found, expected in zip(values, expected_values, strict=True):
        torch.testing.assert_close(found, expected)
    for some, others in zip(linear, expected_linear, strict=True):
        expected = products(*others)
        for taken in products, products_at_once, products_by_rules:
            found = taken(*some)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)


def test_derivatives_are_those_of_finite_differences(case):
    function, inputs = case
    with sdpa_kernel(SDPBackend.MATH):
        assert gradcheck(ours(function), inputs, fast_mode=True)
        assert gradgradcheck(ours(function), inputs, fast_mode=True)


@pytest.mark.sampled(20)
def test_third_derivatives_are_those_of_finite_differences(case):
    """Of losses that contain derivatives. (Torch's own are wrong for layer_norm.)"""
    function, inputs = case

    def gradients(*args):
        value = ours(function)(*args).sin().sum()
        found = torch.autograd.grad(value, args, create_graph=True, materialize_grads=True)
        return tuple(one for one in found if one.requires_grad)

    with sdpa_kernel(SDPBackend.MATH):
        assert gradgradcheck(gradients, inputs, fast_mode=True)


@pytest.mark.parametrize("chosen", range(3))
@pytest.mark.parametrize("name", ["conv2d", "linear", "layer_norm", "batch_norm", "attention"])
def test_one_input_alone_is_differentiated(name, chosen):
    function, shapes = CASES[name]
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    inputs[chosen].requires_grad_()

    def dense(some):
        return torch.autograd.functional.hessian(
            lambda a: some(*inputs[:chosen], a, *inputs[chosen + 1 :]).sin().sum(), inputs[chosen]
        )

    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(dense(ours(function)), dense(function))


def test_running_statistics_are_left_alone():
    model = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Formulas():
        found = model(torch.randn(5, 3))
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(before["running_mean"], model.running_mean)
    assert torch.equal(before["running_var"], model.running_var)


def test_every_formula_is_tested(monkeypatch):
    used = set()

    def noting(formula):
        def computed(*args, **kwargs):
            found = formula(*args, **kwargs)
            used.update([] if found is NotImplemented else [formula])
            return found

        return computed

    formulas = set(_TABLE.values())
    for function, formula in list(_TABLE.items()):
        monkeypatch.setitem(_TABLE, function, noting(formula))
    for function, shapes in CASES.values():
        ours(function)(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))
    ours(F.binary_cross_entropy_with_logits)(torch.randn(3), torch.rand(3))
    assert used == formulas


LABELS = torch.arange(6) % 3
SMALL_LOSSES = {
    "cross_entropy": cross_entropy(LABELS),
    "cross_entropy, smoothed": cross_entropy(LABELS, label_smoothing=1e-6),
    "log_softmax": lambda x: F.nll_loss(x.log_softmax(1), LABELS),
    "binary": lambda x: F.binary_cross_entropy_with_logits(x, F.one_hot(LABELS, 3).to(x.dtype)),
}


@pytest.mark.parametrize("name", SMALL_LOSSES)
def test_a_small_loss_keeps_the_digits_of_its_outputs(name):
    """In single precision 1 - p of a probability near 1 has few."""
    x = 12.0 * F.one_hot(LABELS, 3) + torch.arange(18.0).view(6, 3) / 18 - 6
    loss = ours(SMALL_LOSSES[name])
    found, exact = (
        torch.autograd.functional.hessian(loss, some).double() for some in (x, x.double())
    )
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7 * float(exact.abs().max()))


class Square(torch.autograd.Function):
    """A user's function, whose gradient is another function; ``vmap`` has no rule for that."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(x)
        ctx.order = order
        return x**2 if order == 0 else 2 * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (Square.apply(x, 1) if ctx.order == 0 else 2), None


@pytest.mark.parametrize(
    "function",
    [torch.sin, F.mish, lambda x: Square.apply(x, 0)],
    ids=["with a rule", "by a loop", "without a rule"],
)
@pytest.mark.filterwarnings("error")
def test_several_columns_at_once_are_those_of_each(function):
    """Also where ``vmap`` loops, of which nothing is said, and where it has no rule."""
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    columns = torch.randn(3, 4, dtype=torch.float64)
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    for values in function(x), slope:
        apply = linear_in([values], [x])
        expected = torch.stack([apply([column], False)[0] for column in columns])
        for _ in range(2):
            torch.testing.assert_close(apply([columns], True)[0], expected)
