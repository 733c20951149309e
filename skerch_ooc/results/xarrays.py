"""xarray: modes as a dataset, with the names and coordinates of rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.labels import Coordinate
from skerch_ooc.results.modes import Blocks, Modes
from skerch_ooc.results.netcdf import MODE, texts_of


def dataset_of(modes: Modes, like: Any = None) -> Any:
    """Makes an ``xarray.Dataset`` of modes, in memory.

    Args:
        modes: The modes.
        like: The ``xarray.DataArray`` of two dimensions that was decomposed, if it was no file.

    Raises:
        UsageError: If xarray is not installed, or ``like`` is of another shape.
    """
    try:
        import xarray
    except ImportError as error:
        raise UsageError("to_xarray() needs xarray, which is no part of this package: pip "
                         "install xarray") from error  # fmt: skip
    rows, columns = modes.labels.rows, modes.labels.columns
    dims = (rows.names, columns.names)
    if like is not None:
        dims = _dims_of(like, modes)
    left, right = _whole(modes.left(), modes), _whole(modes.right(), modes)
    everything = Range(0, modes.shape[1])
    gone, pattern = modes.is_left_out(everything, right), modes.patterns(everything, right)
    right[gone], pattern[gone] = np.nan, np.nan
    said = texts_of(modes)
    sizes = [list(one.sizes) if like is None else [-1] for one in (rows, columns)]
    found = {
        "U": ((*dims[0], MODE), left.reshape(*sizes[0], modes.rank)),
        "S": ((MODE,), modes.values),
        "V": ((MODE, *dims[1]), right.T.reshape(modes.rank, *sizes[1])),
        "pattern": ((MODE, *dims[1]), pattern.T.reshape(modes.rank, *sizes[1])),
    }
    if modes.shares is not None:
        found["variance_share"] = ((MODE,), modes.shares)
    numbers = np.arange(1, modes.rank + 1)
    made = xarray.Dataset(
        {name: (*one, said[name]) for name, one in found.items()},
        coords=like.coords if like is not None else {
            one.name: (one.dims, _values(one), dict(one.attributes))
            for one in modes.labels.coordinates
        },
        attrs={"run": modes.run},
    )  # fmt: skip
    made = made.assign_coords({MODE: numbers})
    try:
        return xarray.decode_cf(made)
    except (ValueError, ImportError):
        # Calendars that take cftime, and units that are none: numbers stay what they are.
        return made


def _dims_of(like: Any, modes: Modes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    shape = getattr(like, "shape", None)
    if not hasattr(like, "dims") or shape != modes.shape:
        raise UsageError(
            f"like has shape {shape}, the decomposition has {modes.shape}; give the DataArray that "
            "was decomposed"
        )
    return (like.dims[0],), (like.dims[1],)


def _whole(blocks: Blocks, modes: Modes) -> Array:
    return np.concatenate([block for _, block in blocks]).astype(modes.dtype, copy=False)


def _values(one: Coordinate) -> Array:
    if not one.is_text:
        return one.values
    return np.array([text.decode(errors="replace") for text in one.values.ravel()],
                    object).reshape(one.values.shape)  # fmt: skip
