"""Core-truncated Nystrom approximation of a Hermitian, possibly indefinite, matrix.

``A ~ Y [H]_c^+ Y^H`` with ``Y = A Omega``, ``H = Omega^H Y`` and ``[H]_c`` its ``c`` eigenpairs of
largest magnitude (Nakatsukasa and Park 2023, "Randomized low-rank approximation for symmetric
indefinite matrices", arXiv 2212.01127, section 3). Inverting all of ``H`` amplifies its smallest
eigenvalues, which carry more noise than signal; how many to keep depends on the spectrum of ``A``.

We depart from the paper in choosing ``c`` by a held-out error: for each candidate the error on some
columns of the test sketch is a small quadratic form in matrices that the merge has accumulated.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import numpy as np

from skerch_ooc.linalg import (
    Array,
    count_above,
    eigh_by_magnitude,
    hermitian_part,
    with_fixed_signs,
)
from skerch_ooc.recovery.problem import Problem, Solution

NOISE_FLOOR = 2.0
"""Eigenvalues of the core below this many units of roundoff are rounding errors."""

GRAM_FLOOR = 1e-7
"""Singular values of ``Y`` below this (relative) are lost in a double-precision Gram matrix."""

CHOLESKY_FLOOR = 1e-4
"""Above this ratio of the diagonal Cholesky's factor orthogonalises to 1e-7 and better."""

CHOOSING_SHARE = 3
"""One in so many test columns chooses the core; the error is estimated from the others."""

_CANDIDATES = 24
_SMALLEST_SHARE = 6
_NOTHING_CUT = 1e-10


def solve(problem: Problem) -> Solution:
    """Recovers an eigendecomposition from the small matrices of a sketch.

    Args:
        problem: The matrices, and what is wanted.

    Returns:
        The decomposition; empty (rank 0) if the operator vanishes on the sketch.
    """
    values, vectors = eigh_by_magnitude(hermitian_part(problem.core))
    largest = count_above(np.abs(values), NOISE_FLOOR * problem.epsilon)
    if problem.core_size is None:
        size, tested, choosing = _choose(problem, values, vectors, largest)
    else:
        size, tested, choosing = min(problem.core_size, largest), [], 0
    inverse = 1.0 / values[:size]
    basis = vectors[:, :size]
    mu, transform = _orthogonalise(problem, basis, inverse)
    keep = len(mu) if problem.rank is None else min(problem.rank, len(mu))
    return Solution(
        values=mu[:keep],
        transform=transform[:, :keep],
        core_size=size,
        tested=tuple(tested),
        choosing=choosing,
        leave_one_out=leave_one_out(problem, basis, inverse),
    )


def _orthogonalise(problem: Problem, basis: Array, inverse: Array) -> tuple[Array, Array]:
    """Turns ``(Y E) diag(inverse) (Y E)^H`` into ``U diag(mu) U^H`` with orthonormal ``U = Y T``.

    With ``E^H G E = R^H R`` the columns of ``Y E R^-1`` are orthonormal, and the matrix has the
    core ``K = R diag(inverse) R^H`` in them.
    """
    r, r_inverse_of = _root(hermitian_part(basis.conj().T @ (problem.gram @ basis)), problem)
    mu, w = eigh_by_magnitude(hermitian_part((r * inverse) @ r.conj().T))
    kept = count_above(np.abs(mu), NOISE_FLOOR * problem.epsilon)
    return mu[:kept], with_fixed_signs(basis @ r_inverse_of(w[:, :kept]))


def _root(squares: Array, problem: Problem) -> tuple[Array, Callable[[Array], Array]]:
    """A root ``R`` with ``R^H R`` the given matrix, and a function that applies ``R^-1``.

    Cholesky's where the matrix is so well conditioned that this loses nothing; else ``s V^H`` from
    the eigenpairs ``V s^2 V^H`` above the noise floor.
    """
    with contextlib.suppress(np.linalg.LinAlgError):
        lower = np.linalg.cholesky(squares)
        diagonal = np.diagonal(lower).real
        if diagonal.size and diagonal.min() > CHOLESKY_FLOOR * diagonal.max():
            r = lower.conj().T
            return r, lambda x: np.linalg.solve(r, x)
    values, v = eigh_by_magnitude(squares)
    kept = count_above(values, max(GRAM_FLOOR, NOISE_FLOOR * problem.epsilon) ** 2)
    s, v = np.sqrt(values[:kept]), v[:, :kept]
    return (v * s).conj().T, lambda x: (v / s) @ x


