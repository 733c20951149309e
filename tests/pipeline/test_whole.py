"""The whole operator from the rounds of krylov: its error, its figures, and that it is a result.

Dense decompositions in double precision are the truth.
"""

from __future__ import annotations

import shutil
from functools import cache

import numpy as np
import pytest
import torch
from contents import file_contents, run_contents
from krylov_runs import SMALL, decompose, matrix_of, spec_of
from operators import Operator, best_error, orthogonality, relative_error, triple
from runs import whole_run

import skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.spec import DTYPES, KINDS
from skerch_ooc.results.lowrank import open_result
from skerch_ooc.store.sketch import count_products

pytestmark = pytest.mark.usefixtures("no_late_files", "one_thread")

ORTHOGONAL = {"float32": 1e-6, "complex64": 1e-6, "float64": 1e-11, "complex128": 1e-11}
"""Of each vector, as the recovery promises."""


INDEX = np.arange(500)
SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], 500)
TABLE = {
    "exp .02": 10.0 ** (-0.02 * INDEX),
    "exp .1": 10.0 ** (-0.1 * INDEX),
    "poly 1": 1 / (1.0 + INDEX),
    "poly 2": (1.0 + INDEX) ** -2,
    "60 outliers + bulk": np.where(INDEX < 60, 1.0, 0.01),
    "poly .5": (1.0 + INDEX) ** -0.5,
}
"""Eigenvalues of the Hermitian table of ``workflows/benchmarks/accuracy.py``, fewer of them."""


def whole(run_dir, **more):
    return ooc.recover(ooc.open_run(run_dir), method="nystrom", name="whole", **more)


def rank_of(result):
    return len(triple(result)[1])


