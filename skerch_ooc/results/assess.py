"""Assess: the error of a result with its probability bounds, and the scree curve with its bounds.

The test sketch gives ``err^2 = ||(A - Ahat) G||_F^2 / q``, unbiased for ``||A - Ahat||_F^2`` with
Gaussian ``G``. Its tails are bounded by Tropp, Yurtsever, Udell and Cevher 2019, arXiv 1902.08651,
section 6.4. Test columns that chose the core do not count, as the result depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.base.errors import CorruptError, QualityError, UsageError, counted, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.files import digest, digest_of_any, holds, read_json, readable_json, write_json
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.planning.growth import looks
from skerch_ooc.planning.plan import Plan
from skerch_ooc.results.curves import curve, small_chart
from skerch_ooc.results.pairs import KnownPairs
from skerch_ooc.results.plots import axes_of
from skerch_ooc.store.anew import recovered_anew
from skerch_ooc.store.pieces import check_pieces
from skerch_ooc.store.result_files import (
    VALUES,
    assessment_path,
    opened_result,
)
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.sketch import count_products

FACTORS = (1.1, 1.25, 1.5, 2.0, 3.0)
"""The factors whose probabilities are always stated."""

CONFIDENCE = 0.95
"""The probability, at least, with which statements about an error hold."""

_SCREE_POINTS = 64
_LARGEST_FACTOR = 1e6


@dataclass(frozen=True)
class Assessment:
    """The quality of a decomposition (arXiv 1902.08651, section 6).

    Norms are Frobenius norms, in the units of the operator.

    Attributes:
        relative_error: ``error / norm``; ``None`` without test columns.
        error: Estimate of ``||A - Ahat||_F`` from the test sketch; ``None`` without one.
        norm: Estimate of ``||A||_F``: the norm of ``Ahat``, and what the test columns add to it;
            ``None`` without any.
        test_measurements: Test columns that the error was estimated from.
        leave_one_out: Estimate of ``||A - Ahat||_F`` from the sketch alone, before ``rank`` cut
            anything off; ``None`` where the method has none.
        orthogonality: ``||U^H U - I||_F`` of the stored vectors (the worse of ``U`` and ``V``),
            estimated by random probes.
        rank: Number of values and vectors.
        core: Singular values of the core that were inverted.
        looks: How often the test columns were evaluated before measuring stopped: the bounds hold
            for all looks together.
        is_complex: Whether the operator is complex (its bounds are tighter).
        scree: ``(rank, lower, upper)``: bounds of the part of ``||A||_F^2`` that the best
            approximation of that rank leaves out.
        products: Counts ``planned``, ``done`` and ``probe``.
        pairs: How well the pairs of ``krylov`` are known; ``None`` for other methods.
        left_test_measurements: Test columns of the adjoint that the residuals of singular values
            were estimated from, too; ``None`` if there are none, or none are needed.
        method: The method that was taken, where ``auto`` compared several; else ``None``.
    """

    relative_error: float | None
    error: float | None
    norm: float | None
    test_measurements: int
    leave_one_out: float | None
    orthogonality: float
    rank: int
    core: int
    is_complex: bool
    scree: tuple[tuple[int, float, float], ...] = field(repr=False)
    products: dict[str, int]
    looks: int = 1
    pairs: KnownPairs | None = None
    left_test_measurements: int | None = None
    method: str | None = None

    def bounds(self, factor: float) -> float:
        """Returns the probability that the true error is at most ``factor`` times the estimate.

        It holds for any operator (arXiv 1902.08651, section 6.4).

        Args:
            factor: At least 1.

        Returns:
            A lower bound of the probability; 0 without test columns.

        Raises:
            ValueError: If the factor is below 1, or no number.
        """
        if not factor >= 1:
            raise ValueError(f"factor = {factor}: must be at least 1")
        missed = underestimate_probability(factor, self.test_measurements, self.is_complex)
        # A union bound: each look might have been the one that stopped the run by luck.
        return 1.0 - min(1.0, self.looks * missed)

    def bounds_of(self, residuals: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        """Bounds how far off each eigenvalue or singular value is, each with 95 % probability.

        Args:
            residuals: The residuals of the pairs, ``(r,)``; ``None`` if they are not known.

        Returns:
            ``(r,)``; within that distance of each value there is one of the operator. ``None`` if
            the residuals are not known, or there are too few test columns to tell.
        """
        if residuals is None or residuals.shape != (self.rank,) or not np.isfinite(residuals).all():
            return None
        columns, confidence = self.test_measurements, CONFIDENCE
        if self.left_test_measurements is not None:
            # Two residuals are estimated, each of which may be too small by chance.
            columns = min(columns, self.left_test_measurements)
            confidence = (1 + CONFIDENCE) / 2
        factor = factor_for(confidence, columns, self.is_complex)
        return residuals * factor if math.isfinite(factor) else None

    @never_raising
    def _repr_html_(self) -> str:
        done, probes = self.products["done"], self.products["probe"]
        rows = [
            *_error_rows(self.relative_error, self.test_measurements),
            ("error, norm", None if self.error is None else f"{self.error:.4g}, {self.norm:.4g}"),
            ("leave one out", None if self.leave_one_out is None else f"{self.leave_one_out:.4g}"),
            ("pairs", None if self.pairs is None else self.pairs.text()),
            ("rank", f"{self.rank}, of a core of {self.core}"),
            ("orthogonality", short(self.orthogonality)),
            ("products", f"{done}, and {probes} of probes"),
        ]
        names = ("at least", "at most")
        curves = [curve(*one, name) for one, name in zip(self._scree_curves, names, strict=True)]
        chart = small_chart(curves, ("rank", "share left out"))
        return table("Assessment: how good the result is", rows, chart)

    def plot(self, ax: Any = None) -> Any:
        """Draws the scree curve: between which bounds the share of ``||A||_F^2`` left out lies.

        matplotlib draws, of the extra ``report``.

        Args:
            ax: Axes of matplotlib; by default those of a new figure.

        Returns:
            The axes, to go on with.

        Raises:
            UsageError: If there are no test columns, so that the scree is unknown, or matplotlib is
                not installed.
        """
        if not self.scree:
            raise UsageError(
                "there are no test measurements to tell what is left out; plan with "
                "sketch.test_measurements of at least 10"
            )
        ax = axes_of(ax)
        (ranks, lower), (_, upper) = self._scree_curves
        # A logarithmic axis has no place for the ranks that leave nothing out for sure.
        seen = np.maximum(lower, lower[lower > 0].min(initial=upper.min()) / 2)
        ax.fill_between(ranks, seen, upper, alpha=0.2)
        ax.plot(ranks, np.where(lower > 0, lower, np.nan), label="at least")
        ax.plot(ranks, upper, label="at most")
        ax.set(xlabel="rank", ylabel="share of the squared norm left out", yscale="log")
        ax.legend()
        return ax

    @property
    def _scree_curves(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Ranks with the lower and with the upper bounds."""
        columns = np.array(self.scree, np.float64).reshape(-1, 3).T
        return [(columns[0], columns[1]), (columns[0], columns[2])]

    def as_json(self) -> dict[str, Any]:
        """Returns the content of ``assessment.json``."""
        return {
            "relative_error": self.relative_error,
            "error": self.error,
            "norm": self.norm,
            "test_measurements": self.test_measurements,
            "bounds": [
                {"factor": factor, "probability": self.bounds(factor)} for factor in FACTORS
            ],
            "leave_one_out": self.leave_one_out,
            "scree": [
                {"rank": rank, "lower": lower, "upper": upper} for rank, lower, upper in self.scree
            ],
            "orthogonality": self.orthogonality,
            "rank": self.rank,
            "core": self.core,
            "products": self.products,
            **({"looks": self.looks} if self.looks > 1 else {}),
            **({} if self.pairs is None else {"pairs": self.pairs.as_json()}),
            **({} if self.method is None else {"method": self.method}),
        }


