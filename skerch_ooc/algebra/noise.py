"""Random test matrices (noise), drawn in any slice: entries depend on seed, role, row and column.

This is noise version 1. The words come from Philox4x64-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", section 3.3), a counter-based generator: the block of four 64-bit
words at a counter does not depend on any other. The key is ``(seed, role number)``, the counter
``(1 + row block, column group, distribution number, 0)``. So any slice can be drawn directly, in
any process, and roles, seeds and distributions share no words.

* ``rademacher``: a group is 64 columns, a row block is four rows; word ``row % 4`` belongs to the
  row, and its bit ``column % 64`` (from the least significant) is the sign: set means -1.
* ``sparse-sign``: a group is 128 columns, a row block is four rows; word ``row % 4`` belongs to the
  row, and its byte ``column % 128 // 16`` (from the least significant) to 16 columns. Its low four
  bits say which of them is not zero: that one is 4, or -4 where the bit of value 16 is set.
* ``sparse-sign-64``, ``sparse-sign-256``: the same with sparser rows. A byte belongs to 64 columns
  (a group is 512 columns): its low six bits are the place, that of value 64 the sign of 8. Two
  bytes belong to 256 columns (a group is 1024 columns): their low eight bits are the place, that
  of value 256 the sign of 16.
* ``gaussian``: a group is four columns, a row block is one row; words 0, 1 give columns 0, 1 and
  words 2, 3 give columns 2, 3, by Box and Muller (1958). The logarithm, sine and cosine are
  series in + - * / and sqrt alone, one numpy operation at a time: IEEE 754 fixes their every bit,
  where those of libraries differ with the processor.
* ``phase``: a group is four columns, a row block is one row; word ``column % 4`` gives a point of
  the unit circle, by the same sine and cosine. Complex only.
* ``ssrft``: columns of the scrambled Fourier transform of ``skerch_ooc/algebra/ssrft.py``, made
  whole only and orthogonal to each other. In place of the column group is the number of what the
  words make: outer order 0, inner order 1, frequencies 2, outer diagonal 3, inner diagonal 4; a row
  block is four rows, each with its word. An order is the stable order of the words; a diagonal has
  signs, the top bits of the words (set means -1), or phases as above where entries are complex. The
  bits of a column are those of numpy's transforms: equal on one machine with one numpy, elsewhere
  to rounding.

Complex ``rademacher`` and sparse entries are real. A complex Gaussian column ``j`` has the
real Gaussian columns ``2j`` and ``2j + 1`` over ``sqrt(2)`` as real and imaginary part, so that
``E |g|^2 = 1``. Single precision is double precision, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from skerch_ooc.algebra.ssrft import Scramble, fill_columns
from skerch_ooc.base.arrays import Array, empty_aligned
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.noise_kinds import (
    COMPLEX_ONLY,
    LARGEST_HEIGHT,
    ROLE_NUMBERS,
    SIGN_SCALE,
    SPARSE,
    WHOLE_COLUMNS,
)
from skerch_ooc.base.partition import Range, cut

Words = npt.NDArray[np.uint64]

_WORDS = 4
"""Words of a Philox block."""

_GROUP_COLUMNS = 4
"""Columns of a group of ``gaussian`` and ``phase``, which take one word for each real entry."""

_ROWS_OF_BYTES_AT_ONCE = 256
_ROWS_OF_FLOATS_AT_ONCE = 2048
_SCRAMBLES_KEPT = 2


class _Stream(NamedTuple):
    """Names one stream of words; no two test matrices share one."""

    noise: str
    seed: int
    role: str


@tells_keywords
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
        noise: ``"rademacher"``, ``"sparse-sign"`` (or a sparser one), ``"gaussian"``, ``"phase"``
            or ``"ssrft"``.
        seed: From 0 to 2**64 - 1.
        role: A key of ``ROLE_NUMBERS``.
        rows: The rows of the slice; for one of ``WHOLE_COLUMNS`` all rows of the matrix, as the
            entries depend on its height.
        columns: The columns of the slice.
        dtype: float32, float64, complex64 or complex128; for one of ``COMPLEX_ONLY`` a complex
            one, for one of ``SIGN_SCALE`` also int8.
        out: A buffer of this dtype, at least as large, whose upper left corner is to be filled.

    Returns:
        The slice, ``(len(rows), len(columns))``; without ``out`` in C order. Entries have
        mean 0 and mean square 1, and no two are correlated.

    Raises:
        ValueError: If a test matrix of this distribution has no such dtype, rows or columns, or
            there is no such distribution, role or seed.
    """
    if noise not in _KINDS or role not in ROLE_NUMBERS or not 0 <= seed < 2**64:
        raise ValueError(
            f"noise = {noise!r}, role = {role!r}, seed = {seed!r}: give one of "
            f"{', '.join(_KINDS)}, one of {', '.join(ROLE_NUMBERS)}, and 0 to 2**64 - 1"
        )
    if noise in COMPLEX_ONLY and np.dtype(dtype).kind != "c":
        raise ValueError(f"{noise} test matrices are complex, not {np.dtype(dtype)}")
    if noise in WHOLE_COLUMNS:
        if rows.start:
            raise ValueError(f"{noise} test matrices have whole columns only, not rows {rows}")
        if rows.stop > LARGEST_HEIGHT:
            raise ValueError(f"{noise} test matrices have at most {LARGEST_HEIGHT} rows")
        if columns.stop > rows.stop:
            raise ValueError(f"{noise} has no columns {columns}: there are {rows.stop}, as rows")
    shape = (len(rows), len(columns))
    out = empty_aligned(shape, dtype) if out is None else out[: shape[0], : shape[1]]
    if out.size:
        fill = _KINDS[noise][1]
        fill(out, _Stream(noise, seed, role), rows, columns)
    return out


