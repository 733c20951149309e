"""Test matrices: every entry a pure function of (seed, role, row, column).

Version 1. The words come from Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3", section 3.3), a counter-based generator: the block of four 64-bit words at a counter
does not depend on any other. The key is ``(seed, role number)``, the counter ``(1 + row block,
column group, distribution number, 0)``. So any slice can be drawn directly, in any process, and
roles, seeds and distributions share no words.

* ``rademacher``: a group is 64 columns, a row block is four rows; word ``row % 4`` belongs to the
  row, and its bit ``column % 64`` (from the least significant) is the sign: set means -1.
* ``gaussian``: a group is four columns, a row block is one row; words 0, 1 give columns 0, 1 and
  words 2, 3 give columns 2, 3, by Box and Muller (1958). The logarithm, sine and cosine are
  series in + - * / and sqrt alone, one numpy operation at a time: IEEE 754 fixes their every bit,
  where those of libraries differ with the processor.

Complex Rademacher entries are real. A complex Gaussian column ``j`` has the real Gaussian columns
``2j`` and ``2j + 1`` over ``sqrt(2)`` as real and imaginary part, so that ``E |g|^2 = 1``.
Single precision is double precision, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.arrays import empty_aligned
from skerch_ooc.partition import Range, cut

Array = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]

ROLE_NUMBERS = {"right": 1, "left": 2, "inner-left": 3, "inner-right": 4, "test": 5, "probe": 6}

_WORDS = 4
_SIGN_GROUP = 64
_NORMAL_GROUP = 4
_SIGN_ROWS_AT_ONCE = 256
_NORMAL_ROWS_AT_ONCE = 2048
_DISTRIBUTION_NUMBERS = {"rademacher": 1, "gaussian": 2}


def draw(
    noise: str,
    seed: int,
    role: str,
    rows: Range,
    columns: Range,
    dtype: npt.DTypeLike,
    out: Array | None = None,
) -> Array:
    """Draws a slice of a test matrix.

    Args:
        noise: ``"rademacher"`` or ``"gaussian"``.
        seed: From 0 to 2**64 - 1.
        role: A key of ``ROLE_NUMBERS``.
        rows: The rows of the slice.
        columns: The columns of the slice.
        dtype: float32, float64, complex64 or complex128.
        out: A buffer of this dtype, at least as large, whose upper left corner is to be filled.

    Returns:
        The slice, ``(len(rows), len(columns))``; without ``out`` in C order. Entries have
        mean 0 and mean square 1.
    """
    shape = (len(rows), len(columns))
    out = empty_aligned(shape, dtype) if out is None else out[: shape[0], : shape[1]]
    if out.size:
        _FILL[noise](out, seed, role, rows, columns)
    return out


def _words(noise: str, seed: int, role: str, first: int, count: int, group: int) -> Words:
    """The words of ``count`` row blocks from block ``first`` on, of one column group."""
    # numpy raises the counter before it makes a block: after counter (first, ...) comes block
    # first + 1, which is why the counter of the module's definition starts at 1.
    generator = np.random.Philox(
        key=np.array([seed, ROLE_NUMBERS[role]], np.uint64),
        counter=np.array([first, group, _DISTRIBUTION_NUMBERS[noise], 0], np.uint64),
    )
    return generator.random_raw(count * _WORDS)


def _fill_signs(out: Array, seed: int, role: str, rows: Range, columns: Range) -> None:
    blocks = Range(rows.start // _WORDS, -(-rows.stop // _WORDS))
    groups = Range(columns.start // _SIGN_GROUP, -(-columns.stop // _SIGN_GROUP))
    inside = rows.shifted(-blocks.start * _WORDS).slice
    words = np.empty((len(rows), len(groups)), "<u8")
    for position in range(len(groups)):
        group = groups.start + position
        drawn = _words("rademacher", seed, role, blocks.start, len(blocks), group)
        words[:, position] = drawn[inside]
    window = columns.shifted(-groups.start * _SIGN_GROUP).slice
    signs_of_byte = _SIGNS_OF_BYTE.astype(out.dtype)
    for start in range(0, len(rows), _SIGN_ROWS_AT_ONCE):
        piece = words[start : start + _SIGN_ROWS_AT_ONCE].view(np.uint8)
        signs = np.take(signs_of_byte, piece, axis=0, mode="clip").reshape(len(piece), -1)
        out[start : start + _SIGN_ROWS_AT_ONCE] = signs[:, window]


def _fill_normals(out: Array, seed: int, role: str, rows: Range, columns: Range) -> None:
    scale = 1.0
    if out.dtype.kind == "c":
        out = out.view(out.real.dtype)
        columns = Range(2 * columns.start, 2 * columns.stop)
        scale = math.sqrt(0.5)
    for group in range(columns.start // _NORMAL_GROUP, -(-columns.stop // _NORMAL_GROUP)):
        whole = Range(group * _NORMAL_GROUP, (group + 1) * _NORMAL_GROUP)
        wanted = whole.common(columns)
        target = out[:, wanted.shifted(-columns.start).slice]
        for piece in cut(Range(0, len(rows)), _NORMAL_ROWS_AT_ONCE):
            words = _words("gaussian", seed, role, rows.start + piece.start, len(piece), group)
            normals = _box_muller(words).reshape(len(piece), _NORMAL_GROUP)
            normals *= scale
            target[piece.slice] = normals[:, wanted.shifted(-whole.start).slice]


_FILL: dict[str, Callable[[Array, int, str, Range, Range], None]] = {
    "rademacher": _fill_signs,
    "gaussian": _fill_normals,
}

_SIGNS_OF_BYTE = 1.0 - 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
"""Row ``b``: the eight signs that the bits of byte ``b`` stand for."""


def _box_muller(words: Words) -> npt.NDArray[np.float64]:
    """Turns words ``(2k,)`` into standard normals ``(2k,)``: each pair of words into a pair."""
    radius = _log_of_uniform(words[0::2])
    radius *= -2.0
    np.sqrt(radius, out=radius)
    cosine, sine = _turn(words[1::2])
    normals = np.empty(words.shape)
    np.multiply(radius, cosine, out=normals[0::2])
    np.multiply(radius, sine, out=normals[1::2])
    return normals


# ln((1 + s) / (1 - s)) = 2 s (1 + s^2/3 + s^4/5 + ...); |s| < 0.172, the first term left out is
# below 2e-17 of the sum. Sine and cosine by Taylor's series on |x| <= pi/4, to the same accuracy.
_LOG_SERIES = tuple(2.0 / (2 * k + 1) for k in range(11))
_SINE_SERIES = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8))
_COSINE_SERIES = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9))
_LN2 = 0.6931471805599453
_QUARTER_TURN = 1.5707963267948966
_SQRT2 = 1.4142135623730951
_ONE_BITS = np.uint64(0x3FF0000000000000)
_MANTISSA_BITS = np.uint64(2**52 - 1)
_TOP_BIT = np.uint64(2**63)


def _log_of_uniform(words: Words) -> npt.NDArray[np.float64]:
    """The logarithm of uniform numbers in (0, 1], made of the upper 53 bits of each word."""
    uniform = ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64)
    uniform *= 2.0**-53
    bits = uniform.view(np.uint64)
    exponent = (bits >> np.uint64(52)).astype(np.float64)
    mantissa = ((bits & _MANTISSA_BITS) | _ONE_BITS).view(np.float64)
    high = (mantissa > _SQRT2).astype(np.float64)
    exponent -= 1023.0
    exponent += high
    high *= -0.5
    high += 1.0
    mantissa *= high
    s = (mantissa - 1.0) / (mantissa + 1.0)
    logarithm = _series(_LOG_SERIES, s * s)
    logarithm *= s
    exponent *= _LN2
    logarithm += exponent
    return logarithm


def _turn(words: Words) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cosine and sine of a uniform angle: the top two bits say the quarter, 53 the place in it."""
    place = ((words >> np.uint64(9)) & np.uint64(2**53 - 1)).astype(np.float64)
    place *= 2.0**-53
    place -= 0.5
    place *= _QUARTER_TURN
    square = place * place
    cosine = _series(_COSINE_SERIES, square)
    sine = _series(_SINE_SERIES, square)
    sine *= place
    after = words << np.uint64(1)
    odd = after >= _TOP_BIT
    # Odd quarters swap the two; the sine is negative in quarters 2 and 3, the cosine in 1 and 2.
    turned_cosine = np.where(odd, sine, cosine)
    turned_sine = np.where(odd, cosine, sine)
    turned_cosine.view(np.uint64)[:] ^= (words ^ after) & _TOP_BIT
    turned_sine.view(np.uint64)[:] ^= words & _TOP_BIT
    return turned_cosine, turned_sine


def _series(coefficients: tuple[float, ...], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Horner's rule, one rounding per operation (no fused multiply-add)."""
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total
