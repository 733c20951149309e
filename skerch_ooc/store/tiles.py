"""Base classes of tall matrices that are read tile by tile: from one file, pieces or shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, tiles_of
from skerch_ooc.store.layout import Layout


class Tiles(ABC):
    """A tall matrix that is read, and verified, tile by tile.

    All reading methods raise CorruptError if a file was altered, and IncompleteError if one is
    gone.

    Attributes:
        layout: Its shape, dtype and tiles.
    """

    layout: Layout

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the entries."""
        return np.dtype(self.layout.dtype)

    @property
    def far_bytes(self) -> int:
        """Bytes of a row tile that come from an object store."""
        return 0

    @abstractmethod
    def read_tile(self, row: int, column: int = 0) -> Array:
        """Reads one tile.

        Args:
            row: Number of the row tile.
            column: Number of the column tile.

        Returns:
            The tile, without padding.
        """

    def expect(self, rows: Range, columns: Range) -> None:
        """Is told which tiles are read next, so that far ones are fetched in long ranges.

        Args:
            rows: Numbers of the row tiles; at least the first is read.
            columns: Numbers of the column tiles.
        """
        del rows, columns

    def read_row(self, row: int, out: Array) -> Array:
        """Reads one row tile of all columns.

        Args:
            row: Number of the row tile.
            out: Buffer with all columns, and at least the rows of a tile.

        Returns:
            The filled part of ``out``, converted to its dtype.
        """
        out = out[: len(self.layout.rows(row))]
        self.expect(Range(row, self.layout.grid[0]), Range(0, self.layout.grid[1]))
        for column in range(self.layout.grid[1]):
            out[:, self.layout.columns(column).slice] = self.read_tile(row, column)
        return out

    def read(self, rows: Range, columns: Range) -> Array:
        """Reads any slice, ``(len(rows), len(columns))``, from the tiles that it touches."""
        layout = self.layout
        out = np.empty((len(rows), len(columns)), self.dtype)
        last = -(-rows.stop // layout.tile[0])
        across = Range(columns.start // layout.tile[1], -(-columns.stop // layout.tile[1]))
        for i in tiles_of(rows, layout.tile[0]):
            self.expect(Range(i, last), across)
            tile_rows = layout.rows(i)
            here = tile_rows.common(rows)
            for j in tiles_of(columns, layout.tile[1]):
                tile_columns = layout.columns(j)
                there = tile_columns.common(columns)
                target = out[here.shifted(-rows.start).slice, there.shifted(-columns.start).slice]
                target[:] = self.read_tile(i, j)[
                    here.shifted(-tile_rows.start).slice, there.shifted(-tile_columns.start).slice
                ]
        return out


class RowTiles(Tiles):
    """A tall matrix whose tiles have all of its columns."""

    @abstractmethod
    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`Tiles`."""

    def read_tile(self, row: int, column: int = 0) -> Array:
        """See :class:`Tiles`."""
        del column
        return self.read_row(row, np.empty((len(self.layout.rows(row)), self.shape[1]), self.dtype))


class SomeColumns(RowTiles):
    """Some columns of a tall matrix.

    Args:
        source: The matrix.
        columns: Which of its columns.
    """

    def __init__(self, source: Tiles, columns: Range) -> None:
        self._source, self._columns = source, columns
        like, width = source.layout, len(columns)
        self.layout = Layout(like.name, (like.shape[0], width), like.dtype, (like.tile[0], width))

    @property
    def far_bytes(self) -> int:
        """See :class:`Tiles`."""
        return self._source.far_bytes

    @classmethod
    def of(cls, source: Tiles, columns: Range) -> Tiles:
        """Returns some columns of a matrix: the matrix itself if these are all."""
        return source if columns == Range(0, source.shape[1]) else cls(source, columns)

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`Tiles`."""
        rows = self.layout.rows(row)
        whole = np.empty((len(rows), self._source.shape[1]), self.dtype)
        out = out[: len(rows)]
        out[:] = self._source.read_row(row, whole)[:, self._columns.slice]
        return out


class Beside(RowTiles):
    """Tall matrices of equal height and dtype, side by side.

    Args:
        name: Its name.
        parts: The matrices.
    """

    def __init__(self, name: str, parts: Sequence[Tiles]) -> None:
        self._parts = list(parts)
        first, columns = parts[0], sum(part.shape[1] for part in parts)
        height = first.layout.tile[0]
        self.layout = Layout(name, (first.shape[0], columns), first.layout.dtype, (height, columns))

    @property
    def far_bytes(self) -> int:
        """See :class:`Tiles`."""
        return sum(part.far_bytes for part in self._parts)

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`Tiles`."""
        out = out[: len(self.layout.rows(row))]
        start = 0
        for part in self._parts:
            stop = start + part.shape[1]
            part.read_row(row, out[:, start:stop])
            start = stop
        return out
