"""Principal components: exact sums over centred rows, the spectrum of them, and what follows.

The rows of a matrix are summed piece by piece. Each piece is centred by its own mean, and pieces
are joined by the formula of Chan, Golub and LeVeque (1983), so that nothing is lost by cancellation
where means are large. What is kept of the centred rows ``X`` is either ``X^T X`` (one product, of
half the work) or the factor ``R`` of ``X = Q R``, which keeps small singular values, too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from skerch_ooc.algebra.linalg import eigh, svd, triangular_factor
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut

RESOLVED = 1e-7
"""Singular values below this share of the first are lost in ``X^T X``: it holds their squares."""

_FAR = 1e3
_BLOCK = 512
_SAMPLED = 64


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a centred matrix, and the directions that belong to them.

    Attributes:
        values: Descending, ``(r,)``.
        directions: Of unit length, one a row, ``(r, d)``, or the first of them.
        squares: The sum of the squares of all singular values.
        lost: From which value on they are below what was resolved; ``r`` if none is.
    """

    values: Array
    directions: Array
    squares: float
    lost: int


@dataclass(frozen=True)
class Moments(ABC):
    """What is kept of some rows.

    Attributes:
        count: How many rows, or the sum of their weights.
        mean: Of each column, ``(d,)``; weighted, if rows are.
        root: ``X^T X`` of the centred rows, or their triangular factor, or the squared norms of
            their columns; each row is multiplied by the square root of its weight.
    """

    count: float
    mean: Array
    root: Array

    @classmethod
    def of(cls, rows: Array, weights: Array | None = None) -> Self:
        """Takes dense rows in double precision, which are overwritten."""
        if weights is None:
            count, mean = len(rows), _centre(rows)
            return cls(count, mean, cls._root_of(rows))
        total, mean = _centre_weighted(rows, weights)
        return cls(total, mean, cls._root_of(rows))

    @staticmethod
    @abstractmethod
    def _root_of(rows: Array) -> Array:
        """What is kept of centred rows."""

    @classmethod
    @abstractmethod
    def of_sparse(cls, rows: Any, weights: Array | None = None) -> Self:
        """Takes compressed rows of SciPy, each of whose entries is stored once."""

    @abstractmethod
    def joined(self, other: Self) -> Self:
        """Returns the moments of the rows of both; may overwrite those of this one."""

    @property
    def is_finite(self) -> bool:
        """Whether no square has become too large."""
        return bool(np.isfinite(self.root).all())

    def spectrum(self, rows: int) -> Spectrum:
        """Returns all ``min(rows, d)`` singular values of so many centred rows."""
        raise NotImplementedError

    def _between(self, other: Moments) -> tuple[float, Array, Array]:
        """Returns the count and mean of both, and the row that their means add to the factor."""
        count = self.count + other.count
        apart = other.mean - self.mean
        # Rows of weight zero have no mean that counts.
        mean = self.mean + apart * (other.count / (count or 1))
        return count, mean, apart * math.sqrt(self.count * other.count / (count or 1))


