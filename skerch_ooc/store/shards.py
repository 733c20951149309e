"""Shards: rectangles of a sketch in sealed files; publishing, listing, opening and missing ones.

One task publishes each shard. A shard states what it is (run, role, part, columns, rows), never how
large the plan is. Its name states the same as its identity. So the listing of a folder is the state
of the work, and a shard that was renamed or swapped is noticed when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError, OperatorError
from skerch_ooc.base.files import digest, list_names, versions_in
from skerch_ooc.base.partition import Range, cover, gaps
from skerch_ooc.base.patience import looks_for_late_files
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import dtype_of_part, rows_of_part
from skerch_ooc.store import names
from skerch_ooc.store.anew import measured_anew, merge_command, merged_anew
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile, sealed_writer


@dataclass(frozen=True, order=True)
class Rectangle:
    """Some rows and columns of a sketch: those that a shard holds, or that are planned for a part.

    The rectangle of all planned columns of a role, for one part of the operator, is a *strip*.

    Attributes:
        role: The test matrix that its columns belong to.
        part: The number of the part of the operator; 0 for most.
        columns: Columns of the role.
        rows: Rows of the sketch: all rows that the part makes, or adds to.
    """

    role: str
    part: int
    columns: Range
    rows: Range

    @property
    def strip(self) -> tuple[str, int, Range]:
        """Role, part and rows, which all rectangles of a strip have in common."""
        return self.role, self.part, self.rows

    @property
    def name(self) -> str:
        """The file name of the shard."""
        return names.COLUMN_SHARD.name(
            role=self.role, part=self.part, columns=self.columns, rows=self.rows
        )

    @classmethod
    def from_name(cls, name: str) -> Rectangle | None:
        """Returns the rectangle that a file name states; ``None`` if it is no shard's name."""
        values = names.COLUMN_SHARD.values(name)
        if values is None:
            return None
        columns, rows = (Range(*map(int, values[key].split("-"))) for key in ("columns", "rows"))
        return cls(values["role"], int(values["part"]), columns, rows)

    def identity(self, run_id: str) -> dict[str, Any]:
        """Makes the identity of the shard, without the description of its data."""
        return names.COLUMN_SHARD.identity(
            run_id, role=self.role, part=self.part, columns=self.columns, rows=self.rows
        )


def publish_shard(
    folder: Path, plan: Plan, rectangle: Rectangle, array: Array, provenance: Mapping[str, Any]
) -> bool:
    """Publishes a block of a sketch as a shard.

    Args:
        folder: The folder of the shard.
        plan: The plan in force.
        rectangle: The rows and columns of the block, its role and its part.
        array: The block, ``(len(rectangle.rows), len(rectangle.columns))``.
        provenance: Times, hosts, versions.

    Returns:
        Whether this call published it; the first publication wins.

    Raises:
        OperatorError: If the block holds NaN or infinity; nothing is published.
        IncompleteError: If it cannot be written.
        CorruptError: If the bytes on the disk are not those that were written.
    """
    require_finite(array, rectangle)
    layout = shard_layout(plan, rectangle, shard_dtype(plan, rectangle))
    with sealed_writer(folder / rectangle.name, layout) as writer:
        for number in range(layout.grid[0]):
            writer.write_rows(number, array[layout.rows(number).slice])
        return writer.publish(rectangle.identity(plan.run_id), provenance=provenance)


def shard_dtype(plan: Plan, rectangle: Rectangle) -> str:
    """Returns the dtype of a shard: the plan's, or double where other parts are added to it."""
    part = plan.parts[rectangle.part] if rectangle.part < len(plan.parts) else Part()
    return dtype_of_part(plan, part, rectangle.role)


def shard_layout(plan: Plan, rectangle: Rectangle, dtype: str) -> Layout:
    """Returns the layout of a shard: contiguous, with a checksum for each row tile."""
    width = len(rectangle.columns)
    return Layout(
        name=rectangle.role,
        shape=(len(rectangle.rows), width),
        dtype=dtype,
        tile=(plan.identity.tile[0], width),
    )


