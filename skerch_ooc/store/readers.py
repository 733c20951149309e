"""Reading a sketch by row tiles, whatever shards, parts and summands it is cut into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array, converted
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range, cover, tree_sum
from skerch_ooc.planning.sides import Side
from skerch_ooc.store.interleave import Batch, batch_size
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import Bulk, SealedFile
from skerch_ooc.store.shards import Rectangle, Strip, by_strip, open_shard
from skerch_ooc.store.tiles import RowTiles


def used_shards(strip: Strip, members: Sequence[Rectangle]) -> list[tuple[Range, Rectangle]]:
    """Which columns of a strip to take from which of its shards.

    Raises:
        ValueError: If the shards do not hold all columns.
    """
    parts = cover(strip.columns, [rectangle.columns for rectangle in members])
    return [(part.shifted(-strip.columns.start), members[index]) for part, index in parts]


@dataclass(frozen=True)
class _Band:
    """The shards of a strip.

    Attributes:
        strip: The strip.
        shards: Which columns to take from which of them, counted from the first of the strip.
    """

    strip: Strip
    shards: list[tuple[Range, Rectangle]]

    @property
    def rows(self) -> Range:
        """The rows of the sketch that they hold."""
        return self.strip.rows

    def inside(self, columns: Range, rectangle: Rectangle) -> Range:
        """Columns of the strip, counted from the first of a shard."""
        return columns.shifted(self.strip.columns.start - rectangle.columns.start)


@dataclass(frozen=True)
class _Layer:
    """The bands of one summand.

    Attributes:
        scale: What it is multiplied by.
        bands: Its bands, in the order of its parts.
        added: Whether they lie over each other; else they lie below each other.
    """

    scale: float
    bands: list[_Band]
    added: bool


class RoleReader(RowTiles):
    """Reads row tiles of the sketch of one role, whatever shards and parts it is cut into.

    Args:
        run: The run.
        folder: Where the shards are: those of the run, or row shards of a merged sketch.
        rectangles: The shards.
        strips: What of them makes up the sketch, in the order of the parts.
        height: Rows of the sketch.

    Attributes:
        files: The opened shards that are read from.

    Raises:
        CorruptError: If a shard is damaged, foreign or swapped.
        IncompleteError: If one is gone.
    """

    def __init__(
        self, run: Run, folder: Path, rectangles: Sequence[Rectangle], strips: Sequence[Strip],
        height: int,
    ) -> None:  # fmt: skip
        width = len(strips[0].columns)
        identity = run.plan.identity
        self.layout = Layout(
            strips[0].role, (height, width), identity.dtype, (identity.tile[0], width)
        )
        self._wide = np.result_type(self.dtype, np.float64)
        self._layers: list[_Layer] = []
        # Once for all strips: each of many parts must not look at the shards of all others.
        members = by_strip(strips, rectangles)
        if folder == run.shards:
            parts = run.plan.parts
            for summand in range(parts[-1].summand + 1):
                mine = [strip for strip in strips if parts[strip.part].summand == summand]
                added = len(mine) > 1 and mine[0].rows == mine[1].rows
                self._add(parts[mine[0].part].scale, mine, members, added=added)
        else:
            self._add(1.0, strips, members, added=False)
        self._plain = (
            len(self._layers) == 1 and self._layers[0].scale == 1 and not self._layers[0].added
        )
        self.files = {
            rectangle: open_shard(run, folder, rectangle)
            for layer in self._layers
            for band in layer.bands
            for _, rectangle in band.shards
        }

    def _add(
        self, scale: float, strips: Sequence[Strip],
        members: Mapping[Strip, Sequence[Rectangle]], *, added: bool,
    ) -> None:  # fmt: skip
        bands = [_Band(strip, used_shards(strip, members[strip])) for strip in strips]
        self._layers.append(_Layer(scale, bands, added))

    @property
    def placed(self) -> list[tuple[Range, Path]]:
        """For each shard of the first part, or row band, where its columns stand."""
        first = self._layers[0].bands[0]
        return [(part, self.files[rectangle].path) for part, rectangle in first.shards]

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
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in self._layers:
                part = self._read_layer(layer, rows, space)
                part *= layer.scale
                total += part
        # As if it had been measured in one: what was merged must not be finer than what is read.
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

        def add(total: Array, other: Array) -> Array:
            total += other
            return total

        out[:] = converted(tree_sum(map(wide, bands), add), self.dtype)
        return out

    def _read_band(self, band: _Band, rows: Range, out: Array) -> Array:
        """Reads rows of one band."""
        offset = rows.start - band.rows.start
        last = rows.stop == band.rows.stop
        height = self.layout.tile[0]
        if offset % height or not (last or len(rows) == height):
            # The tiles of a part that begins elsewhere are not those of the whole.
            for part, rectangle in band.shards:
                out[:, part.slice] = self._shard(rectangle).read(
                    rows.shifted(-band.rows.start), band.inside(part, rectangle)
                )
            return out
        tile = offset // height
        for together in self._batches(band.shards, len(rows)):
            place = Range(together[0][0].start, together[-1][0].stop)
            if len(together) > 1:
                self._read_batch([shard for _, shard in together], tile, out[:, place.slice])
                continue
            ((part, rectangle),) = together
            data = self._shard(rectangle).read_tile(tile)
            out[:, part.slice] = data[:, band.inside(part, rectangle).slice]
        return out

    def _batches(
        self, parts: Sequence[tuple[Range, Rectangle]], rows: int
    ) -> Iterator[list[tuple[Range, Rectangle]]]:
        """Runs of shards that are read together: narrow ones of equal width; others alone."""
        together: list[tuple[Range, Rectangle]] = []
        for part, rectangle in parts:
            layout = self._shard(rectangle).layout
            whole = len(part) == layout.shape[1] and not layout.chunked
            most = batch_size(rows, layout.shape[1], layout.dtype) if whole else 1
            alike = together and len(together[0][0]) == len(part) and len(together) < most
            if together and not alike:
                yield together
                together = []
            together.append((part, rectangle))
            if most == 1:
                yield together
                together = []
        if together:
            yield together

    def _read_batch(self, rectangles: Sequence[Rectangle], tile: int, out: Array) -> None:
        layout = self._shard(rectangles[0]).layout
        batch = Batch(len(rectangles), len(out), layout.shape[1], layout.stored_dtype)
        for number, rectangle in enumerate(rectangles):
            self._shard(rectangle).read_tile(tile, out=batch[number])
        batch.turn_into(out)

    def _shard(self, rectangle: Rectangle) -> Bulk:
        return self.files[rectangle].bulk()


class SketchReader(RowTiles):
    """Reads row tiles of all columns of a side's sketches.

    Args:
        run: The run.
        folder: Where the shards are: those of the run, or row shards of a merged sketch.
        rectangles: The shards.
        side: Which roles, and where their columns are to stand.
        strips: What of the shards makes up the sketches, in the order of the parts.

    Attributes:
        side: The side.
        roles: What reads the sketch of each role alone.
        files: The opened shards that are read from.

    Raises:
        CorruptError: If a shard is damaged, foreign or swapped.
        IncompleteError: If one is gone.
    """

    def __init__(
        self, run: Run, folder: Path, rectangles: Sequence[Rectangle], side: Side,
        strips: Sequence[Strip],
    ) -> None:  # fmt: skip
        self.side = side
        identity = run.plan.identity
        self.layout = Layout(
            side.name, (side.rows, side.columns), identity.dtype, (identity.tile[0], side.columns)
        )
        self.roles = {
            role: RoleReader(
                run, folder, rectangles, [s for s in strips if s.role == role], side.rows
            )
            for role in side.sketches
        }
        self.files: dict[Rectangle, SealedFile] = {}
        for reader in self.roles.values():
            self.files |= reader.files

    def placed_shards(self, roles: Sequence[str] | None = None) -> list[tuple[Range, Path]]:
        """For each shard of the first part, or row band, where its columns stand in ``Z``.

        Args:
            roles: Only these, and where they stand in a ``Z`` of these alone; all by default.
        """
        kept = [role for role in self.side.sketches if roles is None or role in roles]
        start = self.side.sketches[kept[0]].start if kept else 0
        return [
            (part.shifted(self.side.sketches[role].start - start), path)
            for role in kept
            for part, path in self.roles[role].placed
        ]

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        out = out[: len(self.layout.rows(row))]
        for role, place in self.side.sketches.items():
            self.roles[role].read_row(row, out[:, place.slice])
        return out
