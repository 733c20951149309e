"""Krylov rounds: how many there may be, which block each applies, and what was made of what.

A *block* is some columns of a basis. Round ``k`` applies the operator to block ``k``, or
for ``svd`` and a block on the range its adjoint. The first block is noise; each later one is made,
orthogonal to all blocks on its side, of the products of an earlier round, of columns of the test
sketch, or, the second one, of vectors that are given. A round of whose products no block was made
is *open*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from skerch_ooc.base.partition import Range
from skerch_ooc.planning import values

ROUND_WIDTH = 16
"""Columns of a round, unless the spec says another number."""

PAIRS = 20
"""Pairs that are looked for, unless the spec says another number."""

PAIRS_TOLERANCE = 1e-4
"""Relative error to which they are to be known, unless the spec says another."""

WIDEST_START = 64
"""Columns that a round has at most where vectors are given, unless the spec says more."""

TILE_COLUMNS = 16
"""Columns of a block that are read together, as a task of measuring may apply one alone."""

MOST_ROUNDS = 1000
"""Most rounds of a run: their blocks are all read in each round."""

_ROUND, _TEST, _START = "round", "test", "start"

RANGE = "range"
CORANGE = "corange"


def most_rounds(kind: str, rank: int, width: int) -> int:
    """Returns the most rounds where nobody says another number; a round of ``svd`` is a half step.

    They are an upper bound, far above what most spectra need, and cost nothing.
    """
    return (10 + math.ceil(20 * rank / width)) * _half_steps(kind)


def most_rounds_of_old(kind: str, rank: int, width: int) -> int:
    """Returns what :func:`most_rounds` once was; by half of it test columns are looked at."""
    return (6 + math.ceil(12 * rank / width)) * _half_steps(kind)


def likely_rounds(kind: str, rank: int, width: int) -> int:
    """Returns how many rounds most spectra take until the pairs are known."""
    return (6 + math.ceil(3 * rank / width)) * _half_steps(kind)


def _half_steps(kind: str) -> int:
    return 1 if kind == "eigh" else 2


@dataclass(frozen=True)
class Krylov(values.Checked):
    """The rounds of a run with method ``krylov``, as its plan states them.

    Attributes:
        width: Columns of a round.
        rounds: The most rounds.
        tolerance: Relative error of the pairs at which the rounds end; ``None`` if they end only
            at the most.
        tile: Columns that a tile of a block has; ``None`` in plans of old, as those of a result.
    """

    width: int = values.checked(values.integer(1))
    rounds: int = values.checked(values.integer(1, MOST_ROUNDS))
    tolerance: float | None = values.checked(values.optional(values.tolerance), None)
    tile: int | None = values.checked(values.optional(values.integer(1)), None)

    def as_json(self) -> dict[str, Any]:
        """Returns what a plan says of them; a tile only if it has one."""
        tile = {} if self.tile is None else {"tile": self.tile}
        return {"width": self.width, "rounds": self.rounds, "tolerance": self.tolerance} | tile


@dataclass(frozen=True)
class Start(values.Checked):
    """Vectors of an earlier result, of which the second block is made.

    Attributes:
        columns: How many there are.
        sha256: Hash of the file of that result, by what it says of its content, and of which of
            its vectors they are.
    """

    columns: int = values.checked(values.integer(1))
    sha256: str = values.checked(values.sha256)


@dataclass(frozen=True)
class Origin:
    """What a block is made of: products of a round, columns of the test sketch, or given vectors.

    Attributes:
        products: The number of the round; ``None`` for anything else.
        tests: Columns of the test sketch; ``None`` for anything else.
    """

    products: int | None = None
    tests: Range | None = None

    @property
    def is_start(self) -> bool:
        """Whether the block is made of the vectors that were given."""
        return self.products is None and self.tests is None

    def __str__(self) -> str:
        if self.is_start:
            return _START
        return f"{_ROUND}{self.products}" if self.tests is None else f"{_TEST}{self.tests}"

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Reads what ``str`` gave.

        Raises:
            ValueError: If it is something else.
        """
        start, dash, stop = text.removeprefix(_TEST).partition("-")
        if text == _START:
            found = cls()
        elif dash:
            found = cls(tests=Range(int(start), int(stop)))
        else:
            found = cls(products=int(text.removeprefix(_ROUND)))
        # Numbers have several spellings, and only one is right.
        if str(found) != text:
            raise ValueError(f"{text!r} is nothing that a block is made of")
        return found


