"""Results as people use them: ``Eigh`` and ``Svd``, whose vectors are read when indexed.

A result is also the low-rank operator ``A ~ U diag(values) V^H``: it can be multiplied, and its
entries can be formed, in bounded memory and without a product with ``A``.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.indexing import Selection, select, selections
from skerch_ooc.results.vectors import Tall, adjoint_times, gather, open_vectors, times
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_sealed
from skerch_ooc.store.rundir import layout_path, open_run, read_layout

TorchDtype = torch.dtype

_ROWS_AT_ONCE = 4096


class EighTensors(NamedTuple):
    """As ``torch.linalg.eigh`` returns them, but in descending magnitude.

    Attributes:
        eigenvalues: ``(r,)``.
        eigenvectors: ``(h, r)``.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor


class SvdTensors(NamedTuple):
    """As ``torch.linalg.svd`` returns them.

    Attributes:
        U: ``(h, r)``.
        S: ``(r,)``, descending.
        Vh: ``(r, w)``.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


class LazyMatrix(ABC):
    """A matrix that is read when it is indexed, as a tensor is; only what is needed is read.

    Attributes:
        shape: ``(rows, columns)``.
        dtype: Its torch dtype.
    """

    shape: tuple[int, int]
    dtype: TorchDtype

    def __init__(self, tall: Tall) -> None:
        self._tall = tall
        self.dtype = getattr(torch, tall.dtype.name)

    @abstractmethod
    def _gather(self, rows: Selection, columns: Selection) -> Tensor:
        """The given columns of the given rows."""

    @property
    @abstractmethod
    def mH(self) -> LazyMatrix:  # noqa: N802 (torch's name of the adjoint)
        """The adjoint, which is also read when it is indexed."""

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"path={str(self._tall.path)!r})"
        )

    def __getitem__(self, key: Any) -> Tensor:
        """Reads a part: ``[:]``, ``[rows]``, ``[rows, columns]``, ``[..., columns]``.

        Rows and columns are integers, slices (also with negative steps), or lists, arrays or
        tensors of integers or booleans, and mean what they mean to a torch tensor. Only the tiles
        that are touched are read, and verified.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
            IndexError: If an index is out of range or means nothing; or if both rows and columns
                are lists, for which there is :meth:`submatrix`.
        """
        rows, columns = selections(key, self.shape)
        if rows.listed and columns.listed:
            raise IndexError(
                "two lists of indices at once pick single entries in torch, which is not "
                "supported; for all given columns of all given rows use "
                "submatrix(rows, columns)"
            )
        return self._read(rows, columns)

    def submatrix(self, rows: Any, cols: Any) -> Tensor:
        """Reads all given columns of all given rows.

        Args:
            rows: An integer, a slice, or a list, array or tensor of integers or booleans.
            cols: The same.

        Returns:
            ``(rows, columns)``, without the dimension that an integer names.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
            IndexError: If an index is out of range or means nothing.
        """
        return self._read(select(rows, self.shape[0], 0), select(cols, self.shape[1], 1))

    def _read(self, rows: Selection, columns: Selection) -> Tensor:
        return _dropped(self._gather(rows, columns), rows, columns)

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(len(self)):
            yield self[number]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a matrix on disk cannot be an array without being copied")
        array: Array = self[:].numpy()
        return array if dtype is None else array.astype(dtype, copy=False)


class TallMatrix(LazyMatrix):
    """A matrix on disk that is read, and verified, when it is indexed.

    Implicit vectors look the same; they are computed from the sketch when they are indexed.

    Attributes:
        shape: ``(rows, columns)``.
        dtype: Its torch dtype.
    """

    def __init__(self, tall: Tall) -> None:
        super().__init__(tall)
        self.shape = tall.shape

    @property
    def mH(self) -> LazyMatrix:  # noqa: N802
        """See :class:`LazyMatrix`."""
        return AdjointMatrix(self._tall)

    def __iter__(self) -> Iterator[Tensor]:
        # By tiles: row by row each tile would be read and verified once for each of its rows.
        for piece in cut(Range(0, len(self)), self._tall.layout.tile[0]):
            yield from self[piece.slice]

    def _gather(self, rows: Selection, columns: Selection) -> Tensor:
        return torch.from_numpy(gather(self._tall, rows, columns))


class AdjointMatrix(LazyMatrix):
    """The adjoint of a matrix on disk.

    Attributes:
        shape: ``(rows, columns)``.
        dtype: Its torch dtype.
    """

    def __init__(self, tall: Tall) -> None:
        super().__init__(tall)
        self.shape = tall.shape[::-1]

    @property
    def mH(self) -> LazyMatrix:  # noqa: N802
        """See :class:`LazyMatrix`."""
        return TallMatrix(self._tall)

    def _gather(self, rows: Selection, columns: Selection) -> Tensor:
        return torch.from_numpy(gather(self._tall, columns, rows)).mH.resolve_conj()


def _dropped(part: Tensor, rows: Selection, columns: Selection) -> Tensor:
    """Drops the dimensions that an integer named."""
    return part[0 if rows.single else slice(None)][..., 0 if columns.single else slice(None)]


class LowRank:
    """The low-rank operator ``A ~ U diag(values) V^H`` on disk: base class of both decompositions.

    It has the shape of the operator, and ``@`` from both sides, with tensors and numpy arrays of
    one or two dimensions. Products are formed in double precision by one stream each over ``V`` and
    ``U``, and are rounded to the type that torch or numpy would promote to.

    Attributes:
        path: The file.
        shape: Shape of the operator.
        dtype: The dtype of the operator's products and of the vectors.
        orthogonality: How far the vectors are from orthonormal, as estimated when they were
            written.
        residuals: Of pairs of ``krylov``: for each ``||A v - value u||`` (or that of the adjoint),
            ``(r,)``. Of other methods the estimate of it from test vectors; of singular values the
            root of the mean square of both residuals. ``None`` if it is not known.
        bounds: Of pairs of ``krylov``: how far each value is from one of the operator, at most,
            ``(r,)``; see the page about errors for what it takes for granted. ``None`` for other
            methods.
    """

    __array_ufunc__ = None
    """Makes numpy leave ``array @ result`` to :meth:`__rmatmul__`."""

    def __init__(self, path: Path, values: str, left: str, right: str | None) -> None:
        self._file = file = open_sealed(path)
        self.path = path
        self._left, self._right = open_vectors(file, left, right)
        self._values = np.array(file.arrays[values])
        self.shape = (self._left.shape[0], self._right.shape[0])
        self.dtype: TorchDtype = getattr(torch, self._left.dtype.name)
        self.orthogonality = float(file.arrays["orthogonality"])
        self.residuals, self.bounds = (
            self._rounded(file.arrays[name]) if name in file.arrays else None
            for name in ("residuals", "bounds")
        )

    @property
    def rank(self) -> int:
        """Number of values."""
        return len(self._values)

    @property
    def left_vectors(self) -> Tall:
        """What reads the left vectors, or the eigenvectors, tile by tile."""
        return self._left

    @property
    def right_vectors(self) -> Tall:
        """What reads the right vectors, tile by tile."""
        return self._right

    def _rounded_values(self) -> Tensor:
        return self._rounded(self._values)

    def _rounded(self, numbers: Array) -> Tensor:
        """Rounds numbers to the real type of the operator."""
        real = torch.empty(0, dtype=self.dtype).real.dtype
        return torch.from_numpy(np.array(numbers)).to(real)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, rank={self.rank}, path={str(self.path)!r})"
        )

    def __matmul__(self, x: Any) -> Any:
        """Multiplies a vector or the columns of a matrix, ``(w,)`` or ``(w, k)``.

        Returns:
            A tensor for a tensor, on its device, an array for an array; ``(h,)`` or ``(h, k)``.

        Raises:
            ValueError: If the shapes do not fit.
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        return self._product(self._left, self._right, x, from_left=False)

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
        return self._product(self._right, self._left, x, from_left=True)

    def _product(self, to: Tall, by: Tall, x: Any, from_left: bool) -> Any:
        """``to diag(values) by^H x``, or for ``from_left`` the adjoint of that for ``x^H``."""
        if not isinstance(x, (np.ndarray, Tensor)):
            return NotImplemented
        length = x.shape[-1 if from_left else 0] if x.ndim in (1, 2) else None
        if length != by.shape[0]:
            shapes = [tuple(x.shape), self.shape] if from_left else [self.shape, tuple(x.shape)]
            raise ValueError(f"cannot multiply the shapes {shapes[0]} and {shapes[1]}")
        shape = (to.shape[0],) if x.ndim == 1 else (to.shape[0], x.shape[0 if from_left else 1])
        out: Any
        if isinstance(x, Tensor):
            promoted = torch.promote_types(self.dtype, x.dtype)
            out = torch.empty(shape[::-1] if from_left else shape, dtype=promoted)
            is_complex = promoted.is_complex
        else:
            promoted_numpy = np.result_type(to.dtype, x.dtype)
            out = np.empty(shape[::-1] if from_left else shape, promoted_numpy)
            is_complex = promoted_numpy.kind == "c"
        wide = np.complex128 if is_complex else np.float64
        given, target = _as_columns(x, from_left), _as_columns(out, from_left)

        def read(rows: Range) -> Array:
            part = _as_array(given[rows.slice], wide)
            return part.conj() if from_left else part

        def write(rows: Range, part: Array) -> None:
            part = part.conj() if from_left else part
            target[rows.slice] = torch.from_numpy(part) if isinstance(target, Tensor) else part

        times(to, self._values[:, None] * adjoint_times(by, read), write)
        return out.to(x.device) if isinstance(x, Tensor) else out

    def submatrix(self, rows: Any, cols: Any) -> Tensor:
        """Forms entries of the approximation: all given columns of all given rows.

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
        out = np.empty(tuple(map(len, wanted)), self._left.dtype)
        all_values = Selection(range(self.rank))
        for across in cut(Range(0, len(wanted[1])), _ROWS_AT_ONCE):
            columns = Selection(wanted[1].wanted[across.slice])
            v = gather(self._right, columns, all_values).astype(self._right.wide_dtype)
            weights = self._values[:, None] * v.conj().T
            for down in cut(Range(0, len(wanted[0])), _ROWS_AT_ONCE):
                u = gather(self._left, Selection(wanted[0].wanted[down.slice]), all_values)
                out[down.slice, across.slice] = u.astype(self._left.wide_dtype) @ weights
        return _dropped(torch.from_numpy(out), *wanted)

    def scipy(self) -> Any:
        """Returns the approximation as a ``scipy.sparse.linalg.LinearOperator``.

        Raises:
            UsageError: If SciPy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise UsageError("scipy() needs SciPy, which is no part of this package: "
                             "pip install scipy") from error  # fmt: skip

        def forth(x: Array) -> Any:
            return self._product(self._left, self._right, x, from_left=False)

        def back(x: Array) -> Any:
            return self._product(self._right, self._left, x, from_left=False)

        return LinearOperator(
            shape=self.shape, dtype=self._left.dtype, matvec=forth, rmatvec=back, matmat=forth,
            rmatmat=back,
        )  # fmt: skip


