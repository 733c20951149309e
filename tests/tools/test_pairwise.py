"""The cover of all pairs, by which tests choose the cases that are run by default."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pairwise import cover

CASES = list(product("ab", range(4), "xyz"))


def meetings(cases, together):
    return {met for case in cases for met in combinations(enumerate(case), together)}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), unique=True),
    st.integers(1, 3),
)
def test_what_meets_in_any_case_meets_in_one_that_is_chosen(cases, together):
    chosen = cover(cases, together)
    assert meetings([cases[number] for number in chosen], together) == meetings(cases, together)
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(("together", "count"), [(1, 4), (2, 12), (3, 24)])
def test_cases_are_few(together, count):
    assert len(cover(CASES, together)) == count


def test_values_are_chosen_evenly():
    assert [CASES[number][0] for number in cover(CASES, 1)].count("a") == 2


def test_each_chosen_case_adds_something():
    chosen = cover(CASES)
    for number in chosen:
        others = [CASES[other] for other in chosen if other != number]
        assert meetings(others, 2) < meetings(CASES, 2)


def test_no_case_is_chosen_of_none():
    assert cover([]) == []


SOME = [case for case in CASES if case[:2] != ("a", 0)]


@pytest.mark.covered(2)
@pytest.mark.parametrize(("letter", "number", "other"), SOME)
def test_other_cases_of_a_covered_test_are_thorough(request, letter, number, other):
    chosen = (letter, number, other) in [SOME[place] for place in cover(SOME)]
    assert (request.node.get_closest_marker("thorough") is None) == chosen