class TestError:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("rounds", [2, 3, 7])
    def test_is_near_that_of_the_best_approximation(self, tmp_path, kind, dtype, rounds):
        a = matrix_of(kind, dtype)
        operator = Operator(a)
        decompose(kind, operator, tmp_path / "run", rounds=rounds)
        before = operator.products
        found = whole(tmp_path / "run")
        assert operator.products == before
        assert relative_error(found, a) < 1.7 * best_error(a, rank_of(found))
        u, _, v = triple(found)
        assert max(orthogonality(u), orthogonality(v)) < ORTHOGONAL[dtype] * rank_of(found) ** 0.5

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("spectrum", ["slow", "decay", "rank 30", "clustered"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_at_most_that_of_one_pass_with_as_many_products(self, tmp_path, kind, spectrum):
        if (kind, spectrum) == ("svd", "clustered"):
            pytest.xfail("more copies of a value than a block has columns: .63, one pass .21")
        a = matrix_of(kind, "float32", spectrum)
        decompose(kind, Operator(a), tmp_path / "run", rounds=6)
        made = count_products(ooc.open_run(tmp_path / "run"))["done"] - 12
        measurements = made if kind == "eigh" else made // 2
        one_pass = getattr(ooc, kind)(
            Operator(a), run_dir=tmp_path / "one", measurements=min(measurements, 90),
            test_measurements=12,
        )  # fmt: skip
        rounding = 20 * float(np.finfo("float32").eps)
        found = relative_error(whole(tmp_path / "run"), a)
        assert found <= max(1.05 * relative_error(one_pass, a), rounding)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("name", TABLE)
    def test_is_at_most_that_of_one_pass_for_each_line_of_the_benchmark(self, tmp_path, name):
        a = torch.from_numpy(np.diag(TABLE[name] * SIGNS).astype("float32"))
        # A value has at most as many copies in the rounds as these have columns.
        width, rounds = (40, 3) if "outliers" in name else (16, 7)
        ooc.eigh(Operator(a), run_dir=tmp_path / "run", rank=8, round_width=width, rounds=rounds)
        found = whole(tmp_path / "run")
        made = count_products(ooc.open_run(tmp_path / "run"))["done"] - 30
        one_pass = ooc.eigh(Operator(a), run_dir=tmp_path / "one", measurements=made)
        assert relative_error(found, a) <= 1.05 * relative_error(one_pass, a)

    def test_is_small_where_the_rounds_start_with_given_vectors(self, tmp_path):
        a = matrix_of("eigh", "float32")
        decompose("eigh", Operator(a), tmp_path / "earlier", rounds=3)
        decompose("eigh", Operator(a), tmp_path / "run", rounds=5, start=tmp_path / "earlier")
        found = whole(tmp_path / "run")
        assert relative_error(found, a) < 1.5 * best_error(a, rank_of(found))

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    def test_vanishes_where_the_rounds_exhaust_the_operator(self, tmp_path, kind, dtype):
        a = matrix_of(kind, dtype, "rank 30")
        decompose(kind, Operator(a), tmp_path / "run", round_width=9, rank=30,
                  pairs_tolerance=1e-3, test_measurements=30)  # fmt: skip
        found = whole(tmp_path / "run")
        # What is left of products in single precision is seen to 1e-6.
        assert relative_error(found, a) < (1e-5 if np.finfo(dtype).eps > 1e-10 else 1e-9)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("core", [5, 12])
    def test_is_of_the_core_that_is_asked_for(self, tmp_path, core):
        decompose("eigh", Operator(matrix_of("eigh", "float32")), tmp_path / "run", rounds=3)
        assert rank_of(whole(tmp_path / "run", core=core)) == core

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    def test_rank_cuts_what_is_returned(self, tmp_path, kind):
        a = matrix_of(kind, "float32")
        decompose(kind, Operator(a), tmp_path / "run", rounds=4)
        found, all_of_it = (
            whole(tmp_path / "run", rank=7),
            ooc.recover(ooc.open_run(tmp_path / "run"), method="nystrom", name="all"),
        )
        torch.testing.assert_close(triple(found)[1], triple(all_of_it)[1][:7])


class TestFigures:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vectors", ["stored", "implicit"])
    @pytest.mark.parametrize("rounds", [3, 4])
    def test_estimate_the_error(self, tmp_path, kind, dtype, vectors, rounds):
        a = matrix_of(kind, dtype)
        decompose(kind, Operator(a), tmp_path / "run", rounds=rounds, test_measurements=60)
        found = whole(tmp_path / "run", vectors=vectors)
        error = ooc.assess(tmp_path / "run", "whole")
        assert error.relative_error == pytest.approx(relative_error(found, a), rel=0.2)
        assert error.leave_one_out is None
        assert error.pairs is None

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS[::-1])
    def test_use_no_test_column_that_a_block_was_made_of(self, tmp_path, kind):
        a = matrix_of(kind, "float32")
        decompose(kind, Operator(a), tmp_path / "run", pairs_tolerance=1e-2, rounds=60,
                  test_measurements=20)  # fmt: skip
        found = whole(tmp_path / "run")
        spent = 6
        error = ooc.assess(tmp_path / "run", "whole")
        assert 0 < error.test_measurements <= 20 - spent
        assert error.relative_error == pytest.approx(relative_error(found, a), rel=0.5)

    def test_are_not_known_where_blocks_were_made_of_all_test_columns(self, tmp_path):
        a = matrix_of("eigh", "float32")
        decompose("eigh", Operator(a), tmp_path / "run", pairs_tolerance=1e-2, rounds=60,
                  test_measurements=6)  # fmt: skip
        found = whole(tmp_path / "run")
        assert ooc.assess(tmp_path / "run", "whole").relative_error is None
        assert relative_error(found, a) < 1.5 * best_error(a, rank_of(found))

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("kind", KINDS)
    def test_need_no_test_columns(self, tmp_path, kind):
        a = matrix_of(kind, "float32")
        for rounds in (3, 4):
            folder = tmp_path / str(rounds)
            decompose(kind, Operator(a), folder, rounds=rounds, test_measurements=0)
            found = whole(folder)
            assert ooc.assess(folder, "whole").relative_error is None
            assert relative_error(found, a) < 2.5 * best_error(a, rank_of(found))


class TestGrown:
    """Runs of one pass that went on with rounds: all columns of their sketch count."""

    @staticmethod
    def grown(folder, a, measurements=40, **more):
        operator = Operator(a)
        ooc.eigh(operator, run_dir=folder, measurements=measurements, test_measurements=20, **more)
        run = ooc.extend(ooc.open_run(folder), rounds=3)
        ooc.measure(run, operator=operator)
        while not State(run).is_last_round:
            ooc.merge(run)
            ooc.measure(run, operator=operator)
        return run

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
    def test_use_all_columns_of_their_sketch(self, tmp_path, dtype, noise):
        a = matrix_of("eigh", dtype)
        if noise == "rademacher" and dtype.startswith("complex"):
            noise = "phase"
        self.grown(tmp_path / "run", a, noise=noise)
        decompose("eigh", Operator(a), tmp_path / "rounds", rounds=3, round_width=16)
        found = whole(tmp_path / "run")
        assert relative_error(found, a) < 0.8 * relative_error(whole(tmp_path / "rounds"), a)
        assert orthogonality(triple(found)[0]) < ORTHOGONAL[dtype] * rank_of(found) ** 0.5
        error = ooc.assess(tmp_path / "run", "whole")
        assert error.relative_error == pytest.approx(relative_error(found, a), rel=0.4)

    def test_to_more_rounds_leave_implicit_vectors_as_they_were(self, tmp_path):
        operator = Operator(matrix_of("eigh", "float32"))
        decompose("eigh", operator, tmp_path / "run", rounds=3)
        before = triple(whole(tmp_path / "run", vectors="implicit"))[0]
        run = ooc.extend(ooc.open_run(tmp_path / "run"), rounds=5)
        ooc.measure(run, operator=operator)
        while not State(run).is_last_round:
            ooc.merge(run)
            ooc.measure(run, operator=operator)
        after = open_result(tmp_path / "run/results/whole/eigh.h5")
        torch.testing.assert_close(triple(after)[0], before, rtol=0, atol=0)


class TestRefused:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("method", ["singlepass", "oversampled", "hmt"])
    def test_other_methods(self, tmp_path, method):
        decompose("eigh", Operator(matrix_of("eigh", "float32")), tmp_path / "run", rounds=3)
        with pytest.raises(UsageError, match="is not served by this run's sketch"):
            ooc.recover(ooc.open_run(tmp_path / "run"), method=method, name="other")

    def test_a_core_of_svd_which_inverts_none(self, tmp_path):
        decompose("svd", Operator(matrix_of("svd", "float32")), tmp_path / "run", rounds=4)
        with pytest.raises(UsageError, match="inverts no core"):
            whole(tmp_path / "run", core=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs with the whole recovered in one process, by their kind."""

    @cache
    def made(kind):
        folder = tmp_path_factory.mktemp("serial")
        run = whole_run(spec_of(folder, kind), folder / "run")
        whole(run, threads=1)
        return run

    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run, of which the whole was not recovered."""
    folder = tmp_path_factory.mktemp("small")
    return whole_run(spec_of(folder, n=SMALL), folder / "run")


class TestWhateverTheCut:
    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", KINDS)
    def test_workers_of_dask_make_the_files_of_one_process(
        self, tmp_path, finished, kind, quick_workers
    ):
        run = whole_run(spec_of(tmp_path, kind), tmp_path / "run")
        whole(run, executor=ooc.Dask(workers=2))
        assert run_contents(run) == run_contents(finished(kind))

    @pytest.mark.thorough
    def test_large_results_are_in_pieces(self, finished):
        files = {path.name for path in (finished("eigh") / "results/whole").iterdir()}
        assert {"eigenvectors.t0-32.h5", "eigenvectors.t32-35.h5"} <= files

    def test_does_no_work_that_is_done(self, tmp_path, small):
        run = shutil.copytree(small, tmp_path / "run")
        whole(run)
        before, log = run_contents(run), (run / "logs/receipts.jsonl").read_bytes()
        whole(run)
        assert run_contents(run) == before
        assert (run / "logs/receipts.jsonl").read_bytes() == log


class TestUpkeep:
    def test_the_verbs_take_it_like_any_result(self, inside, tmp_path, small):
        shutil.copytree(small, tmp_path / "run")
        for verb in (
            ["recover", "run", "--method", "nystrom", "--name", "whole"],
            ["assess", "run", "--name", "whole"],
            ["report", "run", "--name", "whole"],
            ["status", "run"],
            ["verify", "run"],
            ["clean", "run", "--sketch"],
            ["verify", "run"],
        ):
            done = inside(*verb)
            assert done.returncode == 0, done.stderr
        before = file_contents(tmp_path / "run/results/whole/eigh.h5")
        assert inside("recover", "run", "--method", "nystrom", "--name", "again").returncode == 0
        again = file_contents(tmp_path / "run/results/again/eigh.h5")
        assert again == before
        for verb in (["clean", "run", "--shards"], ["verify", "run"], ["status", "run"]):
            assert inside(*verb).returncode == 0
        assert file_contents(tmp_path / "run/results/whole/eigh.h5") == before

    def test_a_damaged_file_of_sums_is_named(self, inside, tmp_path, small):
        shutil.copytree(small, tmp_path / "run")
        assert inside("recover", "run", "--method", "nystrom", "--name", "whole").returncode == 0
        (sums,) = (tmp_path / "run/sketch").glob("*/whole.h5")
        content = bytearray(sums.read_bytes())
        content[len(content) // 2] ^= 1
        sums.write_bytes(content)
        done = inside("recover", "run", "--method", "nystrom", "--name", "other")
        assert (done.returncode, str(sums.name) in done.stderr) == (5, True)
        assert "rm " in done.stderr
        assert inside("verify", "run").returncode == 5
