"""Core-truncated Nystrom against dense matrices, which know the true error of every choice."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skerch_ooc.linalg import eigh_by_magnitude, hermitian_part
from skerch_ooc.recovery.nystrom import candidates, held_out_errors, leave_one_out, solve
from skerch_ooc.recovery.problem import Problem
from skerch_ooc.spec import DTYPES

N = 300
INDEX = np.arange(N)
MIXED_SIGNS = np.random.default_rng(5).choice([-1.0, 1.0], N)
SPECTRA = {
    "poly": 1 / (1.0 + INDEX),
    "exp": 10 ** (-0.02 * INDEX),
    "outliers on a flat bulk": np.where(INDEX < 20, 1, 0.02),
    "steep": 10 ** (-0.2 * INDEX),
    "rank 1": np.where(INDEX < 1, 1.0, 0),
    "rank 30": np.where(INDEX < 30, 1 / (1.0 + INDEX), 0),
    "rank 58": np.where(INDEX < 58, 1 / (1.0 + INDEX), 0),
}
SLOW = ["poly", "exp", "outliers on a flat bulk"]
LOW_RANK = {"rank 1": 1, "rank 30": 30, "rank 58": 58}

all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
both_fields = pytest.mark.parametrize("dtype", ["float32", "complex64"])
both_signs = pytest.mark.parametrize("definite", [True, False], ids=["definite", "indefinite"])
slow_spectra = pytest.mark.parametrize("spectrum", SLOW)
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def normals(generator, shape, dtype):
    if np.dtype(dtype).kind == "c":
        pair = generator.standard_normal((2, *shape)) / math.sqrt(2)
        return pair[0] + 1j * pair[1]
    return generator.standard_normal(shape)


@cache
def sketched(spectrum, dtype, m=60, q=30, *, seed=0, definite=False):
    """A dense matrix, its sketches in ``dtype``, and the problem that is made of them."""
    generator = np.random.default_rng(seed)
    values = SPECTRA[spectrum] * (1 if definite else MIXED_SIGNS)
    basis = np.linalg.qr(normals(generator, (N, N), dtype))[0]
    a = (basis * values) @ basis.conj().T
    omega = generator.choice([-1.0, 1.0], (N, m))
    g = normals(generator, (N, q), dtype)
    wide = np.result_type(dtype, np.float64)
    y, t = ((a @ x).astype(dtype).astype(wide) for x in (omega, g))
    problem = Problem(
        gram=y.conj().T @ y,
        core=omega.T @ y,
        gram_test=y.conj().T @ t,
        test_gram=t.conj().T @ t,
        core_test=y.conj().T @ g,
        epsilon=float(np.finfo(dtype).eps),
    )
    return SimpleNamespace(a=a, values=values, y=y, t=t, g=g, problem=problem)


def approximation(case, solution):
    u = case.y @ solution.transform
    return (u * solution.values) @ u.conj().T


def error_of(case, solution):
    return np.linalg.norm(case.a - approximation(case, solution))


def core_of(case):
    return eigh_by_magnitude(hermitian_part(case.problem.core))


def true_errors(case, sizes):
    """``||A - Y [H]_c^+ Y^H||_F`` for each ``c``, without any Gram matrix.

    What of ``A`` is outside the range of ``Y`` adds the same to all of them.
    """
    values, vectors = core_of(case)
    q, r = np.linalg.qr(case.y)
    inner = q.conj().T @ case.a @ q
    outside = np.linalg.norm(case.a - q @ inner @ q.conj().T)
    projected = r @ vectors
    return [
        math.hypot(
            outside,
            np.linalg.norm(inner - (projected[:, :c] / values[:c]) @ projected[:, :c].conj().T),
        )
        for c in sizes
    ]


def regret(case, solution, sizes):
    return error_of(case, solution) / min(true_errors(case, sizes)) - 1


class TestLowRank:
    """An operator of lower rank than there are measurements is recovered exactly."""

    low_ranks = pytest.mark.parametrize("spectrum", LOW_RANK)

    @all_dtypes
    @low_ranks
    @both_signs
    def test_is_recovered_to_rounding(self, spectrum, dtype, definite):
        case = sketched(spectrum, dtype, definite=definite)
        error = error_of(case, solve(case.problem)) / np.linalg.norm(case.a)
        assert error <= (2e-6 if dtype in ("float32", "complex64") else 1e-6)

    @all_dtypes
    @low_ranks
    @both_signs
    def test_its_eigenvalues_come_with_their_signs_in_descending_magnitude(
        self, spectrum, dtype, definite
    ):
        case = sketched(spectrum, dtype, definite=definite)
        rank = LOW_RANK[spectrum]
        found = solve(case.problem).values[:rank]
        np.testing.assert_allclose(found, case.values[:rank], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("dtype", ["float64", "complex128"])
    @low_ranks
    def test_what_is_below_the_noise_floor_is_cut(self, spectrum, dtype):
        case = sketched(spectrum, dtype)
        assert len(solve(case.problem).values) == LOW_RANK[spectrum]


class TestVectors:
    @all_dtypes
    @both_signs
    @pytest.mark.parametrize("spectrum", [*SLOW, *LOW_RANK])
    def test_are_orthonormal_to_single_precision_and_better(self, spectrum, dtype, definite):
        case = sketched(spectrum, dtype, definite=definite)
        u = case.y @ solve(case.problem).transform
        assert np.linalg.norm(u.conj().T @ u - np.eye(u.shape[1]), 2) < 1e-7

    @all_dtypes
    @pytest.mark.parametrize("spectrum", [*SLOW, "steep", *LOW_RANK])
    def test_are_as_orthonormal_as_the_rounding_of_the_gram_matrix_allows(self, spectrum, dtype):
        case = sketched(spectrum, dtype)
        u = case.y @ solve(case.problem).transform
        singular = np.linalg.svd(case.y, compute_uv=False)
        condition = singular[0] / singular[u.shape[1] - 1]
        assert np.linalg.norm(u.conj().T @ u - np.eye(u.shape[1]), 2) < 2e-15 * condition**2

    @all_dtypes
    def test_have_a_largest_coefficient_that_is_real_and_positive(self, dtype):
        transform = solve(sketched("poly", dtype).problem).transform
        largest = transform[np.argmax(np.abs(transform), axis=0), np.arange(transform.shape[1])]
        np.testing.assert_allclose(largest, np.abs(largest), rtol=1e-12)

    @all_dtypes
    def test_belong_to_real_eigenvalues(self, dtype):
        assert solve(sketched("poly", dtype).problem).values.dtype == np.float64


class TestChoiceByTestSketch:
    @both_fields
    @slow_spectra
    @both_signs
    @seeds
    def test_is_hardly_worse_than_the_best_candidate(self, spectrum, dtype, definite, seed):
        case = sketched(spectrum, dtype, seed=seed, definite=definite)
        solution = solve(case.problem)
        assert regret(case, solution, [size for size, _ in solution.tested]) < 0.15

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @slow_spectra
    @both_signs
    def test_is_hardly_worse_than_the_best_of_all_sizes(self, spectrum, dtype, definite):
        case = sketched(spectrum, dtype, definite=definite)
        assert regret(case, solve(case.problem), range(1, 61)) < 0.15

    @all_dtypes
    @pytest.mark.parametrize("spectrum", [*SLOW, "rank 58"])
    def test_rests_on_the_dense_residual_of_the_choosing_columns(self, spectrum, dtype):
        case = sketched(spectrum, dtype)
        values, vectors = core_of(case)
        sizes, q = [10, 25, 40], 10
        expected = []
        for size in sizes:
            inner = vectors[:, :size] / values[:size] @ vectors[:, :size].conj().T
            residual = case.t - case.y @ (inner @ (case.y.conj().T @ case.g))
            expected.append(np.linalg.norm(residual[:, :q]) / math.sqrt(q))
        found = held_out_errors(case.problem, values, vectors, sizes, q)
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("columns", "choosing"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (30, 10), (31, 11)]
    )
    def test_uses_a_third_of_the_test_columns(self, columns, choosing):
        assert solve(sketched("poly", "float32", q=columns).problem).choosing == choosing

    def test_takes_the_size_of_the_smallest_error(self):
        solution = solve(sketched("poly", "float32").problem)
        assert solution.core_size == min(solution.tested, key=lambda pair: pair[1])[0]


class TestChoiceByLeaveOneOut:
    """Without test columns."""

    @both_fields
    @slow_spectra
    @both_signs
    @seeds
    def test_is_little_worse_than_the_best_candidate(self, spectrum, dtype, definite, seed):
        case = sketched(spectrum, dtype, q=0, seed=seed, definite=definite)
        solution = solve(case.problem)
        assert regret(case, solution, [size for size, _ in solution.tested]) < 0.25

    def test_rests_on_the_leave_one_out_error_of_each_candidate(self):
        case = sketched("poly", "float32", q=0)
        values, vectors = core_of(case)
        tested = solve(case.problem).tested
        assert [error for _, error in tested] == [
            leave_one_out(case.problem, vectors[:, :size], 1 / values[:size]) for size, _ in tested
        ]

    @both_fields
    def test_cuts_nothing_but_the_null_space_of_an_operator_of_low_rank(self, dtype):
        assert solve(sketched("rank 58", dtype, q=0).problem).core_size == 58


class TestCandidates:
    @pytest.mark.parametrize(
        ("largest", "measurements", "smallest"),
        [(60, 60, 10), (2000, 2000, 333), (5, 60, 5), (1, 60, 1), (3, 4, 1)],
    )
    def test_reach_from_a_sixth_of_the_measurements_to_the_noise_floor(
        self, largest, measurements, smallest
    ):
        sizes = candidates(largest, measurements)
        assert (sizes[0], sizes[-1]) == (smallest, largest)

    @pytest.mark.parametrize(("largest", "measurements"), [(60, 60), (2000, 2000), (5, 60)])
    def test_are_ascending_and_each_comes_once(self, largest, measurements):
        sizes = candidates(largest, measurements)
        assert sizes == sorted(set(sizes))

    def test_are_few_however_many_measurements_there_are(self):
        assert len(candidates(100_000, 100_000)) <= 24

    def test_are_none_if_all_is_noise(self):
        assert candidates(0, 60) == []


class TestLeaveOneOut:
    @staticmethod
    def share(spectrum, dtype, definite, seed):
        """The estimate, relative to the true error."""
        case = sketched(spectrum, dtype, 120, seed=seed, definite=definite)
        solution = solve(case.problem)
        return solution.leave_one_out / error_of(case, solution)

    @both_fields
    @slow_spectra
    @both_signs
    def test_estimates_the_true_error_within_a_third(self, spectrum, dtype, definite):
        shares = [self.share(spectrum, dtype, definite, seed) for seed in range(5)]
        assert 0.7 < np.median(shares) < 1.35

    @both_fields
    @slow_spectra
    @both_signs
    @seeds
    def test_is_never_off_by_a_factor_of_two(self, spectrum, dtype, definite, seed):
        assert 0.5 < self.share(spectrum, dtype, definite, seed) < 2

    @staticmethod
    def recomputed(case, size):
        """Leaves out each column in turn, with the core cut to ``[H]_c`` on the other ones."""
        values, vectors = core_of(case)
        kept = (vectors[:, :size] * values[:size]) @ vectors[:, :size].conj().T
        core = hermitian_part(case.problem.core)
        squares = []
        for column in range(len(core)):
            others = np.delete(np.arange(len(core)), column)
            inverse = np.linalg.pinv(kept[np.ix_(others, others)], rcond=1e-11, hermitian=True)
            predicted = case.y[:, others] @ (inverse @ core[others, column])
            squares.append(np.linalg.norm(case.y[:, column] - predicted) ** 2)
        return math.sqrt(np.mean(squares))

    @all_dtypes
    @slow_spectra
    def test_equals_its_recomputation_when_nothing_is_cut(self, spectrum, dtype):
        case = sketched(spectrum, dtype)
        values, vectors = core_of(case)
        found = leave_one_out(case.problem, vectors, 1 / values)
        assert found == pytest.approx(self.recomputed(case, 60), rel=1e-5)

    @all_dtypes
    @slow_spectra
    @pytest.mark.parametrize("size", [10, 45])
    def test_equals_its_recomputation_with_a_truncated_core(self, spectrum, dtype, size):
        case = sketched(spectrum, dtype)
        values, vectors = core_of(case)
        found = leave_one_out(case.problem, vectors[:, :size], 1 / values[:size])
        assert found == pytest.approx(self.recomputed(case, size), rel=1e-5)

    def test_of_an_empty_core_is_the_norm_of_the_operator_itself(self):
        case = sketched("poly", "float32")
        found = leave_one_out(case.problem, np.zeros((60, 0)), np.zeros(0))
        assert found == pytest.approx(np.linalg.norm(case.y) / math.sqrt(60))


class TestSettings:
    @staticmethod
    def solved(**settings):
        problem = sketched("poly", "float32").problem
        return solve(dataclasses.replace(problem, **settings))

    @pytest.mark.parametrize("core", [1, 17, 60])
    def test_a_core_of_the_users_is_taken(self, core):
        assert self.solved(core_size=core).core_size == core

    def test_a_core_of_the_users_is_as_good_as_its_dense_counterpart(self):
        case = sketched("poly", "float32")
        (expected,) = true_errors(case, [17])
        assert error_of(case, self.solved(core_size=17)) == pytest.approx(expected, rel=1e-6)

    def test_a_core_of_the_users_leaves_all_test_columns_for_the_error(self):
        solution = self.solved(core_size=17)
        assert (solution.choosing, solution.tested) == (0, ())

    def test_a_core_beyond_the_noise_floor_is_cut_down_to_it(self):
        problem = sketched("rank 30", "float64").problem
        assert solve(dataclasses.replace(problem, core_size=50)).core_size == 30

    @pytest.mark.parametrize("rank", [1, 5])
    def test_a_rank_keeps_the_leading_values(self, rank):
        assert np.array_equal(self.solved(rank=rank).values, self.solved().values[:rank])

    @pytest.mark.parametrize("rank", [1, 5])
    def test_a_rank_keeps_the_leading_vectors(self, rank):
        kept = self.solved(rank=rank).transform
        assert np.array_equal(kept, self.solved().transform[:, :rank])

    def test_a_rank_above_what_there_is_returns_all(self):
        assert np.array_equal(self.solved(rank=1000).values, self.solved().values)


class TestNothingThere:
    @pytest.fixture
    def solution(self, dtype, columns):
        zeros = {
            "gram": (20, 20),
            "core": (20, 20),
            "gram_test": (20, columns),
            "test_gram": (columns, columns),
            "core_test": (20, columns),
        }
        wide = np.result_type(dtype, np.float64)
        arrays = {name: np.zeros(shape, wide) for name, shape in zeros.items()}
        return solve(Problem(**arrays, epsilon=float(np.finfo(dtype).eps)))

    no_operator = pytest.mark.parametrize(
        ("dtype", "columns"), [("float32", 0), ("float32", 9), ("complex128", 9)]
    )

    @no_operator
    def test_a_zero_core_has_no_values(self, solution):
        assert solution.values.shape == (0,)

    @no_operator
    def test_a_zero_core_has_no_vectors(self, solution):
        assert solution.transform.shape == (20, 0)

    @no_operator
    def test_a_zero_core_has_no_error(self, solution):
        assert solution.leave_one_out == 0
