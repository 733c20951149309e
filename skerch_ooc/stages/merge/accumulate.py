"""Accumulators of the merge: Gram matrix ``Z^H Z`` and cross products ``N^H Z`` of row tiles.

Both are formed tile by tile, in double precision.

**Sketches in double precision** would lose half their digits in ``Z^H Z``. For them the triangular
factor ``R`` of ``Z = Q R`` is formed instead: by a QR of each tile, and of two factors stacked
wherever two sums would be added (TSQR: Benson, Gleich and Demmel 2013, "Direct QR factorizations
for tall-and-skinny matrices in MapReduce architectures", section II).

**Signs times single precision, exactly.** Where the test matrix holds signs and the sketch is in
single precision, ``N^H Z`` is formed without any rounding but one: each column of the tile is
rounded to integers of 30 bits and a sign (in units of a power of two below its largest entry; the
error is below a fiftieth of that of single precision itself), and sums of 4096 such integers are
exact. So the result is the same on every processor, whichever way the integers are multiplied:

* as doubles, by any BLAS: all partial sums stay below 2^53;
* as four balanced digits in base 256, by the 8-bit integer units that processors have for neural
  networks (used where torch is loaded and finds them): several times faster.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skerch_ooc.algebra.sparse import add_transposed_times
from skerch_ooc.base.arrays import Array, empty_aligned
from skerch_ooc.base.noise_kinds import SIGN_SCALE, SPARSE
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.resources import processor_flags
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import Side
from skerch_ooc.stages.merge.arithmetic import Arithmetic, Host
from skerch_ooc.stages.merge.testmatrices import NoiseReader

_INTEGER_BITS = 30
_DIGITS = 4
_DIGIT_BIAS = np.uint32(0x80808080)
_PRODUCTS_WORTH_TORCH = 5e10
"""So many multiplications take one core about two seconds as doubles; loading torch takes one."""

_TORCH_BYTES = 320 * 1024**2
"""Memory that loading torch takes."""

_CACHED_NUMBERS = 64 * 1024
"""So many doubles, 512 KiB, stay in the cache of a core."""

_DIAGONAL_BLOCK = 256
_SIGNS_AT_ONCE, _NUMBERS_AT_ONCE = 2048, 256
"""Columns of a test matrix, and of digits, that integer units multiply at once: quick blocks."""

_FEWEST_COLUMNS = 16
"""Fewer columns are quicker as doubles (and torch 2.13 multiplies a single one wrongly)."""


@dataclass
class Sums:
    """The accumulators of one side, over one tile or many; ``c`` is the number of columns.

    Attributes:
        squares: In single precision ``Z^H Z``, ``(c, c)``, which below its diagonal blocks is zero
            until it is mirrored; else the upper triangular ``R`` of ``Z = Q R``, ``(c, c)`` (or of
            fewer rows, where fewer rows were summed).
        cross: ``N^H Z``, ``(n, c)``.
        triangular: Whether ``squares`` is ``R``.
    """

    squares: Array
    cross: Array
    triangular: bool = False

    @classmethod
    def zeros(cls, plan: Plan, side: Side) -> Sums:
        """Returns empty accumulators for a side."""
        dtype = plan.identity.wide_dtype
        triangular = plan.identity.is_double
        rows = 0 if triangular else side.columns
        return cls(
            np.zeros((rows, side.columns), dtype),
            np.zeros((side.noise_columns, side.columns), dtype),
            triangular,
        )

    @property
    def column_squares(self) -> Array:
        """The squared norm of each column of ``Z``."""
        if self.triangular:
            return np.asarray(np.sum(np.abs(self.squares) ** 2, axis=0))
        return np.diagonal(self.squares).real

    def add(self, other: Sums) -> Sums:
        """Adds the sums over further tiles to these, in place."""
        self.cross += other.cross
        if self.triangular:
            stacked = np.concatenate([self.squares, other.squares])
            self.squares = np.asarray(np.linalg.qr(stacked, mode="r"))
        else:
            # Only the upper triangle counts, so about half of the memory is left alone.
            for piece in cut(Range(0, len(self.squares)), _DIAGONAL_BLOCK):
                self.squares[piece.slice, piece.start :] += other.squares[
                    piece.slice, piece.start :
                ]
        return self


@dataclass(frozen=True)
class Workspace:
    """Buffers for one tile in flight.

    Attributes:
        z: The sketches of all roles, ``(rows, c)``, in double precision.
        noise: Columns of a test matrix, ``(rows, 512)``, in double precision.
        digits: The digits of integers, each in a plane of its own, ``(4, rows, c)``; two columns
            for a complex one.
        products: The products of signs with each digit, ``(4, 2048 * 256)`` at most.
    """

    z: Array
    noise: Array
    digits: Array
    products: Array

    @classmethod
    def of(cls, plan: Plan, side: Side) -> Workspace:
        """Returns buffers that fit the tiles of a side."""
        rows = min(plan.identity.tile[0], side.rows)
        wide = plan.identity.wide_dtype
        width = min(plan.identity.tile[1], max(1, side.noise_columns))
        signs = min(_SIGNS_AT_ONCE, side.noise_columns)
        numbers = 0 if plan.identity.is_double else side.columns * wide.itemsize // 8
        # What is never written takes no memory: where there are no integer units, the last two.
        return cls(
            empty_aligned((rows, side.columns), wide),
            empty_aligned((rows, width), wide),
            empty_aligned((_DIGITS, rows, numbers), np.int8),
            empty_aligned((_DIGITS, signs * min(_NUMBERS_AT_ONCE, numbers)), np.int32),
        )


@dataclass(frozen=True)
class Accumulator:
    """Forms the sums of tiles of a side.

    Attributes:
        plan: The plan in force.
        side: Where the columns stand.
        matrices: Gives rows of the test matrices.
        on: The arithmetic that forms the products.
    """

    plan: Plan
    side: Side
    matrices: NoiseReader
    on: Arithmetic = field(default_factory=Host)

    def form(self, rows: Range, z: Array, space: Workspace, out: Sums) -> None:
        """Forms the sums of one tile.

        Args:
            rows: The tile's rows.
            z: The filled part of ``space.z``, ``(len(rows), c)``. Its content is lost.
            space: The buffers.
            out: Where the sums go; below its diagonal blocks ``out.squares`` is left as it is.
        """
        # The exact products come last: they round z to integers in place.
        loaded = self.on.load(z)
        self._form_squares(loaded, out)
        exact = [name for name in self.side.noise if self._is_exact(name)]
        for name in self.side.noise:
            if name not in exact:
                for columns, place in self._pieces(name, self.plan.identity.tile[1]):
                    noise = self.matrices.tile(name, rows, columns, z.dtype, space.noise)
                    self.on.adjoint_times(self.on.load(noise), loaded, out.cross[place.slice])
        if exact:
            self._form_exactly(exact, rows, z, space, out)

    def _form_squares(self, loaded: Any, out: Sums) -> None:
        if out.triangular:
            out.squares = self.on.triangle(loaded)
            return
        # Z^H Z is Hermitian: each block of columns meets itself and those after it, half the work.
        for piece in cut(Range(0, self.side.columns), self.plan.identity.tile[1]):
            left, right = loaded[:, piece.slice], loaded[:, piece.stop :]
            self.on.adjoint_times(left, left, out.squares[piece.slice, piece.slice])
            if piece.stop < self.side.columns:
                self.on.adjoint_times(left, right, out.squares[piece.slice, piece.stop :])

    def _form_exactly(
        self, exact: list[str], rows: Range, z: Array, space: Workspace, out: Sums
    ) -> None:
        # Real and imaginary parts are columns of their own: signs are real.
        real, target = z.view(np.float64), out.cross.view(np.float64)
        units, here = _round_to_integers(real), self.on.device == "cpu"
        multiply, width = _Doubles(real, units, self.on), self.plan.identity.tile[1]
        if here and _has_integer_units():
            multiply, width = _Digits(real, units, space), _SIGNS_AT_ONCE
        for name in exact:
            place = self.side.noise[name]
            if self.matrices.noise(name) in SPARSE and "torch" in sys.modules and here:
                columns = Range(0, len(place))
                multiply.entries(self.matrices, name, rows, columns, target[place.slice])
                continue
            for columns, place in self._pieces(name, width):
                noise = space.noise
                multiply.signs(self.matrices, name, rows, columns, noise, target[place.slice])

    def _pieces(self, name: str, width: int) -> Iterator[tuple[Range, Range]]:
        """Yields columns of a test matrix to multiply at once, and the rows of their products."""
        whole = self.side.noise[name]
        for place in cut(whole, width):
            yield place.shifted(-whole.start), place

    def _is_exact(self, name: str) -> bool:
        return not self.plan.identity.is_double and self.matrices.noise(name) in SIGN_SCALE


def _in_cache(array: Array) -> list[Range]:
    """Cuts the rows of an array into runs that stay in the cache from one operation to the next.

    Whole tiles would go to main memory and back with each operation.
    """
    height, width = array.shape
    return cut(Range(0, height), max(1, _CACHED_NUMBERS // max(1, width)))


def _evenly_cut(count: int, most: int) -> list[Range]:
    """Cuts ``count`` columns into runs of nearly equal width: none is very narrow."""
    runs = -(-count // most)
    return cut(Range(0, count), -(-count // runs))


def _round_to_integers(z: Array) -> Array:
    """Rounds each column, in place, to integers below ``2^30`` times its unit.

    Returns:
        The unit of each column, a power of two.
    """
    # A power of two scales without rounding, so that rint is the only rounding there is.
    largest = np.zeros(z.shape[1])
    for rows in _in_cache(z):
        np.maximum(largest, z[rows.slice].max(axis=0), out=largest)
        np.maximum(largest, -z[rows.slice].min(axis=0), out=largest)
    exponents = np.frexp(largest)[1] - _INTEGER_BITS
    scale = np.ldexp(1.0, -exponents)
    for rows in _in_cache(z):
        part = z[rows.slice]
        part *= scale
        np.rint(part, out=part)
    return np.asarray(np.ldexp(1.0, exponents))


class _Doubles:
    """Multiplies integers as doubles."""

    def __init__(self, z: Array, units: Array, on: Arithmetic | None = None) -> None:
        self._on = on or Host()
        self._z = self._on.load(z)
        self._units = units

    def signs(
        self, matrices: NoiseReader, name: str, rows: Range, columns: Range, noise: Array,
        out: Array,
    ) -> None:  # fmt: skip
        """Writes ``N^T Z`` for some columns of ``N`` to ``out``."""
        signs = matrices.tile(name, rows, columns, np.float64, noise.view(np.float64))
        self._on.adjoint_times(self._on.load(signs), self._z, out)
        out *= self._units

    def entries(
        self, matrices: NoiseReader, name: str, rows: Range, columns: Range, out: Array
    ) -> None:
        """Writes what :meth:`signs` writes, by the few entries of a sparse ``N``.

        Both are exact, so their bits are equal.
        """
        import torch

        found = matrices.entries(name, rows, columns)
        product = np.zeros(out.shape)
        add_transposed_times(found, torch.from_numpy(self._z), torch.from_numpy(product))
        np.multiply(product, self._units, out=out)


class _Digits(_Doubles):
    """Multiplies integers as four balanced digits in base 256, with 8-bit integer units.

    As those units are reached by a young interface, each product is checked: its row sums must be
    the signs times the row sums of ``Z``. One that fails is formed with doubles.
    """

    def __init__(self, z: Array, units: Array, space: Workspace) -> None:
        super().__init__(z, units)
        self._row_sums = np.empty(len(z))
        self._digits, self._products = space.digits[:, : len(z)], space.products
        for rows in _in_cache(z):
            part = z[rows.slice]
            part.sum(axis=1, out=self._row_sums[rows.slice])
            # Adding 128 to each byte and taking it off again as a sign makes -128..127 of 0..255.
            biased = part.astype(np.int32).view(np.uint32)
            biased += _DIGIT_BIAS
            biased ^= _DIGIT_BIAS
            for plane in self._digits:
                np.copyto(plane[rows.slice].view(np.uint8), biased, casting="unsafe")
                biased >>= np.uint32(8)
        self._allowed = 1e-9 * float(np.abs(self._row_sums).sum())

    def signs(
        self, matrices: NoiseReader, name: str, rows: Range, columns: Range, noise: Array,
        out: Array,
    ) -> None:  # fmt: skip
        """Writes ``N^T Z`` for some columns of ``N`` to ``out``."""
        if min(len(columns), self._z.shape[1]) >= _FEWEST_COLUMNS:
            signs = matrices.tile(name, rows, columns, np.int8, None)
            sums = np.zeros(len(columns))
            for part in _evenly_cut(self._z.shape[1], _NUMBERS_AT_ONCE):
                sums += self._multiply(signs, part, out[:, part.slice])
            if (np.abs(sums - self._expected_sums(signs)) <= self._allowed).all():
                return
        for piece in cut(Range(0, len(columns)), noise.shape[1]):
            here = piece.shifted(columns.start)
            super().signs(matrices, name, rows, here, noise, out[piece.slice])

    def _expected_sums(self, signs: Array) -> Array:
        """Returns what each row of ``N^T Z`` must add up to, but for rounding of the sums."""
        expected = np.zeros(signs.shape[1])
        for rows in _in_cache(signs):
            expected += self._row_sums[rows.slice] @ signs[rows.slice].astype(np.float64)
        return expected

    def _multiply(self, signs: Array, part: Range, out: Array) -> Array:
        """Writes the products of signs with some columns to ``out``.

        Returns:
            The sum of each row, in units.
        """
        import torch

        # torch takes a result in one run of bytes only.
        products = self._products[:, : out.size].reshape(_DIGITS, *out.shape)
        transposed = torch.from_numpy(signs).T
        for digits, product in zip(self._digits, products, strict=True):
            columns = torch.from_numpy(digits[:, part.slice])
            torch._int_mm(transposed, columns, out=torch.from_numpy(product))
        sums, ones = np.empty(len(out)), np.ones(len(part))
        for rows in _in_cache(out):
            first, second, third, fourth = products[:, rows.slice]
            target = out[rows.slice]
            # Signs times 4096 digits stay below 2^20: two of them make an integer of 32 bits.
            for low, high in ((first, second), (third, fourth)):
                high <<= 8
                high += low
            np.multiply(fourth, 65536.0, out=target)
            target += second
            np.dot(target, ones, out=sums[rows.slice])
            target *= self._units[part.slice]
        return sums


def load_integer_units(plan: Plan, side: Side, cores: int, room: int) -> None:
    """Loads torch for its 8-bit integer products if they will save more than loading it costs.

    This decides speed, never results: the products are exact either way.

    Args:
        plan: The plan in force.
        side: What is about to be merged.
        cores: How many tiles are multiplied at once.
        room: Bytes of memory that nothing else needs.
    """
    if plan.identity.is_double or "torch" in sys.modules or room < _TORCH_BYTES:
        return
    signs = sum(
        len(place)
        for name, place in side.noise.items()
        if plan.identity.noise.get(name) in SIGN_SCALE
    )
    products = side.rows * signs * side.columns * plan.identity.wide_dtype.itemsize // 8
    if products > _PRODUCTS_WORTH_TORCH * cores and "avx512_vnni" in processor_flags():
        importlib.import_module("torch")


def _has_integer_units() -> bool:
    """Whether torch is loaded and finds 8-bit integer units."""
    torch = sys.modules.get("torch")
    capabilities: dict[str, Any] = getattr(getattr(torch, "cpu", None), "get_capabilities", dict)()
    return bool(capabilities.get("avx512_vnni")) and hasattr(torch, "_int_mm")
