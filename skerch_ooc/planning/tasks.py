"""Tasks of the stages, from the plan alone: how many there are, and which row tiles each takes."""

from __future__ import annotations

from collections.abc import Iterable

from skerch_ooc.base.partition import Range, aligned_runs, cut
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import Side, sums_bytes
from skerch_ooc.planning.spec import ROLES

SMALLEST_RUN = 5
"""The ``j`` of the smallest tasks of the merge and of the vectors, which have ``2**j`` tiles."""

ADDED_AT_ONCE = 16
"""So many partial sums one task adds: a power of two, as they are added in the fixed tree."""


def measure_tasks(plan: Plan) -> int:
    """Counts the tasks that measure all rounds; each leaves a shard of every role it takes."""
    counts = [plan.block_count(role) for role in ROLES]
    first = sum(max(counts) if part.together else sum(counts) for part in plan.parts)
    return first + (plan.rounds - 1) * later_measure_tasks(plan)


def measures_alone(plan: Plan) -> bool:
    """Whether one task at a time measures: the columns that an amendment adds, or a round."""
    cuts = (cut for amendment in plan.amendments for cut in amendment.blocks.values())
    first = len(plan.parts) == 1 and all(len(cut.blocks) <= 1 for cut in cuts)
    return first and (plan.rounds == 1 or later_measure_tasks(plan) == 1)


def later_measure_tasks(plan: Plan) -> int:
    """Counts the tasks that measure a later round, at most."""
    blocks = plan.block_count("right")
    if plan.krylov is not None:
        blocks = -(-plan.later_columns // plan.block_width)
    return len(plan.parts) * blocks


def _exponent(plan: Plan, columns: int, sums: int) -> int:
    """Returns the ``j`` of runs of ``2**j`` tiles whose sums are below a tenth of their data.

    Each run publishes its sums; with shorter runs they could take as much disk as the data.
    """
    tile = plan.identity.tile[0] * columns * plan.identity.itemsize
    # The smallest j with 2^j tiles above ten times the sums.
    return max(SMALLEST_RUN, (10 * sums // tile).bit_length())


def run_exponent(plan: Plan, side: Side) -> int:
    """Returns the ``j`` of a side's merge tasks, which are runs of ``2**j`` tiles."""
    return _exponent(plan, side.columns, sums_bytes(plan, side))


def merge_runs(plan: Plan, side: Side) -> list[Range]:
    """Returns the aligned runs of tiles that are the merge tasks of a side."""
    return list(aligned_runs(len(plan.tiles(side.rows)), run_exponent(plan, side)))


def sums_groups(plan: Plan, side: Side) -> list[list[Range]]:
    """Returns the runs of tiles whose partial sums tasks add, level by level.

    A run of a level is that of 16 runs of the level below it; those of the lowest are of 16 merge
    tasks each. So none adds more than 16, the process that adds the last ones neither.
    """
    runs, found = merge_runs(plan, side), []
    while len(runs) > ADDED_AT_ONCE:
        runs = cut(Range(0, runs[-1].stop), len(runs[0]) * ADDED_AT_ONCE)
        found.append(runs)
    return found


def merge_tasks(plan: Plan, sides: Iterable[Side]) -> list[int]:
    """Returns the numbers of the merge tasks of a round that are spread over workers.

    The task of a side that has only one is left out.
    """
    numbers: list[int] = []
    before = 0
    for side in sides:
        runs = merge_runs(plan, side)
        numbers += range(before, before + len(runs)) if len(runs) > 1 else ()
        before += len(runs)
    return numbers


def pieces_of(plan: Plan, rows: int, rank: int) -> list[Range]:
    """Returns the aligned runs of tiles that vectors are cut into, one for each file."""
    gram = rank**2 * plan.identity.wide_dtype.itemsize
    return list(aligned_runs(len(plan.tiles(rows)), _exponent(plan, rank, gram)))


def may_be_in_pieces(plan: Plan) -> bool:
    """Whether vectors of the run may be written in several pieces, for some rank."""
    return len(plan.tiles(max(plan.identity.shape))) > 1 << SMALLEST_RUN


def vector_tasks(plan: Plan) -> int:
    """Counts the tasks that the vectors of a run have at most; 0 if one file can hold them."""
    rows, rank = max(plan.identity.shape), _most_vectors(plan)
    if len(pieces_of(plan, rows, rank)) == 1:
        return 0
    sides = 1 if plan.identity.kind == "eigh" else 2
    return sides * -(-len(plan.tiles(rows)) // (1 << SMALLEST_RUN))


def _most_vectors(plan: Plan) -> int:
    """Returns how many vectors a result or a basis of the run has at most."""
    if plan.krylov is None:
        return min(plan.space, *plan.identity.shape)
    rank = plan.recovery.rank
    return max(plan.later_columns, rank if isinstance(rank, int) else plan.space)