class Gram(Moments):
    """Rows as ``X^T X``."""

    @classmethod
    def of(cls, rows: Array, weights: Array | None = None) -> Self:
        """See :class:`Moments`."""
        if weights is not None:
            return super().of(rows, weights)
        count, mean = len(rows), _roughly_centred(rows)
        rest = rows.mean(axis=0)
        gram = rows.T @ rows
        if np.any(2 * count * rest**2 > np.diagonal(gram)):
            # The few rows that were looked at were not like the others.
            rows -= rest
            gram = rows.T @ rows
        else:
            _add_outer(gram, rest, -count)
        return cls(count, mean + rest, gram)

    @staticmethod
    def _root_of(rows: Array) -> Array:
        return np.asarray(rows.T @ rows)

    @classmethod
    def of_sparse(cls, rows: Any, weights: Array | None = None) -> Self:
        """Takes sparse rows of SciPy; only columns that are full and far from zero are centred.

        Of a column with a share ``p`` of entries that are not zero the squared mean is at most
        ``p`` times the mean square: where some are not, subtracting it afterwards loses little.
        """
        rows = rows.astype(np.float64, copy=False)
        count, mean = _mean_of_sparse(rows, weights)
        scaled = rows if weights is None else rows.multiply(np.sqrt(weights)[:, None]).tocsr()
        gram = np.asarray((scaled.T @ scaled).todense())
        full = np.flatnonzero(are_far(mean, np.diagonal(gram) / (count or 1) - mean**2))
        _add_outer(gram, mean, -count)
        if len(full):
            dense = rows[:, full].toarray()
            if weights is None:
                mean[full] = _centre(dense)
            else:
                mean[full] = _centre_weighted(dense, weights)[1]
            gram[:, full] = scaled.T @ dense
            gram[full] = gram[:, full].T
            gram[np.ix_(full, full)] = dense.T @ dense
        return cls(count, mean, gram)

    def joined(self, other: Self) -> Self:
        """See :class:`Moments`."""
        count, mean, between = self._between(other)
        root = np.add(self.root, other.root, out=self.root)
        _add_outer(root, between, 1)
        return type(self)(count, mean, root)

    def spectrum(self, rows: int) -> Spectrum:
        """See :class:`Moments`."""
        return _of_squares(self.root, min(rows, len(self.mean)))


class ColumnSquares(Moments):
    """Of rows only the squared norm of each column, centred: what the variance is made of."""

    @staticmethod
    def _root_of(rows: Array) -> Array:
        return np.asarray(np.einsum("ij,ij->j", rows, rows))

    @classmethod
    def of_sparse(cls, rows: Any, weights: Array | None = None) -> Self:
        """See :class:`Moments`."""
        rows, width = rows.astype(np.float64, copy=False), rows.shape[1]
        count, mean = _mean_of_sparse(rows, weights)
        # Around the mean, as the difference of large squares has few digits.
        apart, of_entries = (rows.data - mean[rows.indices]) ** 2, None
        if weights is not None:
            of_entries = np.repeat(weights, np.diff(rows.indptr))
            apart *= of_entries
        absent = count - np.bincount(rows.indices, of_entries, width)
        return cls(count, mean, np.bincount(rows.indices, apart, width) + absent * mean**2)

    def joined(self, other: Self) -> Self:
        """See :class:`Moments`."""
        count, mean, between = self._between(other)
        return type(self)(count, mean, self.root + other.root + between**2)


class Factor(Moments):
    """Rows as the triangular factor ``R`` of ``X = Q R``."""

    @staticmethod
    def _root_of(rows: Array) -> Array:
        return triangular_factor(rows)

    @classmethod
    def of_sparse(cls, rows: Any, weights: Array | None = None) -> Self:
        """See :class:`Moments`: they are made dense."""
        return cls.of(rows.toarray().astype(np.float64), weights)

    @property
    def is_finite(self) -> bool:
        """See :class:`Moments`."""
        return bool(np.isfinite(np.square(self.root).sum()))

    def joined(self, other: Self) -> Self:
        """See :class:`Moments`."""
        count, mean, between = self._between(other)
        stacked = np.concatenate([self.root, other.root, between[None]])
        return type(self)(count, mean, triangular_factor(stacked))

    def spectrum(self, rows: int) -> Spectrum:
        """See :class:`Moments`."""
        most = min(rows, len(self.mean))
        _, values, directions = svd(self.root)
        found = min(most, len(values))
        return Spectrum(values[:found], directions[:found], float((values**2).sum()), found)


