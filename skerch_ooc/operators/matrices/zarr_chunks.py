"""Chunks of Zarr arrays in local folders, decoded in threads: its library does it in one."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.operators.matrices.chunks import ChunkBands
from skerch_ooc.operators.matrices.inflating import inflated

Decode = Callable[[bytes, int], Any]
"""Makes of the bytes of a file those of a chunk, which are so many."""

GetChunk = Callable[[int, int], Array]
"""Gives the chunk that begins at a place, as far as the array goes."""

_GZIP = zlib.MAX_WBITS + 16


class ZarrBands(ChunkBands):
    """Rows of a matrix in Zarr.

    Args:
        array: The array; one for which :func:`decoder_of` has found how.
        decode: How its chunks are decoded.
        get: How the library reads a chunk that no file holds.
        most: How many chunks may be in memory at once.
    """

    def __init__(self, array: Any, decode: Decode, get: GetChunk, most: int) -> None:
        dtype = np.dtype(array.dtype)
        super().__init__(tuple(array.shape), tuple(array.chunks), dtype, most)
        self._folder = _folder_of(array)
        self._name_of, self._decode, self._get = array.metadata.encode_chunk_key, decode, get

    def _chunk(self, row: int, column: int) -> Array:
        place = (row // self._chunks[0], column // self._chunks[1])
        try:
            found = (self._folder / self._name_of(place)).read_bytes()
        except FileNotFoundError:
            return self._get(row, column)
        return self._as_chunk(self._decode(found, self.chunk_bytes), row, column)


def decoder_of(array: Any) -> Decode | None:
    """How chunks of an array are decoded, each from a file of its own; ``None`` if not so."""
    if array.ndim != 2 or _folder_of(array) is None or not np.dtype(array.dtype).isnative:
        return None
    told = array.metadata.to_dict()
    if array.metadata.zarr_format == 2:
        plain = told.get("order") == "C" and not told.get("filters")
        codec = told.get("compressor")
        return _decoder(codec["id"] if codec else "") if plain else None
    codecs = [one if isinstance(one, Mapping) else {"name": one} for one in told["codecs"]]
    names = [one["name"] for one in codecs]
    endian = (codecs[0].get("configuration") or {}).get("endian", "little")
    if names[0] != "bytes" or len(names) > 2 or endian != "little":
        return None
    return _decoder(names[1] if len(names) == 2 else "")


def _decoder(name: str) -> Decode | None:
    """How bytes are decoded that a codec has encoded."""
    if name == "":
        return lambda found, _: found
    if name in ("gzip", "zlib"):
        kind = _GZIP if name == "gzip" else zlib.MAX_WBITS
        return lambda found, size: inflated(found, size, kind)
    if name in ("zstd", "blosc"):
        codec: Any = importlib.import_module("numcodecs").get_codec({"id": name})
        return lambda found, _: codec.decode(found)
    return None


def _folder_of(array: Any) -> Path | None:
    """The folder of an array in a local one."""
    root = getattr(array.store_path.store, "root", None)
    return root / array.store_path.path if isinstance(root, Path) else None
