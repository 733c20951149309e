"""Readers of sketches: row tiles of all columns, put together from shards, parts and summands."""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array, converted
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range, cover, cut, tree_sum
from skerch_ooc.base.places import is_object
from skerch_ooc.planning.sides import Side
from skerch_ooc.store.index import OpenedShards
from skerch_ooc.store.interleave import Batch, batch_size
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.object_bytes import fetch_together
from skerch_ooc.store.sealed import Bulk
from skerch_ooc.store.shards import Rectangle, by_strip
from skerch_ooc.store.tiles import RowTiles, Tiles


@dataclass(frozen=True)
class _Piece:
    """The columns of a shard that are used.

    Attributes:
        place: These columns as columns of the sketch.
        inside: These columns as columns of the shard.
        rectangle: The shard.
        opened: The shards of the folder.
    """

    place: Range
    inside: Range
    rectangle: Rectangle
    opened: OpenedShards

    @property
    def is_whole(self) -> bool:
        """Whether all columns of the shard are used."""
        return self.inside == Range(0, len(self.rectangle.columns))

    @property
    def bulk(self) -> Bulk:
        """The content of the shard."""
        return self.opened.bulk(self.rectangle)


@dataclass(frozen=True)
class _Band:
    """The shards of one part.

    Attributes:
        rows: The rows of the sketch that they hold.
        pieces: Which columns to take from which shard, in order.
    """

    rows: Range
    pieces: list[_Piece]


@dataclass(frozen=True)
class _Layer:
    """The bands of one summand.

    Attributes:
        scale: The factor of the summand.
        bands: Its bands, in the order of its parts.
        added: Whether the bands cover the same rows and are added; else each has rows of its own.
    """

    scale: float
    bands: list[_Band]
    added: bool