@dataclass(frozen=True)
class Entries:
    """The nonzero entries of a sparse slice of a test matrix.

    Attributes:
        rows: The row of each entry, counted from the first of the slice; in ascending order.
        columns: The column of each entry, counted from the first of the slice.
        values: The entries, int8.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: npt.NDArray[np.int8]


def draw_entries(noise: str, seed: int, role: str, rows: Range, columns: Range) -> Entries:
    """Draws the nonzero entries of a slice of a sparse test matrix.

    Args:
        noise: A key of ``SPARSE``.
        seed: As for :func:`draw`.
        role: As for :func:`draw`.
        rows: The rows of the slice.
        columns: The columns of the slice.
    """
    unit, scale = SPARSE[noise], SIGN_SCALE[noise]
    pieces = _pieces(_Stream(noise, seed, role), rows, columns)
    first = columns.start // unit
    place = (pieces & (unit - 1)).astype(np.int64)
    place += unit * np.arange(first, first + pieces.shape[1])
    place -= columns.start
    row, piece = np.nonzero((place >= 0) & (place < len(columns)))
    signs = np.where(pieces[row, piece] & unit, -scale, scale).astype(np.int8)
    return Entries(row, place[row, piece], signs)


def _pieces(stream: _Stream, rows: Range, columns: Range) -> npt.NDArray[Any]:
    """Draws the bytes, or pairs of bytes, that stand for the units of these rows and columns.

    A unit is the group of columns in which a row has one nonzero entry.
    """
    unit = SPARSE[stream.noise]
    # A sign and a place among 16 or 64 columns fit into a byte, among 256 they take two. Words are
    # little-endian, as the definition counts bytes from the least significant.
    piece = "u1" if unit < 128 else "<u2"
    units_of_word = 8 // np.dtype(piece).itemsize
    words, first = _words_of_rows(stream, rows, columns, unit * units_of_word)
    units = Range(columns.start // unit, -(-columns.stop // unit))
    return words.view(piece)[:, units.shifted(-first * units_of_word).slice]


def _words_of_rows(stream: _Stream, rows: Range, columns: Range, width: int) -> tuple[Words, int]:
    """One word for each row and each group of ``width`` columns; and the number of the first."""
    blocks = Range(rows.start // _WORDS, -(-rows.stop // _WORDS))
    groups = Range(columns.start // width, -(-columns.stop // width))
    inside = rows.shifted(-blocks.start * _WORDS).slice
    words = np.empty((len(rows), len(groups)), "<u8")
    for position in range(len(groups)):
        drawn = _words(stream, blocks.start, len(blocks), groups.start + position)
        words[:, position] = drawn[inside]
    return words, groups.start


def _fill_entries(out: Array, stream: _Stream, rows: Range, columns: Range) -> None:
    entries = draw_entries(stream.noise, stream.seed, stream.role, rows, columns)
    out[...] = 0
    out[entries.rows, entries.columns] = entries.values


def _words(stream: _Stream, first: int, count: int, group: int) -> Words:
    """Draws the words of ``count`` row blocks from block ``first`` on, of one column group."""
    # numpy guarantees the raw words of Philox, not its distributions: random_raw alone is used.
    # It raises the counter before it makes a block: after counter (first, ...) comes block
    # first + 1, which is why the counter of the module's definition starts at 1.
    generator = np.random.Philox(
        key=np.array([stream.seed, ROLE_NUMBERS[stream.role]], np.uint64),
        counter=np.array([first, group, _KINDS[stream.noise][0], 0], np.uint64),
    )
    return generator.random_raw(count * _WORDS)


def _fill_bytes(out: Array, stream: _Stream, rows: Range, columns: Range) -> None:
    """Fills ``out`` with the entries that bytes stand for; a word is one row of a group."""
    entries_of_byte = _ENTRIES_OF_BYTE[stream.noise].astype(out.dtype)
    width = 8 * entries_of_byte.shape[1]
    words, first = _words_of_rows(stream, rows, columns, width)
    window = columns.shifted(-first * width).slice
    # Some rows at a time, so that the temporary array stays small.
    for start in range(0, len(rows), _ROWS_OF_BYTES_AT_ONCE):
        piece = words[start : start + _ROWS_OF_BYTES_AT_ONCE].view(np.uint8)
        entries = np.take(entries_of_byte, piece, axis=0, mode="clip").reshape(len(piece), -1)
        out[start : start + _ROWS_OF_BYTES_AT_ONCE] = entries[:, window]


def _fill_normals(out: Array, stream: _Stream, rows: Range, columns: Range) -> None:
    scale = 1.0
    # A complex column is two real ones, as real and imaginary part; E |g|^2 = 1 needs the scale.
    if out.dtype.kind == "c":
        out = out.view(out.real.dtype)
        columns = Range(2 * columns.start, 2 * columns.stop)
        scale = math.sqrt(0.5)

    def normals(words: Words) -> Array:
        pairs = _box_muller(words)
        pairs *= scale
        return pairs

    _fill_from_words(out, stream, rows, columns, normals)


def _fill_from_words(
    out: Array, stream: _Stream, rows: Range, columns: Range, entries_of: Callable[[Words], Array]
) -> None:
    """Fills ``out`` with one entry for each word; four words are one row of a column group."""
    for group in range(columns.start // _GROUP_COLUMNS, -(-columns.stop // _GROUP_COLUMNS)):
        whole = Range(group * _GROUP_COLUMNS, (group + 1) * _GROUP_COLUMNS)
        wanted = whole.common(columns)
        target = out[:, wanted.shifted(-columns.start).slice]
        for piece in cut(Range(0, len(rows)), _ROWS_OF_FLOATS_AT_ONCE):
            words = _words(stream, rows.start + piece.start, len(piece), group)
            entries = entries_of(words).reshape(len(piece), _GROUP_COLUMNS)
            target[piece.slice] = entries[:, wanted.shifted(-whole.start).slice]


def _fill_transforms(out: Array, stream: _Stream, rows: Range, columns: Range) -> None:
    fill_columns(out, _scramble(stream, len(rows), out.dtype.kind == "c"), columns)


@lru_cache(maxsize=_SCRAMBLES_KEPT)
def _scramble(stream: _Stream, height: int, is_complex: bool) -> Scramble:
    """Draws the permutations and diagonals of a ``ssrft`` matrix.

    They are cached, as sorting costs more than a column does. The sort is stable so that equal
    words, however rare, give the same order everywhere.
    """

    def words(part: int) -> Words:
        return _words(stream, 0, -(-height // _WORDS), part)[:height]

    diagonal = _phases if is_complex else _signs
    return Scramble(
        outer_order=np.argsort(words(0), kind="stable"),
        inner_order=np.argsort(words(1), kind="stable"),
        frequencies=np.argsort(words(2), kind="stable"),
        outer_diagonal=diagonal(words(3)),
        inner_diagonal=diagonal(words(4)),
    )


_BYTES = np.arange(256)[:, None]
_ENTRIES_OF_BYTE = {
    "rademacher": 1.0 - 2.0 * ((_BYTES >> np.arange(8)) & 1),
    "sparse-sign": np.where(np.arange(16) == (_BYTES & 15), 4.0 - 8.0 * (_BYTES >> 4 & 1), 0.0),
}
"""For each distribution: row ``b`` has the entries that byte ``b`` stands for."""


def _signs(words: Words) -> npt.NDArray[np.int8]:
    """Returns the signs that the top bits of words stand for."""
    return 1 - 2 * (words >> np.uint64(63)).astype(np.int8)


def _phases(words: Words) -> npt.NDArray[np.complex128]:
    """Turns each word into a point of the unit circle."""
    phases = np.empty(words.shape, np.complex128)
    phases.real, phases.imag = _turn(words)
    return phases


def _box_muller(words: Words) -> npt.NDArray[np.float64]:
    """Turns words ``(2k,)`` into standard normals ``(2k,)``, pair by pair (Box and Muller 1958)."""
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
    """Returns the logarithm of uniform numbers in (0, 1], made of the top 53 bits of each word."""
    # Plus one, so that 0, whose logarithm is infinite, never comes up.
    uniform = ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64)
    uniform *= 2.0**-53
    # uniform = 2^exponent mantissa, read off its bits. A mantissa above sqrt(2) is halved, so that
    # it lies between sqrt(1/2) and sqrt(2), where the series in s = (x - 1) / (x + 1) is short.
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
    """Returns cosine and sine of a uniform angle: two bits give the quarter, 53 the place in it."""
    # The place is centred in its quarter, |angle| <= pi/4, so that the series are short.
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
    # A sign is set by flipping the sign bit, which needs no multiplication.
    turned_cosine = np.where(odd, sine, cosine)
    turned_sine = np.where(odd, cosine, sine)
    turned_cosine.view(np.uint64)[:] ^= (words ^ after) & _TOP_BIT
    turned_sine.view(np.uint64)[:] ^= words & _TOP_BIT
    return turned_cosine, turned_sine


def _series(coefficients: tuple[float, ...], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluates a polynomial by Horner's rule."""
    # One numpy operation at a time: so no compiler can fuse a multiplication with an addition,
    # whose single rounding would give other bits on processors that have that instruction.
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total *= x
        total += coefficient
    return total


_KINDS: dict[str, tuple[int, Callable[[Array, _Stream, Range, Range], None]]] = {
    "rademacher": (1, _fill_bytes),
    "gaussian": (2, _fill_normals),
    "phase": (3, partial(_fill_from_words, entries_of=_phases)),
    "sparse-sign": (4, _fill_bytes),
    "ssrft": (5, _fill_transforms),
    "sparse-sign-64": (6, _fill_entries),
    "sparse-sign-256": (7, _fill_entries),
}
"""The distribution number of each kind, and what fills a slice."""
