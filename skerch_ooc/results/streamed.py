"""Operators that are made of a result: multiplied from both sides, by streams over its vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.indexing import Selection, select
from skerch_ooc.results.vectors import Tall, gather

TorchDtype = torch.dtype
Read = Callable[[Range], Array]
Write = Callable[[Range, Array], None]
Block = tuple[Range, Range, Array]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Factors:
    """The factors of a result ``U diag(values) V^H``.

    Attributes:
        left: ``U``.
        values: Real.
        right: ``V``; the same object as ``left`` for eigenvectors.
    """

    left: Tall
    values: Array
    right: Tall

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product."""
        return (self.left.shape[0], self.right.shape[0])

    @property
    def adjoint(self) -> Factors:
        """The factors of the adjoint."""
        return Factors(self.right, self.values, self.left)

    def turned(self, adjoint: bool) -> Factors:
        """Returns the factors of the product or of its adjoint."""
        return self.adjoint if adjoint else self

    def entries(
        self, rows: Selection, columns: Selection, core: Array | None = None
    ) -> Iterator[Block]:
        """Forms entries of ``U core V^H`` in double precision, by blocks.

        Args:
            rows: The rows that are wanted.
            columns: The columns that are wanted.
            core: By default ``diag(values)``.

        Yields:
            Places of rows and of columns among those that are wanted, and the entries.
        """
        all_values = Selection(range(len(self.values)))
        for across in cut(Range(0, len(columns)), _ROWS_AT_ONCE):
            wanted = Selection(columns.wanted[across.slice])
            v = gather(self.right, wanted, all_values).astype(self.right.wide_dtype).conj().T
            weights = self.values[:, None] * v if core is None else core @ v
            for down in cut(Range(0, len(rows)), _ROWS_AT_ONCE):
                u = gather(self.left, Selection(rows.wanted[down.slice]), all_values)
                yield down, across, u.astype(self.left.wide_dtype) @ weights


class Multiplied(ABC):
    """What is multiplied from both sides by streams over vectors, in bounded memory.

    Attributes:
        shape: Its shape.
        dtype: Its torch dtype.
    """

    shape: tuple[int, int]
    dtype: TorchDtype

    @abstractmethod
    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        """Forms ``A X``, or ``A^H X``, in double precision.

        Args:
            x: Gives rows of ``X``, in double precision.
            write: Is given rows of the result, each once.
            adjoint: Whether the adjoint is applied.
        """

    def __matmul__(self, x: Any) -> Any:
        """Multiplies a vector or the columns of a matrix, ``(w,)`` or ``(w, k)``.

        Returns:
            A tensor for a tensor, on its device, an array for an array; ``(h,)`` or ``(h, k)``.

        Raises:
            ValueError: If the shapes do not fit.
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        return self._product(x, adjoint=False)

    def __rmatmul__(self, x: Any) -> Any:
        """Multiplies a vector or the rows of a matrix: ``x @ self`` for ``(h,)`` or ``(k, h)``.

        Returns:
            As for ``self @ x``; ``(w,)`` or ``(k, w)``.

        Raises:
            ValueError: If the shapes do not fit.
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        # x A = (A^H x^H)^H
        return self._product(x, adjoint=True, turned=True)

    def _product(self, x: Any, adjoint: bool, turned: bool = False) -> Any:
        """``A x``, or that of the adjoint; if ``turned``, the adjoint of that for ``x^H``."""
        if not isinstance(x, (np.ndarray, Tensor)):
            return NotImplemented
        to, by = self.shape[::-1] if adjoint else self.shape
        length = x.shape[-1 if turned else 0] if x.ndim in (1, 2) else None
        if length != by:
            shapes = [tuple(x.shape), self.shape] if turned else [(to, by), tuple(x.shape)]
            raise ValueError(f"cannot multiply the shapes {shapes[0]} and {shapes[1]}")
        shape = (to,) if x.ndim == 1 else (to, x.shape[0 if turned else 1])
        out = empty_like(x, shape[::-1] if turned else shape, self.dtype)
        target = as_columns(out, turned)

        def write(rows: Range, part: Array) -> None:
            part = part.conj() if turned else part
            target[rows.slice] = torch.from_numpy(part) if isinstance(target, Tensor) else part

        self._stream(reader(x, is_complex(out), turned), write, adjoint)
        return out.to(x.device) if isinstance(x, Tensor) else out


