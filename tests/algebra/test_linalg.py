"""Small dense algebra, and orthogonal bases of matrices that have none or nearly none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sketches import KINDS, case
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.linalg import (
    mirrored,
    sandwich,
    spectral_norm,
    triangular_factor,
    triangular_inverse,
    upper_times,
)
from skerch_ooc.algebra.methods.decompose import decompose, root_of
from skerch_ooc.algebra.methods.problem import Core

fields = pytest.mark.parametrize("dtype", ["float64", "complex128"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def random(rows, columns, dtype="float64", seed=0):
    x = np.random.default_rng(seed).standard_normal((2, rows, columns))
    return x[0] + 1j * x[1] if dtype == "complex128" else x[0]


def with_values(values, rows=60, seed=0):
    """A matrix of these singular values."""
    k = len(values)
    return np.linalg.qr(random(rows, k, seed=seed))[0] * values @ np.linalg.qr(random(k, k))[0]


class TestTriangularInverse:
    @fields
    @pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 150])
    def test_inverts(self, dtype, n):
        upper = np.triu(random(n, n, dtype)) + 3 * np.sqrt(n) * np.eye(n)
        np.testing.assert_allclose(triangular_inverse(upper) @ upper, np.eye(n), atol=1e-13)

    @given(n=st.integers(1, 140), c=st.integers(1, 140))
    def test_of_a_leading_block_is_the_leading_block(self, n, c):
        upper = np.triu(random(n, n)) + 3 * np.sqrt(n) * np.eye(n)
        leading = triangular_inverse(upper[:c, :c])
        np.testing.assert_allclose(triangular_inverse(upper)[:c, :c], leading, atol=1e-12)

    def test_is_triangular(self):
        inverse = triangular_inverse(triangular_factor(random(130, 130)))
        assert np.count_nonzero(np.tril(inverse, -1)) == 0


class TestUpperTimes:
    @fields
    @pytest.mark.parametrize("rows", [0, 1, 256, 257, 600])
    def test_is_the_product_of_a_triangle(self, dtype, rows):
        upper, right = np.triu(random(rows, 300, dtype)), random(300, 7, dtype)
        np.testing.assert_allclose(upper_times(upper, right), upper @ right, atol=1e-12)

    @fields
    def test_is_the_product_of_what_is_no_triangle(self, dtype):
        left, right = np.triu(random(600, 600, dtype)), random(600, 7, dtype)
        left[599, 0] = 1.0
        np.testing.assert_allclose(upper_times(left, right), left @ right, atol=1e-12)


class TestMirrored:
    @fields
    @pytest.mark.parametrize("n", [0, 1, 256, 600])
    def test_has_the_given_upper_triangle_on_both_sides(self, dtype, n):
        upper = random(n, n, dtype)
        strict = np.triu(upper, 1)
        whole = strict + strict.conj().T + np.diag(np.diagonal(upper).real)
        np.testing.assert_array_equal(mirrored(upper), whole)


class TestSpectralNorm:
    @fields
    def test_is_that_of_an_svd_to_a_few_per_cent(self, dtype):
        x = random(80, 50, dtype)
        truth = np.linalg.norm(x, 2)
        assert 0.9 * truth < spectral_norm(x) <= truth * (1 + 1e-12)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
    def test_of_nothing_is_zero(self, shape):
        assert spectral_norm(np.zeros(shape)) == 0

    @pytest.mark.parametrize("exponent", [-900, 900])
    def test_of_extreme_entries_has_the_same_bits(self, exponent):
        x, scale = random(80, 50), 2.0**exponent
        assert spectral_norm(x * scale) == spectral_norm(x) * scale

    def test_of_zeros_is_zero(self):
        assert spectral_norm(np.zeros((3, 4))) == 0

    def test_is_the_same_each_time(self):
        x = random(80, 50)
        assert spectral_norm(x) == spectral_norm(x)


class TestSandwich:
    @fields
    def test_is_the_product(self, dtype):
        left, middle, right = random(7, 4, dtype), random(4, 5, dtype), random(6, 5, dtype)
        expected = left @ middle @ right.conj().T
        np.testing.assert_allclose(sandwich(left, middle, right), expected, rtol=1e-12)

    @fields
    @pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 5), (5, 4)])
    def test_of_a_diagonal_is_the_product(self, dtype, rows, columns):
        middle = np.zeros((rows, columns), dtype)
        middle[np.diag_indices(4)] = [1, 2, 0, 4]
        left, right = random(7, rows, dtype), random(6, columns, dtype)
        expected = left @ middle @ right.conj().T
        np.testing.assert_allclose(sandwich(left, middle, right), expected, atol=1e-13)


class TestRootOf:
    @fields
    def test_orthogonalises(self, dtype):
        x = random(60, 20, dtype)
        root = root_of(x, 1e-7)
        q = x @ root.inverse
        np.testing.assert_allclose(q.conj().T @ q, np.eye(20), atol=1e-13)
        np.testing.assert_allclose(q @ root.factor, x, atol=1e-13)

    @pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9, 0])
    def test_drops_what_is_below_the_floor(self, smallest):
        values = np.concatenate([10 ** -np.linspace(0, 4, 15), np.full(5, smallest)])
        root = root_of(with_values(values), 1e-7)
        assert root.inverse.shape == (20, 20 if smallest > 1e-7 else 15)

    @pytest.mark.parametrize("smallest", [1e-9, 0])
    def test_orthogonalises_what_it_keeps(self, smallest):
        x = with_values(np.concatenate([10 ** -np.linspace(0, 4, 15), np.full(5, smallest)]))
        q = x @ root_of(x, 1e-7).inverse
        np.testing.assert_allclose(q.T @ q, np.eye(15), atol=1e-11)

    def test_sees_through_a_triangle_whose_diagonal_shows_nothing(self):
        """Kahan's matrix: its smallest singular value is far below its diagonal."""
        n, c = 90, 0.3
        s = np.sqrt(1 - c * c)
        kahan = np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
        kept = root_of(kahan, 1e-5)
        assert np.abs(np.diagonal(triangular_factor(kahan))).min() > 1e-2
        assert kept.inverse.shape[1] == np.sum(
            np.linalg.svd(kahan)[1] > 1e-5 * np.linalg.norm(kahan, 2)
        )

    def test_knows_the_condition(self):
        root = root_of(with_values(10 ** -np.linspace(0, 4, 15)), 1e-7)
        assert root.condition == pytest.approx(1e4, rel=0.1)

    @pytest.mark.parametrize("shape", [(10, 0), (10, 4), (3, 8)])
    def test_takes_zeros(self, shape):
        root = root_of(np.zeros(shape), 1e-7)
        assert root.inverse.shape == (shape[1], 0)

    def test_takes_fewer_rows_than_columns(self):
        x = random(5, 12)
        q = x @ root_of(x, 1e-7).inverse
        np.testing.assert_allclose(q.T @ q, np.eye(5), atol=1e-13)


