"""Shards of a Hermitian operator that another operator made stand out, and are named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from skerch_ooc.errors import DriftError
from skerch_ooc.partition import Range
from skerch_ooc.stages.drift import outliers, pair_asymmetry, require_one_operator

N = 200
DTYPES = ["float32", "float64", "complex64", "complex128"]
DRIFT = {"float32": 1e-3, "complex64": 1e-3, "float64": 1e-9, "complex128": 1e-9}
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def hermitian(dtype, seed):
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((N, N))
    if np.dtype(dtype).kind == "c":
        a = a + 1j * generator.standard_normal((N, N))
    return (a + a.conj().T) / 2


def places_of(widths):
    stops = np.cumsum(widths)
    return [Range(int(stop - width), int(stop)) for stop, width in zip(stops, widths, strict=True)]


def sketched(widths, drifted=(), *, dtype="float32", drift=None, apart=False):
    """``N^H Z`` and ``Z^H Z`` of shards of these widths, some of them made by another operator.

    Args:
        widths: Columns of each shard.
        drifted: Numbers of the shards that the operator's change ``drift`` reached.
        dtype: Of the products.
        drift: Size of the change, relative to the operator.
        apart: Whether the change is another one for each of these shards.
    """
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (N, sum(widths)))
    a = hermitian(dtype, 2)
    z = a @ signs
    for number in drifted:
        columns = places_of(widths)[number].slice
        change = hermitian(dtype, 3 + (number if apart else 0))
        z[:, columns] += (drift or DRIFT[dtype]) * (change @ signs[:, columns])
    z = z.astype(dtype).astype(np.result_type(dtype, np.float64))
    return signs.T @ z, z.conj().T @ z


def of_integers(widths):
    """``N^H Z`` and ``Z^H Z`` of a symmetric matrix of small integers: no rounding anywhere."""
    generator = np.random.default_rng(0)
    half = generator.integers(-8, 9, (N, N))
    signs = generator.choice([-1.0, 1.0], (N, sum(widths)))
    z = (half + half.T) @ signs
    return signs.T @ z, z.T @ z


def placed(widths):
    return [(place, Path(f"shards/{place}.h5")) for place in places_of(widths)]


def names_of(widths, numbers):
    return [str(placed(widths)[number][1]) for number in numbers]


def require(widths, drifted=(), **options):
    dtype = options.get("dtype", "float32")
    require_one_operator(*sketched(widths, drifted, **options), placed(widths), dtype)


def named(widths, drifted, **options):
    """The shards that the error names, in its order."""
    with pytest.raises(DriftError) as caught:
        require(widths, drifted, **options)
    return re.findall(r"^  (shards/\S+)$", str(caught.value), re.MULTILINE)


class TestNoDrift:
    @all_dtypes
    @pytest.mark.parametrize(
        "widths",
        [[10] * 8, [1] * 30, [30, 30], [1, 1], [25], [1], [40, 3, 7, 1, 20], [32] * 4 + [5, 30]],
        ids=str,
    )
    def test_passes(self, widths, dtype):
        require(widths, dtype=dtype)

    @all_dtypes
    @pytest.mark.parametrize("widths", [[10] * 8, [1] * 30, [30, 30], [40, 3, 7, 1, 20]], ids=str)
    def test_with_products_of_poor_accuracy_passes(self, widths, dtype):
        cross, gram = sketched(widths, dtype=dtype)
        poor = np.random.default_rng(0).standard_normal(cross.shape) * np.abs(cross).mean()
        require_one_operator(cross + 1e-3 * poor, gram, placed(widths), dtype)

    @pytest.mark.parametrize("widths", [[10] * 8, [1] * 20, [30, 30]], ids=str)
    def test_of_exact_integers_passes(self, widths):
        require_one_operator(*of_integers(widths), placed(widths), "float32")

    def test_of_integers_that_are_exact_but_for_one_rounding_passes(self):
        cross, gram = of_integers([10] * 8)
        cross[0, 40] *= 1 + np.finfo("float32").eps
        require_one_operator(cross, gram, placed([10] * 8), "float32")

    @all_dtypes
    def test_of_a_zero_operator_passes(self, dtype):
        nothing = np.zeros((80, 80), np.result_type(dtype, np.float64))
        require_one_operator(nothing, nothing, placed([10] * 8), dtype)


class TestOneShard:
    @all_dtypes
    @pytest.mark.parametrize("number", [0, 3, 7])
    def test_is_named_alone(self, number, dtype):
        widths = [10] * 8
        assert named(widths, [number], dtype=dtype) == names_of(widths, [number])

    @pytest.mark.parametrize("number", [0, 3, 4])
    def test_is_named_among_shards_of_unequal_widths(self, number):
        widths = [20, 5, 20, 1, 13]
        assert named(widths, [number]) == names_of(widths, [number])

    @pytest.mark.parametrize("dtype", ["float32", "complex64"])
    @pytest.mark.parametrize("number", [0, 5, 11])
    def test_is_named_among_shards_of_a_single_column(self, number, dtype):
        widths = [1] * 12
        found = named(widths, [number], dtype=dtype, drift=1e-2)
        assert found == names_of(widths, [number])

    def test_is_named_if_the_change_is_as_small_as_a_ten_thousandth(self):
        assert named([10] * 8, [3], drift=1e-4) == names_of([10] * 8, [3])

    def test_is_named_among_exact_integers(self):
        cross, gram = of_integers([10] * 8)
        cross[:, 30:40] += 1
        with pytest.raises(DriftError, match=r"1 of 8 shards .*:\n  shards/30-40.h5\n"):
            require_one_operator(cross, gram, placed([10] * 8), "float32")

    def test_that_changed_within_itself_is_named(self):
        widths = [10] * 8
        cross, gram = sketched(widths)
        cross[35:40, 30:35] *= 1.01
        with pytest.raises(DriftError, match=r"1 of 8 shards .*:\n  shards/30-40.h5\n"):
            require_one_operator(cross, gram, placed(widths), "float32")


class TestManyShards:
    @all_dtypes
    def test_a_third_of_them_is_named(self, dtype):
        widths = [10] * 9
        assert named(widths, [3, 4, 5], dtype=dtype) == names_of(widths, [3, 4, 5])

    @all_dtypes
    def test_a_third_of_them_is_named_if_each_changed_in_its_own_way(self, dtype):
        widths = [10] * 9
        found = named(widths, [0, 4, 8], dtype=dtype, apart=True)
        assert found == names_of(widths, [0, 4, 8])

    @pytest.mark.parametrize("drifted", [[5, 6, 7, 8], [0, 1, 2, 3]], ids=["last", "first"])
    def test_of_two_halves_the_smaller_is_named(self, drifted):
        widths = [10] * 9
        assert named(widths, drifted) == names_of(widths, drifted)

    def test_of_two_halves_the_one_of_fewer_columns_is_named(self):
        widths = [5, 5, 5, 5, 40]
        assert named(widths, [4]) == names_of(widths, [0, 1, 2, 3])

    def test_of_two_equal_halves_the_later_is_named(self):
        assert named([10] * 8, [4, 5, 6, 7]) == names_of([10] * 8, [4, 5, 6, 7])

    @pytest.mark.parametrize("count", [8, 12, 16])
    def test_nearly_half_of_shards_of_a_single_column_is_named(self, count):
        late = list(range(count // 2 + 1, count))
        assert named([1] * count, late, drift=1e-2) == names_of([1] * count, late)

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_one_of_three_shards_of_a_single_column_is_seen(self, number):
        with pytest.raises(DriftError, match="of 3 shards"):
            require([1] * 3, [number], drift=0.1)

    def test_no_more_than_eight_are_listed(self):
        widths = [4] * 30
        assert named(widths, range(20, 30)) == names_of(widths, range(20, 28))

    def test_those_that_are_not_listed_are_counted(self):
        with pytest.raises(DriftError, match=r"10 of 30 shards(?s:.*)\n  and 2 more"):
            require([4] * 30, range(20, 30))


class TestMessage:
    OTHER_ONE = "it may as well be the other one"

    @pytest.fixture
    def message(self, widths, drifted):
        with pytest.raises(DriftError) as caught:
            require(widths, drifted)
        return str(caught.value)

    @pytest.mark.parametrize(("widths", "drifted"), [([30, 30], [0]), ([30, 30], [1])])
    def test_of_two_shards_says_that_it_may_be_the_other(self, message):
        assert self.OTHER_ONE in message

    @pytest.mark.parametrize(
        ("widths", "drifted"), [([10] * 8, [3]), ([10] * 9, [3, 4, 5]), ([20] * 3, [1])]
    )
    def test_of_more_shards_does_not_doubt_which(self, message):
        assert self.OTHER_ONE not in message

    def test_of_three_shards_that_all_disagree_does_not_speak_of_two(self):
        with pytest.raises(DriftError, match="2 of 3 shards") as caught:
            require([20] * 3, [0, 1], apart=True)
        assert "only two shards" not in str(caught.value)

    @pytest.mark.parametrize(("widths", "drifted"), [([10] * 8, [3])])
    def test_says_how_many_do_not_fit(self, message):
        assert "the operator changed while it was measured: 1 of 8 shards do not fit" in message

    @pytest.mark.parametrize(("widths", "drifted"), [([10] * 8, [3])])
    def test_says_how_large_the_asymmetry_is_beside_the_typical_one(self, message):
        worst, typical = map(float, re.findall(r"\d\.\de-\d\d", message))
        assert 1e-4 < worst < 1e-2
        assert typical < 1e-6

    @pytest.mark.parametrize(("widths", "drifted"), [([10] * 8, [3])])
    def test_says_what_to_do(self, message):
        assert "restore it, remove these shards, and measure them again" in message


class TestPairAsymmetry:
    @pytest.mark.parametrize("complex_part", [0, 1j])
    def test_is_the_root_mean_square_of_each_block(self, complex_part):
        generator = np.random.default_rng(0)
        cross = generator.standard_normal((6, 6)) + complex_part * generator.standard_normal((6, 6))
        places = places_of([1, 3, 2])
        difference = cross - cross.conj().T
        expected = [
            [np.sqrt((np.abs(difference[a.slice, b.slice]) ** 2).mean()) for b in places]
            for a in places
        ]
        np.testing.assert_allclose(pair_asymmetry(cross, places), expected)


class TestOutliers:
    @staticmethod
    def disagreeing(count, pairs):
        matrix = np.zeros((count, count), bool)
        for a, b in pairs:
            matrix[a, b] = matrix[b, a] = True
        return matrix

    @pytest.mark.parametrize(
        ("pairs", "chosen"),
        [
            ([], []),
            ([(1, 0), (1, 2), (1, 3)], [1]),
            ([(2, 2)], [2]),
            ([(0, 2), (0, 3), (1, 2), (1, 3), (0, 4), (1, 4)], [0, 1]),
            ([(0, 1)], [1]),
        ],
    )
    def test_are_the_fewest_without_which_all_agree(self, pairs, chosen):
        assert outliers(self.disagreeing(5, pairs), np.ones(5)) == chosen

    def test_do_not_change_what_they_are_chosen_from(self):
        disagree = self.disagreeing(5, [(1, 0)])
        outliers(disagree, np.ones(5))
        assert disagree[0, 1]
