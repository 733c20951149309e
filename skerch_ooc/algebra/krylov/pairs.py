"""Ritz pairs of a block Krylov space, their residuals, and bounds on the errors of the values.

Parlett 1998, "The Symmetric Eigenvalue Problem", chapters 4 and 11. Singular triplets are the
positive Ritz pairs of the dilation ``[[0, A], [A^H, 0]]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skerch_ooc.algebra.krylov.space import Space, largest, metric_root
from skerch_ooc.algebra.linalg import hermitian_part
from skerch_ooc.base.arrays import Array

Which = Literal["LM", "LA", "SA"]


@dataclass(frozen=True)
class Pairs:
    """Ritz pairs, those that are wanted first.

    Attributes:
        values: Ritz values, ``(r,)``, or singular values.
        residuals: ``||A u - theta u||``; of a triplet, that of the dilation with ``(u, v) / sqrt
            2``: ``sqrt((||A v - sigma u||^2 + ||A^H u - sigma v||^2) / 2)``. At no product.
        bounds: On the errors of the values: the smaller one of the residual, which bounds the
            distance to some eigenvalue, and of the quadratic bound, which is an estimate, as
            its gap knows only the values that were found; and rounding. What the products
            themselves have of rounding is not in it.
        left: The vectors ``u`` in the columns of the family on the range, ``(K, r)``.
        right: The vectors ``v`` in those of the family on the corange; the same if Hermitian.
        norm: Lower estimate of the norm of the operator.
        rounding: What the bounds have for rounding.
    """

    values: Array
    residuals: Array
    bounds: Array
    left: Array
    right: Array
    norm: float
    rounding: float

    @property
    def sizes(self) -> Array:
        """What an error of each value is compared with: its magnitude, or a 1000th of the norm."""
        return np.asarray(np.maximum(np.abs(self.values), _SMALL * self.norm))

    def upto(self, rank: int) -> Pairs:
        """The first pairs."""
        return self._taken(np.arange(min(rank, len(self.values))))

    def _taken(self, order: Array) -> Pairs:
        return Pairs(
            self.values[order],
            self.residuals[order],
            self.bounds[order],
            self.left[:, order],
            self.right[:, order],
            self.norm,
            self.rounding,
        )

    def met(self, tolerance: float) -> Array:
        """Which pairs are known to a relative tolerance, rounding of the products aside."""
        return self._within(tolerance * self.sizes)

    def settled(self, tolerance: float) -> Array:
        """Which are known to a tolerance or to rounding: more rounds would tell no more of them."""
        return self._within(np.maximum(tolerance * self.sizes, _SETTLED * self.rounding))

    def _within(self, most: Array) -> Array:
        return self._separate & (self.bounds - self.rounding <= most)

    @property
    def _separate(self) -> Array:
        return np.asarray(self.residuals <= _SEPARATE * self.sizes)


def pairs_of(space: Space, which: Which = "LM") -> Pairs:
    """The Ritz pairs of a space.

    Args:
        space: Of the rounds so far.
        which: Which come first: those of largest magnitude, the largest, or the smallest, that
            is the most negative.
    """
    left_root, right_root = space.families["range"].root, space.families["corange"].root
    small = left_root.conj().T @ space.middle @ right_root
    if space.setting.hermitian:
        values, vectors = np.linalg.eigh(hermitian_part(small))
        left = right = right_root @ vectors
        residuals = space.residuals("corange", right)
    else:
        u, values, vh = np.linalg.svd(small, full_matrices=False)
        left, right = left_root @ u, right_root @ vh.conj().T
        squares = space.residuals("range", right) ** 2 + space.residuals("corange", left) ** 2
        residuals = np.sqrt(squares / 2)
    norm = max(math.sqrt(space.scale), float(np.abs(values).max(initial=0.0)))
    rounding = space.setting.epsilon * norm * max(_ROUNDING, 2 * _dependence(space))
    bounds = _bounds(space, values, residuals) + rounding
    found = Pairs(values, residuals, bounds, left, right, norm, rounding)
    return found._taken(_order(values, which))


def _dependence(space: Space) -> float:
    """What the rounding of products grows by as columns of ``Omega`` depend on each other.

    It is near 1 but for operators that are hardly larger than a block; later blocks are orthogonal.
    """
    metric = space.families["corange"].metric
    place = space.families["corange"].places[1]
    own = metric[place, place]
    root = np.sqrt(np.diagonal(own).real)[:, None] * metric_root(own)
    return largest(root.conj().T @ root)


def _order(values: Array, which: Which) -> Array:
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    # Stable, so that x and -x come in a defined order.
    return np.argsort(key, kind="stable")


def _bounds(space: Space, values: Array, residuals: Array) -> Array:
    if space.setting.hermitian:
        return value_bounds(values, residuals)
    height, width = space.setting.shape
    zeros = np.zeros(int(height != width))
    dilation = value_bounds(
        np.concatenate([values, -values, zeros]), np.concatenate([residuals, residuals, zeros])
    )
    return dilation[: len(values)]


def value_bounds(values: Array, residuals: Array) -> Array:
    """The smaller one of residual and quadratic bound for each Ritz value.

    The quadratic bound is that of the cluster of values that the residuals do not tell apart: the
    sum of their squared residuals over the distance to all others (Kato and Temple's for one). Of a
    value that its residual does not tell from zero it says nothing: there lie those not found.
    """
    distances = np.abs(values[:, None] - values)
    cluster = distances <= np.maximum(residuals[:, None], residuals)
    squares = cluster @ residuals**2
    gaps = np.where(cluster, np.inf, distances - residuals).min(axis=1, initial=np.inf)
    # Without others outside nothing is known of a gap.
    is_known = np.isfinite(gaps) & (residuals <= _TOLD * np.abs(values))
    quadratic = np.where(is_known, squares / gaps, np.inf)
    return np.minimum(residuals, quadratic)


def quadrature(space: Space, pairs: Pairs) -> tuple[Array, Array]:
    """Nodes ``(K,)`` and weights ``(K, b)``: ``Omega_j^H f(A) Omega_j ~ sum_i W_ij f(theta_i)``.

    Gauss quadrature by block Lanczos (Golub and Meurant 2010, chapters 6 and 7); ``b`` columns of
    ``Omega``, Hermitian operators only.
    """
    family = space.families["corange"]
    start = pairs.right.conj().T @ family.metric[:, family.places[1]]
    return pairs.values, np.abs(start) ** 2


_SMALL = 1e-3
_SEPARATE = 0.1
_SETTLED = 0.1
_TOLD = 0.5
"""A value is told from zero where its residual is at most this part of it."""
_ROUNDING = 8
