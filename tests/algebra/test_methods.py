"""Every recovery method against dense matrices, whose decomposition is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sketches import (
    KINDS,
    SHAPES,
    SINGLE,
    SPECTRA,
    case,
    dense,
    integers,
    sketch_of,
)
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.planning.spec import DTYPES

kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", SOLVERS)
with_a_core = pytest.mark.parametrize("method", sorted(SOLVERS.keys() - {"hmt"}))
dtypes = pytest.mark.parametrize("dtype", DTYPES)
shapes_of_kinds = pytest.mark.parametrize(
    ("kind", "shape"), [("eigh", "square"), *(("svd", shape) for shape in SHAPES)]
)
LOW_RANK = {"rank 1": 1, "rank 30": 30, "rank 58": 58}
FULL_RANK = sorted(SPECTRA.keys() - {*LOW_RANK, "zero"})


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def precision(dtype, single=1e-6, double=1e-12):
    return single if dtype in SINGLE else double


def gram_root(y):
    """A compressed copy of ``Y``, made of ``Y^H Y`` alone."""
    values, vectors = np.linalg.eigh(y.conj().T @ y)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.conj().T


def deviation(vectors):
    """How far vectors are from orthonormal ones."""
    return np.linalg.norm(vectors.conj().T @ vectors - np.eye(vectors.shape[1]), 2)


class TestLowRank:
    """An operator of lower rank than there are measurements is recovered exactly."""

    @pytest.mark.covered(1)
    @methods
    @dtypes
    @shapes_of_kinds
    @pytest.mark.parametrize("spectrum", LOW_RANK)
    def test_is_recovered_to_rounding(self, method, kind, shape, dtype, spectrum):
        found = case(method, kind, spectrum, dtype, shape=shape)
        error = found.error_of(found.decompose()) / np.linalg.norm(found.a)
        assert error <= precision(dtype)

    @pytest.mark.covered(2)
    @methods
    @dtypes
    @kinds
    @pytest.mark.parametrize("spectrum", LOW_RANK)
    def test_has_its_values_in_descending_magnitude(self, method, kind, dtype, spectrum):
        values = case(method, kind, spectrum, dtype).decompose().values
        rank = LOW_RANK[spectrum]
        np.testing.assert_allclose(
            np.abs(values[:rank]), SPECTRA[spectrum][:rank], rtol=0, atol=precision(dtype)
        )

    @pytest.mark.covered(2)
    @methods
    @dtypes
    @kinds
    def test_has_as_many_vectors_as_it_has_dimensions(self, method, kind, dtype):
        # In double precision the products' noise is as large as that of the small problems.
        found = len(case(method, kind, "rank 30", dtype).decompose().values)
        assert 30 <= found <= (30 if dtype in SINGLE else 34)

    @methods
    @dtypes
    def test_hermitian_has_its_signs(self, method, dtype):
        found = case(method, "eigh", "rank 30", dtype)
        truth = np.linalg.eigvalsh(found.a)
        values = found.decompose().values[:30]
        expected = truth[np.argsort(-np.abs(truth))][:30]
        np.testing.assert_array_equal(np.sign(values), np.sign(expected))

    @with_a_core
    @kinds
    @pytest.mark.parametrize("core_size", [30, 40, 80])
    def test_needs_no_choice(self, method, kind, core_size):
        found = case(method, kind, "rank 30", "float32")
        error = found.error_of(found.decompose(core_size=core_size)) / np.linalg.norm(found.a)
        assert error <= 1e-6

    @settings(max_examples=60, deadline=None)
    @given(
        method=st.sampled_from(sorted(SOLVERS)),
        kind=st.sampled_from(KINDS),
        dtype=st.sampled_from(DTYPES),
        height=st.integers(8, 24),
        width=st.integers(8, 24),
        rank=st.integers(1, 5),
        seed=st.integers(0, 1000),
    )
    def test_is_recovered_whatever_its_size(self, method, kind, dtype, height, width, rank, seed):
        shape = (height, height) if kind == "eigh" else (height, width)
        a = integers(kind, dtype, shape, rank, seed)
        found = sketch_of(
            a, method, kind, dtype, 8, inner=20, q=seed % 5, seed=seed, normal_noise=True
        )
        scale = np.linalg.norm(a)
        assert found.error_of(found.decompose()) <= precision(dtype, 1e-4, 1e-9) * scale


class TestVectors:
    @pytest.mark.covered(1)
    @methods
    @dtypes
    @kinds
    @pytest.mark.parametrize("spectrum", [*FULL_RANK, *LOW_RANK])
    def test_are_orthonormal(self, method, kind, dtype, spectrum):
        found = case(method, kind, spectrum, dtype)
        solution = found.decompose()
        condition = max(solution.left_condition, solution.right_condition)
        worst = max(map(deviation, found.vectors(solution)))
        assert worst <= 1e-14 * max(10.0, condition)

    @pytest.mark.covered(1)
    @methods
    @kinds
    @pytest.mark.parametrize("spectrum", FULL_RANK)
    def test_reconstruct_the_approximation(self, method, kind, spectrum):
        found = case(method, kind, spectrum, "complex64")
        solution = found.decompose()
        np.testing.assert_allclose(
            found.approximation(solution),
            found.approximation_by(solution.core),
            rtol=0,
            atol=1e-6 * SPECTRA[spectrum][0],
        )

    @pytest.mark.covered(2)
    @methods
    @dtypes
    @kinds
    def test_belong_to_real_values(self, method, kind, dtype):
        assert case(method, kind, "poly 1", dtype).decompose().values.dtype == np.float64

    @methods
    @kinds
    @pytest.mark.parametrize("rank", [1, 7])
    def test_are_as_many_as_wanted(self, method, kind, rank):
        found = case(method, kind, "poly 1", "float32")
        some, all_ = found.decompose(rank=rank), found.decompose()
        for name in ("values", "left", "right"):
            np.testing.assert_allclose(
                getattr(some, name), getattr(all_, name)[..., :rank], atol=1e-12, err_msg=name
            )

    @methods
    @kinds
    def test_are_all_there_are_for_a_large_rank(self, method, kind):
        found = case(method, kind, "poly 1", "float32")
        assert len(found.decompose(rank=1000).values) == len(found.decompose().values)


class TestCopiesFromGramMatrices:
    """As a run makes them for sketches in single precision: what is small is lost in them."""

    @staticmethod
    def with_gram(found):
        problem = found.problem
        columns = problem.y.shape[1]
        packed = gram_root(np.concatenate([problem.y, problem.t], axis=1))
        y = packed[:, :columns]
        w = y if problem.hermitian else gram_root(problem.w)
        before = None if problem.before is None else gram_root(problem.before)
        small = replace(problem, y=y, t=packed[:, columns:], w=w, before=before)
        return replace(found, problem=small)

    @pytest.mark.covered(2)
    @methods
    @kinds
    @pytest.mark.parametrize("dtype", SINGLE)
    @pytest.mark.parametrize("spectrum", ["rank 30", "rank 58", "steep", "exp .1"])
    def test_are_good_enough_for_the_approximation(self, method, kind, dtype, spectrum):
        found = self.with_gram(case(method, kind, spectrum, dtype))
        assert found.error_of(found.decompose()) <= 2e-6 * np.linalg.norm(found.a)

    @pytest.mark.covered(2)
    @methods
    @kinds
    @pytest.mark.parametrize("spectrum", ["rank 58", "steep", "exp .1", "poly 1"])
    def test_leave_orthogonality_that_the_condition_foretells(self, method, kind, spectrum):
        found = self.with_gram(case(method, kind, spectrum, "float32"))
        solution = found.decompose()
        condition = max(solution.left_condition, solution.right_condition)
        assert max(map(deviation, found.vectors(solution))) <= 1e-13 + 1e-15 * condition**2

    @methods
    @kinds
    @pytest.mark.parametrize("spectrum", ["steep", "exp .1"])
    def test_leave_orthogonality_that_can_be_repaired(self, method, kind, spectrum):
        found = self.with_gram(case(method, kind, spectrum, "float32"))
        assert max(map(deviation, found.vectors(found.decompose()))) < 0.5


class TestAccuracy:
    """Excess over the error of the best approximation with a quarter of the measurements."""

    LIMITS = {"nystrom": 0.5, "singlepass": 0.6, "oversampled": 1.3, "hmt": 0.3, "auto": 0.5}  # noqa: RUF012

    @pytest.mark.covered(2)
    @methods
    @kinds
    @pytest.mark.parametrize("dtype", SINGLE)
    @pytest.mark.parametrize("spectrum", ["poly .5", "poly 1", "poly 2", "exp .02", "clustered"])
    def test_is_near_the_best(self, method, kind, dtype, spectrum):
        found = case(method, kind, spectrum, dtype)
        error = found.error_of(found.decompose(rank=20))
        best = np.linalg.norm(np.linalg.svd(found.a, compute_uv=False)[20:])
        assert error / best - 1 <= self.LIMITS[method]

    @methods
    @kinds
    def test_of_a_steep_spectrum_is_that_of_the_numbers(self, method, kind):
        found = case(method, kind, "steep", "float64")
        assert found.error_of(found.decompose()) <= 1e-12 * np.linalg.norm(found.a)


class TestEdges:
    @pytest.mark.covered(2)
    @methods
    @kinds
    @dtypes
    @pytest.mark.parametrize("q", [0, 9])
    def test_nothing_comes_of_nothing(self, method, kind, dtype, q):
        found = case(method, kind, "zero", dtype, 20, q=q)
        solution = found.decompose()
        assert (solution.values.shape, solution.core.size) == ((0,), 0)
        assert solution.left.shape == (found.y.shape[1], 0)
        assert solution.right.shape == (found.w.shape[1], 0)
        assert solution.core.leave_one_out in (None, 0.0)

    @kinds
    @pytest.mark.parametrize("dtype", ["float32", "complex128"])
    def test_hmt_takes_a_basis_of_zeros(self, kind, dtype):
        """Of which there are as many as measurements, unlike in a run."""
        problem = case("singlepass", kind, "zero", dtype, 20).problem
        problem = replace(problem, psi_y=np.zeros((20, 20)), before=problem.y, second_square=0.0)
        assert decompose(problem, SOLVERS["hmt"](problem)).values.shape == (0,)

    @pytest.mark.covered(2)
    @methods
    @shapes_of_kinds
    @pytest.mark.parametrize("m", [1, 2, 3])
    @pytest.mark.parametrize("q", [0, 30])
    def test_few_columns_are_enough_for_something(self, method, kind, shape, m, q):
        found = case(method, kind, "exp .1", "float32", m, shape=shape, q=q)
        solution = found.decompose()
        assert 1 <= len(solution.values) <= m
        assert found.error_of(solution) < 4 * np.linalg.norm(found.a)

    @pytest.mark.covered(2)
    @methods
    @dtypes
    @kinds
    def test_as_many_columns_as_the_operator_has_recover_it(self, method, kind, dtype):
        a = dense(kind, "poly 1", (60, 60), dtype)
        found = sketch_of(a, method, kind, dtype, 60, normal_noise=True)
        error = found.error_of(found.decompose()) / np.linalg.norm(a)
        # A square core may be as ill-conditioned as a random matrix is.
        assert error <= precision(dtype, 1e-4, 1e-11)

    @methods
    @kinds
    def test_more_columns_than_the_operator_has_do_no_harm(self, method, kind):
        a = dense(kind, "poly 1", (24, 24), "float32")
        found = sketch_of(a, method, kind, "float32", 40, normal_noise=True)
        solution = found.decompose()
        assert len(solution.values) <= 24
        assert found.error_of(solution) <= 1e-5 * np.linalg.norm(a)

    @methods
    @kinds
    def test_equal_columns_are_one_column(self, method, kind):
        a = np.outer(np.arange(1.0, 31), np.ones(30))
        a = a + a.T if kind == "eigh" else a
        found = sketch_of(a, method, kind, "float64", 12)
        assert found.error_of(found.decompose()) <= 1e-10 * np.linalg.norm(a)

    @methods
    @kinds
    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_scale_is_of_no_account(self, method, kind, scale):
        plain, scaled = (
            sketch_of(
                factor * dense(kind, "poly 1", (60, 60), "float64"), method, kind, "float64", 20
            )
            for factor in (1.0, scale)
        )
        np.testing.assert_allclose(
            scaled.decompose().values, scale * plain.decompose().values, rtol=1e-6
        )

    @pytest.mark.parametrize("method", ["nystrom", "singlepass"])
    @pytest.mark.parametrize("left", [80, 120, 200])
    def test_any_number_of_left_columns_from_that_of_the_right_ones_will_do(self, method, left):
        found = case(method, "svd", "poly 1", "float32", left=left)
        best = np.linalg.norm(np.linalg.svd(found.a, compute_uv=False)[20:])
        assert found.error_of(found.decompose(rank=20)) <= 1.4 * best

    @pytest.mark.parametrize("method", ["nystrom", "singlepass"])
    def test_fewer_left_columns_than_right_ones_cut_the_core(self, method):
        found = case(method, "svd", "rank 30", "float32", left=40)
        assert found.error_of(found.decompose()) <= 1e-6 * np.linalg.norm(found.a)


class TestCoreSize:
    @with_a_core
    @kinds
    @pytest.mark.parametrize("size", [1, 17, 60])
    def test_is_taken_as_given(self, method, kind, size):
        core = case(method, kind, "poly 1", "float32").solve(core_size=size)
        assert (core.size, core.middle.shape) == (size, (size, size))

    @with_a_core
    @kinds
    def test_as_given_leaves_all_test_columns_for_the_error(self, method, kind):
        core = case(method, kind, "poly 1", "float32").solve(core_size=17)
        assert (core.choosing, core.tested) == (0, ())

    @with_a_core
    @kinds
    def test_is_cut_to_what_is_above_the_noise(self, method, kind):
        assert case(method, kind, "rank 30", "float32").solve(core_size=60).size == 30

    @kinds
    def test_is_refused_by_hmt(self, kind):
        with pytest.raises(ValueError, match="hmt inverts no core"):
            case("hmt", kind, "poly 1", "float32").solve(core_size=5)

    @kinds
    def test_of_oversampled_is_all_above_the_noise_if_it_may_choose(self, kind):
        assert case("oversampled", kind, "poly 1", "float32").solve().size == 80


class TestOversampled:
    def test_is_the_formula_of_the_paper(self):
        found = case("oversampled", "svd", "poly 1", "complex64")
        problem = found.problem
        q, p = np.linalg.qr(found.y), np.linalg.qr(found.w)
        phi_q = problem.phi_y @ np.linalg.inv(q[1])
        xi_p = problem.xi_w @ np.linalg.inv(p[1])
        core = np.linalg.pinv(phi_q) @ problem.z @ np.linalg.pinv(xi_p).conj().T
        expected = q[0] @ core @ p[0].conj().T
        np.testing.assert_allclose(found.approximation_by(found.solve()), expected, atol=1e-9)

    @pytest.mark.parametrize("spectrum", ["poly .5", "poly 1", "exp .02"])
    def test_is_better_with_independent_inner_test_matrices(self, spectrum):
        def error(seed, phi_apart):
            a = dense("eigh", spectrum, (240, 240), "float32", seed)
            found = sketch_of(
                a, "oversampled", "eigh", "float32", 40, seed=seed, phi_apart=phi_apart
            )
            return found.error_by(found.solve())

        ratios = [error(seed, True) / error(seed, False) for seed in range(4)]
        assert np.median(ratios) < 0.97


class TestSinglepass:
    @kinds
    def test_core_solves_both_equations_in_the_sense_of_least_squares(self, kind):
        found = case("singlepass", kind, "poly 1", "complex128", 12)
        problem, core = found.problem, found.solve(core_size=8)
        y, w = problem.y @ core.left, problem.w @ core.right
        # Q^H Y = C (P^H Omega) and W^H P = (Psi^H Q) C, as one system for the entries of C.
        b = (problem.omega_w @ core.right).conj().T
        n = problem.psi_y @ core.left
        above = np.kron(np.eye(8), b.T)
        below = np.kron(n, np.eye(8))
        given = np.concatenate([
            (y.conj().T @ problem.y).ravel(), (problem.w.conj().T @ w).ravel(),
        ])  # fmt: skip
        expected = np.linalg.lstsq(np.concatenate([above, below]), given)[0].reshape(8, 8)
        np.testing.assert_allclose(core.middle, expected, atol=1e-12)


class TestHmt:
    @kinds
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_the_projection_on_its_range(self, kind, dtype):
        found = case("hmt", kind, "poly 1", dtype)
        q = np.linalg.qr(found.y)[0]
        projection = q @ q.conj().T
        expected = projection @ found.a
        if kind == "eigh":
            expected = expected @ projection
        np.testing.assert_allclose(
            found.approximation_by(found.solve()), expected, atol=precision(dtype, 1e-6, 1e-13)
        )

    @kinds
    def test_does_not_rely_on_an_orthonormal_basis(self, kind):
        """That of a run has been rounded, and 1e-3 off would be a nuisance, not an error."""
        found = case("hmt", kind, "rank 30", "float64")
        problem = found.problem
        k = problem.y.shape[1]
        mixing = np.eye(k) + 1e-3 * np.random.default_rng(0).standard_normal((k, k))
        y = problem.y @ mixing
        psi_y = None if kind == "svd" else mixing.T @ problem.psi_y @ mixing
        w = y if kind == "eigh" else problem.w @ mixing
        mixed = replace(problem, y=y, w=w, psi_y=psi_y)
        expected = decompose(problem, SOLVERS["hmt"](problem)).values
        found = decompose(mixed, SOLVERS["hmt"](mixed)).values
        np.testing.assert_allclose(found[:30], expected[:30], rtol=1e-11)


def test_natural_oversampling_is_worse_than_nystrom_at_equal_products():
    """Which is why Nystrom's method is the default."""
    a = dense("svd", "poly 1", (300, 200), "float32")
    sparing = sketch_of(a, "oversampled", "svd", "float32", 20, inner=40, normal_noise=True)
    default = sketch_of(a, "nystrom", "svd", "float32", 32, normal_noise=True)
    errors = [found.error_of(found.decompose(rank=8)) for found in (default, sparing)]
    best = math.sqrt(float(np.sum(np.linalg.svd(a, compute_uv=False)[8:] ** 2)))
    assert errors[0] / best - 1 < 0.5 * (errors[1] / best - 1)
