"""Zarr of versions 2 and 3: hierarchies in folders, in zip files and by URL."""

from __future__ import annotations

import base64
import binascii
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.operators.matrices.sources import Meant

_MARKS = ("zarr.json", ".zarray", ".zgroup", ".zmetadata")
"""Files that say of a folder that it is Zarr."""


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr hierarchy, whatever its name."""
    return any((path / mark).is_file() for mark in _MARKS)


def open_node(path: Path | str, wanted: Meant) -> Any:
    """Opens the group or array at the root.

    Args:
        path: A folder or a zip file; as text, a URL.
        wanted: How much memory there is.

    Raises:
        OperatorError: If the library is missing, or there is no Zarr.
    """
    zarr = _imported("zarr", "Zarr")
    try:
        with warnings.catch_warnings():
            # Of files that lie beside, of consolidated metadata: nothing that changes numbers.
            warnings.simplefilter("ignore")
            if isinstance(path, str):
                return zarr.open(store=_by_url(path), mode="r")
            if path.is_dir():
                return zarr.open(store=str(path), mode="r")
            prefix = _inside_zip(path, wanted)
            return zarr.open(store=zarr.storage.ZipStore(path, mode="r"), path=prefix, mode="r")
    except (OperatorError, MemoryError):
        raise
    except Exception as error:
        # The library, its stores and its codecs raise whatever they like.
        raise OperatorError(
            f"cannot open {path} as Zarr: {first_line(error)}; give the folder, zip file or URL "
            "of an array or a group"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _imported(name: str, what: str) -> Any:
    import importlib

    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise OperatorError(
            f"{what} needs the library {name}; pip install 'skerch_ooc[matrices]'"
        ) from error
    if name == "zarr":
        importlib.import_module("zarr.storage")
    return module


def _by_url(url: str) -> Any:
    """A store that reads by URL."""
    if url.startswith(("file://", "memory://")):
        return url
    store = _imported("obstore.store", f"reading {url.partition(':')[0]}:// ")
    import zarr.storage

    plain = {"allow_http": True} if url.startswith("http://") else None
    return zarr.storage.ObjectStore(store.from_url(url, client_options=plain), read_only=True)


def _inside_zip(path: Path, wanted: Meant) -> str:
    """Where in a zip file the hierarchy begins.

    Raises:
        OperatorError: If there is none, or what it holds is larger than the memory.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    largest = max((one.file_size for one in members), default=0)
    wanted.require_room(2 * largest, f"the largest member of {path}")
    found = {str(PurePosixPath(one.filename).parent) for one in members
             if PurePosixPath(one.filename).name in _MARKS}  # fmt: skip
    if not found:
        raise OperatorError(
            f"{path} is a zip file without Zarr in it ({', '.join(_MARKS[:3])}); give .npz for "
            "SciPy's matrices, and unpack other files first"
        )
    shortest = min(found, key=lambda name: (len(PurePosixPath(name).parts), name))
    return "" if shortest == "." else shortest


def walk(group: Any) -> Iterator[tuple[str, Any]]:
    """All groups and arrays in a group, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = list(group.members(max_depth=None))
    return iter(sorted(members))


def node_of(group: Any, name: str) -> Any:
    """A group or array in a group; ``None`` if there is none of that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return group.get(name)


def is_array(node: Any) -> bool:
    """Whether a node is an array, and no group."""
    return hasattr(node, "shape")


def dimensions_of(array: Any) -> tuple[str, ...]:
    """Names of the dimensions; empty where they have none."""
    told = getattr(array.metadata, "dimension_names", None)
    told = told or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    names = tuple("" if one is None else str(one) for one in told)
    return names if len(names) == len(array.shape) else ("",) * len(array.shape)


def attributes_of(array: Any) -> Mapping[str, Any]:
    """The attributes of an array as netCDF would have them.

    xarray keeps ``_FillValue`` as the fill value of the array in version 2, and in version 3 as an
    attribute, which of floating-point numbers is their bytes in base 64.
    """
    found = dict(array.attrs)
    if array.metadata.zarr_format == 2:
        if "_ARRAY_DIMENSIONS" in found and array.fill_value is not None:
            found.setdefault("_FillValue", array.fill_value)
        return found
    fill = found.get("_FillValue")
    if isinstance(fill, str) and np.dtype(array.dtype).kind in "fc":
        try:
            (found["_FillValue"],) = struct.unpack("<d", base64.standard_b64decode(fill))
        except (binascii.Error, struct.error):
            # A number as text, or nothing, which is then refused by name.
            return found
    return found


def names_of(group: Any) -> str:
    """The names of all arrays of a group, for people."""
    return shown_list([name for name, node in walk(group) if is_array(node)])