class RoleReader(RowTiles):
    """Reads row tiles of the sketch of one role, put together from its shards and parts.

    Args:
        shards: The shards of a folder. They are opened when they are first read: a task reads the
            rows of few row shards.
        rectangles: The shards in the folder that may be used.
        strips: The planned rectangles of the role, in the order of the parts.
        height: Rows of the sketch.
    """

    def __init__(
        self, shards: OpenedShards, rectangles: Sequence[Rectangle], strips: Sequence[Rectangle],
        height: int,
    ) -> None:  # fmt: skip
        width = len(strips[0].columns)
        identity = shards.run.plan.identity
        self.layout = Layout(
            strips[0].role, (height, width), identity.dtype, (identity.tile[0], width)
        )
        self._wide = np.result_type(self.dtype, np.float64)
        # Grouped once: if each of many parts searched the shards of all parts, opening a run would
        # take quadratic time.
        members = by_strip(strips, rectangles)

        self._folder, merged = shards.folder, shards.merged
        self._far, self._lock = is_object(shards.folder), threading.Lock()

        def piece(strip: Rectangle, columns: Range, rectangle: Rectangle) -> _Piece:
            place, inside = (columns.shifted(-whole.columns.start) for whole in (strip, rectangle))
            return _Piece(place, inside, rectangle, shards)

        def band(strip: Rectangle) -> _Band:
            found = members[strip]
            parts = cover(strip.columns, [rectangle.columns for rectangle in found])
            return _Band(strip.rows, [piece(strip, part, found[index]) for part, index in parts])

        self._layers: list[_Layer] = []
        parts = shards.run.plan.parts
        for summand in (0,) if merged else range(parts[-1].summand + 1):
            mine = [strip for strip in strips if merged or parts[strip.part].summand == summand]
            added = not merged and len(mine) > 1 and mine[0].rows == mine[1].rows
            scale = 1.0 if merged else parts[mine[0].part].scale
            self._layers.append(_Layer(scale, [band(strip) for strip in mine], added))
        first = self._layers[0]
        self._plain = len(self._layers) == 1 and first.scale == 1 and not first.added

    @property
    def far_bytes(self) -> int:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        if not self._far:
            return 0
        # A row tile may lie in two bands that have rows of their own.
        bands = sum(
            len(layer.bands) if layer.added else min(2, len(layer.bands)) for layer in self._layers
        )
        rows = min(self.layout.tile[0], self.layout.shape[0])
        return bands * rows * self.layout.shape[1] * self.dtype.itemsize

    @property
    def placed(self) -> list[tuple[Range, Path]]:
        """The columns and the path of each shard of the first part."""
        pieces = self._layers[0].bands[0].pieces
        return [(piece.place, self._folder / piece.rectangle.name) for piece in pieces]

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`~skerch_ooc.store.tiles.Tiles`.

        Raises:
            OperatorError: If a sum of parts is too large for the dtype.
        """
        rows = self.layout.rows(row)
        out = out[: len(rows)]
        if self._plain:
            return self._read_layer(self._layers[0], rows, out)
        total = np.zeros(out.shape, self._wide)
        space = np.empty(out.shape, self._wide)
        # Sums that overflow are refused below, with a reason.
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in self._layers:
                part = self._read_layer(layer, rows, space)
                part *= layer.scale
                total += part
        # Rounded to the plan's dtype, as if it had been measured in one. Otherwise sums over column
        # shards would be more exact than those over row shards, which are stored in that dtype.
        out[:] = converted(total, self.dtype)
        if not np.isfinite(out).all():
            raise OperatorError(
                f"the sum of the operators exceeds {self.dtype} in rows {rows} of its sketch; "
                "scale its terms, or plan a run with a wider dtype"
            )
        return out

    def _read_layer(self, layer: _Layer, rows: Range, out: Array) -> Array:
        bands = [band for band in layer.bands if len(band.rows.common(rows))]
        if not layer.added:
            for band in bands:
                inside = band.rows.common(rows)
                self._read_band(band, inside, out[inside.shifted(-rows.start).slice])
            return out

        def wide(band: _Band) -> Array:
            return self._read_band(band, rows, np.empty(out.shape, self._wide))

        out[:] = converted(tree_sum(map(wide, bands), operator.iadd), self.dtype)
        return out

    def _read_band(self, band: _Band, rows: Range, out: Array) -> Array:
        """Reads rows of one band."""
        if not self._far:
            return self._read_rows(band, rows, out)
        inside, height = rows.shifted(-band.rows.start), self.layout.tile[0]
        # One thread after the other: none is still at windows that another one gives up.
        with self._lock:
            _fetch(band.pieces, inside.start // height, -(-inside.stop // height))
            return self._read_rows(band, rows, out)

    def _read_rows(self, band: _Band, rows: Range, out: Array) -> Array:
        offset = rows.start - band.rows.start
        last = rows.stop == band.rows.stop
        height = self.layout.tile[0]
        if offset % height or not (last or len(rows) == height):
            # A part that does not begin at a row tile of the sketch has tiles of its own, counted
            # from its first row: these rows are read through the ones that they touch.
            for piece in band.pieces:
                out[:, piece.place.slice] = piece.bulk.read(
                    rows.shifted(-band.rows.start), piece.inside
                )
            return out
        tile = offset // height
        for together in _batches(band.pieces, len(rows)):
            place = Range(together[0].place.start, together[-1].place.stop)
            if len(together) > 1:
                _read_batch(together, tile, out[:, place.slice])
            else:
                data = together[0].bulk.read_tile(tile)
                out[:, place.slice] = data[:, together[0].inside.slice]
        return out


def _fetch(pieces: Sequence[_Piece], tile: int, stop: int) -> None:
    """Fetches what is read next of all shards of a band, which lie in an object store.

    Args:
        pieces: The shards.
        tile: The row tile that is read next.
        stop: The row tile up to which is read now.
    """
    pieces[0].opened.open_together([piece.rectangle for piece in pieces])
    wanted = []
    for piece in pieces:
        bulk = piece.bulk
        every = bulk.wanted(Range(tile, bulk.layout.grid[0]), Range(0, bulk.layout.grid[1]))
        if every is not None:
            read = stop - tile
            wanted.append(
                replace(every, length=min(read * every.length, every.stop - every.offset))
            )
    fetch_together(wanted)


def _batches(pieces: Sequence[_Piece], rows: int) -> Iterator[Sequence[_Piece]]:
    """Groups shards that are read together: narrow ones of equal width; each other one alone."""

    def most(piece: _Piece) -> tuple[int, int]:
        layout = piece.bulk.layout
        whole = piece.is_whole and not layout.chunked
        return len(piece.place), batch_size(rows, layout.shape[1], layout.dtype) if whole else 1

    for (_, size), alike in itertools.groupby(pieces, most):
        run = list(alike)
        for numbers in cut(Range(0, len(run)), size):
            yield run[numbers.slice]


def _read_batch(pieces: Sequence[_Piece], tile: int, out: Array) -> None:
    layout = pieces[0].bulk.layout
    batch = Batch(len(pieces), len(out), layout.shape[1], layout.stored_dtype)
    for number, piece in enumerate(pieces):
        piece.bulk.read_tile(tile, out=batch[number])
    batch.turn_into(out)


class SketchReader(RowTiles):
    """Reads row tiles of ``Z``: the sketches of all roles of a side, side by side.

    Args:
        shards: The shards of a folder.
        rectangles: The shards in the folder that may be used.
        side: The side, which states the roles and the columns of each in ``Z``.
        strips: The planned rectangles of the roles, in the order of the parts.
        kept: The columns of roles that are not measured: bases on disk.

    Attributes:
        side: The side.
        roles: The reader of each role's sketch.
        kept: The columns of roles that are not measured.
    """

    def __init__(
        self, shards: OpenedShards, rectangles: Sequence[Rectangle], side: Side,
        strips: Sequence[Rectangle], kept: Mapping[str, Tiles] | None = None,
    ) -> None:  # fmt: skip
        self.side, self.kept = side, kept or {}
        identity = shards.run.plan.identity
        self.layout = Layout(
            side.name, (side.rows, side.columns), identity.dtype, (identity.tile[0], side.columns)
        )
        measured = {
            role: RoleReader(shards, rectangles, [s for s in strips if s.role == role], side.rows)
            for role in side.sketches
            if role not in self.kept
        }
        self.roles: dict[str, Tiles] = {**measured, **self.kept}
        self._measured = measured

    @property
    def far_bytes(self) -> int:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        return sum(reader.far_bytes for reader in self.roles.values())

    def placed_shards(self, roles: Sequence[str] | None = None) -> list[tuple[Range, Path]]:
        """Returns the columns of ``Z`` and the path of each shard of the first part.

        Args:
            roles: Roles to which ``Z`` is restricted; by default all that are measured.
        """
        kept = [role for role in self._measured if roles is None or role in roles]
        start = self.side.sketches[kept[0]].start if kept else 0
        return [
            (part.shifted(self.side.sketches[role].start - start), path)
            for role in kept
            for part, path in self._measured[role].placed
        ]

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        out = out[: len(self.layout.rows(row))]
        for role, place in self.side.sketches.items():
            self.roles[role].read_row(row, out[:, place.slice])
        return out
