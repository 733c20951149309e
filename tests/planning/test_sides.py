"""Which sketches share their rows, and which test matrices are applied to them."""

from __future__ import annotations

import pytest

from skerch_ooc.base.partition import Range
from skerch_ooc.planning import sides
from skerch_ooc.planning.plan import Amendment, Cut, Identity, Plan
from skerch_ooc.planning.sides import (
    BASIS,
    CORANGE,
    RANGE,
    START,
    first_round,
    height_of_noise,
    height_of_role,
    is_adjoint,
    later_round,
    side_of,
)
from skerch_ooc.planning.spec import RecoverySpec

HEIGHT, WIDTH = 150, 100


def plan_of(
    kind, method="nystrom", power_iterations=0, *, kept=False, noise="rademacher", **columns
):
    """A plan with so many columns of each role."""
    identity = Identity(
        kind=kind,
        factory=None,
        args={},
        factory_sha256=None,
        shape=(WIDTH, WIDTH) if kind == "eigh" else (HEIGHT, WIDTH),
        dtype="float32",
        seed=1,
        noise={"right": noise},
    )
    first = {"inner": columns["right"]} if kind == "eigh" else {}
    blocks = {role: Cut(first.get(role, 0), stop, 10) for role, stop in columns.items()}
    recovery = RecoverySpec(method=method, power_iterations=power_iterations)
    amendment = Amendment(identity.run_id, 1, blocks, recovery, "cpu", ".", keeps_sketches=kept)
    return Plan(identity, (amendment,))


def described(found):
    """Names, rows and widths of all that there is, in order."""
    return [
        (
            side.name,
            side.rows,
            {role: len(place) for role, place in side.sketches.items()},
            {name: len(place) for name, place in side.noise.items()},
        )
        for side in found
    ]


class TestSide:
    def test_columns_stand_next_to_each_other_in_their_order(self):
        side = side_of(RANGE, 10, {"right": 5, "test": 3}, {})
        assert side.sketches == {"right": Range(0, 5), "test": Range(5, 8)}

    def test_what_has_no_columns_is_left_out(self):
        side = side_of(RANGE, 10, {"right": 5, "test": 0}, {"left": 0, "inner-left": 4})
        assert (list(side.sketches), list(side.noise)) == (["right"], ["inner-left"])

    def test_counts_its_columns(self):
        side = side_of(RANGE, 10, {"right": 5, "test": 3}, {"left": 7})
        assert (side.columns, side.noise_columns) == (8, 7)

    def test_without_columns_counts_none(self):
        assert side_of(RANGE, 10, {}, {}).columns == 0


class TestFirstRound:
    def test_of_a_hermitian_operator_has_one_side(self):
        widths = {"right": 20, "test": 12}
        assert described(first_round(plan_of("eigh", **widths))) == [(RANGE, WIDTH, widths, widths)]

    def test_of_a_hermitian_operator_with_an_inner_sketch_has_more_test_vectors(self):
        plan = plan_of("eigh", "oversampled", right=20, test=12, inner=41)
        noise = {"right": 41, "test": 12, "inner-left": 41}
        assert described(first_round(plan)) == [(RANGE, WIDTH, {"right": 20, "test": 12}, noise)]

    def test_of_a_general_operator_has_two_sides(self):
        plan = plan_of("svd", right=20, test=12, left=30)
        assert described(first_round(plan)) == [
            (RANGE, HEIGHT, {"right": 20, "test": 12}, {"left": 30}),
            (CORANGE, WIDTH, {"left": 30}, {"right": 20, "test": 12}),
        ]

    def test_of_a_general_operator_with_an_inner_sketch_has_its_test_matrices_on_both(self):
        plan = plan_of("svd", "oversampled", right=20, test=12, left=20, inner=41)
        assert described(first_round(plan)) == [
            (RANGE, HEIGHT, {"right": 20, "test": 12}, {"left": 20, "inner-left": 41}),
            (CORANGE, WIDTH, {"left": 20}, {"right": 20, "test": 12, "inner-right": 41}),
        ]

    def test_of_hmt_has_no_left_sketch(self):
        plan = plan_of("svd", "hmt", right=20, test=12)
        assert described(first_round(plan)) == [(RANGE, HEIGHT, {"right": 20, "test": 12}, {})]

    def test_without_test_columns_has_none(self):
        plan = plan_of("svd", right=20, left=30)
        assert described(first_round(plan)) == [
            (RANGE, HEIGHT, {"right": 20}, {"left": 30}),
            (CORANGE, WIDTH, {"left": 30}, {"right": 20}),
        ]


