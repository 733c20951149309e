"""One face for all operators: anything with ``.shape`` and ``@`` becomes a :class:`Product`."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import note_share
from skerch_ooc.operators.reuse import Reuse, is_shared
from skerch_ooc.planning.spec import DEFAULT_DTYPE, DTYPES


class Product:
    """Applies an operator to blocks of columns and checks what comes back.

    Args:
        operator: Anything with ``.shape`` of two integers and ``operator @ X``, ``matmat(X)`` or
            ``matvec(x)``, and for the adjoint one of those that :func:`adjoint_product` knows.
            Arrays and operators of numpy and SciPy are given numpy arrays, all others torch tensors
            (torch is imported for these only).
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
        self._reuse = Reuse()
        self.device = device
        if not self._numpy:
            require_device(device)
        elif device != "cpu":
            # The processor applies it whatever the device is; a misspelt name is still refused.
            _require_device_name(device)

    notes: Mapping[str, Any] = {}
    """What a fingerprint says of how it was taken."""

    together = False
    """Whether it has ``sketch``, which takes sketches of both sides in one reading of its rows."""

    slab_bytes: int = 0
    """Memory that two slabs of rows take, where it reads its rows."""

    @property
    def content(self) -> Mapping[str, str]:
        """Hashes of what the operator is made of, by their names, if it says so."""
        found: Mapping[str, str] = getattr(self._operator, "content", None) or {}
        return found

    @property
    def layout(self) -> ParameterLayout | None:
        """Names, shapes and offsets of the parameters that its vectors are made of, if it says so.

        Raises:
            OperatorError: If they do not make up its columns.
        """
        stated: Any = getattr(self._operator, "layout", None)
        # A torch tensor has a layout too, which is something else.
        if not callable(getattr(stated, "as_json", None)):
            return None
        try:
            layout = ParameterLayout.of([(one["name"], one["shape"]) for one in stated.as_json()])
        except (LookupError, TypeError) as error:
            raise OperatorError(
                f"operator.layout = {shown(stated)} must list the name, shape and offset of each "
                "parameter"
            ) from error
        width = self._operator.shape[1]
        if layout.size != width:
            raise OperatorError(
                f"the parameters of operator.layout have {layout.size} entries, the operator has "
                f"{width} columns; give each parameter that the operator is of, in order"
            )
        return layout

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the operator says of how it is made: sentences for people."""
        found = getattr(self._operator, "remarks", ())
        found = (found,) if isinstance(found, str) else found
        return tuple(map(str, found)) if isinstance(found, list | tuple) else ()

    @property
    def columns_at_once(self) -> int | None:
        """How many columns the operator applies in one inner call, if it can be told so."""
        found = getattr(self._operator, "columns_at_once", None)
        able = callable(getattr(self._operator, "narrowed", None))
        return found if isinstance(found, int) and able else None

    def narrowed(self, columns_at_once: int) -> Self:
        """Returns the product that applies so many columns in one inner call.

        It is given whole blocks as before, and shares what the operator holds.

        Raises:
            OperatorError: If the operator cannot be told so.
        """
        if self.columns_at_once is None:
            raise OperatorError(
                f"the operator cannot be told to apply {columns_at_once} columns at once; give it "
                "columns_at_once and a method narrowed"
            )
        made = copy.copy(self)
        made._operator = self._operator.narrowed(columns_at_once)
        return made

    @property
    def terms(self) -> int:
        """How many terms the operator is made of: see :mod:`skerch_ooc.operators.terms`."""
        return 1

    def rows(self, terms: Range) -> Range | None:  # noqa: ARG002 (there is only one)
        """The rows that some terms make up; ``None`` if they make all of them."""
        return None

    def part(self, terms: Range) -> Product:
        """The operator with some of its terms only.

        Raises:
            OperatorError: If it has no such terms.
        """
        raise OperatorError(
            f"the operator is in one piece now, and was planned with several, of which {terms} "
            "are to be measured; restore it, or plan a new run"
        )

    held_bytes = 0
    """Memory that it comes to hold when it is applied, beside blocks of columns."""

    is_turned = False
    """Whether rows at hand are columns of it, so that both sides change their roles."""

    @property
    def sampled(self) -> Product:
        """What is compared with the fingerprint in place of the operator: here itself."""
        return self

    def sampled_as(self, fingerprint: Mapping[str, Any]) -> Product:  # noqa: ARG002 (see above)
        """The same, taken as that of a fingerprint was."""
        return self.sampled

    def __call__(self, columns: Array, *, adjoint: bool = False, wide: bool = False) -> Array:  # noqa: ARG002
        """Applies the operator, or its adjoint.

        Args:
            columns: ``(w, b)``, or ``(h, b)`` for the adjoint; C-contiguous, of the plan's dtype.
            adjoint: Whether ``A^H`` is to be applied instead of ``A``.
            wide: Whether a sum of terms is to be left in double precision; here there are none.

        Returns:
            The products, ``(h, b)`` or ``(w, b)``, C-contiguous, of the plan's dtype, in main
            memory that the operator does not write to again.

        Raises:
            OperatorError: If the operator fails, has no adjoint, or returns another shape or dtype.
        """
        made = [self._applied(columns, adjoint)]
        call = "the adjoint's product with X" if adjoint else "operator @ X"
        self._require_sound(made[0], call, columns.shape, adjoint)
        # Asked before anything else refers to it.
        shared = is_shared(made)
        array = np.ascontiguousarray(made[0] if self._numpy else _entries(made[0], call))
        if not _is_in_place_of(array, made.pop()):
            return array
        return self._reuse.owned(array, shared, (adjoint, array.shape, self.columns_at_once))

    def _applied(self, columns: Array, adjoint: bool) -> Any:
        x = columns if self._numpy else _tensor(columns, self.device)
        try:
            with self._warnings():
                return (
                    adjoint_product(self._operator, x) if adjoint else _product(self._operator, x)
                )
        except (MemoryError, OperatorError):
            raise
        except (Exception, SystemExit) as error:
            if "KeyboardInterrupt" in str(error):
                # Code that torch has compiled makes an error of its own of Ctrl-C.
                raise KeyboardInterrupt from error
            # Whatever a user's own code raises is theirs: told in their words, with its line.
            advice = getattr(self._operator, "advice", None)
            raise OperatorError(_describe(error, columns, adjoint, advice)) from error

    def _warnings(self) -> contextlib.AbstractContextManager[Any]:
        """Silences numpy's warnings of overflow: what is not finite is refused anyway."""
        if isinstance(self._operator, np.ndarray):
            return np.errstate(over="ignore", invalid="ignore")
        return contextlib.nullcontext()

    def _require_sound(self, y: Any, call: str, given: tuple[int, ...], adjoint: bool) -> None:
        """Refuses what is no product of the right kind, shape and dtype.

        Raises:
            OperatorError: If it is none.
        """
        if not (isinstance(y, np.ndarray) if self._numpy else _is_tensor(y)):
            raise OperatorError(
                f"{call} returned {type(y).__module__}.{type(y).__qualname__}; it must return a "
                f"{'numpy array' if self._numpy else 'torch tensor'}"
            )
        wanted = (self.shape[1 if adjoint else 0], given[1])
        if tuple(y.shape) != wanted:
            raise OperatorError(
                f"{call} returned shape {tuple(y.shape)} for X of shape {given}; it must be "
                f"{wanted}, as the operator has shape {self.shape}"
            )
        found = str(y.dtype).removeprefix("torch.")
        if found != self.dtype:
            other = f'set dtype = "{found}" in the spec, or ' if found in DTYPES else ""
            raise OperatorError(
                f"{call} returned {found}, the plan says dtype = {self.dtype}; "
                f"{other}let the operator return {self.dtype}"
            )


