"""Matrices whose rows are the columns of a file: products with the transpose of what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skerch_ooc.algebra.noise import Entries
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.rows import Backward, Forward, Inner, Request


class TurnedProduct(Product):
    """Applies ``M = F^T``, where the rows of ``F`` are read in slabs.

    Each request becomes the one of ``F`` that has the same numbers: ``M X`` is the conjugate of
    ``F^H conj(X)``, and ``M^H N`` that of ``F conj(N)``. Rows of ``F`` are terms that add up.

    Args:
        rows: What sketches ``F``, or some of its rows.
    """

    together = True
    is_turned = True

    def __init__(self, rows: Any) -> None:
        self._file = rows
        self._operator = rows._operator
        self.shape = self._operator.shape
        self.dtype, self.device = rows.dtype, rows.device

    @property
    def terms(self) -> int:
        """How many terms the whole matrix has."""
        return int(self._file.terms)

    @property
    def slab_bytes(self) -> int:  # type: ignore[override]
        """Memory that two slabs take."""
        return int(self._file.slab_bytes)

    @property
    def held_bytes(self) -> int:  # type: ignore[override]
        """Memory that reading takes beside two slabs."""
        return int(self._file.held_bytes)

    def part(self, terms: Range) -> TurnedProduct:
        """See :meth:`skerch_ooc.operators.adapters.Product.part`."""
        return TurnedProduct(self._file.part(terms))

    @property
    def sampled(self) -> Product:
        """A few rows of the file: what is compared with the fingerprint."""
        return self.sampled_as({})

    def sampled_as(self, fingerprint: Mapping[str, Any]) -> Product:
        """See :meth:`skerch_ooc.operators.adapters.Product.sampled_as`."""
        found: Product = self._file.sampled_as(fingerprint)
        return found

    def __call__(self, columns: Array, *, adjoint: bool = False, wide: bool = False) -> Array:
        """See :class:`Product`: reads the rows once."""
        request: Request = Forward(columns)
        if adjoint:
            request = Backward(lambda rows: columns[rows.slice], columns.shape[1])
        (found,) = self.sketch([request], wide=wide)
        return found

    def sketch(self, requests: Sequence[Request], *, wide: bool = False) -> list[Array]:
        """See :meth:`skerch_ooc.operators.matrix.RowsProduct.sketch`."""
        found = self._file.sketch([self._of_file(one) for one in requests], wide=wide)
        return [
            self._of_matrix(request, sketch, wide=wide)
            for request, sketch in zip(requests, found, strict=True)
        ]

    def _of_file(self, request: Request) -> Request:
        """The request of the file that has the numbers of one of the matrix."""
        if isinstance(request, Backward):
            rows = Range(0, self.shape[0])
            vectors = request.vectors(rows)
            if isinstance(vectors, Entries):
                dense = np.zeros((self.shape[0], request.columns), self.dtype)
                dense[vectors.rows, vectors.columns] = vectors.values
                vectors = dense
            return Forward(vectors.conj())
        x = request.columns
        return Backward(lambda rows: x[rows.slice].conj(), x.shape[1])

    def _of_matrix(self, request: Request, sketch: Array, *, wide: bool) -> Array:
        """The sketch of the matrix, made of that of the file."""
        dtype = np.result_type(self.dtype, np.float64) if wide else np.dtype(self.dtype)
        found = sketch.conj()
        if isinstance(request, Backward):
            if len(found) < self.shape[1]:
                # The other rows are those of other parts.
                whole = np.zeros((self.shape[1], found.shape[1]), dtype)
                first = self._file.first_row
                whole[first : first + len(found)] = found
                return whole
        elif isinstance(request, Inner):
            phi = request.vectors(Range(0, self.shape[0]))
            assert not isinstance(phi, Entries)
            found = phi.conj().T @ found
        return np.ascontiguousarray(found.astype(dtype, copy=False))
