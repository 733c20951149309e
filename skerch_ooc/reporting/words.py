"""The findings in words: what was found, how sure that is, and what could be done next."""

from __future__ import annotations

import dataclasses

import numpy as np

from skerch_ooc.errors import UsageError
from skerch_ooc.recovery import METHODS
from skerch_ooc.reporting import numbers
from skerch_ooc.reporting.facts import Facts
from skerch_ooc.reporting.markup import Markup, element, joined
from skerch_ooc.reporting.spectrum import Values
from skerch_ooc.spec import NESTING_METHODS
from skerch_ooc.stages.problems import serves
from skerch_ooc.tables import NO_BETTER_THAN_ZERO, bound_text, leave_one_out_remark
from skerch_ooc.tolerance import CONFIDENCE, tolerance_factor

_LARGE = 0.1
_SURE_ENOUGH = 0.9


def found(facts: Facts) -> list[str]:
    """What was found."""
    values, height, width = facts.values, *facts.run.plan.identity.shape
    largest = numbers.value(float(abs(values.values).max()))
    total = len(values.values)
    said = [
        f"{numbers.count(total)} {values.noun if total > 1 else values.noun[:-1]} of an operator "
        f"of {numbers.count(height)} × {numbers.count(width)}; the largest"
        + (" in magnitude" if values.kind == "eigh" else "") + f" is {largest}."
    ]  # fmt: skip
    if values.kind == "eigh":
        said.append(_signs(values))
    elif values.zero:
        said.append(f"{numbers.count(values.zero)} of them are zero.")
    above = values.above_error
    if above == total:
        said.append("All of them stand out of the error.")
    elif above is not None:
        said.append(
            f"{numbers.count(above) if above else 'None'} of them stand{'s' * (above == 1)} out of "
            "the error; the others cannot be told from zero one by one."
        )
    return said


def _signs(values: Values) -> str:
    """How many eigenvalues there are of each sign."""
    counts = {"positive": values.positive, "negative": values.negative, "zero": values.zero}
    there = {name: count for name, count in counts.items() if count}
    if len(there) == 1:
        return f"All are {next(iter(there))}." if len(values.values) > 1 else ""
    return ", ".join(f"{numbers.count(count)} {name}" for name, count in there.items()) + "."


def sure(facts: Facts) -> list[str]:
    """How sure that is."""
    assessment = facts.assessment
    said = []
    if assessment.error is None or assessment.norm is None:
        said.append("How large the error is, is not known: there are no test vectors.")
    elif assessment.relative_error is None:
        said.append("The test vectors found nothing but zero, so that there is no relative error.")
    else:
        said.append(
            f"The approximation misses {numbers.share(assessment.relative_error)} of the operator, "
            f"in the Frobenius norm: {numbers.value(assessment.error)} of "
            f"{numbers.value(assessment.norm)}. The true error is "
            f"{bound_text(assessment, 1.5, 2)}, {bound_text(assessment, 2.0)}"
            + (f", counting all {assessment.looks} looks at the test vectors."
               if assessment.looks > 1 else ".")
        )  # fmt: skip
    if assessment.leave_one_out is not None:
        said.append(
            f"Leave-one-out says {numbers.value(assessment.leave_one_out)} "
            f"({leave_one_out_remark(assessment)})."
        )
    return said


def following(facts: Facts) -> list[Markup]:
    """What could be done next."""
    assessment, relative = facts.assessment, facts.assessment.relative_error
    if assessment.error is None:
        return [joined(["To know the error, plan with ", _code("sketch.test_measurements"),
                        " of at least 10."])]  # fmt: skip
    if relative is None:
        return [joined(["Nothing: there is nothing to be found."])]
    said = [joined([_judged(facts, relative)])]
    if relative > _rounding(facts):
        said += _improvements(facts)
    if assessment.bounds(1.5) < _SURE_ENOUGH:
        said.append(
            joined(["With ", _code(f"sketch.test_measurements = {_more_tests(facts)}"),
                    " in a new plan, the error would be surer."])
        )  # fmt: skip
    return said


def _judged(facts: Facts, relative: float) -> str:
    tolerance = facts.run.plan.amendments[-1].tolerance
    if relative >= 1:
        return f"This is {NO_BETTER_THAN_ZERO}."
    if tolerance is not None and facts.name == "default":
        sure_of = relative * tolerance_factor(facts.run.plan, facts.assessment.test_measurements)
        met = "is met" if sure_of <= tolerance else "is not met"
        return (
            f"The tolerance of {numbers.share(tolerance)} {met}: with {100 * CONFIDENCE:.0f} % "
            f"probability the error is below {numbers.share(sure_of)}."
        )
    if relative > _LARGE:
        return "This error is large: the leading values may be good, the whole is not."
    if relative <= _rounding(facts):
        return f"Nothing: that is about as small as {facts.run.plan.identity.dtype} allows."
    return "If that is small enough, nothing."


def _rounding(facts: Facts) -> float:
    """A relative error that could be due to rounding."""
    return 100 * float(np.finfo(facts.run.plan.identity.dtype).eps)


def _improvements(facts: Facts) -> list[Markup]:
    """What would make the error smaller, the cheapest first."""
    plan, said = facts.run.plan, []
    most = min(plan.identity.shape)
    rank = facts.settings.rank
    if isinstance(rank, int) and rank < facts.assessment.core:
        said.append(
            joined([f"The rank is limited to {numbers.count(rank)}. A higher one costs no "
                    "product: ", _code("skerch-ooc recover DIR --rank all"), "."])
        )  # fmt: skip
    others = [method for method in METHODS if method != facts.settings.method and
              _is_served(facts, method)]  # fmt: skip
    if others:
        said.append(
            joined(["Another method on the same sketch costs no product: ",
                    _code(f"skerch-ooc recover DIR --method {others[0]}"), "."])
        )  # fmt: skip
    more = min(2 * plan.reach("right"), most)
    if more > plan.reach("right") and plan.recovery.method in NESTING_METHODS:
        said.append(
            joined(["More measurements make it smaller, and only the new ones are measured: ",
                    _code(f"skerch-ooc extend DIR --measurements {more}"), "."])
        )  # fmt: skip
    elif more > plan.reach("right"):
        sharper = ", or one more of power_iterations" if plan.recovery.method == "hmt" else ""
        said.append(joined([f"A new plan with more measurements{sharper} would make it smaller."]))
    return said


def _is_served(facts: Facts, method: str) -> bool:
    """Whether the sketch of the run serves a method at no product."""
    try:
        wanted = dataclasses.replace(facts.settings, method=method, power_iterations=0, core="auto")
        serves(facts.run.plan, wanted)
    except UsageError:
        return False
    return method != "hmt"


def _more_tests(facts: Facts) -> int:
    return max(30, 2 * facts.run.plan.reach("test"))


def _code(text: str) -> Markup:
    """A command or a setting, which breaks between its words only."""
    spans = [element("span", word, class_="word") for word in text.split(" ")]
    return element("code", joined(spans, " "))
