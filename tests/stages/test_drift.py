"""Shards that another operator made stand out, and are named."""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from operators import Operator, dense

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError
from skerch_ooc.base.partition import Range
from skerch_ooc.stages.merge.drift import (
    Applied,
    outliers,
    pair_asymmetry,
    pair_difference,
    relative_difference,
    require_one_operator,
)

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


def judge(cross, gram, widths, dtype="float32"):
    """What becomes of the shards of a Hermitian operator."""
    applied = Applied(np.ones(len(gram)), np.sqrt(np.diagonal(gram).real))
    pairs = pair_asymmetry(relative_difference(cross, cross, applied, applied), places_of(widths))
    require_one_operator(pairs, placed(widths), dtype)


def require(widths, drifted=(), **options):
    judge(*sketched(widths, drifted, **options), widths, options.get("dtype", "float32"))


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
        judge(cross + 1e-3 * poor, gram, widths, dtype)

    @pytest.mark.parametrize("widths", [[10] * 8, [1] * 20, [30, 30]], ids=str)
    def test_of_exact_integers_passes(self, widths):
        judge(*of_integers(widths), widths)

    def test_of_integers_that_are_exact_but_for_one_rounding_passes(self):
        cross, gram = of_integers([10] * 8)
        cross[0, 40] *= 1 + np.finfo("float32").eps
        judge(cross, gram, [10] * 8)

    @pytest.mark.parametrize("typical", [0, 1.4], ids=["exact", "nearly exact"])
    def test_single_columns_that_are_rounded_among_exact_ones_pass(self, typical):
        pairs = np.full((40, 40), typical * np.finfo("float64").eps)
        pairs[0, 1] = pairs[1, 0] = 50 * np.finfo("float64").eps
        require_one_operator(pairs, placed([1] * 40), "float64")

    @all_dtypes
    def test_of_a_zero_operator_passes(self, dtype):
        nothing = np.zeros((80, 80), np.result_type(dtype, np.float64))
        judge(nothing, nothing, [10] * 8, dtype)


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
            judge(cross, gram, [10] * 8)

    def test_that_changed_within_itself_is_named(self):
        widths = [10] * 8
        cross, gram = sketched(widths)
        cross[35:40, 30:35] *= 1.01
        with pytest.raises(DriftError, match=r"1 of 8 shards .*:\n  shards/30-40.h5\n"):
            judge(cross, gram, widths)


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
        shown = re.findall(r"(?:asymmetry|typical) ([\d.]+(?:e-\d\d)?)", message)
        worst, typical = map(float, shown)
        assert 1e-4 < worst < 1e-2
        assert typical < 1e-6

    @pytest.mark.parametrize(("widths", "drifted"), [([10] * 8, [3])])
    def test_says_what_to_do(self, message):
        assert "restore it, remove these shards, and measure them again" in message


