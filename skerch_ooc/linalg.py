"""Small dense algebra, in double precision, on matrices of the size of the sketch's width."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def hermitian_part(matrix: Array) -> Array:
    """``(M + M^H) / 2``."""
    return 0.5 * (matrix + matrix.conj().T)


def mirrored(upper: Array) -> Array:
    """The Hermitian matrix whose upper triangle is given; what is below is ignored."""
    strict = np.triu(upper, 1)
    return strict + strict.conj().T + np.diag(np.diagonal(upper).real)


def eigh_by_magnitude(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues in descending magnitude and their vectors, of a Hermitian matrix ``(m, m)``."""
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(values), kind="stable")
    return values[order], vectors[:, order]


def count_above(magnitudes: Array, floor: float) -> int:
    """How many leading entries of a descending sequence are above ``floor`` times the first."""
    if len(magnitudes) == 0 or magnitudes[0] <= 0:
        return 0
    return int(np.count_nonzero(magnitudes > floor * magnitudes[0]))


def with_fixed_signs(vectors: Array) -> Array:
    """Columns turned so that the largest entry of each is real and positive."""
    rows = np.argmax(np.abs(vectors), axis=0)
    largest = vectors[rows, np.arange(vectors.shape[1])]
    size = np.abs(largest)
    turn = np.where(size > 0, largest.conj() / np.where(size > 0, size, 1), 1)
    return np.asarray(vectors * turn)