class StreamedOperator(Multiplied):
    """An operator that is made of a result, in bounded memory and without a product with ``A``.

    It has the shape of the operator, and ``@`` from both sides, with tensors and numpy arrays of
    one or two dimensions. Products are formed in double precision by streams over the vectors, and
    are rounded to the type that torch or numpy would promote to.

    Attributes:
        shape: Its shape.
        dtype: Its torch dtype.
    """

    __array_ufunc__ = None
    """Makes numpy leave ``array @ result`` to :meth:`__rmatmul__`."""

    @abstractmethod
    def _entries(self, rows: Selection, columns: Selection) -> Iterator[Block]:
        """Forms all given columns of all given rows, as :meth:`Factors.entries` does."""

    def submatrix(self, rows: Any, cols: Any) -> Tensor:
        """Forms entries: all given columns of all given rows.

        Args:
            rows: An integer, a slice, or a list, array or tensor of integers or booleans.
            cols: The same.

        Returns:
            ``(rows, columns)``, without the dimension that an integer names; formed in double
            precision, and rounded to ``dtype``.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
            IndexError: If an index is out of range or means nothing.
        """
        wanted = select(rows, self.shape[0], 0), select(cols, self.shape[1], 1)
        out = np.empty(tuple(map(len, wanted)), numpy_dtype(self.dtype))
        for down, across, part in self._entries(*wanted):
            out[down.slice, across.slice] = part
        return dropped(torch.from_numpy(out), *wanted)

    def scipy(self) -> Any:
        """Returns the operator as a ``scipy.sparse.linalg.LinearOperator``.

        Raises:
            UsageError: If SciPy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise UsageError("scipy() needs SciPy, which is no part of this package: "
                             "pip install scipy") from error  # fmt: skip

        def forth(x: Array) -> Any:
            return self._product(x, adjoint=False)

        def back(x: Array) -> Any:
            return self._product(x, adjoint=True)

        return LinearOperator(
            shape=self.shape, dtype=numpy_dtype(self.dtype), matvec=forth, rmatvec=back,
            matmat=forth, rmatmat=back,
        )  # fmt: skip


def dropped(part: Tensor, rows: Selection, columns: Selection) -> Tensor:
    """Drops the dimensions that an integer named."""
    return part[0 if rows.single else slice(None)][..., 0 if columns.single else slice(None)]


def is_complex(x: Any) -> bool:
    """Whether an array or a tensor is complex."""
    return bool(x.is_complex()) if isinstance(x, Tensor) else x.dtype.kind == "c"


def as_columns(x: Any, transposed: bool = False) -> Any:
    """Returns a vector or matrix as a matrix of columns that shares its memory."""
    if x.ndim == 1:
        return x[:, None]
    return x.T if transposed else x


def empty_like(x: Any, shape: tuple[int, ...], dtype: TorchDtype) -> Any:
    """Makes an array for an array, a tensor for a tensor, of the type that both promote to."""
    if isinstance(x, Tensor):
        return torch.empty(shape, dtype=torch.promote_types(dtype, x.dtype))
    return np.empty(shape, np.result_type(numpy_dtype(dtype), x.dtype))


def numpy_dtype(dtype: TorchDtype) -> np.dtype[Any]:
    """Returns numpy's name of a torch dtype."""
    return np.dtype(str(dtype).removeprefix("torch."))


def reader(x: Any, wide_is_complex: bool, turned: bool = False) -> Read:
    """Returns what reads rows of a vector or matrix in double precision.

    Args:
        x: An array, or a tensor on any device.
        wide_is_complex: Whether rows are complex128 instead of float64.
        turned: Whether rows of the adjoint are read.
    """
    wide, given = np.complex128 if wide_is_complex else np.float64, as_columns(x, turned)

    def read(rows: Range) -> Array:
        part = given[rows.slice]
        if isinstance(part, Tensor):
            # torch conjugates and negates lazily, by a mark that numpy does not know.
            to = torch.complex128 if wide_is_complex else torch.float64
            part = part.to("cpu", to).resolve_conj().resolve_neg().numpy()
        array = np.asarray(part, wide)
        return array.conj() if turned else array

    return read
