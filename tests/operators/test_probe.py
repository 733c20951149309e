"""Probing: what an operator is like and what a run would cost, at no trace."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.resources import SPARE_BYTES
from skerch_ooc.cli.tables import probe_table
from skerch_ooc.operators import probe
from skerch_ooc.operators.adapters import Product
from skerch_ooc.pipeline.start import probe_spec


@pytest.fixture
def product():
    return Product(torch.eye(300), "float32", "cpu")


def widths(monkeypatch, product, seconds_of_column=0.0, bytes_of_column=0, **limits):
    """The widths of the blocks that are timed, if columns cost so much."""

    def timed(product, x):
        columns = x.shape[1]
        return x, columns * seconds_of_column, columns * bytes_of_column

    monkeypatch.setattr(probe, "timed", timed)
    monkeypatch.setattr(probe, "peak_memory", lambda: 0)
    limits = {"seconds": 1e9, "memory": 1 << 60} | limits
    return [timing.columns for timing in probe.timings(product, 1, **limits)]


def test_blocks_are_timed_up_to_the_size_of_the_operator(monkeypatch, product):
    assert widths(monkeypatch, product) == [1, 4, 16, 64, 256]


def test_no_call_is_begun_that_would_take_too_long(monkeypatch, product):
    assert widths(monkeypatch, product, seconds_of_column=1.0, seconds=20.0) == [1, 4, 16]


def test_no_call_is_begun_that_would_take_too_much_memory(monkeypatch, product):
    assert widths(monkeypatch, product, bytes_of_column=1000, memory=5000) == [1, 4]


def test_command_tells_what_plan_would_and_what_blocks_take(inside, tmp_path, call_log):
    spec = write_spec(tmp_path, "matrix", 40)
    done = inside("probe", spec)
    assert done.returncode == 0
    products = sum(call["width"] for call in call_log())
    assert f"{products} products: asymmetry" in done.stdout
    assert "70, in 2 tasks" in done.stdout
    assert "recommended  sketch.block = " in done.stdout
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[-4:]] == ["1", "4", "16", "64"]


def test_probe_leaves_nothing_behind(inside, tmp_path):
    spec = write_spec(tmp_path, "matrix", 40)
    before = sorted(tmp_path.rglob("*"))
    inside("probe", spec)
    assert sorted(tmp_path.rglob("*")) == before


def test_json_has_all_figures(inside, tmp_path):
    figures = json.loads(inside("probe", write_spec(tmp_path, "matrix", 40), "--json").stdout)
    assert figures["shape"] == [200, 200]
    assert figures["findings"]["norm"] > 0
    assert figures["costs"]["products"] == 70
    assert figures["timings"][0].keys() == {"columns", "seconds", "bytes"}


def test_recommended_block_does_not_follow_what_the_spec_asks_for():
    spec = {"measurements": 40, "sketch": {"block": 3}}
    assert probe_spec(spec, operator=torch.eye(200)).block > 3


def test_no_more_workers_are_recommended_than_there_are_cores(monkeypatch):
    probed = probe_spec({"measurements": 40, "sketch": {"block": 3}}, operator=torch.eye(200))
    many = replace(probed, costs=replace(probed.costs, useful_workers=5000))
    monkeypatch.setattr("skerch_ooc.cli.tables.available_cores", lambda: 3)
    assert "--workers 3 at most" in " ".join(probe_table(many).split())


def test_width_that_the_spec_asks_for_is_what_is_costed():
    spec = {"measurements": 40, "sketch": {"block": 3}}
    assert probe_spec(spec, operator=torch.eye(200)).costs.tasks == 14 + 10


@pytest.mark.parametrize(
    ("factory", "text"),
    [("not_hermitian", "Hermitian"), ("noisy", "two calls"), ("nobody", "nobody")],
)
def test_operator_that_cannot_be_trusted_is_refused_as_plan_would(inside, tmp_path, factory, text):
    done = inside("probe", write_spec(tmp_path, factory, 40))
    assert (done.returncode, text in done.stderr) == (2, True)


def largest(x):
    return x.abs().amax(0, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "dtype", "apply"),
    [
        ("eigh", torch.float64, torch.sign),
        ("eigh", torch.float64, lambda x: x.clamp(-0.9, 0.9)),
        ("eigh", torch.float32, lambda x: x + 1e-3 * x**3),
        ("eigh", torch.float32, lambda x: x * largest(x) / x.norm(dim=0, keepdim=True)),
        ("svd", torch.float32, lambda x: x + 1),
        ("svd", torch.float64, torch.abs),
        ("eigh", torch.complex64, torch.conj_physical),
        ("eigh", torch.complex128, lambda x: x.real + 0j),
    ],
    ids=["sign", "limit", "cubic", "normalised", "affine", "absolute", "conjugate", "real-part"],
)
def test_operator_that_is_not_linear_is_refused(kind, dtype, apply):
    class Operator:
        shape = (60, 60)

        def __matmul__(self, x):
            return apply(x)

        adjoint = lambda self: self  # noqa: E731

    product = Product(Operator(), str(dtype).removeprefix("torch."), "cpu")
    with pytest.raises(ooc.OperatorError, match="is not linear: A"):
        probe.probe(product, 1, kind == "eigh")


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_double_precision_that_is_computed_in_single_is_told_as_such(kind):
    class Operator:
        shape, dtype = (300, 300), torch.float64
        matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
        matrix = matrix + matrix.T

        def __matmul__(self, x):
            return (self.matrix @ x.float()).double()

        adjoint = lambda self: self  # noqa: E731

    with pytest.raises(ooc.OperatorError, match='give dtype = "float32" if the operator comp'):
        probe.probe(Product(Operator(), "float64", "cpu"), 1, kind == "eigh")


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("rank", [1, 40])
def test_matrix_is_linear_to_rounding_however_its_products_cancel(dtype, rank):
    x = torch.linalg.qr(torch.ones(300, rank, dtype=getattr(torch, dtype)).cumsum(1).cumsum(0))[0]
    found, _ = probe.probe(Product(x @ x.mH, dtype, "cpu"), 1, hermitian=True)
    assert found.repetition < 1e-6


def test_spec_without_an_operator_is_refused():
    with pytest.raises(ooc.UsageError, match=r"operator\.factory is missing"):
        probe_spec({"measurements": 40, "operator": {"shape": [99, 99]}})


def test_probe_of_a_slow_operator_says_that_it_takes_long(monkeypatch, caplog):
    monkeypatch.setattr("skerch_ooc.operators.probe._LONG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, logger="skerch_ooc")
    probe.probe(Product(torch.eye(40), "float32", "cpu"), 1, hermitian=True)
    assert "it is probed by 17 more" in caplog.text


@pytest.mark.parametrize("kind", ["eigh", "svd"])
@pytest.mark.parametrize(("columns", "widest"), [(1, 2), (5, 5), (100, 16)])
def test_probe_applies_fewer_vectors_at_once_where_memory_is_little(
    monkeypatch, kind, columns, widest
):
    widths, held = [], 10**9
    monkeypatch.setattr("skerch_ooc.operators.probe.resident_memory", lambda: held)
    monkeypatch.setattr("skerch_ooc.operators.probe.peak_memory", lambda: held)

    class Counted:
        shape, dtype = (400, 400), torch.float32

        def __matmul__(self, x):
            widths.append(x.shape[1])
            return 2 * x

        adjoint = lambda self: self  # noqa: E731

    # Three times a vector on each side, in single precision.
    memory = held + SPARE_BYTES + columns * 3 * 800 * 4
    product = Product(Counted(), "float32", "cpu")
    _, fingerprint = probe.probe(product, 1, kind == "eigh", memory)
    assert max(widths) == widest
    assert fingerprint == probe.probe(product, 1, kind == "eigh")[1]


@pytest.mark.parametrize(("method", "said"), [("nystrom", True), ("krylov", False)])
def test_storage_is_recommended_to_methods_that_take_it(inside, tmp_path, method, said):
    spec = write_spec(tmp_path, "diagonal", 40, operator={"args": {"n": 300}},
                      recovery={"method": method})  # fmt: skip
    assert ("storage = " in inside("probe", spec).stdout) == said