@dataclass(frozen=True)
class BasisBlock:
    """A block of the basis, and what it was made of.

    Attributes:
        number: The number of the round that applies the operator to it.
        columns: How many columns it has.
        side: The side that it lies on.
        source: What it was made of; ``None`` for the first, which is noise.
        spent: What was looked at before, and had nothing new.
    """

    number: int
    columns: int
    side: str
    source: Origin | None = None
    spent: tuple[Origin, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns what a file of the block says of its making."""
        return {
            "number": self.number,
            "side": self.side,
            "source": str(self.source),
            "spent": [str(source) for source in self.spent],
        }

    @classmethod
    def from_json(cls, value: Any, columns: int) -> BasisBlock:
        """Reads what :meth:`as_json` returned.

        Raises:
            LookupError, TypeError, ValueError: If it is something else.
        """
        spent = tuple(map(Origin.parse, value["spent"]))
        side = {RANGE: RANGE, CORANGE: CORANGE}[value["side"]]
        return cls(int(value["number"]), columns, side, Origin.parse(value["source"]), spent)


def first_block(kind: str, columns: int) -> BasisBlock:
    """Returns the block of noise that the first round applies."""
    return BasisBlock(1, columns, RANGE if kind == "eigh" else CORANGE)


def across(kind: str, side: str) -> str:
    """Returns the side that products with a block on a side lie on."""
    if kind == "eigh":
        return RANGE
    return RANGE if side == CORANGE else CORANGE


def family(blocks: Iterable[BasisBlock], side: str) -> list[BasisBlock]:
    """Returns the blocks on a side, in order."""
    return [block for block in blocks if block.side == side]


def open_rounds(kind: str, blocks: Sequence[BasisBlock], side: str) -> list[int]:
    """Returns the rounds with products on a side of which no block was made, in order."""
    used = {source.products for b in blocks for source in (b.source, *b.spent) if source}
    return [b.number for b in blocks if across(kind, b.side) == side and b.number not in used]


def partly_kept_rounds(kind: str, blocks: Sequence[BasisBlock], side: str) -> list[int]:
    """Returns the rounds with products on a side that the blocks there do not hold all of.

    Of an open round they hold nothing that is new, of others what a narrower block has.
    """
    made = {b.source.products: b.columns for b in blocks if b.source is not None}
    return [
        b.number
        for b in blocks
        if across(kind, b.side) == side and made.get(b.number, 0) < b.columns
    ]


def planned_blocks(kind: str, number: int, width: int, *, start: bool) -> list[BasisBlock]:
    """Returns the blocks up to a round as they are foretold: each of the products before it.

    Args:
        kind: ``"eigh"`` or ``"svd"``.
        number: The number of the round.
        width: Columns of a round.
        start: Whether the second block is made of vectors that are given.
    """
    return [_planned_block(kind, one, width, start) for one in range(1, max(1, number) + 1)]


@lru_cache(4096)
def _planned_block(kind: str, number: int, width: int, start: bool) -> BasisBlock:
    # Kept: what a plan costs is asked for round by round, each time of all blocks before.
    first = first_block(kind, width)
    if number == 1:
        return first
    side = across(kind, first.side) if (number - 1 - start) % 2 else first.side
    given = start and number == 2
    return BasisBlock(number, width, side, Origin() if given else Origin(products=number - 1))
