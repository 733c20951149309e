"""Layout of a matrix in a sealed file: its shape, dtype and tiles, and where each tile lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.partition import Range, tile


@dataclass(frozen=True)
class Layout:
    """How a matrix lies in its bulk: in row tiles of all columns, or in tiles of some columns each.

    Attributes:
        name: Name of the dataset.
        shape: Rows and columns.
        dtype: float32, float64, complex64 or complex128, of checksums uint32; stored little-endian.
        tile: Rows and columns of a tile. With all columns the dataset is contiguous and its last
            tile may be shorter; with fewer it is chunked, and chunks at the edges are padded.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    tile: tuple[int, int]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The dtype of the stored entries."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def chunked(self) -> bool:
        """Whether a tile holds only some of the columns."""
        return self.tile[1] < self.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Number of row tiles and of column tiles."""
        return -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.grid[0] * self.grid[1]

    def rows(self, row: int) -> Range:
        """Returns the rows of a row tile."""
        return tile(Range(0, self.shape[0]), self.tile[0], row)

    def columns(self, column: int) -> Range:
        """Returns the columns of a column tile."""
        return tile(Range(0, self.shape[1]), self.tile[1], column)

    def stored_shape(self, row: int, column: int) -> tuple[int, int]:
        """Returns rows and columns of a tile as it is stored, padding included."""
        return self.tile if self.chunked else (len(self.rows(row)), len(self.columns(column)))

    @property
    def tile_bytes(self) -> int:
        """Bytes of a full tile."""
        return self.tile[0] * self.tile[1] * self.stored_dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row tile of all columns, if it is full."""
        return self.tile_bytes * self.grid[1]

    @property
    def length(self) -> int:
        """Bytes of the bulk."""
        if self.chunked:
            return self.tiles * self.tile_bytes
        return self.shape[0] * self.shape[1] * self.stored_dtype.itemsize

    def number(self, row: int, column: int) -> int:
        """Returns the position of a tile in the bulk and among the checksums."""
        return row * self.grid[1] + column

    def sizes(self) -> dict[str, Any]:
        """Returns what files say of shape, type and tiles."""
        return {"shape": list(self.shape), "dtype": self.dtype, "tile": list(self.tile)}

    @classmethod
    def of(cls, name: str, sizes: Any) -> Layout:
        """Reads what :meth:`sizes` returned.

        Raises:
            KeyError: If it is not that; or TypeError, ValueError or OverflowError.
        """
        (rows, columns), (height, width) = sizes["shape"], sizes["tile"]
        shape, tile = (int(rows), int(columns)), (int(height), int(width))
        if min(shape + tile) < 1:
            raise ValueError(f"{name} has no entries, or its tiles have none")
        return cls(name, shape, str(sizes["dtype"]), tile)

    def as_json(self) -> dict[str, Any]:
        """Returns the description of the bulk in the identity of its file, without checksums."""
        return {"dataset": self.name, **self.sizes(), "crc32": []}

    @classmethod
    def from_json(cls, value: Any, path: Path) -> Layout:
        """Reads a description that :meth:`as_json` made.

        Raises:
            CorruptError: If it is anything else.
        """
        try:
            layout = cls.of(str(value["dataset"]), value)
            # Values that int() and str() converted, such as 4096.5, are no description of ours.
            good = layout.as_json() == value
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptError(f"{path}: its identity does not describe its data") from error
        if not good:
            raise CorruptError(f"{path}: its identity does not describe its data")
        return layout
