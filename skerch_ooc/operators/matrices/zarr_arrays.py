"""Matrices in Zarr: arrays of any number of dimensions, and AnnData's sparse matrices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, counted, shown_list
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.annotations import annotated
from skerch_ooc.operators.matrices.bands import PIECE, Bands
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.grids import Grid, Slices, is_latitude
from skerch_ooc.operators.matrices.hdf5_sparse import shape_and_order
from skerch_ooc.operators.matrices.labels import (
    Labels,
    Neighbour,
    decoded,
    latitudes_of,
    of_grid,
)
from skerch_ooc.operators.matrices.npz import import_scipy
from skerch_ooc.operators.matrices.sources import Meant, Rows, Source, SparseSource, unreadable
from skerch_ooc.operators.matrices.zarr_chunks import ZarrBands, decoder_of
from skerch_ooc.operators.matrices.zarr_store import (
    attributes_of,
    dimensions_of,
    first_line,
    is_array,
    names_of,
    node_of,
    open_node,
    walk,
)

_FLIGHT = 10
"""Chunks that the library reads at once."""
_COUNTED = 100_000
"""Chunks of more are not counted."""
_ENTRIES = ("data", "indices", "indptr")


class ZarrSource(Source):
    """An array of Zarr.

    Args:
        name: For messages.
        array: The array.
        wanted: What else is said of it.
        beside: The group that it is in, where coordinates are looked for.

    Attributes:
        place: The root of the hierarchy, and the name of the array in it; ``None`` if not known.

    Raises:
        OperatorError: If it is no matrix of numbers.
    """

    place: tuple[Any, str] | None = None

    def __init__(self, name: str, array: Any, wanted: Meant, beside: Any = None) -> None:
        self._array, self._beside = array, beside
        shape, dtype = tuple(array.shape), np.dtype(array.dtype).newbyteorder("=")
        if len(shape) < 2:
            self._describe(name, shape, dtype)
        self._grid = Grid.of(name, shape, dimensions_of(array), wanted.rows)
        decoding = None
        if dtype.kind in "biufc":
            decoding = Decoding.of(attributes_of(array), dtype, wanted.codes)
        self._describe(name, self._grid.shape, dtype, decoding)
        self._bands = Bands(name, self._grid, array.chunks, dtype, wanted)
        self.rows_together = self._bands.rows_together
        chunk = math.prod(array.chunks) * dtype.itemsize
        most = min(_FLIGHT, _chunks(array), max(1, PIECE // chunk))
        self._flying: int = 2 * chunk * most
        decode = decoder_of(array) if self._bands.fits and self._grid.is_plain else None
        if decode is not None:
            self._decoded = ZarrBands(array, decode, self._library_chunk, most)
        said = decoding.remark() if decoding else ""
        self.remarks = (f"entries are {said}",) if said else ()
        self.remarks += self._bands.remarks

    @property
    def held_bytes(self) -> int:  # type: ignore[override]
        """Memory that it comes to hold beside the rows that are asked for."""
        if self._decoded is not None:
            return self._bands.band_bytes + self._flying - self._decoded.kept_bytes
        return self._bands.held_bytes + self._flying

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`."""
        return self._bands.readings(slab_rows)

    _decoded: ZarrBands | None = None

    def _read_to(self, out: Array, rows: Range) -> None:
        if self._decoded is None:
            self._bands.read(lambda index: _get(self._array, index, self.name), rows, out)
            return
        try:
            self._decoded.read(out, rows)
        except (MemoryError, OperatorError):
            raise
        except Exception as error:
            # Whatever codecs raise of bytes that are not what they should be.
            raise unreadable(self.name, ValueError(first_line(error))) from error

    def _library_chunk(self, row: int, column: int) -> Array:
        height, width = self._array.chunks
        return _get(
            self._array, (slice(row, row + height), slice(column, column + width)), self.name
        )

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`; ``"latitude"`` also finds what is one by its attributes."""
        if self._beside is None:
            return None
        for key, node in walk(self._beside):
            fits = is_latitude(key, node.attrs) if name == "latitude" else key == name
            if fits and is_array(node) and np.dtype(node.dtype).kind in "iuf":
                one = _neighbour(key, node)
                values = latitudes_of(one) if name == "latitude" else decoded(one)
                assert values is not None
                return self._grid.spread(key, values.astype(np.float64), one.dims)
        return None

    def labels(self) -> Labels:
        """See :class:`Rows`."""
        if self.place is not None and self._grid.is_plain:
            found = annotated(*self.place, self.shape)
            if found is not None:
                return found
        beside = [] if self._beside is None else [
            _neighbour(key, node) for key, node in walk(self._beside) if is_array(node)
        ]  # fmt: skip
        listed = str(self._beside.attrs.get("coordinates", "")) if self._beside is not None else ""
        return of_grid(self._grid, beside, attributes_of(self._array), listed)


def _neighbour(name: str, node: Any) -> Neighbour:
    """An array beside another; its own name is that of its dimension where none is known."""
    dims = dimensions_of(node)
    dims = dims if any(dims) or len(dims) != 1 else (name,)

    def read() -> Array:
        return _get(node, (slice(None),) * node.ndim, name)

    return Neighbour(name, dims, attributes_of(node), np.dtype(node.dtype), read)


class ZarrSparseSource(SparseSource):
    """A group that holds a sparse matrix, by its rows or columns.

    Args:
        name: For messages.
        group: The group.
        wanted: What else is said of it.

    Attributes:
        place: The root of the hierarchy, and the name of the group in it.

    Raises:
        OperatorError: If it is none, or broken.
    """

    place: tuple[Any, str] | None = None

    def __init__(self, name: str, group: Any, wanted: Meant) -> None:
        values, columns, starts = (group[key] for key in _ENTRIES)
        flat = all(one.ndim == 1 for one in (values, columns, starts))
        if not flat or np.dtype(columns.dtype).kind not in "iu":
            raise OperatorError(
                f"{name} is broken: its indices are {columns.dtype} of shape {columns.shape}; "
                "write it again"
            )
        begins = np.dtype(starts.dtype).itemsize * starts.shape[0]
        wanted.require_room(3 * begins, f"where the rows of {name} begin")
        shape, by_columns = shape_and_order(name, group)
        told = shape[::-1] if by_columns else shape
        counts = (columns.shape[0], values.shape[0])
        found = _get(starts, (slice(None),), name)
        self._describe(name, told, found, counts, np.dtype(values.dtype), wanted.codes)
        self.is_transposed = by_columns
        self._values, self._columns = (_Entries(name, one, wanted) for one in (values, columns))
        self.held_bytes = self.starts.nbytes
        self.held_bytes += self._values.bands.held_bytes + self._columns.bands.held_bytes

    def _read_entries(self, first: int, last: int) -> tuple[Array, Array]:
        columns = self._columns.read(first, last)
        kept = np.int32 if columns.dtype.itemsize < 4 or columns.dtype == np.int32 else np.int64
        return columns.astype(kept, copy=False), self._values.read(first, last)

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`: numbers beside the group, or at this place in the hierarchy."""
        root, own = self.place or (None, "")
        for key in (name.strip("/"), f"{own.rpartition('/')[0]}/{name}".strip("/")):
            node = None if root is None else node_of(root, key)
            if node is not None and is_array(node) and np.dtype(node.dtype).kind in "iuf":
                values = decoded(_neighbour(key, node))
                return None if values is None else values.astype(np.float64)
        return None

    def labels(self) -> Labels:
        """See :class:`Rows`."""
        found = None if self.place is None else annotated(*self.place, self.meant_shape)
        return found or super().labels()


class _Entries:
    """An array of one dimension, of which each chunk is read once."""

    def __init__(self, name: str, array: Any, wanted: Meant) -> None:
        self._name, self._array = name, array
        self._dtype = np.dtype(array.dtype).newbyteorder("=")
        grid = Grid((array.shape[0],), ("",), (0,))
        self.bands = Bands(name, grid, array.chunks, self._dtype, wanted)

    def read(self, first: int, last: int) -> Array:
        """The entries ``first <= i < last``."""
        out = np.empty((last - first, 1), self._dtype)
        self.bands.read(lambda index: _get(self._array, index, self._name), Range(first, last), out)
        return out[:, 0]


def _get(array: Any, index: Slices, name: str) -> Array:
    try:
        return np.asarray(array[index])
    except MemoryError:
        raise
    except Exception as error:
        # Whatever stores and codecs raise of bytes that are not what they should be.
        raise unreadable(name, ValueError(first_line(error))) from error


def _chunks(array: Any) -> int:
    pairs = zip(array.shape, array.chunks, strict=True)
    return math.prod(-(-size // chunk) for size, chunk in pairs)


def open_zarr(path: Path | str, wanted: Meant) -> Rows:
    """Opens what is meant in Zarr: an array, or a group that is a sparse matrix.

    Args:
        path: A folder or a zip file; as text, a URL.
        wanted: What of it is meant.

    Raises:
        OperatorError: If it is not said, and there are several, or if there is none of that name.
    """
    root = open_node(path, wanted)
    if is_array(root):
        return _with_absent(ZarrSource(str(path), root, wanted), root, path)
    name = wanted.dataset or _the_matrix(root, path)
    node = node_of(root, name)
    title = f"{path}: {name}"
    if node is not None and _is_sparse(node):
        import_scipy()
        thin = ZarrSparseSource(title, node, wanted)
        thin.place = (root, name)
        return thin
    if node is None or not is_array(node):
        raise OperatorError(f"{path} has no array {name!r}; give one of: {_matrices(root)}")
    folder = name.rpartition("/")[0]
    beside = node_of(root, folder) if folder else root
    found = ZarrSource(title, node, wanted, beside)
    found.place = (root, name)
    return _with_absent(found, node, path)


def _with_absent(source: ZarrSource, array: Any, path: Path | str) -> ZarrSource:
    """Says how many chunks are not there, which is how chunks of fill values are stored."""
    chunks = _chunks(array)
    if isinstance(path, str) or chunks > _COUNTED:
        return source
    there = int(array.nchunks_initialized)
    if there < chunks:
        source.remarks += (
            f"{counted(chunks - there, 'chunk')} of {chunks} are not there, and are read as the "
            f"fill value {array.fill_value}",
        )
    return source


def _is_sparse(node: Any) -> bool:
    return not is_array(node) and all(key in node for key in _ENTRIES)


def _is_matrix(node: Any, least: int = 2, most: int = 2) -> bool:
    if not is_array(node) or not least <= node.ndim <= most:
        return False
    return np.dtype(node.dtype).kind in "biufc"


def _matrices(root: Any) -> str:
    """The names of all that can be meant, for people; of all arrays where nothing can be."""
    nodes = dict(walk(root))
    sparse = [name for name, node in nodes.items() if _is_sparse(node)]
    inside = tuple(f"{name}/" for name in sparse)
    dense = [
        name
        for name, node in nodes.items()
        if _is_matrix(node, 2, 32) and not name.startswith(inside or ("/",))
    ]
    return shown_list(sorted(sparse + dense)) if sparse or dense else names_of(root)


def _the_matrix(root: Any, path: Path | str) -> str:
    """The only matrix of a group.

    Raises:
        OperatorError: If there are several, with their names, or none.
    """
    nodes = dict(walk(root))
    annotated = root.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= nodes.keys()
    if annotated and "X" in nodes:
        return "X"
    sparse = [name for name, node in nodes.items() if _is_sparse(node)]
    inside = tuple(f"{name}/" for name in sparse)
    found = [name for name, node in nodes.items()
             if _is_matrix(node) and not name.startswith(inside or ("/",))]  # fmt: skip
    if not found and not sparse:
        found = [name for name, node in nodes.items() if _is_matrix(node, 3, 32)]
    found += sparse
    if len(found) != 1:
        raise OperatorError(
            f"{path} holds {len(found)} matrices ({shown_list(found)}); say which: "
            "give dataset = NAME in [operator.args]"
        )
    return found[0]
