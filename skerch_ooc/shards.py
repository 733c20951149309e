"""Shards: rectangles of a sketch, each in a sealed file that one task published.

A shard states what it is (run, role, part, columns, rows), never how large the plan is. Its name
says the same as its identity, so listing a folder is the state of the work, and a shard that was
renamed or swapped is found out when it is read.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import CorruptError, IncompleteError, OperatorError
from skerch_ooc.files import LATE_FILES_SECONDS, digest
from skerch_ooc.interleave import Batch, batch_size
from skerch_ooc.partition import Range, cover, gaps
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import Layout, SealedFile, sealed_writer
from skerch_ooc.sides import Side, height_of_role
from skerch_ooc.spec import FORMAT_VERSION, ROLES, Plan

Array = npt.NDArray[Any]

_NAME = re.compile(
    r"(?P<role>[a-z][a-z0-9-]{0,39})\.p(?P<part>\d{1,9})\.c(?P<c0>\d{1,15})-(?P<c1>\d{1,15})"
    r"\.r(?P<r0>\d{1,15})-(?P<r1>\d{1,15})\.h5"
)


@dataclass(frozen=True, order=True)
class Rectangle:
    """What a shard holds.

    Attributes:
        role: The test matrix that its columns belong to.
        part: The summand of the operator; 0 for most.
        columns: Columns of the role.
        rows: Rows of the sketch.
    """

    role: str
    part: int
    columns: Range
    rows: Range

    @property
    def name(self) -> str:
        """The file name of the shard."""
        return f"{self.role}.p{self.part}.c{self.columns}.r{self.rows}.h5"

    @classmethod
    def from_name(cls, name: str) -> Rectangle | None:
        """The rectangle that a file name states; ``None`` if it is no shard's name."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        numbers = {key: int(match[key]) for key in ("part", "c0", "c1", "r0", "r1")}
        if numbers["c0"] >= numbers["c1"] or numbers["r0"] >= numbers["r1"]:
            return None
        rectangle = cls(
            role=match["role"],
            part=numbers["part"],
            columns=Range(numbers["c0"], numbers["c1"]),
            rows=Range(numbers["r0"], numbers["r1"]),
        )
        return rectangle if rectangle.name == name else None

    def identity(self, run_id: str) -> dict[str, Any]:
        """What the shard's identity says, but for its data."""
        return {
            "format": FORMAT_VERSION,
            "type": "shard",
            "run": run_id,
            "role": self.role,
            "part": self.part,
            "columns": [self.columns.start, self.columns.stop],
            "rows": [self.rows.start, self.rows.stop],
        }


def publish_shard(
    folder: Path, plan: Plan, rectangle: Rectangle, array: Array, provenance: Mapping[str, Any]
) -> bool:
    """Publishes a block of a sketch as a shard.

    Args:
        folder: Where to.
        plan: The plan in force.
        rectangle: What the block is.
        array: The block, ``(len(rectangle.rows), len(rectangle.columns))``.
        provenance: Times, hosts, versions.

    Returns:
        Whether this call published it; the first publication wins.

    Raises:
        OperatorError: If the block holds NaN or infinity; nothing is published.
        IncompleteError: If it cannot be written.
    """
    require_finite(array, rectangle)
    layout = shard_layout(plan, rectangle)
    with sealed_writer(folder / rectangle.name, layout) as writer:
        for number in range(layout.grid[0]):
            writer.write_rows(number, array[layout.rows(number).slice])
        return writer.publish(rectangle.identity(plan.run_id), provenance=provenance)


def shard_layout(plan: Plan, rectangle: Rectangle) -> Layout:
    """How a shard keeps its data: contiguous, with a checksum for each row tile."""
    width = len(rectangle.columns)
    return Layout(
        name=rectangle.role,
        shape=(len(rectangle.rows), width),
        dtype=plan.identity.dtype,
        tile=(plan.identity.tile[0], width),
    )


def require_finite(array: Array, rectangle: Rectangle) -> None:
    """Refuses a block with NaN or infinity.

    Raises:
        OperatorError: Naming role and columns.
    """
    # A sum is finite only if all summands are, and needs no temporary array; the exact test, for
    # sums that overflow, follows only then.
    with np.errstate(all="ignore"):
        suspect = not np.isfinite(array.sum(axis=0, dtype=np.result_type(array, np.float64))).all()
    if not suspect:
        return
    bad = [rectangle.columns.start + int(j) for j in np.flatnonzero(~np.isfinite(array).all(0))]
    if bad:
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise OperatorError(
            f"the operator's product is not finite: {len(bad)} of {len(rectangle.columns)} columns "
            f"of the {rectangle.role} sketch ({shown}) hold NaN or infinity; nothing was published "
            "for them. Look for overflow, log(0) or 0/0 in the operator, or use a wider dtype"
        )


