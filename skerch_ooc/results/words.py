"""Words for figures, on the terminal and on the page: times, bounds, products, the error test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerch_ooc.algebra.methods.choosing import CHOOSING_SHARE
from skerch_ooc.base.figures import short
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.plan import Plan
from skerch_ooc.results.assess import overestimate_probability, underestimate_probability

if TYPE_CHECKING:
    from skerch_ooc.results.assess import Assessment
    from skerch_ooc.results.compare import ComparedResult

NOUNS = {"eigh": "eigenvalues", "svd": "singular values"}
"""The name of the values of each kind of decomposition."""

_FAR = 3.0


def format_seconds(seconds: float) -> str:
    """Writes a time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def measurements_text(plan: Plan) -> str:
    """Says how many columns are planned, and what they are for."""
    roles = {"right": "", "left": " left", "inner": " inner", "test": " for the error test"}
    roles |= {"test-left": " for that of the adjoint"}
    parts = [f"{plan.reach(role)}{name}" for role, name in roles.items() if plan.reach(role)]
    if plan.krylov is not None:
        parts.append(f"at most {plan.rounds - 1} more rounds of {plan.later_columns}")
    elif plan.rounds > 1:
        parts.append(f"{plan.rounds - 1} more round(s) of up to {plan.reach('right')}")
    return " + ".join(parts)


def error_test_line(plan: Plan) -> str:
    """Says how well the test columns will tell the error."""
    columns = plan.reach("test")
    if not columns:
        return "none: no test vectors, so only leave-one-out tells the error"
    # One in three chooses the core, where it is to be chosen.
    chosen = plan.recovery.core == "auto" and plan.method.chooses_core
    left = columns - (-(-columns // CHOOSING_SHARE) if chosen and columns >= CHOOSING_SHARE else 0)
    is_complex = plan.identity.is_complex
    missed = underestimate_probability(1.5, left, is_complex)
    missed += overestimate_probability(1.5, left, is_complex)
    return (
        f"{left} vectors: within a factor 1.5 with probability {max(0.0, 1 - missed):.2f} or more"
    )


def plain(name: str) -> str:
    """Makes a name that a stranger chose safe: without characters that a terminal would obey."""
    return name if name.isprintable() else ascii(name)


def bound_text(assessment: Assessment, factor: float, digits: int = 4) -> str:
    """Says how probable it is that the true error is below a multiple of the estimate."""
    probability = assessment.bounds(factor)
    shown = f"{probability:.{digits}f}"
    if float(shown) == 1 and probability < 1:
        # A bound is not to be rounded up to certainty.
        shown = "0." + digits * "9"
    return f"below {factor:g} times this with probability {shown}"


def leave_one_out_remark(assessment: Assessment) -> str:
    """Says what the leave-one-out estimate is, and whether it agrees with the test vectors."""
    remark = "error estimated without the test"
    if assessment.leave_one_out is None or _agree(assessment.leave_one_out, assessment.error):
        return remark
    if assessment.rank < assessment.core:
        # It is that of the whole core, so a lower rank is no reason to doubt it.
        return f"{remark}, before the rank was cut"
    return f"{remark}; far from it, so not to be trusted here"


def core_text(assessment: Assessment, kind: str) -> str:
    """Says how much of the core was kept."""
    return f"{assessment.core} {'eigenpairs' if kind == 'eigh' else 'directions'} kept"


def products_text(assessment: Assessment) -> str:
    """Says how many products were made."""
    return f"{assessment.products['done']} and {assessment.products['probe']} of probes"


def compared_figures(one: ComparedResult) -> dict[str, str]:
    """Says what a result is, how good, and what it cost."""
    known = one.measuring_seconds, one.peak_bytes
    of_rounds = "rounds of " if METHODS[one.method].orthogonal else ""
    return {
        "kind": f"{one.kind}, {one.dtype}",
        "method": one.method,
        "measurements": f"{of_rounds}{one.measurements}, seed {one.seed}",
        "values": str(one.rank),
        "relative error": _figure(one.relative_error),
        "error": _figure(one.error),
        "norm": _figure(one.norm),
        "products": str(one.products.get("done", "unknown")),
        "measuring": "unknown" if known[0] is None else format_seconds(known[0]),
        "peak memory": "unknown" if known[1] is None else format_bytes(known[1]),
        "on disk": format_bytes(one.disk_bytes),
    }


def _figure(value: float | None) -> str:
    return "unknown" if value is None else short(value, 5)


def _agree(estimate: float, tested: float | None) -> bool:
    """Whether two estimates of an error are about equal, or there is only one."""
    return tested is None or tested / _FAR <= estimate <= tested * _FAR