class TestPairs:
    complex_parts = pytest.mark.parametrize("complex_part", [0, 1j])

    @staticmethod
    def numbers(shape, complex_part, seed=0):
        generator = np.random.default_rng(seed)
        return generator.standard_normal(shape) + complex_part * generator.standard_normal(shape)

    @staticmethod
    def block_means(difference, rows, columns):
        return [
            [np.sqrt((np.abs(difference[a.slice, b.slice]) ** 2).mean()) for b in columns]
            for a in rows
        ]

    @complex_parts
    def test_of_a_hermitian_matrix_are_the_root_mean_square_of_each_block(self, complex_part):
        cross, places = self.numbers((6, 6), complex_part), places_of([1, 3, 2])
        difference = np.abs(cross - cross.conj().T)
        expected = self.block_means(difference, places, places)
        np.testing.assert_allclose(pair_asymmetry(difference, places), expected)

    @complex_parts
    def test_of_two_sketches_are_the_root_mean_square_of_each_block(self, complex_part):
        difference = np.abs(self.numbers((6, 5), complex_part))
        rows, columns = places_of([1, 3, 2]), places_of([4, 1])
        expected = self.block_means(difference, rows, columns)
        np.testing.assert_allclose(pair_difference(difference, rows, columns)[:3, 3:], expected)

    def test_of_two_sketches_are_symmetric(self):
        pairs = pair_difference(np.ones((6, 5)), places_of([1, 3, 2]), places_of([4, 1]))
        np.testing.assert_array_equal(pairs, pairs.T)

    @pytest.mark.parametrize("block", [np.s_[:3, :3], np.s_[3:, 3:]], ids=["rows", "columns"])
    def test_of_one_and_the_same_sketch_are_unknown(self, block):
        pairs = pair_difference(np.ones((6, 5)), places_of([1, 3, 2]), places_of([4, 1]))
        assert np.isnan(pairs[block]).all()

    def test_some_of_each_side_that_are_later_are_not_surely_those_that_are_named(self):
        """What was measured first and what later fit each other, and neither fits the other."""
        difference = np.zeros((4, 5))
        difference[2:, :3] = difference[:2, 3:] = 0.3
        pairs = pair_difference(difference, places_of([2, 2]), places_of([2, 1, 2]))
        with pytest.raises(DriftError, match="remove all shards"):
            require_one_operator(pairs, placed([2, 2, 2, 1, 2]), "float64")

    def test_two_ways_that_agree_differ_by_nothing(self):
        there, ones = self.numbers((4, 3), 1j), (Applied(np.ones(n), np.ones(n)) for n in (4, 3))
        assert not relative_difference(there, there.conj().T, *ones).any()

    def test_the_scale_of_the_operator_does_not_matter(self):
        there, back = self.numbers((4, 3), 0), self.numbers((3, 4), 0, seed=1)
        one, other = (
            relative_difference(
                scale * there, scale * back,
                Applied(np.ones(4), np.full(4, scale)), Applied(np.ones(3), np.full(3, scale)),
            )
            for scale in (1.0, 1e20)
        )  # fmt: skip
        np.testing.assert_allclose(one, other)

    def test_the_norms_of_the_vectors_do_not_matter(self):
        there, back = self.numbers((4, 3), 0), self.numbers((3, 4), 0, seed=1)
        sizes = np.array([1.0, 0.1, 1e-3, 0.02])[:, None]
        plain, small = (
            relative_difference(
                by * there, back * by.T,
                Applied(by[:, 0], by[:, 0]), Applied(np.ones(3), np.ones(3)),
            )
            for by in (np.ones((4, 1)), sizes)
        )  # fmt: skip
        np.testing.assert_allclose(plain, small)

    def test_a_difference_of_the_operators_size_is_one(self):
        random = Applied(np.ones(4), np.full(4, 5.0))
        found = relative_difference(np.full((4, 4), 5.0), np.zeros((4, 4)), random, random)
        np.testing.assert_allclose(found, 1)

    def test_of_a_zero_operator_are_zero(self):
        nothing, applied = np.zeros((4, 4)), Applied(np.ones(4), np.zeros(4))
        assert not relative_difference(nothing, nothing, applied, applied).any()


def general(left, right, drifted_left=(), drifted_right=(), *, dtype="float32", drift=None):
    """What becomes of the shards of a general operator, some of them made by another one.

    Args:
        left: Columns of each shard of ``A^H Psi``.
        right: Columns of each shard of ``A Omega``.
        drifted_left: Numbers of the left shards that the operator's change ``drift`` reached.
        drifted_right: Numbers of the right shards that it reached.
        dtype: Of the products.
        drift: Size of the change, relative to the operator.
    """
    generator = np.random.default_rng(1)
    shape = (N, N - 40)
    a, change = (generator.standard_normal(shape) + 0j for _ in range(2))
    if np.dtype(dtype).kind == "c":
        a, change = (x + 1j * generator.standard_normal(shape) for x in (a, change))
    psi = generator.choice([-1.0, 1.0], (N, sum(left)))
    omega = generator.choice([-1.0, 1.0], (N - 40, sum(right)))
    drift = DRIFT[dtype] if drift is None else drift

    def measured(matrix, by, noise, widths, drifted):
        z = matrix @ noise
        for number in drifted:
            columns = places_of(widths)[number].slice
            z[:, columns] += drift * (by @ noise[:, columns])
        kept = z if np.dtype(dtype).kind == "c" else z.real
        return kept.astype(dtype).astype(np.result_type(dtype, np.float64))

    w = measured(a.conj().T, change.conj().T, psi, left, drifted_left)
    y = measured(a, change, omega, right, drifted_right)
    difference = relative_difference(
        psi.T @ y,
        omega.T @ w,
        Applied(np.ones(sum(left)), np.linalg.norm(w, axis=0)),
        Applied(np.ones(sum(right)), np.linalg.norm(y, axis=0)),
    )
    pairs = pair_difference(difference, places_of(left), places_of(right))
    names = [(place, Path(f"shards/left-{place}.h5")) for place in places_of(left)]
    names += [(place, Path(f"shards/right-{place}.h5")) for place in places_of(right)]
    require_one_operator(pairs, names, dtype)


