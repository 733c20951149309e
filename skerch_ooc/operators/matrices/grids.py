"""Grids: arrays of more than two dimensions as matrices, some dimensions being the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.partition import Range

Slices = tuple[Any, ...]
"""An index for each dimension of an array."""


@dataclass(frozen=True)
class Grid:
    """How the dimensions of an array make up rows and columns.

    Attributes:
        sizes: Of each dimension.
        names: Of each dimension; empty where it has none.
        rows: The numbers of those that are rows, the slowest first; the others are columns, in
            their order.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, name: str, sizes: Sequence[int], names: Sequence[str], rows: Sequence[str | int]
    ) -> Grid:
        """Finds the dimensions that are meant by names or numbers.

        Raises:
            OperatorError: If there is no such dimension, or it is not said which are rows.
        """
        dims = [f"{i} ({one}, {size})" if one else f"{i} ({size})"
                for i, (one, size) in enumerate(zip(names, sizes, strict=True))]  # fmt: skip
        if not rows:
            if len(sizes) == 2:
                rows = [0]
            else:
                example = names[0] or 0
                raise OperatorError(
                    f"{name} has {len(sizes)} dimensions: {shown_list(dims)}; give those that "
                    f"are rows, such as rows = [{example!r}] in [operator.args]; "
                    "the others are columns"
                )
        found: list[int] = []
        for one in rows:
            known = names.index(one) if one in names else one
            if not isinstance(known, int) or not 0 <= known < len(sizes) or known in found:
                raise OperatorError(
                    f"{name} has no dimension {one!r} that could be rows; give some of: "
                    f"{shown_list(dims)}"
                )
            found.append(known)
        if len(found) == len(sizes):
            raise OperatorError(
                f"rows = {list(rows)} are all dimensions of {name}, which leaves no columns; give "
                "fewer"
            )
        return cls(tuple(map(int, sizes)), tuple(names), tuple(found))

    @property
    def columns(self) -> tuple[int, ...]:
        """The numbers of the dimensions that are columns."""
        return tuple(i for i in range(len(self.sizes)) if i not in self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of the matrix."""
        height = math.prod(self.sizes[i] for i in self.rows)
        return height, math.prod(self.sizes[i] for i in self.columns)

    @property
    def is_plain(self) -> bool:
        """Whether it is a matrix of itself: two dimensions, the first of which are the rows."""
        return len(self.sizes) == 2 and self.rows == (0,)

    def read(self, get: Callable[[Slices], Array], rows: Range, out: Array) -> None:
        """Fills an array with rows of the matrix.

        Args:
            get: Reads a rectangle of the array.
            rows: Which rows.
            out: Where to, ``(len(rows), width)``.
        """
        self._read(get, rows, out, {}, self.rows)

    def _read(
        self, get: Callable[[Slices], Array], rows: Range, out: Array, fixed: dict[int, int],
        free: tuple[int, ...],
    ) -> None:  # fmt: skip
        first, *others = free
        inner = math.prod(self.sizes[i] for i in others)
        place = rows.start
        while place < rows.stop:
            # All whole places at once, as a chunk may hold several of them.
            here, last = place // inner, rows.stop // inner
            whole = place % inner == 0 and last > here
            stop = (last if whole else here + 1) * inner
            inside = Range(place, min(stop, rows.stop))
            part = out[inside.shifted(-rows.start).slice]
            if whole:
                self._rectangle(get, part, fixed, (first, slice(here, last)))
            else:
                which = inside.shifted(-here * inner)
                self._read(get, which, part, fixed | {first: here}, tuple(others))
            place = inside.stop

    def _rectangle(
        self, get: Callable[[Slices], Array], out: Array, fixed: dict[int, int],
        places: tuple[int, slice],
    ) -> None:  # fmt: skip
        index = [slice(None)] * len(self.sizes)
        for axis, place in fixed.items():
            index[axis] = slice(place, place + 1)
        index[places[0]] = places[1]
        found = get(tuple(index))
        out[:] = found.transpose(*self.rows, *self.columns).reshape(out.shape)

    def chunks_across(self, chunks: Sequence[int]) -> tuple[int, int]:
        """How many rows chunks are read together for, and the entries of these chunks.

        Of dimensions that are rows those count that change faster than one which chunks divide: a
        chunk that holds two of its places holds rows that lie as far apart.
        """
        together = 1
        for i in reversed(self.rows):
            size, inner = self.sizes[i], math.prod(self.sizes[j] for j in self._faster(i))
            if chunks[i] > 1:
                together = min(chunks[i], size) * inner
        entries = self.shape[1]
        for i in self.columns:
            entries = entries // self.sizes[i] * (-(-self.sizes[i] // chunks[i]) * chunks[i])
        return together, together * entries

    def _faster(self, dimension: int) -> tuple[int, ...]:
        """The dimensions of rows that change faster."""
        return self.rows[self.rows.index(dimension) + 1 :]

    def band(self, row: int, together: int) -> Range:
        """The rows that are read together with one, where so many are at most."""
        period = 1
        for i in reversed(self.rows):
            period *= self.sizes[i]
            if period >= together:
                break
        start = row // period * period
        first = start + (row - start) // together * together
        return Range(first, min(first + together, start + period))

    def spread(self, name: str, values: Array, dimensions: Sequence[str]) -> Array:
        """Values along some dimensions of the columns, or else of the rows, for each of these.

        Args:
            name: Of the values, for messages.
            values: They themselves.
            dimensions: What is known of the names of their dimensions.

        Raises:
            OperatorError: If they do not say where they belong.
        """
        known = {one for one in dimensions if one}
        named = [known & {self.names[i] for i in axes} for axes in (self.columns, self.rows)]
        sides = (
            (self.rows, self.columns) if named[1] and not named[0] else (self.columns, self.rows)
        )
        for axes in sides:
            found = self._along(axes, values, known)
            if found is not None:
                return found
        raise OperatorError(
            f"{name} has shape {values.shape}, which does not say where it belongs among columns "
            f"of {tuple(self.sizes[i] for i in self.columns)}; give one value for each column"
        )

    def _along(self, axes: tuple[int, ...], values: Array, known: set[str]) -> Array | None:
        """Values for each row, or column; ``None`` if they do not belong there."""
        sizes = [self.sizes[i] for i in axes]
        if values.size == math.prod(sizes) and values.ndim in (1, len(sizes)):
            return values.ravel()
        named = [i for i in axes if self.names[i] in known]
        fitting = named or [i for i in axes if values.shape == (self.sizes[i],)]
        if len(fitting) != 1 or values.shape != (self.sizes[fitting[0]],):
            return None
        place = [1] * len(sizes)
        place[axes.index(fitting[0])] = len(values)
        return np.broadcast_to(values.reshape(place), sizes).ravel()


def is_latitude(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a dataset is one of latitudes, by its name or its attributes."""
    told = {text_of(attributes.get(key)) for key in ("standard_name", "units")}
    return name.lower() in _LATITUDES or bool(told & {"latitude", "degrees_north"})


def is_longitude(name: str, attributes: Mapping[str, Any]) -> bool:
    """Whether a dataset is one of longitudes, by its name or its attributes."""
    told = {text_of(attributes.get(key)) for key in ("standard_name", "units")}
    return name.lower() in _LONGITUDES or bool(told & {"longitude", "degrees_east"})


_LATITUDES = {"lat", "latitude", "nav_lat", "lats"}
_LONGITUDES = {"lon", "longitude", "nav_lon", "lons"}


def text_of(value: Any) -> str:
    """An attribute as text; libraries write it in several ways."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