def underestimate_probability(factor: float, columns: int, is_complex: bool) -> float:
    """Bounds the probability that the true error exceeds ``factor`` times the estimate.

    With ``1 - e = factor^-2``: ``P(err^2 <= (1 - e) E^2) <= (exp(e) (1 - e))^(beta q / 2)``, beta
    being 1 for real, 2 for complex operators (arXiv 1902.08651, section 6.4).
    """
    return _tail(factor**-2, columns, is_complex)


def overestimate_probability(factor: float, columns: int, is_complex: bool) -> float:
    """Bounds the probability that the estimate exceeds ``factor`` times the true error.

    With ``1 + e = factor^2``: ``P(err^2 >= (1 + e) E^2) <= (exp(-e) (1 + e))^(beta q / 2)``.
    """
    return _tail(factor**2, columns, is_complex)


def _tail(ratio: float, columns: int, is_complex: bool) -> float:
    exponent = (2 if is_complex else 1) * columns / 2
    return float((math.exp(1.0 - ratio) * ratio) ** exponent)


def factor_for(confidence: float, columns: int, is_complex: bool) -> float:
    """Finds the factor that the true error exceeds with at most the probability ``1 - confidence``.

    Args:
        confidence: Below 1.
        columns: Test columns.
        is_complex: Whether the operator is complex.

    Returns:
        The factor; infinity if there are too few columns.
    """
    # The bound falls with the factor, and has no inverse in closed form: bisection.
    low, high = 1.0, 2.0
    while underestimate_probability(high, columns, is_complex) > 1 - confidence:
        high *= 2
        if high > _LARGEST_FACTOR:
            return math.inf
    while high - low > 1e-6 * low:
        middle = (low + high) / 2
        if underestimate_probability(middle, columns, is_complex) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def assess_result(run: Run, path: Path) -> Assessment:
    """Computes the figures of a result from what its file holds.

    Args:
        run: The run of the result.
        path: The file of the result.

    Raises:
        IncompleteError: If there is no result, or a piece of it is gone.
        CorruptError: If the result is damaged.
    """
    products = count_products(run)
    file = opened_result(path)
    try:
        values = file.arrays[VALUES[file.identity["type"]]]
        # The columns that chose the core come first; the result depends on them.
        unused = slice(int(file.identity["choosing"]), None)
        residual = file.arrays["residual_squares"][unused]
        tests, approximate = file.arrays["test_squares"], None
        # Results of the first versions do not have them.
        if len(residual) and "approximation_squares" in file.arrays:
            tests = tests[unused]
            approximate = file.arrays["approximation_squares"][unused]
        norm = norm_of(values, tests, approximate)
        leave_one_out = float(file.arrays["leave_one_out"])
        orthogonality = float(file.arrays["orthogonality"])
        core = int(file.identity["core"])
        method = file.identity.get("method")
        left_tests = file.arrays.get("left_tests")
        pairs = None
        if "bounds" in file.arrays:
            wanted = int(file.identity["settings"]["rank"])
            pairs = KnownPairs.of(run.plan, wanted, values, file.arrays)
    except (KeyError, TypeError, ValueError, IndexError) as problem:
        raise CorruptError(
            f"{path} is not a decomposition: {problem}{recovered_anew(path)}"
        ) from problem
    check_pieces(file)
    error = _root_mean(residual)
    return Assessment(
        relative_error=None if error is None or not norm else error / norm,
        error=error,
        norm=norm,
        test_measurements=len(residual),
        leave_one_out=None if math.isnan(leave_one_out) else leave_one_out,
        orthogonality=orthogonality,
        rank=len(values),
        core=core,
        is_complex=run.plan.identity.is_complex,
        scree=() if error is None or not norm else scree(values, error, norm),
        products=products,
        looks=sum(amendment.tolerance is not None for amendment in run.plan.amendments) or 1,
        pairs=pairs,
        left_test_measurements=None if left_tests is None else int(left_tests),
        method=None if method is None else str(method),
    )


