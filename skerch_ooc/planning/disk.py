"""Disk: how many files a run has, and how many bytes, from its lists of tasks.

Files are counted as a run has them when it is assessed, before anything is removed; of rounds that
may not come, at most. Vectors have as many columns as they may have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from skerch_ooc.base.noise_kinds import WHOLE_COLUMNS
from skerch_ooc.planning.memory import (
    RECHUNK_ABOVE,
    TallSizes,
    shard_bytes,
    sizes_of_basis,
    sizes_of_result,
    stored_bytes,
    tile_rows,
)
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import Side, height_of_noise, planned_sides, sums_bytes
from skerch_ooc.planning.spec import ROLES
from skerch_ooc.planning.tasks import later_measure_tasks, merge_runs, pieces_of, sums_groups

SEALED_BYTES = 2_100
"""Bytes of a sealed file besides its data: the seal, HDF5's own, what it is, and provenance."""

INDEX_FROM = 32
"""From so many column shards on a sketch has an index, which is read instead of what they state.

To write it takes a few milliseconds, to open a shard one, on a shared disk several.
"""

INDEX_WINDOW = 4096
"""So many checksums of a shard lie together in the index."""

CHECKSUM_BYTES = 11
"""Bytes that a sealed file takes for each tile."""

NOTED_BYTES = 6_000
"""Bytes of the JSON files of a run, and of the small arrays of its result."""

RECEIPT_BYTES = 480
"""Bytes that the log has for each task."""

NOTED = ("plan", "fingerprint", "places", "log of plans", "receipts", "listings", "assessment")
"""The JSON files of every run, but for its amendments."""

VECTOR_TILE_COLUMNS = 64
"""Tiles of the vectors are narrow, so that a few leading vectors are read without the rest."""

NOISE_TILE_COLUMNS = 8
"""Whole columns that are drawn at once; also the width of the tiles that keep them."""


