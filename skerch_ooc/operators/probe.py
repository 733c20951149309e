"""The probe: a few products that tell whether an operator can be trusted, and what it costs.

Three calls, 18 products. One vector, and it again times a number (and once more within a block):
does the operator repeat itself, is it linear, does it depend on the block's width? Sixteen vectors
X at once, of which the last is made of two others, as its product then has to be. For a Hermitian
operator ``X^H A X`` is Hermitian, and the mean square of the entries of ``X^H A X - (X^H A X)^H``
is the squared Frobenius norm of ``A - A^H`` (X has entries of mean 0 and variance 1). For a
general one 16 products of the adjoint follow: ``V^H (A X)`` must be ``(A^H V)^H X``.

The fingerprint holds 16 such entries of one product: enough for any later process to tell, from
one product of its own, by how much its operator differs. It does not keep the product itself,
which may be large.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.arrays import Array, empty_aligned, tolerance
from skerch_ooc.base.errors import DriftError, OperatorError
from skerch_ooc.base.figures import short
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.resources import SPARE_BYTES, peak_memory, resident_memory
from skerch_ooc.operators.adapters import Product, norm
from skerch_ooc.planning.plan import FUNCTIONALS

log = logging.getLogger("skerch_ooc")

_FEWEST = 2
"""Least vectors at once: of one alone nobody sees whether a real operator is Hermitian."""
WIDTH = FUNCTIONALS
_WIDER = 4
_FUNCTIONALS = Range(64, 64 + WIDTH)
_ROWS_AT_ONCE = 4096
_LARGEST = 1e100
_LONG_SECONDS = 1.0
_DIGITS_ROOM = 16
"""Products with a basis may be smaller than those with random vectors."""

_FACTOR = {"f": -0.5, "c": -0.5j}
"""By the kind of a type, what multiplies products without rounding: a power of two, and of complex
numbers one that an operator which conjugates them, or drops a part, takes for another."""
_COMBINED = 4
"""Columns of a block from which on its last one is made of two others."""

_CAUSES = (
    "Likely causes: dropout or batch normalisation in training mode (call model.eval()), a data "
    "loader that shuffles or augments, an unseeded generator, weights that are still changing"
)


@dataclass(frozen=True)
class Timing:
    """What a call took.

    Attributes:
        columns: Width of the block, or of the inner call.
        seconds: Of the call.
        bytes: Memory beyond the peak that the process had before; 0 if it stayed below that.
    """

    columns: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        products: Products that it took.
        repetition: Relative difference between two calls whose vectors differ by a factor.
        width_difference: Relative difference between one vector alone and in a block.
        asymmetry: ``||A - A^H||_F / ||A||_F``, estimated; for a general operator the same of ``A``
            and the adjoint of its adjoint.
        norm: ``||A||_F``, roughly.
        call_seconds: Seconds of a call, whatever its width; of an inner one, if the operator was
            told how many columns to apply at once.
        column_seconds: Seconds that each further column of a block adds.
        column_bytes: Bytes of memory that each further column of a block adds; 0 if the operator
            was told how many columns to apply at once.
        baseline_bytes: Resident memory of the process with the operator loaded.
        columns_at_once: How many columns the operator was told to apply in one inner call; ``None``
            if it cannot be told.
        inner_bytes: Bytes that such a call needs, however wide the block is.
        widths: What inner calls of each width took that was tried.
    """

    products: int
    repetition: float
    width_difference: float
    asymmetry: float
    norm: float
    call_seconds: float
    column_seconds: float
    column_bytes: int
    baseline_bytes: int
    columns_at_once: int | None = None
    inner_bytes: int = 0
    widths: tuple[Timing, ...] = ()

    def seconds(self, width: int) -> float:
        """Expected seconds of one call with ``width`` columns."""
        calls = -(-width // self.columns_at_once) if self.columns_at_once else 1
        return calls * self.call_seconds + width * self.column_seconds


def probe(
    product: Product, seed: int, hermitian: bool, memory: int | None = None
) -> tuple[Probe, dict[str, Any]]:
    """Examines an operator.

    Args:
        product: The operator.
        seed: The run's seed.
        hermitian: Whether ``A = A^H`` is required; else the operator must have an adjoint.
        memory: Peak resident memory, in bytes; where it is little, fewer vectors are applied.

    Returns:
        The findings, and the operator's fingerprint.

    Raises:
        OperatorError: If a product is not finite, two equal calls differ, the operator is not
            linear, or not Hermitian though it should be, or its adjoint is that of something else.
    """
    before = peak_memory()
    first, took, peak = timed(product, probe_vectors(product, seed, Range(0, 1)))
    width = min(WIDTH, _fitting(product, memory, peak - before), *product.shape)
    x = _with_combination(probe_vectors(product, seed, Range(0, width)))
    factor = _FACTOR[x.dtype.kind]
    left = 1 + width + (0 if hermitian else width)
    if took > _LONG_SECONDS:
        log.info("the operator's first product took %.0f s; it is probed by %d more", took, left)
    again, single_seconds, single_peak = timed(product, factor * x[:, :1])
    with np.errstate(over="ignore"):  # What overflows is refused below.
        again = again / factor
    block, block_seconds, block_peak = timed(product, x)
    for array in (first, again, block):
        _require_finite(array)
    _require_scale(block)
    scale = norm(first)
    repetition = _relative(norm(first - again), scale)
    if repetition > 4 * tolerance(product.dtype):
        _require_repetition(product, x[:, :1], first)
    _require_linearity(repetition, block, factor, product.dtype)
    asymmetry = (
        _asymmetry(x, block, product.dtype)
        if hermitian
        else _adjoint_error(product, seed, x, block)
    )
    column_seconds = max(0.0, (block_seconds - single_seconds) / max(1, width - 1))
    findings = Probe(
        products=1 + left,
        repetition=repetition,
        width_difference=_relative(norm(first - block[:, :1]), scale),
        asymmetry=asymmetry,
        norm=norm(block) / math.sqrt(width),
        call_seconds=max(0.0, single_seconds - column_seconds),
        column_seconds=column_seconds,
        column_bytes=max(0, block_peak - single_peak) // max(1, width - 1),
        baseline_bytes=resident_memory(),
    )
    return findings, fingerprint_of(product, seed, first)


def _fitting(product: Product, memory: int | None, grown: int) -> int:
    """Returns how many vectors fit into the memory with their products, at least two.

    Args:
        product: The operator.
        memory: Peak resident memory that the process may have; ``None``: whatever it needs.
        grown: By how much its peak grew as the operator was applied to one vector.
    """
    if memory is None:
        return WIDTH
    held = resident_memory()
    # As drawn, as applied, and what becomes of it, on both sides; and what the operator needs.
    column = 3 * sum(product.shape) * np.dtype(product.dtype).itemsize + max(0, grown)
    return max(_FEWEST, (memory - held - SPARE_BYTES) // column)


def _with_combination(x: Array) -> Array:
    """Makes the last of several columns the second plus a number times the third."""
    if x.shape[1] >= _COMBINED:
        x[:, -1] = x[:, 1] + _FACTOR[x.dtype.kind] * x[:, 2]
    return x


def _require_repetition(product: Product, x: Array, first: Array) -> None:
    """Applies an operator to a vector again.

    Raises:
        OperatorError: If the products differ by more than rounding can explain.
    """
    again, _, _ = timed(product, x)
    repetition, limit = _relative(norm(first - again), norm(first)), 4 * tolerance(product.dtype)
    if not repetition <= limit:
        raise OperatorError(
            f"two calls with the same vector differ by {short(repetition)} of the result "
            f"(allowed: {short(limit)}); a sketch needs an operator that repeats itself. {_CAUSES}"
        )


def _require_linearity(error: float, block: Array, factor: complex, dtype: str) -> None:
    """Refuses an operator whose products do not add up.

    Args:
        error: Relative difference between the products of a vector, and of it times the factor.
        block: The products of a block whose last column is made of two others.
        factor: The number.
        dtype: The run's type.

    Raises:
        OperatorError: If products differ by more than rounding can explain.
    """
    limit, what = 4 * tolerance(dtype), f"A ({factor} x) and {factor} A x"
    if error <= limit and block.shape[1] >= _COMBINED:
        what = f"A (x + {factor} y) and A x + {factor} A y"
        difference = norm(block[:, -1] - (block[:, 1] + factor * block[:, 2]))
        error = _relative(difference, norm(block[:, 1:3]))
    if error > limit:
        raise OperatorError(
            f"the operator is not linear: {what} differ by {short(error)} of the result (allowed: "
            f"{short(limit)}). A @ x has to be the product with one matrix, whatever x is: look "
            "for something that is added to it, for a limit, an absolute value or a normalisation, "
            "for x in a type of fewer digits, and for a conjugate or a real part of x"
            f"{_of_single(error, dtype)}"
        )


def _of_single(error: float, dtype: str) -> str:
    """Says of an error in double precision that it is as small as those of single precision."""
    single = {"float64": "float32", "complex128": "complex64"}.get(dtype)
    if single is None or error > 4 * tolerance(single):
        return ""
    return (
        f'. The dtype is {dtype}, and this is no more than single precision rounds: give dtype = "'
        f'{single}" if the operator computes in it'
    )


def timings(product: Product, seed: int, *, seconds: float, memory: int) -> list[Timing]:
    """Applies an operator to ever wider blocks, each four times as wide as the one before.

    Args:
        product: The operator, applied before, so that it has all that it needs.
        seed: The run's seed.
        seconds: No call is begun that is expected to take longer.
        memory: Nor one that is expected to take more of it, in bytes.
    """
    found: list[Timing] = []
    before, columns = peak_memory(), 1
    while columns <= min(product.shape):
        _, took, peak = timed(product, probe_vectors(product, seed, Range(0, columns)))
        found.append(Timing(columns, took, max(0, peak - before)))
        columns *= _WIDER
        if _WIDER * took > seconds or before + _WIDER * found[-1].bytes > memory:
            break
    return found


def _require_finite(products: Array) -> None:
    """Refuses products that are not finite.

    Raises:
        OperatorError: If one is not; it names the first row.
    """
    wrong = np.flatnonzero(~np.isfinite(products).all(axis=1))
    if len(wrong):
        raise OperatorError(
            "the operator's product with a random vector of signs holds NaN or infinity, first "
            f"in row {wrong[0]} (in {len(wrong)} of {len(products)}); look for entries that are "
            "missing, overflow, log(0) or 0/0 there, or use a wider dtype"
        )


def _require_scale(products: Array) -> None:
    """Refuses zero, and operators whose numbers or squares leave the range of their type.

    Raises:
        OperatorError: If the products are all zero, too small or too large.
    """
    if not products.any():
        raise OperatorError(
            "there is nothing to decompose: the operator's products with random vectors are zero; "
            "check its data, and whether they are too small for its dtype"
        )
    require_range(products)


def require_range(products: Array) -> None:
    """Refuses products, not all zero, whose numbers or squares leave the range of their type.

    Raises:
        OperatorError: If they are too small or too large.
    """
    # Real and imaginary parts apart: complex division leaves the range of subnormal numbers.
    parts = np.ascontiguousarray(products).view(products.real.dtype)
    largest = float(np.abs(parts).max())
    with np.errstate(over="ignore", under="ignore"):
        size = largest * norm(parts / largest)
    if not 1 / _LARGEST < size < _LARGEST:
        raise OperatorError(
            f"the operator's products have a norm of {short(size)}, whose square is out of the "
            f"range of double precision; scale the operator to between {short(1 / _LARGEST, 1)} "
            f"and {short(_LARGEST, 1)}"
        )
    # Typical among the entries that are not zero: a sparse operator may have few.
    entries, smallest = np.count_nonzero(products), _DIGITS_ROOM * np.finfo(products.dtype).tiny
    typical = size / math.sqrt(entries)
    if typical < smallest:
        raise OperatorError(
            f"the operator's products are about {short(typical)} in size, where {products.dtype} "
            f"has fewer digits than elsewhere; multiply the operator so that they are above "
            f"{short(smallest, 1)}, or use a wider dtype"
        )


def sizes_allowed(dtype: str) -> tuple[float, float]:
    """Between which norms products can be added without loss, with room for later ones."""
    finfo = np.finfo(dtype)
    return (
        max(1 / _LARGEST, _DIGITS_ROOM * float(finfo.tiny)),
        min(_LARGEST, float(finfo.max) / _DIGITS_ROOM),
    )


def probe_vectors(product: Product, seed: int, columns: Range) -> Array:
    """Draws vectors to which the operator is applied to look at it."""
    rows = Range(0, product.shape[1])
    return draw("rademacher", seed, "probe", rows, columns, product.dtype)


def timed(product: Callable[[Array], Array], x: Array) -> tuple[Array, float, int]:
    """Applies the operator; also the seconds it took, and the peak memory of the process."""
    start = time.perf_counter()
    copied = empty_aligned(x.shape, x.dtype)
    copied[:] = x
    y = product(copied)
    return y, time.perf_counter() - start, peak_memory()


def _relative(difference: float, scale: float) -> float:
    if scale > 0:
        return difference / scale
    return 0.0 if difference == 0 else 1.0


def _asymmetry(x: Array, y: Array, dtype: str) -> float:
    """The relative asymmetry of A from ``Y = A X``.

    Raises:
        OperatorError: If it is more than rounding can explain.
    """
    gram = _inner(x, y)
    difference = gram - gram.conj().T
    entries = max(1, difference.size - (0 if gram.dtype.kind == "c" else len(difference)))
    asymmetry = _relative(norm(difference) / math.sqrt(entries), norm(y) / math.sqrt(x.shape[1]))
    limit = 4 * tolerance(dtype)
    if asymmetry > limit:
        raise OperatorError(
            f"the operator is not Hermitian: ||A - A^H|| / ||A|| is about {short(asymmetry)} "
            f'(allowed: {short(limit)}); kind = "eigh" needs A = A^H, "svd" takes any. Check that '
            "A @ x is the product of a symmetric matrix, and that its precision (TF32, float16) is "
            "not too low"
            f"{_of_single(asymmetry, dtype)}"
        )
    return asymmetry


def _adjoint_error(product: Product, seed: int, x: Array, y: Array) -> float:
    """How far ``A^H``, as the operator applies it, is from the adjoint of ``A``, relatively.

    Raises:
        OperatorError: If it is more than rounding can explain, or a product is not finite.
    """
    width = y.shape[1]
    columns = Range(_FUNCTIONALS.start, _FUNCTIONALS.start + width)
    v = draw("rademacher", seed, "probe", Range(0, len(y)), columns, product.dtype)
    back = product(v, adjoint=True)
    if not np.isfinite(back).all():
        raise OperatorError(
            "the adjoint's product with random vectors of signs holds NaN or infinity; look for "
            "overflow, log(0) or 0/0 in it, or use a wider dtype"
        )
    difference = _inner(v, y) - _inner(back, x)
    error = _relative(norm(difference) / width, max(norm(y), norm(back)) / math.sqrt(width))
    limit = 4 * tolerance(product.dtype)
    if error > limit:
        raise OperatorError(
            f"the operator's adjoint is not that of its product: <v, A x> and <A^H v, x> differ by "
            f"{short(error)} of the operator's norm (allowed: {short(limit)}). Check the "
            "conjugation, and that both have the same precision"
            f"{_of_single(error, product.dtype)}"
        )
    return error


def _inner(left: Array, right: Array) -> Array:
    """``left^H right`` in double precision."""
    wide = np.result_type(left, np.float64)
    total = np.zeros((left.shape[1], right.shape[1]), wide)
    for rows in cut(Range(0, len(left)), _ROWS_AT_ONCE):
        total += left[rows.slice].astype(wide).conj().T @ right[rows.slice].astype(wide)
    return total


def fingerprint_of(product: Product, seed: int, y: Array | None = None) -> dict[str, Any]:
    """The fingerprint of an operator: 16 functionals of one product, and its norm.

    Args:
        product: The operator.
        seed: The run's seed.
        y: The product with the first probe vector, if it is at hand; else it is computed.
    """
    if y is None:
        y = product(probe_vectors(product, seed, Range(0, 1)))
    wide = np.result_type(y, np.float64)
    functionals = np.zeros(WIDTH, wide)
    for rows in cut(Range(0, len(y)), _ROWS_AT_ONCE):
        signs = draw("rademacher", seed, "probe", rows, _FUNCTIONALS, wide)
        functionals += signs.T @ y[rows.slice, 0].astype(wide)
    found: dict[str, Any] = {
        "functionals": [[float(value.real), float(value.imag)] for value in functionals],
        "norm": norm(y),
    }
    if product.content:
        found["content"] = dict(product.content)
    return found | dict(product.notes)


def check_fingerprint(product: Product, seed: int, stored: dict[str, Any]) -> None:
    """Compares the operator of this process with the stored fingerprint; takes one product.

    Raises:
        DriftError: If they differ by more than rounding can explain.
    """
    mine = fingerprint_of(product, seed)
    before, now = stored.get("content") or {}, mine.get("content") or {}
    difference = np.array(mine["functionals"]) - np.array(stored["functionals"])
    change = _relative(
        math.sqrt(float((difference**2).sum()) / WIDTH), max(float(stored["norm"]), mine["norm"])
    )
    limit = tolerance(product.dtype)
    changed = [name for name in before if name in now and before[name] != now[name]]
    if not change <= limit:
        cause = f"{_CAUSES}; or other weights, data or arguments"
        if changed:
            cause = f"What has changed: its {' and its '.join(changed)}"
            if "data" in changed:
                cause += " (augmentation draws others each time, unless its seed is set before)"
        raise DriftError(
            f"the operator is not the one that the run started with: its product with the probe "
            f"vector differs by {short(change)} (allowed: {short(limit)}). {cause}. Restore them, "
            "or plan a new run"
        )
    if changed:
        log.warning(
            "the %s of the operator are others than when the run started; its product with the "
            "probe vector is the same to rounding, so it goes on",
            " and the ".join(changed),
        )