def _roughly_centred(rows: Array) -> Array:
    """Takes off all rows the mean of a few of them, spread over all, and returns it."""
    few = rows[:: max(1, len(rows) // _SAMPLED)]
    # Relative to one of them, so that the mean of equal entries is exact.
    mean = rows[0] + (few - rows[0]).mean(axis=0)
    rows -= mean
    return np.asarray(mean)


def are_far(mean: Array, variance: Array) -> Array:
    """Which columns are so far from zero that centring them at last would lose digits."""
    return np.asarray(mean**2 > _FAR * variance)


def _mean_of_sparse(rows: Any, weights: Array | None) -> tuple[float, Array]:
    """How many rows there are, or their weight, and the mean of each column."""
    if weights is None:
        total: Array = np.asarray(rows.sum(axis=0), np.float64).ravel()
        return rows.shape[0], np.asarray(total / rows.shape[0])
    count = float(weights.sum())
    return count, np.asarray(rows.T @ weights) / (count or 1)


def _add_outer(matrix: Array, row: Array, factor: float) -> None:
    """Adds ``factor row^T row``, in place and by blocks."""
    for piece in cut(Range(0, len(matrix)), _BLOCK):
        matrix[piece.slice] += (factor * row[piece.slice])[:, None] * row


def _of_squares(gram: Array, most: int) -> Spectrum:
    """Returns the spectrum of which a Gram matrix holds the squares."""
    squares, vectors = eigh(gram)
    values = np.sqrt(np.maximum(squares[::-1][:most], 0.0))
    lost = int(np.count_nonzero(values > RESOLVED * values[:1]))
    total = float(np.trace(gram))
    return Spectrum(values, np.ascontiguousarray(vectors.T[::-1][:most]), total, lost)


Columns = Callable[[], Iterator[tuple[Range, Array]]]
"""Some columns after the other, of all rows, in double precision; they may be overwritten."""


def of_few_rows(
    columns: Columns, shape: tuple[int, int], number: Callable[[Array], int],
    weights: Array | None = None,
) -> tuple[Array, Spectrum]:  # fmt: skip
    """Returns the mean and the spectrum of a matrix of few rows and many columns.

    It is found by ``X X^T`` of the centred rows, the smaller one.

    Args:
        columns: Gives the columns; asked twice.
        shape: Rows and columns.
        number: How many directions are wanted, given the squares of all values.
        weights: Of the rows.
    """
    gram, mean = np.zeros((shape[0], shape[0])), np.empty(shape[1])
    roots = None if weights is None else np.sqrt(weights)[:, None]
    for inside, block in columns():
        if weights is None:
            mean[inside.slice] = _centre(block)
        else:
            mean[inside.slice] = _centre_weighted(block, weights)[1]
        gram += block @ block.T
    found = _of_squares(gram, min(shape))
    wanted = number(found.values**2)
    # Rounding is divided by small values, too: the directions are made orthogonal, in their order.
    floor = RESOLVED * found.values[0] or 1.0
    back = found.directions[:wanted] / np.maximum(found.values[:wanted], floor)[:, None]
    across = np.empty((wanted, shape[1]))
    for inside, block in columns():
        block -= mean[inside.slice]
        across[:, inside.slice] = back @ (block if roots is None else block * roots)
    basis, factor = np.linalg.qr(across.T)
    directions = (basis * np.where(np.diagonal(factor) < 0, -1.0, 1.0)).T
    return mean, Spectrum(found.values, directions, found.squares, found.lost)


def _centre(block: Array) -> Array:
    """Takes off all rows their mean, and returns it."""
    mean = _roughly_centred(block)
    rest = block.mean(axis=0)
    block -= rest
    return np.asarray(mean + rest)


def _centre_weighted(block: Array, weights: Array) -> tuple[float, Array]:
    """Takes off all rows their weighted mean, and multiplies them by the roots of their weights.

    Returns:
        The sum of the weights, and the mean.
    """
    total, mean = float(weights.sum()), _roughly_centred(block)
    rest = weights @ block / (total or 1)
    block -= rest
    block *= np.sqrt(weights)[:, None]
    return total, np.asarray(mean + rest)


def with_signs(directions: Array) -> Array:
    """Returns directions so turned that the entry of largest magnitude of each is positive.

    That is scikit-learn's convention.
    """
    largest = np.argmax(np.abs(directions), axis=1)
    signs = np.where(directions[np.arange(len(directions)), largest] < 0, -1.0, 1.0)
    return np.asarray(directions * signs[:, None])


def components_for(share: float, ratios: Array) -> int:
    """Returns how many components explain more than a share of the variance; at most all."""
    found = int(np.searchsorted(np.cumsum(ratios), share, side="right")) + 1
    return min(found, len(ratios))
