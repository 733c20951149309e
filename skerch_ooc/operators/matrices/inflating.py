"""Compressed chunks of HDF5 datasets, decompressed in threads: HDF5 itself does it in one."""

from __future__ import annotations

import math
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut

try:
    # Several times as fast.
    from isal import isal_zlib as inflating
except ImportError:
    import zlib as inflating  # type: ignore[no-redef]

_FAULTS: tuple[type[Exception], ...] = (zlib.error, getattr(inflating, "error", zlib.error))
_KNOWN = (
    (h5py.h5z.FILTER_DEFLATE,),
    (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE),
)
"""Filters, in the order of writing."""

_LARGEST = 1 << 20
"""Bytes of a chunk: each thread holds it compressed, inflated, and in order."""


class InflatedBands:
    """Rows of a matrix of compressed chunks. A band is one row of chunks.

    The last band is kept, as the next rows begin on it.

    Args:
        dataset: The matrix; one that :func:`inflates` accepts.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._filters = dataset, _filters(dataset)
        self._chunks, self._dtype = dataset.chunks, dataset.dtype
        self._kept: tuple[Range, Array] | None = None

    def read(self, out: Array, rows: Range) -> None:
        """Fills an array with some rows.

        Raises:
            OSError: If they cannot be read.
        """
        height, unit = self._dataset.shape[0], self._chunks[0]
        first, last = rows.start // unit, -(-rows.stop // unit)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for band in cut(Range(first * unit, min(last * unit, height)), unit):
                inside = band.common(rows)
                place = out[inside.shifted(-rows.start).slice]
                if inside == band:
                    self._inflate(place, band, pool)
                else:
                    place[...] = self._band(band, pool)[inside.shifted(-band.start).slice]

    def _band(self, band: Range, pool: ThreadPoolExecutor) -> Array:
        if self._kept is None or self._kept[0] != band:
            found = np.empty((len(band), self._dataset.shape[1]), self._dtype)
            self._kept = None
            self._inflate(found, band, pool)
            self._kept = band, found
        return self._kept[1]

    def _inflate(self, out: Array, band: Range, pool: ThreadPoolExecutor) -> None:
        columns = cut(Range(0, out.shape[1]), self._chunks[1])

        def fill(inside: Range) -> None:
            chunk = self._chunk(band.start, inside.start)
            out[:, inside.slice] = chunk[: len(band), : len(inside)]

        for _ in pool.map(fill, columns):
            pass

    def _chunk(self, row: int, column: int) -> Array:
        """The chunk that begins at a place."""
        mask, found = self._dataset.id.read_direct_chunk((row, column))
        size = math.prod(self._chunks) * self._dtype.itemsize
        for number, one in reversed(list(enumerate(self._filters))):
            # A filter may have been left out for a chunk that it did not make smaller.
            if mask >> number & 1:
                continue
            if one == h5py.h5z.FILTER_DEFLATE:
                found = _inflated(found, size)
            else:
                planes = np.frombuffer(found, np.uint8).reshape(self._dtype.itemsize, -1)
                found = np.ascontiguousarray(planes.T)
        if memoryview(found).nbytes != size:
            raise OSError(f"the chunk at {row}, {column} does not have {size} bytes")
        return np.frombuffer(found, self._dtype).reshape(self._chunks)


def _inflated(found: bytes, size: int) -> bytes:
    """What was compressed; not more than it may be, whatever the file says."""
    try:
        made: bytes = inflating.decompressobj().decompress(found, size + 1)
    except _FAULTS as error:
        raise OSError(str(error)) from error
    return made


def inflates(dataset: h5py.Dataset) -> bool:
    """Whether a dataset is a matrix of numbers, all of whose chunks are there, compressed so."""
    if dataset.ndim != 2 or dataset.chunks is None or dataset.dtype.kind not in "iuf":
        return False
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST:
        return False
    (height, width), (rows, columns) = dataset.shape, dataset.chunks
    count = -(-height // rows) * -(-width // columns)
    plain = h5py.h5t.py_create(dataset.dtype) == dataset.id.get_type()
    return plain and _filters(dataset) in _KNOWN and dataset.id.get_num_chunks() == count


def _filters(dataset: h5py.Dataset) -> tuple[int, ...]:
    access = dataset.id.get_create_plist()
    return tuple(access.get_filter(number)[0] for number in range(access.get_nfilters()))
