"""Half-open integer ranges: columns cut into blocks, rows into tiles, and the summation tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

Value = TypeVar("Value")


@dataclass(frozen=True, order=True)
class Range:
    """The integers ``start <= i < stop``.

    Attributes:
        start: First integer inside.
        stop: First integer after it; never below ``start``.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a range: {self.start}-{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"

    @property
    def slice(self) -> slice:
        """The same range as a Python slice."""
        return slice(self.start, self.stop)

    def within(self, other: Range) -> bool:
        """Whether every integer of this range is in ``other``."""
        return other.start <= self.start and self.stop <= other.stop

    def shifted(self, offset: int) -> Range:
        """The range moved by ``offset``."""
        return Range(self.start + offset, self.stop + offset)

    def common(self, other: Range) -> Range:
        """The integers in both ranges (an empty range when there are none)."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def cut(whole: Range, width: int) -> list[Range]:
    """Cuts a range into pieces of ``width``; the last may be shorter.

    Every integer of ``whole`` is in exactly one piece, and the pieces are in order.
    """
    return [
        Range(start, min(start + width, whole.stop))
        for start in range(whole.start, whole.stop, width)
    ]


@dataclass(frozen=True)
class TileRanges(Sequence[Range]):
    """The pieces of :func:`cut`, each made when it is asked for, however many there are.

    Attributes:
        whole: What is cut.
        size: The length of a piece.
    """

    whole: Range
    size: int

    def __len__(self) -> int:
        return -(-len(self.whole) // self.size)

    @overload
    def __getitem__(self, number: int) -> Range: ...

    @overload
    def __getitem__(self, number: slice) -> list[Range]: ...

    def __getitem__(self, number: int | slice) -> Range | list[Range]:
        places = range(self.whole.start, self.whole.stop, self.size)
        if isinstance(number, slice):
            return [self._from(start) for start in places[number]]
        return self._from(places[number])

    def _from(self, start: int) -> Range:
        return Range(start, min(start + self.size, self.whole.stop))


def tile(whole: Range, size: int, number: int) -> Range:
    """The piece of that number of :func:`cut`, without making the others."""
    start = whole.start + number * size
    return Range(start, min(start + size, whole.stop))


def tiles_of(wanted: Range, size: int) -> range:
    """The numbers of the tiles of ``size`` that hold the integers of ``wanted``."""
    return range(wanted.start // size, -(-wanted.stop // size)) if len(wanted) else range(0)


def gaps(whole: Range, present: Iterable[Range]) -> list[Range]:
    """The parts of ``whole`` that no range of ``present`` holds, in order and as few as can be."""
    missing = []
    position = whole.start
    for piece in sorted(present):
        if piece.stop <= position or not len(piece):
            continue
        if piece.start >= whole.stop:
            break
        if piece.start > position:
            missing.append(Range(position, piece.start))
        position = piece.stop
    if position < whole.stop:
        missing.append(Range(position, whole.stop))
    return missing


def cover(whole: Range, present: Sequence[Range]) -> list[tuple[Range, int]]:
    """Covers ``whole`` with ranges out of ``present``, each integer once.

    Args:
        whole: The range to be covered.
        present: The ranges at hand; they may overlap and reach beyond ``whole``.

    Returns:
        ``(part, index)`` pairs in order: ``part`` is to be taken from ``present[index]``. Where
        ranges overlap, the one that starts first is used up before the next.

    Raises:
        ValueError: If an integer of ``whole`` is in none of them.
    """
    chosen = []
    position = whole.start
    for index in sorted(range(len(present)), key=lambda i: (present[i], i)):
        piece = present[index]
        if position >= whole.stop or piece.stop <= position:
            continue
        if piece.start > position:
            break
        part = Range(position, min(piece.stop, whole.stop))
        chosen.append((part, index))
        position = part.stop
    if position < whole.stop:
        raise ValueError(f"nothing holds {position}-{whole.stop}")
    return chosen


def tree_sum(values: Iterable[Value], add: Callable[[Value, Value], Value]) -> Value:
    """Sums in one fixed binary tree over the positions of the values.

    The tree is the aligned one: node ``i`` of level ``k + 1`` is node ``2i`` plus node ``2i + 1``
    of level ``k``, and a node without a right sibling is passed up as it is. Hence the sum over
    aligned runs of ``2^j`` values, summed again by this function, is the same sum bit for bit,
    whoever computed the runs. At most ``levels(n)`` partial sums are alive at once.

    Args:
        values: At least one value, in the order of their positions.
        add: Adds the second argument to the first; may do so in place.

    Returns:
        The sum.

    Raises:
        ValueError: If there is no value.
    """
    pending: list[tuple[int, Value]] = []
    for value in values:
        level = 0
        while pending and pending[-1][0] == level:
            value = add(pending.pop()[1], value)
            level += 1
        pending.append((level, value))
    if not pending:
        raise ValueError("a sum needs at least one value")
    total = pending.pop()[1]
    while pending:
        total = add(pending.pop()[1], total)
    return total


def levels(count: int) -> int:
    """The most partial sums that ``tree_sum`` over ``count`` values holds at once."""
    return max(1, count.bit_length())


def aligned_runs(count: int, exponent: int) -> Iterator[Range]:
    """Cuts ``count`` tiles into the aligned runs of ``2**exponent`` that are tasks of their own."""
    yield from cut(Range(0, count), 1 << exponent)