class TestGeneralOperator:
    WIDTHS = ([30, 30, 20], [10] * 4)
    widths = pytest.mark.parametrize(
        ("left", "right"),
        [WIDTHS, ([60], [40]), ([60], [10] * 4), ([60] * 3, [40]), ([1] * 8, [1] * 5), ([1], [1])],
        ids=str,
    )

    @staticmethod
    def named(*arguments, **options):
        with pytest.raises(DriftError) as caught:
            general(*arguments, **options)
        return re.findall(r"^  shards/(\S+).h5$", str(caught.value), re.MULTILINE)

    @all_dtypes
    @widths
    def test_that_did_not_change_passes(self, left, right, dtype):
        general(left, right, dtype=dtype)

    @all_dtypes
    @pytest.mark.parametrize(
        ("number", "name"), [(0, "left-0-30"), (1, "left-30-60"), (2, "left-60-80")]
    )
    def test_one_left_shard_is_named_alone(self, number, name, dtype):
        assert self.named(*self.WIDTHS, [number], dtype=dtype) == [name]

    @all_dtypes
    @pytest.mark.parametrize(
        ("number", "name"), [(0, "right-0-10"), (1, "right-10-20"), (3, "right-30-40")]
    )
    def test_one_right_shard_is_named_alone(self, number, name, dtype):
        assert self.named(*self.WIDTHS, [], [number], dtype=dtype) == [name]

    def test_shards_of_both_sides_are_named_together(self):
        assert self.named([20] * 5, [10] * 6, [1], [4]) == ["left-20-40", "right-40-50"]

    @all_dtypes
    @widths
    def test_a_change_between_the_two_sides_is_seen(self, left, right, dtype):
        drift = 30 * DRIFT[dtype]
        assert self.named(left, right, range(len(left)), dtype=dtype, drift=drift)

    def test_a_change_between_the_two_sides_may_be_of_either(self):
        with pytest.raises(DriftError, match="may as well be those that they disagree with"):
            general(*self.WIDTHS, range(3))

    def test_a_change_between_the_two_sides_says_how_much_is_allowed(self):
        with pytest.raises(DriftError, match=r"asymmetry (0.00\d\d|\d.\de-04) .*, allowed 2.4e-04"):
            general(*self.WIDTHS, range(3))

    def test_of_one_shard_on_each_side_says_that_it_may_be_the_other(self):
        with pytest.raises(DriftError, match="it may as well be the other one"):
            general([60], [40], [0])


class TestBasis:
    """Of vectors of a basis, rounding does not do the same to all pairs."""

    def test_pairs_that_stand_out_below_the_limit_pass(self):
        pairs = np.full((4, 4), 1e-7)
        pairs[0, 1] = pairs[1, 0] = 1e-4
        require_one_operator(pairs, placed([10] * 4), "float32", alike=False)

    def test_a_pair_above_the_limit_is_named(self):
        pairs = np.full((4, 4), 1e-7)
        pairs[0, 1] = pairs[1, 0] = 1e-3
        with pytest.raises(
            DriftError, match=r"asymmetry 0.0010 .*, allowed 2.4e-04\):\n  shards/1"
        ):
            require_one_operator(pairs, placed([10] * 4), "float32", alike=False)

    def test_a_pair_of_single_columns_may_scatter_more(self):
        pairs = np.full((4, 4), 1e-7)
        pairs[0, 1] = pairs[1, 0] = 1e-3
        require_one_operator(pairs, placed([1] * 4), "float32", alike=False)


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


KINDS = ["eigh", "svd"]
METHODS = ["nystrom", "singlepass", "oversampled"]
kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", METHODS)


def spec_of(kind, method="nystrom", **more):
    return {
        "kind": kind,
        "measurements": 40,
        "dtype": "float32",
        "recovery": {"method": method, **more},
        "sketch": {"test_measurements": 12, "block": 10},
    }


def operator_of(kind, scale=1.0):
    shape = (150, 150) if kind == "eigh" else (190, 130)
    return Operator(scale * dense(shape, "slow", "float32", hermitian=kind == "eigh"))


def measured(folder, spec, scale=1.0):
    operator = operator_of(spec["kind"], scale)
    run = ooc.plan(spec, folder, operator=operator, threads=1)
    assert ooc.measure(run, operator=operator, threads=1)
    return run


