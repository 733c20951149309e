"""Randomized range finder with a second round of products (Halko, Martinsson and Tropp 2011).

arXiv 0909.4061, sections 5.1 and 5.3. ``Q`` is an orthonormal basis of the range of ``A Omega``,
perhaps after power iterations. Then ``A ~ Q B^H`` with ``B = A^H Q``, or for a Hermitian operator
``A ~ Q (Q^H A Q) Q^H``. In :class:`Problem` ``Q`` takes the place of ``Y`` and ``B`` that of ``W``.

``Q`` has been rounded, or worse, on its way to the second round; it is orthogonalised once more.
"""

from __future__ import annotations

import math

import numpy as np

from skerch_ooc.algebra.linalg import hermitian_part, svd
from skerch_ooc.algebra.methods.choosing import floor_of
from skerch_ooc.algebra.methods.decompose import root_of
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.base.arrays import Array


def solve(problem: Problem) -> Core:
    """Projects the operator on the range that was found.

    Args:
        problem: The matrices of the second round.

    Returns:
        The approximation: the whole range, there is nothing to be chosen.

    Raises:
        ValueError: If a size of the core is asked for: no core is inverted here.
    """
    if problem.core_size is not None:
        raise ValueError("hmt inverts no core, so that its size cannot be chosen")
    basis = root_of(problem.y, floor_of(problem)).inverse
    size = basis.shape[1]
    if problem.hermitian:
        assert problem.psi_y is not None
        middle = hermitian_part(basis.conj().T @ problem.psi_y @ basis)
    else:
        middle = np.eye(size, dtype=problem.y.dtype)
    return Core(basis, middle, basis, size, leave_one_out=leave_one_out(problem))


def _inverse_gram_diagonal(y: Array, problem: Problem) -> Array:
    """The diagonal of ``(Y^H Y)^-1``, that is of ``R^-1 R^-H``, or of ``V s^-2 V^H``."""
    root = root_of(y, floor_of(problem))
    if root.inverse.shape[0] == root.inverse.shape[1]:
        return np.asarray(np.sum(np.abs(root.inverse) ** 2, axis=1))
    # With more columns than rows, rows of zeros give the directions that Y does not see.
    missing = np.zeros((max(0, y.shape[1] - len(y)), y.shape[1]), y.dtype)
    values, vh = svd(np.concatenate([y, missing]))[1:]
    m = y.shape[1]
    s = np.zeros(m)
    s[: len(values)] = values
    # No column is known better than to unit roundoff.
    s = np.maximum(s, 0.5 * problem.epsilon * float(np.linalg.norm(s)) / math.sqrt(m))
    return np.asarray(np.sum((np.abs(vh) / s[:, None]) ** 2, axis=0))


def leave_one_out(problem: Problem) -> float | None:
    """Estimates ``||A - Ahat||_F`` by leaving out each column of the first sketch in turn.

    Epperly and Tropp 2024 (arXiv 2207.06342, section 3.1): the column ``i`` of ``Y`` is at the
    distance ``((Y^H Y)^-1)_ii^(-1/2)`` from the range of the others. The mean square of the
    distances is the expected ``||A - Q Q^H A||_F^2`` of one column fewer. For a Hermitian operator
    there is besides, exactly, ``||Q Q^H A (I - Q Q^H)||_F^2 = ||A Q||_F^2 - ||Q^H A Q||_F^2``. In
    this difference rounding errors hide what is small, but it cannot exceed the first square.

    Returns:
        The estimate; ``None`` if ``Q`` is not the range of a single random sketch.
    """
    if problem.before is None:
        return None
    if not np.any(problem.before):
        return 0.0
    square = float(np.mean(1.0 / _inverse_gram_diagonal(problem.before, problem)))
    if problem.hermitian:
        assert problem.psi_y is not None
        inside = float(np.sum(np.abs(problem.psi_y) ** 2))
        square += min(square, max(0.0, problem.second_square - inside))
    return math.sqrt(square)
