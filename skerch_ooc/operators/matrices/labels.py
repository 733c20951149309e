"""Labels: what the rows and columns of a matrix are called: dimensions, coordinates, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.operators.matrices.dates import SECONDS, dates_of
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.grids import Grid, is_latitude, is_longitude, text_of

RESERVED = ("mode", "U", "S", "V", "pattern", "variance_share")
"""Names that stand for something else where vectors are written."""

_KEPT = ("units", "calendar", "standard_name", "long_name", "axis", "positive")
"""Attributes that say what numbers are."""

Dimensions = Sequence[tuple[str, int]]
"""The name of each dimension, empty where it has none, and its size."""


@dataclass(frozen=True)
class Axes:
    """The dimensions that make up the rows, or the columns, of a matrix.

    Attributes:
        names: Of each, the slowest first.
        sizes: Of each.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Coordinate:
    """Values along some dimensions.

    Attributes:
        name: Its name; that of a dimension whose places it numbers.
        dims: The dimensions.
        values: Numbers, or texts as bytes of UTF-8.
        attributes: What numbers are: units, calendar and the like.
    """

    name: str
    dims: tuple[str, ...]
    values: Array
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return self.values.dtype.kind == "S"


@dataclass(frozen=True)
class Labels:
    """What rows and columns of a matrix are.

    Attributes:
        rows: Dimensions of the rows.
        columns: Dimensions of the columns.
        coordinates: Along either.
        attributes: What the entries are: units and the like.
    """

    rows: Axes
    columns: Axes
    coordinates: tuple[Coordinate, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rows: Dimensions, columns: Dimensions, coordinates: Iterable[Coordinate] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> Labels:  # fmt: skip
        """Gives each dimension a name of its own, and keeps the coordinates that fit.

        Args:
            rows: Dimensions of the rows.
            columns: Those of the columns.
            coordinates: By the names that dimensions have in the file.
            attributes: Of the entries.
        """
        known: dict[str, str] = {}
        taken = set(RESERVED)
        sides = []
        for side, dims in (("row", rows), ("column", columns)):
            names = []
            for number, (name, _) in enumerate(dims):
                own = name or (f"{side}_{number}" if len(dims) > 1 else side)
                while own in taken:
                    own += "_"
                taken.add(own)
                names.append(own)
                if name:
                    known.setdefault(name, own)
            sides.append(Axes(tuple(names), tuple(size for _, size in dims)))
        kept = _fitting(coordinates, known, sides)
        return cls(sides[0], sides[1], tuple(kept), _kept(attributes or {}))

    @property
    def turned(self) -> Labels:
        """Those of the transpose."""
        return replace(self, rows=self.columns, columns=self.rows)

    def along(self, axes: Axes) -> list[Coordinate]:
        """The coordinates of the rows, or of the columns."""
        return [one for one in self.coordinates if set(one.dims) <= set(axes.names)]

    def stacked_on(self, others: Sequence[Labels]) -> Labels:
        """Those of matrices below each other: coordinates along rows are joined, or dropped."""
        first = self.rows.names[0]
        length = sum(one.rows.sizes[0] for one in (self, *others))
        kept = []
        for one in self.coordinates:
            if first not in one.dims:
                kept.append(one)
                continue
            known = [{each.name: each for each in other.coordinates} for other in others]
            pieces = [other[one.name] for other in known if one.name in other]
            if len(pieces) == len(others) and (joined := _joined([one, *pieces], first)):
                kept.append(joined)
        rows = replace(self.rows, sizes=(length, *self.rows.sizes[1:]))
        return replace(self, rows=rows, coordinates=tuple(kept))


def _fitting(
    coordinates: Iterable[Coordinate], known: Mapping[str, str], sides: Sequence[Axes]
) -> list[Coordinate]:
    sizes = [dict(zip(one.names, one.sizes, strict=True)) for one in sides]
    kept: dict[str, Coordinate] = {}
    for one in coordinates:
        dims = tuple(known.get(dim, dim) for dim in one.dims)
        fits = any(
            set(dims) <= side.keys() and tuple(side[dim] for dim in dims) == one.values.shape
            for side in sizes
        )
        name = known.get(one.name, one.name)
        while name in RESERVED or (name in known.values() and dims != (name,)):
            name += "_"
        if fits and dims:
            kept.setdefault(name, Coordinate(name, dims, one.values, _kept(one.attributes)))
    return list(kept.values())


def _kept(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The attributes that say what numbers are, as text: libraries write them in several ways."""
    return {key: text_of(attributes[key]).strip("\0 ") for key in _KEPT if key in attributes}


def _joined(pieces: Sequence[Coordinate], along: str) -> Coordinate | None:
    """Coordinates one behind the other; dates in one unit. ``None`` where they do not fit."""
    first = pieces[0]
    if any(one.dims != first.dims or one.is_text != first.is_text for one in pieces):
        return None
    if any(one.attributes != first.attributes for one in pieces):
        dated = [dates_of(one.values, one.attributes) for one in pieces]
        if any(one is None for one in dated):
            return None
        seconds = [np.asarray(one, "datetime64[s]").astype(np.int64) for one in dated]
        pieces = [replace(one, values=made, attributes={**first.attributes, **SECONDS})
                  for one, made in zip(pieces, seconds, strict=True)]  # fmt: skip
    axis = first.dims.index(along)
    try:
        values = np.concatenate([one.values for one in pieces], axis=axis)
    except ValueError:
        return None
    return replace(pieces[0], values=values)


class Neighbour(NamedTuple):
    """A dataset beside a matrix, that may say where its rows or columns lie.

    Attributes:
        name: Its name.
        dims: Names of its dimensions.
        attributes: Its attributes.
        dtype: Of its entries.
        read: Reads them.
    """

    name: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    dtype: np.dtype[Any]
    read: Callable[[], Array]


def of_grid(
    grid: Grid, beside: Iterable[Neighbour], attributes: Mapping[str, Any], listed: str = ""
) -> Labels:
    """Labels of an array of named dimensions, as netCDF's conventions have them.

    Args:
        grid: The array.
        beside: What lies beside it.
        attributes: Of the array.
        listed: Names of more coordinates, separated by spaces.
    """
    rows = [(grid.names[i], grid.sizes[i]) for i in grid.rows]
    columns = [(grid.names[i], grid.sizes[i]) for i in grid.columns]
    wanted = {*grid.names, *listed.split(), *text_of(attributes.get("coordinates", "")).split()}
    wanted.discard("")
    found = []
    for one in beside:
        place = is_latitude(one.name, one.attributes) or is_longitude(one.name, one.attributes)
        known = one.dims and set(one.dims) <= set(grid.names) - {""}
        if known and (one.name in wanted or place):
            values = decoded(one)
            if values is not None:
                found.append(Coordinate(one.name, one.dims, values, one.attributes))
    return Labels.of(rows, columns, found, attributes)


def decoded(one: Neighbour) -> Array | None:
    """Numbers as they are meant, or texts; ``None`` of anything else."""
    if one.dtype.kind in "iuf":
        stored = np.asarray(one.read())
        decoding = Decoding.of(one.attributes, stored.dtype)
        if decoding is None:
            return stored.astype(stored.dtype.newbyteorder("="), copy=False)
        return decoding.decode(stored, np.empty(stored.shape, decoding.dtype))
    return texts_of(one.read()) if one.dtype.kind in "SUOT" else None


def texts_of(values: Any) -> Array:
    """Texts as bytes of UTF-8, all of one length."""
    found = np.asarray(values)
    if found.dtype.kind == "S":
        return found
    flat = [one if isinstance(one, bytes) else str(one).encode() for one in found.ravel()]
    return np.array(flat or [b""], "S").reshape(found.shape if math.prod(found.shape) else (0,))


def latitudes_of(one: Neighbour) -> Array:
    """Latitudes in degrees, whatever their units."""
    values = decoded(one)
    assert values is not None
    in_radians = text_of(one.attributes.get("units")).lower().startswith("rad")
    return np.asarray(np.rad2deg(values) if in_radians else values, np.float64)
