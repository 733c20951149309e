"""What the methods share: bases of the range, sizes to be tried, and errors held out.

Every method inverts a small matrix, and with all of it the noise of its smallest singular values.
How many to keep depends on the spectrum of ``A``; so a few sizes are tried on some columns of the
test sketch ``T = A G``, which no method has seen, and the error is later estimated from the others
(Tropp, Yurtsever, Udell and Cevher 2019, arXiv 1902.08651, section 6, for the estimate itself).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.linalg import count_above, svd, triangular_inverse
from skerch_ooc.algebra.methods.problem import Problem
from skerch_ooc.base.arrays import Array

NOISE_FLOOR = 0.5
"""Relative values below this many epsilons, the unit roundoff, are noise of the products.

With ``m`` columns rounding makes singular values of about ``1 / sqrt(m)`` of it. What is between
can be used, and is needed where the values decay fast: float32 sketches of eigenvalues
``10^-0.1 i`` gave the best approximation of rank 60 but for 4 % at 2, 0.8 % at 1, 0.3 % at 0.5.
"""

ALGEBRA_FLOOR = 2.0 * float(np.finfo(np.float64).eps)
"""Relative values below this are rounding errors of the small problems themselves."""

CHOOSING_SHARE = 3
"""One in so many test columns chooses the core; the error is estimated from the others."""

CANDIDATES = 24
_SMALLEST_SHARE = 6


def noise_floor(epsilon: float) -> float:
    """What is below this, relative to the largest, is noise of products of this precision."""
    return max(NOISE_FLOOR * epsilon, ALGEBRA_FLOOR)


def floor_of(problem: Problem) -> float:
    """What is below this, relative to the largest, is noise."""
    return noise_floor(problem.epsilon)


def choosing_columns(problem: Problem) -> int:
    """How many of the first test columns choose a size: none if there are less than three."""
    columns = problem.t.shape[1]
    return -(-columns // CHOOSING_SHARE) if columns >= CHOOSING_SHARE else 0


def candidates(largest: int, measurements: int, count: int = CANDIDATES) -> list[int]:
    """Sizes to be tried: all above the noise floor, and a grid down to ``m / 6``."""
    if largest < 1:
        return []
    smallest = min(largest, max(1, measurements // _SMALLEST_SHARE))
    return sorted({int(size) for size in np.geomspace(smallest, largest, count).round()})


@dataclass(frozen=True)
class RangeBasis:
    """The left singular vectors ``Q = Y V / s`` of a sketch ``Y``, above the noise floor.

    Attributes:
        vectors: Compressed copy of ``Q``, ``(a, c)``.
        singular: Singular values of ``Y``, descending, ``(c,)``.
        rows: ``V^H``, ``(c, m)``.
    """

    vectors: Array
    singular: Array
    rows: Array

    @property
    def size(self) -> int:
        """How many vectors there are."""
        return len(self.singular)

    def coefficients(self) -> Array:
        """``V / s``: ``Q = Y coefficients``, ``(m, c)``."""
        return np.asarray(self.rows.conj().T / self.singular)

    def coordinates(self) -> Array:
        """``Q^H Y``, ``(c, m)``."""
        return np.asarray(self.singular[:, None] * self.rows)

    def cut(self, size: int | None) -> RangeBasis:
        """The leading vectors only; all of them for ``None``."""
        return RangeBasis(self.vectors[:, :size], self.singular[:size], self.rows[:size])


def range_basis(y: Array, floor: float) -> RangeBasis:
    """The left singular vectors of a sketch, given its compressed copy.

    Args:
        y: Compressed copy of ``Y``, ``(a, m)``.
        floor: Singular values below this, relative to the largest, are dropped.

    Returns:
        The basis; empty for a sketch of zeros.
    """
    u, s, vh = svd(y)
    kept = count_above(s, floor)
    return RangeBasis(u[:, :kept], s[:kept], vh[:kept])


class SeenBasis:
    """The leading vectors ``Q`` of a basis that a test matrix sees: ``N = Psi^H Q = U R``.

    One QR factorisation serves all sizes: ``N_c^+ = (R^-1)_c U_c^H``, where ``_c`` takes the
    leading rows and columns.

    Attributes:
        size: How many vectors are seen: a column of ``N`` in the span of those before it can have
            no inverse.
        basis: ``Q``, without the others.
        seen: ``N``, ``(s, c)``.
        u: ``U``, ``(s, c)``.
        inverse: ``R^-1``, ``(c, c)``.
    """

    def __init__(self, psi_y: Array, basis: RangeBasis, floor: float) -> None:
        seen = psi_y @ basis.coefficients()
        u, r = np.linalg.qr(seen)
        diagonal = np.abs(np.diagonal(r))
        bad = np.flatnonzero(diagonal <= floor * diagonal.max(initial=0.0))
        self.size = int(bad[0]) if bad.size else len(diagonal)
        self.basis = basis.cut(self.size)
        self.seen = seen[:, : self.size]
        self.u = u[:, : self.size]
        self.inverse = triangular_inverse(r[: self.size, : self.size])


@dataclass(frozen=True)
class Choice:
    """The size of a core.

    Attributes:
        size: How many singular values are inverted.
        tested: ``(size, estimated error)`` for each size that was tried.
        choosing: How many of the first test columns chose it.
    """

    size: int
    tested: tuple[tuple[int, float], ...] = ()
    choosing: int = 0

    @property
    def error(self) -> float:
        """The least error that was found."""
        return min((error for _, error in self.tested), default=math.inf)


class HeldOut:
    """Test columns in an orthonormal basis ``Q``, to be compared with ``Q x`` for many ``x``."""

    def __init__(self, t: Array, basis: Array) -> None:
        self._inside = basis.conj().T @ t
        outside = t - basis @ self._inside
        # What is left of the basis after the first c vectors counts as outside for size c.
        squares = np.sum(np.abs(self._inside) ** 2, axis=1)
        after = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        self._outside = float(np.sum(np.abs(outside) ** 2)) + after
        self._columns = max(1, t.shape[1])

    def error(self, x: Array) -> float:
        """``||T - Q_c x||_F / sqrt(q)`` for ``x`` of shape ``(c, q)``."""
        c = len(x)
        square = float(np.sum(np.abs(self._inside[:c] - x) ** 2)) + float(self._outside[c])
        return math.sqrt(square / self._columns)


def root_mean(squares: Array) -> float:
    """The root of the mean of what should not be negative."""
    return math.sqrt(max(0.0, float(np.mean(squares)))) if squares.size else 0.0