class TestDecompose:
    @pytest.mark.parametrize("kind", KINDS)
    def test_does_not_care_how_the_approximation_is_written(self, kind):
        found = case("nystrom", kind, "poly 1", "complex128", 20)
        core = found.solve()
        c = core.middle.shape[0]
        mixing, unmixing = random(c, c, "complex128"), None
        unmixing = np.linalg.inv(mixing)
        left = core.left @ mixing
        if kind == "eigh":
            other = Core(left, unmixing @ core.middle @ unmixing.conj().T, left, c)
        else:
            other = Core(left, unmixing @ core.middle, core.right, c)
        plain, mixed = decompose(found.problem, core), decompose(found.problem, other)
        np.testing.assert_allclose(mixed.values, plain.values, atol=1e-11)
        np.testing.assert_allclose(
            found.approximation(mixed), found.approximation(plain), atol=1e-11
        )

    @pytest.mark.parametrize("kind", KINDS)
    def test_takes_repeated_columns(self, kind):
        found = case("nystrom", kind, "poly 1", "float32", 20)
        core = found.solve(core_size=8)
        twice = np.concatenate([core.left, core.left], axis=1)
        half = 0.25 if kind == "eigh" else 0.5
        middle = half * np.tile(core.middle, (2, 2 if kind == "eigh" else 1))
        right = twice if kind == "eigh" else core.right
        solution = decompose(found.problem, Core(twice, middle, right, 8))
        expected = decompose(found.problem, core)
        np.testing.assert_allclose(solution.values, expected.values, rtol=1e-9)
        u = found.y @ solution.left
        np.testing.assert_allclose(u.conj().T @ u, np.eye(8), atol=1e-9)

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_an_empty_core_is_empty(self, kind):
        found = case("nystrom", kind, "poly 1", "float32", 20)
        problem = found.problem
        left = np.zeros((20, 0))
        right = left if kind == "eigh" else np.zeros((problem.w.shape[1], 0))
        solution = decompose(problem, Core(left, np.zeros((0, 0)), right, 0))
        assert (solution.values.shape, solution.left.shape) == ((0,), (20, 0))

    def test_symmetrises_a_hermitian_core(self):
        found = case("nystrom", "eigh", "poly 1", "float64", 20)
        core = found.solve()
        skew = 1e-3 * random(*core.middle.shape)
        skewed = replace(core, middle=core.middle + skew - skew.T)
        expected = decompose(found.problem, core).values
        np.testing.assert_allclose(decompose(found.problem, skewed).values, expected, rtol=1e-9)
