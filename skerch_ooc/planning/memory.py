"""Bytes, and numbers of tasks, that follow from the plan alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from skerch_ooc.base.partition import Range, aligned_runs, levels
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import Side

SMALLEST_RUN = 5
"""A merge task has at least 2**5 tiles."""

RECHUNK_ABOVE = 128
"""With more column shards than this, the merge writes row shards for the recovery to read."""


def run_exponent(plan: Plan, side: Side) -> int:
    """Merge tasks are runs of ``2**j`` tiles, so long that sums stay below a tenth of the data."""
    tile = plan.identity.tile[0] * side.columns * np.dtype(plan.identity.dtype).itemsize
    return max(SMALLEST_RUN, (10 * sums_bytes(plan, side) // tile).bit_length())


def merge_bytes(plan: Plan, side: Side) -> tuple[int, int]:
    """Memory of a side's merge: bytes needed once, and bytes for each tile in flight."""
    tiles, longest = len(plan.tiles(side.rows)), 1 << run_exponent(plan, side)
    partials = levels(min(tiles, longest)) + (
        levels(-(-tiles // longest)) if tiles > longest else 0
    )
    # More than the tree's partial sums: a finished tile that waits for its turn, and the sums of
    # a task that are being published.
    waiting = 2 if tiles > longest else 1
    return (partials + waiting) * sums_bytes(plan, side), tile_bytes(plan, side)


def merge_tasks(plan: Plan, sides: Iterable[Side]) -> list[int]:
    """Numbers of the merge tasks of a round; those of sides that are one task are not spread."""
    numbers: list[int] = []
    before = 0
    for side in sides:
        runs = list(aligned_runs(len(plan.tiles(side.rows)), run_exponent(plan, side)))
        numbers += range(before, before + len(runs)) if len(runs) > 1 else ()
        before += len(runs)
    return numbers


def is_double(plan: Plan) -> bool:
    """Whether the products are in double precision."""
    return plan.identity.dtype in ("float64", "complex128")


def wide_dtype(plan: Plan) -> np.dtype[Any]:
    """The dtype of the accumulators: float64, or complex128."""
    return np.result_type(plan.identity.dtype, np.float64)


def sums_bytes(plan: Plan, side: Side) -> int:
    """Bytes of the accumulators of a side."""
    return (side.columns + side.noise_columns) * side.columns * wide_dtype(plan).itemsize


def tile_bytes(plan: Plan, side: Side) -> int:
    """Bytes that one tile in flight needs, its sums included."""
    columns, wide = side.columns, wide_dtype(plan).itemsize
    rows = min(plan.identity.tile[0], side.rows)
    width = min(plan.identity.tile[1], max(1, side.noise_columns))
    narrow = np.dtype(plan.identity.dtype).itemsize
    # Besides the workspace: the tile as it is read, or its digits, or the copies of it that a QR
    # makes; a temporary of one block.
    copies = 2 * wide if is_double(plan) else narrow
    adding = adding_bytes(plan, rows, max(map(len, side.sketches.values()), default=0))
    own = rows * columns * (wide + copies) + 2 * rows * width * wide
    return own + adding + sums_bytes(plan, side)


SMALLEST_PIECE = 5
"""A piece has at least 2**5 tiles."""


def runs_of(plan: Plan, rows: int, rank: int) -> list[Range]:
    """The runs of tiles that a matrix is cut into; one, if it is no larger than that.

    They are aligned runs of ``2**j`` tiles, so long that Gram matrices stay below a tenth of the
    data.
    """
    tile = plan.identity.tile[0] * rank * np.dtype(plan.identity.dtype).itemsize
    gram = rank**2 * wide_dtype(plan).itemsize
    exponent = max(SMALLEST_PIECE, (10 * gram // tile).bit_length())
    return list(aligned_runs(len(plan.tiles(rows)), exponent))


def may_be_in_pieces(plan: Plan) -> bool:
    """Whether any matrix of the run can be, whatever its rank."""
    return len(plan.tiles(max(plan.identity.shape))) > 1 << SMALLEST_PIECE


def vector_tasks(plan: Plan) -> int:
    """How many tasks vectors of the run have at most; 0 if they may turn out to be one file."""
    rows, rank = max(plan.identity.shape), plan.reach("right")
    if len(runs_of(plan, rows, rank)) == 1:
        return 0
    sides = 1 if plan.identity.kind == "eigh" else 2
    return sides * -(-len(plan.tiles(rows)) // (1 << SMALLEST_PIECE))


def block_bytes(shape: tuple[int, int], itemsize: int) -> int:
    """Bytes that each column of a block needs in the measuring process.

    The test matrix, the product, and the block before it on its way to the disk; what the operator
    needs for itself comes on top.
    """
    height, width = shape
    return itemsize * max(width + 3 * height, height + 3 * width)


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


SLAB_BYTES = 1 << 26
"""Rows that are in memory together have at most this size, unless one row is larger."""


def adding_bytes(plan: Plan, rows: int, columns: int) -> int:
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
    return arrays * rows * columns * np.result_type(plan.identity.dtype, np.float64).itemsize


def solve_bytes(plan: Plan) -> int:
    """Memory of the small problems: a dozen matrices ``(m, m)``, LAPACK's workspace included."""
    m, left = plan.reach("right"), max(plan.reach("left"), plan.inner)
    return 12 * m * max(m, left) * wide_dtype(plan).itemsize
