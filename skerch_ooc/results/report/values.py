"""The values of a result, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.results.assess import count_within
from skerch_ooc.results.report.chart import thinned
from skerch_ooc.results.words import NOUNS

MOST_POINTS = 600
"""If there are more values than these, only some are drawn."""


@dataclass(frozen=True)
class Values:
    """The values of a result.

    Attributes:
        values: In descending magnitude, float64.
        kind: ``"eigh"`` or ``"svd"``.
        error: Estimate of ``||A - Ahat||_F``; ``None`` if unknown.
        bounds: What each value is off by at most, with 95 % probability; ``None`` if unknown.
    """

    values: Array
    kind: str
    error: float | None
    bounds: Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def noun(self) -> str:
        """What they are called."""
        return NOUNS[self.kind]

    @property
    def counted(self) -> str:
        """The same, of as many as there are."""
        return self.noun if len(self) > 1 else self.noun[:-1]

    @property
    def off(self) -> str:
        """What is said of what they may be off by."""
        return "the error" if self.bounds is None else "what they may be off by"

    @property
    def largest(self) -> float:
        """The one that is largest in magnitude."""
        return float(self.values[np.argmax(self.sizes)])

    @property
    def sizes(self) -> Array:
        """Their magnitudes."""
        return np.abs(self.values)

    @property
    def positive(self) -> int:
        """How many are above 0."""
        return int(np.count_nonzero(self.values > 0))

    @property
    def negative(self) -> int:
        """How many are below 0."""
        return int(np.count_nonzero(self.values < 0))

    @property
    def zero(self) -> int:
        """How many are 0."""
        return len(self) - self.positive - self.negative

    @property
    def certain(self) -> int | None:
        """How many are larger, in magnitude, than what they may be off by."""
        limits = self.error if self.bounds is None else self.bounds
        return None if limits is None else int(np.count_nonzero(self.sizes > limits))

    def within(self, share: float) -> int:
        """How many are surely known to a share of them."""
        return 0 if self.bounds is None else count_within(self.values, self.bounds, share)

    @property
    def ends(self) -> tuple[Array, Array]:
        """The least and the largest that each value may be."""
        off = 0.0 if self.bounds is None else self.bounds
        most = np.finfo(np.float64).max
        with np.errstate(over="ignore"):
            return (np.clip(self.values - off, -most, most),
                    np.clip(self.values + off, -most, most))  # fmt: skip

    @property
    def shown(self) -> list[tuple[int, float]]:
        """Those that are drawn, with their numbers from 1."""
        return [(i + 1, float(self.values[i])) for i in thinned(len(self), MOST_POINTS)]
