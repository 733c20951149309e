"""Core-truncated Nystrom approximations, the default for one pass over the operator.

*Hermitian*, possibly indefinite: ``A ~ Y [H]_c^+ Y^H`` with ``Y = A Omega``, ``H = Omega^H Y`` and
``[H]_c`` its ``c`` eigenpairs of largest magnitude (Nakatsukasa and Park 2023, "Randomized low-rank
approximation for symmetric indefinite matrices", arXiv 2212.01127, section 3).

*General*: ``A ~ Y (Psi^H Y)^+ W^H`` with ``W = A^H Psi`` (Nakatsukasa 2020, "Fast and stable
randomized low-rank matrix approximation", arXiv 2009.11392), with ``Y`` cut to its ``c`` leading
left singular vectors ``Q_c``: ``A ~ Q_c (Psi^H Q_c)^+ W^H``; or with the core cut to its ``c``
leading singular values: ``A ~ Y [Psi^H Y]_c^+ W^H``, whichever is better on held-out columns.

Inverting all of the core amplifies its smallest singular values, which carry more noise than
signal; how many to keep depends on the spectrum of ``A``. We depart from the papers in choosing
``c`` by a held-out error, or without test columns by leaving columns out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skerch_ooc.algebra.linalg import (
    count_above,
    eigh_by_magnitude,
    hermitian_part,
    svd,
    upper_times,
)
from skerch_ooc.algebra.methods.choosing import (
    Choice,
    HeldOut,
    RangeBasis,
    SeenBasis,
    candidates,
    choosing_columns,
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
    cores: HermitianCores | GeneralCores | CutCores
    if problem.hermitian:
        cores = HermitianCores(problem)
    else:
        cores = GeneralCores(problem, range_basis(problem.y, floor_of(problem)))
    choice = choose_size(problem, cores)
    if problem.either_cut and problem.core_size is None and choice.choosing:
        others = CutCores(problem)
        other = others.refined(choose_size(problem, others))
        if other.error < choice.error:
            cores, choice = others, other
    left, middle, right = cores.approximation(choice.size)
    return Core(
        left=left,
        middle=middle,
        right=right,
        size=choice.size,
        tested=choice.tested,
        choosing=choice.choosing,
        leave_one_out=cores.leave_one_out([choice.size])[0],
        measured=cores.measured[:, : choice.size],
    )


def choose_size(problem: Problem, cores: HermitianCores | GeneralCores | CutCores) -> Choice:
    """The size that was asked for, or the one with the smallest error."""
    if problem.core_size is not None:
        return Choice(min(problem.core_size, cores.size))
    m = problem.y.shape[1]
    sizes = sorted({*candidates(cores.size, m), *candidates(cores.surely, m)})
    if not sizes:
        return Choice(0)
    choosing = choosing_columns(problem)
    errors = cores.errors(sizes, choosing) if choosing else cores.leave_one_out(sizes)
    tested = tuple(zip(sizes, errors, strict=True))
    return Choice(min(tested, key=lambda pair: pair[1])[0], tested, choosing)


class HermitianCores:
    """The cores ``[H]_c`` of all sizes, and what tells their errors.

    Attributes:
        values: Eigenvalues of ``H = Omega^H Y``, in descending magnitude.
        vectors: Their eigenvectors ``E``.
        size: How many of them are above the noise floor of the core.
        surely: How many are above that of the products.
        measured: Compressed copy of ``Y E``, for the first of these.
    """

    def __init__(self, problem: Problem) -> None:
        assert problem.psi_y is not None
        self._problem, self._psi_y = problem, problem.psi_y
        self.values, self.vectors = eigh_by_magnitude(hermitian_part(problem.psi_y))
        self.surely = count_above(np.abs(self.values), floor_of(problem))
        self.size = self.surely
        if problem.core_floor is not None:
            self.size = count_above(np.abs(self.values), problem.core_floor)
        self.measured = upper_times(problem.y, self.vectors[:, : self.size])

    def approximation(self, size: int) -> tuple[Array, Array, Array]:
        """``left``, ``middle`` and ``right`` of :class:`Core`."""
        left = self.vectors[:, :size]
        return left, np.diag((1.0 / self.values[:size]).astype(left.dtype)), left

    def errors(self, sizes: Sequence[int], choosing: int) -> list[float]:
        """``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns.

        Args:
            sizes: Ascending sizes ``c`` of the core.
            choosing: How many columns are used.
        """
        return _errors_of_cut(self, self.vectors, self._problem, sizes, choosing)

    def leave_one_out(self, sizes: Sequence[int]) -> list[float]:
        """Estimates ``||A - Ahat_c||_F`` for each size: each column of ``Y`` in turn is the test.

        In the spirit of Epperly and Tropp 2024 (arXiv 2207.06342, section 3), in closed form for
        the truncated core. Let ``H_c = E diag(lambda) E^H`` be what is kept of ``H``, ``P = E E^H``
        and ``H_c^+`` its pseudo-inverse. Leaving out column ``i``, with the core cut to what
        ``H_c`` is on the other columns, ``A omega_i`` is predicted with the residual ``Y r_i``,

            r_i = alpha_i (e_i - P e_i) + rho_i H_c^+ e_i,
            rho_i = (H - H_c)_ii / (1 - P_ii),   alpha_i = (1 - rho_i (H_c^+)_ii) / (1 - P_ii),

        by the inverse of ``I - b b^H``, ``b = E^H e_i``; and as nothing is cut (``P = I``) it
        becomes the bordered inverse ``r_i = H^-1 e_i / (H^-1)_ii``.

        Returns:
            The estimates; near the rounding errors of the products too low by up to a half.
        """
        return [self._left_out(c) for c in sizes]

    def _left_out(self, size: int) -> float:
        if size == 0:
            return root_mean(np.sum(np.abs(self._problem.y) ** 2, axis=0))
        basis, inverse = self.vectors[:, :size], 1.0 / self.values[:size]
        weights = np.abs(basis) ** 2
        outside = 1.0 - weights.sum(axis=1)
        pinv_diagonal = weights @ inverse
        left = np.diagonal(self._psi_y).real - weights @ self.values[:size]
        truncated = outside > _NOTHING_CUT
        divisor = np.where(truncated, outside, 1.0)
        rho = np.where(truncated, left / divisor, 1.0 / np.where(truncated, 1.0, pinv_diagonal))
        alpha = np.where(truncated, (1.0 - rho * pinv_diagonal) / divisor, 0.0)
        weights = inverse[:, None] * rho - alpha
        residual = self.measured[:, :size] @ (weights * basis.conj().T)
        residual += self._problem.y * alpha
        return float(np.linalg.norm(residual)) / math.sqrt(residual.shape[1])


class GeneralCores(SeenBasis):
    """The cores ``N_c = Psi^H Q_c`` of all sizes, and what tells their errors.

    Attributes:
        measured: Compressed copy of ``Q``.
        surely: As many as there are.
    """

    def __init__(self, problem: Problem, basis: RangeBasis) -> None:
        assert problem.psi_y is not None
        self._problem, self._psi_y = problem, problem.psi_y
        super().__init__(problem.psi_y, basis, floor_of(problem))
        self.measured = self.basis.vectors
        self.surely = self.size

    def approximation(self, size: int) -> tuple[Array, Array, Array]:
        """``left``, ``middle`` and ``right`` of :class:`Core`."""
        left = self.basis.coefficients()[:, :size]
        return left, self.inverse[:size, :size], self.u[:, :size]

    def errors(self, sizes: Sequence[int], choosing: int) -> list[float]:
        """``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns."""
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
        coordinates = self.basis.coordinates()
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


class CutCores:
    """The cores ``[Psi^H Y]_c``, ``c`` leading singular values each, and what tells their errors.

    Attributes:
        values: Singular values of ``Psi^H Y``, ``U diag(values) V^H``, above the noise floor.
        left: ``U``.
        right: ``V``.
        size: How many there are.
        surely: The same.
        measured: Compressed copy of ``Y V``.
    """

    def __init__(self, problem: Problem) -> None:
        assert problem.psi_y is not None
        self._problem = problem
        u, values, vh = svd(problem.psi_y)
        self.size = self.surely = count_above(values, floor_of(problem))
        self.values, self.left = values[: self.size], u[:, : self.size]
        self.right = vh[: self.size].conj().T
        self.measured = upper_times(problem.y, self.right)

    def approximation(self, size: int) -> tuple[Array, Array, Array]:
        """``left``, ``middle`` and ``right`` of :class:`Core`."""
        middle = np.diag((1.0 / self.values[:size]).astype(self.right.dtype))
        return self.right[:, :size], middle, self.left[:, :size]

    def errors(self, sizes: Sequence[int], choosing: int) -> list[float]:
        """``||(A - Ahat_c) G||_F / sqrt(q)`` on the first ``choosing`` test columns."""
        return _errors_of_cut(self, self.left, self._problem, sizes, choosing)

    def refined(self, choice: Choice) -> Choice:
        """Tries all sizes between those that were tried beside the best: each costs little."""
        sizes = [size for size, _ in choice.tested]
        if not sizes:
            return choice
        place = sizes.index(choice.size)
        first, last = sizes[max(0, place - 1)], sizes[min(len(sizes) - 1, place + 1)]
        between = list(range(first, last + 1))
        errors = self.errors(between, choice.choosing)
        tested = dict(choice.tested) | dict(zip(between, errors, strict=True))
        best = min(tested, key=lambda size: tested[size])
        return Choice(best, tuple(sorted(tested.items())), choice.choosing)

    def leave_one_out(self, sizes: Sequence[int]) -> list[float]:
        """Estimates ``||A - Ahat_c||_F`` for each size: each column of ``Y`` in turn is the test.

        Without column ``i`` the core is cut to what ``[Psi^H Y]_c`` is on the other columns. With
        ``b = V^H e_i`` the residual of ``y_i`` is then ``(y_i - Y V b) / (1 - |b|^2)``, and as
        nothing is cut ``Y K^-1 e_i / (K^-1)_ii`` with ``K = V diag(values^2) V^H``.
        """
        return [self._left_out(c) for c in sizes]

    def _left_out(self, size: int) -> float:
        basis = self.right[:, :size]
        outside = 1.0 - np.sum(np.abs(basis) ** 2, axis=1)
        cut = outside > _NOTHING_CUT
        residual = self._problem.y - self.measured[:, :size] @ basis.conj().T
        inverse = self.values[:size, None] ** -2.0 * basis.conj().T
        scale = np.where(cut, 1.0, np.sum(basis.T * inverse, axis=0).real)
        whole = self.measured[:, :size] @ (inverse / scale)
        columns = np.where(cut, residual / np.where(cut, outside, 1.0), whole)
        return float(np.linalg.norm(columns)) / math.sqrt(columns.shape[1])


def _errors_of_cut(
    cores: HermitianCores | CutCores, left: Array, problem: Problem, sizes: Sequence[int],
    choosing: int,
) -> list[float]:  # fmt: skip
    """Returns the errors of the cores cut to some sizes, on the first test columns.

    ``Ahat_c G`` is the sum over ``j < c`` of ``(Y v_j) (u_j^H Psi^H A G) / sigma_j``, with ``u_j``
    the columns of ``left``; of a Hermitian core these are its eigenvectors, as are the ``v_j``.
    """
    weights = left.conj().T @ problem.g_w[:choosing].conj().T
    residual = problem.t[:, :choosing].astype(cores.measured.dtype)
    errors, before = [], 0
    for c in sizes:
        new = slice(before, c)
        residual = residual - cores.measured[:, new] @ (weights[new] / cores.values[new, None])
        errors.append(float(np.linalg.norm(residual)) / math.sqrt(choosing))
        before = c
    return errors
