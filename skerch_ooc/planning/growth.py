"""How a plan grows: by columns, as asked for or until a tolerance is met, and by summands.

Amendments say what is added. With a tolerance the columns grow by half after each look at the
error, so that all looks together cost little more than the last. The error is estimated on test
columns that choose nothing, and multiplied by the factor that it exceeds, by the bounds of the test
sketch, with at most 5 % probability in all looks together.
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
    """The numbers of columns after which the error is looked at; the last is ``most``."""
    columns = [min(most, max(_SMALLEST_LOOK, -(-most // _FIRST_SHARE)))]
    while columns[-1] < most:
        columns.append(min(most, math.ceil(_GROWTH * columns[-1])))
    return columns


def first_look(method: str, kind: str, sizes: Sizes) -> Sizes:
    """The sizes to begin with, where ``sizes`` are those to end with."""
    first = looks(sizes.right)[0]
    left = math.ceil(sizes.left * first / sizes.right) if sizes.left else 0
    return Sizes(first, max(left, min(default_left(method, kind, first), sizes.left)), 0,
                 sizes.test)  # fmt: skip


def next_look(plan: Plan) -> Sizes:
    """The sizes after those of a plan with a tolerance."""
    most = plan.amendments[-1].most or plan.reach("right")
    return grown_sizes(plan, next(m for m in looks(most) if m > plan.reach("right")))


def grown_sizes(plan: Plan, measurements: int) -> Sizes:
    """The sizes of a plan that is to have so many measurements: other roles grow in proportion."""
    left = plan.reach("left")
    if left:
        usual = default_left(plan.recovery.method, plan.identity.kind, plan.reach("right"))
        left = (
            default_left(plan.recovery.method, plan.identity.kind, measurements)
            if left == usual
            else math.ceil(left * measurements / plan.reach("right"))
        )
        left = min(left, plan.identity.shape[0])
    return Sizes(measurements, left, plan.inner, plan.reach("test"))


def cuts(kind: str, before: Plan | None, sizes: Sizes, widths: Mapping[str, int]) -> dict[str, Cut]:
    """The columns of each role that are added to a plan, and how they are cut."""
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
    """The amendment by which a plan reaches the given sizes."""
    last = plan.amendments[-1]
    widths = {role: plan.width(role) for role in ROLES}
    added = cuts(plan.identity.kind, plan, sizes, widths)
    return dataclasses.replace(last, number=last.number + 1, blocks=added)


def more_parts(plan: Plan, parts: tuple[Part, ...], forget: float) -> Amendment:
    """The amendment by which the operator becomes ``forget`` times itself, plus further parts."""
    last = plan.amendments[-1]
    scaled = tuple(dataclasses.replace(p, scale=p.scale * forget) for p in plan.parts)
    return dataclasses.replace(last, number=last.number + 1, blocks={}, parts=scaled + parts)


def next_part(plan: Plan, source: OperatorSource, scale: float) -> Part:
    """What the parts of a further summand have in common, and the number of the first."""
    return Part(len(plan.parts), scale, plan.summands, source=source)
