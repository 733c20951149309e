"""Half-open integer ranges, cutting them into blocks or tiles, and the fixed summation tree."""

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
        """Returns the range moved by ``offset``."""
        return Range(self.start + offset, self.stop + offset)

    def common(self, other: Range) -> Range:
        """Returns the integers in both ranges (an empty range when there are none)."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.stop, other.stop)))


def cut(whole: Range, width: int) -> list[Range]:
    """Cuts a range into consecutive pieces of ``width``; the last may be shorter."""
    return TileRanges(whole, width)[:]


@dataclass(frozen=True)
class TileRanges(Sequence[Range]):
    """The pieces of :func:`cut` as a sequence that makes each one only when it is asked for.

    So a plan with billions of row tiles costs no memory.

    Attributes:
        whole: The range that is cut.
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
    """Returns piece ``number`` of :func:`cut`, without making the others."""
    start = whole.start + number * size
    return Range(start, min(start + size, whole.stop))


def tiles_of(wanted: Range, size: int) -> range:
    """Returns the numbers of the tiles of ``size`` that hold the integers of ``wanted``."""
    return range(wanted.start // size, -(-wanted.stop // size)) if len(wanted) else range(0)


def gaps(whole: Range, present: Iterable[Range]) -> list[Range]:
    """Returns what no range of ``present`` holds of ``whole``, in order, in the fewest ranges."""
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
        ranges overlap, the one that starts first is used to its end before the next.

    Raises:
        ValueError: If an integer of ``whole`` is in none of them.
    """
    chosen = []
    position = whole.start
    # In a fixed order, so that every process takes the same one of overlapping ranges.
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
    """Sums values in one fixed binary tree over their positions.

    The tree is the aligned one: node ``i`` of level ``k + 1`` is node ``2i`` plus node ``2i + 1``
    of level ``k``, and a node without a right sibling is passed up as it is. Hence the sums of
    aligned runs of ``2^j`` values, added by this function again, give the same bits, whichever
    process computed each run. At most ``levels(n)`` partial sums are alive at once.

    Args:
        values: The values in the order of their positions; at least one.
        add: Adds the second argument to the first; may do so in place.

    Returns:
        The sum.

    Raises:
        ValueError: If there is no value.
    """
    # Not a generator, which would hold a value until the next is there.
    return tree_sum_of_runs(map(_run_of_one, values), add)


def _run_of_one(value: Value) -> tuple[int, Value]:
    return 1, value


def tree_sum_of_runs(
    runs: Iterable[tuple[int, Value]], add: Callable[[Value, Value], Value]
) -> Value:
    """Sums the sums of aligned runs of different lengths, as :func:`tree_sum` sums single values.

    Args:
        runs: The length and the sum of each run, in order: all but the last are as long as a power
            of two, and begin at a multiple of it.
        add: As of :func:`tree_sum`.

    Returns:
        The sum, with the bits that the single values would give.

    Raises:
        ValueError: If there is no run.
    """
    # Partial sums with their levels in the tree; levels fall from bottom to top of the stack.
    pending: list[tuple[int, Value]] = []
    for length, value in runs:
        level = (length - 1).bit_length()
        while pending and pending[-1][0] == level:
            value = add(pending.pop()[1], value)
            level += 1
        pending.append((level, value))
        del value
    if not pending:
        raise ValueError("a sum needs at least one value")
    total = pending.pop()[1]
    while pending:
        total = add(pending.pop()[1], total)
    return total


def levels(count: int) -> int:
    """Returns how many partial sums ``tree_sum`` over ``count`` values holds at most at once."""
    return max(1, count.bit_length())


def aligned_runs(count: int, exponent: int) -> Iterator[Range]:
    """Cuts ``count`` tiles into aligned runs of ``2**exponent``, each of which is one task."""
    yield from cut(Range(0, count), 1 << exponent)
