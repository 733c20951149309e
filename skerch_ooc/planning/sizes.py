"""Which requests make sense, and how wide their sketches are: all of it said at plan time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skerch_ooc.base.distributions import COMPLEX_ONLY, LARGEST_HEIGHT, WHOLE_COLUMNS
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.resources import parse_bytes
from skerch_ooc.planning.spec import NESTING_METHODS, RecoverySpec, Spec

FEWEST_TEST_MEASUREMENTS = 10
"""With fewer test columns a tolerance cannot be judged."""

FEWEST_SPARSE = 64
"""With fewer columns a sparse test matrix may miss whole directions."""


@dataclass(frozen=True)
class Sizes:
    """Columns of each role in the first round.

    Attributes:
        right: Of the right sketch.
        left: Of the left sketch.
        inner: Rows and columns of the inner sketch.
        test: Of the test sketch.
    """

    right: int
    left: int
    inner: int
    test: int

    roles: ClassVar[tuple[str, ...]] = ("right", "test", "left", "inner")

    def as_dict(self) -> dict[str, int]:
        """The columns of each role, in the order in which they are measured."""
        return {role: getattr(self, role) for role in self.roles}


def require_sense(spec: Spec) -> None:
    """Refuses combinations that make no sense, by name.

    Raises:
        UsageError: Naming the keys and what would do.
    """
    method, kind = spec.recovery.method, spec.kind
    is_complex = spec.dtype.startswith("complex")
    wrong = None
    if spec.sketch.noise in COMPLEX_ONLY and not is_complex:
        wrong = (
            f"sketch.noise = {spec.sketch.noise!r} is complex, but dtype = {spec.dtype!r} is real; "
            'take "rademacher", or a complex dtype'
        )
    elif spec.recovery.power_iterations and method != "hmt":
        wrong = (
            f"recovery.power_iterations = {spec.recovery.power_iterations} are rounds of "
            f'method = "hmt"; method = {method!r} makes one pass: leave it out'
        )
    elif method == "hmt" and spec.recovery.core != "auto":
        wrong = (
            f'recovery.core = {spec.recovery.core}: method = "hmt" inverts no core; to cut its '
            "result, use rank"
        )
    elif spec.sketch.left_measurements != "auto" and (kind == "eigh" or method == "hmt"):
        wrong = (
            f"sketch.left_measurements = {spec.sketch.left_measurements}: there is no left sketch "
            + ('for kind = "eigh"' if kind == "eigh" else 'in method = "hmt"')
            + "; leave it out"
        )
    elif spec.sketch.inner_measurements != "auto" and method != "oversampled":
        wrong = (
            f"sketch.inner_measurements = {spec.sketch.inner_measurements}: only method = "
            f'"oversampled" has an inner sketch, not {method!r}; leave it out'
        )
    elif spec.tolerance is not None and method not in NESTING_METHODS:
        wrong = (
            f"tolerance = {spec.tolerance}: the columns of method = {method!r} do not nest, so it "
            f"cannot measure in rounds; use one of {', '.join(NESTING_METHODS)}"
        )
    elif spec.tolerance is not None and (spec.sketch.test_measurements < FEWEST_TEST_MEASUREMENTS):
        wrong = (
            f"tolerance = {spec.tolerance} needs sketch.test_measurements of at least "
            f"{FEWEST_TEST_MEASUREMENTS}, not {spec.sketch.test_measurements}"
        )
    if wrong:
        raise UsageError(wrong)


def sizes_of(spec: Spec, shape: tuple[int, int]) -> Sizes:
    """The widths of all sketches.

    Args:
        spec: What is wanted.
        shape: Height and width of the operator.

    Raises:
        UsageError: If they are more than the operator has rows or columns, do not fit together,
            or the storage is too little.
    """
    if spec.kind == "eigh" and shape[0] != shape[1]:
        raise UsageError(
            f'kind = "eigh" needs a square operator, this one is {shape[0]} x {shape[1]}; '
            'kind = "svd" takes any'
        )
    method, is_complex = spec.recovery.method, spec.dtype.startswith("complex")
    least, test = min(shape), spec.sketch.test_measurements
    if spec.storage is not None:
        itemsize = np.dtype(spec.dtype).itemsize
        entries = _storage_bytes(spec.storage) // itemsize - test * shape[0]
        try:
            right, left, inner = sizes_for_storage(
                method,
                spec.kind,
                is_complex,
                shape,
                max(0, entries),
                spec.recovery.power_iterations,
            )
        except ValueError:
            column = (shape[0] + shape[1]) * itemsize
            raise UsageError(
                f"storage = {spec.storage!r} is too little: a right and a left column alone take "
                f"{column} bytes, the {test} test columns {test * shape[0] * itemsize}; give more"
            ) from None
    else:
        assert spec.measurements is not None
        right = spec.measurements
        left = default_left(method, spec.kind, right)
        inner = default_inner(right, is_complex) if method == "oversampled" else 0
    if right > least:
        what = "columns" if shape[1] <= shape[0] else "rows"
        raise UsageError(
            f"measurements = {right}: the operator has only {least} {what}, so "
            f"that at most {least} measurements make sense"
        )
    if isinstance(spec.sketch.left_measurements, int):
        left = spec.sketch.left_measurements
        if left > shape[0] or left < right:
            raise UsageError(
                f"sketch.left_measurements = {left}: must be from {right} (the measurements) to "
                f"{shape[0]} (the operator's rows)"
            )
    if isinstance(spec.sketch.inner_measurements, int):
        inner = spec.sketch.inner_measurements
        if inner > least or inner < right:
            raise UsageError(
                f"sketch.inner_measurements = {inner}: must be from {right} (the measurements) to "
                f"{least}"
            )
    if spec.sketch.noise in WHOLE_COLUMNS and max(shape) > LARGEST_HEIGHT:
        raise UsageError(
            f"sketch.noise = {spec.sketch.noise!r} has at most {LARGEST_HEIGHT} rows, the operator "
            f'{max(shape)}; take "rademacher"'
        )
    sizes = Sizes(right, min(left, shape[0]), min(inner, least), test)
    require_recoverable(spec.recovery, sizes.right)
    if spec.sketch.noise == "sparse-sign" and right < FEWEST_SPARSE:
        raise UsageError(
            f"sketch.noise = 'sparse-sign' with measurements = {right}: its rows have one entry "
            f"in 16 columns, too few to see all of the operator with less than {FEWEST_SPARSE}; "
            'take "rademacher"'
        )
    return sizes


def _storage_bytes(storage: str) -> int:
    try:
        return parse_bytes(storage)
    except UsageError:
        raise UsageError(
            f'storage = {storage!r}: must be an amount such as "10 GiB" or "500 MB"'
        ) from None


def require_recoverable(settings: RecoverySpec, measurements: int) -> None:
    """Refuses a core or rank above the number of measurements.

    Raises:
        UsageError: Naming the key.
    """
    for key, value in (("core", settings.core), ("rank", settings.rank)):
        if isinstance(value, int) and value > measurements:
            raise UsageError(
                f"recovery.{key} = {value}: there are only {measurements} measurements; give at "
                "most so many"
            )


NYSTROM_OVERSAMPLING = 1.5


def default_left(method: str, kind: str, measurements: int) -> int:
    """Columns of the left sketch ``W = A^H Psi``.

    Args:
        method: Name of the method.
        kind: ``"eigh"`` or ``"svd"``; for ``"eigh"`` no method has a left sketch.
        measurements: Columns of the right sketch.

    Returns:
        For Nystrom 1.5 times the measurements: its expected error is ``sqrt(1 + m / (l - m - 1))``
        times that of the range (Nakatsukasa 2020, arXiv 2009.11392, section 2).
    """
    if kind == "eigh" or method == "hmt":
        return 0
    if method == "nystrom":
        return math.ceil(NYSTROM_OVERSAMPLING * measurements)
    return measurements


def default_inner(measurements: int, is_complex: bool) -> int:
    """Columns of the inner sketch for ``oversampled``: ``s = 2 k + alpha``.

    ``alpha`` is 1 for real and 0 for complex numbers (Tropp et al. 2019, arXiv 1902.08651,
    section 5.4).
    """
    return 2 * measurements + _alpha(is_complex)


def _alpha(is_complex: bool) -> int:
    return 0 if is_complex else 1


def sizes_for_storage(
    method: str,
    kind: str,
    is_complex: bool,
    shape: tuple[int, int],
    entries: int,
    power_iterations: int = 0,
) -> tuple[int, int, int]:
    """The widest sketches that fit into a given storage.

    Args:
        method: Name of the method.
        kind: ``"eigh"`` or ``"svd"``.
        is_complex: Whether the entries are complex.
        shape: Height and width of the operator.
        entries: How many numbers may be stored, not counting the test sketch.
        power_iterations: Of ``hmt``: each adds rounds, whose bases and sketches are stored too.

    Returns:
        ``(measurements, left, inner)``, no more of the first than the operator has columns or rows.

    Raises:
        ValueError: If not even one measurement fits.
    """
    h, w = shape
    inner = 0
    if method == "oversampled":
        k, inner = _oversampled(kind, is_complex, h, w, entries)
    elif kind == "eigh":
        k = entries // ((3 + 2 * power_iterations) * h if method == "hmt" else h)
    elif method == "hmt":
        k = entries // ((2 + 2 * power_iterations) * h + (1 + 2 * power_iterations) * w)
    elif method == "singlepass":
        k = entries // (h + w)
    else:
        k = int(entries / (h + NYSTROM_OVERSAMPLING * w)) + 1
        while k > 0 and k * h + default_left(method, kind, k) * w > entries:
            k -= 1
    k = min(k, h, w)
    if k < 1:
        raise ValueError(f"a storage of {entries} numbers is too little for one measurement")
    return k, default_left(method, kind, k), inner


def _oversampled(kind: str, is_complex: bool, h: int, w: int, entries: int) -> tuple[int, int]:
    """Natural sizes of Tropp et al. 2019 (arXiv 1902.08651, section 5.4.2).

    The largest ``k`` with ``k (h + w) + s^2 <= T`` and ``s = 2 k + alpha``, then the largest ``s``.
    For a Hermitian operator ``k h + s (s - k) <= T``: the first ``k`` inner columns are the outer.
    """
    a = _alpha(is_complex)
    if kind == "eigh":
        # (2 k + a) (k + a) + k h <= T
        b = h + 3 * a
        k = int((math.sqrt(b * b + 8 * max(0, entries - a * a)) - b) / 4)
        k = max(0, min(k, h))
        rest = entries - k * h
        s = int((k + math.sqrt(k * k + 4 * max(0, rest))) / 2)
    else:
        b = h + w + 4 * a
        k = int((math.sqrt(b * b + 16 * max(0, entries - a * a)) - b) / 8)
        k = max(0, min(k, h, w))
        rest = entries - k * (h + w)
        s = math.isqrt(max(0, rest))
    return k, min(s, h, w)
