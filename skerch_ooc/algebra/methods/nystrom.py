"""Core-truncated Nystrom approximations, the default for one pass over the operator.

*Hermitian*, possibly indefinite: ``A ~ Y [H]_c^+ Y^H`` with ``Y = A Omega``, ``H = Omega^H Y`` and
``[H]_c`` its ``c`` eigenpairs of largest magnitude (Nakatsukasa and Park 2023, "Randomized low-rank
approximation for symmetric indefinite matrices", arXiv 2212.01127, section 3).

*General*: ``A ~ Y (Psi^H Y)^+ W^H`` with ``W = A^H Psi`` (Nakatsukasa 2020, "Fast and stable
randomized low-rank matrix approximation", arXiv 2009.11392), with ``Y`` cut to its ``c`` leading
left singular vectors ``Q_c``: ``A ~ Q_c (Psi^H Q_c)^+ W^H``.

Inverting all of the core amplifies its smallest singular values, which carry more noise than
signal; how many to keep depends on the spectrum of ``A``. We depart from the papers in choosing
``c`` by a held-out error, or without test columns by leaving columns out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from skerch_ooc.algebra.linalg import (
    count_above,
    eigh_by_magnitude,
    hermitian_part,
)
from skerch_ooc.algebra.methods.choosing import (
    HeldOut,
    RangeBasis,
    SeenBasis,
    choose_size,
    floor_of,
    range_basis,
    root_mean,
)
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.base.arrays import Array

_NOTHING_CUT = 1e-10


def solve(problem: Problem) -> Core:
    """Recovers a low-rank approximation from the sketches of one pass.

    Args:
        problem: The small matrices of the sketches, and what is wanted.

    Returns:
        The approximation; empty if the operator vanishes on the sketch.
    """
    return _solve_hermitian(problem) if problem.hermitian else _solve_general(problem)


def _solve_hermitian(problem: Problem) -> Core:
    values, vectors = core_of(problem)
    largest = count_above(np.abs(values), floor_of(problem))
    measured = problem.y @ vectors[:, :largest]
    choice = choose_size(
        problem,
        largest,
        partial(held_out_errors, problem, values, vectors, measured),
        lambda sizes: [leave_one_out(problem, values, vectors, measured, c) for c in sizes],
    )
    size = choice.size
    left = vectors[:, :size]
    return Core(
        left=left,
        middle=np.diag((1.0 / values[:size]).astype(left.dtype)),
        right=left,
        size=size,
        tested=choice.tested,
        choosing=choice.choosing,
        leave_one_out=leave_one_out(problem, values, vectors, measured, size),
        measured=measured[:, :size],
    )


def core_of(problem: Problem) -> tuple[Array, Array]:
    """Eigenvalues of ``H = Omega^H Y``, in descending magnitude, and their vectors."""
    assert problem.psi_y is not None
    return eigh_by_magnitude(hermitian_part(problem.psi_y))


def held_out_errors(
    problem: Problem,
    values: Array,
    vectors: Array,
    measured: Array,
    sizes: Sequence[int],
    choosing: int,
) -> list[float]:
    """The errors ``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns.

    Args:
        problem: The matrices of the sketch.
        values: Eigenvalues of the core.
        vectors: Eigenvectors ``E`` of the core.
        measured: Compressed copy of ``Y E``.
        sizes: Ascending sizes ``c`` of the core.
        choosing: How many columns are used.

    Returns:
        The error for each size.
    """
    assert problem.g_w is not None
    weights = vectors.conj().T @ problem.g_w[:choosing].conj().T
    residual = problem.t[:, :choosing].astype(measured.dtype)
    errors, before = [], 0
    for c in sizes:
        # Ahat_c G = sum over j < c of (Y e_j) (e_j^H Y^H G) / lambda_j.
        new = slice(before, c)
        residual = residual - measured[:, new] @ (weights[new] / values[new, None])
        errors.append(float(np.linalg.norm(residual)) / math.sqrt(choosing))
        before = c
    return errors


def leave_one_out(
    problem: Problem, values: Array, vectors: Array, measured: Array, size: int
) -> float:
    """Estimates ``||A - Ahat||_F`` of a Hermitian ``A``: each column of ``Y`` in turn is the test.

    In the spirit of Epperly and Tropp 2024 (arXiv 2207.06342, section 3), in closed form for the
    truncated core. Let ``H_c = E diag(lambda) E^H`` be what is kept of ``H``, ``P = E E^H`` and
    ``H_c^+`` its pseudo-inverse. Leaving out column ``i``, with the core cut to what ``H_c`` is on
    the other columns, ``A omega_i`` is predicted with the residual ``Y r_i``,

        r_i = alpha_i (e_i - P e_i) + rho_i H_c^+ e_i,
        rho_i = (H - H_c)_ii / (1 - P_ii),   alpha_i = (1 - rho_i (H_c^+)_ii) / (1 - P_ii),

    by the inverse of ``I - b b^H``, ``b = E^H e_i``; and as nothing is cut (``P = I``) it becomes
    the bordered inverse ``r_i = H^-1 e_i / (H^-1)_ii``.

    Args:
        problem: The matrices of the sketch.
        values: Eigenvalues of the core, the larger ones first.
        vectors: Their eigenvectors ``E``.
        measured: Compressed copy of ``Y E``; at least ``size`` columns.
        size: How many eigenpairs are kept.

    Returns:
        The estimate; near the rounding errors of the products it is too low by up to a half.
    """
    assert problem.psi_y is not None
    if size == 0:
        return root_mean(np.sum(np.abs(problem.y) ** 2, axis=0))
    basis, inverse = vectors[:, :size], 1.0 / values[:size]
    weights = np.abs(basis) ** 2
    outside = 1.0 - weights.sum(axis=1)
    pinv_diagonal = weights @ inverse
    left = np.diagonal(problem.psi_y).real - weights @ values[:size]
    truncated = outside > _NOTHING_CUT
    divisor = np.where(truncated, outside, 1.0)
    rho = np.where(truncated, left / divisor, 1.0 / np.where(truncated, 1.0, pinv_diagonal))
    alpha = np.where(truncated, (1.0 - rho * pinv_diagonal) / divisor, 0.0)
    weights = inverse[:, None] * rho - alpha
    residual = measured[:, :size] @ (weights * basis.conj().T)
    residual += problem.y * alpha
    return float(np.linalg.norm(residual)) / math.sqrt(residual.shape[1])


class GeneralCores(SeenBasis):
    """The cores ``N_c = Psi^H Q_c`` of all sizes, and what tells their errors."""

    def __init__(self, problem: Problem, basis: RangeBasis) -> None:
        assert problem.psi_y is not None
        self._problem, self._psi_y = problem, problem.psi_y
        super().__init__(problem.psi_y, basis, floor_of(problem))

    def errors(self, sizes: Sequence[int], choosing: int) -> list[float]:
        """``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns."""
        assert self._problem.g_w is not None
        test = HeldOut(self._problem.t[:, :choosing], self.basis.vectors)
        projected = self.u.conj().T @ self._problem.g_w[:choosing].conj().T
        return [test.error(self.inverse[:c, :c] @ projected[:c]) for c in sizes]

    def leave_one_out(self, sizes: Sequence[int]) -> list[float]:
        """Estimates ``||A - Ahat_c||_F`` for each size: each column of ``Y`` in turn is the test.

        In the spirit of Epperly and Tropp 2024 (arXiv 2207.06342, section 3). Leaving out column
        ``i`` we keep the combinations of columns that make the range, less their share of ``y_i``:
        ``Q_c - y_i b^H`` with ``Q_c = Y C``, ``b = C^H e_i``. So we predict ``y_i`` by
        ``(Q_c - y_i b^H) x`` with the ``x`` that minimises the same equation after ``Psi^H``,
        ``||m_i - (N_c - m_i b^H) x||``, ``m_i = Psi^H y_i``. Let

            a = N_c^+ m_i,  rho = ||m_i - N_c a|| / |1 - b^H a|,  K = N_c^H N_c,
            kappa = b^H K^-1 b,  beta = 1 / ((1 - b^H a) (1 + rho^2 kappa)).

        Then the residual of ``y_i`` is
        ``beta y_i - Q_c (beta a - rho^2 K^-1 b / (1 + rho^2 kappa))``, and as nothing is cut it
        becomes ``Q_c K^-1 b / kappa``, that is ``Y`` times the column ``M^-1 e_i / (M^-1)_ii`` of
        ``M = (Psi^H Y)^H Psi^H Y``.
        """
        coordinates = self.basis.singular[:, None] * self.basis.rows
        shares = self.basis.coefficients().conj().T
        inside = self.u.conj().T @ self._psi_y
        outside = np.sum(np.abs(self._psi_y - self.u @ inside) ** 2, axis=0)
        return [self._left_out(c, coordinates, shares, inside, outside) for c in sizes]

    def _left_out(
        self, c: int, coordinates: Array, shares: Array, inside: Array, outside: Array
    ) -> float:
        inverse, b = self.inverse[:c, :c], shares[:c]
        a = inverse @ inside[:c]
        square = outside + np.sum(np.abs(inside[c:]) ** 2, axis=0)
        half = inverse.conj().T @ b
        kappa = np.sum(np.abs(half) ** 2, axis=0)
        k_b = inverse @ half
        rest = 1.0 - np.sum(b.conj() * a, axis=0)
        cut = np.abs(rest) > _NOTHING_CUT
        rest = np.where(cut, rest, 1.0)
        rho = square / np.abs(rest) ** 2
        beta = np.where(cut, 1.0 / (rest * (1.0 + rho * kappa)), 0.0)
        # Columns of zeros have no share in anything (kappa = 0) and no residual.
        step = np.where(cut, rho / (1.0 + rho * kappa), 1.0 / np.where(kappa > 0, kappa, 1.0))
        residual = beta * coordinates
        residual[:c] += step * k_b - beta * a
        return root_mean(np.sum(np.abs(residual) ** 2, axis=0))


def _solve_general(problem: Problem) -> Core:
    cores = GeneralCores(problem, range_basis(problem.y, floor_of(problem)))
    choice = choose_size(problem, cores.size, cores.errors, cores.leave_one_out)
    size = choice.size
    return Core(
        left=cores.basis.coefficients()[:, :size],
        middle=cores.inverse[:size, :size],
        right=cores.u[:, :size],
        size=size,
        tested=choice.tested,
        choosing=choice.choosing,
        leave_one_out=cores.leave_one_out([size])[0],
        measured=cores.basis.vectors[:, :size],
    )
