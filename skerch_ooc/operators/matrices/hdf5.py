"""Datasets of HDF5 files, netCDF4 and MATLAB 7.3 among them, with the chunk cache they need."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, counted, shown_list
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import format_bytes
from skerch_ooc.operators.matrices.annotations import annotated
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.grids import Grid, Slices, is_latitude, text_of
from skerch_ooc.operators.matrices.inflating import InflatedBands, inflates
from skerch_ooc.operators.matrices.labels import (
    Labels,
    Neighbour,
    decoded,
    latitudes_of,
    of_grid,
)
from skerch_ooc.operators.matrices.sources import BROKEN, Meant, Source, unreadable

_SHARE = 3
"""Chunks are kept in at most this share of the memory: a third."""
_COUNTED = 100_000
"""Chunks of more are not counted."""
_SLOTS = 100
_MATLAB_COMPLEX = ("real", "imag")


def open_file(path: Path, **cache: Any) -> h5py.File:
    """Opens an HDF5 file for reading.

    Raises:
        OperatorError: If it is none.
    """
    try:
        return h5py.File(path, "r", locking=False, **cache)
    except OSError as error:
        raise OperatorError(
            f"cannot open {path} as an HDF5 file: {error}; give HDF5 or .npy files, or a "
            "folder of them"
        ) from error


class Hdf5Source(Source):
    """A dataset of an HDF5 file.

    Args:
        path: The file.
        dataset: Name of the dataset; may be left out if the file holds just one matrix.
        wanted: What else is said of it; in place of ``dataset``.

    Raises:
        OperatorError: If there is no such file, or the dataset is no matrix of numbers, or its
            data lie in other files, which HDF5 reads as zeros if they are gone.
    """

    def __init__(
        self, path: Path, dataset: str | None = None, wanted: Meant = Meant()  # noqa: B008
    ) -> None:  # fmt: skip
        with open_file(path) as file:
            name = dataset or wanted.dataset or the_matrix(file, path)
            found = file.get(name)
            assert isinstance(found, h5py.Dataset)
            require_own_data(path, found)
            require_filters(path, found)
            self._note(f"{path}: {name}", found, wanted)
            cache = self._cache(found, wanted)
        # Only now, as HDF5 keeps the cache of a dataset that is open already.
        self._file = open_file(path, **cache)
        self._dataset = self._file[name]
        if self._fits and self._grid.is_plain and inflates(self._dataset):
            self._inflated = InflatedBands(self._dataset)

    def _note(self, name: str, found: h5py.Dataset, wanted: Meant) -> None:
        """Notes what the dataset is."""
        if found.shape is None or len(found.shape) < 2:
            self._describe(name, found.shape, found.dtype)
        attributes = dict(found.attrs)
        matlab = "MATLAB_class" in attributes
        rows: tuple[str | int, ...] = wanted.rows
        self._grid = Grid.of(name, found.shape, _dimensions(found), rows)
        # Compounds of this kind are MATLAB's complex numbers.
        self._parts = found.dtype.names == _MATLAB_COMPLEX
        dtype = np.result_type(found.dtype["real"], np.complex64) if self._parts else found.dtype
        decoding = Decoding.of(attributes, dtype, wanted.codes, fills=_is_netcdf(found.file))
        self._describe(name, self._grid.shape, dtype, decoding)
        said = decoding.remark() if decoding else ""
        self.remarks = (f"entries are {said}",) if said else ()
        if matlab and not wanted.rows and len(found.shape) == 2:
            self.is_transposed = True
            size = f"{self.shape[1]} x {self.shape[0]}"
            self.remarks += (f"MATLAB's {size}, whose dimensions the file holds in reverse",)

    def _cache(self, found: h5py.Dataset, wanted: Meant) -> dict[str, Any]:
        """The cache that holds the chunks on which a slab of rows ends.

        Else the next slab, which begins on them, would read and decompress them once more.
        """
        if not found.chunks:
            return {}
        size = found.dtype.itemsize
        chunk = int(np.prod(found.chunks)) * size
        wanted.require_room(2 * chunk, f"a chunk of {self.name} of {found.chunks} entries")
        self._note_absent(found)
        self.rows_together, entries = self._grid.chunks_across(found.chunks)
        needed = entries * size
        self._fits = needed <= wanted.memory // _SHARE
        self.held_bytes = needed if self._fits else chunk
        if not self._fits:
            self.remarks += (
                f"chunks of {found.chunks} are read several times: one row of them takes "
                f"{format_bytes(needed)}, more than a third of the memory; with --memory "
                f"{format_bytes(_SHARE * needed)} each is read once",
            )
        # Its hash table has an odd number of slots, well above that of the chunks.
        slots = _SLOTS * max(1, needed // chunk) + 1
        return {"rdcc_nbytes": self.held_bytes, "rdcc_nslots": slots, "rdcc_w0": 1.0}

    def _note_absent(self, found: h5py.Dataset) -> None:
        """Says how many chunks were never written, as of a file that was left half-way."""
        sizes = zip(found.shape, found.chunks, strict=True)
        chunks = math.prod(-(-size // chunk) for size, chunk in sizes)
        if chunks > _COUNTED or _is_netcdf(found.file):
            return
        absent = chunks - found.id.get_num_chunks()
        if absent > 0:
            self.remarks += (
                f"{counted(absent, 'chunk')} of {chunks} were never written, and are read as the "
                f"fill value {found.fillvalue}",
            )

    _fits = True
    _inflated: InflatedBands | None = None

    def readings(self, slab_rows: int) -> float:
        """See :class:`Rows`."""
        if self._fits:
            return 1.0
        return max(1.0, self.rows_together / slab_rows)

    def _read_to(self, out: Array, rows: Range) -> None:
        try:
            if self._inflated is not None:
                self._inflated.read(out, rows)
            elif self._grid.is_plain and not self._parts:
                self._dataset.read_direct(out, rows.slice)
            else:
                self._grid.read(self._get, rows, out)
        except BROKEN as error:
            raise unreadable(self.name, error) from error

    def _get(self, index: Slices) -> Array:
        found: Array = self._dataset[index]
        return found["real"] + 1j * found["imag"] if self._parts else found

    def coordinates(self, name: str) -> Array | None:
        """See :class:`Rows`; ``"latitude"`` also finds what is one by its attributes."""
        if name == "latitude":
            return self._latitudes()
        found = self._file.get(name) or self._dataset.parent.get(name)
        if not isinstance(found, h5py.Dataset):
            return None
        values = numbers_of(found)
        return None if values is None else self._grid.spread(name, values, _dimensions(found))

    def _latitudes(self) -> Array | None:
        for one in self._beside():
            if is_latitude(one.name, one.attributes) and one.dtype.kind in "iuf":
                return self._grid.spread(one.name, latitudes_of(one), one.dims)
        return None

    def _beside(self) -> Iterator[Neighbour]:
        """The datasets beside this one, and at the root of the file."""
        own = self._dataset.parent
        for group in (own,) if own == self._file["/"] else (own, self._file):
            for name, found in group.items():
                if not isinstance(found, h5py.Dataset) or found.shape is None:
                    continue
                attributes = dict(found.attrs)
                if not text_of(attributes.get("NAME", "")).startswith(_NO_VARIABLE):
                    dims = _dimensions(found)
                    dims = (name,) if found.ndim == 1 and not dims[0] else dims
                    yield Neighbour(name, dims, attributes, found.dtype, partial(_whole, found))

    def labels(self) -> Labels:
        """See :class:`Rows`."""
        name = self._dataset.name.lstrip("/")
        found = annotated(self._file, name, self.meant_shape) if self._grid.is_plain else None
        if found is not None:
            return found
        listed = text_of(self._file.attrs.get("coordinates", ""))
        made = of_grid(self._grid, self._beside(), dict(self._dataset.attrs), listed)
        return made.turned if self.is_transposed else made


_NETCDF = {".nc", ".nc4", ".cdf"}
_BESIDE = ("bounds", "climatology", "coordinates", "cell_measures", "grid_mapping")
"""Attributes that name what belongs to the axes of a dataset."""
MOST_DIMENSIONS = 32


def _dimensions(found: h5py.Dataset) -> tuple[str, ...]:
    """Names of the dimensions, by the scales that are attached; empty where there are none."""
    names = [""] * found.ndim
    with contextlib.suppress(RuntimeError, KeyError, OSError, ValueError):
        for i, one in enumerate(found.dims):
            names[i] = one.label or (str(one[0].name).rpartition("/")[2] if len(one) else "")
    return tuple(names)


_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"


def numbers_of(dataset: h5py.Dataset) -> Array | None:
    """What a dataset means, in double precision; ``None`` if it holds no numbers."""
    one = Neighbour("", (), dict(dataset.attrs), dataset.dtype, partial(_whole, dataset))
    values = decoded(one)
    return None if values is None or values.dtype.kind == "S" else values.astype(np.float64)


def _whole(dataset: h5py.Dataset) -> Array:
    return np.asarray(dataset[()])


def require_own_data(path: Path, found: h5py.Dataset) -> None:
    """Refuses a dataset whose data lie elsewhere.

    Raises:
        OperatorError: If they do.
    """
    if found.is_virtual or found.external:
        raise OperatorError(
            f"{path}: the data of {found.name.lstrip('/')!r} lie in other files, and HDF5 reads "
            "zeros for what it cannot open; give those files themselves, as a folder or a list of "
            "paths"
        )


def require_filters(path: Path, found: h5py.Dataset) -> None:
    """Refuses a dataset that was compressed by what is not installed here.

    Raises:
        OperatorError: Naming the filter.
    """
    access = found.id.get_create_plist()
    for number in range(access.get_nfilters()):
        code, _, _, name = access.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            with contextlib.suppress(ImportError):
                # Registers the filters that it brings.
                import hdf5plugin  # noqa: F401
        if not h5py.h5z.filter_avail(code):
            raise OperatorError(
                f"{path}: {found.name.lstrip('/')} is compressed by filter {code} "
                f"({text_of(name) or 'without a name'}), which is not installed; pip install "
                "'skerch_ooc[matrices]', which brings hdf5plugin"
            )


def walk(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """All groups and datasets of a file, by name."""
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    return iter(found)


def is_matrix(item: Any, least: int = 2, most: int = 2) -> bool:
    """Whether a dataset can be meant: numbers in two dimensions, and no axis of something else."""
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return False
    kinds = item.dtype.kind in "biufc" or item.dtype.names == _MATLAB_COMPLEX
    other = {text_of(item.attrs.get(key)) for key in ("CLASS", "MATLAB_class")} & _NO_MATRICES
    return kinds and least <= item.ndim <= most and not other


_NO_MATRICES = {"DIMENSION_SCALE", "char", "cell", "struct", "string", "function_handle"}
"""What datasets of numbers say that they are."""


def _is_netcdf(file: h5py.File) -> bool:
    suffix = Path(str(file.filename)).suffix.lower()
    return "_NCProperties" in file.attrs or suffix in _NETCDF


def _of_axes(items: Sequence[tuple[str, Any]]) -> set[str]:
    """Names of the datasets that say where others lie: bounds of cells, coordinates, areas."""
    words: set[str] = set()
    for _, item in items:
        for key in _BESIDE:
            words |= set(text_of(item.attrs.get(key, "")).split())
    return {name for name, _ in items if name.rpartition("/")[2] in words}


def the_matrix(file: h5py.File, path: Path, others: tuple[str, ...] = ()) -> str:
    """The only matrix of a file.

    Args:
        file: The file.
        path: Of it.
        others: Names of sparse matrices in it.

    Raises:
        OperatorError: If there are several, with their names, or none.
    """
    inside = tuple(f"{name}/" for name in others)
    items = [(name, item) for name, item in walk(file) if not name.startswith(("#", *inside))]
    # Of netCDF cubes are meant as well as matrices, and not what belongs to their axes.
    netcdf = _is_netcdf(file)
    beside = _of_axes(items) if netcdf else set()
    most = MOST_DIMENSIONS if netcdf else 2
    found = [name for name, item in items if is_matrix(item, 2, most) and name not in beside]
    if not found and not others:
        # A cube, or else what comes nearest, so that it is said what is wrong with it.
        found = [name for name, item in items if is_matrix(item, 3, MOST_DIMENSIONS)] or [
            name for name, item in items if isinstance(item, h5py.Dataset) and item.ndim == 2
        ]
    found += others
    if len(found) != 1:
        raise OperatorError(
            f"{path} holds {len(found)} matrices ({shown_list(found)}); say which: "
            "give dataset = NAME in [operator.args]"
        )
    return found[0]
