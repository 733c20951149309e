"""Range, corange and an oversampled core: the method that stores least.

Tropp, Yurtsever, Udell and Cevher 2019 (arXiv 1902.08651, section 2): with ``Q`` and ``P``
orthonormal bases of the ranges of ``Y = A Omega`` and ``W = A^H Psi``, and ``Z = Phi^H A Xi``,

    A ~ Q C P^H,   C = (Phi^H Q)^+ Z ((Xi^H P)^+)^H.

For a Hermitian operator ``P`` is ``Q``, and ``C`` is symmetrised. ``Phi`` and ``Xi`` had better be
independent there, too: ``Z`` has twice as many independent entries then, and symmetrising halves
the variance that the core adds to the error.
"""

from __future__ import annotations

import math

import numpy as np

from skerch_ooc.algebra.linalg import hermitian_part
from skerch_ooc.algebra.methods.choosing import RangeBasis, SeenBasis, floor_of, range_basis
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.base.arrays import Array

_NOTHING_LEFT = 1e-10
_COLUMNS_AT_ONCE = 256


def solve(problem: Problem) -> Core:
    """Recovers a low-rank approximation from the three sketches.

    Args:
        problem: The small matrices of the sketches, and what is wanted.

    Returns:
        The approximation; empty if the operator vanishes on the sketch.
    """
    assert problem.phi_y is not None
    assert problem.xi_w is not None
    assert problem.z is not None
    floor = floor_of(problem)
    basis = range_basis(problem.y, floor).cut(problem.core_size)
    left = _Side(problem.phi_y, basis, floor)
    if not problem.hermitian:
        basis = range_basis(problem.w, floor).cut(problem.core_size)
    right = _Side(problem.xi_w, basis, floor)
    if problem.hermitian and left.size != right.size:
        # What one of the inner test matrices cannot see is dropped on both sides.
        basis = basis.cut(min(left.size, right.size))
        left = _Side(problem.phi_y, basis, floor)
        right = _Side(problem.xi_w, basis, floor)
    core = left.pinv @ problem.z @ right.pinv.conj().T
    coefficients = left.basis.coefficients()
    return Core(
        left=coefficients,
        middle=hermitian_part(core) if problem.hermitian else core,
        right=coefficients if problem.hermitian else right.basis.coefficients(),
        size=max(left.size, right.size),
        leave_one_out=_leave_one_out(problem, left, right, core),
    )


class _Side(SeenBasis):
    """A basis ``Q`` of the range of one of the sketches, and what an inner one sees of it.

    Attributes:
        pinv: ``N^+``, ``(c, s)``.
        left_over: ``1 - P_ii`` with the projection ``P = N N^+``, ``(s,)``.
    """

    def __init__(self, phi_y: Array, basis: RangeBasis, floor: float) -> None:
        super().__init__(phi_y, basis, floor)
        self.pinv = np.asarray(self.inverse @ self.u.conj().T)
        self.left_over = np.maximum(1.0 - np.sum(np.abs(self.u) ** 2, axis=1), _NOTHING_LEFT)

    def deleted(self, data: Array) -> Array:
        """``D x``: the residual of each row of the data by a fit to the other rows.

        ``D_i = (I - P)_i / (1 - P_ii)``.
        """
        residual = data - self.u @ (self.u.conj().T @ data)
        return np.asarray(residual / self.left_over[:, None])

    def fitted(self, data: Array) -> Array:
        """What :meth:`deleted_columns` needs of all columns of the data."""
        return np.asarray(data @ self.u)

    def deleted_columns(self, data: Array, fitted: Array, columns: slice) -> Array:
        """Some columns of ``x D^H``, given the same columns of ``x``."""
        residual = data - fitted @ self.u[columns].conj().T
        return np.asarray(residual / self.left_over[columns])


def _leave_one_out(problem: Problem, left: _Side, right: _Side, core: Array) -> float | None:
    """Estimates ``||A - Ahat||_F`` from ``Z``: each of its entries in turn is the test.

    A double PRESS statistic (Allen 1974), in the spirit of Epperly and Tropp 2024
    (arXiv 2207.06342). ``Z_ij = phi_i^H A xi_j``, and ``E |phi_i^H (A - Ahat) xi_j|^2`` is
    ``||A - Ahat||_F^2`` for an ``Ahat`` that has seen neither row ``i`` nor column ``j`` of ``Z``.
    With ``N = Phi^H Q``, ``M = Xi^H P`` and the rows ``d_i`` and ``f_j`` of what
    :meth:`_Side.deleted` applies, its core is

        C_ij = (N^+ - N^+ e_i d_i) Z (M^+ - M^+ e_j f_j)^H,

    so that ``Z_ij - n_i C_ij m_j^H`` is an entry of ``D Z + Z F^H - D Z F^H``. For a Hermitian
    operator the symmetrised core takes ``(n_i C_ij m_j^H + conj(m_j C_ij n_i^H)) / 2`` away from
    ``Z_ij``. The first columns of ``Xi`` are ``Omega`` there, which the basis has seen: those are
    not used.

    Returns:
        The estimate; ``None`` if there are no other columns, or if ``Phi`` is ``Xi``: then ``C_ij``
        has seen ``phi_i`` and ``xi_j`` all the same, and the figure would be a fifth too low.
    """
    z = problem.z
    assert z is not None
    n, m = left.seen, right.seen
    first = problem.y.shape[1] if problem.hermitian else 0
    if first >= z.shape[1] or (problem.hermitian and np.array_equal(n, m)):
        return None
    z_u = right.fitted(z)
    dz_u = left.deleted(z_u)
    if problem.hermitian:
        of_row = np.sum(left.deleted(z @ right.pinv.conj().T).conj() * n, axis=1)[:, None]
    square = 0.0
    for start in range(first, z.shape[1], _COLUMNS_AT_ONCE):
        some = slice(start, start + _COLUMNS_AT_ONCE)
        # Residuals by the core itself, as matrices over (i, j).
        dz = left.deleted(z[:, some])
        zf = right.deleted_columns(z[:, some], z_u, some)
        dzf = right.deleted_columns(dz, dz_u, some)
        residual = dz + zf - dzf
        if problem.hermitian:
            # The four terms of conj(m_j C_ij n_i^H).
            row_influence = (m[some] @ left.pinv).conj().T
            column_influence = n @ right.pinv[:, some]
            of_column = np.sum((left.pinv @ zf).T * m[some], axis=1)
            across = n @ core.conj().T @ m[some].conj().T
            across -= row_influence * of_row + column_influence * of_column.conj()
            across += row_influence * dzf.conj() * column_influence
            residual = 0.5 * (residual + z[:, some] - across)
        square += float(np.sum(np.abs(residual) ** 2))
    return math.sqrt(square / (len(z) * (z.shape[1] - first)))
