"""Comparison of two results: their values, the spaces of their vectors, errors and costs.

They may be of other methods, ranks and kinds, of one run or of two, of one operator or of two of
the same shape. No product is made, and no operator is built.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base import files
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import IncompleteError, UsageError, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.places import place
from skerch_ooc.planning.plan import described
from skerch_ooc.results.assess import read_assessment
from skerch_ooc.results.lowrank import Eigh, Svd, open_result
from skerch_ooc.results.overlap import Overlap, inner_products, overlap_of
from skerch_ooc.results.report.logs import read_logs
from skerch_ooc.results.words import compared_figures
from skerch_ooc.store import names, rundir
from skerch_ooc.store.result_files import bytes_of_result, result_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import bytes_of, list_shards

_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class ComparedResult:
    """One of two results that are compared: what it is, how good, and what it cost.

    Attributes:
        path: Its file.
        kind: ``"eigh"`` or ``"svd"``.
        operator: What made the operator; ``None`` for a Python object.
        shape: The shape of the operator.
        dtype: The dtype of the products.
        method: The method by which it was recovered.
        measurements: Columns of the right sketch; of ``krylov`` those of its first round.
        seed: Of the test matrices.
        rank: How many values and vectors it has.
        relative_error: Estimate of it; ``None`` before it is assessed, or without test vectors.
        error: The same, not divided by the norm.
        norm: Estimate of the operator's Frobenius norm; ``None`` likewise.
        products: Counts ``planned``, ``done`` and ``probe``; empty before it is assessed.
        measuring_seconds: Of all tasks that measured together; ``None`` if that is unknown.
        peak_bytes: The largest memory of a process; ``None`` if that is unknown.
        disk_bytes: Of its shards, and of the result with all that is derived.
    """

    path: str
    kind: str
    operator: str | None
    shape: tuple[int, int]
    dtype: str
    method: str
    measurements: int
    seed: int
    rank: int
    relative_error: float | None
    error: float | None
    norm: float | None
    products: dict[str, int]
    measuring_seconds: float | None
    peak_bytes: float | None
    disk_bytes: int

    @never_raising
    def _repr_html_(self) -> str:
        return table("ComparedResult", [("result", self.path), *compared_figures(self).items()])


@dataclass(frozen=True)
class Comparison:
    """How two results compare.

    Values are in descending magnitude; where one result is of singular values, those of the other
    are magnitudes, too.

    Attributes:
        a: The first result.
        b: The second one.
        values: The leading values of both, ``(2, k)``.
        uncertainties: How far each of these may be from a value of its operator: the bounds of
            pairs of ``krylov``, else the estimated residuals, ``(2, k)``; ``None`` if they are not
            known of both.
        left_overlaps: Of the leading 1, 2, 5, 10, ... ``k`` left vectors, or eigenvectors.
        right_overlaps: The same of right vectors; those of ``eigh`` are its eigenvectors.
    """

    a: ComparedResult
    b: ComparedResult
    values: Array
    uncertainties: Array | None
    left_overlaps: tuple[Overlap, ...]
    right_overlaps: tuple[Overlap, ...]

    @property
    def differences(self) -> Array:
        """How far the values are apart, relative to the larger one of each two, ``(k,)``."""
        larger = np.abs(self.values).max(axis=0)
        apart = np.abs(self.values[0] - self.values[1])
        return np.asarray(apart / np.where(larger > 0, larger, 1.0))

    @property
    def agreeing(self) -> int | None:
        """How many values are no further apart than both uncertainties allow, if they are known."""
        if self.uncertainties is None:
            return None
        allowed = self.uncertainties.sum(axis=0)
        return int(np.count_nonzero(np.abs(self.values[0] - self.values[1]) <= allowed))

    @never_raising
    def _repr_html_(self) -> str:
        count, others = self.values.shape[1], compared_figures(self.b)
        spaces = {"left spaces": self.left_overlaps[-1], "right spaces": self.right_overlaps[-1]}
        if "svd" not in (self.a.kind, self.b.kind):
            spaces = {"spaces": self.left_overlaps[-1]}
        agree = None if self.agreeing is None else f"{self.agreeing} within both uncertainties"
        below = table(f"Of {count} values", [
            ("furthest apart", f"{short(self.differences.max())}, relative to the larger of both"),
            ("agreeing", agree),
            *((f"overlap of the {name}", f"{one.value:.6f}; {short(one.at_random)} at random")
              for name, one in spaces.items()),
        ])  # fmt: skip
        rows = [(name, text, others[name]) for name, text in compared_figures(self.a).items()]
        paths = ("result", self.a.path, self.b.path)
        return table("Comparison of two results", [paths, *rows], below, heads=("", "a", "b"))

    def as_json(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        known = None if self.uncertainties is None else self.uncertainties.tolist()
        return {
            "a": asdict(self.a),
            "b": asdict(self.b),
            "values": self.values.tolist(),
            "differences": self.differences.tolist(),
            "uncertainties": known,
            "agreeing": self.agreeing,
            "left_overlaps": [one.as_json() for one in self.left_overlaps],
            "right_overlaps": [one.as_json() for one in self.right_overlaps],
        }


@tells_keywords
def compare(a: Run | str | Path, b: Run | str | Path, *, rank: int | None = None) -> Comparison:
    """Compares two results: values, spaces of the leading vectors, errors, costs.

    Args:
        a: A run, its directory, or the folder of one of its results, ``DIR/results/NAME``.
        b: Another one.
        rank: How many leading values and vectors are compared; by default all that both have.

    Raises:
        CorruptError: If a file is damaged.
        IncompleteError: If a result is not there.
        UsageError: If the shapes of the operators differ.
    """
    first, second = _open(a), _open(b)
    if first.result.shape != second.result.shape:
        raise UsageError(
            f"{first.result.path} is of an operator of shape {first.result.shape}, "
            f"{second.result.path} of one of {second.result.shape}; give results of the same shape"
        )
    common = min(first.result.rank, second.result.rank)
    size = common if rank is None else min(rank, common)
    if size < 1:
        raise UsageError(f"rank = {rank}: both results have {common} values; give at least 1")
    magnitudes = first.run.plan.identity.kind != second.run.plan.identity.kind
    both = [side.leading(size, magnitudes=magnitudes) for side in (first, second)]
    known = [side.uncertainties(size) for side in (first, second)]
    return Comparison(
        a=first.described(),
        b=second.described(),
        values=np.stack(both),
        uncertainties=None if any(one is None for one in known) else np.stack(known),  # type: ignore[arg-type]
        left_overlaps=_overlaps(first, second, size, left=True),
        right_overlaps=_overlaps(first, second, size, left=False),
    )


@dataclass(frozen=True)
class _OfRun:
    """A result that is compared, and its run.

    Attributes:
        run: The run.
        result: The result.
        order: Its values in descending magnitude, by their numbers.
    """

    run: Run
    result: Eigh | Svd
    order: Array

    def leading(self, size: int, *, magnitudes: bool) -> Array:
        """Returns the values of largest magnitude, in double precision."""
        found = _values(self.result)[self.order[:size]].astype(np.float64)
        return np.abs(found) if magnitudes else found

    def uncertainties(self, size: int) -> Array | None:
        """Returns how far off the leading values may be; ``None`` if that is not known."""
        known = self.result.residuals if self.result.bounds is None else self.result.bounds
        if known is None:
            return None
        return np.asarray(known.numpy(), np.float64)[self.order[:size]]

    def described(self) -> ComparedResult:
        """Says what the result is, how good, and what it cost."""
        run, path, plan = self.run, self.result.path, self.run.plan
        try:
            assessed = read_assessment(path)
        except FileNotFoundError:
            assessed = {}
        logged = read_logs(run, path.parent.name)
        return ComparedResult(
            path=str(path),
            kind=plan.identity.kind,
            operator=described(plan) if plan.summands > 1 else plan.identity.factory,
            shape=plan.identity.shape,
            dtype=plan.identity.dtype,
            method=assessed.get("method") or SealedFile(path).identity["settings"]["method"],
            measurements=plan.reach("right"),
            seed=plan.identity.seed,
            rank=self.result.rank,
            products=assessed.get("products", {}),
            measuring_seconds=logged.measuring_seconds,
            peak_bytes=logged.peak,
            disk_bytes=bytes_of(run.shards, list_shards(run.shards)) + bytes_of_result(path),
            **{name: assessed.get(name) for name in ("relative_error", "error", "norm")},
        )


def _open(given: Run | str | Path) -> _OfRun:
    """Opens the result at a place."""
    path, name = given.directory if isinstance(given, Run) else place(given), "default"
    if path.parent.name == names.RESULTS and not rundir.is_planned(path):
        path, name = path.parent.parent, path.name
    run = given if isinstance(given, Run) else rundir.open_run(path)
    found = result_path(run, name)
    if not files.is_there(found):
        raise IncompleteError(
            f"there is no {found} to compare; make it with: skerch-ooc run --run "
            f"{quoted(run.directory)}, or by recover"
        )
    result = open_result(found)
    # Of values of the same magnitude the first stays first.
    return _OfRun(run, result, np.argsort(-np.abs(_values(result)), kind="stable"))


def _values(result: Eigh | Svd) -> Array:
    """Returns the values of a result, in its order."""
    return (result.eigenvalues if isinstance(result, Eigh) else result.S).numpy()


def _overlaps(a: _OfRun, b: _OfRun, size: int, *, left: bool) -> tuple[Overlap, ...]:
    """Compares the spaces of more and more leading vectors of one side."""
    one, other = (
        side.result.left_vectors if left else side.result.right_vectors for side in (a, b)
    )
    inner = inner_products(one, other, b.result.rank)[np.ix_(a.order, b.order)]
    return tuple(overlap_of(inner[:k, :k], one.shape[0]) for k in _ranks(size))


def _ranks(size: int) -> list[int]:
    """Lists 1, 2, 5, 10, 20, 50, ... below a number, and that number."""
    powers = range(len(str(size)))
    below = [step * 10**power for power in powers for step in _STEPS if step * 10**power < size]
    return [*below, size]
