"""Estimates of trace, diagonal and norms against dense matrices, and their stated errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contents import run_contents
from operators import dense, wide_dtype
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.figures import short
from skerch_ooc.store.shards import list_shards

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 12
SHAPES = {"eigh": (110, 110), "svd": (110, 110), "wide": (60, 140)}
CASES = [("eigh", "float32"), ("eigh", "complex128"), ("svd", "float32"), ("svd", "complex128")]

Estimated = Callable[..., tuple[Any, ooc.Estimates]]


def operator(kind: str, dtype: str) -> torch.Tensor:
    return dense(SHAPES[kind], "slow", dtype, hermitian=kind == "eigh")


def decompose(folder: Path, kind: str, dtype: str, **options: Any) -> Any:
    call = ooc.eigh if kind == "eigh" else ooc.svd
    return call(operator(kind, dtype), measurements=15, run_dir=folder, **options)


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Estimated:
    """Estimates by kind, dtype and seed, with the dense matrix in double precision."""

    @cache
    def get(kind: str, dtype: str, seed: int = 0, vectors: str = "stored") -> Any:
        folder = tmp_path_factory.mktemp("run") / "run"
        decompose(folder, kind, dtype, seed=seed, vectors=vectors)
        return operator(kind, dtype).to(wide_dtype(dtype)), ooc.estimates(ooc.open_run(folder))

    return get


def of_trace(a: torch.Tensor, found: ooc.Estimates) -> tuple[float, float]:
    return abs(complex(a.trace()) - found.trace.value), found.trace.standard_error


def of_norm(a: torch.Tensor, found: ooc.Estimates) -> tuple[float, float]:
    norm = found.frobenius_norm
    return abs(float(torch.linalg.norm(a)) - norm.value), norm.standard_error


@pytest.mark.sampled(1)
@pytest.mark.parametrize("figure", [of_trace, of_norm], ids=["trace", "norm"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.soak) for case in CASES[1:3]), CASES[3]],
)
def test_errors_are_as_large_as_the_standard_error_says(estimated, kind, dtype, figure):
    errors, standard = np.array([figure(*estimated(kind, dtype, seed)) for seed in range(SEEDS)]).T
    assert (errors <= 4 * standard).all()
    assert 0.5 < np.sqrt(np.mean(errors**2) / np.mean(standard**2)) < 2


@pytest.mark.soak
def test_norm_of_a_matrix_that_is_not_square_is_as_sure_as_it_says(estimated):
    pairs = [of_norm(*estimated("wide", "float64", seed)) for seed in range(SEEDS)]
    errors, standard = np.array(pairs).T
    assert (errors <= 4 * standard).all()
    assert 0.5 < np.sqrt(np.mean(errors**2) / np.mean(standard**2)) < 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_entries_of_the_diagonal_are_as_sure_as_they_say(estimated, kind, dtype, vectors):
    a, found = estimated(kind, dtype, 0, vectors)
    values, standard = found.diagonal()
    errors = (values - a.diagonal()).abs()
    # Of Student's distribution with 19 degrees of freedom 4 is exceeded once in 1300 times.
    assert (errors > 4 * standard).sum() <= 2
    assert 0.75 < float(((errors / standard) ** 2).mean().sqrt()) < 1.4


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_diagonal_of_a_hermitian_operator_is_real(estimated, kind, dtype):
    is_complex = estimated(kind, dtype)[1].diagonal().values.is_complex()
    assert is_complex == (kind == "svd" and dtype == "complex128")


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_diagonal_sums_to_about_the_trace(estimated, kind, dtype):
    _, found = estimated(kind, dtype)
    values, standard = found.diagonal()
    # Not exactly: each entry is divided by the squares of its own row of the test matrix.
    allowed = 4 * (float(torch.linalg.norm(standard)) + found.trace.standard_error)
    assert abs(complex(values.sum()) - found.trace.value) < allowed


@pytest.mark.parametrize(("kind", "dtype"), [*CASES, ("wide", "float64")])
def test_spectral_norm_is_within_its_bound(estimated, kind, dtype):
    a, found = estimated(kind, dtype)
    norm = float(torch.linalg.matrix_norm(a, 2))
    assert abs(found.spectral_norm.value - norm) <= found.spectral_norm.error


def test_bound_of_the_spectral_norm_is_the_error_of_the_assessment(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64")
    run = ooc.open_run(tmp_path / "run")
    assert ooc.estimates(run).spectral_norm.error == ooc.assess(run).error


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_decomposition_makes_the_trace_surer(estimated, kind, dtype):
    a, found = estimated(kind, dtype)
    # Of random vectors alone: the variance is twice, or if complex once, the squared norm.
    plain = float(torch.linalg.norm(a)) * ((1 if a.is_complex() else 2) / 20) ** 0.5
    assert found.trace.standard_error < 0.6 * plain


@pytest.mark.covered(1)
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_implicit_vectors_give_the_same_estimates(estimated, kind, dtype):
    (_, stored), (_, implicit) = (estimated(kind, dtype, 0, v) for v in ("stored", "implicit"))
    limit = 1e-6 if dtype == "float32" else 1e-12
    pairs = [(stored.trace, implicit.trace), (stored.frobenius_norm, implicit.frobenius_norm)]
    assert [abs(a.value - b.value) < limit for a, b in pairs] == [True, True]
    assert [a.standard_error == pytest.approx(b.standard_error, rel=1e-4) for a, b in pairs] == [
        True,
        True,
    ]


@pytest.mark.parametrize("rank", [40, 110], ids=["of low rank", "seen whole"])
def test_operator_that_is_known_is_estimated_to_rounding(tmp_path, rank):
    spectrum = "rank 30" if rank == 40 else "slow"
    a = dense((110, 110), spectrum, "float64")
    ooc.eigh(a, measurements=rank, run_dir=tmp_path / "run", noise="gaussian")
    found = ooc.estimates(ooc.open_run(tmp_path / "run"))
    assert found.trace.value == pytest.approx(float(a.trace()), abs=1e-9)
    assert found.frobenius_norm.value == pytest.approx(float(torch.linalg.norm(a)), abs=1e-9)
    torch.testing.assert_close(found.diagonal().values, a.diagonal(), rtol=0, atol=1e-9)


class Tall:
    """A symmetric operator of 9000 rows, of which the diagonal is known."""

    shape, dtype = (9000, 9000), torch.float32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.q = torch.linalg.qr(torch.randn(9000, 30, generator=generator))[0]
        self.entries = torch.rand(9000, generator=generator)
        self.diagonal = (self.entries + 50 * (self.q**2).sum(1)).double()

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.entries[:, None] * x + 50 * self.q @ (self.q.T @ x)


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tall, ooc.Run]:
    folder = tmp_path_factory.mktemp("tall") / "run"
    operator = Tall()
    ooc.eigh(operator, measurements=60, run_dir=folder)
    return operator, ooc.open_run(folder)


def test_rows_beyond_one_tile_are_estimated(tall):
    operator, run = tall
    found = ooc.estimates(run)
    values, standard = found.diagonal()
    errors = (values - operator.diagonal).abs()
    assert 0.75 < float(((errors / standard) ** 2).mean().sqrt()) < 1.4
    assert abs(found.trace.value - float(operator.diagonal.sum())) < 4 * found.trace.standard_error


def test_memory_and_threads_do_not_change_a_bit(tall):
    _, run = tall
    one, two = (ooc.estimates(run, memory=memory, threads=threads)
                for memory, threads in ((None, 1), ("3GiB", 2)))  # fmt: skip
    assert one == two
    assert torch.equal(one.diagonal().values, two.diagonal().values)
    assert torch.equal(one.diagonal().standard_errors, two.diagonal().standard_errors)


def test_too_little_memory_is_refused_with_what_is_needed(tall):
    with pytest.raises(ooc.UsageError, match="too little: estimate needs"):
        ooc.estimates(tall[1], memory="1MiB")


def test_test_columns_that_chose_the_core_are_left_out(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64", test_measurements=9)
    run = ooc.open_run(tmp_path / "run")
    ooc.recover(run, core=12, name="twelve")
    counts = [ooc.estimates(run, name).test_measurements for name in ("default", "twelve")]
    assert counts == [6, 9]


def test_one_test_column_has_no_standard_error(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64", test_measurements=1)
    found = ooc.estimates(ooc.open_run(tmp_path / "run"))
    assert (found.trace.standard_error, found.frobenius_norm.standard_error) == (None, None)
    assert found.diagonal().standard_errors.isnan().all()
    assert found.diagonal().values.isfinite().all()


def test_without_test_columns_there_are_no_estimates(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64", test_measurements=0)
    found = ooc.estimates(ooc.open_run(tmp_path / "run"))
    assert found == ooc.Estimates(None, None, None, 0)
    with pytest.raises(ooc.UsageError, match="test_measurements"):
        found.diagonal()


def test_what_is_not_square_has_no_trace_and_no_diagonal(estimated):
    _, found = estimated("wide", "float64")
    assert found.trace is None
    with pytest.raises(ooc.UsageError, match="60 x 140: it has no diagonal"):
        found.diagonal()


def test_result_that_is_not_there_is_incomplete(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64")
    with pytest.raises(ooc.IncompleteError, match=r"recover .* --name other"):
        ooc.estimates(ooc.open_run(tmp_path / "run"), "other")


@pytest.mark.usefixtures("no_late_files")
def test_shards_that_are_gone_are_named(tmp_path):
    decompose(tmp_path / "run", "eigh", "float64")
    run = ooc.open_run(tmp_path / "run")
    test = next(shard for shard in list_shards(run.shards) if shard.role == "test")
    (run.shards / test.name).unlink()
    with pytest.raises(ooc.IncompleteError, match=r"30 of 30 columns .* the call in Python"):
        ooc.estimates(run)


@pytest.mark.covered(1)
@pytest.mark.parametrize("method", ["singlepass", "oversampled", "hmt"])
@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_every_method_serves(tmp_path, kind, method):
    decompose(tmp_path / "run", kind, "float64", method=method)
    a, found = operator(kind, "float64"), ooc.estimates(ooc.open_run(tmp_path / "run"))
    pairs = [of_trace(a, found), of_norm(a, found)]
    assert [error <= 4 * standard for error, standard in pairs] == [True, True]


def test_estimating_changes_no_file(tmp_path):
    decompose(tmp_path / "run", "svd", "float64")
    before = run_contents(tmp_path / "run")
    ooc.estimates(ooc.open_run(tmp_path / "run")).diagonal()
    assert run_contents(tmp_path / "run") == before


@pytest.mark.parametrize(("kind", "dtype"), [*CASES, ("wide", "float64")])
def test_json_has_all_figures(estimated, kind, dtype):
    _, found = estimated(kind, dtype)
    shown = json.loads(json.dumps(found.as_json()))
    assert shown.keys() == {"trace", "frobenius_norm", "spectral_norm", "test_measurements"}
    assert shown["spectral_norm"]["value"] == found.spectral_norm.value
    value = shown["trace"] and shown["trace"]["value"]
    assert (type(value), np.size(value)) == {
        "wide": (type(None), 1), "eigh": (float, 1),
        "svd": (list, 2) if dtype == "complex128" else (float, 1),
    }[kind]  # fmt: skip


def test_spectral_norm_of_pairs_is_off_by_the_bound_of_the_largest(tmp_path):
    a = torch.diag(1 / torch.arange(1.0, 201))
    eig = ooc.eigh(a, rank=3, pairs_tolerance=1e-4, round_width=8, run_dir=tmp_path / "run")
    found = ooc.estimates(ooc.open_run(tmp_path / "run"))
    assert found.spectral_norm.error == pytest.approx(float(eig.bounds[0]), rel=1e-6)


def test_command_line_shows_and_prints_the_estimates(inside, tmp_path):
    spec = write_spec(tmp_path, "matrix", 40)
    inside("run", spec, "--run", "run")
    table = inside("estimates", "run").stdout
    shown = json.loads(inside("estimates", "run", "--json").stdout)
    assert f"{short(shown['trace']['value'], 7)}, standard error" in table
    assert "Frobenius norm" in table
    assert "off by at most about" in table
    assert max(map(len, table.splitlines())) <= 80


def test_command_line_says_that_there_is_nothing_to_estimate_from(inside, tmp_path):
    spec = write_spec(tmp_path, "matrix", 40, sketch={"test_measurements": 0})
    inside("run", spec, "--run", "run")
    done = inside("estimates", "run")
    assert (done.returncode, "no test vectors" in done.stdout) == (0, True)