class TestLaterRound:
    @pytest.mark.parametrize("number", [2, 3])
    def test_of_a_hermitian_operator_has_the_basis_among_its_test_matrices(self, number):
        plan = plan_of("eigh", "hmt", 1, right=20, test=12)
        sketches, noise = {"later": 15, "test": 12}, {BASIS: 15, "right": 20, "test": 12}
        assert described(later_round(plan, "later", {number: 15})) == [
            (RANGE, WIDTH, sketches, noise)
        ]  # fmt: skip

    @pytest.mark.parametrize("number", [2, 4])
    def test_of_even_number_applies_the_adjoint_of_a_general_operator(self, number):
        plan = plan_of("svd", "hmt", 1, right=20, test=12)
        assert described(later_round(plan, "later", {number: 15})) == [
            (CORANGE, WIDTH, {"later": 15}, {"right": 20, "test": 12})
        ]

    def test_of_odd_number_applies_a_general_operator_itself(self):
        plan = plan_of("svd", "hmt", 1, right=20, test=12)
        assert described(later_round(plan, "later", {3: 15})) == [
            (RANGE, HEIGHT, {"later": 15, "test": 12}, {})
        ]

    def test_before_the_last_is_the_same_where_all_sketches_are_kept(self):
        plan = plan_of("eigh", "hmt", 2, right=20, test=12, kept=True)
        sketches, noise = {"later": 15, "test": 12}, {BASIS: 15, "right": 20, "test": 12}
        assert described(later_round(plan, "later", {2: 18, 3: 15})) == [
            (RANGE, WIDTH, sketches, noise)
        ]

    def test_as_the_last_of_a_hermitian_operator_keeps_all_bases_and_the_noise(self):
        plan = plan_of("eigh", "hmt", 1, right=20, test=12, kept=True)
        bases = {"basis2": 18, "basis3": 15}
        sketches, noise = {"later": 15, "test": 12}, {"right": 20, **bases, "test": 12}
        assert described(later_round(plan, "later", {2: 18, 3: 15})) == [
            (RANGE, WIDTH, sketches | bases, noise), (START, WIDTH, {START: 20}, {}),
        ]  # fmt: skip

    def test_as_the_last_takes_orthogonal_noise_for_what_it_is(self):
        plan = plan_of("eigh", "hmt", right=20, test=12, kept=True, noise="ssrft")
        assert [side.name for side in later_round(plan, "later", {2: 15})] == [RANGE]

    def test_as_the_last_of_a_general_operator_has_the_bases_of_both_sides(self):
        plan = plan_of("svd", "hmt", 1, right=20, test=12, kept=True)
        bases = {2: 18, 3: 17, 4: 15}
        assert described(later_round(plan, "later", bases)) == [
            (RANGE, HEIGHT, {"test": 12, "basis2": 18, "basis4": 15}, {}),
            (CORANGE, WIDTH, {"later": 15, "basis3": 17}, {"right": 20, "test": 12}),
        ]

    def test_knows_which_columns_are_measured(self):
        plan = plan_of("eigh", "hmt", right=20, test=12, kept=True)
        last, start = later_round(plan, "later", {2: 15})
        assert (list(last.measured), list(start.measured)) == (["later", "test"], [])

    @pytest.mark.parametrize(
        ("kind", "number", "adjoint"),
        [("eigh", 2, False), ("eigh", 3, False), ("svd", 2, True), ("svd", 3, False)],
    )
    def test_says_whether_it_applies_the_adjoint(self, kind, number, adjoint):
        assert is_adjoint(plan_of(kind, "hmt", 1, right=20), number) == adjoint


class TestHeights:
    @pytest.mark.parametrize(
        ("role", "height"), [("right", HEIGHT), ("test", HEIGHT), ("left", WIDTH), ("inner", 41)]
    )
    def test_of_sketches_are_those_of_what_is_applied(self, role, height):
        plan = plan_of("svd", "oversampled", right=20, test=12, left=20, inner=41)
        assert height_of_role(plan, role) == height

    @pytest.mark.parametrize(
        ("name", "height"),
        [
            ("right", WIDTH),
            ("test", WIDTH),
            ("inner-right", WIDTH),
            ("left", HEIGHT),
            ("inner-left", HEIGHT),
        ],
    )
    def test_of_test_matrices_are_those_of_what_they_are_applied_to(self, name, height):
        assert height_of_noise(plan_of("svd", right=20), name) == height

    @pytest.mark.parametrize(
        ("kind", "role", "name"),
        [
            ("eigh", "right", "right"),
            ("eigh", "test", "test"),
            ("eigh", "inner", "right"),
            ("svd", "left", "left"),
            ("svd", "inner", "inner-right"),
        ],
    )
    def test_each_role_has_its_test_matrix(self, kind, role, name):
        assert sides.test_matrix_of(plan_of(kind, right=20), role) == name
