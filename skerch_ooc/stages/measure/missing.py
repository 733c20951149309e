"""Which tasks of a round are left to be measured, without making millions of them at once.

Blocks are cut evenly, and what is missing are few ranges of columns. So the tasks are kept as
stretches of consecutive blocks, counted by arithmetic, and made one by one as they are taken.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from skerch_ooc.base.partition import Range, tile, tiles_of
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Cut
from skerch_ooc.store.sketch import Round

Blocks = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class MeasureTask:
    """Columns to be measured with a part of the operator: a path and a few numbers.

    Attributes:
        run: The run directory.
        round: Number of the round.
        basis: The file of its test matrix, if that is a basis.
        part: Number of the part.
        blocks: Role, first column, and first column after it of each block; several only where the
            part takes them together.
        device: The torch device.
        threads: Threads of the operator.
        number: Of the block among all that are planned for the round.
    """

    run: str
    round: int
    basis: str | None
    part: int
    blocks: Blocks
    device: str
    threads: int
    number: int

    @property
    def columns(self) -> int:
        """How many columns it has."""
        return sum(stop - start for _, start, stop in self.blocks)

    def __str__(self) -> str:
        blocks = ", ".join(f"columns {start}-{stop} of {role}" for role, start, stop in self.blocks)
        return blocks + (f" (part {self.part})" if self.part else "")


@dataclass(frozen=True)
class _Even:
    """Blocks of one role, of which a range of columns is missing.

    Attributes:
        part: Number of the part.
        role: The role.
        gap: The missing columns, within those that are cut.
        cut: How the columns are cut.
        numbers: Of the tasks.
        first: Number of the first block of the cut.
    """

    part: int
    role: str
    gap: Range
    cut: Cut
    numbers: range
    first: int

    def _piece(self, number: int) -> Range:
        block = tile(self.cut.columns, self.cut.width, number - self.first)
        return block.common(self.gap)

    def blocks(self, number: int) -> Blocks:
        """What the task of a number is about."""
        piece = self._piece(number)
        return ((self.role, piece.start, piece.stop),)

    def columns(self) -> dict[str, int]:
        """The columns of all tasks, by role: all but the outermost blocks are whole."""
        outer = {self.numbers[0], self.numbers[-1]}
        inside = len(self.numbers) - len(outer)
        total = sum(len(self._piece(number)) for number in outer) + inside * self.cut.width
        return {self.role: total}

    def widest(self) -> int:
        """The number of a task with the most columns."""
        some: set[int] = {*self.numbers[:2], self.numbers[-1]}
        return max(sorted(some), key=lambda number: len(self._piece(number)))


@dataclass(frozen=True)
class _Bundle:
    """Blocks of several roles that a part takes together: one task.

    Attributes:
        part: Number of the part.
        bundle: The blocks.
        numbers: Of the task.
    """

    part: int
    bundle: Blocks
    numbers: range

    def blocks(self, number: int) -> Blocks:  # noqa: ARG002 (there is but one)
        """See :class:`_Even`."""
        return self.bundle

    def columns(self) -> dict[str, int]:
        """See :class:`_Even`."""
        return {role: stop - start for role, start, stop in self.bundle}

    def widest(self) -> int:
        """See :class:`_Even`."""
        return self.numbers[0]


_Stretch = _Even | _Bundle
"""Consecutive tasks of a part."""


@dataclass(frozen=True)
class MissingTasks:
    """Tasks that are left, in order; iterating makes them one by one.

    Attributes:
        round: The round.
        device: The torch device.
        threads: Threads of the operator.
        stretches: What they are made of.
    """

    round: Round
    device: str
    threads: int
    stretches: Sequence[_Stretch]

    def __len__(self) -> int:
        return sum(len(stretch.numbers) for stretch in self.stretches)

    def __iter__(self) -> Iterator[MeasureTask]:
        for stretch in self.stretches:
            for number in stretch.numbers:
                yield self._task(stretch, number)

    def _task(self, stretch: _Stretch, number: int) -> MeasureTask:
        directory, basis = self._paths
        return MeasureTask(
            run=directory,
            round=self.round.number,
            basis=basis,
            part=stretch.part,
            blocks=stretch.blocks(number),
            device=self.device,
            threads=self.threads,
            number=number,
        )

    @cached_property
    def _paths(self) -> tuple[str, str | None]:
        """The run directory, and the file of the basis."""
        basis = self.round.basis
        return (
            str(self.round.run.directory.resolve()),
            str(basis.file.path.resolve()) if basis else None,
        )

    @property
    def columns(self) -> dict[tuple[int, str], int]:
        """How many columns are left, by part and role."""
        total: dict[tuple[int, str], int] = {}
        for stretch in self.stretches:
            for role, count in stretch.columns().items():
                total[stretch.part, role] = total.get((stretch.part, role), 0) + count
        return total

    @property
    def widest(self) -> MeasureTask:
        """A task with the most columns."""
        tasks = (self._task(stretch, stretch.widest()) for stretch in self.stretches)
        return max(tasks, key=lambda task: task.columns)


def missing_tasks(
    round_: Round, device: str, threads: int, share: tuple[int, int] = (0, 1)
) -> MissingTasks:
    """The blocks of a round of which something is not published yet.

    Args:
        round_: The round.
        device: The torch device.
        threads: Threads of the operator.
        share: Only tasks whose number leaves the first, divided by the second.
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
    """The numbers of the tasks of a round of which something is not published yet, ascending."""
    ranges = [stretch.numbers for stretch in _stretches(round_)]
    if all(before.stop == after.start for before, after in itertools.pairwise(ranges)):
        # Nothing is done, or all of what comes first: there may be millions.
        return range(ranges[0].start, ranges[-1].stop) if ranges else ()
    # A block of which two ranges are missing is two tasks of one number.
    return [number for number, _ in itertools.groupby(itertools.chain(*ranges))]


