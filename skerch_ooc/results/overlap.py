"""Overlap of subspaces: the leading vectors of two results, or of one result and coordinates.

Both subspaces are compared by their principal angles (Bjorck and Golub 1973, "Numerical methods for
computing angles between linear subspaces"): the singular values of ``U_a^H U_b`` are the cosines.
Coordinates are the unit vectors of a set of rows, such as the parameters that a pruning mask keeps
(Fernandez, Schneider, Mahsereci and Hennig 2025, arXiv 2504.14701, compare these with eigenspaces
of Hessians, and choose this overlap among such figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError, shown
from skerch_ooc.base.figures import short
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.indexing import Selection, select
from skerch_ooc.results.lowrank import LowRank
from skerch_ooc.results.vectors import Tall, adjoint_times, gather

_ROWS_AT_ONCE = 4096
_FIRST = 5


@dataclass(frozen=True)
class Overlap:
    """How much two subspaces have in common.

    Attributes:
        cosines: Of the principal angles, descending, ``(min(k, m),)``.
        dimensions: Those of the two subspaces, ``k`` and ``m``.
        n: That of the space.
    """

    cosines: Array
    dimensions: tuple[int, int]
    n: int

    @property
    def value(self) -> float:
        """The mean squared cosine, from 0 for orthogonal ones to 1 if one lies in the other."""
        return float(np.mean(self.cosines**2))

    @property
    def at_random(self) -> float:
        """The value to be expected of random subspaces of these dimensions."""
        return max(self.dimensions) / self.n

    @never_raising
    def _repr_html_(self) -> str:
        angles = ", ".join(f"{angle:.4g}" for angle in self.cosines[:_FIRST])
        rows = [
            ("overlap", f"{self.value:.6f}, of 0 to 1; {short(self.at_random)} at random"),
            ("dimensions", f"{self.dimensions[0]} and {self.dimensions[1]} of {self.n}"),
            ("first cosines", angles),
        ]
        return table("Overlap of two subspaces", rows)

    def as_json(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return {
            "value": self.value,
            "at_random": self.at_random,
            "cosines": self.cosines.tolist(),
            "dimensions": list(self.dimensions),
            "n": self.n,
        }


@tells_keywords
def overlap(a: LowRank, b: Any, *, rank: int | None = None) -> Overlap:
    """Compares the leading vectors of a result with those of another, or with coordinates.

    It streams over the vectors, by rows, and makes no product.

    Args:
        a: A result; of an ``Svd`` its left vectors count.
        b: Another result of as many rows; or coordinates: a list, array or tensor of integers or
            booleans, which name rows.
        rank: How many leading vectors of each result; by default all.

    Raises:
        UsageError: If heights differ, a result has no vectors, or there are no coordinates.
        IndexError: If coordinates are out of range, or mean nothing.
        CorruptError: If a tile was altered.
    """
    height, mine = a.shape[0], _rank(a, rank)
    if not isinstance(b, LowRank):
        chosen = select(b, height, 0)
        wanted = np.unique(np.asarray(chosen.wanted))
        if len(wanted) == 0:
            raise UsageError(f"b = {shown(b)} names no coordinates: give at least one")
        cosines = _cosines_with_rows(a.left_vectors, wanted, mine)
        return Overlap(cosines[: min(mine, len(wanted))], (mine, len(wanted)), height)
    if b.shape[0] != height:
        raise UsageError(
            f"the vectors of a have {height} rows, those of b {b.shape[0]}; give results of "
            "operators of the same height"
        )
    theirs = _rank(b, rank)
    inner = inner_products(a.left_vectors, b.left_vectors, theirs)[:mine]
    return overlap_of(inner, height)


def inner_products(a: Tall, b: Tall, columns: int) -> Array:
    """Forms the inner products of all vectors of ``a`` with leading ones of ``b``, by one stream.

    Raises:
        CorruptError: If a tile was altered.
    """
    wanted = Selection(range(columns))

    def rows_of(rows: Range) -> Array:
        picked = gather(b, Selection(range(rows.start, rows.stop)), wanted)
        return picked.astype(b.wide_dtype)

    return adjoint_times(a, rows_of)


def overlap_of(inner: Array, height: int) -> Overlap:
    """Makes the overlap of two subspaces of their orthonormal vectors' inner products.

    Args:
        inner: The inner products, ``(k, m)``.
        height: Of the vectors.
    """
    cosines = _clipped(np.linalg.svd(inner, compute_uv=False))
    return Overlap(cosines, (inner.shape[0], inner.shape[1]), height)


def _rank(result: LowRank, rank: int | None) -> int:
    """Returns how many vectors of a result count."""
    found = result.rank if rank is None else min(rank, result.rank)
    if found < 1:
        raise UsageError(f"rank = {rank}: {result.path} has {result.rank} vectors; give at least 1")
    return found


def _cosines_with_rows(tall: Tall, rows: Array, rank: int) -> Array:
    """Returns the cosines of leading vectors with unit vectors: singular values of their rows."""
    gram = np.zeros((rank, rank), tall.wide_dtype)
    columns = Selection(range(rank))
    for piece in cut(Range(0, len(rows)), _ROWS_AT_ONCE):
        part = gather(tall, Selection(rows[piece.slice]), columns).astype(tall.wide_dtype)
        gram += part.conj().T @ part
    squares = np.linalg.eigvalsh(gram)[::-1]
    return _clipped(np.sqrt(np.maximum(squares, 0.0)))


def _clipped(cosines: Array) -> Array:
    """Cuts what rounding has left above 1."""
    return np.minimum(cosines, 1.0)