def list_shards(folder: Path) -> list[Rectangle]:
    """The shards that a folder holds, by their names alone, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = (Rectangle.from_name(name) for name in names)
    return sorted(rectangle for rectangle in found if rectangle is not None)


def listing_of(folder: Path, rectangles: Iterable[Rectangle]) -> str:
    """A hash of names, sizes and times of shards, by which another set of them is noticed."""
    stated = []
    for rectangle in rectangles:
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(f"{folder}/{rectangle.name}")
            stated.append([rectangle.name, status.st_size, status.st_mtime_ns])
    return digest(stated)


def strangers(folder: Path) -> list[str]:
    """Names in a folder of shards that are no shard's, private files left out."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not name.startswith(".") and Rectangle.from_name(name) is None
    )


def missing_columns(plan: Plan, shards: Iterable[Rectangle]) -> dict[str, list[Range]]:
    """The column ranges of each role of the first round that the plan wants and no shard holds."""
    planned = {role: plan.span(role) for role in ROLES if plan.reach(role)}
    heights = {role: height_of_role(plan, role) for role in planned}
    return missing_of(planned, heights, shards)


def missing_of(
    planned: Mapping[str, Range], heights: Mapping[str, int], shards: Iterable[Rectangle]
) -> dict[str, list[Range]]:
    """The column ranges of each role that are planned, and that no shard of full height holds."""
    present: dict[str, list[Range]] = {role: [] for role in planned}
    for shard in shards:
        if shard.role in present and shard.rows == Range(0, heights[shard.role]):
            present[shard.role].append(shard.columns)
    return {role: gaps(span, present[role]) for role, span in planned.items()}


def wait_for_columns(
    folder: Path, planned: Mapping[str, Range], heights: Mapping[str, int]
) -> list[Rectangle]:
    """The column shards that make up a sketch, once all are there.

    Args:
        folder: Where they are.
        planned: The columns of each role.
        heights: The rows of each role's sketch.

    Raises:
        IncompleteError: If columns are missing, even after a pause for late files.
    """
    for pause in (*LATE_FILES_SECONDS, None):
        shards = list_shards(folder)
        missing = missing_of(planned, heights, shards)
        if not any(missing.values()):
            return [shard for shard in shards if shard.role in planned]
        if pause is not None:
            time.sleep(pause)
    lacking = [
        f"{role} {', '.join(map(str, ranges[:4]))}{', ...' if len(ranges) > 4 else ''}"
        for role, ranges in missing.items()
        if ranges
    ]
    count = sum(len(piece) for ranges in missing.values() for piece in ranges)
    total = sum(map(len, planned.values()))
    raise IncompleteError(
        f"{count} of {total} columns are not measured yet ({'; '.join(lacking)}); "
        f"measure them with: skerch-ooc measure {folder.parent}"
    )


def open_shard(run: Run, folder: Path, rectangle: Rectangle) -> SealedFile:
    """Opens a shard and checks that it is what its name says, and of this run.

    Raises:
        CorruptError: If it is not, or damaged, or a link; says how to have it made anew.
        IncompleteError: If it is gone.
    """
    path = folder / rectangle.name
    again = f"skerch-ooc {'measure' if folder == run.shards else 'merge'} {run.directory}"
    advice = f". To make it anew: rm {path} && {again}"
    try:
        file = SealedFile(path)
        check_identity(file, rectangle, run.plan)
    except FileNotFoundError:
        raise IncompleteError(f"{path} is gone; make it again with: {again}") from None
    except CorruptError as error:
        raise CorruptError(f"{error}{advice}") from error
    file.advice = advice
    return file


def check_identity(file: SealedFile, rectangle: Rectangle, plan: Plan) -> None:
    """Checks that an opened shard is the wanted rectangle of this run.

    Raises:
        CorruptError: Naming the file and both values.
    """
    stated = {key: value for key, value in file.identity.items() if key != "bulk"}
    wanted = rectangle.identity(plan.run_id)
    if stated.get("run") != plan.run_id:
        raise CorruptError(
            f"{file.path} belongs to another run ({str(stated.get('run'))[:16]}..., "
            f"this one is {plan.run_id[:16]}...)"
        )
    if stated != wanted:
        different = [key for key in wanted if stated.get(key) != wanted[key]]
        raise CorruptError(
            f"{file.path} holds something else than its name says: "
            + ", ".join(f"{key} {stated.get(key)} instead of {wanted[key]}" for key in different)
            + " (it may have been renamed or swapped)"
        )
    if file.layout != shard_layout(plan, rectangle):
        raise CorruptError(f"{file.path} is not laid out as this plan's shards are")