def write_assessment(path: Path, assessment: Assessment) -> None:
    """Writes the figures of a result beside it, unless they are there.

    Args:
        path: The file of the result.
        assessment: The figures of the result.

    Raises:
        CorruptError: If something other than a plain file stands in their place.
    """
    written = assessment_path(path)
    stated = assessment.as_json() | {"result": SealedFile(path).digest}
    content = stated | {"sha256": digest(stated)}
    # A finished run may lie where nobody can write.
    if not holds(written, readable_json(content)):
        write_json(written, content)


def read_assessment(path: Path) -> dict[str, Any]:
    """Reads the figures that were written beside a result.

    Args:
        path: The file of the result.

    Raises:
        FileNotFoundError: If there are none.
        CorruptError: If the figures were altered, or are not of this result.
    """
    written = assessment_path(path)
    content = read_json(written)
    stated = content.pop("sha256", None) if isinstance(content, dict) else None
    directory, name = path.parent.parent.parent, path.parent.name
    again = f"skerch-ooc assess {quoted(directory)} --name {quoted(name)}"
    sealed = stated is not None and stated == digest_of_any(content)
    if not sealed or not holds(written, readable_json(content | {"sha256": stated})):
        raise CorruptError(f"{written} was altered; write it anew with: {again}")
    if content.pop("result", None) != SealedFile(path).digest:
        raise CorruptError(f"{written} is not of {path}; write it anew with: {again}")
    return dict(content)


def error_rows(path: Path) -> list[tuple[str, str]]:
    """Lists what the figures beside a result say of its error, or why they say nothing.

    Args:
        path: The file of the result.
    """
    try:
        figures = read_assessment(path)
    except FileNotFoundError:
        return [("relative error", "not assessed yet: assess(run)")]
    except CorruptError as error:
        return [("relative error", str(error))]
    return _error_rows(figures["relative_error"], figures["test_measurements"])


def _error_rows(error: float | None, columns: int) -> list[tuple[str, str]]:
    said = "unknown, without test vectors"
    if error is not None:
        said = f"{error:.3g}, by {counted(columns, 'test vector')}"
    return [("relative error", said)]


