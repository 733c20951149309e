"""Arithmetic on tiles: products and QRs by numpy in main memory, or by torch on a device (a GPU).

Tiles come from disk and sums go back to main memory either way. A device computes in double
precision too; its sums differ from those of the processor by rounding, except where they are exact.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError


class Arithmetic(Protocol):
    """Multiplies matrices that were loaded, and writes results to arrays in main memory.

    Attributes:
        device: Name of the device.
    """

    device: str

    def load(self, array: Array) -> Any:
        """Returns an array as an operand of this arithmetic, which can be sliced as an array."""
        ...

    def times(self, left: Any, right: Any, out: Array) -> None:
        """Writes ``left right`` to ``out``."""
        ...

    def adjoint_times(self, left: Any, right: Any, out: Array) -> None:
        """Writes ``left^H right`` to ``out``."""
        ...

    def triangle(self, matrix: Any) -> Array:
        """Returns the triangular factor of a QR decomposition, in main memory."""
        ...


class Host:
    """numpy, in main memory."""

    device = "cpu"

    def load(self, array: Array) -> Array:
        """See :class:`Arithmetic`."""
        return array

    def times(self, left: Array, right: Array, out: Array) -> None:
        """See :class:`Arithmetic`."""
        # By torch, which the decompositions have loaded already: numpy's own library needs half as
        # long again for factors of a few hundred columns.
        import torch

        torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))

    def adjoint_times(self, left: Array, right: Array, out: Array) -> None:
        """See :class:`Arithmetic`."""
        # numpy recognises a real matrix times its own transpose (BLAS syrk): half the work.
        np.matmul(left.conj().T, right, out=out)

    def triangle(self, matrix: Array) -> Array:
        """See :class:`Arithmetic`."""
        return np.asarray(np.linalg.qr(matrix, mode="r"))


class Device:
    """torch, on a device.

    Args:
        device: Its name, such as ``"cuda"``.

    Raises:
        UsageError: If it cannot be used here.
    """

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        try:
            torch.empty(0, dtype=torch.float64, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"device = {device!r} cannot be used here: {reason}; give another with --device, "
                "such as cpu"
            ) from error

    def load(self, array: Array) -> Any:
        """See :class:`Arithmetic`."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def times(self, left: Any, right: Any, out: Array) -> None:
        """See :class:`Arithmetic`."""
        self._store(left @ right, out)

    def adjoint_times(self, left: Any, right: Any, out: Array) -> None:
        """See :class:`Arithmetic`."""
        self._store(left.mH @ right, out)

    def triangle(self, matrix: Any) -> Array:
        """See :class:`Arithmetic`."""
        import torch

        return np.asarray(torch.linalg.qr(matrix, mode="r").R.cpu().numpy())

    @staticmethod
    def _store(result: Any, out: Array) -> None:
        import torch

        torch.from_numpy(out).copy_(result)


def arithmetic_on(device: str) -> Arithmetic:
    """Returns the arithmetic of a device; ``"cpu"`` is numpy's.

    Raises:
        UsageError: If the device cannot be used here.
    """
    return Host() if device == "cpu" else Device(device)
