"""AnnData: writes modes as an ``.h5ad``: scores of cells, loadings of genes, by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.operators.matrices.labels import Axes
from skerch_ooc.results.modes import Blocks, Modes

_TEXTS = 1 << 18
"""Texts that are written together."""


def write_h5ad(path: Path, modes: Modes) -> None:
    """Writes modes to a new file, under the names that scanpy gives them.

    Args:
        path: The file.
        modes: What is written.

    Raises:
        UsageError: If rows or columns are a grid.
    """
    labels = modes.labels
    for what, axes in (("rows", labels.rows), ("columns", labels.columns)):
        if len(axes.names) > 1:
            raise UsageError(
                f"the {what} are {' x '.join(axes.names)}, which AnnData cannot say; give a name "
                "that ends in .nc"
            )
    kind = ("X_pca", "PCs", "pca") if modes.is_centred else ("X_svd", "SVs", "svd")
    with h5py.File(path, "x") as file:
        _say(file, "anndata", "0.1.0")
        for name in ("layers", "obsp", "varp"):
            _folder(file, name)
        _write_table(file, "obs", modes, labels.rows)
        _write_table(file, "var", modes, labels.columns)
        scores = ((rows, block * modes.values) for rows, block in modes.left())
        _write_array(_folder(file, "obsm"), kind[0], modes, labels.rows, scores)
        _write_array(_folder(file, "varm"), kind[1], modes, labels.columns, modes.right())
        about = _folder(_folder(file, "uns"), kind[2])
        for name, values in _figures(modes).items():
            _say(about.create_dataset(name, data=values), "array", "0.2.0")


def _figures(modes: Modes) -> Mapping[str, Array]:
    found = {"singular_values": modes.values}
    if modes.is_centred:
        found["variance"] = modes.values**2 / max(1, modes.shape[0] - 1)
    if modes.shares is not None:
        found["variance_ratio"] = modes.shares
    return found


def _say(node: Any, kind: str, version: str) -> None:
    node.attrs.update({"encoding-type": kind, "encoding-version": version})


def _folder(parent: Any, name: str) -> h5py.Group:
    made = parent.create_group(name)
    _say(made, "dict", "0.1.0")
    return made


def _write_table(file: h5py.File, name: str, modes: Modes, axes: Axes) -> None:
    made = file.create_group(name)
    _say(made, "dataframe", "0.2.0")
    (dim,), (size,) = axes.names, axes.sizes
    known = {one.name: one.values for one in modes.labels.along(axes)}
    index = known.pop(dim, None)
    made.attrs["_index"] = "_index"
    made.attrs["column-order"] = np.array(list(known), dtype=h5py.string_dtype())
    _write_column(made, "_index", size, partial(_texts, index))
    for key, values in known.items():
        if values.dtype.kind == "S":
            _write_column(made, key, size, partial(_texts, values))
        else:
            _say(made.create_dataset(key, data=values), "array", "0.2.0")


def _texts(values: Array | None, rows: Range) -> list[Any]:
    """Some texts: the numbers of the rows where nothing names them."""
    if values is None:
        return [str(row) for row in range(rows.start, rows.stop)]
    part = values[rows.slice]
    return list(part) if part.dtype.kind == "S" else [str(one) for one in part]


def _write_column(
    made: h5py.Group, name: str, size: int, texts: Callable[[Range], list[Any]]
) -> None:
    found = made.create_dataset(name, (size,), h5py.string_dtype())
    for rows in cut(Range(0, size), _TEXTS):
        found[rows.slice] = texts(rows)
    _say(found, "string-array", "0.2.0")


def _write_array(parent: h5py.Group, name: str, modes: Modes, axes: Axes, blocks: Blocks) -> None:
    found = parent.create_dataset(name, (axes.sizes[0], modes.rank), modes.dtype)
    for rows, block in blocks:
        found[rows.slice] = block
    _say(found, "array", "0.2.0")
