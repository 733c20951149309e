"""Alike: whether files whose rows are put together mean the same columns, and the same units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
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
        for mine, theirs in zip(own, _along_columns(other), strict=False):
            place = None if mine is None or theirs is None else _difference(mine, theirs)
            if mine is not None and theirs is not None and place is not None:
                one, its = (_shown(each.values[place]) for each in (theirs, mine))
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


def _refusal(name: str, wrong: str) -> OperatorError:
    return OperatorError(
        f"{name} {wrong}; files that are put together must have the same columns in the same "
        "order: write this one on the grid (with the names) of the others, or leave it out"
    )


def _along_columns(labels: Labels) -> list[Coordinate | None]:
    """For each dimension of the columns the coordinate that numbers or names its places."""
    own = {one.name: one for one in labels.coordinates if one.dims == (one.name,)}
    return [own.get(name) for name in labels.columns.names]


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
    steps = np.abs(np.diff(values.astype(np.float64)))
    steps = steps[steps > 0]
    return _SHARE * float(steps.min()) if len(steps) else 0.0


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else f"{value:g}"
