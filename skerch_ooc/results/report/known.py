"""What is known of the whole operator beside its leading values, and how surely."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerch_ooc.base.errors import OocError, counted
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.results.assess import Assessment
from skerch_ooc.results.density import Density
from skerch_ooc.results.estimates import Estimates, Figure, estimate
from skerch_ooc.results.report.numbers import scientific, value, whole
from skerch_ooc.results.report.values import Values
from skerch_ooc.store.result_files import command_on
from skerch_ooc.store.rundir import Run

MOST_STREAMED = 1 << 30
"""Estimates that take a stream over more bytes than this are left to the command for them."""


@dataclass(frozen=True)
class Known:
    """A figure of the whole operator.

    Attributes:
        name: What it is.
        figure: Its value, or a bound of it.
        how: How surely that is known, and what from.
    """

    name: str
    figure: str
    how: str


def estimates_of(run: Run, name: str, rank: int) -> Estimates | None:
    """Estimates trace and norms, where that takes no long stream.

    Args:
        run: The run.
        name: The folder of the result.
        rank: The number of its vectors.

    Returns:
        The estimates; ``None`` if they take too long, or what they are made of is gone.
    """
    columns = rank + run.plan.reach("test")
    if max(run.plan.identity.shape) * columns * 8 > MOST_STREAMED:
        return None
    try:
        return estimate(run, name, Resources.of(None, None, 1, "cpu"), Progress())
    except OocError:
        return None


def known_of(
    run: Run, name: str, values: Values, assessment: Assessment, density: Density | None
) -> tuple[Known, ...]:
    """Lists what is known of the whole operator.

    Args:
        run: The run.
        name: The folder of the result.
        values: Its values.
        assessment: Its quality.
        density: The density of all eigenvalues; ``None`` if it is not known.
    """
    estimates = estimates_of(run, name, len(values))
    found = [*_norms(values, assessment, estimates)]
    if run.plan.identity.shape[0] == run.plan.identity.shape[1]:
        found.append(_trace(name, estimates, density))
    if values.kind == "eigh":
        found += [*_negative(values, density), *_most_negative(values, assessment, density)]
    return tuple(found)


def _norms(values: Values, assessment: Assessment, estimates: Estimates | None) -> Iterator[Known]:
    tests = f"{whole(assessment.test_measurements)} test vectors"
    if assessment.norm is not None:
        figure = None if estimates is None else estimates.frobenius_norm
        how = f"estimated from {tests}{_standard_error(figure)}"
        yield Known("Frobenius norm", value(assessment.norm if figure is None
                                            else abs(figure.value)), how)  # fmt: skip
    yield _spectral_norm(values, assessment)


def _spectral_norm(values: Values, assessment: Assessment) -> Known:
    name, place = "spectral norm", int(np.argmax(values.sizes))
    if values.pairs is not None and values.which == "LM":
        return Known(name, _with_bound(values, place).lstrip("−"), _found_how(values))
    how = "the largest value that was found"
    if assessment.error is not None:
        how += f", off by at most the error of the whole, about {value(assessment.error, 3)}"
    return Known(name, f"about {value(abs(values.largest))}", how)


def _standard_error(figure: Figure | None) -> str:
    if figure is None or figure.standard_error is None:
        return ""
    return f", standard error {value(figure.standard_error, 2)}"


def _trace(name: str, estimates: Estimates | None, density: Density | None) -> Known:
    """Estimates the trace by test vectors or by the rounds, whatever has the smaller error."""
    figure = None if estimates is None else estimates.trace
    tested = None if figure is None else figure.standard_error
    found = None if density is None else density.trace(lambda x: x)
    if found is not None and density is not None:
        spread = found.standard_error
        if figure is None or (spread is not None and (tested is None or spread < tested)):
            columns = density.quadrature.weights.shape[1]
            how = f"estimated from {counted(columns, 'random column')} of the rounds"
            return Known("trace", value(found.value), how + _both_errors(spread, found.bias))
    if figure is None or estimates is None:
        command = command_on("estimates", Path("DIR"), name)
        return Known("trace", "not computed here", f"where test vectors are there: {command}")
    how = f"of the values that were found, the rest by {estimates.test_measurements} test vectors"
    return Known("trace", _number(figure.value), f"estimated: {how}{_standard_error(figure)}")


def _number(figure: float | complex) -> str:
    if isinstance(figure, complex):
        return f"{value(figure.real)} {'−' if figure.imag < 0 else '+'} {value(abs(figure.imag))} i"
    return value(figure)


def _both_errors(standard_error: float | None, bias: float | None) -> str:
    said = "" if standard_error is None else f", standard error {value(standard_error, 2)}"
    return said + ("" if bias is None else f", of the quadrature about {value(bias, 2)}")


def _negative(values: Values, density: Density | None) -> Iterator[Known]:
    yield _surely_negative(values, density)
    if density is not None:
        # Of those that are nearer to zero the quadrature does not tell the signs.
        below = value(density.near_zero, 3)
        count = density.counts()["negative"]
        estimated = "estimated by the density of the whole"
        yield Known(f"eigenvalues below −{below}", f"about {whole(round(count.value))}",
                    estimated + _both_errors(count.standard_error, count.bias))  # fmt: skip


def _surely_negative(values: Values, density: Density | None) -> Known:
    name = "negative eigenvalues"
    if values.pairs is not None:
        # The operator is negative on the span of their vectors (Courant and Fischer).
        ritz = values.values if density is None else density.nodes
        count = int(np.count_nonzero(ritz < -values.rounding))
        how = "as many Ritz values are negative, rounding of the products aside"
        return Known(name, f"at least {whole(count)}", how)
    if values.bounds is not None:
        count = int(np.count_nonzero(values.values + values.bounds < 0))
        how = "which their residuals tell from zero, each with 95 % probability"
        return Known(name, f"{whole(count)} were found", how)
    count = 0 if values.error is None else int(np.count_nonzero(values.values < -values.error))
    return Known(name, f"{whole(count)} were found", "which the estimated error tells from zero")


def _most_negative(
    values: Values, assessment: Assessment, density: Density | None
) -> Iterator[Known]:
    place = int(np.argmin(values.values))
    lowest = float(values.values[place])
    ritz = lowest if density is None else float(density.nodes[0])
    if ritz < min(lowest, -values.rounding):
        figure = f"at most {value(ritz)}"
        how = "the lowest Ritz value of the rounds, rounding aside: an eigenvalue is as low"
    elif lowest < 0:
        figure, how = _with_bound(values, place), _found_how(values)
    else:
        figure, how = "none was found", "all that were found are zero or more"
    yield Known("the most negative one", figure, how + _below(lowest, assessment))


def _with_bound(values: Values, place: int) -> str:
    shown = value(float(values.values[place]))
    if values.bounds is None:
        return f"about {shown}"
    return f"{shown} ± {scientific(float(values.bounds[place]))}"


def _found_how(values: Values) -> str:
    if values.bounds is None:
        return "the lowest that was found, which no residual bounds"
    if values.pairs is None:
        return (
            "the lowest that was found; within this there is an eigenvalue, with 95 % probability"
        )
    confirmed = "; other random columns showed none beyond" if values.pairs.confirmed else ""
    return f"a pair that was found, with its bound{confirmed}"


def _below(lowest: float, assessment: Assessment) -> str:
    if assessment.error is None:
        return "; whether there is a lower one is not known"
    floor = min(lowest, 0.0) - assessment.error
    return f"; by the estimated error none is below {value(floor, 3)}"
