"""Widths of the sketches: defaults, what fits into a given storage, and checks of a spec.

Everything is refused when a run is planned, before anything is measured.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.errors import UsageError, counted
from skerch_ooc.base.figures import short
from skerch_ooc.base.noise_kinds import COMPLEX_ONLY, LARGEST_HEIGHT, WHOLE_COLUMNS
from skerch_ooc.base.resources import parse_bytes
from skerch_ooc.planning.krylov import (
    PAIRS_TOLERANCE,
    ROUND_WIDTH,
    TILE_COLUMNS,
    WIDEST_START,
    Krylov,
    most_rounds,
)
from skerch_ooc.planning.methods import METHODS, names_of
from skerch_ooc.planning.spec import ROLES, RecoverySpec, Spec

FEWEST_TEST_MEASUREMENTS = 10
"""Least test columns of a run with a tolerance; with fewer the error is known too badly."""

FEWEST_SPARSE = 64
"""Least columns of a sparse test matrix; a narrower one may miss whole directions."""


@dataclass(frozen=True)
class Sizes:
    """How many columns each role has in the first round.

    Attributes:
        right: Columns of the right sketch.
        left: Columns of the left sketch.
        inner: Rows and columns of the inner sketch.
        test: Columns of the test sketch.
        test_left: Columns of the test sketch of the adjoint.
    """

    right: int
    left: int
    inner: int
    test: int
    test_left: int = 0

    def as_dict(self) -> dict[str, int]:
        """Returns the columns of each role, in the order in which they are measured."""
        return {role: getattr(self, role.replace("-", "_")) for role in ROLES}


def require_sense(spec: Spec) -> None:
    """Refuses settings of a spec that contradict each other.

    Raises:
        UsageError: If some do; names the keys and what is allowed.
    """
    name, method = spec.recovery.method, METHODS[spec.recovery.method]
    if spec.dtype is not None:
        _require_noise_of(spec.dtype, spec.sketch.noise)
    if spec.recovery.power_iterations and not method.most_power_iterations:
        powers = names_of(lambda other: other.most_power_iterations > 0)
        raise UsageError(
            f"recovery.power_iterations = {spec.recovery.power_iterations} are rounds of method = "
            f"{_quoted(powers)}; method = {name!r} makes one pass: leave it out"
        )
    require_inverted_core(spec.recovery)
    _require_measured(spec)
    require_order(spec.recovery, spec.kind)
    _require_rounds(spec)
    if spec.tolerance is not None and not method.nests:
        raise UsageError(
            f"tolerance = {spec.tolerance}: the columns of method = {name!r} do not nest, so it "
            f"cannot measure in rounds; use one of {', '.join(names_of(lambda o: o.nests))}"
        )
    if spec.tolerance is not None and spec.sketch.test_measurements < FEWEST_TEST_MEASUREMENTS:
        raise UsageError(
            f"tolerance = {spec.tolerance} needs sketch.test_measurements of at least "
            f"{FEWEST_TEST_MEASUREMENTS}, not {spec.sketch.test_measurements}"
        )


def require_order(settings: RecoverySpec, kind: str) -> None:
    """Refuses an order of the values that the method or the kind does not have.

    Raises:
        UsageError: If there is one; names the key.
    """
    if settings.which == "LM":
        return
    if kind == "svd":
        raise UsageError(
            f'recovery.which = "{settings.which}": singular values have no sign; leave it out'
        )
    if not METHODS[settings.method].orthogonal:
        raise UsageError(
            f'recovery.which = "{settings.which}": only method = "krylov" looks for one end of the '
            f'spectrum, not "{settings.method}"; leave it out, or take krylov'
        )


def _require_rounds(spec: Spec) -> None:
    """Refuses keys of ``krylov`` for other methods, and keys of those for it."""
    name = spec.recovery.method
    if not METHODS[name].orthogonal:
        for key in ("pairs_tolerance", "rounds", "round_width", "start"):
            if (value := getattr(spec, key)) is not None:
                raise UsageError(
                    f'{key} = {value!r} is of method = "krylov", not of "{name}"; leave it out, or '
                    'give recovery.method = "krylov"'
                )
        return
    if spec.storage is not None:
        raise UsageError(
            f"storage = {spec.storage!r}: the pairs decide how much krylov measures; give "
            "measurements, the most in all, instead"
        )
    if spec.recovery.vectors != "stored":
        raise UsageError(
            f"recovery.vectors = {spec.recovery.vectors!r}: the vectors of krylov are made of all "
            'rounds, and always stored; take "stored"'
        )
    if spec.sketch.noise in (*WHOLE_COLUMNS, "sparse-sign"):
        raise UsageError(
            f"sketch.noise = {spec.sketch.noise!r}: the first block of krylov is narrow, and read "
            'by rows; take "rademacher" or "gaussian"'
        )
    if spec.pairs_tolerance is not None and spec.dtype is not None:
        require_reachable(spec.pairs_tolerance, spec.dtype)


def require_reachable(pairs_tolerance: float, dtype: str) -> None:
    """Refuses a tolerance that products of a dtype cannot meet.

    Raises:
        UsageError: If it is too small; it states the least.
    """
    least = 4 * float(np.finfo(dtype).eps)
    if pairs_tolerance < least:
        raise UsageError(
            f"pairs_tolerance = {pairs_tolerance:g} is below what products in {dtype} can tell, "
            f"{short(least)}; give at least that, or a wider dtype"
        )


def krylov_of(spec: Spec, shape: tuple[int, int]) -> Krylov | None:
    """Returns width and number of the rounds that a spec asks for; ``None`` for other methods.

    Args:
        spec: The spec of the run.
        shape: Height and width of the operator.

    Raises:
        UsageError: If so many pairs cannot be had of so many rounds, or not so exactly.
    """
    if not METHODS[spec.recovery.method].orthogonal:
        return None
    _require_rounds(dataclasses.replace(spec, dtype=spec.products_dtype))
    rank = int(spec.recovery.rank)
    usual = ROUND_WIDTH if spec.start is None else max(ROUND_WIDTH, min(rank, WIDEST_START))
    width = min(spec.round_width or usual, min(shape))
    rounds = spec.rounds or most_rounds(spec.kind, rank, width)
    if spec.measurements is not None:
        if spec.measurements < width:
            raise UsageError(
                f"measurements = {spec.measurements} is less than a round, round_width = {width}; "
                "give more, or a narrower round"
            )
        rounds = min(rounds, spec.measurements // width)
    most = _most_pairs(spec.kind, shape, width, rounds)
    if rank > most and (spec.recovery.states_rank or not most):
        raise UsageError(
            f"recovery.rank = {rank}: {counted(rounds, 'round')} of {width} columns for an "
            f"operator of {shape[0]} x {shape[1]} give at most {most} pairs; give at most so "
            "many, or more rounds"
        )
    exact = spec.rounds is not None and spec.pairs_tolerance is None
    tolerance = None if exact else spec.pairs_tolerance or PAIRS_TOLERANCE
    return Krylov(width, rounds, tolerance, TILE_COLUMNS)


def _most_pairs(kind: str, shape: tuple[int, int], width: int, rounds: int) -> int:
    """Returns how many pairs rounds of an operator have at most."""
    # In svd each side has the blocks of every other round.
    return min(min(shape), width * (rounds if kind == "eigh" else rounds // 2))


def with_rank(spec: Spec, shape: tuple[int, int]) -> Spec:
    """Returns the spec with as many pairs as there are, where a default looks for more."""
    krylov = krylov_of(spec, shape)
    if krylov is None or spec.recovery.states_rank:
        return spec
    most = _most_pairs(spec.kind, shape, krylov.width, krylov.rounds)
    rank = min(int(spec.recovery.rank), most)
    return dataclasses.replace(spec, recovery=dataclasses.replace(spec.recovery, rank=rank))


def with_dtype(spec: Spec, dtype: str) -> Spec:
    """Returns the spec with the dtype that is taken where it is left out.

    Raises:
        UsageError: If the noise that is asked for is none of this dtype.
    """
    if spec.dtype is not None:
        return spec
    _require_noise_of(dtype, spec.sketch.noise)
    return dataclasses.replace(spec, dtype=dtype)


def _require_noise_of(dtype: str, noise: str) -> None:
    if noise in COMPLEX_ONLY and not dtype.startswith("complex"):
        raise UsageError(
            f"sketch.noise = {noise!r} is complex, but dtype = {dtype!r} is real; "
            'take "rademacher", or a complex dtype'
        )


def require_inverted_core(settings: RecoverySpec) -> None:
    """Refuses a given core size for a method that takes none.

    Raises:
        UsageError: If there is one; names the key.
    """
    if settings.core != "auto" and not METHODS[settings.method].inverts_core:
        raise UsageError(
            f'recovery.core = {settings.core}: method = "{settings.method}" takes no size of a '
            "core; to cut its result, use rank"
        )


def _require_measured(spec: Spec) -> None:
    """Refuses the width of a sketch that the method does not measure."""
    name, method = spec.recovery.method, METHODS[spec.recovery.method]
    left, inner = spec.sketch.left_measurements, spec.sketch.inner_measurements
    back = spec.sketch.left_test_measurements
    if back not in ("auto", 0) and (spec.kind == "eigh" or not method.is_one_pass):
        place = 'for kind = "eigh"' if spec.kind == "eigh" else f'in method = "{name}"'
        raise UsageError(
            f"sketch.left_test_measurements = {back}: there is no test sketch of the adjoint "
            f"{place}; leave it out"
        )
    if left != "auto" and (spec.kind == "eigh" or not method.left):
        place = 'for kind = "eigh"' if spec.kind == "eigh" else f'in method = "{name}"'
        raise UsageError(
            f"sketch.left_measurements = {left}: there is no left sketch {place}; leave it out"
        )
    if inner != "auto" and not method.has_inner:
        raise UsageError(
            f"sketch.inner_measurements = {inner}: only method = "
            f"{_quoted(names_of(lambda other: other.has_inner))} has an inner sketch, not "
            f"{name!r}; leave it out"
        )


def _quoted(names: list[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def sizes_of(spec: Spec, shape: tuple[int, int]) -> Sizes:
    """Returns the widths of all sketches.

    Args:
        spec: The spec of the run.
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
    krylov = krylov_of(spec, shape)
    if krylov is not None:
        return Sizes(krylov.width, 0, 0, spec.sketch.test_measurements)
    right, left, inner = _usual_sizes(spec, shape)
    least, asked = min(shape), spec.sketch
    if right > least:
        what = "columns" if shape[1] <= shape[0] else "rows"
        raise UsageError(
            f"measurements = {right}: the operator has only {least} {what}, so "
            f"that at most {least} measurements make sense"
        )
    left = _width(
        "left", asked.left_measurements, left, (right, shape[0]), " (the operator's rows)"
    )
    inner = _width("inner", asked.inner_measurements, inner, (right, least))
    _require_noise(asked.noise, shape, right, spec.recovery)
    back = asked.left_test_measurements
    back = back if isinstance(back, int) else 0
    return Sizes(right, left, inner, asked.test_measurements, back)


