"""Products whose memory the operator may use again: they are noticed, and copied.

An operator may return its own buffer (``out=``), and write the next product into it while this one
is still being compared or written to the disk. Products that nobody else refers to cost nothing.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array


class Reuse:
    """Notices products of one operator whose memory may come to hold others, and copies them.

    References to memory of numpy and torch are counted. Memory that was lent to them (as that of a
    numpy array is to the tensor made of it) cannot be asked who else knows it: its first product of
    a kind is copied, and stays until the second shows whether it is in the same place. Memory that
    is in use is never handed out anew.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, Array] | None = None
        self._fresh: set[Any] = set()

    def owned(self, array: Array, shared: bool | None, kind: Any) -> Array:
        """Returns a product in memory that the operator does not write to again.

        Args:
            array: The product, in the memory that the operator returned.
            shared: What :func:`is_shared` said of it.
            kind: What products of one buffer have in common: side and shape.
        """
        last, self._last = self._last, None
        before = last[1] if last is not None and last[0] == kind and shared is None else None
        if before is not None and not np.may_share_memory(before, array):
            self._fresh.add(kind)
        if shared is False or (shared is None and kind in self._fresh):
            return array
        if shared is None:
            self._last = (kind, array)
        return array.copy()


def is_shared(made: list[Any]) -> bool | None:
    """Whether more than the value of a list refers to its memory; ``None`` if nobody can tell.

    Args:
        made: A list that alone refers to an array or a tensor.
    """
    if not isinstance(made[0], np.ndarray):
        try:
            return _is_shared_tensor(made)
        except (RuntimeError, NotImplementedError):
            # Sparse tensors and those that stand for others have no memory of their own.
            return None
    fresh, fresh_base = _counts_of_fresh_arrays()
    if sys.getrefcount(made[0]) > fresh:
        return True
    if made[0].base is None:
        return False if made[0].flags.owndata else None
    if not isinstance(made[0].base, np.ndarray):
        return None
    if sys.getrefcount(made[0].base) > fresh_base:
        return True
    return False if made[0].base.flags.owndata else None


@cache
def _counts_of_fresh_arrays() -> tuple[int, int]:
    """Counts the references to an array, and to that of a view, that only a list refers to."""
    # Python's versions count those of their own in different ways.
    made = [np.empty(2), np.empty(2)[:1]]
    return sys.getrefcount(made[0]), sys.getrefcount(made[1].base)


def _is_shared_tensor(made: list[Any]) -> bool | None:
    import torch

    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None:
        return None
    fresh, fresh_base = _counts_of_fresh_tensors()
    if sys.getrefcount(made[0]) > fresh:
        return True
    is_view = made[0]._base is not None
    if is_view and sys.getrefcount(made[0]._base) > fresh_base:
        return True
    storage = made[0].untyped_storage()
    # This object, the tensor, and that of which it is a view.
    if count(storage._cdata) > 2 + is_view:
        return True
    return False if storage.resizable() else None


@cache
def _counts_of_fresh_tensors() -> tuple[int, int]:
    """The same for tensors."""
    import torch

    made = [torch.empty(2), torch.empty(2)[:1]]
    return sys.getrefcount(made[0]), sys.getrefcount(made[1]._base)
