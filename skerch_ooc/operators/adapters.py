"""One face for all operators: anything with ``.shape`` and ``@`` becomes a :class:`Product`."""

from __future__ import annotations

import math
import sys
import traceback
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import OperatorError

Array = npt.NDArray[Any]


class Product:
    """Applies an operator to blocks of columns and checks what comes back.

    Args:
        operator: Anything with ``.shape`` of two integers and ``operator @ X``. Arrays and
            operators of numpy and SciPy are given numpy arrays, all others torch tensors (torch is
            imported for these only).
        dtype: Name of the plan's dtype; the operator must return the same.
        device: The torch device on which ``X`` is handed over.

    Attributes:
        shape: ``(height, width)``.
        dtype: Name of the dtype.
        device: Name of the device.

    Raises:
        OperatorError: If the operator has no usable shape, or the device is not there.
    """

    def __init__(self, operator: Any, dtype: str, device: str) -> None:
        self._operator = operator
        self.shape = shape_of(operator)
        self.dtype = dtype
        self._numpy = _wants_numpy(operator)
        self.device = device
        if not self._numpy:
            _require_device(device)

    def __call__(self, columns: Array) -> Array:
        """Applies the operator.

        Args:
            columns: ``(w, b)``, C-contiguous, of the plan's dtype.

        Returns:
            The products, ``(h, b)``, C-contiguous, of the plan's dtype, in main memory.

        Raises:
            OperatorError: If the operator fails, or returns another shape or dtype.
        """
        x = columns if self._numpy else _to_torch(columns, self.device)
        try:
            y = self._operator @ x
        except MemoryError:
            raise
        except Exception as error:
            # Whatever a user's own code raises is theirs: told in their words, with its line.
            raise OperatorError(_describe(error, columns)) from error
        return self._checked(y, columns.shape[1])

    def _checked(self, y: Any, width: int) -> Array:
        if not (isinstance(y, np.ndarray) if self._numpy else _is_tensor(y)):
            raise OperatorError(
                f"operator @ X returned {type(y).__module__}.{type(y).__qualname__}, not a "
                f"{'numpy array' if self._numpy else 'torch tensor'}"
            )
        wanted = (self.shape[0], width)
        if tuple(y.shape) != wanted:
            raise OperatorError(
                f"operator @ X returned shape {tuple(y.shape)} for X of shape "
                f"{(self.shape[1], width)}; the operator's shape {self.shape} calls for {wanted}"
            )
        found = str(y.dtype).removeprefix("torch.")
        if found != self.dtype:
            raise OperatorError(
                f"operator @ X returned {found}, the plan says dtype = {self.dtype}; "
                f'set dtype = "{found}" in the spec, or let the operator return {self.dtype}'
            )
        array = y if self._numpy else y.detach().resolve_conj().resolve_neg().cpu().numpy()
        return np.ascontiguousarray(array)


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OperatorError(f"device = {device!r} cannot be used here: {reason}") from error


def _to_torch(array: Array, device: str) -> Any:
    import torch

    return torch.from_numpy(array).to(device)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def shape_of(operator: Any) -> tuple[int, int]:
    """The shape of an operator as two integers.

    Raises:
        OperatorError: If it has none, or one with zero rows or columns.
    """
    shape = getattr(operator, "shape", None)
    try:
        height, width = (int(size) for size in shape)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise OperatorError(
            f"the operator ({type(operator).__module__}.{type(operator).__qualname__}) must have "
            f".shape = (height, width), both at least 1; it has {shape!r}"
        )
    return height, width


def dtype_of(operator: Any) -> str:
    """The dtype that an operator states, as a name; float32 if it states none that will do."""
    name = str(getattr(operator, "dtype", "")).removeprefix("torch.")
    return name if name in ("float32", "float64", "complex64", "complex128") else "float32"


def _wants_numpy(operator: Any) -> bool:
    if isinstance(operator, np.ndarray):
        return True
    # SciPy operators can only be at hand if someone has imported SciPy.
    sparse = sys.modules.get("scipy.sparse")
    linalg = sys.modules.get("scipy.sparse.linalg")
    return bool(
        (sparse is not None and sparse.issparse(operator))
        or (linalg is not None and isinstance(operator, linalg.LinearOperator))
    )


def _describe(error: Exception, columns: Array) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"the operator failed on X of shape {columns.shape} and dtype {columns.dtype} (the dtype "
        f"of the plan): {type(error).__name__}: {error} "
        f"(in {frame.name}, {frame.filename}:{frame.lineno})"
    )


def tolerance(dtype: str) -> float:
    """Relative difference between two runs of one product that rounding may explain.

    Generous, as other processors, devices and block widths add in other orders: 256 units of
    single precision (3e-5), 2**16 of double (1.5e-11).
    """
    single = dtype in ("float32", "complex64")
    return 256 * 2.0**-23 if single else 2.0**16 * 2.0**-52


def norm(array: Array) -> float:
    """The Frobenius norm of an array, summed in double precision."""
    flat = array.reshape(-1)
    wide = flat.astype(np.result_type(flat, np.float64), copy=False)
    return math.sqrt(float(np.vdot(wide, wide).real))
