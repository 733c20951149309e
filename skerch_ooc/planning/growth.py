"""Growing a plan: amendments that add columns (by request or to a tolerance) or summands.

With a tolerance, each look at the error is followed by half as many columns again, so that all
looks together cost little more than the last. The error is estimated on test columns that choose
nothing, and multiplied by the factor that the true error exceeds, by the bounds of the test sketch,
with at most 5 % probability in all looks together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from skerch_ooc.planning.parts import OperatorSource, Part
from skerch_ooc.planning.plan import Amendment, Cut, Plan
from skerch_ooc.planning.sizes import Sizes, default_left
from skerch_ooc.planning.spec import ROLES

_GROWTH = 1.5
_FIRST_SHARE = 16
_SMALLEST_LOOK = 32


def looks(most: int) -> list[int]:
    """Returns the numbers of columns at which the error is looked at; the last is ``most``."""
    columns = [min(most, max(_SMALLEST_LOOK, -(-most // _FIRST_SHARE)))]
    while columns[-1] < most:
        columns.append(min(most, math.ceil(_GROWTH * columns[-1])))
    return columns


def first_look(method: str, kind: str, sizes: Sizes) -> Sizes:
    """Returns the sizes at the first look of a run that ends with ``sizes`` at most."""
    first = looks(sizes.right)[0]
    # In proportion, but at least the method's default for so few columns, if the end has as many.
    left = math.ceil(sizes.left * first / sizes.right) if sizes.left else 0
    return Sizes(first, max(left, min(default_left(method, kind, first), sizes.left)), 0,
                 sizes.test, sizes.test_left)  # fmt: skip


def next_look(plan: Plan) -> Sizes:
    """Returns the sizes of the next look of a plan with a tolerance."""
    most = plan.amendments[-1].most or plan.reach("right")
    return grown_sizes(plan, next(m for m in looks(most) if m > plan.reach("right")))


def grown_sizes(plan: Plan, measurements: int) -> Sizes:
    """Returns the sizes of a plan with more measurements; the left sketch grows with the right."""
    left = plan.reach("left")
    # A default width stays the default for the new size; one that was asked for keeps its ratio.
    if left:
        usual = default_left(plan.recovery.method, plan.identity.kind, plan.reach("right"))
        left = (
            default_left(plan.recovery.method, plan.identity.kind, measurements)
            if left == usual
            else math.ceil(left * measurements / plan.reach("right"))
        )
        left = min(left, plan.identity.shape[0])
    return Sizes(measurements, left, plan.inner, plan.reach("test"), plan.reach("test-left"))


def cuts(kind: str, before: Plan | None, sizes: Sizes, widths: Mapping[str, int]) -> dict[str, Cut]:
    """Returns the columns of each role that are added to a plan, and how they are cut.

    Args:
        kind: ``"eigh"`` or ``"svd"``.
        before: The plan that grows; ``None`` when a run is planned first.
        sizes: The sizes to reach.
        widths: The width of the blocks of each role.
    """
    # The first columns of a Hermitian operator's inner sketch follow from the right one.
    start = {"inner": sizes.right if kind == "eigh" and sizes.inner else 0}
    found = {}
    for role, stop in sizes.as_dict().items():
        first = before.span(role).stop if before and before.reach(role) else start.get(role, 0)
        if stop > first:
            width = widths[role]
            found[role] = Cut(first, stop, min(width, stop - first) if before is None else width)
    return found


def more_columns(plan: Plan, sizes: Sizes) -> Amendment:
    """Makes the amendment by which a plan reaches the given sizes."""
    last = plan.amendments[-1]
    widths = {role: plan.width(role) for role in ROLES}
    added = cuts(plan.identity.kind, plan, sizes, widths)
    return dataclasses.replace(last, number=last.number + 1, blocks=added)


def more_parts(plan: Plan, parts: tuple[Part, ...], forget: float) -> Amendment:
    """Makes the amendment that scales the operator by ``forget`` and adds further parts."""
    last = plan.amendments[-1]
    scaled = tuple(dataclasses.replace(p, scale=p.scale * forget) for p in plan.parts)
    return dataclasses.replace(last, number=last.number + 1, blocks={}, parts=scaled + parts)


def next_part(plan: Plan, source: OperatorSource, scale: float) -> Part:
    """Makes the part that a further summand starts from; its other parts are variations of it."""
    return Part(len(plan.parts), scale, plan.summands, source=source)
