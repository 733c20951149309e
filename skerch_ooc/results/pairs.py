"""Pairs: how many of those that were looked for are known, and how well, by their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import QualityError, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.planning.plan import Plan
from skerch_ooc.store.rundir import Run

_SMALL = 1e-3
_SEPARATE = 0.1
_SAID = 0.1


@dataclass(frozen=True)
class KnownPairs:
    """How well the pairs of a result of ``krylov`` are known.

    Errors are relative to the value, or to a thousandth of the largest one if that is more.

    Attributes:
        wanted: How many pairs were looked for.
        found: How many there are.
        met: How many of them are known to the tolerance, rounding of the products aside.
        tolerance: The tolerance; ``None`` if the number of rounds was given.
        worst: The largest relative bound of all that were found, rounding of the products aside;
            ``None`` if none was.
        rounding: What that rounding may add, relative to the smallest value.
        rounds: The number of rounds.
        confirmed: Whether a further round from other random columns showed nothing else.
        steady: Whether the last such columns left the values where they were; else there may be
            others still.
        exhausted: Whether the rounds have shown all that there is of the operator.
        small: How many values are below a thousandth of the largest, to which their errors are
            relative.
    """

    wanted: int
    found: int
    met: int
    tolerance: float | None
    worst: float | None
    rounding: float
    rounds: int
    confirmed: bool
    steady: bool
    exhausted: bool
    small: int = 0

    @classmethod
    def of(cls, plan: Plan, wanted: int, values: Array, arrays: Mapping[str, Array]) -> KnownPairs:
        """Counts the pairs of a result.

        Args:
            plan: The plan in force.
            wanted: How many were looked for.
            values: The values, ``(r,)``.
            arrays: What the file of the result holds besides.

        Raises:
            LookupError: If something is not there.
        """
        tolerance = None if plan.krylov is None else plan.krylov.tolerance
        norm, rounding = float(arrays["spectral_norm"]), float(arrays["rounding"])
        relative = relative_bounds(values, arrays["bounds"] - rounding, norm)
        return cls(
            wanted=wanted,
            found=len(values),
            met=int(np.count_nonzero(known(values, arrays, tolerance))),
            tolerance=tolerance,
            worst=float(relative.max()) if len(relative) else None,
            rounding=float(
                relative_bounds(values, np.full(len(values), rounding), norm).max(initial=0.0)
            ),
            rounds=int(arrays["rounds"]),
            confirmed=bool(arrays["confirmed"]),
            steady=bool(arrays["steady"]),
            exhausted=bool(arrays["exhausted"]),
            small=int(np.count_nonzero(np.abs(values) < _SMALL * norm)),
        )

    @property
    def are_met(self) -> bool:
        """Whether all that were looked for are known, and no test columns say otherwise."""
        if self.tolerance is None:
            return True
        return self.met >= self.wanted and (self.confirmed or self.steady)

    def as_json(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Says how many pairs are known, and how well, for people."""
        worst = "" if self.worst is None else f", the worst within {short(self.worst)}"
        if self.tolerance is None or self.rounding > _SAID * self.tolerance:
            worst += f"; rounding of the products may add {short(self.rounding)}"
        if self.small:
            worst += (
                f"; of {self.small}, below a thousandth of the largest value there is, that is "
                "the share of this thousandth, not of themselves"
            )
        rounds = f"{self.rounds} round" + "s" * (self.rounds != 1)
        if self.tolerance is None:
            return f"{self.found} of {self.wanted} were found after {rounds}{worst}"
        if not self.confirmed and self.met >= self.wanted:
            worst += "; not confirmed: copies of a value may be missing"
        return f"{self.met} of {self.wanted} within {short(self.tolerance)} after {rounds}{worst}"


def known(values: Array, arrays: Mapping[str, Array], tolerance: float | None) -> Array:
    """Says which pairs are known to the tolerance, rounding of the products aside.

    Args:
        values: The values, ``(r,)``.
        arrays: What the file of the result holds besides.
        tolerance: The tolerance; ``None``: all are.

    Raises:
        LookupError: If something is not there.
    """
    if tolerance is None:
        return np.ones(len(values), bool)
    norm, rounding = float(arrays["spectral_norm"]), float(arrays["rounding"])
    separate = relative_bounds(values, arrays["residuals"], norm) <= _SEPARATE
    relative = relative_bounds(values, arrays["bounds"] - rounding, norm)
    return np.asarray(separate & (relative <= tolerance))


def relative_bounds(values: Array, bounds: Array, norm: float) -> Array:
    """Returns bounds relative to the values, or to a thousandth of the norm if that is more."""
    scale = np.maximum(np.abs(values), _SMALL * norm)
    return np.asarray(bounds / np.where(scale > 0, scale, 1.0))


def require_pairs(run: Run, pairs: KnownPairs | None) -> None:
    """Raises an error if the pairs that were looked for are not all known to the tolerance.

    Raises:
        QualityError: If they are not; it says how many are, and what finds more.
    """
    if pairs is None or pairs.are_met:
        return
    plan = run.plan
    assert pairs.tolerance is not None
    if pairs.exhausted and pairs.found < pairs.wanted:
        raise QualityError(
            f"recovery.rank = {pairs.wanted}: the operator shows {pairs.found} such values, and "
            "further rounds would show no more (copies of 0 only as far as the first block goes). "
            f"The result is there; for exit code 0 give recovery.rank = {pairs.found} in a new run"
        )
    if pairs.met >= pairs.wanted:
        raise QualityError(
            f"pairs_tolerance = {short(pairs.tolerance)}: {pairs.text()}: the last test columns "
            "showed some, and none are left. The result is there; for more, plan a new run with "
            f"sketch.test_measurements = {2 * plan.reach('test')}, or a larger round_width"
        )
    what = f"pairs_tolerance = {short(pairs.tolerance)}: {pairs.text()}"
    rounds, tolerance = 2 * plan.rounds, f"{pairs.tolerance:g}"
    command = (
        f"skerch-ooc extend {quoted(run.directory)} --rounds {rounds} --pairs-tolerance {tolerance}"
        if plan.identity.factory is not None
        else f"ooc.extend(ooc.open_run({str(run.directory)!r}), rounds={rounds}, "
        f"pairs_tolerance={tolerance}), and then the same call with these two"
    )
    raise QualityError(f"{what}. The result is there; go on with: {command}")
