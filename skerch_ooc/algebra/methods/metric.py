"""Extraction from test columns that are no fresh noise, such as the bases of later rounds.

Of test columns ``X`` and their products ``Y = A X`` all that counts is what they span, if their
metric ``M = X^H X`` is measured. With ``M^+ = B B^H`` the columns ``X B`` are orthonormal, and

* for a Hermitian operator the Nystrom approximation ``Z [B^H H B]_c^+ Z^H``, ``H = X^H Y``, of the
  sketch ``Z = Y B`` is that of :mod:`skerch_ooc.algebra.methods.nystrom`, as if they were noise
  (Tropp and Webber 2023, arXiv 2306.12418, on the Nystrom approximation from Krylov spaces);
* for any other one, with test columns ``U`` of the adjoint and ``V`` of the operator, and the
  projections ``P`` and ``Q`` on them, ``P A + (I - P) A Q`` inverts nothing else.

The metric is never taken for the identity: columns that were rounded, or that depend on each
other, do no harm. ``Y`` need not be on disk as such: it has *coordinates* ``E`` in tall columns
``C``, ``Y = C E``, and so have the vectors in the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.linalg import eigh, hermitian_part, spectral_norm
from skerch_ooc.algebra.methods import nystrom
from skerch_ooc.algebra.methods.choosing import ALGEBRA_FLOOR, noise_floor
from skerch_ooc.algebra.methods.problem import Core, Problem, Solution
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range

_DEPENDENT = 1e-10
"""Eigenvalues of a metric, its columns scaled to norm 1, below this are those of a dependence."""

_CORE_FLOOR = 0.01
"""What is noise in the core, as a share of what is noise in the products.

Noise and bases stand side by side in the core, and a random column sees little of each eigenvector:
its entries are small, and so is their rounding. Eigenvalues ``10^-0.1 i`` in single precision, two
rounds of 64: error 4.8e-7, and 2.7e-6 with the floor of the products.
"""

_NOTHING_LEFT = 16 * float(np.finfo(np.float64).eps)
"""What a subtraction of squares leaves below this, relative to them, is its rounding.

