"""What is made of each slab of a file, in the file's precision, before it is sketched."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.preparing import (
    Steps,
    centre_dense_rows,
    deviations_of_rows,
    empty,
    partly_missing,
    row_fillings,
    sparse_row_deviations,
    sparse_row_means,
)
from skerch_ooc.operators.matrices.slabs import ColumnMoments, Slab, SparseSlab
from skerch_ooc.operators.slab_checks import require_entries

log = logging.getLogger("skerch_ooc")

_SAY_SECONDS = 30.0
"""How often it is said how far a reading for means has come."""


class Matrix(Protocol):
    """What a preparation needs of the matrix."""

    steps: Steps
    dtype: str
    device: str
    rows_shape: tuple[int, int]
    known_means: torch.Tensor | None

    @property
    def moments(self) -> ColumnMoments:
        """Number, mean and spread of the entries of each column."""

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums."""

    def means(self) -> torch.Tensor:
        """The mean of each column."""

    def roughly(self) -> torch.Tensor:
        """The mean of each column over a few rows."""

    def stored_slabs(self, rows: Range) -> Iterator[tuple[Range, Any]]:
        """The slabs of some rows."""

    def as_tensor(self, stored: Array, dtype: torch.dtype) -> torch.Tensor:
        """Stored entries in another dtype."""

    def meaning(self, row: int, column: int) -> str:
        """Why an entry counts as missing."""


