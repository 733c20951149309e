"""The measure tasks of a round whose shards are missing, without holding millions of them at once.

The plan cuts columns evenly into blocks, and the missing columns form a few ranges. So this module
keeps tasks as stretches of consecutive blocks, counts them by arithmetic, and makes each one when
it is taken.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from skerch_ooc.base.files import as_given
from skerch_ooc.base.partition import Range, tiles_of
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Cut
from skerch_ooc.stages.measure.shipping import Shipped, shipped_with
from skerch_ooc.store.sketch import Round

Blocks = tuple[tuple[str, int, int], ...]
"""Role, first column, and first column after it of each."""


def columns_of(blocks: Blocks) -> int:
    """How many columns some blocks have."""
    return sum(stop - start for _, start, stop in blocks)


@dataclass(frozen=True)
class MeasureTask:
    """The columns that one task measures with one part of the operator, as plain data.

    Attributes:
        run: The run directory.
        round: Number of the round.
        basis: The file of its test matrix, if that is a basis.
        part: Number of the part.
        blocks: Its blocks; several only where the part takes them together.
        device: The torch device.
        threads: Threads of the operator.
        number: The number of the task among all that are planned for the round.
        amendments: How many amendments the plan has.
        shipped: The file of the operator's factory, for workers that share a bucket alone.
    """

    run: str
    round: int
    basis: str | None
    part: int
    blocks: Blocks
    device: str
    threads: int
    number: int
    amendments: int = 0
    shipped: Shipped | None = None

    @property
    def columns(self) -> int:
        """The number of columns of all its blocks."""
        return columns_of(self.blocks)

    def __str__(self) -> str:
        blocks = ", ".join(f"columns {start}-{stop} of {role}" for role, start, stop in self.blocks)
        return blocks + (f" (part {self.part})" if self.part else "")


@dataclass(frozen=True)
class _Stretch:
    """Consecutive tasks of a part, of which all but the outermost are equally wide.

    Attributes:
        part: Number of the part.
        numbers: The numbers of the tasks.
        blocks: Tells what the task of a number is about.
    """

    part: int
    numbers: range
    blocks: Callable[[int], Blocks]

    @property
    def samples(self) -> list[tuple[Blocks, int]]:
        """The blocks of a task of each width, and how many tasks there are like it."""
        # Only the outermost blocks can be cut by a gap: the others are whole, and not visited.
        outer = sorted({self.numbers[0], self.numbers[-1]})
        samples = [(self.blocks(number), 1) for number in outer]
        if inside := self.numbers[1:-1]:
            samples.append((self.blocks(inside[0]), len(inside)))
        return samples


@dataclass(frozen=True)
class MissingTasks:
    """The tasks that are left, in order; iteration makes them one by one.

    Attributes:
        round: The round.
        device: The torch device.
        threads: Threads of the operator.
        stretches: The stretches of blocks that the tasks are made of.
        shipped: The files that travel with the tasks of some parts.
    """

    round: Round
    device: str
    threads: int
    stretches: Sequence[_Stretch]
    shipped: Mapping[int, Shipped] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(stretch.numbers) for stretch in self.stretches)

    def __iter__(self) -> Iterator[MeasureTask]:
        directory = str(as_given(self.round.run.directory))
        amendments = len(self.round.run.plan.amendments)
        for stretch in self.stretches:
            for number in stretch.numbers:
                yield MeasureTask(
                    run=directory,
                    round=self.round.number,
                    basis=self.round.basis_path,
                    part=stretch.part,
                    blocks=stretch.blocks(number),
                    device=self.device,
                    threads=self.threads,
                    number=number,
                    amendments=amendments,
                    shipped=self.shipped.get(stretch.part),
                )

    @property
    def parts(self) -> list[int]:
        """The numbers of the parts that the tasks are about."""
        return sorted({stretch.part for stretch in self.stretches})

    def with_factories(self) -> MissingTasks:
        """Returns the tasks as they are sent to other processes.

        Raises:
            OperatorError: If the file of a factory that has to travel with them cannot be found.
            UsageError: If it is too large.
        """
        return replace(self, shipped=shipped_with(self.round.run, self.parts))

    @property
    def columns(self) -> dict[tuple[int, str], int]:
        """The number of columns that are left, by part and role."""
        total: Counter[tuple[int, str]] = Counter()
        for stretch in self.stretches:
            for blocks, count in stretch.samples:
                for role, start, stop in blocks:
                    total[stretch.part, role] += count * (stop - start)
        return total

    @property
    def widest(self) -> Blocks:
        """The blocks of a task with the most columns."""
        samples = (blocks for stretch in self.stretches for blocks, _ in stretch.samples)
        return max(samples, key=columns_of)


def missing_tasks(
    round_: Round, device: str, threads: int, share: tuple[int, int] = (0, 1)
) -> MissingTasks:
    """Finds the tasks of a round that still have columns to measure.

    Args:
        round_: The round.
        device: The torch device.
        threads: Threads of the operator.
        share: A remainder and a divisor: only tasks whose number leaves that remainder are listed.
    """
    index, of = share
    stretches = []
    for stretch in _stretches(round_):
        numbers = stretch.numbers
        mine = range(numbers.start + (index - numbers.start) % of, numbers.stop, of)
        if mine:
            stretches.append(replace(stretch, numbers=mine))
    return MissingTasks(round_, device, threads, stretches)


def missing_numbers(round_: Round) -> Sequence[int]:
    """Lists the numbers of the tasks that still have columns to measure, ascending."""
    ranges = [stretch.numbers for stretch in _stretches(round_)]
    if all(before.stop == after.start for before, after in itertools.pairwise(ranges)):
        # Nothing is done, or all of what comes first: a range says it, as there may be millions.
        return range(ranges[0].start, ranges[-1].stop) if ranges else ()
    # A block of which two ranges are missing is two tasks of one number.
    return [number for number, _ in itertools.groupby(itertools.chain(*ranges))]


def _stretches(round_: Round) -> Iterator[_Stretch]:
    """Yields what is left, in the order of the tasks' numbers."""
    missing = {
        (strip.part, strip.role): ranges for strip, ranges in round_.missing_strips().items()
    }
    first = 0
    for part in round_.run.plan.parts:
        gaps = {role: missing[part.number, role] for role in round_.planned}
        if part.together:
            yield from _bundles(round_, part, gaps, first)
            first += max(sum(len(piece.blocks) for piece in round_.cuts(role)) for role in gaps)
            continue
        for role, ranges in gaps.items():
            for piece in round_.cuts(role):
                for gap in _common(ranges, piece.columns):
                    inside = tiles_of(gap.shifted(-piece.start), piece.width)
                    numbers = range(first + inside.start, first + inside.stop)
                    yield _Stretch(part.number, numbers, partial(_block, role, gap, piece, first))
                first += len(piece.blocks)


