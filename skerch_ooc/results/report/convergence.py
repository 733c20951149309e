"""Convergence of the pairs over the rounds of ``krylov``: their bounds, and how many are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.krylov.pairs import pairs_of
from skerch_ooc.algebra.krylov.space import Space
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.results.pairs import relative_bounds
from skerch_ooc.results.report.axes import (
    BOTTOM,
    FOCUSED,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    logarithmic,
    thinned,
)
from skerch_ooc.results.report.chart import Chart
from skerch_ooc.stages.recover.krylov import Search, goal_of, search_of
from skerch_ooc.store.rundir import Run

_MOST_ROUNDS = 40
_MOST_PAIRS = 20
_MOST_WORK = 2e11
"""The dense problems of all rounds that are drawn take about so many operations at most."""


@dataclass(frozen=True)
class Reached:
    """How far the pairs were after a round.

    Attributes:
        round: Its number.
        products: Products until then.
        bounds: Of the wanted pairs that there were, relative to their values, ``(k,)``.
        met: How many of these were known to the tolerance; ``None`` without one.
    """

    round: int
    products: int
    bounds: Array
    met: int | None


@dataclass(frozen=True)
class Progression:
    """How the pairs have become known.

    Attributes:
        rounds: Some of the rounds, the last one among them.
        tolerance: What was to be reached; ``None`` if nothing was.
        wanted: How many pairs were wanted.
    """

    rounds: tuple[Reached, ...]
    tolerance: float | None
    wanted: int


def progression_of(run: Run) -> Progression | None:
    """Follows the pairs from round to round, where the sums of the rounds are still there.

    Raises:
        CorruptError: If a file is damaged.
    """
    if run.plan.krylov is None:
        return None
    try:
        search = search_of(run)
    except IncompleteError:
        return None
    goal = goal_of(run.plan)
    rounds = tuple(_reached(search, number) for number in _drawn(search))
    return Progression(rounds, goal.tolerance, goal.rank)


def _drawn(search: Search) -> list[int]:
    """Chooses the rounds to draw: fewer where their dense problems are large."""
    columns = np.cumsum([block.columns for block in search.blocks])
    work = 30.0 * columns**3
    most = min(_MOST_ROUNDS, max(2, int(len(work) * _MOST_WORK / max(work.sum(), 1.0))))
    picked = thinned(len(work), most) if most >= 6 else range(len(work))[:: -(-len(work) // most)]
    return sorted({*(number + 1 for number in picked), len(work)})


def _reached(search: Search, number: int) -> Reached:
    goal, chain = goal_of(search.round.run.plan), search.chain.upto(search.numbers[number])
    pairs = pairs_of(Space.of(chain), goal.which).upto(goal.rank)
    bounds = relative_bounds(pairs.values, pairs.bounds - pairs.rounding, pairs.norm)
    met = None if goal.tolerance is None else int(np.count_nonzero(pairs.met(goal.tolerance)))
    products = sum(block.columns for block in search.blocks[:number])
    return Reached(number, products, bounds, met)


def convergence(found: Progression) -> Chart | None:
    """Draws the bounds of the leading pairs after each round; ``None`` after a single round."""
    if len(found.rounds) < 2:
        return None
    bounds = [float(bound) for one in found.rounds for bound in one.bounds[:_MOST_PAIRS]]
    y = logarithmic([*bounds, found.tolerance or 0.0, 1e-16 if min(bounds) < 1e-16 else 0.0],
                    BOTTOM, TOP)  # fmt: skip
    if y is None:
        return None
    y = Axis(max(y.low, 1e-16), max(y.high, 1e-15), BOTTOM, TOP, log=True)
    x = Axis(0.5, found.rounds[-1].round + 0.5, LEFT, RIGHT, whole=True)
    most = min(_MOST_PAIRS, max(len(one.bounds) for one in found.rounds))
    lines = [
        [(x.at(one.round), y.at(float(one.bounds[pair]))) for one in found.rounds
         if pair < len(one.bounds)]
        for pair in range(most)
    ]  # fmt: skip
    step = -(-len(found.rounds) // FOCUSED)
    marked = [one for one in found.rounds[::-1][::step] if len(one.bounds)][::-1]
    drawn = {"found": found, "x": x, "y": y, "lines": lines, "marked": marked, "most": most}
    return Chart("convergence", "convergence", drawn)