def _stretches(round_: Round) -> Iterator[_Stretch]:
    """What is left, in the order of the tasks' numbers."""
    missing = {
        (strip.part, strip.role): ranges for strip, ranges in round_.missing_strips().items()
    }
    first = 0
    for part in round_.run.plan.parts:
        gaps = {role: missing[part.number, role] for role in round_.planned}
        if part.together:
            yield from _bundles(round_, part, gaps, first)
            first += max(sum(piece.count for piece in round_.cuts(role)) for role in gaps)
            continue
        for role, ranges in gaps.items():
            for piece in round_.cuts(role):
                for gap in _common(ranges, piece.columns):
                    inside = tiles_of(gap.shifted(-piece.start), piece.width)
                    numbers = range(first + inside.start, first + inside.stop)
                    yield _Even(part.number, role, gap, piece, numbers, first)
                first += piece.count


def _bundles(
    round_: Round, part: Part, gaps: dict[str, list[Range]], first: int
) -> Iterator[_Bundle]:
    """The blocks of equal number; roles have as many of them, or none any more."""
    numbered = itertools.zip_longest(*(_blocks_of(round_.cuts(role)) for role in gaps))
    for number, blocks in enumerate(numbered, first):
        bundle = tuple(
            (role, piece.start, piece.stop)
            for role, block in zip(gaps, blocks, strict=True)
            if block is not None
            for piece in _common(gaps[role], block)
        )
        if bundle:
            yield _Bundle(part.number, bundle, range(number, number + 1))


def _blocks_of(cuts: Sequence[Cut]) -> Iterator[Range]:
    for piece in cuts:
        for number in range(piece.count):
            yield tile(piece.columns, piece.width, number)


def _common(gaps: Sequence[Range], columns: Range) -> Iterator[Range]:
    """What disjoint ranges in order have in common with another."""
    position = max(0, bisect_right(gaps, columns.start, key=lambda gap: gap.start) - 1)
    while position < len(gaps) and gaps[position].start < columns.stop:
        if len(piece := gaps[position].common(columns)):
            yield piece
        position += 1
