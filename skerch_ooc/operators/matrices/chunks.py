"""Rows of matrices in chunks that are read and decoded one by one, several at once in threads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut


class ChunkBands(ABC):
    """Reads rows of a matrix in chunks. A band is one row of chunks.

    The last band is kept, as the next rows begin on it.

    Args:
        shape: Of the matrix.
        chunks: Rows and columns of a chunk.
        dtype: Of the entries.
        most: How many chunks may be in memory at once.
    """

    def __init__(
        self, shape: tuple[int, int], chunks: tuple[int, int], dtype: np.dtype[Any], most: int
    ) -> None:
        self._shape, self._chunks, self._dtype, self._most = shape, chunks, dtype, most
        self._kept: tuple[Range, Array] | None = None

    @abstractmethod
    def _chunk(self, row: int, column: int) -> Array:
        """The whole chunk that begins at a place.

        Raises:
            OSError: If it cannot be read.
        """

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return math.prod(self._chunks) * self._dtype.itemsize

    @property
    def kept_bytes(self) -> int:
        """Bytes of the band that is kept."""
        return 0 if self._kept is None else self._kept[1].nbytes

    def read(self, out: Array, rows: Range) -> None:
        """Fills an array with some rows.

        Raises:
            OSError: If they cannot be read.
        """
        unit, height = self._chunks[0], self._shape[0]
        first, last = rows.start // unit, -(-rows.stop // unit)
        with ThreadPoolExecutor(min(self._most, torch.get_num_threads())) as pool:
            whole = []
            for band in cut(Range(first * unit, min(last * unit, height)), unit):
                inside = band.common(rows)
                place = out[inside.shifted(-rows.start).slice]
                if inside == band:
                    whole += self._pieces(place, band)
                else:
                    place[...] = self._band(band, pool)[inside.shifted(-band.start).slice]
            for _ in pool.map(self._fill, whole):
                pass

    def _band(self, band: Range, pool: ThreadPoolExecutor) -> Array:
        if self._kept is None or self._kept[0] != band:
            found = self._kept[1] if self._kept else np.empty((0, 0), self._dtype)
            # What is kept is not, until all of it was read.
            self._kept = None
            if len(found) != len(band):
                found = np.empty((len(band), self._shape[1]), self._dtype)
            for _ in pool.map(self._fill, self._pieces(found, band)):
                pass
            self._kept = band, found
        return self._kept[1]

    def _pieces(self, out: Array, band: Range) -> list[tuple[Array, int, int]]:
        """Where each chunk of a band goes, and where it begins."""
        columns = cut(Range(0, self._shape[1]), self._chunks[1])
        return [(out[:, inside.slice], band.start, inside.start) for inside in columns]

    def _fill(self, piece: tuple[Array, int, int]) -> None:
        out, row, column = piece
        height, width = out.shape
        out[...] = self._chunk(row, column)[:height, :width]

    def _as_chunk(self, found: Any, row: int, column: int) -> Array:
        """Bytes as a chunk.

        Raises:
            OSError: If they are not as many as it has.
        """
        if memoryview(found).nbytes != self.chunk_bytes:
            raise OSError(f"the chunk at {row}, {column} does not have {self.chunk_bytes} bytes")
        return np.frombuffer(found, self._dtype).reshape(self._chunks)