@dataclass(frozen=True)
class Files:
    """Some files of a run.

    Attributes:
        count: How many.
        data: Bytes of their data.
        tiles: Tiles, each of which has a checksum.
    """

    count: int = 0
    data: int = 0
    tiles: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of sealed files, with what they say of themselves."""
        return self.data + self.count * SEALED_BYTES + self.tiles * CHECKSUM_BYTES


def total(found: Iterable[Files]) -> Files:
    """Adds files up."""
    each = list(found)
    return Files(*(sum(getattr(one, name) for one in each) for name in ("count", "data", "tiles")))


def run_files(plan: Plan) -> dict[str, Files]:
    """Counts the sealed files of a run, by what they are."""
    rounds = range(1, plan.rounds + 1)
    sides = [(number, side) for number in rounds for side in planned_sides(plan, number)]
    start = stored_bytes(plan, plan.identity.shape[1], plan.start_columns)
    return {
        "shards": column_shards(plan),
        "indexes": total(_index(plan, number) for number in rounds),
        "row shards": total(_row_shards(plan, *each) for each in sides),
        "partial sums": total(_partial_sums(plan, side) for _, side in sides),
        "sums": total(Files(1, sums_bytes(plan, side)) for _, side in sides),
        "test matrices": total(
            [*(_noise(plan, number) for number in rounds), Files(int(start > 0), start)]
        ),
        "bases": total(_basis(plan, number) for number in rounds[1:]),
        "result": _result(plan),
    }


def file_count(plan: Plan) -> int:
    """Counts all files of a run."""
    noted = len(NOTED) + len(plan.amendments) + len(plan.parts) - 1
    return noted + sum(files.count for files in run_files(plan).values())


def result_bytes(plan: Plan) -> int:
    """Returns the bytes of all files of a run, at most, but for the data of column shards."""
    found = run_files(plan)
    receipts = RECEIPT_BYTES * (found["shards"].count + 6 * plan.rounds)
    return sum(files.bytes for files in found.values()) - shard_bytes(plan) + NOTED_BYTES + receipts


def partial_sums_bytes(plan: Plan) -> int:
    """Returns the bytes of the partial sums of merge tasks, and of those that are added."""
    return run_files(plan)["partial sums"].bytes


def shards_of_round(plan: Plan, number: int) -> int:
    """Counts the column shards that the sketch of a round is put together from."""
    if number == 1:
        return len(plan.parts) * sum(plan.block_count(role) for role in ROLES)
    measured = {role for side in planned_sides(plan, number) for role in side.measured}
    earlier = sum(plan.block_count(role) for role in ROLES if role in measured)
    return later_measure_tasks(plan) + len(plan.parts) * earlier


def column_shards(plan: Plan) -> Files:
    """Counts the column shards of all rounds."""
    later = (plan.rounds - 1) * later_measure_tasks(plan)
    count = shards_of_round(plan, 1) + later
    height, width = plan.identity.shape
    return Files(count, shard_bytes(plan), count * len(plan.tiles(max(height, width))))


def opened_bytes(plan: Plan) -> int:
    """Returns the memory that a process holds of the column shards of a round, once all are open.

    Each tile has a checksum of four bytes. Of those in an index, some thousands of each shard are
    held at once.
    """
    most = max(shards_of_round(plan, number) for number in range(1, plan.rounds + 1))
    tiles = len(plan.tiles(max(plan.identity.shape)))
    held = tiles if most < INDEX_FROM else min(tiles, INDEX_WINDOW)
    return most * (OPENED_BYTES + 4 * held)


OPENED_BYTES = 6_000
"""Memory of an opened shard, besides its checksums."""


def _index(plan: Plan, number: int) -> Files:
    """Counts the index of a round, which has a checksum of four bytes for each tile."""
    shards, tiles = shards_of_round(plan, number), len(plan.tiles(max(plan.identity.shape)))
    if shards < INDEX_FROM:
        return Files()
    windows = -(-tiles // INDEX_WINDOW)
    stored = tiles if windows == 1 else windows * INDEX_WINDOW
    return Files(1, shards * (4 * stored + _INDEXED_BYTES), shards * windows)


_INDEXED_BYTES = 50
"""Bytes of an index for each shard, besides its checksums: its name, and where its data begin."""


def _row_shards(plan: Plan, number: int, side: Side) -> Files:
    if not side.measured or shards_of_round(plan, number) <= RECHUNK_ABOVE:
        return Files()
    columns = sum(map(len, side.measured.values()))
    tiles = len(plan.tiles(side.rows)) * len(side.measured)
    count = len(merge_runs(plan, side)) * len(side.measured)
    return Files(count, stored_bytes(plan, side.rows, columns), tiles)


def _partial_sums(plan: Plan, side: Side) -> Files:
    runs = merge_runs(plan, side)
    if len(runs) == 1:
        return Files()
    # A last run by itself is the same run of the level above.
    runs_of_levels = {run for level in (runs, *sums_groups(plan, side)) for run in level}
    count = len(runs_of_levels)
    return Files(count, count * sums_bytes(plan, side))


def _noise(plan: Plan, number: int) -> Files:
    """Counts the test matrices that are kept, as they can only be drawn by whole columns."""
    kept = {
        name: len(place)
        for side in planned_sides(plan, number)
        for name, place in side.noise.items()
        if plan.identity.noise.get(name) in WHOLE_COLUMNS
    }
    return total(
        _tall(plan, height_of_noise(plan, name), columns, NOISE_TILE_COLUMNS)
        for name, columns in kept.items()
    )


def _tall(plan: Plan, rows: int, columns: int, width: int, count: int = 1) -> Files:
    """Counts a tall matrix in tiles of some columns each; those at the edges are stored whole."""
    tiles, height = len(plan.tiles(rows)), tile_rows(plan, rows)
    if columns <= width:
        return Files(count, stored_bytes(plan, rows, columns), tiles)
    across = -(-columns // width)
    data = stored_bytes(plan, tiles * height, across * width)
    return Files(count, data, tiles * across)


def _basis(plan: Plan, number: int) -> Files:
    sizes = sizes_of_basis(plan, number)
    width = VECTOR_TILE_COLUMNS
    if plan.krylov is not None:
        width = plan.krylov.tile or width
    return total(_of_matrices(plan, [sizes], width))


def _result(plan: Plan) -> Files:
    if plan.recovery.vectors != "stored":
        return Files(1, sum(_factors_bytes(plan, sizes) for sizes in sizes_of_result(plan)))
    return total(_of_matrices(plan, sizes_of_result(plan), VECTOR_TILE_COLUMNS))


def _of_matrices(plan: Plan, matrices: list[TallSizes], width: int) -> Iterator[Files]:
    """Yields the file that tall matrices belong to, the matrices, and their recipe if in pieces."""
    pieces = [len(pieces_of(plan, sizes.rows, sizes.rank)) for sizes in matrices]
    yield Files(1)
    for sizes, count in zip(matrices, pieces, strict=True):
        yield _tall(plan, sizes.rows, sizes.rank, width, count if count > 1 else 0)
    if max(pieces) > 1:
        yield Files(1, sum(_factors_bytes(plan, sizes) for sizes in matrices))


def _factors_bytes(plan: Plan, sizes: TallSizes) -> int:
    """Returns the bytes of the transform of tall vectors, without a correction, and of weights."""
    return (sizes.columns + sizes.tests) * sizes.rank * plan.identity.wide_dtype.itemsize
