"""Poses recovery problems: cuts the merged sums into the small matrices that a method solves for.

This module alone says what a method needs of a sketch, and which sketches serve which methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.algebra.linalg import block_diagonal, svd, triangular_inverse
from skerch_ooc.algebra.methods.metric import (
    AppliedColumns,
    AppliedSides,
    Extraction,
    extraction,
    projection,
)
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.planning.methods import METHODS, names_of
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import BASIS, CORANGE, RANGE, START
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.task import Merged
from skerch_ooc.stages.merge.testmatrices import StartReader
from skerch_ooc.stages.recover.krylov import squares_of
from skerch_ooc.store.readers import SketchReader
from skerch_ooc.store.sketch import Basis, Round
from skerch_ooc.store.tiles import Beside, Tiles


@dataclass(frozen=True)
class Posed:
    """A problem, with the columns on disk that the transforms of its solution apply to.

    Attributes:
        problem: The problem that the method solves; or, with an extraction, the small matrices of
            the columns on disk, of which the extraction's sketch is made.
        left: The columns that ``U`` is made of.
        right: The columns that ``V`` is made of; ``None`` for a Hermitian operator.
        test: The test sketch; ``None`` without one.
        extraction: What the problem's columns are made of, if they are not on disk as such.
        test_left: The test sketch of the adjoint, likewise.
    """

    problem: Problem
    left: Tiles
    right: Tiles | None
    test: Tiles | None
    extraction: Extraction | None = None
    test_left: Tiles | None = None

    def solve(self, method: str) -> Core:
        """Recovers an approximation by a method."""
        return self.extraction.solve() if self.extraction else SOLVERS[method](self.problem)


def serves(plan: Plan, settings: RecoverySpec) -> None:
    """Refuses settings that this plan's sketch does not serve.

    Raises:
        UsageError: If they are not served; it says why.
    """
    kind, method = plan.identity.kind, METHODS[settings.method]
    left, right, inner = plan.reach("left"), plan.reach("right"), plan.inner
    reason, whole = None, plan.takes_whole(settings.method)
    if method.is_one_pass and plan.krylov is not None and not whole:
        reason = (
            f"the first round of {plan.recovery.method} has only {plan.later_columns} columns for "
            "it"
        )
    elif not method.is_one_pass:
        if plan.recovery.method != settings.method:
            reason = "it needs further rounds of products, which only a run planned for it takes"
        elif settings.power_iterations != plan.recovery.power_iterations:
            reason = f"the run has power_iterations = {plan.recovery.power_iterations}"
    elif settings.power_iterations:
        powers = " or ".join(names_of(lambda other: other.most_power_iterations > 0))
        reason = f"power_iterations are rounds of {powers}"
    elif whole:
        if kind == "svd" and settings.core != "auto":
            reason = "of the rounds of svd it inverts no core, whose size could be given"
    elif method.has_inner and not inner:
        reason = "it needs an inner sketch, which only a run planned for it measures"
    elif kind == "svd" and not left:
        reason = (
            f"it needs a left sketch, which a run planned for {plan.recovery.method} does not "
            "measure"
        )
    elif kind == "svd" and method.fits_left and left < right:
        reason = f"it needs at least as many left columns as right ones, {left} against {right}"
    if method.orthogonal and not reason and settings.vectors != "stored":
        raise UsageError(
            f"recovery.vectors = {settings.vectors!r}: the vectors of {settings.method} are made "
            'of all rounds, and always stored; take "stored"'
        )
    if reason:
        raise UsageError(
            f"recovery.method = {settings.method!r} is not served by this run's sketch: {reason}; "
            "give another method, or plan a new run"
        )


def pose(plan: Plan, settings: RecoverySpec, merged: Merged, before: Merged | None) -> Posed:
    """Cuts the merged sums into the matrices of a recovery problem.

    Args:
        plan: The plan in force.
        settings: Method, core and rank.
        merged: The merged sketch of the first round, or for ``hmt`` of the last.
        before: For ``hmt`` the merged sketch of the round before; else ``None``.
    """
    if before is not None:
        return _after_rounds(plan, settings, merged, before)
    if merged.sketch.round.basis is not None:
        return _of_all_rounds(plan, settings, merged)
    # A Hermitian operator's right sketch is its left sketch too, and Psi is Omega.
    hermitian = plan.identity.kind == "eigh"
    here, there = merged.sides[RANGE], merged.sides[RANGE if hermitian else CORANGE]
    left, xi = ("right", "right") if hermitian else ("left", "inner-right")
    y, w = here.copy("right"), there.copy(left)
    phi_y = z = None
    if METHODS[settings.method].has_inner:
        phi_y = here.cross("inner-left", "right")
        z = merged.sketch.inner().astype(y.dtype)
        if hermitian:
            # Phi^H A Xi begins with Phi^H Y, as Xi begins with Omega.
            z = np.concatenate([phi_y, z], axis=1)
    problem = Problem(
        hermitian=hermitian,
        epsilon=plan.identity.epsilon,
        y=y,
        t=here.copy("test"),
        w=y if hermitian else w,
        psi_y=here.cross(left, "right")[: w.shape[1]],
        omega_w=there.cross("right", left)[: y.shape[1]],
        g_w=there.cross("test", left),
        phi_y=phi_y,
        xi_w=None if phi_y is None else there.cross(xi, left),
        z=z,
        t_left=there.copy("test-left") if plan.reach("test-left") else None,
        g_y=here.cross("test-left", "right") if plan.reach("test-left") else None,
        core_size=_integer(settings.core),
        rank=_integer(settings.rank),
        either_cut=plan.either_cut,
    )
    right = None if hermitian else there.reader.roles[left]
    test, back = here.reader.roles.get("test"), there.reader.roles.get("test-left")
    return Posed(problem, here.reader.roles["right"], right, test, test_left=back)


def _after_rounds(plan: Plan, settings: RecoverySpec, last: Merged, before: Merged) -> Posed:
    """Poses the problem of ``hmt``: ``A ~ Q B^H``, in coordinates in which ``Q`` is the identity.

    (Halko, Martinsson and Tropp 2011, arXiv 0909.4061.)
    """
    hermitian = plan.identity.kind == "eigh"
    basis = last.sketch.round.basis
    assert basis is not None
    role = last.sketch.round.role
    earlier = before.sides[RANGE]
    earlier_role = before.sketch.round.role
    y_before, t_before = earlier.copy(earlier_role), earlier.copy("test")
    projected = basis.file.arrays["test_products"]
    k = basis.columns
    # The part of T outside the range of Q, which is the same for any orthonormal basis of it.
    q = svd(y_before)[0][:, :k]
    outside = np.linalg.qr(t_before - q @ (q.conj().T @ t_before), mode="r")
    y = np.concatenate([np.eye(k), np.zeros((len(outside), k))]).astype(y_before.dtype)
    common: dict[str, Any] = {
        "hermitian": hermitian,
        "epsilon": plan.identity.epsilon,
        "y": y,
        "t": np.concatenate([projected, outside]),
        "before": y_before if before.sketch.round.basis is None else None,
        "rank": _integer(settings.rank),
    }
    test = earlier.reader.roles.get("test")
    if hermitian:
        side = last.sides[RANGE]
        place = side.side.sketches[role]
        problem = Problem(
            w=y,
            psi_y=side.cross(BASIS, role),
            omega_w=basis_products(basis, earlier.cross("right", earlier_role)),
            g_w=basis_products(basis, earlier.cross("test", earlier_role)),
            second_square=float(side.sums.column_squares[place.slice].sum()),
            **common,
        )
        return Posed(problem, basis.matrix, None, test)
    corange = last.sides[CORANGE]
    problem = Problem(
        w=corange.copy(role),
        omega_w=corange.cross("right", role),
        g_w=corange.cross("test", role),
        **common,
    )
    return Posed(problem, basis.matrix, corange.reader.roles[role], test)


def tall_roles(last: Round, side: str) -> list[str]:
    """Returns what results of ``hmt`` are made of on a side, where all sketches are kept.

    The bases on a side, and behind them the sketch of the last round, if it lies there.
    """
    general, corange = last.run.plan.identity.kind == "svd", side == CORANGE
    if corange and not general:
        return []
    # With kind = "svd" the rounds of even numbers apply the adjoint, to bases of the range.
    bases = [f"{BASIS}{n}" for n in last.bases if not general or n % 2 == corange]
    return bases if general and not corange else [*bases, last.role]


def tall_columns(
    last: Round, readers: Mapping[str, SketchReader | StartReader]
) -> tuple[Tiles, Tiles | None, Tiles | None]:
    """Returns what left and right vectors are made of then, and the test sketch.

    Args:
        last: The last round.
        readers: The reader of each of its sides.
    """
    found = (
        [readers[side].roles[role] for role in tall_roles(last, side)] for side in (RANGE, CORANGE)
    )
    left, right = (Beside("sketches", parts) if parts else None for parts in found)
    assert left is not None
    return left, right, readers[RANGE].roles.get("test")


def _of_all_rounds(plan: Plan, settings: RecoverySpec, last: Merged) -> Posed:
    """Poses the problem of ``hmt`` from the sketches of all its rounds.

    They have the columns ``Q_1, .., Q_q, A Q_q``, as ``A Omega = Q_1 R_1`` and
    ``A Q_j = Q_j+1 R_j+1``: each basis is known with what made it of the sketch before.
    """
    pose_extraction = _nystrom_of_rounds if plan.identity.kind == "eigh" else _projection_of_rounds
    found = pose_extraction(last, plan.identity.epsilon, _integer(settings.rank))
    readers = {name: side.reader for name, side in last.sides.items()}
    return Posed(found.problem, *tall_columns(last.sketch.round, readers), found)


def _nystrom_of_rounds(last: Merged, epsilon: float, rank: int | None) -> Extraction:
    """Poses the Nystrom approximation from the test columns ``Omega, Q_1, .., Q_q``."""
    round_, side = last.sketch.round, last.sides[RANGE]
    *bases, sketch = tall_roles(round_, RANGE)
    cross = side.crosses(["right", *bases], [*bases, sketch])
    own, first = len(side.side.sketches[sketch]), len(side.side.noise["right"])
    metric = np.empty((len(cross),) * 2, cross.dtype)
    metric[:first, :first] = _noise_squares(last, first)
    metric[:, first:] = cross[:, : cross.shape[1] - own]
    metric[first:, :first] = metric[:first, first:].conj().T
    coordinates = _coordinates(round_, list(round_.bases), own)
    tests = side.crosses(["test"], [*bases, sketch]) @ coordinates
    columns = AppliedColumns(metric, cross @ coordinates, coordinates, tests)
    copy, t = side.scaled_copies([[*bases, sketch], ["test"]])
    return extraction(columns, copy, t, epsilon, rank=rank)


def _noise_squares(last: Merged, columns: int) -> Array:
    """Returns ``Omega^H Omega``, measured unless its columns are orthogonal by construction."""
    if START in last.sides:
        return squares_of(last.sides[START].sums)
    return last.sketch.round.run.plan.identity.shape[1] * np.eye(columns)


def _projection_of_rounds(last: Merged, epsilon: float, rank: int | None) -> Extraction:
    """Poses ``P A`` with the projection ``P`` on the bases of all rounds on the range."""
    round_, there = last.sketch.round, last.sides[CORANGE]
    made = tall_roles(round_, CORANGE)
    y, t = last.sides[RANGE].scaled_copies([tall_roles(round_, RANGE), ["test"]])
    (w,) = there.scaled_copies([made])
    own = len(there.side.sketches[made[-1]])
    products = _coordinates(round_, [n for n in round_.bases if n % 2], own)
    metric, size = y.conj().T @ y, y.shape[1]
    sides = AppliedSides(
        left=np.eye(size, dtype=y.dtype),
        right=np.zeros((w.shape[1], 0), y.dtype),
        left_metric=metric,
        right_metric=metric[:0, :0],
        adjoint_products=products,
        products=metric[:, :0],
        middle=metric[:, :0],
        tests=there.crosses(["test"], made) @ products,
        start=there.crosses(["right"], made)[:1] @ products,
    )
    return projection(sides, (y, w), t, epsilon, rank=rank)


def _coordinates(round_: Round, numbers: Sequence[int], own: int) -> Array:
    """Returns what bases and a last sketch of ``own`` columns are multiplied with.

    Each basis makes the sketch that it was made of, and the last sketch itself.
    """
    factors = [_factor_of(round_.bases[number]) for number in numbers]
    factors.append(np.eye(own))
    return block_diagonal(factors)


def _factor_of(basis: Basis) -> Array:
    """Returns ``R`` with ``Y = Q R``, for the basis ``Q = Y transform correction``."""
    transform = basis.file.arrays["transform"]
    if len(transform) == transform.shape[1] and not np.tril(transform, -1).any():
        factor = triangular_inverse(transform)
    else:
        # Singular vectors over singular values.
        factor = (transform / np.sum(np.abs(transform) ** 2, axis=0)).conj().T
    if "correction" in basis.file.arrays:
        factor = np.linalg.solve(basis.file.arrays["correction"], factor)
    return np.asarray(factor)


def basis_products(basis: Basis, products: Array) -> Array:
    """Returns ``N^H Q``, from ``N^H Y`` and the transform that made the basis ``Q`` of ``Y``."""
    result = products @ basis.file.arrays["transform"]
    if "correction" in basis.file.arrays:
        result = result @ basis.file.arrays["correction"]
    return np.asarray(result)


def _integer(value: int | str) -> int | None:
    return value if isinstance(value, int) else None
