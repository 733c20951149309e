"""Measuring in rounds of growing sketches until the error is below a tolerance.

After each look the columns grow by half, so that all looks together cost little more than the last.
The error is estimated on test columns that choose nothing, and multiplied by the factor that it
exceeds, by the bounds of the test sketch, with at most 5 % probability in all looks together.
"""

from __future__ import annotations

import math

from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sizes import Sizes, default_left

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
