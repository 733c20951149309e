"""Extraction with a measured metric: what only dense operators and any test columns show."""

from __future__ import annotations

import numpy as np
import pytest

from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.metric import (
    AppliedColumns,
    AppliedSides,
    compressed_copies,
    extraction,
    projection,
    root_of_metric,
)
from skerch_ooc.planning.spec import DTYPES

N, WIDTH, TESTS = 200, 160, 12
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def random(rows, columns, seed, dtype):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, columns))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * generator.standard_normal((rows, columns))
    return x.astype(np.result_type(dtype, np.float64))


def orthonormal(rows, columns, seed, dtype):
    return np.linalg.qr(random(rows, columns, seed, dtype))[0]


def hermitian(dtype, values=None):
    """An operator of mixed signs."""
    if values is None:
        values = (-1.0) ** np.arange(N) / (1.0 + np.arange(N))
    u = orthonormal(N, N, 5, dtype)
    return (u * values) @ u.conj().T


def stored(x, dtype):
    """As it is on disk; sums of it are in double precision."""
    return x.astype(dtype).astype(np.result_type(dtype, np.float64))


def extracted(a, x, dtype, *, spent=0, mix=None, **more):
    """The extraction from test columns, of tall columns that are the products, or a mix of them."""
    y = stored(a @ x, dtype)
    g = random(N, TESTS, 9, dtype)
    t = stored(a @ g, dtype)
    tall = y if mix is None else y @ mix
    coordinates = np.eye(y.shape[1]) if mix is None else np.linalg.inv(mix)
    both = np.concatenate([tall, t], axis=1)
    copy, small_t = compressed_copies(both.conj().T @ both, (tall.shape[1], TESTS))
    columns = AppliedColumns(
        x.conj().T @ x, x.conj().T @ y, coordinates, g.conj().T @ y, spent=spent
    )
    return tall, extraction(columns, copy, small_t, np.finfo(dtype).eps, **more)


def approximation(tall, found):
    solution = decompose(found.problem, found.solve())
    u = tall @ (found.left @ solution.left)
    return (u * solution.values) @ u.conj().T, u


def nystrom(a, x):
    """The textbook formula on an orthonormal basis of the test columns."""
    q = np.linalg.svd(x, full_matrices=False)
    basis = q[0][:, q[1] > 1e-4 * q[1][0]]
    y = a @ basis
    return y @ np.linalg.pinv(basis.conj().T @ y, rcond=1e-12, hermitian=True) @ y.conj().T


class TestExtraction:
    @all_dtypes
    def test_is_the_nystrom_approximation_of_what_the_columns_span(self, dtype):
        a, x = hermitian(dtype), random(N, 40, 1, dtype)
        found, u = approximation(*extracted(a, x, dtype, core_size=40))
        single = np.finfo(dtype).eps > 1e-10
        tolerance = 2e-4 if single else 1e-9
        assert np.linalg.norm(found - nystrom(a, x)) < tolerance * np.linalg.norm(a)
        assert np.linalg.norm(u.conj().T @ u - np.eye(u.shape[1])) < 1e-6

    @all_dtypes
    def test_does_not_depend_on_a_change_of_basis_of_the_columns(self, dtype):
        a, x = hermitian(dtype), random(N, 30, 1, dtype)
        mixed = x @ (random(30, 30, 2, dtype) * 10.0 ** -np.linspace(0, 2, 30))
        wide = str(np.result_type(dtype, np.float64))
        one, other = (approximation(*extracted(a, each, wide))[0] for each in (x, mixed))
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(a)

    @all_dtypes
    def test_leaves_out_directions_of_columns_that_depend_on_each_other(self, dtype):
        a, x = hermitian(dtype), random(N, 30, 1, dtype)
        doubled = np.concatenate([x, x @ random(30, 10, 2, dtype)], axis=1)
        tall, found = extracted(a, doubled, dtype)
        assert found.problem.y.shape[1] == 30
        expected = approximation(*extracted(a, x, dtype))[0]
        # Not the same columns are orthonormal: other rounding errors.
        error = np.linalg.norm(approximation(tall, found)[0] - a)
        assert error < 1.01 * np.linalg.norm(expected - a)

    @all_dtypes
    def test_vectors_are_made_of_any_tall_columns(self, dtype):
        a, x = hermitian(dtype), random(N, 30, 1, dtype)
        mix = random(30, 30, 3, dtype)
        one = approximation(*extracted(a, x, dtype))[0]
        other = approximation(*extracted(a, x, dtype, mix=mix))[0]
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(a)

    def test_orthonormal_later_columns_and_noise_go_together(self):
        a, omega = hermitian("float32"), random(N, 20, 1, "float32")
        q = stored(np.linalg.qr(a @ omega)[0], "float32")
        both = approximation(*extracted(a, np.concatenate([omega, q], axis=1), "float32"))[0]
        alone = approximation(*extracted(a, q, "float32"))[0]
        assert np.linalg.norm(both - a) < 0.9 * np.linalg.norm(alone - a)

    def test_an_exact_low_rank_is_found(self):
        values = np.where(np.arange(N) < 8, (-1.0) ** np.arange(N), 0.0)
        a = hermitian("float32", values)
        found, u = approximation(*extracted(a, random(N, 20, 1, "float32"), "float32"))
        assert u.shape[1] >= 8
        assert np.linalg.norm(found - a) < 1e-5 * np.linalg.norm(a)


