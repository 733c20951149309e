"""Memory of each stage and bytes on disk, computed from the plan alone.

``plan`` predicts with the same functions with which a stage checks its memory before it begins.
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
    ADJOINT_ROLES,
    Side,
    dtype_of_part,
    height_of_role,
    is_adjoint,
    planned_sides,
    rows_of_part,
    sums_bytes,
)
from skerch_ooc.planning.spec import ROLES
from skerch_ooc.planning.tasks import measures_alone, run_exponent

RECHUNK_ABOVE = 128
"""With more column shards than this, the merge also writes row shards, which recovery then reads.

Otherwise recovery reads the column shards: writing the sketch again would cost more than it saves.
"""

SLAB_BYTES = 1 << 26
"""Most bytes of a slab, the rows of a matrix on disk that are in memory at once (at least one)."""

PROBES = 8
"""Number of random vectors from which the orthogonality of a result is estimated."""


WINDOWS = 2
"""Windows of each shard in an object store that are held: what is read now, and what is next."""

UNDER_WAY = 128 << 20
"""Most bytes of answers that are under way: of 8 requests of 8 MiB, twice while they come in."""


class Needed(NamedTuple):
    """The memory that a stream over tiles needs.

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
    """Returns the bytes of a matrix of the plan's dtype."""
    return rows * columns * plan.identity.itemsize


def tile_rows(plan: Plan, rows: int) -> int:
    """Returns the rows of the tallest tile of a matrix with ``rows`` rows."""
    return min(plan.identity.tile[0], rows)


def stage_bytes(plan: Plan) -> dict[str, int]:
    """Returns the memory that each stage needs at least, on top of its process's baseline."""
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


def window_bytes(plan: Plan) -> dict[str, int]:
    """Returns the memory of windows on shards in an object store, at least, for each stage.

    A window holds at least one tile of each shard that is read.
    """
    sides = [side for number in range(1, plan.rounds + 1) for side in planned_sides(plan, number)]
    merged = max(_row_bytes(plan, side.rows, side.columns) for side in sides)
    made = max(_row_bytes(plan, one.rows, one.columns + one.tests) for one in sizes_of_result(plan))
    shards = _bands(plan)
    return {"merge": held_by_windows(shards * merged), "recover": held_by_windows(shards * made)}


def held_by_windows(row_bytes: int) -> int:
    """Returns the memory that windows of one tile take, with as much that is under way.

    Args:
        row_bytes: Bytes of a row tile of all that is read.
    """
    return 2 * WINDOWS * row_bytes


