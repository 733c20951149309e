"""Drift: shards that were not made by the same operator.

For a Hermitian ``A`` the matrix ``H = N^H A N`` is Hermitian, and block ``(s, t)`` of ``H`` is
computed from the products of shard ``t``, block ``(t, s)`` from those of shard ``s``. If the
operator changed between the two by ``E``, their difference has entries of size ``||E||_F``.
Rounding gives all pairs about the same, small asymmetry; pairs that stand out disagree.

For a general ``A`` the same holds of ``Psi^H (A Omega)``, from the shards of the right sketch, and
``((A^H Psi)^H Omega)``, from those of the left one: pairs of one shard of each can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import DriftError
from skerch_ooc.partition import Range

Array = npt.NDArray[Any]

FACTOR = 30.0
"""A pair of shards disagrees if its asymmetry is this many times the typical one."""

_SHOWN = 8


def pair_asymmetry(cross: Array, places: Sequence[Range]) -> Array:
    """The root mean square of each block of ``H - H^H``.

    Args:
        cross: ``H``, ``(c, c)``.
        places: The columns of each shard, in order and without gaps.

    Returns:
        ``(s, s)``, symmetric.
    """
    square = np.abs(cross - cross.conj().T) ** 2
    starts = [place.start for place in places]
    sizes = np.array([len(place) for place in places], np.float64)
    blocks = np.add.reduceat(np.add.reduceat(square, starts, axis=0), starts, axis=1)
    return np.asarray(np.sqrt(blocks / np.outer(sizes, sizes)))


def pair_difference(
    there: Array, back: Array, rows: Sequence[Range], columns: Sequence[Range]
) -> Array:
    """The root mean square of each block of ``N^H A M``, computed in two ways.

    Args:
        there: ``N^H (A M)``, ``(n, m)``.
        back: ``M^H (A^H N)``, ``(m, n)``.
        rows: The columns of ``N`` of each shard of ``A^H N``, in order and without gaps.
        columns: The columns of ``M`` of each shard of ``A M``.

    Returns:
        ``(s, s)``, symmetric, for the shards of ``A^H N`` and then those of ``A M``; NaN where two
        cannot be compared.
    """
    square = np.abs(there - back.conj().T) ** 2
    blocks = np.add.reduceat(square, [place.start for place in rows], axis=0)
    blocks = np.add.reduceat(blocks, [place.start for place in columns], axis=1)
    sizes = [np.array([len(place) for place in places], float) for places in (rows, columns)]
    pairs = np.full((len(rows) + len(columns),) * 2, np.nan)
    pairs[: len(rows), len(rows) :] = np.sqrt(blocks / np.outer(*sizes))
    pairs[len(rows) :, : len(rows)] = pairs[: len(rows), len(rows) :].T
    return pairs


def typical_asymmetry(pairs: Array, floor: float) -> float:
    """What rounding does: the lower quartile of the pairs, so that even drift of half is seen."""
    off_diagonal = pairs[np.triu_indices(len(pairs), 1)]
    diagonal = np.diagonal(pairs)
    sample = np.concatenate([off_diagonal[~np.isnan(off_diagonal)], diagonal[diagonal > 0]])
    return max(floor, float(np.quantile(sample, 0.25, method="lower"))) if len(sample) else floor


def outliers(disagree: Array, weights: Array) -> list[int]:
    """The fewest-columns set, by greedy choice, without which no pair disagrees.

    Args:
        disagree: Which pairs do, ``(s, s)``, symmetric; the diagonal marks a shard at odds with
            itself.
        weights: Number of columns of each shard.

    Returns:
        Their numbers, in order.
    """
    left = disagree.copy()
    chosen = []
    while left.any():
        burden = left @ weights
        worst = len(burden) - 1 - int(np.argmax(burden[::-1]))
        chosen.append(worst)
        left[worst, :] = left[:, worst] = False
    return sorted(chosen)


def require_one_operator(
    pairs: Array, scale: float, placed: Sequence[tuple[Range, Path]], dtype: str
) -> None:
    """Refuses a sketch whose shards were made by different operators.

    Args:
        pairs: How far the shards disagree, two by two, ``(s, s)``; NaN where that is not known.
        scale: The operator's norm.
        placed: The columns of each shard, in this order, and its path.
        dtype: Of the products.

    Raises:
        DriftError: Naming the shards.
    """
    typical = typical_asymmetry(pairs, float(np.finfo(dtype).eps) * scale)
    pairs = np.nan_to_num(pairs)
    weights = np.array([len(place) for place, _ in placed])
    named = outliers(pairs > FACTOR * typical, weights)
    if not named:
        return
    worst = float(pairs[named].max())
    paths = [str(placed[number][1]) for number in named]
    shown = "\n  ".join(paths[:_SHOWN]) + (f"\n  and {len(paths) - _SHOWN} more" if
                                           len(paths) > _SHOWN else "")  # fmt: skip
    doubt = (
        "\nAs there are only two shards that disagree, it may as well be the other one."
        if len(placed) == 2
        else ""
    )
    raise DriftError(
        f"the operator changed while it was measured: {len(named)} of {len(placed)} shards do not "
        f"fit the others (asymmetry {worst / max(scale, 1e-300):.1e} of the operator's norm, "
        f"typical {typical / max(scale, 1e-300):.1e}):\n  {shown}{doubt}\n"
        "Find out what changed (weights, data, dropout, a shuffled loader), restore it, remove "
        "these shards, and measure them again"
    )