def _as_columns(x: Any, transposed: bool) -> Any:
    """Returns a vector or matrix as a matrix of columns that shares its memory."""
    if x.ndim == 1:
        return x[:, None]
    return x.T if transposed else x


def _as_array(x: Any, dtype: Any) -> Array:
    """Makes a numpy array of this dtype of an array, or of a tensor on any device."""
    if isinstance(x, Tensor):
        # torch conjugates and negates lazily, by a mark that numpy does not know.
        wide = torch.complex128 if dtype is np.complex128 else torch.float64
        return np.asarray(x.to("cpu", wide).resolve_conj().resolve_neg().numpy())
    return np.asarray(x, dtype)


class Eigh(LowRank):
    """An eigendecomposition ``A ~ U diag(eigenvalues) U^H``, which acts as this operator.

    It has the shape of the operator, and ``@`` from both sides, with tensors and numpy arrays of
    one or two dimensions. Products are formed in double precision by one stream each over the two
    factors, and are rounded to the type that torch or numpy would promote to.

    Args:
        path: The file ``eigh.h5``.

    Attributes:
        path: The file.
        shape: Shape of the operator.
        dtype: The dtype of the operator's products and of the vectors.
        eigenvalues: In descending magnitude, ``(r,)``, in the real type of the operator.
        eigenvectors: ``U``, ``(h, r)``, a :class:`LazyMatrix`: read when indexed.
        residuals: For each eigenvalue the estimate of ``||A u - eigenvalue u||``, ``(r,)``, in the
            real type of the operator: within that distance there is an eigenvalue of ``A``.
            ``None`` without test vectors, and for results that the first versions wrote.
        orthogonality: ``||U^H U - I||_F``, as estimated when the vectors were written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "eigenvalues", "eigenvectors", None)
        self.eigenvalues = self._rounded_values()
        self.eigenvectors = TallMatrix(self._left)

    def by_parameter(self, number: int) -> dict[str, Tensor]:
        """Reads one eigenvector of the Hessian of a model, say, as its parameters.

        Args:
            number: Which eigenvector; negative numbers count from the last.

        Returns:
            By the name of each parameter a tensor of its shape. No other column is read.

        Raises:
            CorruptError: If a tile was altered, or the run's ``layout.json``.
            IncompleteError: If vectors are to be computed from shards that are gone.
            IndexError: If there is no such eigenvector.
            UsageError: If the operator of the run has no parameters that it tells of.
        """
        directory = self.path.absolute().parent.parent.parent
        layout = read_layout(directory, str(self._file.identity.get("run")), self.shape[1])
        if layout is None:
            raise UsageError(
                f"the vectors of {self.path} cannot be cut into parameters: there is no "
                f"{layout_path(directory)}, as the operator of this run has no .layout; give it "
                "one and plan a new run, or cut the columns of eigenvectors by hand"
            )
        found: dict[str, Tensor] = layout.split(self.eigenvectors[:, operator.index(number)])
        return found

    def torch(self) -> EighTensors:
        """Reads values and vectors into memory, as a named tuple.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        return EighTensors(self.eigenvalues, self.eigenvectors[:])