def window_room(memory: int) -> int:
    """Returns what windows may hold of some memory, besides what is under way."""
    return max(memory - UNDER_WAY, memory // 2)


def _row_bytes(plan: Plan, rows: int, columns: int) -> int:
    return stored_bytes(plan, tile_rows(plan, rows), columns)


def _bands(plan: Plan) -> int:
    """Returns how many shards hold the same rows and columns, for they are parts of a sum."""
    if any(part.terms is not None and part.rows is None for part in plan.parts):
        return len(plan.parts)
    # A row tile may lie in two row ranges.
    return plan.summands * (2 if len(plan.parts) > plan.summands else 1)


# Measuring.


def block_bytes(shape: tuple[int, int], dtype: str) -> int:
    """Returns the bytes that each column of a block needs in the measuring process.

    They hold the test matrix, the product, and the previous block, which is still being written.
    The memory of the operator itself comes on top.
    """
    height, width = shape
    # The larger of a right block and a left one, whose products have the height and the width.
    return np.dtype(dtype).itemsize * max(width + 3 * height, height + 3 * width)


@dataclass(frozen=True)
class Reading:
    """How tasks that take all roles together read the rows of a matrix.

    Attributes:
        slab_bytes: Memory that two slabs take: the next one may be read while one is multiplied.
        turned: Whether rows are those of the transpose, so that both sides change their roles.
        alone: Whether a round has one such task, so that no other is still being written.
        terms: How many terms a task adds up.
    """

    slab_bytes: int = 2 * SLAB_BYTES
    turned: bool = False
    alone: bool = False
    terms: int = 1


def rows_bytes(
    size: tuple[int, int], dtype: str, columns: Mapping[str, int], reading: Reading
) -> int:
    """Returns the bytes of a task that measures all roles together, slab by slab of a matrix.

    Args:
        size: How many rows the part has, and the width of the operator.
        dtype: The dtype of its products.
        columns: How many columns the block of each role has.
        reading: How rows are read.
    """
    itemsize = np.dtype(dtype).itemsize
    wide = np.result_type(dtype, np.float64).itemsize
    left = sum(columns.get(role, 0) for role in ADJOINT_ROLES)
    forward = sum(columns.values()) - left
    rows, width = size
    if reading.turned:
        rows, width, left, forward = width, rows, forward, left
    # The vectors, as they are drawn and as they are applied; the products, and those of the task
    # before, which are still being written. Those of the transpose are made from others.
    kept = 1 if reading.alone and not reading.turned else 2
    needed = (2 * width + kept * rows) * forward * itemsize
    # Sums over slabs, over a few of them and over terms; and what is made of them.
    sums = max(2, levels(reading.terms)) + (0 if reading.alone else 1)
    needed += (sums * wide + itemsize) * width * left
    # Half as much again, as entries of another dtype are converted slab by slab.
    return needed + 3 * reading.slab_bytes // 2


def most_rows_bytes(
    size: tuple[int, int], dtype: str, columns: Mapping[str, int], reading: Reading,
    *, adjoint: bool,
) -> int:  # fmt: skip
    """Returns the most that :func:`rows_bytes` is in any round.

    Args:
        size: How many rows the part has, and the width of the operator.
        dtype: The dtype of its products.
        columns: How many columns the widest block of each role of the first round has.
        reading: How rows are read.
        adjoint: Whether a later round applies the adjoint to a basis.
    """
    rounds = [columns, {"left": columns["right"]}] if adjoint else [columns]
    return max(rows_bytes(size, dtype, each, reading) for each in rounds)


def measure_bytes(plan: Plan, reading: Reading = Reading()) -> int:
    """Returns the memory that measuring takes at most, besides the operator's own.

    Args:
        plan: The plan.
        reading: How the rows of an operator are read whose tasks take all roles together, with the
            terms of all of it.
    """
    return max(_part_bytes(plan, part, reading) for part in plan.parts)


def _part_bytes(plan: Plan, part: Part, reading: Reading) -> int:
    shape, dtype = plan.identity.shape, plan.identity.dtype
    widths = {role: plan.widest(role) for role in ROLES}
    if not part.together:
        return max(widths.values()) * block_bytes(shape, dtype)
    size = (len(rows_of_part(plan, part, "right", shape[0])), shape[1])
    adjoint = any(is_adjoint(plan, number) for number in range(2, plan.rounds + 1))
    terms = reading.terms if part.terms is None else len(part.terms)
    reading = dataclasses.replace(reading, alone=measures_alone(plan), terms=terms)
    return most_rows_bytes(size, dtype, widths, reading, adjoint=adjoint)


# Merging.


def merge_bytes(plan: Plan, side: Side) -> Needed:
    """Returns the memory that the merge of a side needs."""
    tiles, longest = len(plan.tiles(side.rows)), 1 << run_exponent(plan, side)
    partials = levels(min(tiles, longest)) + (
        levels(-(-tiles // longest)) if tiles > longest else 0
    )
    # On top of the tree's partial sums come a finished tile that waits for its turn and, if there
    # are several tasks, the sums of a task that are being published.
    waiting = 2 if tiles > longest else 1
    return Needed((partials + waiting) * sums_bytes(plan, side), _merge_tile_bytes(plan, side))


def _merge_tile_bytes(plan: Plan, side: Side) -> int:
    """Returns the bytes that one tile in flight needs, its sums included."""
    wide, rows = plan.identity.wide_dtype.itemsize, tile_rows(plan, side.rows)
    width = min(plan.identity.tile[1], max(1, side.noise_columns))
    narrow = plan.identity.itemsize
    # Besides the tile in double precision: the tile as it is read, or its digits (of the integer
    # products of signs), or the copies of it that a QR makes; and a temporary of one block.
    copies = 2 * wide if plan.identity.is_double else narrow
    adding = _adding_bytes(plan, rows, max(map(len, side.sketches.values()), default=0))
    own = rows * side.columns * (wide + copies) + 2 * rows * width * wide
    return own + adding + sums_bytes(plan, side)


def _adding_bytes(plan: Plan, rows: int, columns: int) -> int:
    """Returns the memory for reading a tile when sketches of several parts are added up.

    Args:
        plan: The plan in force.
        rows: How many rows the tile has.
        columns: How many columns the widest role has.
    """
    parts = [part for part in plan.parts if part.is_piece]
    if plan.summands == 1 and not parts:
        return 0
    arrays = 2 + (levels(len(parts)) + 1 if parts else 0)
    return arrays * rows * columns * plan.identity.wide_dtype.itemsize


# Recovering.


@dataclass(frozen=True)
class TallSizes:
    """Sizes of tall vectors ``(X transform) correction``, from which their memory follows.

    Attributes:
        rows: Height of the vectors.
        columns: Columns of the sketch or basis ``X``.
        rank: Number of vectors.
        tests: Columns of the test sketch with which they are multiplied.
        corrected: Whether there is a correction.
        family: How many columns of ``X`` are blocks, if the vectors are one: then sums of their
            products with ``X`` are formed.
    """

    rows: int
    columns: int
    rank: int
    tests: int = 0
    corrected: bool = True
    family: int = 0


def sizes_of_result(plan: Plan) -> list[TallSizes]:
    """Returns the largest sizes of the vectors of the planned result, the left ones first."""
    right, left, rank = plan.space, plan.reach("left"), plan.recovery.rank
    height, width = plan.identity.shape
    # Sketches of several rounds may have more columns than rows.
    kept = min(right, height, width) if rank == "all" else min(right, int(rank))
    # The blocks of krylov are near-orthonormal already.
    corrected = plan.krylov is None
    found = [TallSizes(height, right, kept, plan.reach("test"), corrected=corrected)]
    if plan.identity.kind == "svd":
        tests = plan.reach("test-left")
        found.append(TallSizes(width, left or right, kept, tests, corrected=corrected))
    return found


def sizes_of_basis(plan: Plan, number: int) -> TallSizes:
    """Returns the largest sizes of the basis that is the test matrix of a later round."""
    side, columns = planned_sides(plan, number - 1)[0], plan.later_columns
    if plan.krylov is not None:
        # A block is made of all blocks on its side, and of what is orthogonal to them.
        before = sum(len(place) for name, place in side.noise.items() if name != "test")
        corrected = plan.identity.is_double
        return TallSizes(side.rows, before + columns, columns, corrected=corrected, family=before)
    return TallSizes(side.rows, columns, columns, len(side.sketches.get("test", ())))


def solve_bytes(plan: Plan) -> int:
    """Returns the memory of the small problems: matrices ``(m, m)``, LAPACK's workspace too."""
    m, left = plan.space, max(plan.reach("left"), plan.inner)
    # Test vectors of several rounds have a metric, too.
    matrices = 13 if plan.keeps_sketches else 12
    return matrices * m * max(m, left) * plan.identity.wide_dtype.itemsize


def whole_bytes(plan: Plan) -> int:
    """Returns the same for the whole operator from the rounds of ``krylov``."""
    columns = plan.whole_space + plan.later_columns + plan.reach("test")
    return 12 * columns**2 * plan.identity.wide_dtype.itemsize


def _tall_bytes(plan: Plan, sizes: TallSizes, *, stored: bool) -> int:
    """Returns the memory for making vectors, correcting them, and writing them if ``stored``."""
    # What is never corrected has no stream for it: the pairs of krylov.
    corrected = sizes.corrected or sizes.family > 0
    return max(
        gram_bytes(plan, sizes).least if corrected else 0,
        vectors_bytes(plan, sizes).least if stored else 0,
    )


def vectors_bytes(plan: Plan, sizes: TallSizes) -> Needed:
    """Returns the memory of the stream that writes vectors."""
    wide, rows = plan.identity.wide_dtype.itemsize, tile_rows(plan, sizes.rows)
    figures = sizes.rank * (PROBES + sizes.tests + _metric_columns(sizes)) * wide
    adding = _adding_bytes(plan, rows, max(sizes.tests, sizes.columns))
    of_tile = _vectors_tile_bytes(plan, sizes) + 2 * rows * sizes.tests * wide + adding
    return _summed_bytes(plan, sizes, figures, of_tile)


def _metric_columns(sizes: TallSizes) -> int:
    """Returns how many columns the sums of a block have for each of its vectors."""
    return sizes.columns + sizes.rank if sizes.family else 0


def gram_bytes(plan: Plan, sizes: TallSizes) -> Needed:
    """Returns the memory of the stream that forms ``U^H U`` of vectors that are to be corrected."""
    gram = sizes.rank * (sizes.family + sizes.rank) * plan.identity.wide_dtype.itemsize
    adding = _adding_bytes(plan, tile_rows(plan, sizes.rows), sizes.columns)
    bare = dataclasses.replace(sizes, corrected=False)
    return _summed_bytes(plan, bare, gram, _vectors_tile_bytes(plan, bare) + adding)


def _vectors_tile_bytes(plan: Plan, sizes: TallSizes) -> int:
    """Returns the bytes of a tile of ``X`` and of a tile of vectors, as made and as stored."""
    wide, narrow = plan.identity.wide_dtype.itemsize, plan.identity.itemsize
    made = (1 + sizes.corrected + bool(sizes.family)) * sizes.rank * wide
    columns = sizes.columns * (wide + narrow) + made + 2 * sizes.rank * narrow
    return tile_rows(plan, sizes.rows) * columns


def _summed_bytes(plan: Plan, sizes: TallSizes, sums: int, of_tile: int) -> Needed:
    """Returns the memory of a stream whose tiles take ``of_tile`` bytes and give ``sums`` bytes."""
    factors = (sizes.columns + (sizes.rank if sizes.corrected else 0)) * sizes.rank
    transform = factors * plan.identity.wide_dtype.itemsize
    return Needed(transform + (levels(len(plan.tiles(sizes.rows))) + 2) * sums, of_tile + sums)


# On disk.


def shard_bytes(plan: Plan) -> int:
    """Returns the bytes of all column shards, at most."""
    return sum(
        len(rows_of_part(plan, part, role, height))
        * columns
        * np.dtype(dtype_of_part(plan, part, role)).itemsize
        for part in plan.parts
        for role, height, columns in _planned_roles(plan)
    )


def _planned_roles(plan: Plan) -> Iterator[tuple[str, int, int]]:
    """Yields the role, rows and columns of each sketch of all rounds."""
    for role in ROLES:
        yield role, height_of_role(plan, role), plan.reach(role)
    for number in range(2, plan.rounds + 1):
        role = f"round{number}"
        side = next(side for side in planned_sides(plan, number) if role in side.sketches)
        yield role, side.rows, plan.later_columns
