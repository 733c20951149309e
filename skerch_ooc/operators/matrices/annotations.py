"""Annotations: names of cells and genes that AnnData and 10x keep beside their matrices."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.operators.matrices.grids import text_of
from skerch_ooc.operators.matrices.labels import Coordinate, Labels, texts_of
from skerch_ooc.operators.matrices.sources import BROKEN

OBSERVATIONS, VARIABLES = "obs", "var"
"""What AnnData calls its rows and columns."""

_TEN_X = {
    OBSERVATIONS: (("barcodes", OBSERVATIONS),),
    VARIABLES: (
        ("features/name", VARIABLES), ("gene_names", VARIABLES), ("features/id", "gene_ids"),
        ("genes", "gene_ids"),
    ),
}  # fmt: skip
"""Where 10x keeps names, and what they are called; in files of its versions 2 and 3."""


def annotated(root: Any, name: str, shape: tuple[int, int]) -> Labels | None:
    """Labels of a matrix of AnnData, in HDF5 or Zarr; ``None`` if it has none.

    Args:
        root: The file, or the group at its root.
        name: Of the matrix in it.
        shape: Cells and genes.
    """
    sides = _sides(name)
    if sides is None or not any(one in root for one in (OBSERVATIONS, VARIABLES)):
        return None
    dims: list[tuple[str, int]] = []
    found = []
    for place, size in zip(sides, shape, strict=True):
        dim = place.rpartition("/")[2]
        dims.append((dim, size))
        values = index_of(root[place]) if place and place in root else None
        if values is not None and values.shape == (size,):
            found.append(Coordinate(dim, (dim,), values))
    return Labels.of(dims[:1], dims[1:], found)


def _sides(name: str) -> tuple[str, str] | None:
    """The groups that name the rows and the columns of a matrix; empty where none does."""
    match name.strip("/").split("/"):
        case ["X"] | ["layers", _]:
            return OBSERVATIONS, VARIABLES
        case ["raw", "X"]:
            return OBSERVATIONS, f"raw/{VARIABLES}"
        case ["obsm", _]:
            return OBSERVATIONS, ""
        case ["varm", _]:
            return VARIABLES, ""
        case ["obsp", _]:
            return OBSERVATIONS, OBSERVATIONS
        case ["varp", _]:
            return VARIABLES, VARIABLES
    return None


def index_of(table: Any) -> Array | None:
    """The names of the rows of one of AnnData's tables; ``None`` if they cannot be read."""
    with contextlib.suppress(*BROKEN):
        if hasattr(table, "shape"):
            # Before its version 0.7: a dataset of records.
            for key in ("index", "_index"):
                if key in (table.dtype.names or ()):
                    return texts_of(table[key])
            return None
        node = table[text_of(table.attrs.get("_index", "_index"))]
        if hasattr(node, "shape"):
            return texts_of(node[...])
        if "categories" in node:
            return texts_of(texts_of(node["categories"][...])[np.asarray(node["codes"][...])])
        return texts_of(node["values"][...])
    return None


def ten_x(group: Any, shape: tuple[int, int]) -> Labels:
    """Labels of a matrix of 10x, cells x genes.

    Args:
        group: That of the matrix.
        shape: Cells and genes.
    """
    found = []
    for (dim, places), size in zip(_TEN_X.items(), shape, strict=True):
        for place, name in places:
            with contextlib.suppress(*BROKEN):
                values = texts_of(group[place][...])
                if values.shape == (size,):
                    found.append(Coordinate(name, (dim,), values))
    return Labels.of([(OBSERVATIONS, shape[0])], [(VARIABLES, shape[1])], found)
