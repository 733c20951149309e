"""Half-open ranges: every integer exactly once, and one summation tree whoever sums."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.base.partition import (
    Range,
    aligned_runs,
    cover,
    cut,
    gaps,
    levels,
    tiles_of,
    tree_sum,
)

relaxed = settings(deadline=None)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@st.composite
def ranges(draw, largest=60):
    start = draw(st.integers(0, largest))
    return Range(start, draw(st.integers(start, largest)))


def integers(whole):
    return list(range(whole.start, whole.stop))


def symbolic(left, right):
    return f"({left}+{right})"


def pairwise(values):
    """The tree as its definition has it: neighbours are added, level by level."""
    while len(values) > 1:
        odd = values[-1:] if len(values) % 2 else []
        values = [symbolic(a, b) for a, b in zip(values[0::2], values[1::2], strict=False)] + odd
    return values[0]


class TestRange:
    @pytest.mark.parametrize(("start", "stop"), [(5, 3), (-1, 3), (-3, -1)])
    def test_what_is_no_range_is_refused(self, start, stop):
        with pytest.raises(ValueError, match=f"not a range: {start}-{stop}"):
            Range(start, stop)

    def test_reads_as_its_half_open_bounds(self):
        assert str(Range(0, 128)) == "0-128"

    @relaxed
    @given(ranges())
    def test_length_counts_its_integers(self, whole):
        assert len(whole) == len(integers(whole))

    @relaxed
    @given(ranges())
    def test_slice_takes_its_integers(self, whole):
        assert list(range(100))[whole.slice] == integers(whole)

    @relaxed
    @given(ranges(), st.integers(0, 100))
    def test_shifting_moves_every_integer(self, whole, offset):
        assert integers(whole.shifted(offset)) == [i + offset for i in integers(whole)]

    def test_shifting_below_zero_is_refused(self):
        with pytest.raises(ValueError, match="not a range"):
            Range(2, 4).shifted(-3)

    @relaxed
    @given(ranges(), ranges())
    def test_common_is_the_intersection(self, one, other):
        assert set(integers(one.common(other))) == set(integers(one)) & set(integers(other))

    @relaxed
    @given(ranges().filter(len), ranges())
    def test_within_says_whether_every_integer_is_in_the_other(self, one, other):
        assert one.within(other) == set(integers(one)).issubset(integers(other))


class TestCut:
    @relaxed
    @given(ranges(), st.integers(1, 70))
    def test_holds_every_integer_exactly_once_and_in_order(self, whole, width):
        assert [i for piece in cut(whole, width) for i in integers(piece)] == integers(whole)

    @relaxed
    @given(ranges(), st.integers(1, 70))
    def test_pieces_have_the_width_but_for_a_shorter_last_one(self, whole, width):
        sizes = [len(piece) for piece in cut(whole, width)]
        assert sizes[:-1] == [width] * (len(sizes) - 1)
        assert not sizes or 1 <= sizes[-1] <= width

    @relaxed
    @given(ranges(), st.integers(1, 70))
    def test_tiles_of_a_range_are_those_that_hold_its_integers(self, wanted, size):
        assert list(tiles_of(wanted, size)) == sorted({i // size for i in integers(wanted)})


class TestGaps:
    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_are_exactly_what_no_range_holds(self, whole, present):
        held = {i for piece in present for i in integers(piece)}
        missing = [i for gap in gaps(whole, present) for i in integers(gap)]
        assert missing == [i for i in integers(whole) if i not in held]

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_are_as_few_as_can_be(self, whole, present):
        found = gaps(whole, present)
        assert all(len(gap) for gap in found)
        assert all(a.stop < b.start for a, b in itertools.pairwise(found))

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_filling_them_leaves_none(self, whole, present):
        assert gaps(whole, present + gaps(whole, present)) == []


class TestCover:
    @staticmethod
    def complete(whole, present):
        return list(present) + gaps(whole, present)

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_takes_every_integer_exactly_once_and_in_order(self, whole, present):
        parts = [part for part, _ in cover(whole, self.complete(whole, present))]
        assert [i for part in parts for i in integers(part)] == integers(whole)

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_takes_from_each_range_only_what_it_holds(self, whole, present):
        present = self.complete(whole, present)
        assert all(part.within(present[index]) for part, index in cover(whole, present))

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8))
    def test_uses_a_range_up_before_the_next(self, whole, present):
        present = self.complete(whole, present)
        chosen = cover(whole, present)
        assert [part.stop for part, _ in chosen] == [
            min(present[index].stop, whole.stop) for _, index in chosen
        ]

    @relaxed
    @given(ranges(), st.lists(ranges(), max_size=8), st.randoms(use_true_random=False))
    def test_takes_the_same_ranges_in_whatever_order_they_are_given(self, whole, present, random):
        present = self.complete(whole, present)
        shuffled = random.sample(present, len(present))
        taken = [(part, present[index]) for part, index in cover(whole, present)]
        assert [(part, shuffled[index]) for part, index in cover(whole, shuffled)] == taken

    @pytest.mark.parametrize(
        ("present", "first_missing"),
        [([], 2), ([Range(3, 9)], 2), ([Range(0, 4), Range(6, 9)], 4), ([Range(2, 8)], 8)],
        ids=["nothing", "start", "middle", "end"],
    )
    def test_names_the_first_integer_that_nothing_holds(self, present, first_missing):
        with pytest.raises(ValueError, match=f"nothing holds {first_missing}-9"):
            cover(Range(2, 9), present)


class TestTreeSum:
    @pytest.mark.parametrize(
        ("count", "tree"),
        [
            (1, "a"),
            (2, "(a+b)"),
            (3, "((a+b)+c)"),
            (5, "(((a+b)+(c+d))+e)"),
            (7, "(((a+b)+(c+d))+((e+f)+g))"),
        ],
    )
    def test_is_this_tree(self, count, tree):
        assert tree_sum(LETTERS[:count], symbolic) == tree

    @pytest.mark.parametrize("count", range(1, 34))
    def test_adds_neighbours_level_by_level(self, count):
        assert tree_sum(LETTERS[:count], symbolic) == pairwise(list(LETTERS[:count]))

    @relaxed
    @given(st.integers(1, len(LETTERS)), st.integers(0, 7))
    def test_over_aligned_runs_summed_again_is_the_identical_tree(self, count, exponent):
        sums = [tree_sum(LETTERS[run.slice], symbolic) for run in aligned_runs(count, exponent)]
        assert tree_sum(sums, symbolic) == tree_sum(LETTERS[:count], symbolic)

    @relaxed
    @given(st.integers(1, len(LETTERS)), st.integers(0, 3), st.integers(0, 3))
    def test_over_runs_of_runs_is_the_identical_tree(self, count, exponent, second):
        values = list(LETTERS[:count])
        for size in (exponent, second):
            values = [
                tree_sum(values[run.slice], symbolic) for run in aligned_runs(len(values), size)
            ]
        assert tree_sum(values, symbolic) == tree_sum(LETTERS[:count], symbolic)

    def test_adds_in_place_in_the_order_of_the_positions(self):
        def extend(left, right):
            left.extend(right)
            return left

        assert tree_sum(([i] for i in range(21)), extend) == list(range(21))

    def test_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="at least one value"):
            tree_sum([], symbolic)


class Counted:
    """A partial sum that knows how many of its kind are alive."""

    def __init__(self, census):
        self.census = census
        census["alive"] += 1
        census["most"] = max(census["most"], census["alive"])

    def __del__(self):
        self.census["alive"] -= 1

    def add(self, _other):
        return self


class TestLevels:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 64, 100])
    def test_is_never_exceeded_by_the_partial_sums_alive(self, count):
        census = {"alive": 0, "most": 0}
        tree_sum((Counted(census) for _ in range(count)), Counted.add)
        assert census["most"] <= levels(count)

    @pytest.mark.parametrize("count", [1, 2, 4, 8, 32, 64])
    def test_is_reached_by_powers_of_two(self, count):
        census = {"alive": 0, "most": 0}
        tree_sum((Counted(census) for _ in range(count)), Counted.add)
        assert census["most"] == levels(count)


class TestAlignedRuns:
    @relaxed
    @given(st.integers(0, 300), st.integers(0, 9))
    def test_hold_every_tile_exactly_once_and_in_order(self, count, exponent):
        runs = aligned_runs(count, exponent)
        assert [i for run in runs for i in integers(run)] == list(range(count))

    @relaxed
    @given(st.integers(0, 300), st.integers(0, 9))
    def test_start_at_multiples_of_their_length(self, count, exponent):
        assert all(run.start % 2**exponent == 0 for run in aligned_runs(count, exponent))
