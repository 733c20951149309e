"""Core-truncated Nystrom of Hermitian operators: what only dense matrices know of every choice.

What it has in common with the other methods is tested with them.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sketches import case
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.linalg import hermitian_part
from skerch_ooc.algebra.methods.nystrom import CutCores, HermitianCores
from skerch_ooc.planning.spec import DTYPES

M = 60
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
spectra = pytest.mark.parametrize(
    "spectrum", ["poly 1", "exp .02", "outliers on a flat bulk", "flat", "clustered"]
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def sketched(spectrum, dtype, **more):
    return case("nystrom", "eigh", spectrum, dtype, M, **more)


class TestApproximation:
    @pytest.mark.covered(2)
    @all_dtypes
    @spectra
    @pytest.mark.parametrize("size", [1, 17, 45])
    def test_inverts_the_eigenvalues_of_the_core_that_are_largest(self, spectrum, dtype, size):
        found = sketched(spectrum, dtype)
        values, vectors = np.linalg.eigh(hermitian_part(found.problem.psi_y))
        kept = np.argsort(-np.abs(values))[:size]
        core = (vectors[:, kept] / values[kept]) @ vectors[:, kept].conj().T
        expected = found.y @ core @ found.y.conj().T
        np.testing.assert_allclose(
            found.approximation(found.decompose(core_size=size)), expected, atol=1e-6
        )

    def test_is_hermitian_although_the_core_is_so_only_to_rounding(self):
        problem = sketched("poly 1", "float32").problem
        assert not np.array_equal(problem.psi_y, problem.psi_y.conj().T)
        found = sketched("poly 1", "float32")
        np.testing.assert_array_equal(found.decompose().left, found.decompose().right)


class TestHeldOutErrors:
    @all_dtypes
    @spectra
    def test_are_dense_residuals(self, spectrum, dtype):
        found = sketched(spectrum, dtype)
        cores = HermitianCores(found.problem)
        values, vectors = cores.values, cores.vectors
        sizes, q = [10, 25, 40], 10
        expected = []
        for size in sizes:
            inner = vectors[:, :size] / values[:size] @ vectors[:, :size].conj().T
            t = found.a @ found.g[:, :q]
            residual = t - found.y @ (inner @ (found.y.conj().T @ found.g[:, :q]))
            expected.append(np.linalg.norm(residual) / math.sqrt(q))
        np.testing.assert_allclose(cores.errors(sizes, q), expected, rtol=1e-5)


class TestLeaveOneOut:
    @staticmethod
    def estimate(found, size):
        return HermitianCores(found.problem).leave_one_out([size])[0]

    @staticmethod
    def recomputed(found, size):
        """Leaves out each column in turn, with the core cut to ``[H]_c`` on the other ones."""
        cores = HermitianCores(found.problem)
        values, vectors = cores.values, cores.vectors
        kept = (vectors[:, :size] * values[:size]) @ vectors[:, :size].conj().T
        core = hermitian_part(found.problem.psi_y)
        squares = []
        for column in range(M):
            others = np.delete(np.arange(M), column)
            inverse = np.linalg.pinv(kept[np.ix_(others, others)], rcond=1e-11, hermitian=True)
            predicted = found.y[:, others] @ (inverse @ core[others, column])
            squares.append(np.linalg.norm(found.y[:, column] - predicted) ** 2)
        return math.sqrt(np.mean(squares))

    @pytest.mark.covered(1)
    @all_dtypes
    @spectra
    @pytest.mark.parametrize("size", [10, 45, M])
    def test_equals_its_recomputation(self, spectrum, dtype, size):
        found = sketched(spectrum, dtype)
        expected = self.recomputed(found, size)
        assert self.estimate(found, size) == pytest.approx(expected, rel=1e-5)

    @all_dtypes
    def test_chooses_where_there_are_no_test_columns(self, dtype):
        found = sketched("poly 1", dtype, q=0)
        tested = found.solve().tested
        expected = [self.estimate(found, size) for size, _ in tested]
        np.testing.assert_allclose([error for _, error in tested], expected, rtol=1e-9)

    def test_of_an_empty_core_is_the_norm_of_the_operator_itself(self):
        found = sketched("poly 1", "float32")
        expected = np.linalg.norm(found.y) / math.sqrt(M)
        assert self.estimate(found, 0) == pytest.approx(expected)


class TestCutCore:
    """Of a general operator the core may be cut instead of the range."""

    @staticmethod
    def of(spectrum="exp .02", dtype="complex128", left=30, q=12):
        return case("nystrom", "svd", spectrum, dtype, 20, left=left, q=q)

    @pytest.mark.covered(2)
    @all_dtypes
    @spectra
    @pytest.mark.parametrize("left", [20, 30])
    @pytest.mark.parametrize("size", [1, 7, 20])
    def test_is_inverted_in_its_leading_singular_values(self, spectrum, dtype, left, size):
        problem = self.of(spectrum, dtype, left).problem
        u, s, vh = np.linalg.svd(problem.psi_y, full_matrices=False)
        expected = (vh[:size].conj().T / s[:size]) @ u[:, :size].conj().T
        one, two, three = CutCores(problem).approximation(size)
        np.testing.assert_allclose(one @ two @ three.conj().T, expected, rtol=1e-8, atol=1e-12)

    @pytest.mark.covered(2)
    @all_dtypes
    @spectra
    def test_has_the_error_that_its_approximation_has_on_held_out_columns(self, spectrum, dtype):
        problem = self.of(spectrum, dtype).problem
        cores, sizes = CutCores(problem), [3, 8, 15]
        for size, error in zip(sizes, cores.errors(sizes, 4), strict=True):
            one, two, three = cores.approximation(size)
            product = problem.y @ one @ two @ three.conj().T @ problem.g_w[:4].conj().T
            expected = np.linalg.norm(problem.t[:, :4] - product) / 2
            assert error == pytest.approx(expected, rel=1e-9)

    @pytest.mark.covered(2)
    @all_dtypes
    @spectra
    @pytest.mark.parametrize("size", [1, 7, 19, 20])
    def test_has_the_leave_one_out_error_of_its_recomputation(self, spectrum, dtype, size):
        problem = self.of(spectrum, dtype).problem
        u, s, vh = np.linalg.svd(problem.psi_y, full_matrices=False)
        core = (u[:, :size] * s[:size]) @ vh[:size]
        norms = []
        for column in range(20):
            rest = np.delete(np.arange(20), column)
            x = np.linalg.lstsq(core[:, rest], problem.psi_y[:, column], rcond=1e-13)[0]
            norms.append(np.linalg.norm(problem.y[:, column] - problem.y[:, rest] @ x))
        (found,) = CutCores(problem).leave_one_out([size])
        expected = math.sqrt(np.mean(np.square(norms)))
        assert found == pytest.approx(expected, rel=1e-5)

    @pytest.mark.covered(2)
    @all_dtypes
    @spectra
    def test_is_taken_where_it_is_better_on_held_out_columns(self, spectrum, dtype):
        found = self.of(spectrum, dtype)
        plain, either = found.solve(), found.solve(either_cut=True)

        def least(core):
            return min(error for _, error in core.tested)

        cut = min(CutCores(found.problem).errors(range(1, 21), either.choosing))
        assert least(either) <= least(plain)
        assert min(cut, least(plain)) <= least(either) <= 1.2 * min(cut, least(plain))

    @pytest.mark.parametrize("more", [{"core_size": 7}, {}], ids=["size given", "no tests"])
    def test_is_not_tried_where_nothing_is_chosen(self, more):
        found = self.of(q=12 if more else 0)
        plain, either = found.solve(**more), found.solve(either_cut=True, **more)
        np.testing.assert_array_equal(plain.left, either.left)
