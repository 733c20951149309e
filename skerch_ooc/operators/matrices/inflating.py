"""Compressed chunks of HDF5 datasets, decompressed in threads: HDF5 itself does it in one."""

from __future__ import annotations

import math
import zlib

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.operators.matrices.chunks import ChunkBands

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

_AT_ONCE = 64
"""Chunks of at most that size that are in memory at once."""


class InflatedBands(ChunkBands):
    """Rows of a matrix of compressed chunks.

    Args:
        dataset: The matrix; one that :func:`inflates` accepts.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        super().__init__(dataset.shape, dataset.chunks, dataset.dtype, _AT_ONCE)
        self._dataset, self._filters = dataset, _filters(dataset)

    def _chunk(self, row: int, column: int) -> Array:
        mask, found = self._dataset.id.read_direct_chunk((row, column))
        for number, one in reversed(list(enumerate(self._filters))):
            # A filter may have been left out for a chunk that it did not make smaller.
            if mask >> number & 1:
                continue
            if one == h5py.h5z.FILTER_DEFLATE:
                found = inflated(found, self.chunk_bytes)
            else:
                planes = np.frombuffer(found, np.uint8).reshape(self._dtype.itemsize, -1)
                found = np.ascontiguousarray(planes.T)
        return self._as_chunk(found, row, column)


def inflated(found: bytes, size: int, kind: int = zlib.MAX_WBITS) -> bytes:
    """What was compressed; not more than it may be, whatever the file says.

    Args:
        found: The compressed bytes.
        size: How many bytes they stand for.
        kind: Of zlib's streams, as ``wbits`` says it.

    Raises:
        OSError: If they are broken.
    """
    try:
        made: bytes = inflating.decompressobj(kind).decompress(found, size + 1)
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
