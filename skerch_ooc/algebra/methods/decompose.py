"""From an approximation ``(Y left) middle (W right)^H`` to eigen- or singular vectors.

With ``Y left = Q R`` and ``W right = P S`` the approximation is ``Q (R middle S^H) P^H``, so that
the decomposition of the small matrix in the middle gives that of the large one. ``Q`` and ``P`` are
never formed: ``U = Y (left R^-1 U')``. (Halko, Martinsson and Tropp 2011, arXiv 0909.4061,
section 5.1; the two-sided form as in Tropp et al. 2019, arXiv 1902.08651, section 2.9.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.linalg import (
    count_above,
    eigh_by_magnitude,
    hermitian_part,
    sandwich,
    spectral_norm,
    svd,
    triangular_factor,
    triangular_inverse,
    upper_times,
)
from skerch_ooc.algebra.methods.choosing import ALGEBRA_FLOOR, floor_of
from skerch_ooc.algebra.methods.problem import Core, Problem, Solution
from skerch_ooc.base.arrays import Array


@dataclass(frozen=True)
class Root:
    """A factor ``R`` of ``X = Q R``, ``Q`` orthonormal, and its right inverse: ``Q = X inverse``.

    Attributes:
        factor: ``R``, ``(c, k)``.
        inverse: ``(k, c)``.
        condition: Of ``X``, or of what was kept of it.
    """

    factor: Array
    inverse: Array
    condition: float


def decompose(problem: Problem, core: Core) -> Solution:
    """Turns an approximation into eigenvalues and -vectors, or singular values and vectors.

    Args:
        problem: The matrices that the approximation was made from.
        core: The approximation.

    Returns:
        The decomposition, without what is below the noise floor, cut to ``problem.rank``; empty
        if the operator vanishes on the sketch. The vectors' signs are as they come.
    """
    floor = floor_of(problem)
    left = root_of(problem.y @ core.left if core.measured is None else core.measured, floor)
    right = left if problem.hermitian else root_of(problem.w @ core.right, floor)
    middle = sandwich(left.factor, core.middle, right.factor)
    if problem.hermitian:
        values, u = eigh_by_magnitude(hermitian_part(middle))
        vh = None
    else:
        u, values, vh = svd(middle)
    kept = count_above(np.abs(values), floor)
    if problem.rank is not None:
        kept = min(kept, problem.rank)
    left_transform = right_transform = core.left @ upper_times(left.inverse, u[:, :kept])
    left_condition = right_condition = _amplification(problem.y, left_transform)
    if vh is not None:
        right_transform = core.right @ upper_times(right.inverse, vh[:kept].conj().T)
        right_condition = _amplification(problem.w, right_transform)
    return Solution(
        values=values[:kept],
        left=left_transform,
        right=right_transform,
        core=core,
        left_condition=left_condition,
        right_condition=right_condition,
    )


def _amplification(y: Array, transform: Array) -> float:
    """How much larger relative errors of ``Y`` are in the orthonormal ``Y T``: ``||Y|| ||T||``."""
    return max(1.0, spectral_norm(y) * spectral_norm(transform))


def root_of(x: Array, floor: float) -> Root:
    """Orthogonalises a matrix by QR if it has full rank to working precision, else by an SVD.

    The singular value decomposition costs several times as much. It drops directions that consist
    of rounding errors: orthonormal vectors cannot be made of them.

    Args:
        x: Compressed copy of the matrix, ``(a, k)``.
        floor: Singular values below this, relative to the largest, are dropped.

    Returns:
        The factor and its inverse; empty for a matrix of zeros.
    """
    floor = max(floor, ALGEBRA_FLOOR)
    r = triangular_factor(x)
    diagonal = np.abs(np.diagonal(r))
    if r.shape[0] == r.shape[1] and count_above(np.sort(diagonal)[::-1], floor) == len(r):
        inverse = triangular_inverse(r)
        condition = spectral_norm(r) * spectral_norm(inverse) if len(r) else 1.0
        if condition * floor < 1:
            return Root(r, inverse, condition)
    s, vh = svd(r)[1:]
    kept = count_above(s, floor)
    s, vh = s[:kept], vh[:kept]
    condition = float(s[0] / s[-1]) if kept else 1.0
    return Root(s[:, None] * vh, vh.conj().T / s, condition)
