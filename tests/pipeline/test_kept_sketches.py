"""``hmt`` makes its results of the sketches of all its rounds, where the plan says so."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from contents import run_contents
from operators import DTYPES, Operator, dense, relative_error

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.files import canonical_line, digest
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.methods import Method
from skerch_ooc.store.sketch import known_rounds

N = 1500
SIGNS = np.where(np.arange(N) * 7919 % 13 < 6, -1.0, 1.0)
SPECTRA = {
    "1/i": 1 / (1.0 + np.arange(N)),
    "1/i of mixed signs": SIGNS / (1.0 + np.arange(N)),
    "10^(-.02 i)": 10 ** (-0.02 * np.arange(N)),
    "10^(-.02 i) of mixed signs": SIGNS * 10 ** (-0.02 * np.arange(N)),
    "10^(-.1 i) of mixed signs": SIGNS * 10 ** np.maximum(-0.1 * np.arange(N), -300),
    "1/i^2 of mixed signs": SIGNS / (1.0 + np.arange(N)) ** 2,
    "60 outliers": SIGNS * np.where(np.arange(N) < 60, 1, 0.01),
    "i^(-1/2) of mixed signs": SIGNS / (1.0 + np.arange(N)) ** 0.5,
}
CASES = [("eigh", 0), ("eigh", 1), ("eigh", 2), ("svd", 1), ("svd", 2)]
ROUNDS = {"eigh": 1, "svd": 2}


class Diagonal:
    """An operator that multiplies rows by numbers."""

    def __init__(self, values, dtype):
        self.dtype = getattr(torch, dtype)
        self.values = torch.from_numpy(values).to(self.dtype)
        self.shape = (len(values),) * 2

    def __matmul__(self, x):
        return self.values[:, None] * x

    def adjoint(self):
        return self


def error_of(found, values):
    """``||A - Ahat||_F / ||A||_F`` of a diagonal operator."""
    if hasattr(found, "eigenvalues"):
        left = right = found.eigenvectors[:].double().numpy()
        middle = found.eigenvalues.numpy()
    else:
        left, middle = found.U[:].double().numpy(), found.S.numpy()
        right = found.Vh[:].double().numpy().T
    missed = -(left * middle) @ right.T
    missed[np.diag_indices(len(values))] += values
    return np.linalg.norm(missed) / np.linalg.norm(values)


@pytest.fixture(scope="module")
def error(tmp_path_factory):
    """The error at so many products, with the sketches of all rounds, or of the last only."""

    @cache
    def found(spectrum, products, kind, powers, dtype="float32", *, kept=True):
        with pytest.MonkeyPatch.context() as patch:
            if not kept:
                patch.setattr(Method, "keeps_sketches", lambda *_: False)
            result = getattr(ooc, kind)(
                Diagonal(SPECTRA[spectrum], dtype),
                measurements=products // (2 + ROUNDS[kind] * powers),
                run_dir=tmp_path_factory.mktemp("of") / "run",
                method="hmt",
                power_iterations=powers,
            )
            return error_of(result, SPECTRA[spectrum])

    return found


class TestError:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(
        ("spectrum", "products", "most"),
        [("1/i", 256, 0.08), ("1/i of mixed signs", 256, 0.09), ("10^(-.02 i)", 128, 0.02)],
    )
    @pytest.mark.parametrize("powers", [0, 1])
    def test_is_small_for_the_products(self, error, spectrum, products, most, powers):
        assert error(spectrum, products, "eigh", powers) <= most

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_is_never_larger_than_of_the_last_round_alone(
        self, error, spectrum, kind, powers, dtype
    ):
        given = (spectrum, 240, kind, powers, dtype)
        assert error(*given) <= error(*given, kept=False)


def made(folder, matrix, kind="eigh", powers=0, **more):
    more = {"measurements": 24, "test_measurements": 12} | more
    operator = Operator(matrix)
    return getattr(ooc, kind)(
        operator, run_dir=folder / "run", method="hmt", power_iterations=powers, **more
    )


def plan_of(run):
    return json.loads((run / "plan.d/0001.json").read_text())


def applied(run):
    """The test vectors of all rounds of a Hermitian operator, in order."""
    *_, last = known_rounds(run)
    identity = run.plan.identity
    rows, columns = Range(0, identity.shape[0]), Range(0, run.plan.reach("right"))
    noise = identity.noise["right"]
    yield draw(noise, identity.seed, "right", rows, columns, identity.dtype)
    for basis in last.bases.values():
        yield basis.matrix.read(rows, Range(0, basis.columns))


class TestResult:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    def test_of_low_rank_is_exact(self, tmp_path, dtype, kind, powers):
        matrix = dense((150, 150) if kind == "eigh" else (190, 130), "rank 30", dtype,
                       hermitian=kind == "eigh")  # fmt: skip
        found = made(tmp_path, matrix, kind, powers, measurements=40)
        exact = 2e-6 if dtype in ("float32", "complex64") else 1e-13
        assert relative_error(found, matrix) < exact

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    def test_of_more_columns_than_the_operator_has_is_exact(self, tmp_path, dtype, kind, powers):
        matrix = dense((14, 14), "slow", dtype, hermitian=kind == "eigh")
        found = made(tmp_path, matrix, kind, powers, measurements=10)
        assert relative_error(found, matrix) < (
            5e-6 if dtype in ("float32", "complex64") else 1e-12
        )

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("scale", [1e-15, 1e15])
    @pytest.mark.parametrize(("kind", "powers"), [("eigh", 0), ("eigh", 1), ("svd", 1)])
    def test_does_not_depend_on_the_scale_of_the_operator(self, tmp_path, scale, kind, powers):
        matrix = dense((150, 150), "slow", "float32", hermitian=kind == "eigh")
        errors = [
            relative_error(made(tmp_path / str(size), matrix * size, kind, powers), matrix * size)
            for size in (1.0, scale)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=1e-2)

    def test_is_the_nystrom_approximation_of_all_test_vectors(self, tmp_path):
        matrix = dense((150, 150), "slow", "complex128")
        found = made(tmp_path, matrix, powers=1)
        run = ooc.open_run(tmp_path / "run")
        x = np.concatenate(list(applied(run)), axis=1)
        y = matrix.numpy() @ x
        root = np.linalg.svd(x, full_matrices=False)
        b = root[2].conj().T / root[1]
        values, vectors = np.linalg.eigh(b.conj().T @ x.conj().T @ y @ b)
        kept = np.argsort(-abs(values))[: found._file.identity["core"]]
        z = y @ b @ vectors[:, kept]
        expected = np.linalg.eigvalsh(z / values[kept] @ z.conj().T)
        expected = expected[np.argsort(-abs(expected))][: len(found.eigenvalues)]
        np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-8)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("noise", ["gaussian", "ssrft"])
    @pytest.mark.parametrize(("kind", "powers"), [("eigh", 0), ("svd", 1)])
    def test_is_as_good_with_other_noise(self, tmp_path, noise, kind, powers):
        matrix = dense((150, 150), "slow", "float32", hermitian=kind == "eigh")
        usual = relative_error(made(tmp_path / "usual", matrix, kind, powers), matrix)
        found = made(tmp_path, matrix, kind, powers, noise=noise)
        assert relative_error(found, matrix) < 1.3 * usual

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    def test_has_the_error_that_the_assessment_says(self, tmp_path, kind, powers):
        matrix = dense((150, 150), "slow", "float64", hermitian=kind == "eigh")
        found = made(tmp_path, matrix, kind, powers, test_measurements=60)
        stated = ooc.assess(ooc.open_run(tmp_path / "run")).relative_error
        assert relative_error(found, matrix) == pytest.approx(stated, rel=0.25)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    def test_is_the_same_with_implicit_vectors(self, tmp_path, kind, powers):
        matrix = dense((150, 150), "slow", "float32", hermitian=kind == "eigh")
        found = made(tmp_path, matrix, kind, powers)
        again = ooc.recover(ooc.open_run(tmp_path / "run"), vectors="implicit", name="implicit")
        x = torch.ones((150, 1), dtype=torch.float32)
        torch.testing.assert_close(found @ x, again @ x, rtol=1e-4, atol=1e-5)

    def test_tells_its_error_by_test_columns_that_chose_nothing(self, tmp_path):
        found = made(tmp_path, dense((150, 150), "slow"))
        assert (found._file.identity["choosing"], found._file.arrays["tested_cores"].size > 0) == (
            4, True,
        )  # fmt: skip

    def test_may_have_more_values_than_a_round_has_columns(self, tmp_path):
        made(tmp_path, dense((150, 150), "slow"), powers=1)
        run = ooc.open_run(tmp_path / "run")
        assert len(ooc.recover(run, rank=30, name="more").eigenvalues) == 30

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(("kind", "powers"), CASES)
    def test_is_made_again_after_the_sums_were_removed(self, tmp_path, kind, powers):
        made(tmp_path, dense((150, 150), "slow", hermitian=kind == "eigh"), kind, powers)
        before = run_contents(tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        ooc.assess(run)
        assert ooc.clean(run, sketch=True).freed
        shutil.rmtree(tmp_path / "run/results")
        ooc.merge(run)
        ooc.recover(run)
        again = run_contents(tmp_path / "run")
        results = [path for path in before if path.startswith("results")]
        assert [again[path] for path in results] == [before[path] for path in results]


class TestPlan:
    @pytest.mark.covered(1)
    @pytest.mark.parametrize(
        ("kind", "powers", "tests", "kept"),
        [
            ("eigh", 0, 3, True),
            ("eigh", 0, 2, False),
            ("eigh", 1, 0, False),
            ("svd", 0, 12, False),
            ("svd", 1, 12, True),
            ("svd", 1, 0, True),
        ],
    )
    def test_says_whether_sketches_are_kept(self, tmp_path, kind, powers, tests, kept):
        matrix = dense((60, 60), "slow", hermitian=kind == "eigh")
        found = made(tmp_path, matrix, kind, powers, test_measurements=tests, measurements=10)
        assert plan_of(tmp_path / "run").get("keeps_sketches", False) is kept
        assert relative_error(found, matrix) < 0.5

    def test_that_does_not_say_so_goes_on_as_it_was(self, tmp_path, monkeypatch):
        matrix = dense((60, 60), "slow")
        with monkeypatch.context() as patch:
            patch.setattr(Method, "keeps_sketches", lambda *_: False)
            made(tmp_path / "before", matrix)
            operator = Operator(matrix)
            spec = {"measurements": 24, "sketch": {"test_measurements": 12},
                    "dtype": "float64", "recovery": {"method": "hmt"}}  # fmt: skip
            run = ooc.plan(spec, tmp_path / "run", operator=operator)
            ooc.measure(run, operator=operator)
        found = made(tmp_path, matrix)
        assert "keeps_sketches" not in plan_of(tmp_path / "run")
        assert operator.products > 0
        expected = run_contents(tmp_path / "before/run")
        assert run_contents(tmp_path / "run") == expected
        assert len(found.eigenvalues) == 24

    def test_of_another_method_must_not_say_so(self, tmp_path):
        ooc.eigh(dense((60, 60), "slow"), measurements=10, run_dir=tmp_path / "run")
        path = tmp_path / "run/plan.d/0001.json"
        content = plan_of(tmp_path / "run")
        del content["sha256"]
        content["keeps_sketches"] = True
        path.write_bytes(canonical_line(content | {"sha256": digest(content)}))
        with pytest.raises(ooc.CorruptError, match="must not have rounds"):
            ooc.open_run(tmp_path / "run")