class Svd(LowRank):
    """A singular value decomposition ``A ~ U diag(S) V^H``, which acts as this operator.

    Like :class:`Eigh` it is multiplied from both sides, in bounded memory.

    Args:
        path: The file ``svd.h5``.

    Attributes:
        path: The file.
        shape: Shape of the operator.
        dtype: The dtype of the operator's products and of the vectors.
        S: Singular values, descending, ``(r,)``.
        U: ``(h, r)``, a :class:`LazyMatrix`: read when indexed.
        V: ``(w, r)``, the same.
        residuals: For each singular value the root of the mean of ``||A v - value u||^2`` and
            ``||A^H u - value v||^2``, ``(r,)``, in the real type of the operator: within that
            distance there is a singular value of ``A``. Of pairs of ``krylov`` those of the side
            that is not exact. ``None`` without test vectors of both sides.
        orthogonality: The larger of ``||U^H U - I||_F`` and ``||V^H V - I||_F``, as estimated when
            they were written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "S", "U", "V")
        self.S = self._rounded_values()
        self.U = TallMatrix(self._left)
        self.V = TallMatrix(self._right)

    @property
    def Vh(self) -> LazyMatrix:  # noqa: N802 (torch's name)
        """``V^H``, ``(r, w)``; read when indexed."""
        return self.V.mH

    def torch(self) -> SvdTensors:
        """Reads values and vectors into memory, as a named tuple.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        return SvdTensors(self.U[:], self.S, self.Vh[:])

    def to_xarray(self, like: Any = None) -> Any:
        """Reads all into an ``xarray.Dataset``, with the names and coordinates of the matrix.

        These are read from the matrix's files. Variables are ``U``, ``S``, ``V``, ``pattern`` (``V
        S`` with weights divided out) and ``variance_share``, over the dimensions of the file and
        ``mode``; signs are those of principal components.

        Args:
            like: The ``xarray.DataArray`` that was decomposed, if the matrix is in no file.

        Raises:
            UsageError: If xarray is not installed, or vectors are complex.
            OperatorError: If the files cannot be read, or ``like`` has no such weights.
            DriftError: If they have changed since the run was planned.
        """
        from skerch_ooc.results.modes import Prepared, modes_of, prepared_in
        from skerch_ooc.results.xarrays import dataset_of

        run = open_run(self.path.absolute().parent.parent.parent)
        prepared = prepared_in(run, exactly=True) if like is None else Prepared.of_object(run, like)
        vectors = (self._left, self._right)
        return dataset_of(modes_of(run, self.path, self._values, vectors, prepared), like)


def open_result(path: Path) -> Eigh | Svd:
    """Opens a result of a run: ``Eigh`` or ``Svd``, by the name of its file."""
    return Eigh(path) if names.EIGH.is_name(path.name) else Svd(path)