def _choose(
    problem: Problem, values: Array, vectors: Array, largest: int
) -> tuple[int, list[tuple[int, float]], int]:
    """Chooses the core's size by the test sketch, or without one by leaving columns out."""
    sizes = candidates(largest, len(values))
    choosing = -(-problem.test_gram.shape[0] // CHOOSING_SHARE)
    if problem.test_gram.shape[0] < CHOOSING_SHARE:
        choosing = 0
    if not sizes:
        return 0, [], 0
    if choosing:
        errors = held_out_errors(problem, values, vectors, sizes, choosing)
    else:
        errors = [leave_one_out(problem, vectors[:, :size], 1.0 / values[:size]) for size in sizes]
    tested = list(zip(sizes, errors, strict=True))
    return min(tested, key=lambda pair: pair[1])[0], tested, choosing


def candidates(largest: int, measurements: int) -> list[int]:
    """Sizes of the core to be tried: all above the noise floor, and a grid down to ``m / 6``."""
    if largest < 1:
        return []
    smallest = min(largest, max(1, measurements // _SMALLEST_SHARE))
    return sorted({int(size) for size in np.geomspace(smallest, largest, _CANDIDATES).round()})


def held_out_errors(
    problem: Problem, values: Array, vectors: Array, sizes: Sequence[int], choosing: int
) -> list[float]:
    """The errors ``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns.

    ``Ahat_c G = Y X_c`` with ``X_c = E_c diag(1 / lambda) E_c^H (Y^H G)``, so the squared norm is
    ``tr T^H T - 2 Re tr T^H Y X_c + tr X_c^H (Y^H Y) X_c``.
    """
    q = choosing
    projected = vectors.conj().T @ problem.core_test[:, :q]
    x = np.concatenate([vectors[:, :c] @ (projected[:c] / values[:c, None]) for c in sizes], axis=1)
    quadratic = np.einsum("ij,ij->j", x.conj(), problem.gram @ x).real.reshape(-1, q).sum(1)
    repeated = np.tile(problem.gram_test[:, :q], len(sizes))
    linear = np.einsum("ij,ij->j", repeated.conj(), x).real.reshape(-1, q).sum(1)
    constant = float(np.trace(problem.test_gram[:q, :q]).real)
    return [
        math.sqrt(max(0.0, float(constant - 2 * b + a)) / q)
        for a, b in zip(quadratic, linear, strict=True)
    ]


def leave_one_out(problem: Problem, basis: Array, inverse: Array) -> float:
    """Estimates ``||A - Ahat||_F`` from the right sketch: each column in turn is the test.

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
        basis: Eigenvectors of the core that are kept, ``(m, c)``.
        inverse: The inverses of their eigenvalues, ``(c,)``.

    Returns:
        The estimate; near the rounding errors of the products it is too low by up to a half.
    """
    m, c = basis.shape
    if c == 0:
        return math.sqrt(max(0.0, float(np.trace(problem.gram).real)) / m)
    weights = np.abs(basis) ** 2
    outside = 1.0 - weights.sum(axis=1)
    pinv_diagonal = weights @ inverse
    left = np.diagonal(problem.core).real - weights @ (1.0 / inverse)
    truncated = outside > _NOTHING_CUT
    divisor = np.where(truncated, outside, 1.0)
    rho = np.where(truncated, left / divisor, 1.0 / np.where(truncated, 1.0, pinv_diagonal))
    alpha = np.where(truncated, (1.0 - rho * pinv_diagonal) / divisor, 0.0)
    adjoint = basis.conj().T
    r = basis @ (inverse[:, None] * adjoint * rho - adjoint * alpha)
    r[np.diag_indices(m)] += alpha
    squares = np.einsum("ij,ij->j", r.conj(), problem.gram @ r).real
    return math.sqrt(max(0.0, float(squares.mean())))