def _entries(y: Any, call: str) -> Array:
    """Returns the entries of a tensor, in main memory.

    Raises:
        OperatorError: If it has none of its own, as sparse and meta tensors.
    """
    try:
        array: Array = y.detach().resolve_conj().resolve_neg().cpu().numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        kind = "meta" if y.device.type == "meta" else str(y.layout).removeprefix("torch.")
        raise OperatorError(
            f"{call} returned a {kind} tensor, whose entries cannot be read: "
            f"{str(error).splitlines()[0]} Let it return a dense tensor"
        ) from error
    return array


def _is_in_place_of(array: Array, y: Any) -> bool:
    """Whether an array is in the memory of what an operator returned."""
    if isinstance(y, np.ndarray):
        return np.may_share_memory(array, y)
    return bool(y.device.type == "cpu" and y.data_ptr() == array.ctypes.data)


def product_of(operator: Any, dtype: str, device: str) -> Product:
    """What applies an operator: a :class:`Product`, or its own kind if it knows one.

    Raises:
        OperatorError: If the operator cannot be used.
    """
    make = getattr(operator, "as_product", None)
    if make is None:
        return Product(operator, dtype, device)
    made: Product = make(dtype, device)
    return made


def applied(operator: Any, x: Any, *, adjoint: bool) -> Any:
    """``A X`` or ``A^H X`` for a numpy array or torch tensor, of the same kind.

    Args:
        operator: One that has ``as_product``.
        x: The columns, or one vector; their dtype is that of the product.
        adjoint: Whether ``A^H`` is to be applied.
    """
    if x.ndim == 1:
        return applied(operator, x[:, None], adjoint=adjoint)[:, 0]
    if isinstance(x, np.ndarray):
        product = product_of(operator, str(x.dtype), "cpu")
        return product(x, adjoint=adjoint)
    import torch

    columns = x.detach().cpu().numpy()
    product = product_of(operator, str(columns.dtype), str(x.device))
    return torch.from_numpy(product(columns, adjoint=adjoint)).to(x.device)


