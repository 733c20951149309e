"""The values of a result as a report counts and draws them, with their error bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.results.assess import count_within
from skerch_ooc.results.pairs import KnownPairs
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.axes import thinned
from skerch_ooc.results.words import NOUNS

_FIRST = {"LM": "the largest in magnitude", "LA": "the largest", "SA": "the smallest"}

MOST_POINTS = 600
"""If there are more values than this, only some are drawn."""


@dataclass(frozen=True)
class Values:
    """The values of a result.

    Attributes:
        values: The values in order, float64.
        kind: ``"eigh"`` or ``"svd"``.
        error: Estimate of ``||A - Ahat||_F``; ``None`` if unknown.
        bounds: How far each value is off at most, with 95 % probability, or by the bound of its
            pair; ``None`` if unknown.
        pairs: How many pairs are known to the tolerance; ``None`` if it is not about pairs.
        rounding: What the bounds of pairs have for rounding of the products.
        relative: The bounds of the pairs as these are judged, rounding aside; ``None`` if it is not
            about pairs.
        missed: Which pairs are not known to the tolerance; ``None`` if it is not about pairs.
        which: Which values come first, in the words of a spec.
        norm: Estimate of ``||A||_F``; ``None`` if unknown.
    """

    values: Array
    kind: str
    error: float | None
    bounds: Array | None = None
    pairs: KnownPairs | None = None
    rounding: float = 0.0
    relative: Array | None = None
    missed: Array | None = None
    which: str = "LM"
    norm: float | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def noun(self) -> str:
        """The name of the values, in the plural."""
        return NOUNS[self.kind]

    @property
    def counted(self) -> str:
        """The name of the values, in the singular if there is one."""
        return self.noun if len(self) > 1 else self.noun[:-1]

    @property
    def first(self) -> str:
        """The words for the value that comes first."""
        return _FIRST[self.which]

    @property
    def sureness(self) -> str:
        """The words for how sure the bounds are."""
        return "with 95 % probability" if self.pairs is None else "by its bound"

    def is_missed(self, number: int) -> bool:
        """Whether the value of a number, from 1, is a pair that is not known to the tolerance."""
        return self.missed is not None and bool(self.missed[number - 1])

    def said(self, number: int) -> str:
        """Says the value of a number, from 1, and what it may be off by."""
        shown = f"{number}: {numbers.value(float(self.values[number - 1]), 5)}"
        if self.bounds is None:
            return shown
        return f"{shown} ± {numbers.value(float(self.bounds[number - 1]), 2)}"

    @property
    def shares(self) -> Array | None:
        """Which part of ``||A||^2`` each singular value is; ``None`` of others, or if unknown.

        Of a matrix whose columns have their means subtracted it is that of the variance.
        """
        if self.kind != "svd" or not self.norm:
            return None
        return np.asarray((self.values / self.norm) ** 2)

    def csv(self) -> bytes:
        """Writes all values, and what is known of each, as lines separated by commas."""
        head = ["number", "value"]
        columns: list[Iterable[object]] = [range(1, len(self) + 1), map(float, self.values)]
        if self.shares is not None:
            head.append("share_of_squared_norm")
            columns.append(map(float, self.shares))
        if self.bounds is not None:
            head.append("off_by_at_most")
            columns.append(map(float, self.bounds))
        if self.missed is not None:
            head.append("is_known_to_the_tolerance")
            columns.append(("no" if missed else "yes") for missed in self.missed)
        lines = [head, *([str(entry) for entry in row] for row in zip(*columns, strict=True))]
        return "".join(f"{','.join(line)}\n" for line in lines).encode()

    @property
    def off(self) -> str:
        """The words for how far the values may be off."""
        return "the error" if self.bounds is None else "what they may be off by"

    @property
    def largest(self) -> float:
        """The value of the largest magnitude."""
        return float(self.values[np.argmax(self.sizes)])

    @property
    def sizes(self) -> Array:
        """The magnitudes of the values."""
        return np.abs(self.values)

    @property
    def positive(self) -> int:
        """The number of values above 0."""
        return int(np.count_nonzero(self.values > 0))

    @property
    def negative(self) -> int:
        """The number of values below 0."""
        return int(np.count_nonzero(self.values < 0))

    @property
    def zero(self) -> int:
        """The number of values that are 0."""
        return len(self) - self.positive - self.negative

    @property
    def certain(self) -> int | None:
        """The number of values whose magnitude exceeds what they may be off by."""
        limits = self.error if self.bounds is None else self.bounds
        return None if limits is None else int(np.count_nonzero(self.sizes > limits))

    def within(self, share: float) -> int:
        """Counts the values that are surely known to a share of their magnitude."""
        return 0 if self.bounds is None else count_within(self.values, self.bounds, share)

    @property
    def ends(self) -> tuple[Array, Array]:
        """The lower and the upper bound of each value."""
        off = 0.0 if self.bounds is None else self.bounds
        most = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            return (np.clip(self.values - off, -most, most),
                    np.clip(self.values + off, -most, most))  # fmt: skip

    @property
    def shown(self) -> list[tuple[int, float]]:
        """The values that are drawn, with their numbers from 1."""
        return [(i + 1, float(self.values[i])) for i in thinned(len(self), MOST_POINTS)]
