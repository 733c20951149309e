"""Arrays whose place in memory cannot change a result, and conversions that say nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
"""Bytes; as torch aligns its own tensors."""


def empty_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised C-ordered array whose first byte is aligned to a cache line.

    Linear algebra libraries may add in another order where an array is aligned otherwise, and
    numpy aligns to 16 bytes only: equal bits need equal alignment.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def converted(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array in another type; what is too large for it becomes infinite without a warning.

    For arrays that are looked at afterwards, and refused with a reason.
    """
    with np.errstate(over="ignore"):
        return array.astype(dtype)


Array = npt.NDArray[Any]
