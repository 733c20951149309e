"""netCDF: writes modes as HDF5 that netCDF libraries read: dimensions, coordinates, fill values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.version import __version__
from skerch_ooc.operators.matrices.labels import Axes, Coordinate
from skerch_ooc.results.modes import Modes, rectangles

MODE = "mode"
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. %9d"
_TEXTS = 1 << 18
"""Texts that are written together."""


def write_netcdf(path: Path, modes: Modes) -> None:
    """Writes modes to a new file.

    Args:
        path: The file.
        modes: What is written.
    """
    with h5py.File(path, "x", track_order=True) as file:
        file.attrs.update(_about(modes))
        labels = modes.labels
        numbers = np.arange(1, modes.rank + 1, dtype=np.int32)
        known = [Coordinate(MODE, (MODE,), numbers, {"long_name": "number of the mode"})]
        known += labels.coordinates
        sizes = {MODE: modes.rank}
        for axes in (labels.rows, labels.columns):
            sizes |= dict(zip(axes.names, axes.sizes, strict=True))
        _write_dimensions(file, sizes, known)
        for one in known:
            if one.name not in sizes:
                _attach(file, _write_coordinate(file, one), one.dims)
        for name, (values, said) in _numbers(modes).items():
            found = file.create_dataset(name, data=values)
            found.attrs.update(said)
            _attach(file, found, (MODE,))
        _write_vectors(file, modes)


def _about(modes: Modes) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.8",
        "title": "Singular values and vectors: the matrix, as it was prepared, is about U S V^T",
        "source": f"skerch_ooc {__version__}",
        "run": modes.run,
    }


def texts_of(modes: Modes) -> dict[str, dict[str, str]]:
    """What is said of each variable, as attributes."""
    row, column = modes.roots
    v = "right singular vectors, of unit length"
    if column is not None or modes.has_weights:
        v += "; columns were multiplied by the roots of their weights, which are in them"
    u = "left singular vectors, of unit length; times S they are scores (principal components)"
    if row is not None:
        u += "; rows were multiplied by the roots of their weights, which are in them"
    pattern = "patterns: V times S"
    if column is not None:
        pattern += ", weights divided out"
    elif modes.has_weights:
        pattern += ", with the roots of weights in them"
    if modes.is_scaled:
        pattern += ", in standard deviations of each column"
    prepared = "the weighted matrix" if modes.has_weights or row is not None else "the matrix"
    pattern += f"; the sum of U times pattern over modes is {prepared}"
    if modes.is_centred:
        pattern += " less the means of its columns"
    unit = modes.labels.attributes.get("units")
    own = {"units": unit} if unit and not (modes.is_scaled or modes.has_weights) else {}
    return {
        "U": {"long_name": u},
        "S": {"long_name": "singular values"},
        "V": {"long_name": v},
        "pattern": {"long_name": pattern, **own},
        "variance_share": {"long_name": f"share of the {modes.whole}", "units": "1"},
    }


def _numbers(modes: Modes) -> dict[str, tuple[Array, Mapping[str, str]]]:
    """What there is one of for each mode."""
    said = texts_of(modes)
    found: dict[str, tuple[Array, Mapping[str, str]]] = {"S": (modes.values, said["S"])}
    if modes.shares is not None:
        found["variance_share"] = modes.shares, said["variance_share"]
    return found


def _write_dimensions(
    file: h5py.File, sizes: Mapping[str, int], known: Sequence[Coordinate]
) -> None:
    own = {one.name: one for one in known}
    for number, (name, size) in enumerate(sizes.items()):
        if name in own:
            found, said = _write_coordinate(file, own[name]), name
        else:
            found, said = file.create_dataset(name, (size,), "f4"), _NO_VARIABLE % size
        found.make_scale(said)
        found.attrs["_Netcdf4Dimid"] = np.int32(number)


def _write_coordinate(file: h5py.File, one: Coordinate) -> h5py.Dataset:
    if not one.is_text:
        found = file.create_dataset(one.name, data=one.values)
    else:
        found = file.create_dataset(one.name, one.values.shape, h5py.string_dtype())
        if one.values.ndim == 1:
            for rows in cut(Range(0, len(one.values)), _TEXTS):
                found[rows.slice] = one.values[rows.slice].astype(object)
        else:
            found[...] = one.values.astype(object)
    found.attrs.update(one.attributes)
    return found


def _attach(file: h5py.File, dataset: h5py.Dataset, dims: Sequence[str]) -> None:
    for axis, name in enumerate(dims):
        dataset.dims[axis].attach_scale(file[name])


def _write_vectors(file: h5py.File, modes: Modes) -> None:
    said, labels = texts_of(modes), modes.labels
    u = _create(file, modes, "U", labels.rows, last=True)
    for rows, block in modes.left():
        _put(u, labels.rows, rows, block, last=True)
    v, pattern = (_create(file, modes, name, labels.columns, last=False)
                  for name in ("V", "pattern"))  # fmt: skip
    for rows, block in modes.right():
        gone = modes.is_left_out(rows, block)
        for dataset, made in ((v, block), (pattern, modes.patterns(rows, block))):
            _put(dataset, labels.columns, rows, np.where(gone[:, None], np.nan, made), last=False)
    for dataset in (u, v, pattern):
        dataset.attrs.update(said[dataset.name.lstrip("/")])


def _create(file: h5py.File, modes: Modes, name: str, axes: Axes, *, last: bool) -> h5py.Dataset:
    """An empty variable over modes and some axes, the modes being the first or the last."""
    dims, sizes = axes.names, axes.sizes
    dims = (*dims, MODE) if last else (MODE, *dims)
    shape = (*sizes, modes.rank) if last else (modes.rank, *sizes)
    found = file.create_dataset(name, shape, modes.dtype, fillvalue=np.nan)
    found.attrs["_FillValue"] = np.array([np.nan], modes.dtype)
    _attach(file, found, dims)
    others = [one.name for one in modes.labels.along(axes) if one.name not in axes.names]
    if others:
        found.attrs["coordinates"] = " ".join(others)
    return found


def _put(dataset: h5py.Dataset, axes: Axes, rows: Range, block: Array, *, last: bool) -> None:
    for index, places in rectangles(axes.sizes, rows):
        part = block[places.shifted(-rows.start).slice]
        pairs = zip(index, axes.sizes, strict=True)
        sizes = [len(range(*one.indices(size))) for one, size in pairs]
        if last:
            dataset[(*index, slice(None))] = part.reshape(*sizes, -1)
        else:
            dataset[(slice(None), *index)] = part.T.reshape(-1, *sizes)
