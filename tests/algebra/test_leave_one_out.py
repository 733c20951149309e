"""Leave-one-out errors: against their own definition, and against the true errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sketches import KINDS, SPECTRA, case, dense, sketch_of
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.methods.choosing import floor_of, range_basis
from skerch_ooc.algebra.methods.nystrom import GeneralCores
from skerch_ooc.planning.spec import DTYPES

kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
both_fields = pytest.mark.parametrize("dtype", ["float32", "complex64"])
WIDE = sorted(SPECTRA.keys() - {"zero", "rank 1", "rank 30", "rank 58", "steep", "exp .1"})
spectra = pytest.mark.parametrize("spectrum", WIDE)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def root_mean_square(norms):
    return math.sqrt(np.mean(np.square(norms)))


def others(m, column):
    return np.delete(np.arange(m), column)


class TestHmt:
    @staticmethod
    def recomputed(y):
        norms = []
        for column in range(y.shape[1]):
            q = np.linalg.qr(y[:, others(y.shape[1], column)])[0]
            norms.append(np.linalg.norm(y[:, column] - q @ (q.conj().T @ y[:, column])))
        return root_mean_square(norms)

    @dtypes
    @spectra
    def test_equals_its_recomputation(self, dtype, spectrum):
        found = case("hmt", "svd", spectrum, dtype, 20)
        expected = self.recomputed(found.problem.before)
        assert found.solve().leave_one_out == pytest.approx(expected, rel=1e-9)

    @both_fields
    def test_of_a_hermitian_operator_has_an_exact_second_part(self, dtype):
        found = case("hmt", "eigh", "poly 1", dtype, 20)
        q = np.linalg.qr(found.y)[0]
        inside = q @ (q.conj().T @ found.a)
        across = np.linalg.norm(inside - inside @ q @ q.conj().T)
        expected = math.hypot(self.recomputed(found.problem.before), across)
        assert found.solve().leave_one_out == pytest.approx(expected, rel=1e-4)

    @kinds
    def test_is_none_after_power_iterations(self, kind):
        found = case("hmt", kind, "poly 1", "float32", 20)
        assert found.solve(before=None).leave_one_out is None

    @kinds
    @pytest.mark.parametrize("spectrum", ["rank 30", "steep"])
    def test_of_what_is_recovered_exactly_is_rounding(self, kind, spectrum):
        found = case("hmt", kind, spectrum, "float32")
        assert 0 < found.solve().leave_one_out <= 3e-7 * np.linalg.norm(found.a)

    @kinds
    def test_of_more_columns_than_rows_is_rounding(self, kind):
        a = dense(kind, "poly 1", (24, 24), "float32")
        found = sketch_of(a, "hmt", kind, "float32", 40, normal_noise=True)
        assert found.solve().leave_one_out <= 3e-7 * np.linalg.norm(a)


class TestGeneralNystrom:
    @staticmethod
    def recomputed(found, size):
        """Leaves out each column; the range is the same combinations of the others."""
        problem = found.problem
        basis = range_basis(problem.y, floor_of(problem)).cut(size)
        y, psi_y, combine = problem.y, problem.psi_y, basis.coefficients()
        norms = []
        for column in range(y.shape[1]):
            rest = others(y.shape[1], column)
            core = psi_y[:, rest] @ combine[rest]
            x = np.linalg.lstsq(core, psi_y[:, column])[0]
            norms.append(np.linalg.norm(y[:, column] - y[:, rest] @ (combine[rest] @ x)))
        return root_mean_square(norms)

    @pytest.mark.covered(2)
    @dtypes
    @spectra
    @pytest.mark.parametrize("left", [20, 30])
    @pytest.mark.parametrize("size", [1, 7, 15, 19])
    def test_equals_its_recomputation_with_a_cut_range(self, dtype, spectrum, left, size):
        found = case("nystrom", "svd", spectrum, dtype, 20, left=left)
        estimate = found.solve(core_size=size).leave_one_out
        assert estimate == pytest.approx(self.recomputed(found, size), rel=1e-7)

    @pytest.mark.covered(2)
    @dtypes
    @spectra
    @pytest.mark.parametrize("left", [20, 30])
    def test_equals_its_recomputation_with_nothing_cut(self, dtype, spectrum, left):
        found = case("nystrom", "svd", spectrum, dtype, 20, left=left)
        y, psi_y = found.problem.y, found.problem.psi_y
        norms = []
        for column in range(20):
            rest = others(20, column)
            x = np.linalg.lstsq(psi_y[:, rest], psi_y[:, column])[0]
            norms.append(np.linalg.norm(y[:, column] - y[:, rest] @ x))
        estimate = found.solve(core_size=20).leave_one_out
        assert estimate == pytest.approx(root_mean_square(norms), rel=1e-7)

    def test_of_an_empty_core_is_the_norm_of_the_operator_itself(self):
        found = case("nystrom", "svd", "poly 1", "float32", 20)
        cores = GeneralCores(found.problem, range_basis(found.problem.y, 1e-7))
        expected = np.linalg.norm(found.y) / math.sqrt(20)
        assert cores.leave_one_out([0])[0] == pytest.approx(expected)


class TestOversampled:
    @staticmethod
    def recomputed(found, first_column):
        """Leaves out each entry of ``Z``, with its row and its column."""
        problem = found.problem
        n = problem.phi_y @ range_basis(problem.y, 0).coefficients()
        m = problem.xi_w @ range_basis(problem.w, 0).coefficients()
        norms = []
        for i in range(len(n)):
            for j in range(first_column, len(m)):
                rows, columns = others(len(n), i), others(len(m), j)
                core = np.linalg.pinv(n[rows]) @ problem.z[np.ix_(rows, columns)]
                core = core @ np.linalg.pinv(m[columns]).conj().T
                if problem.hermitian:
                    core = 0.5 * (core + core.conj().T)
                norms.append(abs(problem.z[i, j] - n[i] @ core @ m[j].conj()))
        return root_mean_square(norms)

    @both_fields
    @kinds
    @pytest.mark.parametrize("spectrum", ["poly 1", "flat"])
    def test_equals_its_recomputation(self, kind, dtype, spectrum):
        found = case("oversampled", kind, spectrum, dtype, 5)
        expected = self.recomputed(found, 5 if kind == "eigh" else 0)
        assert found.solve().leave_one_out == pytest.approx(expected, rel=1e-9)

    def test_is_none_if_the_inner_test_matrices_are_the_same(self):
        a = dense("eigh", "poly 1", (240, 240), "float32")
        found = sketch_of(a, "oversampled", "eigh", "float32", 20, phi_apart=False)
        assert found.solve().leave_one_out is None

    def test_is_none_if_there_are_no_inner_columns_that_the_basis_has_not_seen(self):
        a = dense("eigh", "poly 1", (240, 240), "float32")
        found = sketch_of(a, "oversampled", "eigh", "float32", 20, inner=20)
        assert found.solve().leave_one_out is None


@kinds
def test_of_singlepass_there_is_none(kind):
    assert case("singlepass", kind, "poly 1", "float32").solve().leave_one_out is None


def shares(method, kind, spectrum, dtype, seeds, m=60, **more):
    """The estimate relative to the true error, for each seed."""
    core_size = more.pop("core_size", None)
    found = []
    for seed in range(seeds):
        one = case(method, kind, spectrum, dtype, m, seed=seed, **more)
        core = one.solve(core_size=core_size)
        found.append(core.leave_one_out / one.error_by(core))
    return found


class TestCalibration:
    """On average; the estimates are of one column fewer, which counts where the values decay."""

    @pytest.mark.covered(1)
    @both_fields
    @spectra
    @kinds
    @pytest.mark.parametrize(("method", "m"), [("hmt", 60), ("oversampled", 30)])
    def test_is_good(self, method, kind, spectrum, dtype, m):
        assert 0.88 < np.mean(shares(method, kind, spectrum, dtype, 4, m)) < 1.15

    @pytest.mark.covered(1)
    @both_fields
    @spectra
    def test_of_nystrom_with_nothing_cut_is_good(self, spectrum, dtype):
        found = shares("nystrom", "svd", spectrum, dtype, 4, core_size=60)
        assert 0.88 < np.mean(found) < 1.15

    @pytest.mark.covered(2)
    @both_fields
    @spectra
    @kinds
    @pytest.mark.parametrize("q", [0, 30])
    def test_of_nystrom_with_a_chosen_core_is_fair(self, kind, spectrum, dtype, q):
        assert 0.8 < np.mean(shares("nystrom", kind, spectrum, dtype, 4, q=q)) < 1.3

    @pytest.mark.soak
    @both_fields
    @spectra
    @kinds
    @pytest.mark.parametrize(("method", "m"), [("hmt", 60), ("oversampled", 30)])
    def test_is_within_a_tenth_over_many_seeds(self, method, kind, spectrum, dtype, m):
        assert 0.9 < np.mean(shares(method, kind, spectrum, dtype, 24, m)) < 1.1

    @pytest.mark.soak
    @both_fields
    @spectra
    def test_of_nystrom_with_nothing_cut_is_within_a_tenth(self, spectrum, dtype):
        found = shares("nystrom", "svd", spectrum, dtype, 24, core_size=60)
        assert 0.9 < np.mean(found) < 1.1

    @pytest.mark.soak
    @both_fields
    @spectra
    @kinds
    @pytest.mark.parametrize("m", [60, 100])
    @pytest.mark.parametrize("q", [0, 30])
    def test_of_nystrom_with_a_chosen_core_is_fair_over_many_seeds(
        self, kind, spectrum, dtype, m, q
    ):
        assert 0.9 < np.mean(shares("nystrom", kind, spectrum, dtype, 24, m, q=q)) < 1.3

    @both_fields
    @pytest.mark.parametrize("spectrum", ["rank 30", "rank 58"])
    @pytest.mark.parametrize("method", ["nystrom", "oversampled"])
    @kinds
    def test_of_what_is_recovered_exactly_is_that_of_rounding(self, method, kind, spectrum, dtype):
        found = case(method, kind, spectrum, dtype)
        share = found.solve().leave_one_out / found.error_by(found.solve())
        assert 0.3 < share < 5


def test_cases_leave_the_problem_alone():
    found = case("nystrom", "svd", "poly 1", "float32")
    copy = replace(found.problem, y=found.problem.y.copy(), psi_y=found.problem.psi_y.copy())
    found.decompose()
    np.testing.assert_array_equal(found.problem.y, copy.y)
    np.testing.assert_array_equal(found.problem.psi_y, copy.psi_y)
