"""The recovery methods by name: which sketches and rounds each one needs, and what it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

MOST_POWER_ITERATIONS = 2

FEWEST_CHOOSING = 3
"""With fewer test columns none of them chooses the size of a core."""


def _rounds_of_powers(kind: str, power_iterations: int) -> int:
    """Counts the later rounds of ``hmt``: the last one, and those of the power iterations.

    A power iteration of ``svd`` applies the operator and its adjoint, in two rounds.
    """
    return 1 + power_iterations * (1 if kind == "eigh" else 2)


@dataclass(frozen=True)
class Method:
    """The properties of a recovery method that planning needs; its arithmetic is elsewhere.

    Attributes:
        left: Left columns for each right one with ``kind = "svd"``; 0 if there is no left sketch.
        has_inner: Whether it has an inner sketch, whose size is fixed when a run is planned.
        inverts_core: Whether it inverts a small core, so that ``core`` has a meaning.
        chooses_core: Whether ``core = "auto"`` takes a share of the test columns for the choice.
        most_power_iterations: How many power iterations it allows.
        later_rounds: Returns the number of rounds after the first, given the kind and the power
            iterations; ``None`` for a method of one pass.
        compares: The methods of which it takes the better one, on the same sketch.
        orthogonal: Whether each round is orthogonal to all before it, and the rounds end when the
            pairs are found, so that only their most is known beforehand.
    """

    left: float = 1.0
    has_inner: bool = False
    inverts_core: bool = True
    chooses_core: bool = True
    most_power_iterations: int = 0
    later_rounds: Callable[[str, int], int] | None = None
    compares: tuple[str, ...] = ()
    orthogonal: bool = False

    @property
    def is_one_pass(self) -> bool:
        """Whether it applies the operator to noise only, so that its sketches are linear in it."""
        return self.later_rounds is None and not self.orthogonal

    @property
    def nests(self) -> bool:
        """Whether columns can be added to its sketches while all measured ones stay in use."""
        return self.is_one_pass and not self.has_inner

    @property
    def fits_left(self) -> bool:
        """Whether it solves equations that more left than right columns overdetermine."""
        return self.left > 1 or any(METHODS[name].fits_left for name in self.compares)

    def keeps_sketches(self, kind: str, power_iterations: int, tests: int) -> bool:
        """Whether results of new runs are made of the sketches of all rounds.

        The sketches of a Hermitian operator have a core, which test columns have to choose. With
        ``kind = "svd"`` only further rounds that apply the adjoint add anything.
        """
        if self.later_rounds is None:
            return False
        return tests >= FEWEST_CHOOSING if kind == "eigh" else power_iterations > 0

    def rounds(self, kind: str, power_iterations: int) -> int:
        """Returns the number of rounds of products, which follow one another; 1 if it varies."""
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
    # A core of chosen size needs no more left than right columns; those products are better spent
    # on a wider range.
    "auto": Method(compares=("nystrom", "singlepass")),
    "krylov": Method(left=0.0, inverts_core=False, chooses_core=False, orthogonal=True),
}
"""Each method by its name in the spec."""

DEFAULTS: Mapping[str, str] = {"eigh": "nystrom", "svd": "auto"}
"""The method of each kind where the spec leaves it out."""

WHOLE_METHOD = "nystrom"
"""The method by which the rounds of ``krylov`` also give an approximation of the whole operator."""

PAIRS_METHOD = next(name for name, method in METHODS.items() if method.orthogonal)
"""The method that looks for leading pairs, and is meant where a spec states only these."""


def names_of(is_one: Callable[[Method], bool]) -> list[str]:
    """Lists the names of the methods for which a predicate is true, for messages."""
    return [name for name, method in METHODS.items() if is_one(method)]
