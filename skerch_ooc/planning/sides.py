"""The range and corange sides: which sketches share their rows, and with which test matrices.

The *range* side has the height of the operator: sketches ``A N`` of its columns live there. The
*corange* side has its width: sketches ``A^H N`` live there. One stream over the rows of a side
forms, for all its sketches ``Z`` side by side and all its test matrices ``N`` of equal height, the
products ``Z^H Z`` and ``N^H Z`` that recovery needs.

A Hermitian operator has one side, and its right sketch is its left sketch too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skerch_ooc.base.noise_kinds import WHOLE_COLUMNS
from skerch_ooc.base.partition import Range
from skerch_ooc.planning import krylov
from skerch_ooc.planning.krylov import BasisBlock
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Plan

RANGE = krylov.RANGE
CORANGE = krylov.CORANGE
ADJOINT = "adjoint"
"""Roles of rounds of ``krylov`` that apply the adjoint begin with this."""

ADJOINT_ROLES = ("left", "test-left")
"""Roles of the first round that apply the adjoint."""

START = "start"
"""The side whose columns are noise, drawn and not measured: the first block of ``krylov``, or the
first test matrix of ``hmt``."""

GIVEN = "given"
"""Its further columns, if vectors of an earlier result were given to start with."""

BASIS = "basis"
"""The test matrix of a later round: an orthonormal basis on disk, not noise. Where several stand
side by side, the number of the round that applies it follows."""

OPEN = "open"
"""The products of an open round of ``krylov``, as test vectors; the number of the round follows."""


@dataclass(frozen=True)
class Side:
    """The sketches of equal height in one round of products, with their test matrices.

    Attributes:
        name: ``"range"`` or ``"corange"``.
        rows: The height of the sketches.
        sketches: The columns of ``Z`` that each role has.
        noise: The columns of ``N`` that each test matrix has.
    """

    name: str
    rows: int
    sketches: Mapping[str, Range] = field(hash=False)
    noise: Mapping[str, Range] = field(hash=False)

    @property
    def columns(self) -> int:
        """Columns of ``Z``."""
        return max((place.stop for place in self.sketches.values()), default=0)

    @property
    def measured(self) -> dict[str, Range]:
        """The columns of ``Z`` of each role that is measured: neither noise nor a basis."""
        return {
            role: place
            for role, place in self.sketches.items()
            if self.name != START and not role.startswith(BASIS)
        }

    @property
    def noise_columns(self) -> int:
        """Columns of ``N``."""
        return max((place.stop for place in self.noise.values()), default=0)


def side_of(name: str, rows: int, sketches: Mapping[str, int], noise: Mapping[str, int]) -> Side:
    """Makes a side of roles and test matrices of these widths, in this order, no empty ones."""
    return Side(name, rows, _placed(sketches), _placed(noise))


def _placed(widths: Mapping[str, int]) -> dict[str, Range]:
    placed: dict[str, Range] = {}
    start = 0
    for key, width in widths.items():
        if width:
            placed[key] = Range(start, start + width)
            start += width
    return placed


def first_round(plan: Plan) -> list[Side]:
    """Returns the sides of the first round."""
    height, width = plan.identity.shape
    right, left, test = (plan.reach(role) for role in ("right", "left", "test"))
    inner, back = plan.inner, {"test-left": plan.reach("test-left")}
    sketches = {"right": right, "test": test}
    if plan.identity.kind == "eigh":
        # The columns of an inner sketch go on where those of the right sketch end.
        noise = {"right": max(right, inner), "test": test, "inner-left": inner}
        return [side_of(RANGE, height, sketches, noise)]
    sides = [side_of(RANGE, height, sketches, {"left": left, "inner-left": inner} | back)]
    if left:
        noise = {"right": right, "test": test, "inner-right": inner}
        sides.append(side_of(CORANGE, width, {"left": left} | back, noise))
    return sides


def later_round(plan: Plan, role: str, bases: Mapping[int, int]) -> list[Side]:
    """Returns the sides of a later round of ``hmt``, whose test matrix is a basis.

    Args:
        plan: The plan in force.
        role: The role of the round's sketch.
        bases: The columns of each basis up to its own, by the number of the round that applies it.
    """
    number, columns = max(bases.items())
    if number == plan.rounds and plan.keeps_sketches:
        return _last_round(plan, role, bases)
    height, width = plan.identity.shape
    test, right = plan.reach("test"), plan.reach("right")
    if plan.identity.kind == "eigh":
        noise = {BASIS: columns, "right": right, "test": test}
        return [side_of(RANGE, height, {role: columns, "test": test}, noise)]
    if is_adjoint(plan, number):
        return [side_of(CORANGE, width, {role: columns}, {"right": right, "test": test})]
    return [side_of(RANGE, height, {role: columns, "test": test}, {})]


def _last_round(plan: Plan, role: str, bases: Mapping[int, int]) -> list[Side]:
    """Returns the sides of the last round of ``hmt``, if the sketches of all rounds are kept.

    The product of a basis's transform and the sketch before it is the basis. So in place of each
    earlier sketch stands the basis that was made of it, as columns and as a test matrix.
    """
    height, width = plan.identity.shape
    test = {"test": plan.reach("test")}
    columns = {role: bases[max(bases)]}
    right = {"right": plan.reach("right")}
    if plan.identity.kind == "eigh":
        kept = {f"{BASIS}{number}": count for number, count in bases.items()}
        sides = [side_of(RANGE, height, columns | test | kept, right | kept | test)]
        # The columns of others are orthogonal and of equal length.
        drawn = plan.identity.noise["right"] not in WHOLE_COLUMNS
        return sides + [side_of(START, height, {START: right["right"]}, {})] * drawn
    # Bases of the range are the test matrices of rounds that apply the adjoint.
    kept = {f"{BASIS}{number}": count for number, count in bases.items() if number % 2 == 0}
    made = {f"{BASIS}{number}": count for number, count in bases.items() if number % 2}
    return [
        side_of(RANGE, height, test | kept, {}),
        side_of(CORANGE, width, columns | made, right | test),
    ]


def first_krylov_round(plan: Plan) -> list[Side]:
    """Returns the sides of the first round of ``krylov``: that of noise comes last."""
    kind, start = plan.identity.kind, {START: plan.later_columns, GIVEN: plan.start_columns}
    test = {"test": plan.reach("test")}
    sketches = {"right": plan.reach("right")} | test
    noise = sketches if kind == "eigh" else {}
    rows = plan.identity.shape[1]
    return [
        side_of(RANGE, plan.identity.shape[0], sketches, noise),
        side_of(START, rows, start, test),
    ]


def krylov_round(plan: Plan, role: str, blocks: Sequence[BasisBlock]) -> list[Side]:
    """Returns the side of a later round of ``krylov``.

    Its test matrices are all blocks on the side of its products, the test matrix, and the products
    of open rounds.

    Args:
        plan: The plan in force.
        role: The role of the round's sketch.
        blocks: All blocks up to that which the round applies.
    """
    kind, (height, width) = plan.identity.kind, plan.identity.shape
    last = blocks[-1]
    name = krylov.across(kind, last.side)
    noise = {test_matrix_of_block(block): block.columns for block in krylov.family(blocks, name)}
    if kind == "eigh" or name == CORANGE:
        noise["test"] = plan.reach("test")
    columns = {block.number: block.columns for block in blocks}
    for number in krylov.open_rounds(kind, blocks, name):
        if number != last.number:
            noise[f"{OPEN}{number}"] = columns[number]
    return [side_of(name, height if name == RANGE else width, {role: last.columns}, noise)]


def test_matrix_of_block(block: BasisBlock) -> str:
    """Returns the name of a block of ``krylov`` as a test matrix; the first one is noise."""
    return "right" if block.source is None else f"{BASIS}{block.number}"


def planned_sides(plan: Plan, number: int) -> list[Side]:
    """Returns the sides of a round; a later one has the largest size that it may get."""
    if plan.krylov is not None:
        if number == 1:
            return first_krylov_round(plan)
        kind, start = plan.identity.kind, plan.start_columns > 0
        blocks = krylov.planned_blocks(kind, number, plan.later_columns, start=start)
        return krylov_round(plan, f"round{number}", blocks)
    if number == 1:
        return first_round(plan)
    bases = dict.fromkeys(range(2, number + 1), plan.reach("right"))
    return later_round(plan, f"round{number}", bases)


def is_adjoint(plan: Plan, number: int) -> bool:
    """Whether a later round applies the adjoint of the operator."""
    return plan.identity.kind == "svd" and number % 2 == 0


def gathers(plan: Plan, role: str) -> bool:
    """Whether all rows of the operator contribute to each entry of a role's sketch.

    So it is for sketches of the adjoint and for the inner sketch: there, parts that are row ranges
    of the operator add up instead of lying below each other.
    """
    if role.startswith(ADJOINT):
        return True
    if role.startswith("round") and plan.krylov is None:
        number = role.removeprefix("round").partition("-")[0]
        return is_adjoint(plan, int(number))
    return role in (*ADJOINT_ROLES, "inner")


def rows_of_part(plan: Plan, part: Part, role: str, height: int) -> Range:
    """Returns the rows that a part makes, or adds to, of a role's sketch of the given height."""
    return Range(0, height) if part.rows is None or gathers(plan, role) else part.rows


