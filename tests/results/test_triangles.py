"""Triangles, bands, shifts and quadratic forms of results, against the same in memory."""

from __future__ import annotations

import gc
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import DTYPES, dense

import skerch_ooc as ooc
from skerch_ooc.results.bands import Band, Diagonals
from skerch_ooc.results.streamed import Factors
from skerch_ooc.results.vectors import Tall
from skerch_ooc.store.layout import Layout

pytestmark = pytest.mark.usefixtures("one_thread")

TALL, SQUARE = (700, 290), (600, 600)
OFFSETS = (-600, -257, -256, -3, 0, 1, 255, 300, 700)
BANDS = ((-1, 1), (0, 0), (-300, 5), (40, 90), (-5, 900), (-700, 700))
CASES = (("eigh", SQUARE), ("svd", SQUARE), ("svd", TALL), ("svd", TALL[::-1]))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results by kind, shape, dtype and whether vectors are stored; each is made once."""

    @cache
    def stored(kind, shape, dtype, rank=12):
        call = ooc.eigh if kind == "eigh" else ooc.svd
        a = dense(shape, "decay", dtype, hermitian=kind == "eigh")
        folder = tmp_path_factory.mktemp("run") / "run"
        return call(a, measurements=20, rank=rank, run_dir=folder, test_measurements=0)

    @cache
    def get(kind, shape, dtype, vectors="stored"):
        result = stored(kind, shape, dtype)
        if vectors == "stored":
            return result
        return ooc.recover(ooc.open_run(result.path.parents[2]), vectors=vectors, name="implicit")

    return get


def approximation(result):
    wide = np.complex128 if result.dtype.is_complex else np.float64
    u, values, vh = (*result.torch(), None)[:3]
    if vh is None:
        values, u = u, values
        vh = u.mH
    return (u.numpy().astype(wide) * values.numpy()) @ vh.resolve_conj().numpy().astype(wide)


def normal(dtype, *shape):
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    return x.numpy()


def close(found, expected, dtype, scale=1.0):
    limit = (3e-6 if dtype in (torch.float32, torch.complex64) else 1e-12) * scale
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit * np.abs(expected).max())


def both_products(part, expected):
    """Compares the products from both sides, of vectors and of blocks."""
    for columns in ((), (3,)):
        x = normal(part.dtype, expected.shape[1], *columns)
        y = normal(part.dtype, *columns, expected.shape[0])
        close(part @ x, expected @ x, part.dtype, 10)
        close(y @ part, y @ expected, part.dtype, 10)


@pytest.mark.covered(1)
@pytest.mark.parametrize("k", OFFSETS)
@pytest.mark.parametrize("side", ["tril", "triu"])
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_triangles_are_numpys(results, kind, shape, dtype, vectors, side, k):
    result = results(kind, shape, dtype, vectors)
    both_products(getattr(result, side)(k), getattr(np, side)(approximation(result), k))


@pytest.mark.covered(1)
@pytest.mark.parametrize(
    "ends", [(-1, 1), (0, 0), (-300, 5), (40, 90), (-5, 900), (-700, 700)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_bands_are_numpys(results, monkeypatch, kind, shape, dtype, ends):
    # So that the wider ones are differences.
    monkeypatch.setattr("skerch_ooc.results.bands._NARROW", 100)
    result = results(kind, shape, dtype)
    expected = np.tril(np.triu(approximation(result), ends[0]), ends[1])
    both_products(result.band(*ends), expected)


class InMemory(Tall):
    """Orthonormal vectors with tiles of 256 rows."""

    def __init__(self, rows, rank, seed):
        x = np.random.default_rng(seed).standard_normal((rows, rank))
        self.vectors = np.linalg.qr(x + 1j * x[::-1])[0]
        self.layout = Layout("vectors", self.vectors.shape, "complex128", (256, rank))
        self.path = Path("vectors")

    factor_columns = property(lambda self: self.shape[1])
    transform = None

    def open_row(self, number, inside):
        return lambda column: self.factor(number)

    def factor(self, number):
        return self.vectors[self.layout.rows(number).slice]


SIZES = st.integers(3, 1300)
DIAGONALS = st.integers(-1400, 1400)


@settings(max_examples=40, deadline=None)
@given(height=SIZES, width=SIZES, ends=st.tuples(DIAGONALS, DIAGONALS), hermitian=st.booleans())
def test_diagonals_of_any_shape_are_numpys(height, width, ends, hermitian):
    left = InMemory(height, 3, 1)
    right = left if hermitian else InMemory(width, 3, 2)
    factors = Factors(left, np.array([3.0, -2.0, 0.5]), right)
    a = (left.vectors * factors.values) @ right.vectors.conj().T
    low, high = sorted(ends)
    x = np.random.default_rng(4).standard_normal((a.shape[1], 2))
    for kept in (Diagonals(low, None), Diagonals(None, high), Diagonals(low, high)):
        expected = a if kept.last is None else np.tril(a, kept.last)
        expected = expected if kept.first is None else np.triu(expected, kept.first)
        found = Band(factors, torch.complex128, kept) @ x
        np.testing.assert_allclose(found, expected @ x, rtol=1e-9, atol=1e-12)


def test_parts_of_several_tiles_are_numpys(tmp_path):
    a = dense((4400, 60), "decay", "float64", hermitian=False)
    usv = ooc.svd(a, measurements=20, rank=8, run_dir=tmp_path / "run", test_measurements=0)
    expected = approximation(usv)
    both_products(usv.tril(-4100), np.tril(expected, -4100))
    both_products(usv.triu(-4100), np.triu(expected, -4100))


def test_entries_outside_of_the_band_are_zero(results):
    usv = results("svd", TALL, "float32")
    rows, columns = [3, 699, 0], slice(280, 0, -40)
    expected = np.tril(approximation(usv), -2)[rows][:, columns]
    close(usv.tril(-2).submatrix(rows, columns), expected, torch.float32, 10)
    assert usv.tril(-2).submatrix(0, 5).shape == ()


def test_scipy_takes_parts_as_operators(results):
    from scipy.sparse.linalg import LinearOperator

    usv = results("svd", TALL, "complex128")
    operator = usv.triu(2).scipy()
    assert isinstance(operator, LinearOperator)
    expected = np.triu(approximation(usv), 2)
    y = normal(torch.complex128, TALL[0], 2)
    close(operator.rmatmat(y), expected.conj().T @ y, torch.complex128, 10)


def test_tensors_stay_tensors(results):
    eig = results("eigh", SQUARE, "float32")
    x = torch.ones(SQUARE[0])
    for operator in (eig.tril(), eig.band(-1, 1), eig.shifted(0.5)):
        assert (operator @ x).dtype == torch.float32
        assert torch.equal(operator @ x, torch.from_numpy(operator @ x.numpy()))


def test_band_with_ends_that_are_swapped_is_refused(results):
    with pytest.raises(ooc.UsageError, match="first = 2 is above last = 1"):
        results("eigh", SQUARE, "float32").band(2, 1)


@pytest.mark.covered(1)
@pytest.mark.parametrize("c", [0.7, -2.5, 1e-3, 0.2 + 1j], ids=str)
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["eigh", "svd"])
class TestShifted:
    def test_products_are_those_in_memory(self, results, kind, dtype, vectors, c):
        result = results(kind, SQUARE, dtype, vectors)
        shifted = result.shifted(c)
        assert shifted.dtype.is_complex == (result.dtype.is_complex or isinstance(c, complex))
        both_products(shifted, approximation(result) + c * np.eye(SQUARE[0]))

    def test_solve_is_that_in_memory(self, results, kind, dtype, vectors, c):
        result = results(kind, SQUARE, dtype, vectors)
        shifted = result.shifted(c)
        b = normal(shifted.dtype, SQUARE[0], 2)
        inverse = np.linalg.inv(approximation(result) + c * np.eye(SQUARE[0]))
        close(shifted.solve(b), inverse @ b, result.dtype, 10)
        both_products(shifted.inverse, inverse)

    def test_solve_is_exact_for_vectors_that_are_orthonormal_to_rounding(
        self, results, kind, dtype, vectors, c
    ):
        shifted = results(kind, SQUARE, dtype, vectors).shifted(c)
        b = np.random.default_rng(0).standard_normal(SQUARE[0])
        # Orthonormal vectors in single precision would leave 1e-7 and more here.
        np.testing.assert_allclose(shifted @ shifted.solve(b), b, rtol=0, atol=1e-10)


def test_entries_of_a_shifted_result_have_the_shift_on_the_diagonal(results):
    eig = results("eigh", SQUARE, "complex64")
    rows, columns = [5, 0, 599], [599, 5]
    expected = (approximation(eig) + 3 * np.eye(SQUARE[0]))[rows][:, columns]
    close(eig.shifted(3).submatrix(rows, columns), expected, torch.complex64)


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_shift_that_makes_it_singular_is_refused_with_both_values(results, kind):
    result = results(kind, SQUARE, "float32")
    u, values, v = result.left_vectors, result.torch()[kind == "svd"], result.right_vectors
    crossed = v.read_wide(0).conj().T @ u.read_wide(0)
    value = complex(np.linalg.eigvals(values.numpy()[:, None] * crossed)[0])
    value = value if value.imag else value.real
    with pytest.raises(ooc.UsageError, match=re.escape(f"{-value:.5g}"[:6])):
        result.shifted(-value).solve(np.ones(SQUARE[0]))


def test_shift_of_zero_is_refused_where_the_result_leaves_something_out(results):
    with pytest.raises(ooc.UsageError, match="the result has the eigenvalue 0"):
        results("eigh", SQUARE, "float32").shifted(0).solve(np.ones(SQUARE[0]))


@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_result_that_leaves_nothing_out_is_inverted_without_a_shift(tmp_path, kind):
    a = torch.eye(20, dtype=torch.float64) + 0.1 * dense((20, 20), "slow", hermitian=kind == "eigh")
    call = ooc.eigh if kind == "eigh" else ooc.svd
    result = call(a, measurements=20, method="hmt", run_dir=tmp_path / "run", test_measurements=0)
    b = torch.ones(20, dtype=torch.float64)
    torch.testing.assert_close(a @ result.shifted(0).solve(b), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", [np.nan, np.inf, "much", "1", None], ids=str)
def test_shift_that_is_no_number_is_refused(results, c):
    with pytest.raises(ooc.UsageError, match="must be"):
        results("eigh", SQUARE, "float32").shifted(c)


@pytest.mark.parametrize(
    "call", [lambda of: of.shifted(1), lambda of: of.quadratic_form(np.ones(9))]
)
def test_what_needs_a_square_result_is_refused_for_others(results, call):
    with pytest.raises(ooc.UsageError, match="needs a square operator"):
        call(results("svd", TALL, "complex128"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_quadratic_forms_are_those_in_memory(results, kind, dtype):
    result = results(kind, SQUARE, dtype, "implicit")
    a = approximation(result)
    x = normal(result.dtype, SQUARE[0], 3)
    expected = np.einsum("ik,ij,jk->k", x.conj(), a, x, optimize=True)
    found = result.quadratic_form(torch.from_numpy(x))
    close(found, expected, result.dtype, 10)
    assert found.is_complex() == (kind == "svd" and result.dtype.is_complex)
    one = result.quadratic_form(x[:, 0])
    assert np.ndim(one) == 0
    close(one, expected[0], result.dtype, 10)


@pytest.mark.parametrize("wrong", [np.ones(599), np.ones((600, 1, 1)), [1.0] * 600], ids=len)
def test_quadratic_form_of_what_does_not_fit_is_refused(results, wrong):
    with pytest.raises((ValueError, TypeError), match=r"does not fit|must be a numpy array"):
        results("eigh", SQUARE, "float32").quadratic_form(wrong)


def test_part_keeps_the_temporary_run_that_it_is_of():
    a = dense((80, 80), "rank 1")
    lower = ooc.eigh(a, measurements=10, test_measurements=0).tril()
    gc.collect()
    np.testing.assert_allclose(lower @ np.ones(80), np.tril(a) @ np.ones(80), atol=1e-12)


@pytest.mark.thorough
def test_parts_can_be_decomposed_themselves(results, tmp_path):
    lower = results("svd", TALL, "float64").tril(-400)
    again = ooc.svd(lower, method="krylov", rank=3, pairs_tolerance=1e-6, run_dir=tmp_path / "run")
    expected = np.linalg.svd(np.tril(approximation(results("svd", TALL, "float64")), -400))[1]
    np.testing.assert_allclose(again.S, expected[:3], rtol=1e-5)
