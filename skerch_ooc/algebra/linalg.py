"""Small dense algebra, in double precision, on matrices of the size of the sketch's width.

Decompositions are torch's: twice as fast as numpy's own, and they work on aligned copies, so that
their bits do not depend on where an array happens to lie. torch is loaded when one is called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array


def hermitian_part(matrix: Array) -> Array:
    """``(M + M^H) / 2``."""
    return 0.5 * (matrix + matrix.conj().T)


def mirrored(upper: Array) -> Array:
    """The Hermitian matrix whose upper triangle is given; what is below is ignored."""
    strict = np.triu(upper, 1)
    return strict + strict.conj().T + np.diag(np.diagonal(upper).real)


def gram_root(gram: Array) -> Array:
    """An ``R`` with ``R^H R`` the given Gram matrix, ``(c, c)``.

    Cholesky's, which is upper triangular; where rounding made the matrix indefinite, one from its
    eigenvalues, of which negative ones count as zero.
    """
    try:
        return np.ascontiguousarray(np.linalg.cholesky(gram).conj().T)
    except np.linalg.LinAlgError:
        values, vectors = eigh(gram)
        return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.conj().T)


def eigh_by_magnitude(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues in descending magnitude and their vectors, of a Hermitian matrix ``(m, m)``."""
    values, vectors = eigh(matrix)
    order = np.argsort(-np.abs(values), kind="stable")
    return values[order], vectors[:, order]


def count_above(magnitudes: Array, floor: float) -> int:
    """How many leading entries of a descending sequence are above ``floor`` times the first."""
    if len(magnitudes) == 0 or magnitudes[0] <= 0:
        return 0
    return int(np.count_nonzero(magnitudes > floor * magnitudes[0]))


def triangular_inverse(upper: Array) -> Array:
    """The inverse of an upper triangular matrix without zeros on its diagonal.

    By halves, so that nearly all of the ``n^3 / 3`` operations are matrix products; numpy itself
    has only the general inverse, at six times the cost. The inverse of the leading ``c`` by ``c``
    block is the leading block of the inverse.
    """
    n = len(upper)
    if n <= _SMALL_TRIANGLE:
        return np.triu(np.linalg.inv(np.triu(upper)))
    half = n // 2
    inverse = np.zeros_like(upper)
    inverse[:half, :half] = triangular_inverse(upper[:half, :half])
    inverse[half:, half:] = triangular_inverse(upper[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ (upper[:half, half:] @ inverse[half:, half:])
    return inverse


def triangular_factor(matrix: Array) -> Array:
    """``R`` of ``Q R``; the factor ``Q`` is not formed."""
    import torch

    return np.asarray(torch.linalg.qr(_tensor(matrix), mode="r").R.numpy())


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues in ascending order, and the vectors, of a Hermitian matrix ``(m, m)``."""
    import torch

    values, vectors = torch.linalg.eigh(_tensor(matrix))
    return values.numpy(), vectors.resolve_conj().numpy()


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """``U``, the singular values in descending order, and ``V^H``, without what is redundant."""
    import torch

    u, s, vh = torch.linalg.svd(_tensor(matrix), full_matrices=False)
    return u.resolve_conj().numpy(), s.numpy(), vh.resolve_conj().numpy()


def _tensor(matrix: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(matrix))


def spectral_norm(matrix: Array) -> float:
    """The largest singular value, by a few steps of the power method: low by some per cent.

    A fixed start keeps results reproducible. Fourth powers of entries come up: the matrix is scaled
    by a power of two, which changes no bit of the result, so that they do not overflow.
    """
    largest = float(np.abs(matrix).max(initial=0.0))
    if largest == 0:
        return 0.0
    exponent = math.frexp(largest)[1]
    matrix = matrix * math.ldexp(1.0, -exponent)
    vectors = np.random.default_rng(0).standard_normal((matrix.shape[1], _POWER_VECTORS))
    for _ in range(_POWER_STEPS):
        size = np.linalg.norm(vectors, axis=0)
        vectors = matrix.conj().T @ (matrix @ (vectors / np.where(size > 0, size, 1)))
    return math.ldexp(float(np.sqrt(np.linalg.norm(vectors, axis=0).max())), exponent)


def sandwich(left: Array, middle: Array, right: Array) -> Array:
    """``left middle right^H``; one product fewer if ``middle`` is diagonal, as it often is."""
    diagonal = np.diagonal(middle)
    if np.count_nonzero(middle) == np.count_nonzero(diagonal):
        k = len(diagonal)
        return np.asarray((left[:, :k] * diagonal) @ right[:, :k].conj().T)
    return np.asarray(left @ middle @ right.conj().T)


_SMALL_TRIANGLE = 64
_POWER_VECTORS = 4
_POWER_STEPS = 8
