"""Core-truncated Nystrom approximation of a Hermitian, possibly indefinite, matrix.

``A ~ Y [H]_c^+ Y^H`` with ``Y = A Omega``, ``H = Omega^H Y`` and ``[H]_c`` its ``c`` eigenpairs of
largest magnitude (Nakatsukasa and Park 2023, "Randomized low-rank approximation for symmetric
indefinite matrices", arXiv 2212.01127, section 3). Inverting all of ``H`` amplifies its smallest
eigenvalues, which carry more noise than signal; how many to keep depends on the spectrum of ``A``.

We depart from the paper in choosing ``c`` by a held-out error: for each candidate the error on some
columns of the test sketch is a small quadratic form in matrices that the merge has accumulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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

CHOOSING_SHARE = 3
"""One in so many test columns chooses the core; the error is estimated from the others."""

_CANDIDATES = 24
_SMALLEST_SHARE = 6


def solve(problem: Problem) -> Solution:
    """Recovers an eigendecomposition from the small matrices of a sketch.

    Args:
        problem: The matrices, and what is wanted.

    Returns:
        The decomposition; empty (rank 0) if the operator vanishes on the sketch.
    """
    values, vectors = eigh_by_magnitude(hermitian_part(problem.core))
    largest = count_above(np.abs(values), NOISE_FLOOR * problem.epsilon)
    if problem.core_size is not None:
        size, tested, choosing = min(problem.core_size, largest), (), 0
    else:
        size, tested, choosing = _choose(problem, values, vectors, largest)
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

    With ``E^H G E = V s^2 V^H`` the columns of ``Y E V s^-1`` are orthonormal, and the matrix has
    the core ``K = s V^H diag(inverse) V s`` in them.
    """
    squares, v = eigh_by_magnitude(hermitian_part(basis.conj().T @ problem.gram @ basis))
    kept = count_above(squares, max(GRAM_FLOOR, NOISE_FLOOR * problem.epsilon) ** 2)
    s, v = np.sqrt(squares[:kept]), v[:, :kept]
    core = (v * s).conj().T @ (inverse[:, None] * (v * s))
    mu, w = eigh_by_magnitude(hermitian_part(core))
    kept = count_above(np.abs(mu), NOISE_FLOOR * problem.epsilon)
    return mu[:kept], with_fixed_signs(basis @ ((v / s) @ w[:, :kept]))


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
        errors = [
            leave_one_out(problem, vectors[:, :size], 1.0 / values[:size]) for size in sizes
        ]
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
    x = np.concatenate(
        [vectors[:, :c] @ (projected[:c] / values[:c, None]) for c in sizes], axis=1
    )
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

    In closed form (after Epperly and Tropp 2024, arXiv 2207.06342, section 3): with ``P`` the
    projection on the core's eigenvectors and ``H_c^+`` its inverse there, the residual of column
    ``i`` for the approximation without it is ``Y r_i``,

        r_i = (sigma_i (e_i - P e_i) + H_c^+ e_i) / (sigma_i + (H_c^+)_ii),
        sigma_i = (1 - P_ii) / (H_ii - (P H P)_ii).

    Args:
        problem: The matrices of the sketch.
        basis: Eigenvectors of the core that are kept, ``(m, c)``.
        inverse: The inverses of their eigenvalues, ``(c,)``.
    """
    m, c = basis.shape
    if m == 0 or c == 0:
        return math.sqrt(max(0.0, float(np.trace(problem.gram).real)) / max(1, m))
    weights = np.abs(basis) ** 2
    outside = 1.0 - weights.sum(axis=1)
    pinv_diagonal = weights @ inverse
    left = np.diagonal(problem.core).real - weights @ (1.0 / inverse)
    # Where nothing was cut both are rounding errors: the plain bordered inverse, sigma = 0.
    cut = outside > 1e-10
    sigma = np.where(cut, outside / np.where(left == 0, np.inf, left), 0.0)
    denominator = sigma + pinv_diagonal
    adjoint = basis.conj().T
    r = basis @ (inverse[:, None] * adjoint - adjoint * sigma)
    r[np.diag_indices(m)] += sigma
    r /= np.where(denominator == 0, np.inf, denominator)
    squares = np.einsum("ij,ij->j", r.conj(), problem.gram @ r).real
    return math.sqrt(max(0.0, float(squares.mean())))
