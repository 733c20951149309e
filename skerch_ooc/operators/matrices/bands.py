"""Bands: rows of an array in chunks that are read together, so that no chunk is read twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.operators.matrices.grids import Grid, Slices
from skerch_ooc.operators.matrices.sources import Meant

_SHARE = 3
"""A band is kept in at most this share of the memory: a third."""
PIECE = 1 << 25
"""Bands are read in pieces of about this size, as what reads them makes a copy."""

Get = Callable[[Slices], Array]


class Bands:
    """Reads rows of an array band by band, and keeps the one on which it ended.

    Args:
        name: Of the array, for messages.
        grid: How the array is a matrix.
        chunks: The sizes of a chunk.
        dtype: Of the entries.
        wanted: How much memory there is.

    Attributes:
        rows_together: The rows of a band.
        band_bytes: The bytes of its chunks.
        fits: Whether a band is kept, so that no chunk is read twice.
        remarks: Sentences for people.

    Raises:
        OperatorError: If a chunk does not fit into the memory.
    """

    def __init__(
        self, name: str, grid: Grid, chunks: Sequence[int], dtype: np.dtype[Any], wanted: Meant
    ) -> None:
        self._grid, self._dtype, self._chunks = grid, dtype, tuple(chunks)
        size = dtype.itemsize
        chunk = int(np.prod(chunks)) * size
        wanted.require_room(2 * chunk, f"a chunk of {name} of {tuple(chunks)} entries")
        self.rows_together, entries = grid.chunks_across(chunks)
        needed = entries * size
        self.band_bytes = needed
        self.fits = needed <= wanted.memory // _SHARE
        # A matrix is read in pieces of columns too; what has more dimensions, band by band.
        copied = chunk if grid.is_plain else needed
        self._most = max(PIECE, copied) + needed if self.fits else 2 * chunk
        self.remarks: tuple[str, ...] = ()
        if not self.fits:
            self.remarks = (
                f"chunks of {tuple(chunks)} are read several times: one row of them takes "
                f"{format_bytes(needed)}, more than a third of the memory; with --memory "
                f"{format_bytes(_SHARE * needed)} each is read once",
            )
        self._kept, self._entries = Range(0, 0), np.empty((0, grid.shape[1]), dtype)

    @property
    def held_bytes(self) -> int:
        """Memory that it comes to hold, beside what it holds already."""
        return self._most - self._entries.nbytes

    def readings(self, slab_rows: int) -> float:
        """How often each byte is read, if rows are read slab by slab."""
        return 1.0 if self.fits else max(1.0, self.rows_together / slab_rows)

    def read(self, get: Get, rows: Range, out: Array) -> None:
        """Fills an array with rows.

        Args:
            get: Reads a rectangle of the array.
            rows: Which rows.
            out: Where to.
        """
        if not self.fits:
            self._grid.read(get, rows, out)
            return
        place = rows.start
        while place < rows.stop:
            band = self._band(place)
            inside = band.common(rows)
            if inside == band and band != self._kept:
                inside = self._whole(band, rows)
                self._fill(get, inside, out[inside.shifted(-rows.start).slice])
            else:
                self._keep(get, band)
                kept = self._entries[inside.shifted(-band.start).slice]
                out[inside.shifted(-rows.start).slice] = kept
            place = inside.stop

    def _band(self, row: int) -> Range:
        return self._grid.band(row, self.rows_together)

    def _whole(self, band: Range, rows: Range) -> Range:
        """A band, and those behind it that are wanted, as far as they make a piece."""
        most = max(1, PIECE // (self._dtype.itemsize * self._grid.shape[1]))
        stop = band.stop
        while stop < rows.stop:
            after = self._band(stop)
            if after.stop > rows.stop or after.stop - band.start > most:
                break
            stop = after.stop
        return Range(band.start, stop)

    def _keep(self, get: Get, band: Range) -> None:
        if self._kept == band:
            return
        # What is kept is not, until all of it was read.
        self._kept = Range(0, 0)
        if len(self._entries) < len(band):
            self._entries = np.empty((len(band), self._grid.shape[1]), self._dtype)
        self._fill(get, band, self._entries[: len(band)])
        self._kept = band

    def _fill(self, get: Get, rows: Range, out: Array) -> None:
        """Fills an array with rows, in pieces of whole chunks of columns."""
        if not self._grid.is_plain:
            self._grid.read(get, rows, out)
            return
        wide, width = self._chunks[1], self._grid.shape[1]
        fitting = PIECE // (len(rows) * self._dtype.itemsize)
        step = max(1, fitting // wide) * wide
        for first in range(0, width, step):
            columns = slice(first, min(first + step, width))
            out[:, columns] = get((rows.slice, columns))