def require_finite(array: Array, rectangle: Rectangle) -> None:
    """Refuses a block with NaN or infinity.

    Raises:
        OperatorError: If it has any; names role and columns.
    """
    # The sum of a column is finite only if all of its entries are, and summing needs no temporary
    # array. As a sum of finite entries may overflow, the exact test follows if one is not finite.
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
    """Lists the shards in a folder, by their names alone, in order."""
    try:
        return shards_among(list_names(folder))
    except FileNotFoundError:
        return []


def shards_among(names: Iterable[str]) -> list[Rectangle]:
    """Returns the shards that are among some names, in order."""
    found = (Rectangle.from_name(name) for name in names)
    return sorted(rectangle for rectangle in found if rectangle is not None)


def are_there(folder: Path, rectangles: Iterable[Rectangle]) -> bool:
    """Whether all given shards are in a folder, by their names alone."""
    wanted = [rectangle.name for rectangle in rectangles]
    return versions_in(folder, wanted).keys() >= set(wanted)


def listing_of(folder: Path, rectangles: Iterable[Rectangle]) -> str:
    """Hashes names, sizes and times of shards, so that another set of shards is noticed."""
    versions = versions_in(folder, (rectangle.name for rectangle in rectangles))
    return digest([[name, *version] for name, version in versions.items()])


def bytes_of(folder: Path, rectangles: Iterable[Rectangle]) -> int:
    """Returns the bytes of shards; those that are gone count 0."""
    sizes = versions_in(folder, (rectangle.name for rectangle in rectangles))
    return sum(int(str(size)) for size, _ in sizes.values())


def strangers(folder: Path) -> list[str]:
    """Lists the names in a folder of shards that are no shard's, without private files."""
    return strange_names(list_names(folder))


def strange_names(names: Iterable[str]) -> list[str]:
    """Returns those of some names that are no shard's, and no private file's."""
    return sorted(
        name for name in names if not name.startswith(".") and Rectangle.from_name(name) is None
    )


def strip_of(plan: Plan, part: Part, role: str, columns: Range, height: int) -> Rectangle:
    """Makes the strip of a role and a part.

    Args:
        plan: The plan in force.
        part: The part.
        role: The role.
        columns: The planned columns of the role.
        height: How many rows the sketch of the role has.
    """
    return Rectangle(role, part.number, columns, rows_of_part(plan, part, role, height))


def missing_of(
    strips: Iterable[Rectangle], shards: Iterable[Rectangle]
) -> dict[Rectangle, list[Range]]:
    """Returns the columns of each strip that no shard holds."""
    return {
        strip: gaps(strip.columns, [shard.columns for shard in members])
        for strip, members in by_strip(strips, shards).items()
    }


def of_strips(strips: Iterable[Rectangle], shards: Iterable[Rectangle]) -> list[Rectangle]:
    """Returns the shards that belong to a strip, in order."""
    wanted = {strip.strip for strip in strips}
    return [shard for shard in shards if shard.strip in wanted]


def by_strip(
    strips: Iterable[Rectangle], shards: Iterable[Rectangle]
) -> dict[Rectangle, list[Rectangle]]:
    """Groups shards by strip: those with the role, the part and just the rows of each."""
    present: dict[tuple[str, int, Range], list[Rectangle]] = {}
    for shard in shards:
        present.setdefault(shard.strip, []).append(shard)
    return {strip: present.get(strip.strip, []) for strip in strips}


def used_shards(strips: Iterable[Rectangle], shards: Iterable[Rectangle]) -> list[Rectangle]:
    """Returns the shards, in order, of which columns are used; strips must be covered by them."""
    used = {
        members[index]
        for strip, members in by_strip(strips, shards).items()
        for _, index in cover(strip.columns, [shard.columns for shard in members])
    }
    return sorted(used)


