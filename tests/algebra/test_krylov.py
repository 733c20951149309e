"""Block Krylov rounds of dense operators: pairs, their bounds, the end, what the sums tell.

numpy's dense decompositions of the operator as it is stored are the truth.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from krylov_in_memory import InMemory, dense, diagonal, ordered
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.krylov.drift import drifts
from skerch_ooc.algebra.krylov.pairs import pairs_of, quadrature, value_bounds
from skerch_ooc.algebra.krylov.space import Space, metric_root
from skerch_ooc.algebra.krylov.steps import Goal, decide
from skerch_ooc.algebra.krylov.sums import Setting
from skerch_ooc.operators.curvature import hessian
from skerch_ooc.planning.spec import DTYPES

ROOT = Path(__file__).resolve().parent.parent.parent
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
precisions = pytest.mark.parametrize("dtype", ["float32", "float64"])
widths = pytest.mark.parametrize("width", [1, 8, 16])
TOLERANCES = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-11, "complex128": 1e-11}
ROUNDING = 1e-14
"""Of the truth, relative to the norm."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def double(dtype):
    return np.result_type(dtype, np.float64)


def orthonormal(rows, columns, random, dtype="float64"):
    x = random.standard_normal((rows, columns))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * random.standard_normal((rows, columns))
    return np.linalg.qr(x)[0]


def of_values(values, random, dtype="float32"):
    """A Hermitian matrix as it is stored, in double precision."""
    q = orthonormal(len(values), len(values), random, dtype)
    a = (q * values) @ q.conj().T
    return (0.5 * (a + a.conj().T)).astype(dtype).astype(double(dtype))


def of_singular_values(values, shape, random, dtype="float32"):
    u = orthonormal(shape[0], len(values), random, dtype)
    v = orthonormal(shape[1], len(values), random, dtype)
    return ((u * values) @ v.conj().T).astype(dtype).astype(double(dtype))


def harmonic(n):
    """1/i, every third value negative."""
    return np.where(np.arange(n) % 3 == 0, -1, 1) / np.arange(1, n + 1)


@cache
def harmonic_matrix(n, dtype):
    a = of_values(harmonic(n), np.random.default_rng(0), dtype)
    return a, ordered(np.linalg.eigvalsh(a), "float64")


def made_of(run):
    """What the blocks after the first were made of."""
    return [block.source for block in run.chain.blocks[1:]]


def trials(run):
    return [source.columns for source in made_of(run) if source.round == 0]


def worst(standing, true, rank):
    """The largest relative error of the leading values."""
    found = standing.pairs.upto(rank).values
    assert len(found) == rank
    return float(np.max(np.abs(np.abs(found) - np.abs(true[:rank])) / np.abs(true[:rank])))


