"""Bytes in memory and on disk that follow from the plan alone.

What ``plan`` foretells and what a stage asks for before it begins are the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from skerch_ooc.base.partition import levels
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import (
    Side,
    dtype_of_part,
    height_of_role,
    is_adjoint,
    planned_sides,
    rows_of_part,
    sums_bytes,
)
from skerch_ooc.planning.spec import ROLES
from skerch_ooc.planning.tasks import measure_tasks, run_exponent

RECHUNK_ABOVE = 128
"""With more column shards than this, the merge writes row shards for the recovery to read."""

SLAB_BYTES = 1 << 26
"""Rows that are in memory together have at most this size, unless one row is larger."""

PROBES = 8
"""Random vectors that the orthogonality is estimated from."""


class Needed(NamedTuple):
    """Memory of a stream over tiles.

    Attributes:
        fixed: Bytes that are needed once.
        per_tile: Bytes that each tile in flight needs.
    """

    fixed: int
    per_tile: int

    @property
    def least(self) -> int:
        """Bytes with one tile in flight."""
        return self.fixed + self.per_tile


def stored_bytes(plan: Plan, rows: int, columns: int) -> int:
    """Bytes of a matrix of the plan's dtype."""
    return rows * columns * plan.identity.itemsize


def tile_rows(plan: Plan, rows: int) -> int:
    """Rows of the highest tile of a matrix of so many rows."""
    return min(plan.identity.tile[0], rows)


def stage_bytes(plan: Plan) -> dict[str, int]:
    """The memory that each stage needs at least, besides what its process holds anyway."""
    sides = [side for number in range(1, plan.rounds + 1) for side in planned_sides(plan, number)]
    bases = [sizes_of_basis(plan, number) for number in range(2, plan.rounds + 1)]
    stored = plan.recovery.vectors == "stored"
    vectors = [_tall_bytes(plan, sizes, stored=stored) for sizes in sizes_of_result(plan)]
    return {
        "measure": measure_bytes(plan),
        "merge": max(
            [
                *(merge_bytes(plan, side).least for side in sides),
                *(_tall_bytes(plan, sizes, stored=True) for sizes in bases),
            ]
        ),
        "recover": max([solve_bytes(plan), *vectors]),
    }


# Measuring.


def block_bytes(shape: tuple[int, int], dtype: str) -> int:
    """Bytes that each column of a block needs in the measuring process.

    The test matrix, the product, and the block before it on its way to the disk; what the operator
    needs for itself comes on top.
    """
    height, width = shape
    return np.dtype(dtype).itemsize * max(width + 3 * height, height + 3 * width)


def rows_bytes(
    shape: tuple[int, int], dtype: str, rows: int, columns: Mapping[str, int], slab_bytes: int
) -> int:
    """Bytes that measuring roles together needs, while rows are in memory.

    Args:
        shape: Of the operator.
        dtype: Of its products.
        rows: Of the part.
        columns: Of the block of each role; those of an adjoint are called ``"left"``.
        slab_bytes: Memory that reading takes.
    """
    itemsize = np.dtype(dtype).itemsize
    wide = np.result_type(dtype, np.float64).itemsize
    left = columns.get("left", 0)
    forward = sum(columns.values()) - left
    # The vectors, as they are drawn and as they are applied; the products, those of the task
    # before on their way to the disk, and those of a slab; sums over slabs and over terms.
    needed = 2 * shape[1] * forward * itemsize + 2 * rows * forward * itemsize
    needed += (3 * wide + itemsize) * shape[1] * left
    # Entries of another type are converted slab by slab.
    return needed + 3 * slab_bytes // 2


def most_rows_bytes(
    shape: tuple[int, int], dtype: str, rows: int, columns: Mapping[str, int], *, adjoint: bool
) -> int:
    """Bytes that tasks need which take rows and all roles together, in whatever round.

    Args:
        shape: Of the operator.
        dtype: Of its products.
        rows: Of the part.
        columns: Of the widest block of each role of the first round.
        adjoint: Whether a later round applies the adjoint to a basis.
    """
    rounds = [columns, {"left": columns["right"]}] if adjoint else [columns]
    # Two slabs at a time.
    return max(rows_bytes(shape, dtype, rows, each, 2 * SLAB_BYTES) for each in rounds)


