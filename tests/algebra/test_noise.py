"""Test matrices: each entry a pure function of (seed, role, row, column), the same everywhere.

Run as a script to write the golden values anew, which only another noise version may do.
"""

from __future__ import annotations

import cmath
import hashlib
import json
import math
import os
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.noise_kinds import COMPLEX_ONLY, ROLE_NUMBERS, SIGN_SCALE
from skerch_ooc.base.partition import Range

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "noise_v1.json"
NOISES = ["rademacher", "gaussian", "phase", "sparse-sign", "sparse-sign-64", "sparse-sign-256"]
REALS = ["float32", "float64"]
COMPLEXES = ["complex64", "complex128"]
LAST_SEED = 2**64 - 1
FAR_ROW = 2**48 - 7

relaxed = settings(deadline=None, max_examples=40)


def dtypes_of(noise):
    return COMPLEXES if noise in COMPLEX_ONLY else REALS + COMPLEXES


def widest(noise):
    return "complex128" if noise in COMPLEX_ONLY else "float64"


KINDS = [(noise, dtype) for noise in NOISES for dtype in dtypes_of(noise)]
all_noises = pytest.mark.parametrize("noise", NOISES)
# Of vectors with a few entries correlations are few and large; test_rows.py has their structure.
dense_enough = pytest.mark.parametrize("noise", NOISES[:4])
all_sign_noises = pytest.mark.parametrize("noise", SIGN_SCALE)
all_kinds = pytest.mark.parametrize(("noise", "dtype"), KINDS)


def matrix(noise, rows, columns, *, seed=1, role="right", dtype=None):
    return draw(noise, seed, role, Range(0, rows), Range(0, columns), dtype or widest(noise))


@st.composite
def windows(draw_from, largest):
    start = draw_from(st.integers(0, largest))
    return Range(start, draw_from(st.integers(start, largest)))


# --- the definition, written again with Python's integers and its mathematics ------------------

WORD = 2**64 - 1