class TestChoice:
    def test_spent_test_columns_choose_nothing_and_count_as_used(self):
        a, x = hermitian("float32"), random(N, 40, 1, "float32")
        assert extracted(a, x, "float32", spent=6)[1].solve().choosing == 6 + 2

    def test_without_unspent_test_columns_none_tells_an_error(self):
        a, x = hermitian("float32"), random(N, 40, 1, "float32")
        core = extracted(a, x, "float32", spent=TESTS)[1].solve()
        assert core.choosing == TESTS
        assert core.tested

    def test_leaves_no_column_out(self):
        a, x = hermitian("float32"), random(N, 40, 1, "float32")
        assert extracted(a, x, "float32")[1].solve().leave_one_out is None


class TestProjection:
    @staticmethod
    def posed(a, u, v, dtype):
        """Tall columns are the test columns and the products of each side."""
        y, w = stored(a @ v, dtype), stored(a.conj().T @ u, dtype)
        g = random(a.shape[1], TESTS, 9, dtype)
        t = stored(a @ g, dtype)
        c, d = np.concatenate([u, y], axis=1), np.concatenate([v, w], axis=1)
        ct = np.concatenate([c, t], axis=1)
        parts = compressed_copies(ct.conj().T @ ct, (u.shape[1], y.shape[1], TESTS))
        copy, small_t = np.concatenate(parts[:2], axis=1), parts[2]
        right = np.concatenate(compressed_copies(d.conj().T @ d, (v.shape[1], w.shape[1])), axis=1)
        both = np.concatenate([w, v], axis=1)
        first, second, eye = u.shape[1], v.shape[1], np.eye(c.shape[1])
        sides = AppliedSides(
            left=eye[:, :first], products=eye[:, first:], right=eye[:, :second],
            adjoint_products=eye[:, second:], left_metric=u.conj().T @ u,
            right_metric=v.conj().T @ v, middle=u.conj().T @ y,
            tests=g.conj().T @ both, start=both[:1],
        )  # fmt: skip
        found = projection(sides, (copy, right), small_t, np.finfo(dtype).eps)
        solution = decompose(found.problem, found.solve())
        return (c @ solution.left * solution.values) @ (d @ found.right @ solution.right).conj().T

    @all_dtypes
    @pytest.mark.parametrize("columns", [(20, 30), (30, 20), (25, 0)])
    def test_misses_what_lies_outside_of_both(self, dtype, columns):
        values = 1 / (1.0 + np.arange(WIDTH))
        left, right = orthonormal(N, WIDTH, 3, dtype), orthonormal(WIDTH, WIDTH, 4, dtype)
        a = (left * values) @ right.conj().T
        u = stored(random(N, columns[0], 1, dtype), dtype)
        v = stored(random(WIDTH, columns[1], 2, dtype), dtype)
        p = u @ np.linalg.pinv(u)
        q = v @ np.linalg.pinv(v) if columns[1] else np.zeros((WIDTH, WIDTH))
        expected = (np.eye(N) - p) @ a @ (np.eye(WIDTH) - q)
        found = self.posed(a, u, v, dtype)
        tolerance = 1e-4 if np.finfo(dtype).eps > 1e-10 else 1e-10
        assert np.linalg.norm(a - found - expected) < tolerance * np.linalg.norm(a)


class TestSmallTools:
    @all_dtypes
    def test_the_root_of_a_metric_makes_columns_orthonormal(self, dtype):
        x = random(N, 20, 1, dtype) * 10.0 ** np.linspace(-6, 6, 20)
        root = root_of_metric(x.conj().T @ x, np.finfo(dtype).eps)
        made = x @ root
        np.testing.assert_allclose(made.conj().T @ made, np.eye(20), atol=1e-8)

    def test_columns_of_zeros_are_left_out(self):
        x = np.zeros((N, 3))
        x[:, 1] = 1
        assert root_of_metric(x.T @ x, 1e-7).shape == (3, 1)

    @all_dtypes
    def test_copies_have_the_inner_products_of_the_columns(self, dtype):
        x = random(N, 30, 1, dtype)
        x[:, 20:] = x[:, :10] @ random(10, 10, 2, dtype) + 1e-3 * x[:, 20:]
        gram = x.conj().T @ x
        copies = np.concatenate(compressed_copies(gram, (20, 10)), axis=1)
        np.testing.assert_allclose(copies.conj().T @ copies, gram, atol=1e-9)

    def test_copies_of_dependent_columns_have_fewer_rows(self):
        x = random(N, 10, 1, "float64")
        x = np.concatenate([x, x[:, :4]], axis=1)
        one, other = compressed_copies(x.T @ x, (10, 4))
        np.testing.assert_allclose(other, one[:, :4], atol=1e-9)
        assert len(one) == 10