def _block(role: str, gap: Range, piece: Cut, first: int, number: int) -> Blocks:
    """What is missing of a block, where a cut begins with the block of number ``first``."""
    missing = piece.blocks[number - first].common(gap)
    return ((role, missing.start, missing.stop),)


def _bundles(
    round_: Round, part: Part, gaps: dict[str, list[Range]], first: int
) -> Iterator[_Stretch]:
    """Yields one bundle for each block number: the blocks of that number of all roles.

    Roles have different numbers of blocks: a role that has run out adds none.
    """
    numbered = itertools.zip_longest(*(_blocks_of(round_.cuts(role)) for role in gaps))
    for number, blocks in enumerate(numbered, first):
        bundle = tuple(
            (role, piece.start, piece.stop)
            for role, block in zip(gaps, blocks, strict=True)
            if block is not None
            for piece in _common(gaps[role], block)
        )
        if bundle:
            yield _Stretch(part.number, range(number, number + 1), {number: bundle}.__getitem__)


def _blocks_of(cuts: Sequence[Cut]) -> Iterator[Range]:
    return itertools.chain.from_iterable(piece.blocks for piece in cuts)


def _common(gaps: Sequence[Range], columns: Range) -> Iterator[Range]:
    """Yields the overlaps of a range of columns with gaps, which are disjoint and ascending."""
    # By bisection, as each of millions of blocks asks.
    position = max(0, bisect_right(gaps, columns.start, key=lambda gap: gap.start) - 1)
    while position < len(gaps) and gaps[position].start < columns.stop:
        if len(piece := gaps[position].common(columns)):
            yield piece
        position += 1
