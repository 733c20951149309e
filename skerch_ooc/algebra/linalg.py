"""Small dense linear algebra in double precision: eigh, svd, QR, Cholesky, triangular inverse.

The matrices are as wide as the sketch. Decompositions are torch's: they are twice as fast as
numpy's, and they work on aligned copies, so that their bits do not depend on where an array lies in
memory. torch is imported only when one of them is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut


def hermitian_part(matrix: Array) -> Array:
    """Returns ``(M + M^H) / 2``."""
    return 0.5 * (matrix + matrix.conj().T)


def mirrored(upper: Array) -> Array:
    """Returns the Hermitian matrix with the given upper triangle; entries below it are ignored."""
    matrix = upper.copy()
    for piece in cut(Range(0, len(matrix)), _BLOCK):
        strict = np.triu(upper[piece.slice, piece.slice], 1)
        diagonal = np.diag(np.diagonal(upper)[piece.slice].real)
        matrix[piece.slice, piece.slice] = strict + strict.conj().T + diagonal
        matrix[piece.stop :, piece.slice] = upper[piece.slice, piece.stop :].conj().T
    return matrix


def block_diagonal(blocks: Sequence[Array]) -> Array:
    """Returns the matrix with these blocks, of any shape, along its diagonal."""
    height, width = (sum(block.shape[axis] for block in blocks) for axis in (0, 1))
    matrix = np.zeros((height, width), np.result_type(*blocks))
    row = column = 0
    for block in blocks:
        matrix[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return matrix


def upper_times(left: Array, right: Array) -> Array:
    """Returns ``left right``: half the work where ``left`` is zero below its diagonal."""
    product = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    for rows in cut(Range(0, len(left)), _BLOCK):
        first = 0 if left[rows.slice, : rows.start].any() else rows.start
        np.matmul(left[rows.slice, first:], right[first:], out=product[rows.slice])
    return product


def gram_root(gram: Array) -> Array:
    """Returns an ``R`` such that ``R^H R`` is the given Gram matrix, ``(c, c)``.

    It is the Cholesky factor, upper triangular. If rounding made the matrix indefinite, ``R`` is
    made of its eigenvalues instead, with negative ones set to zero.
    """
    import torch

    root, failed = torch.linalg.cholesky_ex(_tensor(gram), upper=True)
    if not failed:
        return np.ascontiguousarray(root.resolve_conj().numpy())
    values, vectors = eigh(gram)
    return np.asarray(np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.conj().T)


def eigh_by_magnitude(matrix: Array) -> tuple[Array, Array]:
    """Returns eigenvalues in descending magnitude, and vectors, of a Hermitian ``(m, m)``."""
    values, vectors = eigh(matrix)
    # Stable, so that eigenvalues x and -x, of equal magnitude, come in a defined order.
    order = np.argsort(-np.abs(values), kind="stable")
    return values[order], vectors[:, order]


def count_above(magnitudes: Array, floor: float) -> int:
    """Counts the entries of a descending sequence that are above ``floor`` times the first."""
    if len(magnitudes) == 0 or magnitudes[0] <= 0:
        return 0
    return int(np.count_nonzero(magnitudes > floor * magnitudes[0]))


def triangular_inverse(upper: Array) -> Array:
    """Inverts an upper triangular matrix without zeros on its diagonal.

    The inverse of the leading ``c`` by ``c`` block is the leading block of the inverse.
    """
    # By halves, so that nearly all of the n^3 / 3 operations are matrix products; numpy itself has
    # only the general inverse, at six times the cost.
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
    """Returns ``R`` of the QR decomposition; ``Q`` is not formed."""
    import torch

    return np.asarray(torch.linalg.qr(_tensor(matrix), mode="r").R.numpy())


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Returns eigenvalues in ascending order, and vectors, of a Hermitian matrix ``(m, m)``."""
    import torch

    values, vectors = torch.linalg.eigh(_tensor(matrix))
    # torch conjugates lazily, by a flag on the tensor, and numpy() refuses a tensor that has it.
    return values.numpy(), vectors.resolve_conj().numpy()


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Returns ``U``, the singular values in descending order, and ``V^H``: the thin SVD."""
    import torch

    u, s, vh = torch.linalg.svd(_tensor(matrix), full_matrices=False)
    return u.resolve_conj().numpy(), s.numpy(), vh.resolve_conj().numpy()


def _tensor(matrix: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(matrix))


def spectral_norm(matrix: Array) -> float:
    """Estimates the largest singular value by the power method; low by a few per cent.

    The start is fixed, so that results are reproducible.
    """
    parts = (matrix.real, matrix.imag) if np.iscomplexobj(matrix) else (matrix,)
    largest = max(max(part.max(initial=0.0), -part.min(initial=0.0)) for part in parts)
    if largest == 0:
        return 0.0
    # Fourth powers of entries come up. So that they do not overflow, the matrix is scaled by a
    # power of two, which changes no bit of the result; or rather the vectors, which are smaller.
    exponent = math.frexp(largest)[1]
    scale = math.ldexp(1.0, -exponent)
    vectors = np.random.default_rng(0).standard_normal((matrix.shape[1], _POWER_VECTORS))
    for _ in range(_POWER_STEPS):
        size = np.linalg.norm(vectors, axis=0)
        vectors = matrix @ (vectors / np.where(size > 0, size, 1) * scale)
        vectors = matrix.conj().T @ (vectors * scale)
    return math.ldexp(float(np.sqrt(np.linalg.norm(vectors, axis=0).max())), exponent)


def sandwich(left: Array, middle: Array, right: Array) -> Array:
    """Returns ``left middle right^H``; a diagonal ``middle``, which is common, is cheaper."""
    diagonal = np.diagonal(middle)
    if np.count_nonzero(middle) == np.count_nonzero(diagonal):
        k = len(diagonal)
        return upper_times(left[:, :k] * diagonal, right[:, :k].conj().T)
    return np.asarray(left @ middle @ right.conj().T)


_SMALL_TRIANGLE = 64
_BLOCK = 256
_POWER_VECTORS = 4
_POWER_STEPS = 8
