"""Scores of samples, written to a file slab by slab: HDF5, Zarr, Parquet or CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.disk_errors import cannot_write
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.files import is_taken, make_folder, sync_folder, sync_tree
from skerch_ooc.base.partition import Range
from skerch_ooc.base.places import removal
from skerch_ooc.base.private_names import private_name
from skerch_ooc.base.provenance import provenance
from skerch_ooc.operators.matrices.dates import dates_of
from skerch_ooc.operators.matrices.labels import Axes, Labels
from skerch_ooc.store import names
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.sealed import sealed_writer

Blocks = Iterable[tuple[Range, Array]]
"""Some rows after the other, and their scores."""

Names = Callable[[Range], Mapping[str, Array]]
"""Columns of a table that say what some rows are called: texts, dates or numbers."""

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
        names: Gives what some rows are called, by the name of a column; for tables.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    run: str
    components: str
    source: Mapping[str, Any] | None = None
    whiten: bool = False
    names: Names | None = None

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
        path: The file; its suffix says which format: ``.h5``, ``.zarr``, ``.parquet`` or ``.csv``.
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
        command = removal(path, below=True)
        raise UsageError(f"{path} is there already; give another name, or remove it: {command}")


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

    def table(rows: Range, tile: Array) -> Any:
        columns = {} if sheet.names is None else _shown(sheet.names(rows))
        columns |= dict(zip(sheet.columns, map(np.ascontiguousarray, tile.T), strict=True))
        return pyarrow.table(columns)

    private = private_name(path.parent)
    schema = table(Range(0, 1), np.zeros((1, sheet.shape[1]), sheet.dtype)).schema
    schema = schema.with_metadata({"identity": json.dumps(sheet.identity())})
    with pyarrow.parquet.ParquetWriter(private, schema) as writer:
        for rows, tile in _placed(blocks, sheet, 16 * _TILE_ROWS):
            writer.write_table(table(rows, tile).cast(schema))
    _publish(private, path)


def _publish(private: Path, path: Path) -> None:
    """Gives complete scores their name, once all of them are on the disk."""
    sync_tree(private)
    os.rename(private, path)
    sync_folder(path.parent)


def _csv(path: Path, sheet: Sheet, blocks: Blocks) -> None:
    names: Names = sheet.names or (lambda _: {})
    private = private_name(path.parent)
    with open(private, "x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names(Range(0, 1)), *sheet.columns])
        for rows, tile in _placed(blocks, sheet, _TILE_ROWS):
            known = [column.tolist() if isinstance(column, np.ndarray) else column
                     for column in _shown(names(rows)).values()]  # fmt: skip
            # What is missing is empty, as other programs have it; floats are spelt to be read back.
            numbers = [["" if math.isnan(one) else str(one) for one in row] for row in tile]
            writer.writerows([*said, *row] for *said, row in zip(*known, numbers, strict=True))
    _publish(private, path)


def _placed(blocks: Blocks, sheet: Sheet, rows: int) -> Iterator[tuple[Range, Array]]:
    """Tiles of so many rows, with the rows that they are."""
    for number, tile in in_tiles(blocks, sheet.shape[0], rows):
        yield Range(number * rows, number * rows + len(tile)), tile


def _shown(columns: Mapping[str, Array]) -> dict[str, Any]:
    """Columns as tables have them: texts and dates as text."""
    found: dict[str, Any] = {}
    for name, values in columns.items():
        if values.dtype.kind == "S":
            found[name] = [one.decode(errors="replace") for one in values]
        else:
            found[name] = values.astype(str).tolist() if values.dtype.kind == "M" else values
    return found


def names_along(labels: Labels, axes: Axes) -> Names:
    """Columns of a table with the names of rows, or of columns, of a matrix.

    Args:
        labels: Of the matrix.
        axes: Its rows or its columns.
    """
    known = []
    for one in sorted(labels.along(axes), key=lambda one: one.name not in axes.names):
        values, unit = dates_of(one.values, one.attributes), None
        if values is None:
            values, unit = one.values, one.attributes.get("units")
        elif (values == values.astype("datetime64[D]")).all():
            values = values.astype("datetime64[D]")
        name = f"{one.name} ({unit})" if unit and unit != "1" else one.name
        known.append((name, [axes.names.index(dim) for dim in one.dims], values))

    def of(rows: Range) -> Mapping[str, Array]:
        places = np.unravel_index(np.arange(rows.start, rows.stop), axes.sizes)
        return {name: values[tuple(places[dim] for dim in dims)] for name, dims, values in known}

    return of


def is_table(path: Path) -> bool:
    """Whether a file is a table, which names its rows."""
    return path.suffix.lower() in (".parquet", ".csv")


_WRITERS: dict[str, tuple[str | None, Callable[[Path, Sheet, Blocks], None]]] = {
    ".h5": (None, _hdf5),
    ".zarr": ("zarr", _zarr),
    ".parquet": ("pyarrow", _parquet),
    ".csv": (None, _csv),
}
