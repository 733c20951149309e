"""Scores of samples, written to a file slab by slab: HDF5, Zarr or Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError, quoted
from skerch_ooc.base.files import (
    cannot_write,
    is_taken,
    make_folder,
    private_name,
    sync_folder,
    sync_tree,
)
from skerch_ooc.base.partition import Range
from skerch_ooc.base.provenance import provenance
from skerch_ooc.store import names
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.sealed import sealed_writer

Blocks = Iterable[tuple[Range, Array]]
"""Some rows after the other, and their scores."""

_TILE_ROWS = 4096


@dataclass(frozen=True)
class Sheet:
    """What a file of scores holds.

    Attributes:
        shape: Samples and components.
        dtype: Of the scores.
        run: The run, or the samples, that the components are of.
        components: The digest of the components.
        source: What the samples are; ``None`` if those that the components are of.
        whiten: Whether each has the variance 1.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    run: str
    components: str
    source: Mapping[str, Any] | None = None
    whiten: bool = False

    @property
    def columns(self) -> list[str]:
        """What each component is called."""
        return [f"pca{number}" for number in range(self.shape[1])]

    def identity(self) -> dict[str, Any]:
        """What a file states."""
        return names.SCORES.identity(
            self.run, components=self.components, source=self.source, whiten=self.whiten
        )


def write_scores(path: Path, sheet: Sheet, blocks: Blocks) -> Path:
    """Writes scores to a new file, which is there only once it is complete.

    Args:
        path: The file; its suffix says which format: ``.h5``, ``.zarr`` or ``.parquet``.
        sheet: What it holds.
        blocks: The scores.

    Returns:
        The path.

    Raises:
        UsageError: If the file is there already, is of another format, or the library of its
            format is not installed.
        IncompleteError: If it cannot be written.
    """
    writer = writer_of(path)
    require_free(path)
    try:
        make_folder(path.parent)
        writer(path, sheet, blocks)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def require_free(path: Path) -> None:
    """Refuses to write where something is.

    Raises:
        UsageError: Naming it.
    """
    if is_taken(path):
        raise UsageError(
            f"{path} is there already; give another name, or remove it: rm -r {quoted(path)}"
        )


def writer_of(path: Path) -> Callable[[Path, Sheet, Blocks], None]:
    """What writes a file, by its suffix.

    Raises:
        UsageError: If there is none, or its library is not installed.
    """
    found = _WRITERS.get(path.suffix.lower())
    if found is None:
        raise UsageError(
            f"cannot write scores to {path}: give a name that ends in {', '.join(_WRITERS)}"
        )
    library, writer = found
    if library is not None:
        try:
            __import__(library)
        except ImportError as error:
            raise UsageError(
                f"writing {path} needs {library}: pip install {library}; or give a name that ends "
                "in .h5"
            ) from error
    return writer


def in_tiles(blocks: Blocks, height: int, rows: int = _TILE_ROWS) -> Iterator[tuple[int, Array]]:
    """Cuts blocks anew, into tiles of so many rows, the last of which may be shorter."""
    held: list[Array] = []
    number, count = 0, 0
    for inside, block in blocks:
        held.append(block)
        count += len(block)
        while count >= rows or (inside.stop == height and count):
            joined = held[0] if len(held) == 1 else np.concatenate(held)
            yield number, joined[:rows]
            number, held = number + 1, [joined[rows:]]
            count = len(held[0])


def _hdf5(path: Path, sheet: Sheet, blocks: Blocks) -> None:
    layout = Layout("scores", sheet.shape, sheet.dtype.name, (_TILE_ROWS, sheet.shape[1]))
    with sealed_writer(path, layout) as writer:
        for number, tile in in_tiles(blocks, sheet.shape[0]):
            writer.write_rows(number, tile)
        writer.publish(sheet.identity(), provenance=provenance(columns=sheet.columns))


def _zarr(path: Path, sheet: Sheet, blocks: Blocks) -> None:
    import zarr

    private = private_name(path.parent)
    array = zarr.create_array(
        store=str(private), shape=sheet.shape, dtype=sheet.dtype,
        chunks=(min(_TILE_ROWS, sheet.shape[0]), sheet.shape[1]),
        attributes={"columns": sheet.columns, **sheet.identity()},
    )  # fmt: skip
    for number, tile in in_tiles(blocks, sheet.shape[0]):
        array[number * _TILE_ROWS : number * _TILE_ROWS + len(tile)] = tile
    _publish(private, path)


def _parquet(path: Path, sheet: Sheet, blocks: Blocks) -> None:
    import pyarrow
    import pyarrow.parquet

    private = private_name(path.parent)
    schema = pyarrow.schema(
        [(name, pyarrow.from_numpy_dtype(sheet.dtype)) for name in sheet.columns],
        metadata={"identity": json.dumps(sheet.identity())},
    )
    with pyarrow.parquet.ParquetWriter(private, schema) as writer:
        for _, tile in in_tiles(blocks, sheet.shape[0], 16 * _TILE_ROWS):
            columns = [np.ascontiguousarray(column) for column in tile.T]
            writer.write_table(pyarrow.table(columns, schema=schema))
    _publish(private, path)


def _publish(private: Path, path: Path) -> None:
    """Gives complete scores their name, once all of them are on the disk."""
    sync_tree(private)
    os.rename(private, path)
    sync_folder(path.parent)


_WRITERS: dict[str, tuple[str | None, Callable[[Path, Sheet, Blocks], None]]] = {
    ".h5": (None, _hdf5),
    ".zarr": ("zarr", _zarr),
    ".parquet": ("pyarrow", _parquet),
}
