"""What a recovery method is given, what it returns, and how that becomes a decomposition.

A method sees small matrices only. Tall matrices with the same rows (``Y`` and ``T``) are given by
*compressed copies*: with ``[Y T] = Q [y t]``, ``Q`` having orthonormal columns that nobody ever
needs, norms and inner products of ``Y X`` and ``T`` are those of ``y X`` and ``t``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerch_ooc.base.arrays import Array


@dataclass(frozen=True)
class Problem:
    """The small matrices of a sketch.

    For a general operator ``Y = A Omega`` has ``m`` columns, ``W = A^H Psi`` has ``l``, ``T = A G``
    has ``q``, and ``Z = Phi^H A Xi`` is ``(s, s)``. For a Hermitian one ``W`` is ``Y``, ``Psi`` is
    ``Omega``, and the first ``m`` columns of ``Xi`` are ``Omega``.

    In ``hmt`` an orthonormal basis ``Q`` stands in the place of ``Y``, and ``B = A^H Q`` in that of
    ``W`` (for a Hermitian operator ``W`` is ``Q``, and ``psi_y`` is ``Q^H A Q``).

    Attributes:
        hermitian: Whether ``A = A^H``.
        epsilon: Relative precision of the products.
        y: Compressed copy of ``Y``, ``(a, m)``.
        t: Compressed copy of ``T``, in the coordinates of ``y``, ``(a, q)``.
        w: Compressed copy of ``W``, ``(b, l)``; ``y`` itself if Hermitian.
        g_w: ``G^H W``, ``(q, l)``.
        t_left: Compressed copy of the test sketch ``A^H G'`` of the adjoint, in the coordinates of
            ``w``, ``(b, p)``; ``None`` if there is none.
        g_y: ``G'^H Y``, ``(p, m)``.
        psi_y: ``Psi^H Y``, ``(l, m)``; ``None`` if there is no ``Psi``.
        omega_w: ``Omega^H W``, ``(m, l)``.
        phi_y: ``Phi^H Y``, ``(s, m)``; ``None`` without inner sketch.
        xi_w: ``Xi^H W``, ``(s, l)``.
        z: ``Phi^H A Xi``, ``(s, s)``.
        before: Compressed copy of the sketch whose range ``Q`` is (``hmt`` only), ``(a, k)``, if
            it is that of a random matrix; ``None`` after power iterations.
        second_square: ``||A Q||_F^2`` (``hmt`` of a Hermitian operator only).
        core_size: How many singular values of the core are to be inverted; ``None``: choose.
        rank: How many values and vectors are wanted; ``None``: all.
        core_floor: Eigenvalues of the core below this, relative to the largest, are noise; ``None``
            if it is as for the products.
        either_cut: Whether ``nystrom`` of a general operator cuts the range or the core, whichever
            is better on the columns that choose; else it cuts the range.
    """

    hermitian: bool
    epsilon: float
    y: Array
    t: Array
    w: Array
    g_w: Array
    psi_y: Array | None = None
    omega_w: Array | None = None
    phi_y: Array | None = None
    xi_w: Array | None = None
    z: Array | None = None
    t_left: Array | None = None
    g_y: Array | None = None
    before: Array | None = None
    second_square: float = 0.0
    core_size: int | None = None
    rank: int | None = None
    core_floor: float | None = None
    either_cut: bool = False


@dataclass(frozen=True)
class Core:
    """An approximation ``A ~ (Y left) middle (W right)^H``: what a method returns.

    Attributes:
        left: ``(m, a)``.
        middle: ``(a, b)``; Hermitian for a Hermitian operator.
        right: ``(l, b)``; ``left`` itself for a Hermitian operator.
        size: Singular values of the core that were inverted, or columns of the range that were
            kept: what ``core`` in the spec stands for.
        tested: ``(size, estimated error)`` for each size that was tried.
        choosing: How many of the first test columns chose the size: the error must be estimated
            from the others.
        leave_one_out: Estimate of ``||A - Ahat||_F`` from the sketch alone, before ``rank`` cuts
            anything off; ``None`` where the method has none.
        measured: Compressed copy of ``Y left``, where the method has formed it.
        method: Which method made it, where several were compared; else empty.
    """

    left: Array
    middle: Array
    right: Array
    size: int
    tested: tuple[tuple[int, float], ...] = ()
    choosing: int = 0
    leave_one_out: float | None = None
    measured: Array | None = None
    method: str = ""


@dataclass(frozen=True)
class Solution:
    """A decomposition ``A ~ U diag(values) V^H`` with ``U = Y left`` and ``V = W right``.

    Attributes:
        values: Eigenvalues in descending magnitude, or singular values descending, ``(r,)``.
        left: ``(m, r)``.
        right: ``(l, r)``; ``left`` itself for a Hermitian operator.
        core: What the method returned.
        left_condition: ``||Y|| ||left||``: how much larger relative errors of ``Y`` and of its
            compressed copy are in ``U``, and so how far ``U`` is from orthonormal.
        right_condition: The same of ``W`` and ``V``.
    """

    values: npt.NDArray[np.float64]
    left: Array
    right: Array
    core: Core
    left_condition: float
    right_condition: float
