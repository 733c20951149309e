"""Preparing: what is made of the rows of a file, in its own precision, before they are sketched.

Rows and columns are here those of the file; where it is the transpose that is meant, options have
changed their roles before (:meth:`Steps.of`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.options import COLUMN_MEAN, LEAVE_OUT, Options
from skerch_ooc.operators.matrices.slabs import ColumnMoments, SparseSlab


@dataclass(frozen=True)
class Along:
    """What is done along the rows, or along the columns, of a file.

    Attributes:
        fill: Whether missing entries become the mean of the others of their row (column).
        leave_out: Whether a row (column) that is missing throughout becomes zero.
        centre: Whether its mean is taken off each row (column).
        scale: Whether each row (column) is divided by its standard deviation.
        weights: What each row (column) is multiplied by at last.
    """

    fill: bool = False
    leave_out: bool = False
    centre: bool = False
    scale: bool = False
    weights: Array | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing is done but that means may be taken off."""
        done = self.fill or self.leave_out or self.scale
        return not done and self.weights is None


@dataclass(frozen=True)
class Steps:
    """What is done to the rows of a file.

    Attributes:
        rows: Along rows.
        columns: Along columns.
    """

    rows: Along = Along()
    columns: Along = Along()

    @classmethod
    def of(
        cls, options: Options, row_weights: Array | None, column_weights: Array | None,
        *, turned: bool,
    ) -> Steps:  # fmt: skip
        """Reads options.

        Args:
            options: The options.
            row_weights: Of the rows that are meant.
            column_weights: Of the columns that are meant.
            turned: Whether the rows that are meant are the columns of the file.
        """
        columns = Along(
            options.missing == COLUMN_MEAN,
            options.empty_columns == LEAVE_OUT,
            options.subtract in (COLUMN_MEAN, "both"),
            options.scale is not None,
            column_weights,
        )
        rows = Along(centre=options.subtract in ("row-mean", "both"), weights=row_weights)
        return cls(columns, rows) if turned else cls(rows, columns)

    @property
    def are_none(self) -> bool:
        """Whether entries stay as they are."""
        return self.is_plain and not self.columns.centre

    @property
    def is_plain(self) -> bool:
        """Whether entries stay as they are, but for means of columns that are taken off."""
        return self.rows.is_none and self.columns.is_none and not self.rows.centre

    @property
    def may_miss(self) -> bool:
        """Whether entries may be missing."""
        return any((axis.fill or axis.leave_out) for axis in (self.rows, self.columns))

    @property
    def need_moments(self) -> bool:
        """Whether a reading of all rows must come before the one that makes sketches."""
        needed = self.columns.fill or self.columns.scale
        return needed or (self.rows.scale and self.columns.centre)


def row_fillings(slab: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
    """The mean of what is there in each row, ``(rows, 1)``, of a slab with zeros elsewhere."""
    there = (~missing).sum(dim=1, keepdim=True)
    return slab.sum(dim=1, keepdim=True) / there.clamp(min=1)


def partly_missing(
    inside: Range, missing: torch.Tensor, gone: torch.Tensor, explain: Callable[[int, int], str]
) -> None:
    """Refuses rows that lack some entries, where only those that lack all may be left out.

    Raises:
        OperatorError: Naming the first entry that is missing.
    """
    partly = missing & ~gone[:, None]
    if not bool(partly.any()):
        return
    row, column = (int(one) for one in partly.nonzero()[0])
    why = explain(inside.start + row, column) or "nan"
    raise OperatorError(
        f"row {inside.start + row} of the file holds {why} in column {column}; "
        f"{int(partly.sum())} entries of the rows {inside} are so; replace what is missing, or "
        'give missing = "column-mean"'
    )


def empty(numbers: list[int], *, turned: bool) -> OperatorError:
    """What is said of columns that are missing throughout, where they may not be."""
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    where = "row of the file, which is transposed," if turned else "column"
    return OperatorError(
        f"no entry is there in {where} {shown} ({len(numbers)} in all); to leave such columns out "
        'give empty_columns = "leave-out" in [operator.args], or drop them from an array'
    )


def centre_dense_rows(slab: torch.Tensor, missing: torch.Tensor | None) -> None:
    """Takes the mean of what is there off each row; what is missing stays zero."""
    for _ in range(2):  # The second is what rounding the first has left, where means are large.
        if missing is None:
            slab -= slab.mean(dim=1, keepdim=True)
            continue
        there = (~missing).sum(dim=1, keepdim=True).clamp(min=1)
        slab -= slab.sum(dim=1, keepdim=True) / there
        slab[missing] = 0


def deviations_of_rows(slab: torch.Tensor) -> Array:
    """The standard deviation of each row of a dense slab, in double precision."""
    wide = torch.promote_types(slab.dtype, torch.float64)
    return ColumnMoments.of_dense(slab.to(wide).mT, None).deviations(slab.shape[1])


def sparse_row_means(slab: SparseSlab, nan: Array | None) -> Array:
    """The mean of each row of a sparse slab, zeros counted, and missing entries not."""
    s = slab.rows
    width = np.full(s.shape[0], float(s.shape[1]))
    if nan is not None:
        width -= np.bincount(_rows_of(s)[nan], minlength=s.shape[0])
    found: Array = np.asarray(s.sum(axis=1)).ravel() / np.maximum(width, 1)
    return found


def sparse_row_deviations(slab: SparseSlab) -> Array:
    """The standard deviation of each row of a sparse slab, its thin part counted."""
    s, width = slab.rows, slab.rows.shape[1]
    if not slab.thin:
        return ColumnMoments.of_sparse(SparseSlab(s.T.tocsr()), None, None).deviations(width)
    mean = np.asarray(s.sum(axis=1)).ravel() / width
    square = np.asarray(abs(s).power(2).sum(axis=1), np.float64).ravel()
    for i, (u, v) in enumerate(slab.thin):
        mean = mean - u * v.mean()
        square -= 2 * (u.conj() * (s @ v.conj())).real
        for other, w in slab.thin[i:]:
            times = 1 if other is u and w is v else 2
            square += times * (u * other.conj()).real * np.vdot(w, v).real
    square = np.maximum(0.0, square - width * np.abs(mean) ** 2)
    return ColumnMoments(np.full(s.shape[0], float(width)), mean, square).deviations(width)


def _rows_of(s: Any) -> Array:
    """The row of each stored entry."""
    return np.repeat(np.arange(s.shape[0]), np.diff(s.indptr))
