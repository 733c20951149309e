"""Drift: finds shards that were not made by the same operator, by products computed twice.

For a Hermitian ``A`` the matrix ``H = N^H A N`` is Hermitian, and block ``(s, t)`` of ``H`` is
computed from the products of shard ``t``, block ``(t, s)`` from those of shard ``s``. If the
operator changed between the two by ``E``, their difference has entries of size ``||E||_F``.
Rounding gives all pairs about the same, small asymmetry; pairs that stand out disagree.

For a general ``A`` the same holds of ``Psi^H (A Omega)``, from the shards of the right sketch, and
``((A^H Psi)^H Omega)``, from those of the left one: pairs of one shard of each can be compared. As
no shard is compared with itself, a change between all of the right ones and all of the left ones
would make all pairs alike; so there no pair may differ by more than the probe allows.

With vectors of a basis, rounding does not affect all pairs alike: then that limit alone counts, and
entries are compared relative to what rounding can do to them. Its errors in ``A x`` are in
proportion to ``||A x||`` or, where that is small, to ``||A||_F`` times the norm of ``x``; and the
other vector multiplies them by its own norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array, tolerance
from skerch_ooc.base.errors import DriftError
from skerch_ooc.base.figures import short
from skerch_ooc.base.partition import Range, cut

FACTOR = 30.0
"""A pair of shards disagrees if its asymmetry is this many times the typical one."""

ALLOWED = 8.0
"""Where nothing is typical, a pair disagrees if its difference exceeds so many tolerances of the
probe (which itself allows 4, for fewer entries)."""

_SHOWN = 8
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Applied:
    """Vectors that the operator was applied to, by their norms.

    Attributes:
        norms: Their norms, relative to random vectors, which have 1, ``(n,)``.
        products: The norms of their products, ``(n,)``.
        least: What is known of the operator's Frobenius norm from other products.
    """

    norms: Array
    products: Array
    least: float = 0.0

    @property
    def operator_norm(self) -> float:
        """An estimate of the operator's Frobenius norm, from the norms of the products."""
        # ||A||_F^2 is the mean of ||A x||^2 over random x, and its sum over a basis of the range.
        squares, random = self.products**2, self.norms == 1
        found = math.sqrt(float(squares[random].mean() if random.any() else squares.sum()))
        return max(found, self.least)


def relative_difference(there: Array, back: Array, rows: Applied, columns: Applied) -> Array:
    """Returns the difference of ``N^H A M`` computed in two ways, relative to what it is made of.

    Args:
        there: ``N^H (A M)``, ``(n, m)``.
        back: ``M^H (A^H N)``, ``(m, n)``.
        rows: The columns of ``N``, to which ``A^H`` was applied.
        columns: The columns of ``M``, to which ``A`` was applied.

    Returns:
        The moduli, ``(n, m)``.
    """
    scale = columns.operator_norm
    sizes = [np.hypot(some.products, scale * some.norms) for some in (rows, columns)]
    found = np.empty(there.shape)
    # Some rows at a time, so that temporary arrays stay small.
    for some in cut(Range(0, len(there)), _ROWS_AT_ONCE):
        part = some.slice
        size = np.outer(rows.norms[part], sizes[1]) + np.outer(sizes[0][part], columns.norms)
        difference = np.abs(there[part] - back[:, part].conj().T)
        # Between random vectors the size is sqrt(8) ||A||_F, so this is relative to ||A||_F there.
        np.divide(difference, np.where(size > 0, size / math.sqrt(8), 1), out=found[part])
    return found


def pair_asymmetry(difference: Array, places: Sequence[Range]) -> Array:
    """Returns the root mean square of each block of ``H - H^H``: one for each pair of shards.

    Args:
        difference: Its moduli, ``(c, c)``.
        places: The columns of each shard, in order and without gaps.

    Returns:
        ``(s, s)``, symmetric.
    """
    return _block_means(difference, places, places)


def pair_difference(difference: Array, rows: Sequence[Range], columns: Sequence[Range]) -> Array:
    """Returns the root mean square of each block of the difference of ``N^H A M`` in two ways.

    Args:
        difference: Its moduli, ``(n, m)``.
        rows: The columns of ``N`` of each shard of ``A^H N``, in order and without gaps.
        columns: The columns of ``M`` of each shard of ``A M``.

    Returns:
        ``(s, s)``, symmetric, for the shards of ``A^H N`` and then those of ``A M``; NaN where two
        cannot be compared.
    """
    pairs = np.full((len(rows) + len(columns),) * 2, np.nan)
    pairs[: len(rows), len(rows) :] = _block_means(difference, rows, columns)
    pairs[len(rows) :, : len(rows)] = pairs[: len(rows), len(rows) :].T
    return pairs