def _product(operator: Any, x: Any) -> Any:
    """``A X``, by whatever means the operator offers."""
    if not callable(getattr(operator, "__matmul__", None)):
        if callable(getattr(operator, "matmat", None)):
            return operator.matmat(x)
        if callable(getattr(operator, "matvec", None)):
            return _columnwise(operator.matvec, x)
    # Where there is no such product, its own words say so.
    return operator @ x


def _columnwise(function: Callable[[Any], Any], x: Any) -> Any:
    """Applies a function of vectors to one column after the other.

    Each is copied before the next is asked for, which may be returned in the same memory.
    """
    columns = []
    for number in range(x.shape[1]):
        columns.append(_copied(function(x[:, number])))
        note_share((number + 1) / x.shape[1])
    if isinstance(x, np.ndarray):
        return np.stack(columns, axis=1)
    import torch

    return torch.stack(columns, dim=1)


def _copied(column: Any) -> Any:
    return column.reshape(-1).clone() if _is_tensor(column) else np.array(column).reshape(-1)


def adjoint_product(operator: Any, x: Any) -> Any:
    """``A^H X``, by whatever means the operator offers.

    In this order: matrices of numpy, torch and SciPy are transposed; then ``adjoint()``, ``.H``,
    ``rmatmat(X)``, ``X^H @ A``, and ``rmatvec(x)`` for one column after the other.

    Raises:
        OperatorError: If it offers none of them.
    """
    if isinstance(operator, np.ndarray) or _is_sparse(operator):
        return operator.conj().T @ x
    if _is_tensor(operator):
        return operator.mH @ x
    if callable(getattr(operator, "adjoint", None)):
        return operator.adjoint() @ x
    if getattr(operator, "H", None) is not None:
        return operator.H @ x
    if callable(getattr(operator, "rmatmat", None)):
        return operator.rmatmat(x)
    if callable(getattr(operator, "__rmatmul__", None)):
        # Called by name: a tensor on the left would try, and fail, to do it by itself.
        y = operator.__rmatmul__(x.conj().T if isinstance(x, np.ndarray) else x.mH)
        return y.conj().T if isinstance(y, np.ndarray) else y.mH
    if callable(getattr(operator, "rmatvec", None)):
        return _columnwise(operator.rmatvec, x)
    raise OperatorError(
        f"the operator ({type(operator).__module__}.{type(operator).__qualname__}) has no adjoint, "
        'which kind = "svd" needs: give it one of adjoint(), .H, rmatmat(X), rmatvec(x), or '
        "__rmatmul__ (for X @ A)"
    )


