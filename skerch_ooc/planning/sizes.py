"""Which requests make sense, and how wide their sketches are: all of it said at plan time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from skerch_ooc.errors import UsageError
from skerch_ooc.noise import COMPLEX_ONLY, WHOLE_COLUMNS
from skerch_ooc.recovery.sizes import default_inner, default_left, sizes_for_storage
from skerch_ooc.resources import parse_bytes
from skerch_ooc.spec import NESTING_METHODS, RecoverySpec, Spec
from skerch_ooc.ssrft import LARGEST_HEIGHT

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