def by_role(missing: Mapping[Rectangle, Sequence[Range]]) -> dict[str, list[Range]]:
    """Returns the columns of each role that some part lacks, in order, overlaps joined."""
    lacking: dict[str, list[Range]] = {strip.role: [] for strip in missing}
    for strip, ranges in missing.items():
        lacking[strip.role] += ranges
    return {role: _joined(ranges) for role, ranges in lacking.items()}


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for piece in sorted(ranges):
        if joined and piece.start < joined[-1].stop:
            piece = Range(joined[-1].start, max(joined[-1].stop, piece.stop))
            joined.pop()
        joined.append(piece)
    return joined


def wait_for_columns(run: Run, strips: Sequence[Rectangle]) -> list[Rectangle]:
    """Returns the column shards that make up a sketch, once all are there.

    Args:
        run: The run.
        strips: The strips of the sketch, one for each role and part.

    Raises:
        IncompleteError: If columns are missing even after a pause for files that appear late.
    """
    for _ in looks_for_late_files():
        shards = list_shards(run.shards)
        missing = missing_of(strips, shards)
        if not any(missing.values()):
            return of_strips(strips, shards)
    several = len({strip.part for strip in strips}) > 1
    lacking = [
        (f"part {strip.part}: " if several else "")
        + f"{strip.role} {', '.join(map(str, ranges[:4]))}{', ...' if len(ranges) > 4 else ''}"
        for strip, ranges in missing.items()
        if ranges
    ]
    count = sum(len(piece) for ranges in missing.values() for piece in ranges)
    total = sum(len(strip.columns) for strip in strips)
    shown = "; ".join(lacking[:8]) + ("; ..." if len(lacking) > 8 else "")
    raise IncompleteError(
        f"{count} of {total} columns are not measured yet ({shown}); "
        f"measure them with: {run.how_to_measure()}"
    )


def open_shard(run: Run, folder: Path, rectangle: Rectangle) -> SealedFile:
    """Opens a shard and checks that it is what its name says, and of this run.

    Raises:
        CorruptError: If it is not, or is damaged, or is a link; says how it is made anew.
        IncompleteError: If it is gone.
    """
    path, merged = folder / rectangle.name, folder != run.shards
    try:
        advice = merged_anew(path) if merged else measured_anew(run, path)
        file = SealedFile(path, advice, keep=True)
        check_identity(file, rectangle, run.plan, merged=merged)
    except FileNotFoundError:
        again = merge_command(run.directory) if merged else run.how_to_measure(rectangle.part)
        raise IncompleteError(f"{path} is gone; make it again with: {again}") from None
    return file


def check_identity(
    file: SealedFile, rectangle: Rectangle, plan: Plan, *, merged: bool = False
) -> None:
    """Checks that an opened shard is the wanted rectangle of this run.

    Args:
        file: The shard.
        rectangle: The rectangle that it should hold.
        plan: The plan in force.
        merged: Whether it is a row shard of a merged sketch, of all parts.

    Raises:
        CorruptError: If it is not; names the file and both values.
    """
    stated = {key: value for key, value in file.identity.items() if key != "bulk"}
    wanted = rectangle.identity(plan.run_id)
    if stated.get("run") != plan.run_id:
        raise CorruptError(
            f"{file.path} belongs to another run ({str(stated.get('run'))[:16]}..., "
            f"this one is {plan.run_id[:16]}...){file.advice}"
        )
    if stated != wanted:
        different = [key for key in wanted if stated.get(key) != wanted[key]]
        raise CorruptError(
            f"{file.path} holds something else than its name says: "
            + ", ".join(f"{key} {stated.get(key)} instead of {wanted[key]}" for key in different)
            + f" (it may have been renamed or swapped){file.advice}"
        )
    dtype = plan.identity.dtype if merged else shard_dtype(plan, rectangle)
    if file.layout != shard_layout(plan, rectangle, dtype):
        raise CorruptError(f"{file.path} is not laid out as this plan's shards are{file.advice}")