class TestPairs:
    @pytest.mark.covered(1)
    @all_dtypes
    @widths
    def test_of_a_hermitian_operator_are_within_their_bounds(self, dtype, width):
        a, true = harmonic_matrix(200, dtype)
        standing = dense(a, width, dtype=dtype).run(Goal(10, TOLERANCES[dtype]))
        pairs = standing.pairs.upto(10)
        assert standing.ending == "met"
        assert np.all(np.abs(pairs.values - true[:10]) <= pairs.bounds + ROUNDING)

    @pytest.mark.covered(1)
    @all_dtypes
    @pytest.mark.parametrize("shape", [(120, 200), (200, 120)])
    @pytest.mark.parametrize("width", [1, 8])
    def test_of_a_general_operator_are_within_their_bounds(self, dtype, shape, width):
        random = np.random.default_rng(1)
        a = of_singular_values(1 / np.arange(1, 121), shape, random, dtype)
        standing = dense(a, width, hermitian=False, dtype=dtype).run(Goal(10, TOLERANCES[dtype]))
        pairs, true = standing.pairs.upto(10), np.linalg.svd(a, compute_uv=False)
        assert standing.ending == "met"
        assert np.all(np.abs(pairs.values - true[:10]) <= pairs.bounds + ROUNDING)

    @pytest.mark.parametrize("which", ["LM", "LA", "SA"])
    def test_are_ordered_as_they_are_wanted(self, which):
        a, _ = harmonic_matrix(200, "float32")
        standing = dense(a, 8).run(Goal(10, 1e-4, which=which))
        true = ordered(np.linalg.eigvalsh(a), "float64", which)[:10]
        np.testing.assert_allclose(standing.pairs.upto(10).values, true, atol=2e-6)

    def test_of_another_order_come_from_the_same_space(self):
        a, _ = harmonic_matrix(200, "float64")
        run = dense(a, 8, dtype="float64")
        run.run(Goal(10, 1e-10))
        true = np.sort(np.linalg.eigvalsh(a))
        np.testing.assert_allclose(pairs_of(Space.of(run.chain), "SA").values[:3], true[:3])

    @pytest.mark.parametrize("dtype", ["float64", "complex128"])
    def test_have_the_residuals_that_they_say(self, dtype):
        a, _ = harmonic_matrix(200, dtype)
        run = dense(a, 8, dtype=dtype)
        standing = run.run(Goal(20, 1e-3))
        u, _ = run.vectors(standing, 30)
        explicit = np.linalg.norm(a @ u - u * standing.pairs.values[:30], axis=0)
        np.testing.assert_allclose(standing.pairs.residuals[:30], explicit, rtol=1e-4, atol=1e-10)

    @pytest.mark.parametrize("dtype", ["float64", "complex128"])
    def test_of_a_dilation_have_the_residuals_that_they_say(self, dtype):
        random = np.random.default_rng(1)
        a = of_singular_values(1 / np.arange(1, 121), (120, 200), random, dtype)
        run = dense(a, 8, hermitian=False, dtype=dtype)
        standing = run.run(Goal(20, 1e-3))
        values = standing.pairs.values[:25]
        u, v = run.vectors(standing, 25)
        squares = np.linalg.norm(a @ v - u * values, axis=0) ** 2
        squares += np.linalg.norm(a.conj().T @ u - v * values, axis=0) ** 2
        np.testing.assert_allclose(
            standing.pairs.residuals[:25], np.sqrt(squares / 2), rtol=1e-4, atol=1e-10
        )

    @precisions
    def test_have_orthonormal_vectors(self, dtype):
        a, _ = harmonic_matrix(200, dtype)
        run = dense(a, 8, dtype=dtype)
        u, _ = run.vectors(run.run(Goal(20, 1e-4)), 20)
        np.testing.assert_allclose(u.T @ u, np.eye(20), atol=1e-13)


