"""How wide the sketches are: defaults, and what fits into a given storage."""

from __future__ import annotations

import math

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
