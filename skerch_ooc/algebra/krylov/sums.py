"""What the rounds of a block Krylov method measure: blocks, their products, and sums over rows.

A *family* is the ordered list of blocks with rows of one side of the operator, ``A (h, w)``: for a
Hermitian operator one family, for any other one on its range (``h`` rows) and one on its corange
(``w`` rows). The first block is the test matrix ``Omega`` on the corange. Round ``k``, counted from
1, applies the operator, or to a block on the range its adjoint, to block ``k``; its products
``Y_k`` lie on the side across. A round is *open* until a block is made of its products.

Two streams over rows measure a round. The first reads the family ``F`` of the products and them:
:class:`Products`. The second writes the next block and measures what it wrote: :class:`Block`.
All sums are in double precision; nothing that was rounded is taken for what it was meant to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from skerch_ooc.base.arrays import Array

Side = Literal["range", "corange"]


@dataclass(frozen=True)
class Setting:
    """What is known before the first round.

    Attributes:
        shape: Rows and columns of the operator, ``(h, w)``.
        hermitian: Whether it is Hermitian; then its only family is that of the corange.
        dtype: In which blocks and products are stored.
    """

    shape: tuple[int, int]
    hermitian: bool
    dtype: str

    @property
    def epsilon(self) -> float:
        """Twice the unit roundoff of what is stored."""
        return float(np.finfo(self.dtype).eps)

    @property
    def double(self) -> bool:
        """Whether it is stored in double precision, where a block is projected twice."""
        return self.epsilon < 1e-10

    @property
    def sides(self) -> tuple[Side, ...]:
        """Those that have a family."""
        return ("corange",) if self.hermitian else ("range", "corange")

    @property
    def test_side(self) -> Side:
        """Where the test sketch ``T = A G`` lies."""
        return "corange" if self.hermitian else "range"

    def across(self, side: Side) -> Side:
        """The side on which the products of a block lie."""
        return "range" if side == "corange" and not self.hermitian else "corange"

    def height(self, side: Side) -> int:
        """Rows of the blocks of a family."""
        return self.shape[0] if side == "range" else self.shape[1]


@dataclass(frozen=True)
class BlockSource:
    """What a block is made of: products of a round, columns of the test sketch, given vectors.

    Attributes:
        round: Number of the round, from 1; 0 for columns of the test sketch, -1 for given vectors.
        columns: Half-open range of those columns.
    """

    round: int = 0
    columns: tuple[int, int] = (0, 0)

    @property
    def is_given(self) -> bool:
        """Whether it is vectors that were given to start with."""
        return self.round < 0


@dataclass(frozen=True)
class Block:
    """A block ``Q_new (rows, b)`` of the basis, measured as it was stored.

    A block may have no columns: its source turned out to lie in the family. It counts as a round,
    without products; so that the same source is not tried again.

    Attributes:
        side: The family that it belongs to.
        width: Its columns.
        source: What it was made of; ``None`` for ``Omega``.
        metric: ``Q_new^H [F, Q_new]``, ``(b, K + b)``, ``F`` the family before it; ``None`` for
            ``Omega``, which is measured with the first products that lie on its side.
        products: ``Q_new^H Y_j`` for each round ``j`` that was open on this side, its source with
            them, ``(b, b_j)``.
    """

    side: Side
    width: int
    source: BlockSource | None = None
    metric: Array | None = None
    products: Mapping[int, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Products:
    """Sums over the products ``Y_k (rows, b)`` of a round.

    Attributes:
        family: ``F^H Y_k``, ``(K, b)``, ``F`` all blocks on their side that exist, block ``k`` of a
            Hermitian operator among them.
        squares: ``Y_k^H Y_k``.
        tests: ``G^H Y_k``, ``(q, b)``, where the noise ``G`` of the test sketch has as many rows
            (on the corange); else ``None``.
        others: ``Y_j^H Y_k`` for the other rounds ``j`` that are open on their side, ``(b_j, b)``.
        start: ``Omega^H Omega``, in the first round whose products lie on its side; else ``None``.
    """

    family: Array
    squares: Array
    tests: Array | None = None
    others: Mapping[int, Array] = field(default_factory=dict)
    start: Array | None = None


@dataclass(frozen=True)
class Given:
    """Vectors ``X`` that are given on the side of ``Omega``; the second block is made of them.

    Attributes:
        family: ``Omega^H X``, ``(b, c)``.
        squares: ``X^H X``.
    """

    family: Array
    squares: Array


@dataclass(frozen=True)
class Chain:
    """The blocks and rounds so far; a block that was not applied yet is not looked at.

    Attributes:
        setting: What is known beforehand.
        blocks: In the order of their rounds.
        rounds: The sums of each round.
        tests: ``T^H T``, ``(q, q)``; ``(0, 0)`` without a test sketch.
        start: What was given to start with; ``None`` if nothing was.
    """

    setting: Setting
    blocks: tuple[Block, ...]
    rounds: tuple[Products, ...]
    tests: Array = field(default_factory=lambda: np.zeros((0, 0)))
    start: Given | None = None

    def upto(self, rounds: int) -> Chain:
        """The chain as it was after so many rounds."""
        return dataclasses.replace(self, blocks=self.blocks[:rounds], rounds=self.rounds[:rounds])

    def members(self, side: Side) -> tuple[int, ...]:
        """Numbers of the blocks of a family; those that have rounds, or all that are stored."""
        return tuple(k for k, block in enumerate(self.blocks, 1) if block.side == side)

    def open_rounds(self, side: Side) -> tuple[int, ...]:
        """Numbers of the rounds with products on a side of which no block was made."""
        made = {block.source.round for block in self.blocks if block.source}
        return tuple(
            k
            for k in range(1, len(self.rounds) + 1)
            if k not in made
            and self.blocks[k - 1].width
            and self.setting.across(self.blocks[k - 1].side) == side
        )


def no_products(rows: int) -> Products:
    """The round of a block without columns, whose products' family has so many."""
    return Products(np.zeros((rows, 0)), np.zeros((0, 0)))