def philox(counter, key):
    """Philox4x64-10 of Salmon et al. 2011: four words from a counter and a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        even, odd = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (odd >> 64) ^ c1 ^ k0, odd & WORD, (even >> 64) ^ c3 ^ k1, even & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def defined_sign(seed, role, row, column):
    words = philox((1 + row // 4, column // 64, 1, 0), (seed, ROLE_NUMBERS[role]))
    return -1.0 if words[row % 4] >> (column % 64) & 1 else 1.0


def defined_normal(seed, role, row, column):
    words = philox((1 + row, column // 4, 2, 0), (seed, ROLE_NUMBERS[role]))
    first = column % 4 // 2 * 2
    uniform = ((words[first] >> 11) + 1) / 2**53
    quarter, place = words[first + 1] >> 62, (words[first + 1] >> 9 & (2**53 - 1)) / 2**53
    angle = math.pi / 2 * (quarter + place - 0.5)
    wave = math.sin if column % 2 else math.cos
    return math.sqrt(-2 * math.log(uniform)) * wave(angle)


def defined_sparse_sign(seed, role, row, column):
    words = philox((1 + row // 4, column // 128, 4, 0), (seed, ROLE_NUMBERS[role]))
    byte = words[row % 4] >> 8 * (column % 128 // 16) & 255
    return (-4.0 if byte & 16 else 4.0) if byte & 15 == column % 16 else 0.0


def defined_phase(seed, role, row, column):
    word = philox((1 + row, column // 4, 3, 0), (seed, ROLE_NUMBERS[role]))[column % 4]
    quarter, place = word >> 62, (word >> 9 & (2**53 - 1)) / 2**53
    return cmath.exp(0.5j * math.pi * (quarter + place - 0.5))


PLACES = [
    (1, "right", 0, 0),
    (1, "right", 5, 67),
    (0, "left", 4095, 511),
    (LAST_SEED, "inner-left", 4096, 512),
    (2**63, "inner-right", 2**32 + 3, 130),
    (12345, "test", FAR_ROW, 2**40 + 1),
    (7, "probe", 2, 2**48 - 1),
]


class TestDefinition:
    def test_the_generator_of_these_tests_gives_the_published_words(self):
        # The known answer for a counter and a key of zeros.
        assert philox((0, 0, 0, 0), (0, 0)) == (
            0x16554D9ECA36314C,
            0xDB20FE9D672D0FDC,
            0xD7E772CEE186176B,
            0x7E68B68AEC7BA23B,
        )

    @pytest.mark.parametrize("place", PLACES, ids=str)
    def test_signs_are_the_bits_of_the_words(self, place):
        seed, role, row, column = place
        drawn = draw("rademacher", seed, role, Range(row, row + 8), Range(column, column + 8), "f8")
        expected = [
            [defined_sign(seed, role, row + i, column + j) for j in range(8)] for i in range(8)
        ]
        assert drawn.tolist() == expected

    @pytest.mark.parametrize("place", PLACES, ids=str)
    def test_normals_are_those_of_box_and_muller(self, place):
        seed, role, row, column = place
        drawn = draw("gaussian", seed, role, Range(row, row + 8), Range(column, column + 8), "f8")
        expected = [
            [defined_normal(seed, role, row + i, column + j) for j in range(8)] for i in range(8)
        ]
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("place", PLACES, ids=str)
    def test_sparse_signs_are_the_bytes_of_the_words(self, place):
        seed, role, row, column = place
        rows, columns = Range(row, row + 8), Range(column, column + 40)
        expected = [
            [defined_sparse_sign(seed, role, i, j) for j in range(column, column + 40)]
            for i in range(row, row + 8)
        ]
        assert draw("sparse-sign", seed, role, rows, columns, "f8").tolist() == expected

    @pytest.mark.parametrize("place", PLACES, ids=str)
    def test_phases_are_the_angles_of_the_words(self, place):
        seed, role, row, column = place
        drawn = draw("phase", seed, role, Range(row, row + 8), Range(column, column + 8), "c16")
        expected = [
            [defined_phase(seed, role, row + i, column + j) for j in range(8)] for i in range(8)
        ]
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-15)

    @pytest.mark.parametrize(
        ("noise", "single"), [kind for kind in KINDS if kind[1] in ("float32", "complex64")]
    )
    def test_single_precision_is_double_precision_rounded(self, noise, single):
        double = {"float32": "float64", "complex64": "complex128"}[single]
        expected = matrix(noise, 300, 70, dtype=double).astype(single)
        assert np.array_equal(matrix(noise, 300, 70, dtype=single), expected)

    def test_complex_normals_are_neighbouring_real_columns_over_the_root_of_two(self):
        real = matrix("gaussian", 300, 140) * math.sqrt(0.5)
        drawn = matrix("gaussian", 300, 70, dtype="complex128")
        assert np.array_equal(drawn, real[:, 0::2] + 1j * real[:, 1::2])

    @all_sign_noises
    @pytest.mark.parametrize("dtype", ["int8", *COMPLEXES])
    def test_complex_and_integer_signs_are_the_real_ones(self, noise, dtype):
        drawn = matrix(noise, 300, 170, dtype=dtype)
        assert np.array_equal(drawn, matrix(noise, 300, 170))

    @pytest.mark.parametrize("dtype", REALS)
    @pytest.mark.parametrize("shape", [(4, 4), (0, 4)])
    def test_real_phases_are_refused(self, dtype, shape):
        with pytest.raises(ValueError, match="phase test matrices are complex, not float"):
            matrix("phase", *shape, dtype=dtype)

    @pytest.mark.parametrize(("noise", "seed"), [("white", 1), ("gaussian", -1)])
    def test_of_no_kind_or_seed_are_refused(self, noise, seed):
        with pytest.raises(ValueError, match=f"noise = '{noise}', .* seed = {seed}: give one of"):
            draw(noise, seed, "right", Range(0, 4), Range(0, 4), "float32")


class TestSlices:
    @staticmethod
    @cache
    def whole(noise, dtype):
        return matrix(noise, 2200, 290, seed=3, dtype=dtype)

    @pytest.mark.covered(1)
    @all_kinds
    @relaxed
    @given(rows=windows(2200), columns=windows(290))
    def test_any_slice_is_the_slice_of_the_whole(self, noise, dtype, rows, columns):
        drawn = draw(noise, 3, "right", rows, columns, dtype)
        assert drawn.dtype == dtype
        assert np.array_equal(drawn, self.whole(noise, dtype)[rows.slice, columns.slice])

    @all_noises
    @relaxed
    @given(start=st.integers(0, 2**48), column=st.integers(0, 2**40), split=st.integers(0, 9))
    def test_far_slices_join_into_the_slice_drawn_at_once(self, noise, start, column, split):
        rows, columns = Range(start, start + 9), Range(column, column + 9)
        parts = [
            draw(noise, 3, "right", part, columns, widest(noise))
            for part in (Range(start, start + split), Range(start + split, start + 9))
        ]
        whole = draw(noise, 3, "right", rows, columns, widest(noise))
        assert np.array_equal(np.concatenate(parts), whole)

    @pytest.mark.covered(1)
    @all_kinds
    @relaxed
    @given(more=st.integers(1, 200))
    def test_columns_stay_when_more_are_drawn(self, noise, dtype, more):
        grown = matrix(noise, 30, 70 + more, seed=3, dtype=dtype)
        assert np.array_equal(grown[:, :70], matrix(noise, 30, 70, seed=3, dtype=dtype))

    @all_kinds
    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_empty_slices_are_empty(self, noise, dtype, shape):
        drawn = matrix(noise, *shape, dtype=dtype)
        assert (drawn.shape, drawn.dtype) == (shape, np.dtype(dtype))

    @all_noises
    def test_a_slice_is_in_c_order(self, noise):
        assert matrix(noise, 20, 10).flags.c_contiguous


class TestBuffer:
    ROWS, COLUMNS = Range(3, 40), Range(61, 90)

    @pytest.fixture
    def buffer(self, dtype):
        return np.full((50, 64), 7, dtype)

    @all_kinds
    def test_its_corner_holds_the_slice(self, noise, dtype, buffer):
        draw(noise, 1, "test", self.ROWS, self.COLUMNS, dtype, out=buffer)
        expected = draw(noise, 1, "test", self.ROWS, self.COLUMNS, dtype)
        assert np.array_equal(buffer[: len(self.ROWS), : len(self.COLUMNS)], expected)

    @all_kinds
    def test_what_is_outside_the_corner_stays(self, noise, dtype, buffer):
        draw(noise, 1, "test", self.ROWS, self.COLUMNS, dtype, out=buffer)
        buffer[: len(self.ROWS), : len(self.COLUMNS)] = 7
        assert (buffer == 7).all()

    @all_kinds
    def test_the_slice_returned_is_the_corner_itself(self, noise, dtype, buffer):
        drawn = draw(noise, 1, "test", self.ROWS, self.COLUMNS, dtype, out=buffer)
        drawn[...] = 5
        assert (buffer[: len(self.ROWS), : len(self.COLUMNS)] == 5).all()


def streams():
    """Matrices that must have nothing in common: roles, and seeds next to each other."""
    roles = [(1, role) for role in ROLE_NUMBERS]
    seeds = [(seed, "right") for seed in (0, 2, 3, 2**32, 2**63, LAST_SEED - 1, LAST_SEED)]
    return roles + seeds


def words_of(seed, role):
    """The words behind the signs: 64 columns of a row are one word."""
    signs = matrix("rademacher", 1024, 128, seed=seed, role=role)
    return {bytes(word) for word in np.packbits(signs < 0, axis=1).reshape(-1, 8)}


def lines_of(seed, role):
    """What shows of the words behind the sparse signs: 128 columns of a row, of 2^40 such lines."""
    lines = matrix("sparse-sign", 1024, 256, seed=seed, role=role, dtype="int8")
    return {bytes(line) for line in lines.reshape(-1, 128)}


class TestStreamsShareNothing:
    """Each test looks at all pairs of streams, and names all that have something in common."""

    @staticmethod
    def pairs_that(are_alike, draw_stream):
        drawn = {stream: draw_stream(*stream) for stream in streams()}
        return [
            (one, other)
            for one, other in combinations(drawn, 2)
            if are_alike(drawn[one], drawn[other])
        ]

    def test_no_word_of_signs_is_in_two_streams(self):
        assert self.pairs_that(set.intersection, words_of) == []

    def test_no_line_of_sparse_signs_is_in_two_streams(self):
        assert self.pairs_that(set.intersection, lines_of) == []

    @pytest.mark.parametrize("noise", ["gaussian", "phase"])
    def test_no_normal_or_phase_is_in_two_streams(self, noise):
        def draw_stream(seed, role):
            return set(matrix(noise, 256, 64, seed=seed, role=role).ravel().tolist())

        assert self.pairs_that(set.intersection, draw_stream) == []

    @all_noises
    def test_two_streams_are_not_correlated(self, noise):
        def draw_stream(seed, role):
            return matrix(noise, 256, 64, seed=seed, role=role).ravel()

        def are_correlated(one, other):
            return abs(np.vdot(one, other)) >= 4.5 * math.sqrt(one.size)

        assert self.pairs_that(are_correlated, draw_stream) == []

    def test_no_word_of_signs_comes_twice_in_a_stream(self):
        assert len(words_of(1, "right")) == 2 * 1024

    def test_no_line_of_sparse_signs_comes_twice_in_a_stream(self):
        assert len(lines_of(1, "right")) == 2 * 1024

    @pytest.mark.parametrize("noise", ["gaussian", "phase"])
    def test_no_normal_or_phase_comes_twice_in_a_stream(self, noise):
        assert np.unique(matrix(noise, 2048, 64)).size == 2048 * 64


class TestDistribution:
    """With fixed seeds; bounds of 4.5 standard deviations or a probability of 0.001."""

    SEEDS = (1, 2, LAST_SEED)
    ROWS, COLUMNS = 3000, 64
    COUNT = ROWS * COLUMNS
    all_seeds = pytest.mark.parametrize("seed", SEEDS)

    @all_seeds
    @all_noises
    def test_the_mean_is_zero(self, noise, seed):
        drawn = matrix(noise, self.ROWS, self.COLUMNS, seed=seed)
        assert abs(drawn.mean()) < 4.5 / math.sqrt(self.COUNT)

    @all_seeds
    def test_signs_are_plus_and_minus_one(self, seed):
        drawn = matrix("rademacher", self.ROWS, self.COLUMNS, seed=seed)
        assert set(np.unique(drawn)) == {-1.0, 1.0}

    @all_seeds
    def test_one_sparse_sign_in_16_columns_is_four_or_minus_four(self, seed):
        groups = matrix("sparse-sign", self.ROWS, self.COLUMNS, seed=seed).reshape(-1, 16)
        assert (np.sort(np.abs(groups), axis=1) == [0.0] * 15 + [4.0]).all()

    @all_seeds
    def test_sparse_signs_prefer_no_place_and_no_sign(self, seed):
        groups = matrix("sparse-sign", self.ROWS, self.COLUMNS, seed=seed).reshape(-1, 16)
        counts = [(groups == 4).sum(axis=0), (groups == -4).sum(axis=0)]
        assert scipy.stats.chisquare(np.ravel(counts)).pvalue > 0.001

    @all_seeds
    def test_places_of_neighbouring_groups_of_sparse_signs_are_independent(self, seed):
        groups = matrix("sparse-sign", 4 * self.ROWS, 32, seed=seed).reshape(-1, 2, 16)
        places = np.abs(groups).argmax(axis=2)
        counts = np.bincount(16 * places[:, 0] + places[:, 1], minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > 0.001

    @all_seeds
    def test_columns_of_sparse_signs_have_mean_square_one(self, seed):
        drawn = matrix("sparse-sign", self.ROWS, 128, seed=seed)
        assert np.abs((drawn**2).mean(axis=0) - 1).max() < 4.5 * math.sqrt(15 / self.ROWS)

    @all_seeds
    def test_phases_have_modulus_one(self, seed):
        drawn = matrix("phase", self.ROWS, self.COLUMNS, seed=seed)
        np.testing.assert_allclose(np.abs(drawn), 1.0, rtol=0, atol=1e-15)

    @all_seeds
    def test_angles_of_phases_are_uniform(self, seed):
        angles = np.angle(matrix("phase", self.ROWS, self.COLUMNS, seed=seed)).ravel()
        uniform = scipy.stats.uniform(-math.pi, 2 * math.pi)
        assert scipy.stats.kstest(angles, uniform.cdf).pvalue > 0.001

    @all_seeds
    def test_the_variance_of_normals_is_one(self, seed):
        drawn = matrix("gaussian", self.ROWS, self.COLUMNS, seed=seed)
        assert abs((drawn**2).mean() - 1) < 4.5 * math.sqrt(2 / self.COUNT)

    @all_seeds
    def test_the_fourth_moment_of_normals_is_three(self, seed):
        drawn = matrix("gaussian", self.ROWS, self.COLUMNS, seed=seed)
        assert abs((drawn**4).mean() - 3) < 4.5 * math.sqrt(96 / self.COUNT)

    @all_seeds
    def test_normals_follow_the_normal_distribution(self, seed):
        drawn = matrix("gaussian", self.ROWS, self.COLUMNS, seed=seed).ravel()
        assert scipy.stats.kstest(drawn, scipy.stats.norm.cdf).pvalue > 0.001

    @all_seeds
    @pytest.mark.parametrize("part", ["real", "imag"])
    def test_parts_of_complex_normals_have_variance_one_half(self, seed, part):
        drawn = matrix("gaussian", self.ROWS, self.COLUMNS, seed=seed, dtype="complex128")
        scaled = getattr(drawn, part).ravel() * math.sqrt(2)
        assert scipy.stats.kstest(scaled, scipy.stats.norm.cdf).pvalue > 0.001

    @all_seeds
    @pytest.mark.parametrize("noise", ["gaussian", "phase"])
    def test_complex_normals_and_phases_prefer_no_direction(self, noise, seed):
        drawn = matrix(noise, self.ROWS, self.COLUMNS, seed=seed, dtype="complex128")
        assert abs((drawn**2).mean()) < 4.5 / math.sqrt(self.COUNT)

    @staticmethod
    def largest_correlation(drawn):
        """The largest entry off the diagonal of ``X^H X / n``, in standard deviations."""
        products = drawn.conj().T @ drawn / math.sqrt(len(drawn))
        return np.abs(products[np.triu_indices(len(products), 1)]).max()

    @all_seeds
    @dense_enough
    def test_columns_are_independent(self, noise, seed):
        # Of 8128 pairs: fewer than one in ten thousand such matrices has one beyond six.
        assert self.largest_correlation(matrix(noise, self.ROWS, 128, seed=seed)) < 6

    @all_seeds
    @dense_enough
    def test_rows_are_independent(self, noise, seed):
        assert self.largest_correlation(matrix(noise, 128, self.ROWS, seed=seed).T) < 6

    @all_seeds
    def test_squares_of_the_columns_of_normals_are_independent(self, seed):
        # A pair of normals shares its radius and its angle: neither must show.
        squares = (matrix("gaussian", self.ROWS, 128, seed=seed) ** 2 - 1) / math.sqrt(2)
        assert self.largest_correlation(squares) < 7


# --- pinned values -----------------------------------------------------------------------------


def hexadecimal(values):
    return [[float(x).hex() for x in row] for row in values.view(np.float64)]


def pinned_slices():
    """The slices whose values are pinned, complex entries as pairs of real ones."""
    for noise in NOISES:
        for seed, role, row, column in PLACES:
            for dtype in dict.fromkeys([widest(noise), "complex128"]):
                yield {
                    "noise": noise,
                    "seed": seed,
                    "role": role,
                    "rows": [row, row + 3],
                    "columns": [column, column + 4],
                    "dtype": dtype,
                }


def pinned_digests():
    """Larger slices, pinned by a hash of their little-endian bytes."""
    for noise in NOISES:
        for dtype in dtypes_of(noise):
            yield {
                "noise": noise,
                "seed": 1,
                "role": "right",
                "rows": [1, 2500],
                "columns": [30, 200],
                "dtype": dtype,
            }


def pinned_transforms():
    """Whole columns, whose values are pinned to rounding only; of each so many rows a row."""
    for height, every in ((1, 1), (7, 1), (12, 1), (1000, 97)):
        for seed, role in ((1, "right"), (LAST_SEED, "test")):
            for dtype in ("float64", "complex128"):
                yield {
                    "noise": "ssrft",
                    "seed": seed,
                    "role": role,
                    "rows": [0, height],
                    "columns": [0, min(height, 3)],
                    "dtype": dtype,
                    "every": every,
                }


def drawn_for(case):
    rows, columns = Range(*case["rows"]), Range(*case["columns"])
    drawn = draw(case["noise"], case["seed"], case["role"], rows, columns, case["dtype"])
    return drawn[:: case.get("every", 1)]


def digest_of(values):
    little = values.astype(values.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def name_of(case):
    rows, columns = Range(*case["rows"]), Range(*case["columns"])
    return f"{case['noise']}-{case['dtype']}-{case['role']}-{case['seed']}-{rows}x{columns}"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


class TestGoldenValues:
    @pytest.mark.parametrize("case", list(pinned_slices()), ids=name_of)
    def test_entries_never_change(self, case, golden):
        assert hexadecimal(drawn_for(case)) == golden["entries"][name_of(case)]

    @pytest.mark.parametrize("case", list(pinned_digests()), ids=name_of)
    def test_bytes_of_larger_slices_never_change(self, case, golden):
        assert digest_of(drawn_for(case)) == golden["sha256"][name_of(case)]

    @pytest.mark.parametrize("case", list(pinned_transforms()), ids=name_of)
    def test_entries_of_whole_columns_change_by_rounding_alone(self, case, golden):
        pinned = [[float.fromhex(x) for x in row] for row in golden["transforms"][name_of(case)]]
        drawn = drawn_for(case).view(np.float64)
        np.testing.assert_allclose(drawn, pinned, rtol=0, atol=1e-12)


# --- other processors --------------------------------------------------------------------------

DIGESTS_OF_A_PROCESS = """
import hashlib, json, sys
from numpy._core._multiarray_umath import __cpu_features__
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range

