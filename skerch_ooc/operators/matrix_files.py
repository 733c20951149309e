"""Matrices in files: opens HDF5 datasets, .npy files and stacks of either, and reads their rows."""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.partition import Range

_SUFFIXES = {".h5", ".hdf5", ".hdf", ".npy"}


class Source(ABC):
    """Rows of a matrix, read when they are asked for.

    Attributes:
        shape: ``(height, width)``.
        dtype: Of the entries as they are stored.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def read(self, rows: Range, out: Array | None = None) -> Array:
        """The rows, ``(len(rows), width)``.

        Args:
            rows: Which.
            out: Where to, of this shape and of the stored dtype; a new array by default.
        """
        out = np.empty((len(rows), self.shape[1]), self.dtype) if out is None else out
        self._read_to(out, rows)
        return out

    @abstractmethod
    def _read_to(self, out: Array, rows: Range) -> None:
        """Fills an array with the rows."""


class Hdf5Source(Source):
    """A dataset of an HDF5 file.

    Args:
        path: The file.
        dataset: Name of the dataset; may be left out if the file holds just one matrix.

    Raises:
        OperatorError: If there is no such file or dataset, or it is no matrix of numbers, or its
            data lie in other files, which HDF5 reads as zeros if they are gone.
    """

    def __init__(self, path: Path, dataset: str | None = None) -> None:
        try:
            self._file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise OperatorError(
                f"cannot open {path} as an HDF5 file: {error}; give HDF5 or .npy files, or a "
                "folder of them"
            ) from error
        name = _only_matrix(self._file, path) if dataset is None else dataset
        found = self._file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise OperatorError(
                f"{path} has no dataset {name!r}; give one of: {shown_list(_names(self._file))}"
            )
        if found.is_virtual or found.external:
            raise OperatorError(
                f"{path}: the data of {name!r} lie in other files, and HDF5 reads zeros for what "
                "it cannot open; give those files themselves, as a folder or a list of paths"
            )
        self._dataset = found
        self.shape, self.dtype = _checked(f"{path}: {name}", found.shape, found.dtype)
        if found.chunks:
            self._dataset = self._with_cache(found)

    def _with_cache(self, dataset: h5py.Dataset) -> h5py.Dataset:
        """The dataset, with a cache that holds the chunks on which a slab of rows ends.

        Else the next slab, which begins on them, would read and decompress them once more.
        """
        bytes_of_chunk = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
        across = -(-dataset.shape[1] // dataset.chunks[1])
        access = dataset.id.get_access_plist()
        # Its hash table has an odd number of slots, well above that of the chunks.
        access.set_chunk_cache(100 * across + 1, across * bytes_of_chunk, 1.0)
        return h5py.Dataset(h5py.h5d.open(self._file.id, dataset.name.encode(), access))

    def _read_to(self, out: Array, rows: Range) -> None:
        self._dataset.read_direct(out, rows.slice)


class NpySource(Source):
    """A matrix in a ``.npy`` file.

    Raises:
        OperatorError: If the file is not there, or holds no matrix of numbers.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise OperatorError(
                f"cannot open {path} as a .npy file: {error}; write it with numpy.save"
            ) from error
        self.shape, self.dtype = _checked(str(path), self._array.shape, self._array.dtype)

    def _read_to(self, out: Array, rows: Range) -> None:
        out[:] = self._array[rows.slice]


class StackedRows(Source):
    """Several sources on top of each other.

    Args:
        sources: From top to bottom.
        names: What each is called.

    Raises:
        OperatorError: If they are not equally wide.
    """

    def __init__(self, sources: Sequence[Source], names: Sequence[str]) -> None:
        self._sources = sources
        widths = [source.shape[1] for source in sources]
        for name, width in zip(names, widths, strict=True):
            if width != widths[0]:
                raise OperatorError(
                    f"{names[0]} has {widths[0]} columns, {name} has {width}; files that are "
                    "stacked must be equally wide"
                )
        self._starts = [0, *itertools.accumulate(source.shape[0] for source in sources)]
        self.shape = (self._starts[-1], widths[0])
        self.dtype = np.result_type(*(source.dtype for source in sources))

    def _read_to(self, out: Array, rows: Range) -> None:
        first = bisect.bisect_right(self._starts, rows.start) - 1
        for number in range(first, len(self._sources)):
            start = self._starts[number]
            inside = Range(start, self._starts[number + 1]).common(rows)
            if not len(inside):
                break
            part = self._sources[number].read(inside.shifted(-start))
            out[inside.shifted(-rows.start).slice] = part


def open_source(paths: Sequence[Path], dataset: str | None = None) -> Source:
    """Opens what holds the rows of a matrix.

    Args:
        paths: Files, from top to bottom; a folder stands for its files in the order of their names.
        dataset: Name of the dataset in HDF5 files.

    Raises:
        OperatorError: If a file is missing, of another kind, or holds no matrix.
    """
    files = [file for path in paths for file in _files(path)]
    sources = [_open(file, dataset) for file in files]
    return sources[0] if len(sources) == 1 else StackedRows(sources, [str(file) for file in files])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise OperatorError(
            f"{path} is a folder without matrices: give one with files that end in "
            f"{', '.join(sorted(_SUFFIXES))}"
        )
    return files


def _open(path: Path, dataset: str | None) -> Source:
    if not path.exists():
        raise OperatorError(
            f"{path} is not there; give a path that is absolute, or relative to the spec"
        )
    return NpySource(path) if path.suffix.lower() == ".npy" else Hdf5Source(path, dataset)


def _checked(
    name: str, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[tuple[int, int], np.dtype[Any]]:
    if shape is None or len(shape) != 2 or min(shape) < 1:
        raise OperatorError(f"{name} has shape {shape}; give a matrix: two sizes, both at least 1")
    if dtype.kind not in "biufc":
        raise OperatorError(f"{name} holds {dtype}; give a matrix of numbers, real or complex")
    return (int(shape[0]), int(shape[1])), dtype


def _names(file: h5py.File) -> list[str]:
    found: list[str] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(name)

    file.visititems(visit)
    return found


def _only_matrix(file: h5py.File, path: Path) -> str:
    matrices = [name for name in _names(file) if file[name].ndim == 2]
    if len(matrices) != 1:
        raise OperatorError(
            f"{path} holds {len(matrices)} matrices ({shown_list(matrices)}); say which: "
            "give dataset = NAME in [operator.args]"
        )
    return matrices[0]