It is the square of the unit roundoff of products in single precision, which are to be seen.
"""


def root_of_metric(metric: Array, epsilon: float) -> Array:
    """Returns ``B (m, r)`` with ``B^H M B = I``: ``X B`` are orthonormal columns.

    Args:
        metric: ``M = X^H X``.
        epsilon: Relative precision of the columns; directions that it hides are left out.
    """
    norms = np.sqrt(np.maximum(np.diagonal(metric).real, 0.0))
    scale = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    values, vectors = eigh(hermitian_part(metric * scale[:, None] * scale))
    kept = values > max(epsilon, _DEPENDENT)
    return np.asarray(scale[:, None] * (vectors[:, kept] / np.sqrt(values[kept])))


def compressed_copies(gram: Array, widths: Sequence[int]) -> list[Array]:
    """Returns compressed copies of groups of tall columns, given the Gram matrix of all.

    Group by group: what is small in one, beside the groups before it, is as exact as the Gram
    matrix allows, and disturbs none of these.

    Args:
        gram: ``[C_1 C_2 ..]^H [C_1 C_2 ..]``, ``(k, k)``; Hermitian.
        widths: How many columns each group has.

    Returns:
        For each group its copy, ``(a, widths[i])``: inner products of columns of any two are those
        of the tall ones.
    """
    left, copies = gram.copy(), np.zeros((0, len(gram)), gram.dtype)
    start = 0
    for width in filter(None, widths):
        own = Range(start, start + width).slice
        rows = _rows_of_root(left[own], own, np.diagonal(gram).real[own])
        copies = np.concatenate([copies, rows])
        left = left - rows.conj().T @ rows
        start += width
    cuts = np.cumsum(widths)[:-1]
    return np.split(copies, cuts, axis=1)


def _rows_of_root(left: Array, own: slice, squares: Array) -> Array:
    """The rows that a group adds to the copies: its orthonormal part in all columns from it on."""
    norms = np.sqrt(np.maximum(squares, 0.0))
    scale = np.where(norms > 0, 1.0 / np.where(norms > 0, norms, 1.0), 0.0)
    values, vectors = eigh(hermitian_part(left[:, own] * scale[:, None] * scale))
    kept = values > _NOTHING_LEFT
    basis = scale[:, None] * (vectors[:, kept] / np.sqrt(values[kept]))
    rows = basis.conj().T @ left
    rows[:, : own.start] = 0.0
    return np.asarray(rows)


@dataclass(frozen=True)
class AppliedColumns:
    """Test columns ``X`` of a Hermitian operator, and what was measured of their products ``Y``.

    Attributes:
        metric: ``X^H X``, ``(m, m)``.
        middle: ``X^H Y``, ``(m, m)``.
        coordinates: ``E`` with ``Y = C E``, ``(k, m)``.
        tests: ``G^H Y`` with the test matrix ``G``, ``(q, m)``.
        spent: So many of the first test columns have a part in ``X``: they tell no error.
    """

    metric: Array
    middle: Array
    coordinates: Array
    tests: Array
    spent: int = 0


@dataclass(frozen=True)
class Extraction:
    """A problem whose sketch is made of tall columns ``C``, and not itself on disk.

    Attributes:
        problem: The problem.
        left: ``(k, c)``: its ``Y`` is ``C left``.
        right: The same of its ``W``, in the tall columns of that side.
        norms: Norms of the columns ``C``, and of those of the other side if there is one.
        core: Its approximation, where nothing is to be chosen; else ``None``.
        spent: So many of the first test columns tell no error.
    """

    problem: Problem
    left: Array
    right: Array
    norms: tuple[Array, ...]
    core: Core | None = None
    spent: int = 0

    def amplification(self, solution: Solution) -> float:
        """How much larger errors of the columns, relative to each, are in the vectors."""
        made = (self.left @ solution.left, self.right @ solution.right)
        sides = zip(self.norms, made, strict=False)
        return max(spectral_norm(norms[:, None] * transform) for norms, transform in sides)

    def solve(self) -> Core:
        """Recovers an approximation; empty if the operator vanishes on the test columns.

        Its core is chosen by test columns, as ever, but by those that ``X`` has no part of; and
        without them by leaving columns out. That chooses nearly as well, but tells no error: the
        columns depend on each other.
        """
        if self.core is not None:
            return dataclasses.replace(self.core, choosing=self.spent)
        unspent = dataclasses.replace(
            self.problem,
            t=self.problem.t[:, self.spent :],
            g_w=self.problem.g_w[self.spent :],
        )
        core = nystrom.solve(unspent)
        choosing = self.spent + core.choosing
        return dataclasses.replace(core, choosing=choosing, leave_one_out=None)


def extraction(
    columns: AppliedColumns, copy: Array, t: Array, epsilon: float, *,
    core_size: int | None = None, rank: int | None = None,
) -> Extraction:  # fmt: skip
    """Poses the Nystrom approximation of a Hermitian operator from test columns of any kind.

    Args:
        columns: The test columns; the first one fixes the signs of the vectors.
        copy: Compressed copy of the tall columns ``C``, ``(a, k)``.
        t: Compressed copy of the test sketch, ``(a, q)``.
        epsilon: Relative precision of the products.
        core_size: How many eigenvalues of the core are to be inverted; ``None``: choose.
        rank: How many values and vectors are wanted; ``None``: all.
    """
    root = root_of_metric(columns.metric, epsilon)
    left = columns.coordinates @ root
    y = copy @ left
    problem = Problem(
        hermitian=True,
        epsilon=epsilon,
        y=y,
        t=t,
        w=y,
        g_w=columns.tests @ root,
        psi_y=hermitian_part(root.conj().T @ columns.middle @ root),
        omega_w=columns.middle[:1] @ root,
        core_size=core_size,
        rank=rank,
        core_floor=max(_CORE_FLOOR * noise_floor(epsilon), ALGEBRA_FLOOR),
    )
    return Extraction(problem, left, left, (_norms(copy),), spent=columns.spent)


def _norms(copy: Array) -> Array:
    return np.asarray(np.linalg.norm(copy, axis=0))


@dataclass(frozen=True)
class AppliedSides:
    """Test columns ``U`` of the adjoint and ``V`` of the operator, and their products.

    Everything is given by coordinates in tall columns ``C`` with the height of the operator, and
    ``D`` with its width. There may be no ``V``: of no columns.

    Attributes:
        left: Of ``U`` in ``C``, ``(k, a)``.
        right: Of ``V`` in ``D``, ``(l, b)``.
        left_metric: ``U^H U``.
        right_metric: ``V^H V``.
        adjoint_products: Of ``A^H U`` in ``D``, ``(l, a)``.
        products: Of ``A V`` in ``C``, ``(k, b)``.
        middle: ``U^H A V``, ``(a, b)``.
        tests: ``G^H [A^H U, V]`` with the test matrix ``G``, ``(q, a + b)``.
        start: The same of a column that fixes the signs of the vectors, ``(1, a + b)``.
        spent: So many of the first test columns have a part in ``U`` or ``V``.
    """

    left: Array
    right: Array
    left_metric: Array
    right_metric: Array
    adjoint_products: Array
    products: Array
    middle: Array
    tests: Array
    start: Array
    spent: int = 0


def projection(
    sides: AppliedSides, copies: tuple[Array, Array], t: Array, epsilon: float, *,
    rank: int | None = None,
) -> Extraction:  # fmt: skip
    """Poses ``P A + (I - P) A Q``, ``P`` and ``Q`` the projections on the test columns.

    What it misses is ``(I - P) A (I - Q)``. ``P A`` alone is that of ``hmt`` (Halko, Martinsson
    and Tropp 2011, arXiv 0909.4061, section 4).

    Args:
        sides: The test columns.
        copies: Compressed copies of the tall columns ``C`` and ``D``.
        t: Of the test sketch, in the coordinates of the first.
        epsilon: Relative precision of the products.
        rank: How many values and vectors are wanted; ``None``: all.
    """
    p_root = root_of_metric(sides.left_metric, epsilon)
    q_root = root_of_metric(sides.right_metric, epsilon)
    inside = sides.left @ p_root @ p_root.conj().T
    outside = (sides.products - inside @ sides.middle) @ q_root @ q_root.conj().T
    right = np.concatenate([sides.adjoint_products, sides.right], axis=1)
    y, w = copies[0], copies[1] @ right
    rows, columns = np.eye(y.shape[1], dtype=y.dtype), np.eye(w.shape[1], dtype=w.dtype)
    problem = Problem(
        hermitian=False,
        epsilon=epsilon,
        y=y,
        t=t,
        w=w,
        g_w=sides.tests,
        omega_w=sides.start,
        rank=rank,
    )
    middle = np.concatenate([inside, outside], axis=1)
    core = Core(rows, middle, columns, max(p_root.shape[1], q_root.shape[1]))
    return Extraction(problem, rows, right, (_norms(y), _norms(copies[1])), core, sides.spent)
