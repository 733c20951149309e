"""The recovery methods by name: the sketches and rounds that each needs, and what it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MOST_POWER_ITERATIONS = 2


def _rounds_of_powers(kind: str, power_iterations: int) -> int:
    """One round for the range that was found, and one pass for each power of the operator."""
    return 1 + power_iterations * (1 if kind == "eigh" else 2)


@dataclass(frozen=True)
class Method:
    """What distinguishes a recovery method, but for its arithmetic.

    Attributes:
        left: Columns of the left sketch of ``kind = "svd"`` for each right one; 0 without.
        has_inner: Whether it has an inner sketch, whose rows and columns are fixed by its size.
        inverts_core: Whether it inverts a small core, so that ``core`` has a meaning.
        chooses_core: Whether ``core = "auto"`` takes a share of the test columns for the choice.
        most_power_iterations: How many it takes.
        later_rounds: Rounds of products after the first, given the kind and the power iterations;
            ``None`` for a method of one pass.
    """

    left: float = 1.0
    has_inner: bool = False
    inverts_core: bool = True
    chooses_core: bool = True
    most_power_iterations: int = 0
    later_rounds: Callable[[str, int], int] | None = None

    @property
    def is_one_pass(self) -> bool:
        """Whether it applies the operator to noise alone, so that its sketches are linear in it."""
        return self.later_rounds is None

    @property
    def nests(self) -> bool:
        """Whether columns can be added to its sketches, and all that is measured stays of use."""
        return self.is_one_pass and not self.has_inner

    @property
    def fits_left(self) -> bool:
        """Whether it solves overdetermined equations, with more left columns than right ones."""
        return self.left > 1

    def rounds(self, kind: str, power_iterations: int) -> int:
        """Rounds of products, one after the other."""
        return 1 + (self.later_rounds(kind, power_iterations) if self.later_rounds else 0)


METHODS: Mapping[str, Method] = {
    # With 1.5 times as many left columns its expected error is sqrt(1 + m / (l - m - 1)) times that
    # of the range (Nakatsukasa 2020, arXiv 2009.11392, section 2).
    "nystrom": Method(left=1.5),
    "singlepass": Method(),
    "oversampled": Method(has_inner=True, chooses_core=False),
    "hmt": Method(
        left=0.0,
        inverts_core=False,
        chooses_core=False,
        most_power_iterations=MOST_POWER_ITERATIONS,
        later_rounds=_rounds_of_powers,
    ),
}
"""Each method by its name in the spec; the first is the default."""


def names_of(is_one: Callable[[Method], bool]) -> list[str]:
    """The names of the methods of which something is true, for messages."""
    return [name for name, method in METHODS.items() if is_one(method)]
