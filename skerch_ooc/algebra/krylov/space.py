"""The space that the rounds span: its metric, the projected operator, what the residuals are.

The metric ``M = F^H F`` of a family is measured and never taken for the identity: that keeps the
method stable to exhaustion although the blocks are rounded (Giraud, Langou, Rozloznik and van den
Eshof 2005 on what one projection leaves). With ``W = F^H Y`` the projection of products is ``F C``
with ``C = M^-1 W``, and the Gram matrix of what is left of them is ``S = Y^H Y - C^H W``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.krylov.sums import Chain, Setting, Side
from skerch_ooc.algebra.linalg import hermitian_part, triangular_inverse
from skerch_ooc.base.arrays import Array


def metric_root(metric: Array) -> Array:
    """Returns ``B (K, r)`` with ``B^H M B = I``: from the Cholesky factor of the scaled columns.

    It is upper triangular. Where the scaled columns depend on each other it is made of eigenvectors
    instead, and directions are left out, so that ``r < K``.
    """
    scale = 1.0 / np.sqrt(np.maximum(np.diagonal(metric).real, np.finfo(np.float64).tiny))
    scaled = hermitian_part(metric * scale[:, None] * scale)
    try:
        upper = np.linalg.cholesky(scaled).conj().T
        if np.diagonal(upper).real.min(initial=1.0) > _DEPENDENT:
            return np.asarray(scale[:, None] * triangular_inverse(upper))
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(scaled)
    # One at least, so that a root that is square is triangular.
    kept = (values > _DEPENDENT**2) & (np.arange(len(values)) > 0)
    return np.asarray(scale[:, None] * (vectors[:, kept] / np.sqrt(values[kept])))


def largest(gram: Array) -> float:
    """The largest eigenvalue of a Gram matrix; 0 if it is empty."""
    return max(float(np.linalg.eigvalsh(hermitian_part(gram))[-1]), 0.0) if len(gram) else 0.0


@dataclass(frozen=True)
class Family:
    """The blocks of one side.

    Attributes:
        places: Which columns of the family each block is, by its number.
        metric: ``M``.
        root: ``B`` with ``B^H M B = I``.
        measured: False as long as ``Omega^H Omega`` is not.
    """

    places: Mapping[int, slice]
    metric: Array
    root: Array
    measured: bool = True

    @property
    def size(self) -> int:
        """How many columns it has."""
        return len(self.metric)

    @property
    def rank(self) -> int:
        """How many of them are independent."""
        return int(self.root.shape[1])

    @property
    def is_triangular(self) -> bool:
        """Whether the root is, so that its coordinates go block by block."""
        return self.rank == self.size

    def coordinates(self, w: Array) -> Array:
        """``B^H W`` for ``W = F^H Y``; ``W`` may have the rows of the first blocks only.

        ``||Y||^2 - ||B^H W||^2`` is what the blocks leave of a column.
        """
        root = self.root
        if self.is_triangular:
            # The root of the first blocks is the leading part of the root of all.
            root = root[: len(w), : len(w)]
        elif len(w) < self.size:
            root = metric_root(self.metric[: len(w), : len(w)])
        return np.asarray(root.conj().T @ w)

    def coefficients(self, w: Array) -> Array:
        """``C = M^-1 W`` for ``W = F^H Y``."""
        return np.asarray(self.root @ self.coordinates(w))


def _family(chain: Chain, side: Side) -> Family:
    places, widths = {}, 0
    for k in chain.members(side):
        places[k] = slice(widths, widths + chain.blocks[k - 1].width)
        widths += chain.blocks[k - 1].width
    start = next((each.start for each in chain.rounds if each.start is not None), None)
    metric = np.zeros((widths, widths), _double(chain))
    for k, place in places.items():
        rows = chain.blocks[k - 1].metric
        if rows is None:
            rows = chain.setting.height(side) * np.eye(place.stop) if start is None else start
        metric[place, : place.stop] = rows
        metric[: place.stop, place] = rows.conj().T
        metric[place, place] = hermitian_part(rows[:, place])
    return Family(places, metric, metric_root(metric), start is not None or 1 not in places)


def _double(chain: Chain) -> np.dtype[np.generic]:
    return np.result_type(np.float64, *(each.squares for each in chain.rounds))


@dataclass(frozen=True)
class Space:
    """What is known of the operator from the rounds.

    Attributes:
        chain: The rounds, and the blocks that they applied the operator to.
        families: By side; those of a Hermitian operator are one.
        middle: ``U^H A V``, ``U`` the family on the range, ``V`` the one on the corange.
        scale: Lower estimate of the squared norm of the operator.
    """

    chain: Chain
    families: Mapping[Side, Family]
    middle: Array
    scale: float

    @classmethod
    def of(cls, chain: Chain) -> Space:
        """Puts together what was measured."""
        chain = chain.upto(len(chain.rounds))
        corange = _family(chain, "corange")
        rows = corange if chain.setting.hermitian else _family(chain, "range")
        families: dict[Side, Family] = {"corange": corange, "range": rows}
        return cls(chain, families, _middle(chain, families), _scale(chain, families))

    @property
    def setting(self) -> Setting:
        """What was known beforehand."""
        return self.chain.setting

    def family_of(self, number: int) -> Family:
        """The family that a block is in."""
        return self.families[self.chain.blocks[number - 1].side]

    def products_side(self, number: int) -> Side:
        """The side on which the products of a round lie."""
        return self.setting.across(self.chain.blocks[number - 1].side)

    def sums(self, number: int) -> Array:
        """``F^H Y`` of a round with all blocks ``F`` whose product with it was measured.

        These are the blocks that existed, and those made while the round was open.
        """
        side = self.products_side(number)
        later = [
            self.chain.blocks[k - 1].products[number]
            for k in self.families[side].places
            if k > number and number in self.chain.blocks[k - 1].products
        ]
        return np.concatenate([self.chain.rounds[number - 1].family, *later])

    def coordinates(self, number: int) -> Array:
        """Those of a round's products in their family, as far as they were measured."""
        return self.families[self.products_side(number)].coordinates(self.sums(number))

    def left_over(self, number: int, other: int | None = None) -> Array:
        """Gram matrix of what the family leaves of a round's products, with another's if given."""
        own = self.coordinates(number)
        if other is None or other == number:
            return hermitian_part(self.chain.rounds[number - 1].squares - own.conj().T @ own)
        early, late = sorted((number, other))
        gram = self.chain.rounds[late - 1].others[early]
        gram = gram if early == number else gram.conj().T
        return np.asarray(gram - own.conj().T @ self.coordinates(other))

    def open_rounds(self, side: Side) -> tuple[int, ...]:
        """The rounds with products on a side that no block was made of."""
        return self.chain.open_rounds(side)

    def narrowed(self, side: Side) -> list[int]:
        """The rounds on a side of which a block was made that does not hold all of them."""
        return [
            block.source.round
            for block in self.chain.blocks
            if block.side == side
            and block.source
            and block.source.round > 0
            and block.width < self.chain.blocks[block.source.round - 1].width
        ]

    def residuals(self, side: Side, coefficients: Array) -> Array:
        """Norms of what the family on a side leaves of the operator's products with vectors.

        Args:
            side: Where the products lie.
            coefficients: The vectors, in the columns of the family across.
        """
        opened = self.open_rounds(side)
        squares = np.zeros(coefficients.shape[1])
        noise = np.zeros_like(squares)
        for i in opened:
            part = coefficients[self.family_of(i).places[i]]
            for j in opened:
                other = coefficients[self.family_of(j).places[j]]
                left = self.left_over(i, j)
                squares += _forms(part, left, other)
                if i == j:
                    noise += self._noise(i, part, left)
        # A sum of squares: what is below zero is rounding, and must not hide what else is left.
        squares = np.maximum(squares, 0.0)
        for i in self.narrowed(side):
            part, left = coefficients[self.family_of(i).places[i]], self.left_over(i)
            squares += np.maximum(_forms(part, left, part), 0.0)
            noise += self._noise(i, part, left)
        return np.asarray(np.sqrt(squares + noise))

    def _noise(self, number: int, part: Array, left: Array) -> Array:
        """What rounding of the sums leaves of ``Y^H Y - C^H W``.

        Where products are far larger than what is left of them, as those with one huge value are,
        that shows: squared norms come out below zero, of which rounding is the only cause.
        """
        squares = np.diagonal(self.chain.rounds[number - 1].squares).real
        below = -np.diagonal(left).real / np.maximum(squares, np.finfo(np.float64).tiny)
        share = max(_SUMS_ROUND, 2 * float(below.max(initial=0.0)))
        return np.asarray(share * (squares @ np.abs(part) ** 2))


