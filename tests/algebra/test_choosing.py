"""How the methods choose the size of their core."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sketches import KINDS, SINGLE, case, dense, sketch_of
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.methods.choosing import HeldOut, candidates
from skerch_ooc.planning.methods import names_of

kinds = pytest.mark.parametrize("kind", KINDS)
choosers = pytest.mark.parametrize("method", ["nystrom", "singlepass"])
spectra = pytest.mark.parametrize(
    "spectrum", ["poly .5", "poly 1", "poly 2", "exp .02", "outliers on a flat bulk", "clustered"]
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def regret(method, kind, spectrum, dtype, seed, q, left=None):
    """How much worse the chosen core is than the best one."""
    a = dense(kind, spectrum, (240, 240), dtype, seed)
    found = sketch_of(a, method, kind, dtype, 60, left=left, q=q, seed=seed)
    best = min(found.error_by(found.solve(core_size=size)) for size in range(4, 61, 4))
    return found.error_by(found.solve()) / best - 1


class TestRegret:
    @pytest.mark.sampled(3)
    @choosers
    @kinds
    @spectra
    @pytest.mark.parametrize("dtype", SINGLE)
    def test_is_small_with_a_test_sketch(self, method, kind, spectrum, dtype):
        assert np.median([regret(method, kind, spectrum, dtype, s, 30) for s in range(3)]) < 0.12

    @pytest.mark.sampled(3)
    @choosers
    @kinds
    @spectra
    def test_is_small_without_one(self, method, kind, spectrum):
        found = [regret(method, kind, spectrum, "float32", seed, 0) for seed in range(3)]
        assert np.median(found) < (0.15 if method == "nystrom" else 0.4)

    @pytest.mark.sampled(3)
    @spectra
    @pytest.mark.parametrize("q", [0, 30])
    def test_is_small_with_a_square_core(self, spectrum, q):
        found = [regret("nystrom", "svd", spectrum, "float32", seed, q, 60) for seed in range(3)]
        assert np.median(found) < 0.15

    @choosers
    @kinds
    @pytest.mark.parametrize("q", [0, 3, 30])
    def test_cuts_nothing_but_the_null_space(self, method, kind, q):
        assert case(method, kind, "rank 58", "float32", q=q).solve().size == 58


class TestTestColumns:
    @choosers
    @kinds
    @pytest.mark.parametrize(
        ("columns", "choosing"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (30, 10), (31, 11)]
    )
    def test_a_third_of_them_chooses(self, method, kind, columns, choosing):
        assert case(method, kind, "poly 1", "float32", q=columns).solve().choosing == choosing

    @choosers
    @kinds
    @pytest.mark.parametrize("dtype", SINGLE)
    def test_decide_by_their_dense_residual(self, method, kind, dtype):
        found = case(method, kind, "poly 1", dtype)
        core = found.solve()
        g = found.g[:, :10]
        expected = [
            np.linalg.norm(found.a @ g - found.approximation_by(found.solve(core_size=size)) @ g)
            / math.sqrt(10)
            for size, _ in core.tested
        ]
        np.testing.assert_allclose([error for _, error in core.tested], expected, rtol=1e-5)

    @choosers
    @kinds
    def test_decide_for_the_smallest_error(self, method, kind):
        core = case(method, kind, "poly 1", "float32").solve()
        assert core.size == min(core.tested, key=lambda pair: pair[1])[0]

    @choosers
    @kinds
    def test_decide_between_few_sizes(self, method, kind):
        tested = case(method, kind, "poly 1", "float32").solve().tested
        sizes = [size for size, _ in tested]
        assert 3 <= len(sizes) <= 24
        assert sizes == sorted(set(sizes))

    @kinds
    @pytest.mark.parametrize("method", names_of(lambda m: not (m.chooses_core or m.orthogonal)))
    def test_are_left_alone_where_nothing_is_chosen(self, method, kind):
        core = case(method, kind, "poly 1", "float32").solve()
        assert (core.choosing, core.tested) == (0, ())


class TestHeldOut:
    def test_error_is_that_of_the_whole_columns(self):
        generator = np.random.default_rng(0)
        t = generator.standard_normal((12, 4))
        basis = np.linalg.qr(generator.standard_normal((12, 6)))[0]
        x = generator.standard_normal((3, 4))
        expected = np.linalg.norm(t - basis[:, :3] @ x) / 2
        assert HeldOut(t, basis).error(x) == pytest.approx(expected)


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