def used_shards(
    planned: Mapping[str, Range], rectangles: Iterable[Rectangle]
) -> dict[str, list[tuple[Range, list[tuple[Range, Rectangle]]]]]:
    """For each role its row bands, and for each band which columns to take from which shard.

    Raises:
        ValueError: If the shards of a band do not hold all columns.
    """
    bands: dict[str, list[tuple[Range, list[tuple[Range, Rectangle]]]]] = {}
    listed = list(rectangles)
    for role, span in planned.items():
        bands[role] = []
        for rows in sorted({r.rows for r in listed if r.role == role}):
            members = [r for r in listed if r.role == role and r.rows == rows]
            parts = cover(span, [r.columns for r in members])
            bands[role].append((rows, [(part, members[index]) for part, index in parts]))
    return bands


class SketchReader:
    """Reads row tiles of all columns of a side's sketches, whatever shards they are cut into.

    Args:
        run: The run.
        folder: Where the shards are.
        rectangles: The shards; those of equal rows must hold all columns of their role.
        side: Which roles, and where their columns are to stand.

    Attributes:
        files: The opened shards that are read from.

    Raises:
        CorruptError: If a shard is damaged, foreign or swapped.
        IncompleteError: If one is gone.
    """

    def __init__(self, run: Run, folder: Path, rectangles: Sequence[Rectangle], side: Side) -> None:
        self.side = side
        self._tiles = run.plan.tiles(side.rows)
        self._tile_rows = run.plan.identity.tile[0]
        planned = {role: Range(0, len(place)) for role, place in side.sketches.items()}
        self._bands = used_shards(planned, rectangles)
        self.files = {
            rectangle: open_shard(run, folder, rectangle)
            for bands in self._bands.values()
            for _, parts in bands
            for _, rectangle in parts
        }

    def placed_shards(self, roles: Sequence[str] | None = None) -> list[tuple[Range, Path]]:
        """For each shard of the first row band, where its columns stand in ``Z``.

        Args:
            roles: Only these, and where they stand in a ``Z`` of these alone; all by default.
        """
        kept = [role for role in self.side.sketches if roles is None or role in roles]
        start = self.side.sketches[kept[0]].start if kept else 0
        return [
            (part.shifted(self.side.sketches[role].start - start), self.files[rectangle].path)
            for role in kept
            for part, rectangle in self._bands[role][0][1]
        ]

    def read_tile(self, number: int, out: Array) -> Array:
        """Reads one row tile of all roles.

        Args:
            number: Number of the row tile.
            out: Buffer of at least a tile's rows, and as many columns as all roles have.

        Returns:
            The filled part of ``out``, converted to its dtype.

        Raises:
            CorruptError: If a checksum is wrong.
        """
        out = out[: len(self._tiles[number])]
        for role, place in self.side.sketches.items():
            self.read_role(number, role, out[:, place.slice])
        return out

    def read_role(self, number: int, role: str, out: Array) -> Array:
        """Reads one row tile of one role; otherwise as :meth:`read_tile`."""
        rows = self._tiles[number]
        out = out[: len(rows)]
        band_rows, parts = next(b for b in self._bands[role] if rows.within(b[0]))
        tile = (rows.start - band_rows.start) // self._tile_rows
        for together in self._batches(parts, len(rows)):
            place = Range(together[0][0].start, together[-1][0].stop)
            if len(together) > 1:
                self._read_batch([file for _, file in together], tile, out[:, place.slice])
                continue
            ((part, rectangle),) = together
            data = self.files[rectangle].read_tile(tile)
            inside = part.shifted(-rectangle.columns.start)
            out[:, part.slice] = data[:, inside.slice]
        return out

    def _batches(
        self, parts: Sequence[tuple[Range, Rectangle]], rows: int
    ) -> Iterator[list[tuple[Range, Rectangle]]]:
        """Runs of shards that are read together: narrow ones of equal width; others alone."""
        together: list[tuple[Range, Rectangle]] = []
        for part, rectangle in parts:
            layout = self._layout(rectangle)
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
        layout = self._layout(rectangles[0])
        batch = Batch(len(rectangles), len(out), layout.shape[1], layout.stored_dtype)
        for number, rectangle in enumerate(rectangles):
            self.files[rectangle].read_tile(tile, out=batch[number])
        batch.turn_into(out)

    def _layout(self, rectangle: Rectangle) -> Layout:
        layout = self.files[rectangle].layout
        assert layout is not None
        return layout
