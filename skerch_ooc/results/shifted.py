"""A result plus a multiple of the identity, and its inverse by the Woodbury identity."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.partition import Range
from skerch_ooc.results.indexing import Selection
from skerch_ooc.results.streamed import Block, Factors, Read, StreamedOperator, TorchDtype, Write
from skerch_ooc.results.vectors import adjoint_times, times

Number = float | complex


class PlusIdentity(StreamedOperator):
    """The operator ``U core V^H + c I``, in bounded memory.

    Attributes:
        shape: That of the result.
        dtype: That of the result, or the complex one of as many digits if ``c`` or the core is.
    """

    def __init__(self, factors: Factors, dtype: TorchDtype, core: Array, shift: Number) -> None:
        self._factors, self._core, self._shift = factors, core, shift
        self.shape = factors.shape
        is_complex = isinstance(shift, complex) or np.iscomplexobj(core)
        self.dtype = dtype.to_complex() if is_complex else dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, path={str(self._factors.left.path)!r})"

    def _stream(self, x: Read, write: Write, adjoint: bool) -> None:
        factors, core, shift = self._factors.turned(adjoint), self._core, self._shift
        if adjoint:
            core, shift = core.conj().T, shift.conjugate()

        def add(rows: Range, part: Array) -> None:
            write(rows, part + shift * x(rows))

        times(factors.left, core @ adjoint_times(factors.right, x), add)

    def _entries(self, rows: Selection, columns: Selection) -> Iterator[Block]:
        for down, across, part in self._factors.entries(rows, columns, self._core):
            left, right = (
                np.asarray(of.wanted[at.slice]) for of, at in ((rows, down), (columns, across))
            )
            yield down, across, part + self._shift * (left[:, None] == right[None, :])


class Shifted(PlusIdentity):
    """The operator ``Ahat + c I`` of a result ``Ahat``, which is not the operator it is made from.

    It is multiplied with ``@`` from both sides, and inverted by the Woodbury identity, both in
    bounded memory. In directions that the result leaves out it is ``c`` itself.

    Attributes:
        shape: That of the result.
        dtype: That of the result, or the complex one of as many digits if ``c`` is complex.
        shift: ``c``.
    """

    def __init__(self, factors: Factors, dtype: TorchDtype, shift: Number) -> None:
        super().__init__(factors, dtype, np.diag(factors.values), shift)
        self.shift = shift

    def solve(self, b: Any) -> Any:
        """Solves ``(Ahat + c I) x = b``, by two streams over the vectors.

        The first call takes one more stream, and ``r x r`` numbers.

        Args:
            b: ``(n,)`` or ``(n, k)``, a tensor or a numpy array.

        Returns:
            ``x``, of the same kind and shape.

        Raises:
            UsageError: If ``Ahat + c I`` is singular to the precision of the result.
            ValueError: If the shapes do not fit.
            CorruptError: If a tile was altered.
            IncompleteError: If vectors are to be computed from shards that are gone.
        """
        return self.inverse @ b

    @cached_property
    def inverse(self) -> PlusIdentity:
        """The inverse, as an operator; raises what :meth:`solve` does."""
        left, values, c = self._factors.left, self._factors.values, self._shift

        def left_rows(rows: Range) -> Array:
            return left.read_wide(rows.start // left.layout.tile[0])

        # V^H U, which is the identity to rounding for eigenvectors.
        crossed = adjoint_times(self._factors.right, left_rows)
        self._require_regular(crossed)
        shift: Number = 0.0
        if len(values) == self.shape[0]:
            # Nothing is left out, so that c may be 0: (U D V^H + c I)^-1 = U (...)^-1 V^H.
            core = np.linalg.inv(c * crossed + (crossed * values) @ crossed)
        else:
            damped = c * np.eye(len(values)) + crossed * values
            core, shift = -np.linalg.solve(damped.T, np.diag(values)).T / c, 1 / c
        return PlusIdentity(self._factors, self.dtype, core, shift)

    def _require_regular(self, crossed: Array) -> None:
        factors, c = self._factors, self._shift
        values = factors.values
        if factors.left is not factors.right:
            values = np.linalg.eigvals(values[:, None] * crossed)
        largest = float(np.abs(values).max(initial=0.0))
        near = [(abs(value + c), value, torch.finfo(self.dtype).eps) for value in values.tolist()]
        if len(values) < self.shape[0]:
            # What is left out is 0 exactly.
            near.append((abs(c), 0.0, np.finfo(np.float64).eps))
        distance, value, precision = min(near, key=lambda one: one[0] / one[2])
        if distance <= precision * largest or not distance:
            raise UsageError(
                f"c = {c:.8g}: the result has the eigenvalue {value:.8g}, so that with c added to "
                f"it the operator is singular to its precision; give a c that is farther from "
                f"{0 - value:.8g} than {short(precision * largest)}"
            )


def as_shift(c: Any) -> Number:
    """Checks the number whose multiple of the identity is added.

    Raises:
        UsageError: If it is no finite number.
    """
    try:
        # A text would be read as a number, which a mistake is likelier to be than a wish.
        number = complex(operator.pos(c))
    except (TypeError, ValueError) as error:
        raise UsageError(f"c = {c!r}: must be a number") from error
    if not math.isfinite(abs(number)):
        raise UsageError(f"c = {c!r}: must be finite; give a number")
    return number if number.imag else number.real
