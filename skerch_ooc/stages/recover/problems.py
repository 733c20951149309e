"""Poses recovery problems: cuts the merged sums into the small matrices that a method solves for.

This module alone says what a method needs of a sketch, and which sketches serve which methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.algebra.linalg import svd
from skerch_ooc.algebra.methods.metric import Extraction
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.planning.methods import METHODS, names_of
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import BASIS, CORANGE, RANGE
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.task import Merged
from skerch_ooc.store.sketch import Basis
from skerch_ooc.store.tiles import Tiles


@dataclass(frozen=True)
class Posed:
    """A problem, with the columns on disk that the transforms of its solution apply to.

    Attributes:
        problem: The problem that the method solves.
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


def basis_products(basis: Basis, products: Array) -> Array:
    """Returns ``N^H Q``, from ``N^H Y`` and the transform that made the basis ``Q`` of ``Y``."""
    result = products @ basis.file.arrays["transform"]
    if "correction" in basis.file.arrays:
        result = result @ basis.file.arrays["correction"]
    return np.asarray(result)


def _integer(value: int | str) -> int | None:
    return value if isinstance(value, int) else None