def measure_next_round(run, operator):
    """Merges, then measures the next round with an operator, whatever the fingerprint says."""
    ooc.merge(run, threads=1)
    (run.directory / "fingerprint.json").unlink()
    assert ooc.measure(run, operator=operator, threads=1)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two runs of one plan; the operator of the second is larger by a thousandth."""

    @cache
    def twins_of(kind, method):
        folder, spec = tmp_path_factory.mktemp("twins"), spec_of(kind, method)
        return [
            measured(folder / name, spec, scale).directory
            for name, scale in (("a", 1.0), ("b", 1.001))
        ]

    return twins_of


def mixed(twins, folder, patterns):
    """The first of two runs, with some shards of the second."""
    shutil.copytree(twins[0], folder)
    replaced = {path.name for pattern in patterns for path in (twins[1] / "shards").glob(pattern)}
    assert replaced
    for name in replaced:
        (folder / "shards" / name).unlink()
        shutil.copy(twins[1] / "shards" / name, folder / "shards")
    return ooc.open_run(folder), replaced


def named_at_merge(run):
    with pytest.raises(DriftError) as caught:
        ooc.merge(run, threads=1)
    return {name for name in os.listdir(run.shards) if name in str(caught.value)}


class TestRuns:
    """Whole runs, with shards of the same plan that another operator made."""

    @pytest.mark.sampled(1)
    @methods
    @kinds
    @pytest.mark.parametrize("shard", ["right.p0.c10-20.*", "right.p0.c30-40.*", "test.p0.c0-*"])
    def test_a_shard_of_another_operator_is_named_alone(self, tmp_path, twins, kind, method, shard):
        run, replaced = mixed(twins(kind, method), tmp_path / "run", [shard])
        assert named_at_merge(run) == replaced

    @pytest.mark.sampled(1)
    @methods
    @pytest.mark.parametrize("shard", ["left.p0.c0-10.*", "left.p0.c20-30.*"])
    def test_a_left_shard_of_another_operator_is_named_alone(self, tmp_path, twins, method, shard):
        run, replaced = mixed(twins("svd", method), tmp_path / "run", [shard])
        assert named_at_merge(run) == replaced

    @pytest.mark.covered(1)
    @methods
    @pytest.mark.parametrize("shards", [["left*"], ["right*", "test*"]], ids=str)
    def test_a_change_between_the_two_sides_is_noticed(self, tmp_path, twins, method, shards):
        run, _ = mixed(twins("svd", method), tmp_path / "run", shards)
        assert named_at_merge(run)

    @pytest.mark.covered(1)
    @methods
    @kinds
    def test_nothing_is_merged_then(self, tmp_path, twins, kind, method):
        run, _ = mixed(twins(kind, method), tmp_path / "run", ["right.p0.c10-20.*"])
        named_at_merge(run)
        assert not list(run.sketch.glob("*/*total.h5"))

    @pytest.mark.covered(1)
    @methods
    @kinds
    def test_shards_of_one_operator_are_merged(self, twins, kind, method):
        run = ooc.open_run(twins(kind, method)[1])
        ooc.merge(run, threads=1)
        assert list(run.sketch.glob("*/total.h5"))


class TestRounds:
    @kinds
    def test_another_operator_in_the_second_is_noticed(self, tmp_path, kind):
        run = measured(tmp_path / "run", spec_of(kind, "hmt"))
        measure_next_round(run, operator_of(kind, 1.001))
        assert named_at_merge(run)

    @pytest.mark.sampled(1)
    @kinds
    def test_another_operator_in_the_last_is_noticed(self, tmp_path, kind):
        run = measured(tmp_path / "run", spec_of(kind, "hmt", power_iterations=1))
        last = run.plan.rounds
        for number in range(2, last + 1):
            measure_next_round(run, operator_of(kind, 1.001 if number == last else 1.0))
        assert named_at_merge(run)

    @pytest.mark.sampled(1)
    @kinds
    @pytest.mark.parametrize("power_iterations", [0, 1, 2])
    def test_of_one_operator_are_merged(self, tmp_path, kind, power_iterations):
        run = measured(tmp_path / "run", spec_of(kind, "hmt", power_iterations=power_iterations))
        for _ in range(2, run.plan.rounds + 1):
            measure_next_round(run, operator_of(kind))
        ooc.merge(run, threads=1)
        assert ooc.recover(run, threads=1).rank > 0

    def test_a_test_shard_of_another_operator_is_named_with_the_second(self, tmp_path, twins):
        run, replaced = mixed(twins("svd", "hmt"), tmp_path / "run", ["test.p0.c10-12.*"])
        measure_next_round(run, operator_of("svd"))
        assert named_at_merge(run) == replaced

    @pytest.mark.covered(1)
    @kinds
    @pytest.mark.parametrize("power_iterations", [0, 1])
    def test_without_test_columns_are_merged(self, tmp_path, kind, power_iterations):
        spec = spec_of(kind, "hmt", power_iterations=power_iterations)
        run = measured(tmp_path / "run", spec | {"sketch": {"test_measurements": 0}})
        for _ in range(2, run.plan.rounds + 1):
            measure_next_round(run, operator_of(kind))
        ooc.merge(run, threads=1)
        assert ooc.recover(run, threads=1).rank > 0

    @kinds
    def test_the_fingerprint_notices_another_operator_before_it_measures(self, tmp_path, kind):
        run = measured(tmp_path / "run", spec_of(kind, "hmt"))
        ooc.merge(run, threads=1)
        with pytest.raises(DriftError, match="not the one that the run started with"):
            ooc.measure(run, operator=operator_of(kind, 1.001), threads=1)
