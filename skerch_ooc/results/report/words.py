"""The findings in words: what was found, how sure that is, and what could be done next."""

from __future__ import annotations

from skerch_ooc.results.advice import Found, advise
from skerch_ooc.results.assess import CONFIDENCE, count_within
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.facts import Facts
from skerch_ooc.results.report.markup import Markup, element, joined
from skerch_ooc.results.report.spectrum import Values
from skerch_ooc.results.words import bound_text, leave_one_out_remark


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
    certain = values.certain
    off = "the error" if values.bounds is None else "what they may be off by"
    if certain == total:
        said.append(f"All of them stand out of {off}.")
    elif certain is not None:
        said.append(
            f"{numbers.count(certain) if certain else 'None'} of them "
            f"stand{'s' * (certain == 1)} out of {off}; the others cannot be told from zero one by "
            "one."
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
    values = facts.values
    if values.bounds is not None:
        within = [count_within(values.values, values.bounds, share) for share in (0.01, 0.1)]
        said.append(
            f"At least {numbers.count(within[0])} of the eigenvalues are within 1 % of one of the "
            f"operator's, {numbers.count(within[1])} within 10 %, each with probability "
            f"{CONFIDENCE}."
        )
    if assessment.leave_one_out is not None:
        said.append(
            f"Leave-one-out says {numbers.value(assessment.leave_one_out)} "
            f"({leave_one_out_remark(assessment)})."
        )
    return said


def following(facts: Facts) -> list[Markup]:
    """What could be done next."""
    found = Found(facts.run, facts.name, facts.settings, facts.assessment, "DIR")
    advice = advise(found, numbers.share)
    steps = [joined([f"{step.text}: ", _code(step.command), "."]) for step in advice.steps]
    return [joined([advice.verdict]), *steps] if advice.verdict else steps


def _code(text: str) -> Markup:
    """A command or a setting, which breaks between its words only."""
    spans = [element("span", word, class_="word") for word in text.split(" ")]
    return element("code", joined(spans, " "))
