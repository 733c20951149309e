"""The scrambled Fourier transform: its columns are those of the matrix that defines it."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.algebra import ssrft
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.noise_kinds import ROLE_NUMBERS, WHOLE_COLUMNS
from skerch_ooc.base.partition import Range

LAST_SEED = 2**64 - 1
SINGLE = {"float64": "float32", "complex128": "complex64"}
HEIGHTS = [1, 2, 3, 4, 5, 7, 8, 12, 31, 45]

relaxed = settings(deadline=None, max_examples=40)
all_doubles = pytest.mark.parametrize("dtype", SINGLE)
all_dtypes = pytest.mark.parametrize("dtype", [*SINGLE, *SINGLE.values()])
all_heights = pytest.mark.parametrize("height", HEIGHTS)


def columns_of(height, columns, dtype="float64", *, seed=1, role="right", out=None):
    return draw("ssrft", seed, role, Range(0, height), columns, dtype, out=out)


def matrix(height, dtype="float64", *, seed=1, role="right"):
    return columns_of(height, Range(0, height), dtype, seed=seed, role=role)


# --- the definition, written again with dense matrices -----------------------------------------


def words(seed, role, height, part):
    """The words of a part: numpy's generator, which raises its counter before it makes a block."""
    philox = np.random.Philox(
        key=np.array([seed, ROLE_NUMBERS[role]], np.uint64),
        counter=np.array([0, part, 5, 0], np.uint64),
    )
    return [int(word) for word in philox.random_raw(height)]


def order(drawn):
    return sorted(range(len(drawn)), key=drawn.__getitem__)


def diagonal(drawn, is_complex):
    if not is_complex:
        return np.diag([-1.0 if word >> 63 else 1.0 for word in drawn])
    turns = [(word >> 62) + (word >> 9 & (2**53 - 1)) / 2**53 - 0.5 for word in drawn]
    return np.diag(np.exp(0.5j * math.pi * np.array(turns)))


def transform(height, is_complex):
    k, place = np.ogrid[:height, :height]
    if is_complex:
        return np.exp(-2j * math.pi * k * place / height) / math.sqrt(height)
    cosines = np.cos(math.pi * k * (2 * place + 1) / (2 * height)) * math.sqrt(2 / height)
    return np.where(k == 0, math.sqrt(1 / height), cosines)


def defined(height, dtype, seed, role):
    """All columns, as a product of dense matrices."""
    is_complex = np.dtype(dtype).kind == "c"
    parts = [words(seed, role, height, part) for part in range(5)]
    p1, p2 = (np.eye(height)[order(part)].T for part in parts[:2])
    d1, d2 = (diagonal(part, is_complex).conj() for part in parts[3:])
    f = transform(height, is_complex)
    whole = math.sqrt(height) * (f @ d2 @ p2 @ f @ d1 @ p1).conj().T
    return whole[:, order(parts[2])]


STREAMS = [(1, "right"), (0, "left"), (LAST_SEED, "test"), (2**63, "inner-left")]