def dtype_of_part(plan: Plan, part: Part, role: str) -> str:
    """Returns the dtype of a part's shards: the plan's, or double where other parts are added.

    Rounded to the plan's dtype before they are added, the sum would depend on the cut.
    """
    if part.is_partial(adjoint=gathers(plan, role)):
        return str(plan.identity.wide_dtype)
    return plan.identity.dtype


def test_matrix_of(plan: Plan, role: str) -> str:
    """Returns the test matrix to which a role of the first round applies the operator."""
    if role != "inner":
        return role
    return "right" if plan.identity.kind == "eigh" else "inner-right"


def height_of_role(plan: Plan, role: str) -> int:
    """Returns the number of rows of a role's sketch, in the first round."""
    height, width = plan.identity.shape
    if role == "inner":
        return plan.inner
    return width if role in ADJOINT_ROLES else height


def height_of_noise(plan: Plan, name: str) -> int:
    """Returns the number of rows of a test matrix."""
    height, width = plan.identity.shape
    return height if name in (*ADJOINT_ROLES, "inner-left") else width


def sums_bytes(plan: Plan, side: Side) -> int:
    """Returns the bytes of the accumulators of a side, ``Z^H Z`` and ``N^H Z``."""
    return (side.columns + side.noise_columns) * side.columns * plan.identity.wide_dtype.itemsize
