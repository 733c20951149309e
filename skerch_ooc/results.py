"""Results as people use them: values at once, vectors from disk as they are indexed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerch_ooc.errors import IncompleteError
from skerch_ooc.partition import Range
from skerch_ooc.sealed import SealedFile


class StoredMatrix:
    """A matrix on disk that is read, and verified, when it is indexed.

    Attributes:
        shape: ``(rows, columns)``.
        dtype: Its torch dtype.
    """

    def __init__(self, file: SealedFile, name: str) -> None:
        layout = file.layouts.get(name)
        if layout is None:
            raise IncompleteError(f"{file.path} holds no {name}")
        self._file = file
        self._name = name
        self.shape = layout.shape
        self.dtype: torch.dtype = getattr(torch, layout.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return (
            f"StoredMatrix(shape={self.shape}, dtype={self.dtype}, path={str(self._file.path)!r})"
        )

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Reads a part: ``[:]``, ``[rows]``, ``[rows, columns]``, with slices or integers.

        Only the tiles that it touches are read; slices with a step read what is between, too.

        Raises:
            CorruptError: If a tile was altered.
            IndexError: If an index is out of range.
        """
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        row_range, row_rest = _window(rows, self.shape[0])
        column_range, column_rest = _window(columns, self.shape[1])
        part = self._file.read(row_range, column_range, self._name)
        return torch.from_numpy(part)[row_rest, column_rest]


def _window(index: Any, size: int) -> tuple[Range, Any]:
    """The range that holds an index, and the index within that range."""
    if isinstance(index, slice):
        chosen = range(size)[index]
        if not len(chosen):
            return Range(0, 0), slice(0, 0)
        if chosen.step < 0:
            raise IndexError("slices must have a positive step; reverse the tensor instead")
        return Range(chosen[0], chosen[-1] + 1), slice(None, None, chosen.step)
    number = range(size)[index]
    return Range(number, number + 1), 0


class Eigh:
    """An eigendecomposition ``A ~ U diag(eigenvalues) U^H``.

    Args:
        path: The file ``eigh.h5``.

    Attributes:
        path: The file.
        eigenvalues: In descending magnitude, ``(r,)``, in the real type of the operator.
        eigenvectors: ``U``, ``(h, r)``; read when indexed.
        orthogonality: ``||U^H U - I||_F``, as estimated when they were written.
    """

    def __init__(self, path: Path) -> None:
        file = SealedFile(path)
        self.path = path
        self.eigenvectors = StoredMatrix(file, "eigenvectors")
        real = torch.empty(0, dtype=self.eigenvectors.dtype).real.dtype
        values = np.array(file.arrays["eigenvalues"])
        self.eigenvalues = torch.from_numpy(values).to(real)
        self.orthogonality = float(file.arrays["orthogonality"])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the operator."""
        height = self.eigenvectors.shape[0]
        return height, height

    @property
    def rank(self) -> int:
        """Number of eigenpairs."""
        return len(self.eigenvalues)

    def __repr__(self) -> str:
        return f"Eigh(shape={self.shape}, rank={self.rank}, path={str(self.path)!r})"


class Svd:
    """A singular value decomposition ``A ~ U diag(S) V^H``.

    Args:
        path: The file ``svd.h5``.

    Attributes:
        path: The file.
        S: Singular values, descending, ``(r,)``.
        U: ``(h, r)``; read when indexed.
        V: ``(w, r)``; read when indexed.
        orthogonality: The larger of ``||U^H U - I||_F`` and ``||V^H V - I||_F``, as estimated when
            they were written.
    """

    def __init__(self, path: Path) -> None:
        file = SealedFile(path)
        self.path = path
        self.U = StoredMatrix(file, "U")
        self.V = StoredMatrix(file, "V")
        real = torch.empty(0, dtype=self.U.dtype).real.dtype
        self.S = torch.from_numpy(np.array(file.arrays["S"])).to(real)
        self.orthogonality = float(file.arrays["orthogonality"])


def open_result(path: Path) -> Eigh | Svd:
    """Opens a result, whichever it is."""
    return Eigh(path) if path.name == "eigh.h5" else Svd(path)
