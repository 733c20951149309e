"""numpy arrays: aligned allocation, so that equal input gives equal bits, and silent conversion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Alignment of arrays in bytes: a cache line, to which torch aligns its own tensors too."""


def empty_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Allocates an uninitialised C-ordered array whose first byte is aligned to a cache line.

    A linear algebra library may add in another order when an array is aligned differently, and
    numpy aligns to 16 bytes only. So equal bits need equal alignment.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def converted(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Converts an array to another dtype; values that are too large become infinite, unwarned.

    It serves callers that check the array afterwards and refuse infinite values with a reason of
    their own: numpy's warning would only come on top.
    """
    with np.errstate(over="ignore"):
        return array.astype(dtype)


Array = npt.NDArray[Any]


def tolerance(dtype: str) -> float:
    """Relative difference between two runs of one product that rounding may explain.

    Generous, as other processors, devices and block widths add in other orders: 256 units of
    single precision (3e-5), 2**16 of double (1.5e-11).
    """
    single = dtype in ("float32", "complex64")
    return 256 * 2.0**-23 if single else 2.0**16 * 2.0**-52