digests = {}
for noise in ("rademacher", "gaussian", "phase", "sparse-sign"):
    for dtype in ("float32", "float64", "complex64", "complex128")[2 * (noise == "phase") :]:
        drawn = draw(noise, 5, "right", Range(1, 6000), Range(3, 90), dtype)
        digests[f"{noise} {dtype}"] = hashlib.sha256(drawn.tobytes()).hexdigest()
used = [name for name in sys.argv[1:] if __cpu_features__[name]]
print(json.dumps({"digests": digests, "used": used}))
"""


def dispatched_features():
    """What numpy has faster code for than the least processor it runs on, and finds here."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


def process_with(**environment):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", DIGESTS_OF_A_PROCESS, *dispatched_features()],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


class TestOtherProcessors:
    def test_the_bytes_do_not_depend_on_the_instructions_that_numpy_may_use(self):
        features = " ".join(dispatched_features())
        if not features:
            pytest.skip("numpy has no faster code for this processor, so there is no other way")
        plain = process_with(NPY_DISABLE_CPU_FEATURES=features, ATEN_CPU_CAPABILITY="default")
        assert plain["used"] == [], "the features were not disabled, so nothing is compared"
        assert plain["digests"] == process_with()["digests"]


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    content = {
        "entries": {name_of(case): hexadecimal(drawn_for(case)) for case in pinned_slices()},
        "sha256": {name_of(case): digest_of(drawn_for(case)) for case in pinned_digests()},
        "transforms": {name_of(case): hexadecimal(drawn_for(case)) for case in pinned_transforms()},
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