class TestDefinition:
    @all_doubles
    @all_heights
    @pytest.mark.parametrize(("seed", "role"), STREAMS)
    def test_columns_are_those_of_the_dense_product(self, height, dtype, seed, role):
        drawn = matrix(height, dtype, seed=seed, role=role)
        np.testing.assert_allclose(drawn, defined(height, dtype, seed, role), rtol=0, atol=1e-12)

    @all_doubles
    @pytest.mark.parametrize("height", [256, 509])
    def test_columns_of_larger_heights_are_those_of_the_dense_product(self, height, dtype):
        drawn = matrix(height, dtype)
        expected = defined(height, dtype, 1, "right")
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-11)

    @all_doubles
    @all_heights
    def test_all_columns_are_orthogonal_and_as_long_as_the_root_of_the_height(self, height, dtype):
        drawn = matrix(height, dtype)
        products = drawn.conj().T @ drawn
        np.testing.assert_allclose(products, height * np.eye(height), rtol=0, atol=1e-12)

    @all_doubles
    @pytest.mark.parametrize("height", [2**16, 10**5, 99991])
    def test_columns_of_great_heights_are_orthogonal(self, height, dtype):
        drawn = columns_of(height, Range(0, 6), dtype)
        products = drawn.conj().T @ drawn / height
        np.testing.assert_allclose(products, np.eye(6), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("double", SINGLE)
    def test_single_precision_is_double_precision_rounded(self, double):
        drawn = matrix(300, SINGLE[double])
        assert drawn.dtype == SINGLE[double]
        assert np.array_equal(drawn, matrix(300, double).astype(SINGLE[double]))

    @pytest.mark.parametrize("height", [1, 2, 3, 4, 17, 30, 1024])
    def test_the_inverse_cosine_transform_undoes_the_cosine_transform(self, height):
        lines = np.random.default_rng(0).standard_normal((3, height))
        transformed = lines @ transform(height, is_complex=False).T
        np.testing.assert_allclose(ssrft._inverse_dct(transformed), lines, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("height", [2**31 - 1, 2**31])
    def test_angles_are_exact_up_to_the_largest_height(self, height):
        # No array of this height is made: these are the last places of its last rows.
        places, frequencies = [height - 2, height - 1], [height - 1, height // 2 + 1]
        drawn = ssrft._cosine(np.array(frequencies)[:, None], np.array(places), height)
        steps = [[(2 * i + 1) * k % (4 * height) for i in places] for k in frequencies]
        expected = math.sqrt(2) * np.cos(np.array(steps) * (math.pi / (2 * height)))
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-15)


class TestColumns:
    HEIGHT = 90

    @classmethod
    @cache
    def whole(cls, dtype):
        return matrix(cls.HEIGHT, dtype, seed=3)

    @all_dtypes
    @relaxed
    @given(start=st.integers(0, HEIGHT), count=st.integers(0, HEIGHT))
    def test_any_columns_are_those_of_the_whole(self, dtype, start, count):
        columns = Range(start, min(self.HEIGHT, start + count))
        drawn = columns_of(self.HEIGHT, columns, dtype, seed=3)
        assert drawn.dtype == dtype
        assert np.array_equal(drawn, self.whole(dtype)[:, columns.slice])

    @pytest.mark.covered(2)
    @all_dtypes
    @pytest.mark.parametrize("height", [5, 97, 1000, 4096, 40961])
    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_a_column_does_not_depend_on_those_drawn_with_it(self, height, dtype, width):
        together = columns_of(height, Range(0, 5), dtype)
        alone = [
            columns_of(height, Range(start, min(5, start + width)), dtype)
            for start in range(0, 5, width)
        ]
        assert np.array_equal(np.concatenate(alone, axis=1), together)

    @all_dtypes
    @pytest.mark.parametrize("entries", [1, 64, 200, 2**30])
    def test_bits_do_not_depend_on_how_many_are_made_at_once(self, dtype, entries, monkeypatch):
        expected = matrix(64, dtype)
        monkeypatch.setattr(ssrft, "_ENTRIES_AT_ONCE", entries)
        assert np.array_equal(matrix(64, dtype), expected)

    @all_dtypes
    def test_a_buffer_is_filled_in_its_corner_alone(self, dtype):
        buffer = np.full((60, 20), 7, dtype)
        drawn = columns_of(50, Range(4, 15), dtype, out=buffer)
        assert np.shares_memory(drawn, buffer)
        assert np.array_equal(buffer[:50, :11], columns_of(50, Range(4, 15), dtype))
        buffer[:50, :11] = 7
        assert (buffer == 7).all()

    def test_columns_are_in_c_order(self):
        assert columns_of(20, Range(3, 9)).flags.c_contiguous

    @all_dtypes
    @pytest.mark.parametrize("shape", [(0, 0), (5, 0)])
    def test_no_columns_are_an_empty_array(self, dtype, shape):
        drawn = columns_of(shape[0], Range(0, shape[1]), dtype)
        assert (drawn.shape, drawn.dtype) == (shape, np.dtype(dtype))


class TestRefused:
    def test_it_is_named_as_one_of_whole_columns(self):
        assert WHOLE_COLUMNS == ("ssrft",)

    @pytest.mark.parametrize("rows", [Range(1, 9), Range(9, 9)], ids=str)
    def test_rows_that_are_not_the_whole(self, rows):
        with pytest.raises(ValueError, match=f"whole columns only, not rows {rows}"):
            draw("ssrft", 1, "right", rows, Range(0, 3), "float64")

    @pytest.mark.parametrize(("height", "columns"), [(3, Range(2, 4)), (0, Range(0, 1))], ids=str)
    def test_more_columns_than_there_are(self, height, columns):
        with pytest.raises(ValueError, match=f"no columns {columns}: there are {height}"):
            columns_of(height, columns)

    def test_a_height_whose_angles_were_not_exact(self):
        with pytest.raises(ValueError, match=f"at most {2**31} rows"):
            columns_of(2**31 + 1, Range(0, 0))


SEEDS = (1, 2, LAST_SEED)
all_seeds = pytest.mark.parametrize("seed", SEEDS)


def streams():
    roles = [(1, role) for role in ROLE_NUMBERS]
    return roles + [(seed, "right") for seed in (0, 2, 2**32, 2**63, LAST_SEED)]


class TestDistribution:
    """With fixed seeds; bounds of 4.5 standard deviations or a probability of 0.001."""

    @all_doubles
    def test_two_streams_are_not_correlated(self, dtype):
        drawn = {
            (seed, role): columns_of(500, Range(0, 16), dtype, seed=seed, role=role).ravel()
            for seed, role in streams()
        }
        correlated = [
            (one, other)
            for one, other in combinations(drawn, 2)
            if abs(np.vdot(drawn[one], drawn[other])) >= 4.5 * math.sqrt(drawn[one].size)
        ]
        assert correlated == []

    @all_seeds
    @pytest.mark.parametrize("height", [3001, 4096])
    def test_entries_of_tall_columns_are_all_but_normal(self, height, seed):
        drawn = columns_of(height, Range(0, 8), seed=seed).ravel()
        assert scipy.stats.kstest(drawn, scipy.stats.norm.cdf).pvalue > 0.001

    @all_seeds
    @pytest.mark.parametrize("part", ["real", "imag"])
    def test_parts_of_complex_entries_are_too_with_variance_one_half(self, seed, part):
        drawn = columns_of(3001, Range(0, 8), "complex128", seed=seed)
        scaled = getattr(drawn, part).ravel() * math.sqrt(2)
        assert scipy.stats.kstest(scaled, scipy.stats.norm.cdf).pvalue > 0.001

    @pytest.mark.sampled(2)
    @all_doubles
    @pytest.mark.parametrize("height", [1, 2, 5, 6])
    def test_over_seeds_no_two_entries_are_correlated_and_means_are_zero(self, height, dtype):
        count = 1500
        drawn = np.array([matrix(height, dtype, seed=seed)[:, :3].ravel() for seed in range(count)])
        moments = drawn.conj().T @ drawn / count
        # The square of no entry is above the height, so no product has a greater deviation.
        bound = 4.5 * height / math.sqrt(count)
        assert np.abs(moments - np.eye(len(moments))).max() < bound
        assert np.abs(drawn.mean(axis=0)).max() < 4.5 / math.sqrt(count)