def _block_means(difference: Array, rows: Sequence[Range], columns: Sequence[Range]) -> Array:
    blocks = np.add.reduceat(difference**2, [place.start for place in rows], axis=0)
    blocks = np.add.reduceat(blocks, [place.start for place in columns], axis=1)
    sizes = [np.array([len(place) for place in places], float) for places in (rows, columns)]
    return np.asarray(np.sqrt(blocks / np.outer(*sizes)))


def typical_asymmetry(pairs: Array, floor: float) -> float:
    """Returns the asymmetry that rounding causes: the lower quartile of all pairs, or the floor."""
    # Not the median: if half of the shards drifted, about half of all pairs disagree.
    off_diagonal = pairs[np.triu_indices(len(pairs), 1)]
    diagonal = np.diagonal(pairs)
    sample = np.concatenate([off_diagonal[~np.isnan(off_diagonal)], diagonal[diagonal > 0]])
    return max(floor, float(np.quantile(sample, 0.25, method="lower"))) if len(sample) else floor


def outliers(disagree: Array, weights: Array) -> list[int]:
    """Chooses shards, few columns in all and greedily, without which no pair disagrees.

    Args:
        disagree: Which pairs disagree, ``(s, s)``, symmetric; the diagonal marks a shard that
            disagrees with itself.
        weights: Number of columns of each shard.

    Returns:
        The numbers of the chosen shards, ascending.
    """
    # The next one is at odds with the most columns; of equals it is the last.
    left = disagree.copy()
    chosen = []
    while left.any():
        burden = left @ weights
        worst = len(burden) - 1 - int(np.argmax(burden[::-1]))
        chosen.append(worst)
        left[worst, :] = left[:, worst] = False
    return sorted(chosen)


def require_one_operator(
    pairs: Array, placed: Sequence[tuple[Range, Path]], dtype: str, alike: bool = True
) -> None:
    """Refuses a sketch whose shards were made by different operators.

    Args:
        pairs: How far the shards disagree, two by two, relative to the operator's norm, ``(s, s)``;
            NaN where that is not known.
        placed: The columns of each shard, in the order of ``pairs``, and its path.
        dtype: The dtype of the products.
        alike: Whether rounding affects all pairs about equally.

    Raises:
        DriftError: If shards disagree; it names them.
    """
    known = ~np.isnan(pairs)
    with_itself = known.diagonal().any()
    weights = np.array([len(place) for place, _ in placed])
    floor = float(np.finfo(dtype).eps)
    typical = typical_asymmetry(pairs, floor)
    limit, expected = np.full(pairs.shape, FACTOR * typical), f"typical {short(typical)}"
    allowed = ALLOWED * tolerance(dtype)
    # Single entries scatter more than the mean of many.
    scatter = 1 + 4 / np.sqrt(np.outer(weights, weights))
    if not alike or (allowed < FACTOR * typical and not with_itself):
        limit, expected = allowed * scatter, f"allowed {short(allowed)}"
    else:
        # Where most products are exact or nearly so, as those of integers and of sparse matrices,
        # they do not tell what rounding does to the others.
        limit = np.maximum(limit, FACTOR * floor * scatter)
    # What is not known disagrees with nothing.
    pairs = np.nan_to_num(pairs)
    disagree = pairs > limit
    named = outliers(disagree, weights)
    if not named:
        return
    worst = float(pairs[named].max())
    paths = [str(placed[number][1]) for number in named]
    shown = "\n  ".join(paths[:_SHOWN]) + (f"\n  and {len(paths) - _SHOWN} more" if
                                           len(paths) > _SHOWN else "")  # fmt: skip
    doubt = ""
    if len(placed) == 2:
        doubt = "\nAs there are only two shards that disagree, it may as well be the other one."
    elif not alike or (not with_itself and (len(named) > 1 or disagree[known].all())):
        # Of two sides, either may be the wrong one, or some of each.
        doubt = (
            "\nIt may as well be those that they disagree with: if the same is said once these are "
            "measured again, remove all shards."
        )
    raise DriftError(
        f"the operator changed while it was measured: {len(named)} of {len(placed)} shards do not "
        f"fit the others (asymmetry {short(worst)} of the operator's norm, {expected}):\n"
        f"  {shown}{doubt}\n"
        "Find out what changed (weights, data, dropout, a shuffled loader), restore it, remove "
        "these shards, and measure them again"
    )