def count_within(values: npt.NDArray[Any], bounds: npt.NDArray[Any], share: float) -> int:
    """Counts the values whose bounds are at most a share of their magnitude."""
    return int(np.count_nonzero(bounds <= share * np.abs(values)))


def norm_of(
    values: npt.NDArray[Any], tests: npt.NDArray[Any], approximate: npt.NDArray[Any] | None
) -> float | None:
    """Estimates ``||A||_F`` from ``||Ahat||_F``, which is known, and what test columns add to it.

    ``||A G||_F^2 - ||Ahat G||_F^2`` over the number of columns is unbiased for the difference of
    the squared norms, and scatters less than either by far once ``Ahat`` is near to ``A``: a few
    large eigenvalues make the norm of a random column an estimate good to a few tens of percent
    only.

    Args:
        values: Eigenvalues or singular values of ``Ahat``, ``(r,)``.
        tests: Squared norms of columns of ``A G``, ``(q,)``.
        approximate: Squared norms of the same columns of ``Ahat G``, ``(q,)``; ``None`` if they
            are not known, or ``Ahat`` depends on the columns.

    Returns:
        The estimate; ``None`` without columns.
    """
    if approximate is not None:
        square = float(np.sum(np.abs(values) ** 2) + np.mean(tests - approximate))
        if square > 0:
            return math.sqrt(square)
    return _root_mean(tests)


def _root_mean(squares: npt.NDArray[Any]) -> float | None:
    return math.sqrt(float(squares.mean())) if len(squares) else None


def scree(
    values: npt.NDArray[Any], error: float, norm: float
) -> tuple[tuple[int, float, float], ...]:
    """Bounds of the scree curve (arXiv 1902.08651, section 6.5), at up to 64 ranks.

    Args:
        values: Eigenvalues in descending magnitude.
        error: Estimate of ``||A - Ahat||_F``.
        norm: Estimate of ``||A||_F``.

    Returns:
        ``(rank, lower, upper)``: ``(tau / norm)^2`` and ``((tau + error) / norm)^2``, tau being
        the norm of the eigenvalues after the leading ``rank`` ones; at most 1, as no share is
        larger.
    """
    squares = np.append(np.cumsum(np.asarray(values, np.float64)[::-1] ** 2)[::-1], 0.0)
    ranks: Sequence[int] = sorted(
        {int(r) for r in np.geomspace(1, len(values) + 1, _SCREE_POINTS).round() - 1}
    )
    return tuple(
        (
            rank,
            min(1.0, float(squares[rank]) / norm**2),
            min(1.0, ((math.sqrt(squares[rank]) + error) / norm) ** 2),
        )
        for rank in ranks
    )


def tolerance_factor(plan: Plan, columns: int) -> float:
    """Returns the factor by which an estimate is multiplied before it meets the tolerance.

    Args:
        plan: A plan with a tolerance.
        columns: Test columns that the estimate is made from.
    """
    # All looks share the probability of a miss (a union bound), also those that may never come.
    most = plan.amendments[-1].most or plan.reach("right")
    missed = (1 - CONFIDENCE) / len(looks(most))
    return factor_for(1 - missed, columns, plan.identity.is_complex)


def meets_tolerance(plan: Plan, assessment: Assessment) -> bool:
    """Whether the error of a result is surely within the tolerance; not if either is unknown."""
    error, tolerance = assessment.relative_error, plan.amendments[-1].tolerance
    if error is None or tolerance is None:
        return False
    return error * tolerance_factor(plan, assessment.test_measurements) <= tolerance


def require_tolerance(plan: Plan, assessment: Assessment) -> None:
    """Raises an error if a run that has measured all it may does not meet its tolerance.

    Raises:
        QualityError: If the tolerance is not met; it says how far the run got.
    """
    tolerance = plan.amendments[-1].tolerance
    if tolerance is None or assessment.relative_error is None or meets_tolerance(plan, assessment):
        return
    margin = tolerance_factor(plan, assessment.test_measurements)
    raise QualityError(
        f"tolerance = {tolerance:g} is not met with all {plan.reach('right')} measurements: the "
        f"relative error is {short(assessment.relative_error, 4)}, and with "
        f"{100 * CONFIDENCE:.0f} % probability below "
        f"{short(assessment.relative_error * margin, 4)}. The result is there; {_for_less(plan)}"
    )


def _for_less(plan: Plan) -> str:
    """Says what makes an error smaller."""
    if plan.reach("right") < min(plan.identity.shape):
        return "extend the run to more measurements for a smaller error"
    return f"there are no more measurements to make: {plan.identity.dtype} allows no less"