def measure_bytes(plan: Plan) -> int:
    """Memory that measuring takes at most, besides the operator's own."""
    return max(_part_bytes(plan, part) for part in plan.parts)


def _part_bytes(plan: Plan, part: Part) -> int:
    shape, dtype = plan.identity.shape, plan.identity.dtype
    widths = {role: plan.widest(role) for role in ROLES}
    if not part.together:
        return max(widths.values()) * block_bytes(shape, dtype)
    rows = len(rows_of_part(plan, part, "right", shape[0]))
    adjoint = any(is_adjoint(plan, number) for number in range(2, plan.rounds + 1))
    return most_rows_bytes(shape, dtype, rows, widths, adjoint=adjoint)


# Merging.


def merge_bytes(plan: Plan, side: Side) -> Needed:
    """Memory of a side's merge."""
    tiles, longest = len(plan.tiles(side.rows)), 1 << run_exponent(plan, side)
    partials = levels(min(tiles, longest)) + (
        levels(-(-tiles // longest)) if tiles > longest else 0
    )
    # More than the tree's partial sums: a finished tile that waits for its turn, and the sums of
    # a task that are being published.
    waiting = 2 if tiles > longest else 1
    return Needed((partials + waiting) * sums_bytes(plan, side), _merge_tile_bytes(plan, side))


def _merge_tile_bytes(plan: Plan, side: Side) -> int:
    """Bytes that one tile in flight needs, its sums included."""
    wide, rows = plan.identity.wide_dtype.itemsize, tile_rows(plan, side.rows)
    width = min(plan.identity.tile[1], max(1, side.noise_columns))
    narrow = plan.identity.itemsize
    # Besides the workspace: the tile as it is read, or its digits, or the copies of it that a QR
    # makes; a temporary of one block.
    copies = 2 * wide if plan.identity.is_double else narrow
    adding = _adding_bytes(plan, rows, max(map(len, side.sketches.values()), default=0))
    own = rows * side.columns * (wide + copies) + 2 * rows * width * wide
    return own + adding + sums_bytes(plan, side)


def _adding_bytes(plan: Plan, rows: int, columns: int) -> int:
    """Memory that reading a tile takes where sketches of several parts are added up.

    Args:
        plan: The plan in force.
        rows: Of the tile.
        columns: Of the widest role.
    """
    parts = [part for part in plan.parts if part.is_piece]
    if plan.summands == 1 and not parts:
        return 0
    arrays = 2 + (levels(len(parts)) + 1 if parts else 0)
    return arrays * rows * columns * plan.identity.wide_dtype.itemsize


# Recovering.


@dataclass(frozen=True)
class TallSizes:
    """Sizes of tall vectors ``(X transform) correction``, and of what is formed with them.

    Attributes:
        rows: Their height.
        columns: Columns of ``X``.
        rank: How many vectors.
        tests: Columns of the test sketch that they are compared with.
        corrected: Whether there is a correction.
    """

    rows: int
    columns: int
    rank: int
    tests: int = 0
    corrected: bool = True


def sizes_of_result(plan: Plan) -> list[TallSizes]:
    """The vectors of the planned result, as large as they may become: the left ones first."""
    right, left, rank = plan.reach("right"), plan.reach("left"), plan.recovery.rank
    kept = right if rank == "all" else min(right, int(rank))
    height, width = plan.identity.shape
    found = [TallSizes(height, right, kept, plan.reach("test"))]
    if plan.identity.kind == "svd":
        found.append(TallSizes(width, left or right, kept))
    return found


def sizes_of_basis(plan: Plan, number: int) -> TallSizes:
    """The basis that is the test matrix of a later round, as large as it may become."""
    side = planned_sides(plan, number - 1)[0]
    right = plan.reach("right")
    return TallSizes(side.rows, right, right, len(side.sketches.get("test", ())))


def solve_bytes(plan: Plan) -> int:
    """Memory of the small problems: a dozen matrices ``(m, m)``, LAPACK's workspace included."""
    m, left = plan.reach("right"), max(plan.reach("left"), plan.inner)
    return 12 * m * max(m, left) * plan.identity.wide_dtype.itemsize


def _tall_bytes(plan: Plan, sizes: TallSizes, *, stored: bool) -> int:
    """Memory of making vectors that may have to be corrected, and may be written."""
    return max(gram_bytes(plan, sizes).least, vectors_bytes(plan, sizes).least if stored else 0)


def vectors_bytes(plan: Plan, sizes: TallSizes) -> Needed:
    """Memory of the stream that writes vectors."""
    wide, rows = plan.identity.wide_dtype.itemsize, tile_rows(plan, sizes.rows)
    figures = sizes.rank * (PROBES + sizes.tests) * wide
    adding = _adding_bytes(plan, rows, max(sizes.tests, sizes.columns))
    of_tile = _vectors_tile_bytes(plan, sizes) + 2 * rows * sizes.tests * wide + adding
    return _summed_bytes(plan, sizes, figures, of_tile)


def gram_bytes(plan: Plan, sizes: TallSizes) -> Needed:
    """Memory of the stream that forms ``U^H U`` of vectors that are to be corrected."""
    gram = sizes.rank**2 * plan.identity.wide_dtype.itemsize
    adding = _adding_bytes(plan, tile_rows(plan, sizes.rows), sizes.columns)
    bare = dataclasses.replace(sizes, corrected=False)
    return _summed_bytes(plan, bare, gram, _vectors_tile_bytes(plan, bare) + adding)


def _vectors_tile_bytes(plan: Plan, sizes: TallSizes) -> int:
    """Bytes of a tile of ``X`` and of one of the vectors, as they are made and as they are kept."""
    wide, narrow = plan.identity.wide_dtype.itemsize, plan.identity.itemsize
    made = (2 if sizes.corrected else 1) * sizes.rank * wide
    columns = sizes.columns * (wide + narrow) + made + 2 * sizes.rank * narrow
    return tile_rows(plan, sizes.rows) * columns


def _summed_bytes(plan: Plan, sizes: TallSizes, sums: int, of_tile: int) -> Needed:
    """Memory of a stream whose tiles each give sums of so many bytes, besides their own."""
    factors = (sizes.columns + (sizes.rank if sizes.corrected else 0)) * sizes.rank
    transform = factors * plan.identity.wide_dtype.itemsize
    return Needed(transform + (levels(len(plan.tiles(sizes.rows))) + 2) * sums, of_tile + sums)


# On disk.


def shard_bytes(plan: Plan) -> int:
    """Bytes of all column shards, at most."""
    return sum(
        len(rows_of_part(plan, part, role, height))
        * columns
        * np.dtype(dtype_of_part(plan, part, role)).itemsize
        for part in plan.parts
        for role, height, columns in _planned_roles(plan)
    )


def _planned_roles(plan: Plan) -> Iterator[tuple[str, int, int]]:
    """The roles of all rounds, with the rows and the columns of their sketches."""
    for role in ROLES:
        yield role, height_of_role(plan, role), plan.reach(role)
    for number in range(2, plan.rounds + 1):
        (side,) = planned_sides(plan, number)
        yield f"round{number}", side.rows, plan.reach("right")


def result_bytes(plan: Plan) -> int:
    """Bytes of row shards, sums, bases and vectors, at most."""
    rounds = range(1, plan.rounds + 1)
    sums = sum(sums_bytes(plan, side) for number in rounds for side in planned_sides(plan, number))
    tall = [sizes_of_basis(plan, number) for number in rounds[1:]]
    if plan.recovery.vectors == "stored":
        tall += sizes_of_result(plan)
    rechunked = shard_bytes(plan) if measure_tasks(plan) > RECHUNK_ABOVE else 0
    return rechunked + sums + sum(stored_bytes(plan, sizes.rows, sizes.rank) for sizes in tall)
