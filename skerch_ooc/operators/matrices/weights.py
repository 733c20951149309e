"""Weights of rows and columns: where they are found, and what entries are multiplied by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.matrices.grids import is_latitude
from skerch_ooc.operators.matrices.options import COS_LATITUDE, Options
from skerch_ooc.operators.matrices.sources import Rows


def weights_of(options: Options, source: Rows, folder: Path) -> tuple[Array | None, Array | None]:
    """The square roots of the weights of the rows and columns that are meant.

    Args:
        options: The options.
        source: The matrix.
        folder: What files are relative to.

    Raises:
        OperatorError: If there are no such weights, or they are not those of the rows or columns.
    """
    turned = source.is_transposed != options.transpose
    height, width = source.shape[::-1] if turned else source.shape
    found = []
    for key, size in (("row_weights", height), ("column_weights", width)):
        name = getattr(options, key)
        found.append(None if name is None else _roots(key, name, size, source, folder))
    return found[0], found[1]


def _roots(key: str, name: str, size: int, source: Rows, folder: Path) -> Array:
    if name == COS_LATITUDE:
        latitudes = source.coordinates("latitude")
        if latitudes is None:
            raise OperatorError(
                f'{key} = "{name}": {source.name} has no latitudes beside it (a dataset lat or '
                "latitude, or one in degrees_north); give the name of a dataset, or a .npy file"
            )
        if latitudes.shape != (size,):
            where = "rows" if key == "column_weights" else "columns"
            raise OperatorError(
                f'{key} = "{name}": the latitudes of {source.name} lie along its {where}, '
                f"{len(latitudes)} of them; give rows = [...] such that latitude is a dimension of "
                f"the others, or the weights of all {size} as a .npy file"
            )
        # At the poles rounding may make them less than zero.
        cosines = np.cos(np.deg2rad(latitudes))
        weights = np.where(np.abs(cosines) < 1e-12, np.abs(cosines), cosines)
    elif name.endswith(".npy"):
        weights = _from_file(key, name, folder)
    else:
        beside = source.coordinates(name)
        if beside is None:
            raise OperatorError(
                f"{key} = {name!r}: {source.name} has no such dataset beside it; give the name of "
                f'one, a .npy file, or "{COS_LATITUDE}"'
            )
        if is_latitude(name, {}) and (beside < 0).any():
            raise OperatorError(
                f"{key} = {name!r}: latitudes are no weights, as some are negative; give "
                f'"{COS_LATITUDE}", which makes weights of them'
            )
        weights = beside
    return require_weights(f"{key} = {name!r}", weights, size)


def require_weights(said: str, weights: Array, size: int) -> Array:
    """The square roots of weights.

    Args:
        said: How they were given.
        weights: They themselves.
        size: How many there must be.

    Raises:
        OperatorError: If there are others, or they are no weights.
    """
    if weights.shape != (size,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise OperatorError(
            f"{said} has shape {weights.shape}{_range_of(weights)}; give {size} weights, finite "
            "and not negative"
        )
    return np.sqrt(weights)


def _range_of(weights: Array) -> str:
    return f", from {weights.min():g} to {weights.max():g}" if weights.size else ""


def _from_file(key: str, name: str, folder: Path) -> Array:
    try:
        found = np.load(folder / name, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = error if isinstance(error, OSError) else "it is no file of numbers"
        raise OperatorError(
            f"{key} = {name!r} cannot be read: {why}; write it with numpy.save"
        ) from error
    if found.dtype.kind not in "iuf":
        raise OperatorError(f"{key} = {name!r} holds {found.dtype}; give numbers")
    found = np.asarray(found, np.float64)
    return found.ravel() if max(found.shape, default=1) == found.size else found
