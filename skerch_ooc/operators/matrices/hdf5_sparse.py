"""Sparse matrices in HDF5 files: AnnData's CSR and CSC, 10x's, and MATLAB's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.matrices.annotations import annotated, ten_x
from skerch_ooc.operators.matrices.hdf5 import (
    MOST_DIMENSIONS,
    Hdf5Source,
    is_matrix,
    numbers_of,
    open_file,
    require_filters,
    require_own_data,
    the_matrix,
    walk,
)
from skerch_ooc.operators.matrices.labels import Labels
from skerch_ooc.operators.matrices.npz import import_scipy
from skerch_ooc.operators.matrices.sources import BROKEN, Meant, Rows, SparseSource, unreadable

_ENTRIES = ("data", "indices", "indptr")
_MATLAB = ("data", "ir", "jc")


class Hdf5SparseSource(SparseSource):
    """A group that holds a sparse matrix, by its rows or columns.

    Args:
        path: The file.
        name: Of the group.
        wanted: What else is said of it.

    Raises:
        OperatorError: If it is none, or broken.
    """

    def __init__(self, path: Path, name: str, wanted: Meant) -> None:
        with open_file(path) as file:
            group = file[name]
            names = _ENTRIES if "indices" in group else _MATLAB
            found = [group[key] for key in names]
            for one in found:
                require_own_data(path, one)
                require_filters(path, one)
            chunks = [int(np.prod(one.chunks)) * one.dtype.itemsize for one in found if one.chunks]
            title = f"{path}: {name}"
            for chunk in chunks:
                wanted.require_room(2 * chunk, f"a chunk of {title}")
            wanted.require_room(3 * found[2].nbytes, f"where the rows of {title} begin")
            self._note(title, group, found, wanted)
        # Two chunks: the next entries begin in one that was not read to its end.
        self.held_bytes += 2 * sum(chunks)
        self._file = open_file(path, rdcc_nbytes=2 * max(chunks, default=1 << 19))
        self._values, self._columns = (self._file[f"{name}/{key}"] for key in names[:2])

    def _note(self, title: str, group: h5py.Group, found: list[Any], wanted: Meant) -> None:
        data, columns, starts = found
        if columns.dtype.kind not in "iu" or data.ndim != 1 or columns.ndim != 1:
            raise OperatorError(
                f"{title} is broken: its indices are {columns.dtype} of shape {columns.shape}; "
                "write the file again"
            )
        shape, by_columns = shape_and_order(title, group)
        told = shape[::-1] if by_columns else shape
        counts = (len(columns), len(data))
        self._describe(title, told, starts[()], counts, data.dtype, wanted.codes)
        self.is_transposed = by_columns
        self.held_bytes = self.starts.nbytes
        if is_ten_x(group):
            # Columns of genes x cells, one behind the other, are the rows of cells x genes.
            self.is_transposed = False
            self.remarks = (
                f"10x holds genes x cells: rows are the {self.shape[0]} cells, columns the "
                f"{self.shape[1]} genes",
            )

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`: numbers beside the group, or at this place in the file."""
        found = self._file.get(name) or self._values.parent.parent.get(name)
        return numbers_of(found) if isinstance(found, h5py.Dataset) else None

    def labels(self) -> Labels:
        """See :class:`Rows`."""
        group = self._values.parent
        if is_ten_x(group):
            return ten_x(group, self.shape)
        found = annotated(self._file, group.name.lstrip("/"), self.meant_shape)
        return found or super().labels()

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        try:
            columns, values = self._columns[first:last], self._values[first:last]
        except BROKEN as error:
            raise unreadable(self.name, error) from error
        return columns.astype(_index_dtype(columns.dtype), copy=False), values


def _index_dtype(dtype: np.dtype[Any]) -> type[np.signedinteger[Any]]:
    return np.int32 if dtype.itemsize < 4 or dtype == np.int32 else np.int64


def shape_and_order(title: str, group: Any) -> tuple[tuple[int, int], bool]:
    """The shape of a sparse matrix in a group, and whether it is stored by columns.

    Raises:
        OperatorError: If the group does not say.
    """
    attributes = group.attrs
    if "MATLAB_sparse" in attributes:
        return (int(attributes["MATLAB_sparse"]), len(group["jc"]) - 1), True
    stated = attributes.get("shape", attributes.get("h5sparse_shape"))
    if stated is None and "shape" in group:
        stated = group["shape"][()]
    order = attributes.get("encoding-type", attributes.get("h5sparse_format", ""))
    order = order.decode() if isinstance(order, bytes) else str(order)
    if stated is None or len(stated) != 2 or min(map(int, stated)) < 1:
        raise OperatorError(f"{title} has shape {stated}; give a matrix: write its two sizes")
    by_columns = order.startswith("csc") or (not order and is_ten_x(group))
    return (int(stated[0]), int(stated[1])), by_columns


def is_sparse(item: Any) -> bool:
    """Whether a group is a sparse matrix."""
    return isinstance(item, h5py.Group) and (
        all(key in item for key in _ENTRIES)
        or ("MATLAB_sparse" in item.attrs and all(key in item for key in _MATLAB))
    )


def is_ten_x(group: Any) -> bool:
    """Whether a group is as 10x writes it: the shape a dataset beside the entries."""
    return "shape" in group and "encoding-type" not in group.attrs and "indices" in group


def _is_annotated(file: h5py.File) -> bool:
    """Whether a file is AnnData's."""
    told = file.attrs.get("encoding-type", "")
    told = told.decode() if isinstance(told, bytes) else told
    return told == "anndata" or ("X" in file and ("obs" in file or "obsm" in file or "var" in file))


def rows_of(path: Path, wanted: Meant) -> Rows:
    """Opens what is meant in an HDF5 file: a dataset, or a group that is a sparse matrix.

    Raises:
        OperatorError: If it is not said, and there are several, or if there is none of that name.
    """
    with open_file(path) as file:
        name = wanted.dataset or _meant_in(file, path)
        found = file.get(name)
        thin = is_sparse(found)
        if not thin and not isinstance(found, h5py.Dataset):
            raise OperatorError(
                f"{path} has no dataset {name!r}; give one of: {shown_list(_matrices(file))}"
            )
    if not thin:
        return Hdf5Source(path, name, wanted)
    import_scipy()
    return Hdf5SparseSource(path, name, wanted)


def _matrices(file: h5py.File) -> list[str]:
    """The names of all that can be meant; of all datasets where nothing can be."""
    items = list(walk(file))
    sparse = [name for name, item in items if is_sparse(item)]
    inside = tuple(f"{name}/" for name in sparse)
    dense = [
        name
        for name, item in items
        if is_matrix(item, 2, MOST_DIMENSIONS) and not name.startswith(("#", *inside))
    ]
    datasets = [name for name, item in items if isinstance(item, h5py.Dataset)]
    return sorted(sparse + dense) or datasets


def _meant_in(file: h5py.File, path: Path) -> str:
    if (_is_annotated(file) or path.suffix == ".h5ad") and "X" in file:
        return "X"
    sparse = tuple(one for one, item in walk(file) if is_sparse(item))
    if len(sparse) == 1 and is_ten_x(file[sparse[0]]):
        return sparse[0]
    return the_matrix(file, path, sparse)