def _forms(left: Array, gram: Array, right: Array) -> Array:
    return np.asarray(np.sum(left.conj() * (gram @ right), axis=0).real)


def _middle(chain: Chain, families: Mapping[Side, Family]) -> Array:
    rows, columns = families["range"], families["corange"]
    middle = np.zeros((rows.size, columns.size), rows.metric.dtype)
    for k, (block, products) in enumerate(zip(chain.blocks, chain.rounds, strict=True), 1):
        w, seen = products.family, slice(len(products.family))
        place = families[block.side].places[k]
        if chain.setting.hermitian or block.side == "corange":
            middle[seen, place] = w
        if chain.setting.hermitian or block.side == "range":
            middle[place, seen] = w.conj().T
        if chain.setting.hermitian:
            middle[place, place] = hermitian_part(w[place])
    return middle


def _scale(chain: Chain, families: Mapping[Side, Family]) -> float:
    scales = [0.0]
    for k, (block, products) in enumerate(zip(chain.blocks, chain.rounds, strict=True), 1):
        place = families[block.side].places[k]
        if block.width and (block.metric is not None or families[block.side].measured):
            root = metric_root(families[block.side].metric[place, place])
            scales.append(largest(root.conj().T @ products.squares @ root))
    return max(scales)


_DEPENDENT = 1e-5
_SUMS_ROUND = 4 * float(np.finfo(np.float64).eps)