def _is_sparse(operator: Any) -> bool:
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(operator))


def _is_tensor(operator: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(operator, torch.Tensor)


def require_device(device: str) -> None:
    """Refuses a device that cannot be used here.

    Raises:
        OperatorError: With torch's reason.
    """
    import torch

    try:
        torch.empty(0, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OperatorError(
            f"device = {device!r} cannot be used here: {reason}; give another with --device, such "
            "as cpu"
        ) from error


def _require_device_name(device: str) -> None:
    import torch

    try:
        torch.device(device)
    except RuntimeError as error:
        # Torch's own words list all devices that anybody ever thought of.
        raise OperatorError(
            f"device = {device!r} is no device that torch knows; give one such as cpu or cuda:0"
        ) from error


def _tensor(array: Array, device: str) -> Any:
    import torch

    return torch.from_numpy(array).to(device)


def _meant(operator: Any) -> str:
    """Says what makes an operator of a model, a file or numbers, where these were given."""
    if isinstance(operator, (str, Path)):
        return (
            '. A file is opened first, as by numpy.load(path, mmap_mode="r"), or named in a spec '
            'whose factory is "stored"'
        )
    if isinstance(operator, (list, tuple)):
        return ". Give numpy.asarray(X)"
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(operator, torch.nn.Module):
        return ""
    return ". Of a model, skerch_ooc.operators.curvature makes operators, such as its Hessian"


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
            f".shape = (height, width), both at least 1; it has {shape!r}{_meant(operator)}"
        )
    return height, width


def dtype_of(operator: Any) -> str:
    """The dtype that an operator states, as a name; float32 if it states none that will do.

    It may state a dtype of torch, numpy or SciPy, or a name.
    """
    stated = getattr(operator, "dtype", None)
    name = str(stated).removeprefix("torch.")
    if stated is not None and name not in DTYPES:
        # Names that numpy knows otherwise: of another order of bytes, or a type of Python's.
        with contextlib.suppress(TypeError, ValueError):
            name = np.dtype(stated).name
    return name if name in DTYPES else DEFAULT_DTYPE


def _wants_numpy(operator: Any) -> bool:
    # SciPy operators can only be at hand if someone has imported SciPy.
    linalg = sys.modules.get("scipy.sparse.linalg")
    kinds = (np.ndarray, linalg.LinearOperator) if linalg else (np.ndarray,)
    return isinstance(operator, kinds) or _is_sparse(operator)


def _describe(error: BaseException, columns: Array, adjoint: bool, advice: Any) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    whose = "the adjoint of the operator" if adjoint else "the operator"
    if isinstance(error, SystemExit):
        return (
            f"{whose} ended its process: {error!r} (in {frame.name}, {frame.filename}:"
            f"{frame.lineno}); let it raise another exception instead"
        )
    more = f"; {advice}" if isinstance(advice, str) else ""
    return (
        f"{whose} failed on X of shape {columns.shape} and dtype {columns.dtype} (the dtype of the "
        f"plan): {type(error).__name__}: {error} "
        f"(in {frame.name}, {frame.filename}:{frame.lineno}){more}"
    )


def norm(array: Array) -> float:
    """The Frobenius norm of an array, summed in double precision."""
    flat = array.reshape(-1)
    wide = flat.astype(np.result_type(flat, np.float64), copy=False)
    return math.sqrt(float(np.vdot(wide, wide).real))
