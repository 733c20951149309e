"""Single-pass approximation with a least-squares core.

Halko, Martinsson and Tropp 2011 (arXiv 0909.4061, section 5.5): with ``Q`` and ``P`` orthonormal
bases of the ranges of ``Y = A Omega`` and ``W = A^H Psi``, ``A ~ Q C P^H``, where ``C`` solves both

    Q^H Y ~ C (P^H Omega)   and   W^H P ~ (Psi^H Q) C

in the sense of least squares. For a Hermitian operator they are the same equation, and ``C`` is to
be Hermitian. As they advise, the bases are cut to the leading ``c`` singular vectors; we choose
``c`` by the test sketch.
"""

from __future__ import annotations

import itertools

import numpy as np

from skerch_ooc.algebra.linalg import eigh, hermitian_part
from skerch_ooc.algebra.methods.choosing import (
    Choice,
    HeldOut,
    candidates,
    choosing_columns,
    floor_of,
    range_basis,
)
from skerch_ooc.algebra.methods.nystrom import GeneralCores
from skerch_ooc.algebra.methods.problem import Core, Problem
from skerch_ooc.base.arrays import Array

STRIDE = 4
"""How far beside Nystrom's size others are tried at first, on the grid of all candidates."""

REFINEMENTS = 1
"""How often the gaps beside the best size are halved: each size costs two eigendecompositions."""


def solve(problem: Problem) -> Core:
    """Recovers a low-rank approximation from the sketches of one pass.

    Args:
        problem: The small matrices of the sketches, and what is wanted.

    Returns:
        The approximation; empty if the operator vanishes on the sketch. It has no leave-one-out
        error: the least-squares core has no closed form without a column.
    """
    equations = _Equations(problem)
    if problem.core_size is not None:
        choice, core = Choice(min(problem.core_size, equations.largest)), None
    else:
        choice, core = equations.choose(choosing_columns(problem))
    left = equations.left.cut(choice.size).coefficients()
    return Core(
        left=left,
        middle=equations.core(choice.size) if core is None else core,
        right=left if problem.hermitian else equations.right.cut(choice.size).coefficients(),
        size=choice.size,
        tested=choice.tested,
        choosing=choice.choosing,
    )


class _Equations:
    """The two least-squares problems in the whole bases, of which a size takes leading parts."""

    def __init__(self, problem: Problem) -> None:
        assert problem.psi_y is not None
        self._problem = problem
        floor = floor_of(problem)
        self.left = range_basis(problem.y, floor)
        self.right = self.left if problem.hermitian else range_basis(problem.w, floor)
        self.largest = max(self.left.size, self.right.size)
        self.smallest = min(self.left.size, self.right.size)
        self._n = problem.psi_y @ self.left.coefficients()  # Psi^H Q
        self._left_data = self.left.coordinates()  # Q^H Y
        if problem.hermitian:
            return
        assert problem.omega_w is not None
        self._b = (problem.omega_w @ self.right.coefficients()).conj().T  # P^H Omega
        self._right_data = self.right.coordinates().conj().T  # W^H P

    def core(self, size: int) -> Array:
        """The core ``C`` in the leading ``size`` vectors of both bases."""
        n = self._n[:, :size]
        if self._problem.hermitian:
            # B = N^H and W^H P = (Q^H Y)^H: with B B^H = X x X^H, C solves B B^H C + C B B^H = F.
            half = self._left_data[:size] @ n
            x, vectors = eigh(n.conj().T @ n)
            return hermitian_part(_sylvester(x, vectors, x, vectors, half + half.conj().T))
        b = self._b[:size]
        given = n.conj().T @ self._right_data[:, :size] + self._left_data[:size] @ b.conj().T
        return _sylvester(*eigh(n.conj().T @ n), *eigh(b @ b.conj().T), given)

    def choose(self, choosing: int) -> tuple[Choice, Array | None]:
        """Chooses the size, beginning with the one that suits Nystrom's approximation best.

        That has the same range and the same noise to fear, but one factorisation serves all sizes,
        and it has a leave-one-out error in closed form. Without test columns it decides.

        Args:
            choosing: How many test columns may be used.

        Returns:
            The size, 0 if there is nothing; and its core, if that was formed.
        """
        problem = self._problem
        nystrom = GeneralCores(problem, self.left)
        grid = candidates(min(nystrom.size, self.smallest), problem.y.shape[1])
        if not grid:
            return Choice(0, choosing=choosing), None
        if not choosing:
            errors = nystrom.leave_one_out(grid)
            return Choice(grid[errors.index(min(errors))]), None
        errors = nystrom.errors(grid, choosing)
        place = errors.index(min(errors))
        sizes = {grid[max(0, place - STRIDE)], grid[place], grid[-1]}
        sizes.add(grid[min(len(grid) - 1, place + STRIDE)])
        test = HeldOut(problem.t[:, :choosing], self.left.vectors)
        # P^H G
        projected = (problem.g_w[:choosing] @ self.right.coefficients()).conj().T
        tested: dict[int, float] = {}
        best, found = 0, None
        for _ in range(REFINEMENTS + 1):
            for size in sorted(sizes):
                core = self.core(size)
                tested[size] = test.error(core @ projected[:size])
                if tested[size] <= min(tested.values()):
                    best, found = size, core
            tried = sorted(tested)
            place = tried.index(best)
            around = tried[max(0, place - 1) : place + 2]
            sizes = {(a + b) // 2 for a, b in itertools.pairwise(around)} - tested.keys()
        return Choice(best, tuple(sorted(tested.items())), choosing), found


def _sylvester(x: Array, left: Array, z: Array, right: Array, given: Array) -> Array:
    """Solves ``X C + C Z = F``, ``X`` and ``Z`` positive semidefinite, by their eigenpairs.

    Where both eigenvalues vanish the data determine nothing, and ``C`` is zero there.
    """
    sums = np.maximum(x, 0)[:, None] + np.maximum(z, 0)
    floor = np.finfo(np.float64).eps * sums.max(initial=0.0)
    rotated = left.conj().T @ given @ right
    solved = np.where(sums > floor, rotated / np.where(sums > floor, sums, 1.0), 0)
    return np.asarray(left @ solved @ right.conj().T)
