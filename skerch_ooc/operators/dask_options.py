"""Arrays of Dask with options: what is made of their entries, chunk by chunk where these are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import tree_sum
from skerch_ooc.operators.dask_arrays import DaskMatrix
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.options import Options
from skerch_ooc.operators.matrices.preparation import require_all_or_none, require_filled
from skerch_ooc.operators.matrices.preparing import Steps
from skerch_ooc.operators.matrices.slabs import ColumnMoments
from skerch_ooc.operators.matrices.sliced import numbers_of


def prepared_dask(
    array: Any, asked: Options, roots: tuple[Array | None, Array | None]
) -> DaskMatrix:
    """The matrix that options make of an array of Dask.

    Means and deviations take a computation of all chunks, here and now.

    Args:
        array: The array, in chunks of numpy whose sizes are known.
        asked: The options.
        roots: The square roots of the weights of rows and columns.

    Raises:
        OperatorError: If an entry is missing that may not be.
    """
    x = array.T if asked.transpose else array
    dtype = np.dtype(DaskMatrix(x).dtype)
    wide = np.result_type(dtype, np.float64)
    # The means of rows need whole ones.
    x = x.rechunk({1: -1}) if len(x.chunks[1]) > 1 else x
    x = x.map_blocks(_widened, asked.missing_codes, wide, dtype=wide, meta=np.empty((0, 0), wide))
    steps = Steps.of(asked, *roots, turned=False)
    if steps.rows.centre:
        x = x.map_blocks(_without_means, dtype=wide)
    shift, fill, factors = _along_columns(x, steps)
    x = x.map_blocks(
        _prepared, shift=shift, fill=fill, factors=factors, to=dtype, dtype=dtype,
        meta=np.empty((0, 0), dtype),
    )  # fmt: skip
    if roots[0] is not None:
        import dask.array

        column = roots[0].astype(dtype)[:, None]
        x = x * dask.array.from_array(column, chunks=(x.chunks[0], 1))  # type: ignore[no-untyped-call]
    return DaskMatrix(x)


def _along_columns(x: Any, steps: Steps) -> tuple[Array | None, Array | None, Array | None]:
    """What is taken off each column, put where entries are missing, and multiplied by."""
    columns, factors = steps.columns, steps.columns.weights
    if not (columns.fill or columns.leave_out or columns.centre or columns.scale):
        return None, None, factors
    moments, rows = _moments(x), x.shape[0]
    if columns.leave_out:
        require_all_or_none(moments, rows, columns.fill)
    elif columns.fill:
        require_filled(moments, leave_out=False)
    elif (moments.count < rows).any() or not np.isfinite(moments.mean).all():
        # As they are: the reading refuses the first by its place.
        return None, None, None
    fill = moments.mean if columns.fill or columns.leave_out else None
    if columns.scale:
        found = 1 / moments.deviations(rows)
        factors = found if factors is None else found * factors
    gone = moments.count == 0
    if gone.any():
        factors = np.where(gone, 0.0, 1.0 if factors is None else factors)
    return (moments.mean if columns.centre else None), fill, factors


def _moments(x: Any) -> ColumnMoments:
    """Number, mean and spread of the entries of each column, summed where chunks are."""
    from dask.delayed import delayed

    of_chunk, join = delayed(_moments_of, pure=False), delayed(ColumnMoments.joined, pure=False)
    found: ColumnMoments = tree_sum(map(of_chunk, x.to_delayed()[:, 0]), join).compute()
    return found


def _moments_of(chunk: Array) -> ColumnMoments:
    """Those of a chunk in double precision, with NaN where entries are missing."""
    missing = np.isnan(chunk)
    slab = torch.from_numpy(np.where(missing, 0, chunk))
    return ColumnMoments.of_dense(slab, torch.from_numpy(missing) if missing.any() else None)


def _widened(chunk: Any, codes: tuple[float, ...], wide: np.dtype[Any]) -> Array:
    """A chunk in double precision, with NaN where entries are missing."""
    stored = numbers_of(chunk)
    decoding = Decoding.of({}, stored.dtype, codes)
    if decoding is None:
        return stored.astype(wide)
    return decoding.decode(stored, np.empty(stored.shape, decoding.dtype)).astype(wide)


def _without_means(chunk: Array) -> Array:
    """Rows less the means of what is there in them."""
    there = np.maximum(1, np.count_nonzero(~np.isnan(chunk), axis=1, keepdims=True))
    for _ in range(2):  # As of rows of a file: the second is what rounding has left.
        chunk = chunk - np.nansum(chunk, axis=1, keepdims=True) / there
    return chunk


def _prepared(
    chunk: Array, *, shift: Array | None, fill: Array | None, factors: Array | None,
    to: np.dtype[Any],
) -> Array:  # fmt: skip
    """A chunk as it is meant, but for weights of rows."""
    if fill is not None:
        chunk = np.where(np.isnan(chunk), fill, chunk)
    if shift is not None:
        chunk = chunk - shift
    if factors is not None:
        chunk = chunk * factors
    return chunk.astype(to)
