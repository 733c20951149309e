"""The cover of all pairs, by which tests choose their cases."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairwise import cover, covered

AXES = (("a", "b"), (1, 2, 3, 4), ("x", "y", "z"))

axes = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def meetings(cases, together):
    return {met for case in cases for met in combinations(enumerate(case), together)}


@given(axes, st.integers(1, 2), st.integers(0, 9))
def test_whatever_is_allowed_to_meet_meets(sizes, together, seed):
    def allowed(*case):
        return hash((case, seed)) % 3 > 0

    ranges = [range(size) for size in sizes]
    every = [case for case in product(*ranges) if allowed(*case)]
    chosen = cover(*ranges, together=together, allowed=allowed)
    assert set(chosen) <= set(every)
    assert meetings(chosen, together) == meetings(every, together)


def test_cases_are_few():
    assert len(cover(*AXES)) == 12
    assert len(cover(*AXES, together=1)) == 4


def test_values_are_used_evenly():
    chosen = cover(*AXES, together=1)
    assert [case[0] for case in chosen].count("a") == 2


def test_case_that_adds_nothing_is_not_chosen():
    chosen = cover(*AXES)
    for case in chosen:
        others = [other for other in chosen if other != case]
        assert meetings(others, 2) < meetings(chosen, 2)


def test_all_other_cases_are_thorough():
    params = covered(*AXES)
    assert [param.values for param in params] == list(product(*AXES))
    by_default = [param.values for param in params if pytest.mark.thorough not in param.marks]
    assert by_default == cover(*AXES)