POWERS = np.arange(400)
SPECTRA = {
    "copies of two": np.repeat(0.9 ** np.arange(200), 2),
    "copies of five": np.repeat(0.8 ** np.arange(80) * (-1.0) ** np.arange(80), 5),
    "clusters": 0.7 ** (POWERS // 4) * (1 + 1e-3 * (POWERS % 4)),
    "gaps": np.where(
        POWERS < 10, 10 - 0.5 * POWERS, np.where(POWERS < 30, 1.2 - 0.02 * POWERS, 0.01)
    ),
    "indefinite": np.where(POWERS % 2 == 0, 1, -1) / (1.0 + POWERS),
    "complex": harmonic(400),
}
SEEDS = [range(i, i + 4) for i in range(0, 20, 4)]


def bounded(spectrum, width, seeds):
    """Error and bound, and what is rounding, of the leading 20 pairs of each round; at the end."""
    dtype = "complex64" if spectrum == "complex" else "float32"
    under_way, ends = [], []
    for seed in seeds:
        a = of_values(SPECTRA[spectrum], np.random.default_rng(seed), dtype)
        true = np.linalg.eigvalsh(a)
        run = dense(a, width, dtype=dtype, seed=seed)
        standing = run.run(Goal(20, 1e-4))
        for rounds in range(1, len(run.chain.rounds) + 1, 1 if width > 1 else 10):
            pairs = pairs_of(Space.of(run.chain.upto(rounds))).upto(20)
            # Of the values that a start of narrow blocks has not found yet no bound speaks.
            error = np.abs(pairs.values[:, None] - true).min(axis=1)
            separate = pairs.residuals <= 0.1 * pairs.sizes
            under_way += [
                (e, bound, pairs.rounding)
                for e, bound in zip(error[separate], pairs.bounds[separate], strict=True)
            ]
        last = standing.pairs.upto(20)
        truth = np.abs(ordered(true, "float64")[:20])
        ends += list(zip(np.abs(np.abs(last.values) - truth), last.bounds, strict=True))
    return under_way, ends


class TestBounds:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("seeds", SEEDS, ids=str)
    @pytest.mark.parametrize("width", [8, 16])
    @pytest.mark.parametrize("spectrum", SPECTRA)
    def test_hold_in_every_round(self, spectrum, width, seeds):
        under_way, ends = bounded(spectrum, width, seeds)
        assert [pair for pair in under_way if pair[0] > pair[1]] == []
        assert [pair for pair in ends if pair[0] > pair[1]] == []

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("seeds", SEEDS, ids=str)
    @pytest.mark.parametrize("spectrum", SPECTRA)
    def test_hold_at_the_end_from_single_vectors(self, spectrum, seeds):
        assert [pair for pair in bounded(spectrum, 1, seeds)[1] if pair[0] > pair[1]] == []

    @pytest.mark.thorough
    @pytest.mark.parametrize(
        "seeds", [range(2), pytest.param(range(20), marks=pytest.mark.thorough)], ids=str
    )
    def test_are_some_ten_times_the_errors_that_rounding_does_not_cover(self, seeds):
        pairs = [
            pair
            for spectrum in SPECTRA
            for width in (8, 16)
            for pair in bounded(spectrum, width, seeds)[0]
        ]
        ratios = [bound / error for error, bound, rounding in pairs if error > rounding / 4]
        assert 1 < np.median(ratios) <= 20

    def test_of_one_value_are_its_squared_residual_over_the_gap(self):
        bounds = value_bounds(np.array([3.0, 1.0]), np.array([0.1, 0.2]))
        np.testing.assert_allclose(bounds, [0.01 / 1.8, 0.04 / 1.9])

    def test_of_values_that_are_not_told_apart_share_their_residuals(self):
        bounds = value_bounds(np.array([3.0, 2.95, 1.0]), np.array([0.1, 0.1, 0.0]))
        np.testing.assert_allclose(bounds[:2], [0.02 / 2, 0.02 / 1.95])

    def test_of_a_value_that_is_not_told_from_zero_are_its_residual(self):
        bounds = value_bounds(np.array([1e8, 0.008]), np.array([0.0, 0.6]))
        np.testing.assert_array_equal(bounds, [0.0, 0.6])

    @pytest.mark.parametrize("which", ["LM", "SA"])
    @pytest.mark.parametrize(
        "seed", [5, *(pytest.param(n, marks=pytest.mark.thorough) for n in range(5))]
    )
    def test_hold_beside_one_value_that_is_huge(self, seed, which):
        values = np.array([1e8, *1 / np.arange(2, 201)])
        run = diagonal(values, 8, dtype="float64", seed=seed)
        pairs = run.run(Goal(5, 1e-5, which=which)).pairs
        off = np.abs(pairs.values[:5, None] - values).min(axis=1)
        assert (off <= pairs.bounds[:5] + 2e-15 * values[0]).all()

    def test_without_any_other_value_are_the_residuals(self):
        np.testing.assert_array_equal(value_bounds(np.ones(3), np.full(3, 0.1)), np.full(3, 0.1))


class TestCopies:
    @pytest.mark.parametrize("width", [8, 16])
    @pytest.mark.parametrize("rank", [20, 22])
    @pytest.mark.parametrize("tail", ["none", "1/i"])
    def test_beyond_the_width_of_a_block_are_found(self, tail, rank, width):
        rest = 0.9 / np.arange(1, 981) if tail == "1/i" else np.zeros(980)
        run = diagonal([*np.ones(20), *rest], width)
        standing = run.run(Goal(rank, 1e-4))
        assert standing.confirmed
        np.testing.assert_allclose(standing.pairs.values[:20], 1, atol=2e-6)
        assert standing.met[:20].all()

    @pytest.mark.parametrize("width", [8, 16])
    def test_are_found_where_those_in_their_place_are_never_known(self, width):
        tail = np.random.default_rng(0).uniform(-0.01, 0.01, 3980)
        run = diagonal([*np.ones(20), *tail], width)
        standing = run.run(Goal(20, 1e-4, most_rounds=40))
        assert (standing.ending, standing.confirmed) == ("met", True)
        np.testing.assert_allclose(standing.pairs.values[:20], 1, atol=2e-6)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("bulk", [0.06, 0.2])
    @pytest.mark.parametrize("which", ["LM", "LA", "SA"])
    def test_do_not_hide_behind_a_bulk_that_is_large_in_sum(self, which, bulk):
        # A test column has 4 to 14 of the bulk where it has about 1 of each copy.
        tail = np.random.default_rng(0).uniform(-bulk, bulk, 14_976)
        values = np.array([*np.ones(10), *np.full(10, 0.9), *np.full(4, 0.8), *tail])
        if which != "LM":
            values[20:50] = np.linspace(-2, -3, 30)
        values *= -1 if which == "SA" else 1
        standing = diagonal(values, 8).run(Goal(20, 1e-4, which=which, most_rounds=36))
        assert (standing.ending, standing.confirmed) == ("met", True)
        np.testing.assert_allclose(standing.pairs.values[:20], values[:20], rtol=1e-5)

    def test_more_than_the_test_columns_show_are_said_not_to_be_confirmed(self):
        run = diagonal(np.ones(500), 8)
        standing = run.run(Goal(50, 1e-4))
        assert (standing.ending, standing.confirmed, standing.wanted) == ("exhausted", False, 38)

    @widths
    @pytest.mark.parametrize("n", [500, 20_000])
    def test_of_one_with_outliers_are_right(self, n, width):
        values = np.ones(n)
        values[:10] += np.arange(1, 11)
        standing = diagonal(values, width).run(Goal(20, 1e-4))
        assert standing.confirmed
        assert worst(standing, ordered(values), 20) <= 1e-6


class TestEnd:
    @precisions
    @pytest.mark.parametrize("width", [1, 8, 16])
    def test_is_exhaustion_where_the_operator_has_a_small_rank(self, dtype, width):
        values = np.where(np.arange(300) < 30, harmonic(300), 0)
        a = of_values(values, np.random.default_rng(0), "float64")
        run = dense(a, width, dtype=dtype)
        standing = run.run(Goal(50, 1e-4))
        assert (standing.ending, standing.exhausted, standing.confirmed) == ("exhausted", 1, 1)
        assert run.used <= 30 + width + 2  # And what float32 leaves of test columns.
        assert worst(standing, ordered(values), 30) <= 1e-5
        assert np.all(np.abs(standing.pairs.values[30:]) <= standing.pairs.rounding)

    @pytest.mark.parametrize("hermitian", [True, False])
    @all_dtypes
    def test_is_all_of_a_small_operator(self, dtype, hermitian):
        random = np.random.default_rng(0)
        a = of_values(harmonic(30), random, dtype)
        run = dense(a, 7, hermitian, dtype, test_columns=0)
        standing = run.run(Goal(30, None))
        assert (standing.complete, standing.confirmed, standing.wanted) == (True, True, 30)
        true = np.sort(np.abs(np.linalg.eigvalsh(a)))
        atol = 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(np.sort(np.abs(standing.pairs.values)), true, atol=atol)

    @pytest.mark.parametrize("hermitian", [True, False])
    @precisions
    def test_comes_at_once_where_there_is_nothing(self, dtype, hermitian):
        run = dense(np.zeros((40, 40)), 8, hermitian, dtype)
        standing = run.run(Goal(5, 1e-3))
        assert standing.step is None
        assert np.all(standing.pairs.values == 0)
        assert run.used == 8

    def test_of_largest_values_lists_none_below_the_zeros_that_are_left_out(self):
        standing = diagonal([3.0, 2.0, -1.0, *np.zeros(60)], 4).run(Goal(30, 1e-4, which="LA"))
        assert standing.ending == "exhausted"
        assert np.all(standing.pairs.upto(standing.wanted).values > -1e-6)

    @pytest.mark.parametrize(
        ("ending", "most"), [("rounds", {"most_rounds": 5}), ("products", {"most_products": 47})]
    )
    def test_at_the_most_that_may_be_is_said(self, ending, most):
        a, _ = harmonic_matrix(200, "float32")
        goal = Goal(20, 1e-4, **most)
        run = dense(a, 8)
        standing = run.run(goal)
        assert (standing.ending, standing.step, run.used) == (ending, None, 40)
        assert 0 < np.count_nonzero(standing.met) < 20

    def test_without_a_tolerance_comes_after_so_many_rounds(self):
        a, _ = harmonic_matrix(200, "float32")
        run = dense(a, 8)
        standing = run.run(Goal(5, None, most_rounds=7))
        assert (standing.ending, len(run.chain.rounds), trials(run)) == ("rounds", 7, [])

    def test_is_reached_where_only_rounding_is_left(self):
        a, true = harmonic_matrix(400, "float32")
        standing = dense(a, 8).run(Goal(20, 1e-12, most_rounds=45))
        assert (standing.ending, standing.confirmed) == ("rounding", True)
        assert not standing.met.all()
        assert worst(standing, true, 20) <= 1e-5

    def test_without_test_columns_is_one_more_round_and_not_confirmed(self):
        a, _ = harmonic_matrix(200, "float32")
        run = dense(a, 8, test_columns=0)
        standing = run.run(Goal(10, 1e-4))
        assert (standing.ending, standing.confirmed) == ("met", False)
        known = [
            pairs_of(Space.of(run.chain.upto(rounds))).upto(10).settled(1e-4).all()
            for rounds in range(2, len(run.chain.rounds) + 1)
        ]
        assert known[-3:] == [False, True, True]

    def test_comes_although_the_only_test_columns_were_taken_before_the_pairs_were_known(self):
        tail = np.random.default_rng(0).uniform(-0.5, 0.5, 2980)
        run = diagonal([*np.linspace(2, 1, 20), *tail], 8, test_columns=4)
        standing = run.run(Goal(20, 1e-4, most_rounds=18))
        assert (standing.ending, standing.confirmed, trials(run)) == ("met", False, [(0, 4)])
        assert len(run.chain.rounds) < 18

    def test_is_decided_alike_by_whoever_looks(self):
        a, _ = harmonic_matrix(200, "float32")
        run = dense(a, 8)
        run.run(Goal(10, 1e-4))
        for rounds in range(1, len(run.chain.rounds)):
            step = decide(run.chain.upto(rounds), Goal(10, 1e-4)).step
            assert step.source == run.chain.blocks[rounds].source

    @pytest.mark.parametrize("width", [8, 16])
    def test_of_a_finished_run_is_put_off_by_a_tighter_tolerance(self, width):
        a, true = harmonic_matrix(400, "float64")
        run = dense(a, width, dtype="float64")
        run.run(Goal(20, 1e-4))
        before = len(run.chain.blocks)
        standing = run.run(Goal(20, 1e-10))
        assert (standing.ending, standing.confirmed) == ("met", True)
        assert worst(standing, true, 20) <= 1e-10
        # Both chains go on: that of the rounds, and that of the test columns.
        later = {source.round for source in made_of(run)[before - 1 :]}
        assert {before, before - 1} <= later


class TestProducts:
    """No more products than other methods need."""

    @pytest.mark.parametrize(("width", "most"), [(8, 66), (16, 82)])
    def test_of_a_flat_tail(self, width, most):
        leading = np.linspace(1, 0.1, 50) * np.where(np.arange(50) % 4 == 1, -1, 1)
        values = np.concatenate([leading, np.full(29_950, 0.01)])
        run = diagonal(values, width)
        standing = run.run(Goal(50, 1e-6))
        assert worst(standing, ordered(values), 50) <= 1e-6
        assert run.used <= most

    @pytest.mark.parametrize(("width", "most"), [(8, 96), (16, 144)])
    def test_of_harmonic_values(self, width, most):
        values = 1 / np.arange(1, 4001)
        run = diagonal(values, width)
        standing = run.run(Goal(20, 1e-4))
        assert standing.ending == "met"
        assert worst(standing, ordered(values), 20) <= 1e-5
        assert run.used <= most

    @pytest.mark.parametrize("rounds", [14, 16])
    def test_of_fifty_triplets(self, rounds):
        random = np.random.default_rng(0)
        values = 1 / np.arange(1, 601)
        a = of_singular_values(values, (900, 600), random)
        run = dense(a, 16, hermitian=False)
        standing = run.run(Goal(50, None, most_rounds=rounds))
        u, v = run.vectors(standing, 50)
        error = np.linalg.norm(a - (u * standing.pairs.values[:50]) @ v.T)
        assert run.used <= 260
        assert error <= 1.001 * np.linalg.norm(values[50:])


@pytest.fixture(scope="module")
def digits():
    """The Hessian of the digits workflow in float32, and its leading values from float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        workflow = importlib.import_module("workflows.digits_hessian")
    model, loss, data = workflow.problem()
    exact = hessian(model.double(), loss, [(x.double(), y) for x, y in data])

    def applied(operator):
        return lambda x: (operator @ torch.from_numpy(np.ascontiguousarray(x))).numpy()

    linear = LinearOperator(
        exact.shape, dtype=float, matvec=lambda x: applied(exact)(x.reshape(-1, 1)).ravel()
    )
    true = eigsh(linear, k=20, which="LM", tol=1e-9, return_eigenvectors=False)
    return applied(workflow.make()), exact.shape, true[np.argsort(-np.abs(true))]


@pytest.mark.thorough
class TestDigits:
    @pytest.mark.parametrize(("width", "most"), [(8, 100), (16, 130)])
    def test_hessian_has_its_pairs_within_few_products(self, digits, width, most):
        apply, shape, true = digits
        run = InMemory(apply, apply, Setting(shape, True, "float32"), width)
        standing = run.run(Goal(20, 1e-4))
        pairs = standing.pairs.upto(20)
        assert (standing.ending, standing.confirmed) == ("met", True)
        assert np.all(np.abs(pairs.values - true) <= np.minimum(pairs.bounds, 1e-4 * np.abs(true)))
        assert run.used <= most
        assert not any(each.stands_out for each in drifts(Space.of(run.chain)))


class TestBasis:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("hermitian", [True, False])
    @pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float64", 1e-12)])
    def test_is_orthogonal_after_thirty_rounds(self, dtype, most, hermitian):
        a, _ = harmonic_matrix(600, dtype)
        run = dense(a, 16, hermitian, dtype)
        run.run(Goal(20, None, most_rounds=30))
        assert len(run.chain.rounds) == 30
        for side in run.setting.sides:
            basis = run.family(side).astype(float)
            basis /= np.linalg.norm(basis, axis=0)
            basis = basis[:, 16:] if side == "corange" else basis
            assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() <= most

    @precisions
    def test_has_no_ghosts_when_it_is_exhausted(self, dtype):
        a, true = harmonic_matrix(200, dtype)
        standing = dense(a, 8, dtype=dtype).run(Goal(200, None))
        assert standing.complete
        atol = 1e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(np.sort(standing.pairs.values), np.sort(true), atol=atol)

    def test_metric_of_dependent_columns_is_inverted_on_what_they_span(self):
        x = np.random.default_rng(0).standard_normal((9, 4))
        x = np.concatenate([x, x @ np.ones((4, 2))], axis=1)
        root = metric_root(x.T @ x)
        assert root.shape == (6, 4)
        np.testing.assert_allclose(root.T @ x.T @ x @ root, np.eye(4), atol=1e-10)


def changed_from(run, number, change):
    """A run whose operator is another one from a round on."""

    def changed(first):
        def apply(x):
            product = first(x)
            is_changed = len(run.chain.rounds) + 1 >= number
            return product + (change @ x).astype(product.dtype) if is_changed else product

        return apply

    run.apply, run.adjoint = changed(run.apply), changed(run.adjoint)
    return run


class TestDrift:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_of_a_thousandth_along_one_vector_is_seen_between_rounds(self, dtype):
        a, _ = harmonic_matrix(600, dtype)
        w = orthonormal(600, 1, np.random.default_rng(9))
        run = changed_from(dense(a, 16, dtype=dtype), 4, 1e-3 * w @ w.T)
        run.run(Goal(20, None, most_rounds=6))
        found = drifts(Space.of(run.chain))
        assert [each.stands_out for each in found] == [False] * 3 + [True] * 3
        assert found[3].within <= found[3].limit < found[3].between

    def test_of_a_general_operator_is_seen_between_rounds(self):
        random = np.random.default_rng(0)
        a = of_singular_values(harmonic(300), (300, 300), random)
        w = orthonormal(300, 1, random)
        run = changed_from(dense(a, 16, hermitian=False), 4, 1e-3 * w @ w.T)
        run.run(Goal(20, None, most_rounds=4))
        found = drifts(Space.of(run.chain))
        assert [each.stands_out for each in found] == [False, False, False, True]

    def test_of_an_operator_that_is_not_hermitian_is_seen_in_its_round(self):
        a = np.random.default_rng(0).standard_normal((100, 100))
        run = dense(a, 8)
        run.run(Goal(20, None, most_rounds=1))
        (found,) = drifts(Space.of(run.chain))
        assert found.stands_out
        assert found.between == 0

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("spectrum", SPECTRA)
    @pytest.mark.parametrize("hermitian", [True, False])
    @widths
    def test_is_not_seen_where_there_is_none(self, spectrum, width, hermitian, seed):
        dtype = "complex64" if spectrum == "complex" else "float32"
        a = of_values(SPECTRA[spectrum], np.random.default_rng(seed), dtype)
        run = dense(a, width, hermitian, dtype=dtype, seed=seed)
        run.run(Goal(20, 1e-4, most_rounds=60))
        assert [each for each in drifts(Space.of(run.chain)) if each.stands_out] == []


class TestQuadrature:
    @pytest.mark.parametrize("dtype", ["float64", "complex128"])
    def test_is_exact_for_polynomials(self, dtype):
        a, _ = harmonic_matrix(200, dtype)
        run = dense(a, 4, dtype=dtype)
        run.run(Goal(5, None, most_rounds=4))
        space = Space.of(run.chain)
        nodes, weights = quadrature(space, pairs_of(space))
        omega = run.stored[0]
        for degree in range(8):
            expected = np.diagonal(omega.conj().T @ np.linalg.matrix_power(a, degree) @ omega).real
            np.testing.assert_allclose(nodes**degree @ weights, expected, rtol=1e-10)


class TestAnyShape:
    @pytest.mark.sampled(40)
    @pytest.mark.parametrize("seed", range(600))
    def test_ends_with_values_that_are_right(self, seed):
        random = np.random.default_rng(seed)
        dtype = DTYPES[seed % len(DTYPES)]
        hermitian = bool(random.integers(2))
        h, w = random.integers(1, random.choice([8, 50]), 2)
        shape = (int(w), int(w)) if hermitian else (int(h), int(w))
        k = min(shape)
        kinds = [np.ones(k), np.zeros(k), 0.5 ** np.arange(k), 1.0 * (np.arange(k) < 3)]
        values = kinds[random.integers(4)] * 10.0 ** random.integers(-8, 8)
        if hermitian:
            a = of_values(values * random.choice([-1, 1], k), random, dtype)
        else:
            a = of_singular_values(values, shape, random, dtype)
        width, columns = int(random.integers(2, 20)), int(random.choice([0, 5, 30]))
        run = dense(a, width, hermitian, dtype, test_columns=columns, seed=seed)
        standing = run.run(Goal(int(random.integers(1, 20)), random.choice([1e-2, 1e-4])))
        found = np.abs(standing.pairs.upto(standing.wanted).values)
        true = np.sort(np.linalg.svd(a, compute_uv=False))[::-1]
        rounding = 30 * np.finfo(dtype).eps * true[0]
        bounds = standing.pairs.upto(standing.wanted).bounds
        if standing.confirmed:
            assert np.all((np.abs(found - true[: len(found)]) <= bounds + rounding)[standing.met])
        assert [each for each in drifts(Space.of(run.chain)) if each.stands_out] == []
