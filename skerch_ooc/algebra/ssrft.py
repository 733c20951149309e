"""Test matrices of the scrambled subsampled randomized Fourier transform (SSRFT), by columns.

Tropp, Yurtsever, Udell and Cevher 2019 (arXiv 1902.08651, section 3.1), after the single transform
of Halko, Martinsson and Tropp 2011 (arXiv 0909.4061, section 4.6). With ``F`` the orthonormal
cosine transform of the second kind (or the unitary discrete Fourier transform, for complex
entries), ``D1``, ``D2`` diagonals of random signs (or phases) and ``P1``, ``P2`` random
permutations, the test matrix is ``n^(1/2) (F D2 P2 F D1 P1)^H``, of which column ``j`` here is that
of the ``j``-th of the rows of ``F`` in random order. So column ``j`` does not depend on how many
are drawn, and as all ``n`` of them are ``n^(1/2)`` times a unitary matrix, any are orthogonal.

A column costs a row of ``F``, which is explicit, and one transform. Transforms are numpy's: equal
bit for bit on one processor with one numpy, elsewhere to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut

_ENTRIES_AT_ONCE = 2**18


class Scramble(NamedTuple):
    """The random permutations and diagonals of one test matrix of height ``n``.

    An order ``p`` stands for the permutation ``P`` with ``P^H y = y[p]``.

    Attributes:
        outer_order: The order of ``P1``, ``(n,)``.
        inner_order: The order of ``P2``, ``(n,)``.
        frequencies: Each of ``0 .. n - 1`` once: entry ``j`` is the row of ``F`` for column ``j``.
        outer_diagonal: The diagonal of ``D1^H``, ``(n,)``: signs, or complex phases.
        inner_diagonal: The diagonal of ``D2^H``, likewise.
    """

    outer_order: Array
    inner_order: Array
    frequencies: Array
    outer_diagonal: Array
    inner_diagonal: Array


def fill_columns(out: Array, scramble: Scramble, columns: Range) -> None:
    """Fills ``out`` with whole columns ``(n, columns)``, real or complex as the diagonals are."""
    # Column j is (D1 P1)^H F^H (D2 P2)^H times a conjugate row of F. Of that row the entries are
    # computed in the order of P2^H, so that it need not be permuted. Columns are kept as rows of
    # ``lines``, as numpy's transforms are fastest along contiguous memory.
    n = len(scramble.outer_order)
    is_complex = scramble.outer_diagonal.dtype.kind == "c"
    row_of, transform = (_wave, _inverse_dft) if is_complex else (_cosine, _inverse_dct)
    inner_diagonal = scramble.inner_diagonal[scramble.inner_order]
    for piece in cut(columns, max(1, _ENTRIES_AT_ONCE // n)):
        lines = row_of(scramble.frequencies[piece.slice, None], scramble.inner_order, n)
        lines *= inner_diagonal
        lines = transform(lines)
        lines *= scramble.outer_diagonal
        lines = np.take(lines, scramble.outer_order, axis=1, mode="clip")
        out[:, piece.shifted(-columns.start).slice] = lines.T


def _cosine(frequencies: Array, places: Array, n: int) -> Array:
    """Returns the entries at ``places`` of rows of the cosine transform, times ``n^(1/2)``."""
    # The angle is reduced in integers: as a product of doubles it would lose log2(n) bits.
    steps = (2 * places + 1) * frequencies
    steps %= 4 * n
    lines = steps * (math.pi / (2 * n))
    np.cos(lines, out=lines)
    lines *= np.where(frequencies == 0, 1.0, math.sqrt(2.0))
    return lines


def _wave(frequencies: Array, places: Array, n: int) -> Array:
    """Returns entries at ``places`` of conjugate rows of the DFT, times ``n^(1/2)``."""
    # Reduced in integers, as in _cosine.
    steps = places * frequencies
    steps %= n
    angles = steps * (2 * math.pi / n)
    lines = np.empty(angles.shape, np.complex128)
    np.cos(angles, out=lines.real)
    np.sin(angles, out=lines.imag)
    return lines


def _inverse_dct(lines: Array) -> Array:
    """Applies the transposed orthonormal cosine transform to each line, by Makhoul (1980).

    The even entries in order and then the odd ones backwards have a Fourier transform whose entry
    ``k`` is the quarter-wave ``exp(i pi k / 2n)`` times ``c_k - i c_(n - k)``, ``c`` being the
    cosine transform without its scale and ``c_n`` zero.
    """
    n = lines.shape[1]
    half = n // 2 + 1
    spectrum = np.zeros((len(lines), half), np.complex128)
    spectrum.real = lines[:, :half]
    np.negative(lines[:, : n - half : -1], out=spectrum.imag[:, 1:])
    spectrum *= np.exp(np.arange(half) * (0.5j * math.pi / n)) * math.sqrt(n / 2)
    spectrum[:, 0] = lines[:, 0] * math.sqrt(n)
    folded = np.fft.irfft(spectrum, n)
    lines[:, 0::2] = folded[:, : (n + 1) // 2]
    lines[:, 1::2] = folded[:, : (n - 1) // 2 : -1]
    return lines


def _inverse_dft(lines: Array) -> Array:
    """Applies the conjugate transposed unitary Fourier transform to each line."""
    return np.fft.ifft(lines, norm="ortho")
