"""Results as people use them: ``Eigh`` and ``Svd``, whose vectors are read when indexed.

A result is also the low-rank operator ``A ~ U diag(values) V^H``: it can be multiplied, and its
entries can be formed, in bounded memory and without a product with ``A``.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.assess import error_rows
from skerch_ooc.results.bands import Band, Diagonals
from skerch_ooc.results.curves import curve, small_chart
from skerch_ooc.results.indexing import Selection, select, selections
from skerch_ooc.results.plots import plot_values
from skerch_ooc.results.shifted import Shifted, as_shift
from skerch_ooc.results.streamed import (
    Block,
    Factors,
    Multiplied,
    Read,
    StreamedOperator,
    TorchDtype,
    Write,
    dropped,
    empty_like,
    is_complex,
    numpy_dtype,
    reader,
)
from skerch_ooc.results.vectors import Tall, adjoint_times, gather, open_vectors, times
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_sealed
from skerch_ooc.store.rundir import layout_path, open_run, read_layout

_FIRST = 5


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


class LazyMatrix(Multiplied):
    """A matrix that is read when it is indexed, as a tensor is; only what is needed is read.

    ``@`` from both sides, with tensors and arrays of one or two dimensions, is one stream over it.

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

    @never_raising
    def _repr_html_(self) -> str:
        size = f"{self.shape[0]} x {self.shape[1]}, {numpy_dtype(self.dtype)}"
        return table(type(self).__name__, [("size", size), ("file", self._tall.path)])

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
        return dropped(self._gather(rows, columns), rows, columns)

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

    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        across = Range(0, self.shape[1])
        if adjoint:
            write(across, adjoint_times(self._tall, x))
        else:
            times(self._tall, x(across), write)


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

    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        self.mH._stream(x, write, not adjoint)


class LowRank(StreamedOperator):
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

    @never_raising
    def _repr_html_(self) -> str:
        noun = "eigenvalues" if self._left is self._right else "singular values"
        values = self._values
        numbers = np.arange(1, len(values) + 1)
        signs = [
            curve(numbers[held], np.abs(values[held]), name, joined=False)
            for held, name in ((values > 0, ""), (values < 0, "negative"))
            if held.any()
        ]
        rows = [
            (f"first {noun}", ", ".join(f"{value:.4g}" for value in values[:_FIRST])),
            *error_rows(self.path),
            ("orthogonality", short(self.orthogonality)),
            ("file", self.path),
        ]
        title = f"{type(self).__name__}: {len(values)} {noun} of {self.shape[0]} x {self.shape[1]}"
        chart = small_chart(signs, ("number", "magnitude"))
        return table(f"{title}, {numpy_dtype(self.dtype)}", rows, chart)

    def plot(self, ax: Any = None) -> Any:
        """Draws the magnitudes of the values, and what they may be off by, on a logarithmic axis.

        Open marks are negative values. matplotlib draws, of the extra ``report``.

        Args:
            ax: Axes of matplotlib; by default those of a new figure.

        Returns:
            The axes, to go on with.

        Raises:
            UsageError: If matplotlib is not installed.
        """
        noun = "eigenvalues" if self._left is self._right else "singular values"
        off, name = self.residuals, "residual (estimate)"
        if self.bounds is not None:
            off, name = self.bounds, "bound of the error"
        return plot_values(ax, self._values, noun, None if off is None else off.numpy(), name)

    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        factors = self._factors.turned(adjoint)
        times(factors.left, self._values[:, None] * adjoint_times(factors.right, x), write)

    def _entries(self, rows: Selection, columns: Selection) -> Iterator[Block]:
        return self._factors.entries(rows, columns)

    @property
    def _factors(self) -> Factors:
        return Factors(self._left, self._values, self._right)

    def tril(self, k: int = 0) -> Band:
        """Returns the lower triangle, on and below diagonal ``k``, as ``numpy.tril`` counts.

        It has ``@`` from both sides, ``submatrix`` and ``scipy``, as the result has; each product
        is one stream over the rows.

        Args:
            k: The highest diagonal that is kept; 0 is the main one, negative ones are below it.
        """
        return Band(self._factors, self.dtype, Diagonals(None, operator.index(k)))

    def triu(self, k: int = 0) -> Band:
        """Returns the upper triangle, on and above diagonal ``k``; see :meth:`tril`."""
        return Band(self._factors, self.dtype, Diagonals(operator.index(k), None))

    def band(self, first: int, last: int) -> Band:
        """Returns the diagonals ``first`` to ``last``: ``band(-1, 1)`` is tridiagonal.

        See :meth:`tril`.

        Args:
            first: The lowest diagonal that is kept.
            last: The highest.

        Raises:
            UsageError: If ``first`` is above ``last``.
        """
        return Band(
            self._factors, self.dtype, Diagonals(operator.index(first), operator.index(last))
        )

    def shifted(self, c: float | complex) -> Shifted:
        """Returns ``Ahat + c I``, where ``Ahat`` is this result, not the operator that it is of.

        It has ``@`` from both sides, and ``solve`` for its inverse.

        Args:
            c: What is added to the diagonal; complex numbers make it complex.

        Raises:
            UsageError: If the result is not square, or ``c`` is no finite number.
        """
        self._require_square("shifted")
        return Shifted(self._factors, self.dtype, as_shift(c))

    def quadratic_form(self, x: Any) -> Any:
        """Forms ``x^H Ahat x`` of a vector, or of each column of a matrix, in double precision.

        ``Ahat`` is this result. It takes one stream over the vectors, or one over those of each
        side.

        Args:
            x: ``(n,)`` or ``(n, k)``, a tensor or a numpy array.

        Returns:
            A number or ``(k,)``, of the same kind as ``x``; real for eigenvalues.

        Raises:
            UsageError: If the result is not square.
            TypeError: If ``x`` is neither a tensor nor an array.
            ValueError: If the shapes do not fit.
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        self._require_square("quadratic_form")
        if not isinstance(x, (np.ndarray, Tensor)):
            raise TypeError(f"{type(x).__name__}: must be a numpy array or a torch tensor")
        if x.ndim not in (1, 2) or x.shape[0] != self.shape[0]:
            raise ValueError(f"the shape {tuple(x.shape)} does not fit that of {self.shape}")
        out = empty_like(x, x.shape[1:], self.dtype)
        read = reader(x, is_complex(out))
        right = left = adjoint_times(self._right, read)
        if self._left is not self._right:
            left = adjoint_times(self._left, read)
        forms = (left.conj() * (self._values[:, None] * right)).sum(axis=0)
        if self._left is self._right:
            out, forms = out.real, forms.real
        forms = forms.reshape(x.shape[1:])
        if isinstance(x, Tensor):
            return torch.from_numpy(forms).to(x.device, out.dtype)
        return forms.astype(out.dtype)[()]

    def _require_square(self, what: str) -> None:
        if self.shape[0] != self.shape[1]:
            raise UsageError(
                f"{what}() needs a square operator; that of {self.path} is "
                f"{self.shape[0]} x {self.shape[1]}: use @ with it"
            )


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
