"""Alike: whether files whose rows are put together mean the same columns, and the same units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.matrices.grids import is_latitude, is_longitude
from skerch_ooc.operators.matrices.labels import Coordinate, Labels

_SHARE = 0.01
"""Coordinates that differ by less than this share of the distance to the next are the same."""


def require_same_columns(labels: Sequence[Labels], names: Sequence[str]) -> None:
    """Refuses files of equal width whose columns are in another order, or others.

    Dates are not compared, as forecasts that begin on other days are put together, too.

    Args:
        labels: Of each file.
        names: What each is called.

    Raises:
        OperatorError: If a coordinate of the columns, such as latitudes, or the names of genes,
            differs, or dimensions are in another order.
    """
    first = labels[0]
    own = _along_columns(first)
    for name, other in zip(names[1:], labels[1:], strict=True):
        if other.columns.names != first.columns.names and _are_turned(first, other):
            wrong = f"has columns of {_sizes(other)}, {names[0]} of {_sizes(first)}"
            raise _refusal(name, wrong)
        for mine, theirs in _pairs(own, _along_columns(other)):
            place = _difference(mine, theirs)
            if place is not None:
                one, its = (_shown(each.values.flat[place]) for each in (theirs, mine))
                wrong = f"has {theirs.name} = {one} at {place}, where {names[0]} has {its}"
                raise _refusal(name, wrong)


def remarks_on_units(attributes: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Says that entries of files are not in the same units; nothing where they are, or say none."""
    found: dict[str, str] = {}
    for name, one in zip(names, attributes, strict=True):
        if one.get("units"):
            found.setdefault(str(one["units"]), name)
    if len(found) < 2:
        return []
    told = ", ".join(f"{unit} in {name}" for unit, name in list(found.items())[:3])
    return [f"units differ ({told}): entries are put together as they are"]


def remarks_on_rows(labels: Sequence[Labels]) -> list[str]:
    """Says that rows of several files have the same number, such as a date; else nothing."""
    name = labels[0].rows.names[0]
    joined = labels[0].stacked_on(labels[1:])
    for one in joined.coordinates:
        if one.dims == (one.name,) == (name,) and not one.is_text:
            again = len(one.values) - len(np.unique(one.values))
            if again:
                return [f"{again} of {len(one.values)} rows have a {name} that another row has too"]
    return []


def _refusal(name: str, wrong: str) -> OperatorError:
    return OperatorError(
        f"{name} {wrong}; files that are put together must have the same columns in the same "
        "order: write this one on the grid (with the names) of the others, or leave it out"
    )


def _along_columns(labels: Labels) -> dict[str | int, Coordinate]:
    """The coordinates of the dimensions of the columns, by number, that number or name places.

    Latitudes and longitudes that lie along several are there too, by name.
    """
    found: dict[str | int, Coordinate] = {}
    for one in labels.along(labels.columns):
        if one.dims == (one.name,):
            found[labels.columns.names.index(one.name)] = one
        elif is_latitude(one.name, one.attributes) or is_longitude(one.name, one.attributes):
            found[one.name] = one
    return found


def _pairs(
    mine: Mapping[str | int, Coordinate], others: Mapping[str | int, Coordinate]
) -> list[tuple[Coordinate, Coordinate]]:
    return [(mine[key], others[key]) for key in mine if key in others]


def _are_turned(one: Labels, other: Labels) -> bool:
    return sorted(one.columns.names) == sorted(other.columns.names)


def _sizes(labels: Labels) -> str:
    return " x ".join(labels.columns.names)


def _difference(one: Coordinate, other: Coordinate) -> int | None:
    """The first place where two coordinates differ; ``None`` if they are the same."""
    if one.values.shape != other.values.shape:
        return 0
    if one.is_text != other.is_text or " since " in one.attributes.get("units", ""):
        return None
    if one.is_text:
        differ = one.values != other.values
    else:
        near = _near(one.values)
        differ = ~np.isclose(one.values, other.values, rtol=3e-7, atol=near, equal_nan=True)
    return int(np.argmax(differ)) if differ.any() else None


def _near(values: Array) -> float:
    steps = np.abs(np.diff(values.astype(np.float64), axis=-1))
    steps = steps[steps > 0]
    return _SHARE * float(steps.min()) if len(steps) else 0.0


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else f"{value:g}"
