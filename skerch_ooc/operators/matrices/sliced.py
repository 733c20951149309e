"""Objects whose rows are slices: arrays, frames and tensors in memory, and open datasets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.bands import Bands
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.grids import Grid, is_latitude
from skerch_ooc.operators.matrices.hdf5 import Hdf5Source, require_filters, require_own_data
from skerch_ooc.operators.matrices.sources import Meant, Source


class SlicedSource(Source):
    """Rows of anything that gives some of them as an array.

    Args:
        name: Of the kind of object, for messages.
        shape: ``(height, width)``.
        dtype: Of what is given.
        get: Gives some rows.
        columns: Names of the columns, for messages; may be left empty.
        decoding: What stored numbers mean.

    Attributes:
        beside: Coordinates of the object, by name.

    Raises:
        OperatorError: If it is no matrix of numbers.
    """

    beside: Mapping[str, Any] = {}

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any],
        get: Callable[[slice], Array], *, columns: Sequence[Any] = (),
        decoding: Decoding | None = None,
    ) -> None:  # fmt: skip
        self._get, self._columns = get, columns
        self._describe(name, shape, dtype.newbyteorder("="), decoding)
        self._bands: Bands | None = None

    def in_chunks(self, chunks: Sequence[int], wanted: Meant) -> SlicedSource:
        """Reads it in bands of chunks from now on, each of them once."""
        grid = Grid(self.shape, ("", ""), (0,))
        self._bands = Bands(self.name, grid, chunks, self.stored_dtype, wanted)
        self.rows_together, self.held_bytes = self._bands.rows_together, self._bands.held_bytes
        self.remarks = self._bands.remarks
        return self

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`."""
        return 1.0 if self._bands is None else self._bands.readings(slab_rows)

    def _read_to(self, out: Array, rows: Range) -> None:
        if self._bands is None:
            out[...] = self._get(rows.slice)
        else:
            self._bands.read(lambda index: self._get(index[0]), rows, out)

    def meaning(self, row: int, column: int) -> str:
        """See :class:`Rows`: also names the column."""
        found = super().meaning(row, column)
        if not len(self._columns):
            return found
        return f"{found or 'what is missing or infinite'} (of {str(self._columns[column])!r})"

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`; ``"latitude"`` also finds what is one by its attributes."""
        return coordinate_beside(self.beside, name)


def coordinate_beside(beside: Mapping[str, Any], name: str) -> Array | None:
    """A coordinate of an object by its name, or its latitudes; ``None`` if it has none."""
    for key, one in beside.items():
        fits = is_latitude(str(key), one.attrs) if name == "latitude" else key == name
        if fits and one.dtype.kind in "iuf":
            return np.asarray(one.values, np.float64).ravel()
    return None


class OpenHdf5Source(Hdf5Source):
    """A dataset of h5py that is open already.

    Args:
        dataset: The dataset.
        wanted: How much memory there is.

    Raises:
        OperatorError: If it is no matrix of numbers, or its data lie elsewhere.
    """

    def __init__(self, dataset: h5py.Dataset, wanted: Meant) -> None:
        path = Path(dataset.file.filename)
        require_own_data(path, dataset)
        require_filters(path, dataset)
        self._file, self._dataset = dataset.file, dataset
        self._note(f"{path}: {dataset.name.lstrip('/')}", dataset, wanted)
        # Dimensions are those that the object shows.
        self.is_transposed = False
        self._bands: Bands | None = None
        if dataset.chunks and math.prod(dataset.chunks) > 1:
            # The cache of HDF5 is as large as whoever opened it has said.
            self._bands = Bands(self.name, self._grid, dataset.chunks, self.stored_dtype, wanted)
            self.rows_together, self.held_bytes = self._bands.rows_together, self._bands.held_bytes
            self.remarks += self._bands.remarks

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`."""
        return 1.0 if self._bands is None else self._bands.readings(slab_rows)

    def _read_to(self, out: Array, rows: Range) -> None:
        if self._bands is None:
            super()._read_to(out, rows)
        else:
            self._bands.read(self._get, rows, out)


def numbers_of(entries: Any) -> Array:
    """Entries as an array; NaN where they are masked."""
    if isinstance(entries, np.ma.MaskedArray) and np.ma.getmaskarray(entries).any():
        wide = np.result_type(entries.dtype, np.float32)
        return np.asarray(np.ma.filled(entries.astype(wide), np.nan))
    return np.asarray(entries)