class Preparation:
    """What is made of the slabs of one reading.

    Args:
        matrix: The matrix.
        dtype: Of the slabs that are made.
        shift: What is taken off each row, in double precision; ``None`` for nothing.
        finds_means: Whether ``shift`` is but near the means of columns, and what is left of them is
            taken off later.
        fillings: What is put where entries are missing, for each column; ``None`` for nothing.
        of_columns: What columns are multiplied by at last.

    Attributes:
        finds_means: As given.
        of_all_rows: What rows are multiplied by, as far as they were read; ``None`` for nothing.
    """

    def __init__(
        self, matrix: Matrix, dtype: torch.dtype, *, shift: torch.Tensor | None = None,
        finds_means: bool = False, fillings: Array | None = None, of_columns: Array | None = None,
    ) -> None:  # fmt: skip
        self._matrix, self._steps, self._dtype = matrix, matrix.steps, dtype
        self.finds_means, self._fillings = finds_means, fillings
        self._wider = self._precision(dtype)
        self._shift, self._rest = None if shift is None else self._in_two(shift), None
        if shift is not None and not finds_means:
            self._rest = (shift - self._shift).to(self._wider)  # type: ignore[operator]
        self._of_columns = of_columns
        self.of_all_rows: Array | None = None
        if self._steps.rows.weights is not None or self._steps.rows.scale or self._leaves_rows:
            self.of_all_rows = np.ones(matrix.rows_shape[0])
        self._missing_in = np.zeros(matrix.rows_shape[1], np.int64)
        self._first_missing = np.full(matrix.rows_shape[1], -1, np.int64)
        self._rows_read = 0

    @classmethod
    def of(
        cls, matrix: Matrix, dtype: torch.dtype, *, whole: bool, centre: bool = True
    ) -> Preparation:
        """What a reading for sketches makes of slabs.

        Args:
            matrix: The matrix.
            dtype: Of the sketches.
            whole: Whether all rows of the file are read.
            centre: Whether means of columns are taken off, if that is an option.
        """
        columns = matrix.steps.columns
        centre = centre and columns.centre
        first = matrix.steps.need_moments or ((centre or columns.leave_out) and not whole)
        if first and columns.leave_out:
            require_all_or_none(matrix.moments, matrix.rows_shape[0], columns.fill)
        finds = centre and matrix.known_means is None and not first
        shift = None
        if centre:
            shift = matrix.roughly() if finds else matrix.means()
        fillings, of_columns = None, columns.weights
        if columns.fill:
            require_filled(matrix.moments, leave_out=columns.leave_out)
            fillings = matrix.moments.mean
        if columns.scale:
            found = 1 / matrix.moments.deviations(matrix.rows_shape[0])
            of_columns = found if of_columns is None else found * of_columns
        return cls(
            matrix, dtype, shift=shift, finds_means=finds, fillings=fillings, of_columns=of_columns
        )

    @property
    def _leaves_rows(self) -> bool:
        return self._steps.rows.leave_out

    def _precision(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which slabs are prepared: that of the file, or that which is wanted."""
        return torch.promote_types(getattr(torch, self._matrix.dtype), dtype)

    def _in_two(self, shift: torch.Tensor) -> torch.Tensor:
        """The leading digits of what is taken off: a number of the precision of slabs."""
        return shift.to(self._wider).to(shift.dtype)

    def means_with(self, rest: torch.Tensor) -> torch.Tensor:
        """The means of the columns of the file, if this is what was left of them."""
        assert self._shift is not None
        if self._of_columns is not None:
            factors = torch.from_numpy(self._of_columns).to(rest.device)
            # A column of weight zero shows no mean, and needs none.
            rest = torch.where(factors == 0, 0.0, rest / torch.where(factors == 0, 1.0, factors))
        return self._shift + rest

    def rows_left(self, inside: Range) -> int:
        """How many rows of a slab were not left out."""
        if not self._leaves_rows or self.of_all_rows is None:
            return len(inside)
        return int(np.count_nonzero(self.of_all_rows[inside.slice]))

    def of_slab(self, inside: Range, stored: Any) -> tuple[Slab, Array | None]:
        """Makes of what is stored what is meant, but for factors of rows, which are returned."""
        if isinstance(stored, np.ndarray):
            slab: Slab
            slab, of_rows = self._dense(inside, stored)
        else:
            slab, of_rows = self._sparse(inside, stored)
        self._rows_read += len(inside)
        if of_rows is not None and self.of_all_rows is not None:
            self.of_all_rows[inside.slice] = of_rows
        return slab, of_rows

    def with_rows(self, slab: Slab, of_rows: Array | None) -> Slab:
        """Multiplies rows by their factors, and rounds to the dtype that is wanted."""
        if isinstance(slab, SparseSlab):
            if of_rows is not None:
                slab.scale(of_rows, None)
            slab.rows = slab.rows.astype(str(self._dtype).removeprefix("torch."), copy=False)
            return slab
        if of_rows is not None:
            slab *= torch.from_numpy(of_rows).to(slab.device, slab.dtype)[:, None]
        return slab.to(self._dtype)

    # Dense rows.

    def _take_shift(self, slab: torch.Tensor) -> None:
        if self._shift is not None:
            slab -= self._shift.to(self._wider)
            if self._rest is not None and bool(self._rest.any()):
                slab -= self._rest

    def _dense(self, inside: Range, stored: Array) -> tuple[torch.Tensor, Array | None]:
        steps = self._steps
        if steps.are_none:
            return self._matrix.as_tensor(stored, self._dtype), None
        slab = self._matrix.as_tensor(stored, self._wider)
        missing, left_out = None, None
        if steps.may_miss:
            missing, left_out = self._without_missing(inside, slab)
        require_entries(inside, slab, self._matrix.meaning)
        if steps.rows.centre:
            centre_dense_rows(slab, missing)
        self._take_shift(slab)
        if missing is not None and (steps.columns.fill or steps.columns.leave_out):
            self._fill(slab, missing)
        if left_out is not None:
            slab[left_out] = 0
        of_rows = self._of_rows(inside)
        if steps.rows.scale:
            found = 1 / deviations_of_rows(slab)
            of_rows = found if of_rows is None else found * of_rows
        if self._of_columns is not None:
            slab *= torch.from_numpy(self._of_columns).to(slab.device, slab.dtype)
        if left_out is not None:
            of_rows = np.where(left_out.cpu().numpy(), 0.0, 1.0 if of_rows is None else of_rows)
        return slab, of_rows

    def _of_rows(self, inside: Range) -> Array | None:
        weights = self._steps.rows.weights
        return None if weights is None else weights[inside.slice]

    def _without_missing(
        self, inside: Range, slab: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Puts zeros, or means of rows, where entries are missing.

        Returns:
            Where entries are missing and still zero, and which rows are missing throughout.
        """
        missing = torch.isnan(slab)
        if not bool(missing.any()):
            return None, None
        steps = self._steps
        if steps.rows.fill or steps.rows.leave_out:
            gone = missing.all(dim=1)
            if not steps.rows.fill:
                partly_missing(inside, missing, gone, self._matrix.meaning)
            slab[missing] = 0
            if not steps.rows.leave_out and bool(gone.any()):
                row = inside.start + int(gone.nonzero()[0, 0])
                raise empty([row], turned=True)
            if steps.rows.fill and steps.rows.centre:
                return missing, gone  # Its mean would be rounded: it is zero without.
            if steps.rows.fill:
                slab += missing * row_fillings(slab, missing)
            return None, gone
        slab[missing] = 0
        if not steps.columns.fill:
            self._note_missing(inside, missing)
        return missing, None

    def _note_missing(self, inside: Range, missing: torch.Tensor) -> None:
        """Notes which columns lack entries; those may only lack all of them."""
        counts = missing.sum(dim=0).cpu().numpy()
        new = (counts > 0) & (self._first_missing < 0)
        first = missing.to(torch.int8).argmax(dim=0).cpu().numpy() + inside.start
        self._first_missing = np.where(new, first, self._first_missing)
        self._missing_in += counts

    def require_all(self) -> None:
        """Refuses columns that lack some entries, where only those that lack all may be left out.

        Raises:
            OperatorError: Naming the first entry that is missing.
        """
        partly = (self._missing_in > 0) & (self._missing_in < self._rows_read)
        if not partly.any():
            return
        column = int(np.flatnonzero(partly)[0])
        row = int(self._first_missing[column])
        why = self._matrix.meaning(row, column) or "nan"
        raise OperatorError(
            f"row {row} of the matrix holds {why} in column {column}; {int(partly.sum())} columns "
            f"lack some entries, {int(self._missing_in[partly].sum())} in all; replace what is "
            'missing, or give missing = "column-mean"'
        )

    def _fill(self, slab: torch.Tensor, missing: torch.Tensor) -> None:
        """Puts what is meant where entries of columns are missing."""
        slab[missing] = 0
        if self._fillings is not None and self._shift is None:
            slab += missing * torch.from_numpy(self._fillings).to(slab.device, slab.dtype)

    # Sparse rows.

    def _sparse(self, inside: Range, stored: Any) -> tuple[SparseSlab, Array | None]:
        steps, matrix = self._steps, self._matrix
        precise = str(self._precision(self._dtype)).removeprefix("torch.")
        slab = SparseSlab(stored.astype(precise, copy=False))
        if steps.rows.scale:
            slab.rows.sum_duplicates()
        if steps.may_miss:
            self._fill_sparse(slab)
        require_entries(inside, slab, matrix.meaning)
        width = matrix.rows_shape[1]
        if steps.rows.centre:
            slab.thin.append((sparse_row_means(slab, None), np.ones(width)))
        if self._shift is not None and not self.finds_means:
            slab.thin.append((np.ones(len(inside)), matrix.means().cpu().numpy()))
        of_rows = self._of_rows(inside)
        if steps.rows.scale:
            found = 1 / sparse_row_deviations(slab)
            of_rows = found if of_rows is None else found * of_rows
        slab.scale(None, self._of_columns)
        return slab, of_rows

    def _fill_sparse(self, slab: SparseSlab) -> None:
        s = slab.rows
        nan = np.isnan(s.data)
        if not nan.any():
            return
        if self._steps.columns.fill and self._fillings is not None:
            s.data[nan] = self._fillings[s.indices[nan]]
        elif self._steps.rows.fill:
            s.data[nan] = 0
            rows = np.repeat(np.arange(s.shape[0]), np.diff(s.indptr))
            s.data[nan] = sparse_row_means(slab, nan)[rows[nan]]


def moments_of(matrix: Matrix) -> ColumnMoments:
    """Reads all rows of a file for number, mean and spread of the entries of each column.

    Raises:
        OperatorError: If an entry is not finite, and may not be missing.
    """
    found: ColumnMoments | None = None
    height, said = matrix.rows_shape[0], time.monotonic()
    for inside, stored in matrix.stored_slabs(Range(0, height)):
        one = _dense_moments(matrix, inside, stored)
        found = one if found is None else found.joined(one)
        if time.monotonic() > said + _SAY_SECONDS:
            said = time.monotonic()
            log.info("means and deviations: %d of %d rows are read", inside.stop, height)
    assert found is not None
    return found


def _dense_moments(matrix: Matrix, inside: Range, stored: Any) -> ColumnMoments:
    steps = matrix.steps
    if not isinstance(stored, np.ndarray):
        return _sparse_moments(matrix, inside, stored)
    slab = matrix.as_tensor(stored, matrix.wide)
    missing = None
    if steps.may_miss:
        found = torch.isnan(slab)
        if bool(found.any()):
            missing, gone = found, found.all(dim=1)
            slab[missing] = 0
            if steps.rows.fill:
                slab += missing * row_fillings(slab, missing)
                missing = gone[:, None].expand_as(missing) if bool(gone.any()) else None
    require_entries(inside, slab, matrix.meaning)
    if steps.rows.centre:
        centre_dense_rows(slab, missing)
    return ColumnMoments.of_dense(slab, missing)


def _sparse_moments(matrix: Matrix, inside: Range, stored: Any) -> ColumnMoments:
    steps = matrix.steps
    slab = SparseSlab(stored.astype(str(matrix.wide).removeprefix("torch.")))
    slab.rows.sum_duplicates()
    nan = np.isnan(slab.rows.data) if steps.may_miss else None
    if nan is not None and not nan.any():
        nan = None
    if nan is not None:
        slab.rows.data[nan] = 0
        if steps.rows.fill:
            rows = np.repeat(np.arange(len(inside)), np.diff(slab.rows.indptr))
            slab.rows.data[nan] = sparse_row_means(slab, nan)[rows[nan]]
            nan = None
    require_entries(inside, slab, matrix.meaning)
    means = sparse_row_means(slab, nan) if steps.rows.centre else None
    return ColumnMoments.of_sparse(slab, nan, means)


def require_filled(moments: ColumnMoments, *, leave_out: bool) -> None:
    """Refuses columns that are missing throughout, where they may not be left out.

    Raises:
        OperatorError: Naming some.
    """
    gone = np.flatnonzero(moments.count == 0)
    if len(gone) and not leave_out:
        raise empty([int(one) for one in gone], turned=False)


def require_all_or_none(moments: ColumnMoments, rows: int, fills: bool) -> None:
    """Refuses columns that lack some entries only, where only empty ones may be left out.

    Raises:
        OperatorError: Naming the first.
    """
    partly = np.flatnonzero((moments.count > 0) & (moments.count < rows))
    if len(partly) and not fills:
        lacking = int(rows - moments.count[partly[0]])
        raise OperatorError(
            f"column {partly[0]} lacks {lacking} of {rows} entries, and {len(partly)} columns lack "
            'some; replace what is missing, or give missing = "column-mean"'
        )
