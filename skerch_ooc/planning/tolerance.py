"""Measuring in rounds of growing sketches until the error is below a tolerance.

After each look the columns grow by half, so that all looks together cost little more than the last.
The error is estimated on test columns that choose nothing, and multiplied by the factor that it
exceeds, by the bounds of the test sketch, with at most 5 % probability in all looks together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import QualityError
from skerch_ooc.progress import Progress
from skerch_ooc.recovery.sizes import default_left
from skerch_ooc.resources import Resources
from skerch_ooc.rundir import Run
from skerch_ooc.sizing import Sizes
from skerch_ooc.spec import Plan
from skerch_ooc.stages.assess import CONFIDENCE, Assessment, factor_for, norm_of
from skerch_ooc.stages.solutions import solve

Array = npt.NDArray[Any]

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


def reached(run: Run, resources: Resources, progress: Progress) -> bool:
    """Whether a run need not measure more: its tolerance is met, or all it may measure is measured.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    plan = run.plan
    tolerance, most = plan.amendments[-1].tolerance, plan.amendments[-1].most
    if tolerance is None or most is None or plan.reach("right") >= most:
        return True
    found = solve(run, plan.recovery, resources, progress)
    problem, choosing = found.posed.problem, found.core.choosing
    weights, tests = found.weights()[:, choosing:], problem.t[:, choosing:]
    residual = tests - found.left.compressed(problem.y) @ weights
    columns = residual.shape[1]
    error = float(np.linalg.norm(residual)) / math.sqrt(columns)
    norm = norm_of(found.values, _squares(tests), _squares(weights))
    assert norm is not None
    relative = error / norm
    margin = tolerance_factor(plan, columns)
    progress.say(
        f"{plan.reach('right')} measurements: relative error {relative:.2e}; to be sure of "
        f"{tolerance:.2e} it must be below {tolerance / margin:.2e}"
    )
    return relative * margin <= tolerance


def _squares(columns: Array) -> Array:
    return np.asarray(np.sum(np.abs(columns) ** 2, axis=0))


def tolerance_factor(plan: Plan, columns: int) -> float:
    """What an estimate is multiplied with before it is compared with the tolerance.

    Args:
        plan: A plan with a tolerance.
        columns: Test columns that the estimate is made from.
    """
    most = plan.amendments[-1].most or plan.reach("right")
    missed = (1 - CONFIDENCE) / len(looks(most))
    return factor_for(1 - missed, columns, plan.identity.dtype.startswith("complex"))


def require_tolerance(plan: Plan, assessment: Assessment) -> None:
    """Says how far a run with a tolerance got, if that is not far enough.

    Raises:
        QualityError: If all that it may measure is measured, and the tolerance is not met.
    """
    tolerance = plan.amendments[-1].tolerance
    if tolerance is None or assessment.relative_error is None:
        return
    margin = tolerance_factor(plan, assessment.test_measurements)
    if assessment.relative_error * margin <= tolerance:
        return
    raise QualityError(
        f"tolerance = {tolerance:.2e} is not met with all {plan.reach('right')} measurements: the "
        f"relative error is {assessment.relative_error:.3e}, and with {100 * CONFIDENCE:.0f} % "
        f"probability below {assessment.relative_error * margin:.3e}. The result is there; "
        f"{_for_less(plan)}"
    )


def _for_less(plan: Plan) -> str:
    """What makes an error smaller."""
    if plan.reach("right") < min(plan.identity.shape):
        return "extend the run to more measurements for a smaller error"
    return f"there are no more measurements to make: {plan.identity.dtype} allows no less"