def _usual_sizes(spec: Spec, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Returns right, left and inner columns: the defaults, or as many as fit the storage."""
    method, is_complex = spec.recovery.method, spec.products_dtype.startswith("complex")
    if spec.storage is None:
        assert spec.measurements is not None
        right = spec.measurements
        inner = default_inner(right, is_complex) if METHODS[method].has_inner else 0
        return right, default_left(method, spec.kind, right), inner
    itemsize, test = np.dtype(spec.products_dtype).itemsize, spec.sketch.test_measurements
    entries = max(0, _storage_bytes(spec.storage) // itemsize - test * shape[0])
    powers = spec.recovery.power_iterations
    try:
        return sizes_for_storage(method, spec.kind, is_complex, shape, entries, powers)
    except ValueError:
        raise UsageError(
            f"storage = {spec.storage!r} is too little: a right and a left column alone take "
            f"{sum(shape) * itemsize} bytes, the {test} test columns {test * shape[0] * itemsize}; "
            "give more"
        ) from None


def _width(role: str, asked: int | str, usual: int, ends: tuple[int, int], most: str = "") -> int:
    """Returns the columns of a role: as asked for and checked, or the usual ones, capped."""
    low, high = ends
    if not isinstance(asked, int):
        return min(usual, high)
    if not low <= asked <= high:
        raise UsageError(
            f"sketch.{role}_measurements = {asked}: must be from {low} (the measurements) to "
            f"{high}{most}"
        )
    return asked


def _require_noise(
    noise: str, shape: tuple[int, int], measurements: int, settings: RecoverySpec
) -> None:
    """Refuses test matrices that are too tall or too narrow for their distribution."""
    if noise in WHOLE_COLUMNS and max(shape) > LARGEST_HEIGHT:
        raise UsageError(
            f"sketch.noise = {noise!r} has at most {LARGEST_HEIGHT} rows, the operator "
            f'{max(shape)}; take "rademacher"'
        )
    require_recoverable(settings, measurements)
    if noise == "sparse-sign" and measurements < FEWEST_SPARSE:
        raise UsageError(
            f"sketch.noise = 'sparse-sign' with measurements = {measurements}: its rows have one "
            f"entry in 16 columns, too few to see all of the operator with less than "
            f'{FEWEST_SPARSE}; take "rademacher"'
        )


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
        UsageError: If one is above; names the key.
    """
    for key, value in (("core", settings.core), ("rank", settings.rank)):
        if isinstance(value, int) and value > measurements:
            raise UsageError(
                f"recovery.{key} = {value}: there are only {measurements} measurements; give at "
                "most so many"
            )


def default_left(method: str, kind: str, measurements: int) -> int:
    """Returns the columns of the left sketch ``W = A^H Psi``; 0 for ``kind = "eigh"``."""
    return 0 if kind == "eigh" else math.ceil(METHODS[method].left * measurements)


def default_inner(measurements: int, is_complex: bool) -> int:
    """Returns the columns of an inner sketch, ``s = 2 k + alpha``.

    ``alpha`` is 1 for real and 0 for complex numbers (Tropp et al. 2019, arXiv 1902.08651,
    section 5.4).
    """
    return 2 * measurements + (0 if is_complex else 1)


def sizes_for_storage(
    method: str,
    kind: str,
    is_complex: bool,
    shape: tuple[int, int],
    entries: int,
    power_iterations: int = 0,
) -> tuple[int, int, int]:
    """Returns the widest sketches that fit into a given storage.

    With an inner sketch these are the natural sizes of Tropp et al. 2019 (arXiv 1902.08651,
    section 5.4.2): the largest ``k`` with ``k (h + w) + s^2 <= T`` and ``s = 2 k + alpha``, then
    the largest ``s``. For a Hermitian operator ``k h + s (s - k) <= T``: the first ``k`` inner
    columns are the outer ones.

    Args:
        method: Name of the method.
        kind: ``"eigh"`` or ``"svd"``.
        is_complex: Whether the entries are complex.
        shape: Height and width of the operator.
        entries: How many numbers may be stored, not counting the test sketch.
        power_iterations: How many there are; each adds rounds, whose bases and sketches are stored.

    Returns:
        ``(measurements, left, inner)``; measurements are at most the operator's rows and columns.

    Raises:
        ValueError: If not even one measurement fits.
    """
    (h, w), row = shape, METHODS[method]
    # A later round stores a basis of the height of one side, and a sketch of that of the other.
    column = h + (row.rounds(kind, power_iterations) - 1) * (h + w)

    def stored(k: int, s: int) -> int:
        inner = s * (s - k) if kind == "eigh" else s * s
        return k * column + default_left(method, kind, k) * w + inner * row.has_inner

    def fits(k: int) -> bool:
        return stored(k, default_inner(k, is_complex)) <= entries

    k = _largest(fits, min(shape))
    if k < 1:
        raise ValueError(f"a storage of {entries} numbers is too little for one measurement")
    inner = _largest(lambda s: stored(k, s) <= entries, min(shape)) if row.has_inner else 0
    return k, default_left(method, kind, k), inner


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest number up to ``most`` that fits; 0 if not even 1 does.

    All numbers below one that fits must fit, too.
    """
    return bisect.bisect_left(range(1, most + 1), True, key=lambda number: not fits(number))
