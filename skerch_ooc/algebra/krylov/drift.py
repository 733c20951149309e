"""Whether the operator was the same in all rounds, told by sums that are measured anyway.

Within a round of a Hermitian operator ``Q_k^H A Q_k`` has to be Hermitian. Between rounds ``Q_j^H
(A Q_k)`` has to be ``(A Q_j)^H Q_k``: the left side is measured in round ``k``, and ``A Q_j`` was
resolved into the basis in round ``j``. The asymmetry alone sees nothing of an operator that is
another one from some round on.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.krylov.space import Space
from skerch_ooc.base.arrays import Array


@dataclass(frozen=True)
class Drift:
    """How far the products of a round contradict themselves and those of earlier rounds.

    The figures are root mean squares over entries ``x^H A y``, relative to ``||A x||`` and ``||A
    y||``, ``x`` and ``y`` of norm 1, and to a 30th of the operator's norm: no product is rounded
    as if the operator were smaller than it is.

    Attributes:
        round: Its number.
        within: The asymmetry of its own; 0 for a general operator.
        between: The largest figure with an earlier round; 0 if there is none to compare with.
        limit: What is not to be explained by rounding, from the figures of the rounds before.
    """

    round: int
    within: float
    between: float
    limit: float

    @property
    def stands_out(self) -> bool:
        """Whether the operator drifted."""
        return max(self.within, self.between) > self.limit


def drifts(space: Space) -> tuple[Drift, ...]:
    """Compares each round that has products with itself and with those before it."""
    known = {
        k: space.coordinates(k) for k, block in enumerate(space.chain.blocks, 1) if block.width
    }
    found: list[Drift] = []
    for k in known:
        limit = _limit(found, space.setting.epsilon)
        found.append(Drift(k, _within(space, k), _between(space, k, known), limit))
    return tuple(found)


def _limit(before: list[Drift], epsilon: float) -> float:
    figures = [max(each.within, each.between) for each in before if not each.stands_out]
    figures = [figure for figure in figures if figure]
    if not figures:
        return _gross(epsilon)
    return max(_LIMIT * statistics.median(figures), _ROUNDING * epsilon)


def _gross(epsilon: float) -> float:
    """Returns the limit where there are no figures before: what rounding never explains."""
    # Eight times what a probe allows two runs of one product.
    return 8 * epsilon * (_OF_DOUBLE if epsilon < _DOUBLE else _OF_SINGLE)


def _within(space: Space, number: int) -> float:
    if not space.setting.hermitian:
        return 0.0
    square = _row(space, number, number)
    return _relative(space, square - square.conj().T, number, number)


def _between(space: Space, number: int, known: dict[int, Array]) -> float:
    family, block = space.family_of(number), space.chain.blocks[number - 1]
    own = family.root.conj().T @ family.metric[:, family.places[number]]
    # What was dropped of a round's products is larger than rounding.
    vague = space.narrowed(block.side) if family.is_triangular else list(known)
    figures = [0.0]
    # These blocks lie where the products of this one do, so that theirs lie where this one does.
    for j in space.families[space.products_side(number)].places:
        if j >= number or j not in known:
            continue
        if j in block.products:  # (A Q_j)^H Q_k was measured while round j was open,
            foretold = block.products[j].conj().T
        elif j not in vague:  # or follows from what A Q_j was resolved into.
            foretold = known[j].conj().T @ own[: len(known[j])]
        else:
            continue
        figures.append(_relative(space, _row(space, j, number) - foretold, j, number))
    return max(figures)


def _row(space: Space, earlier: int, number: int) -> Array:
    """``Q_j^H A Q_k``."""
    return space.chain.rounds[number - 1].family[space.family_of(earlier).places[earlier]]


def _relative(space: Space, difference: Array, row: int, column: int) -> float:
    (rows, above), (columns, beside) = _norms(space, row), _norms(space, column)
    squares = above[:, None] ** 2 + beside**2 + _OF_NORM**2 * space.scale
    size = np.sqrt(squares) * rows[:, None] * columns
    return float(np.sqrt(np.mean((np.abs(difference) / np.where(size > 0, size, 1.0)) ** 2)))


def _norms(space: Space, number: int) -> tuple[Array, Array]:
    """Norms of a block's columns, and of the operator on them when they have norm 1."""
    family = space.family_of(number)
    norms = np.sqrt(np.diagonal(family.metric).real[family.places[number]])
    products = np.sqrt(np.diagonal(space.chain.rounds[number - 1].squares).real)
    return norms, products / norms


_OF_NORM = 1 / 30
_OF_SINGLE, _OF_DOUBLE, _DOUBLE = 2**8, 2**16, 1e-10
_LIMIT = 30
_ROUNDING = 8
