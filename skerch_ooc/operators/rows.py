"""What can be asked of an operator whose rows are at hand: sketches of both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skerch_ooc.algebra.noise import Entries
from skerch_ooc.base.arrays import Array

RowsOf = Callable[..., Array | Entries]
"""Gives some rows of a test matrix, by their range in the whole operator."""


@dataclass(frozen=True)
class Forward:
    """``A X``.

    Attributes:
        columns: ``X``, ``(w, b)``.
    """

    columns: Array


@dataclass(frozen=True)
class Backward:
    """``A^H N``.

    Attributes:
        vectors: Gives rows of ``N``.
        columns: How many columns it has.
    """

    vectors: RowsOf
    columns: int


@dataclass(frozen=True)
class Inner:
    """``Phi^H A X``.

    Attributes:
        vectors: Gives rows of ``Phi``.
        rows: How many columns it has.
        columns: ``X``, ``(w, b)``.
    """

    vectors: RowsOf
    rows: int
    columns: Array


Request = Forward | Backward | Inner
