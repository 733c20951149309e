"""What is done after a round of a block Krylov method: end, go on, or look for what was missed.

Everything here is a pure function of the sums that were measured, and of the blocks' recorded
sources; so that any process comes to the same at any time, and a finished run that gets a tighter
tolerance goes on from its chain. (Bits of LAPACK may differ between machines and threads: the
matrices of a step are to be computed once and stored.)

A Krylov space whose first block has ``b`` columns holds at most ``b`` copies of a multiple value.
So the pairs are *confirmed*: before the end one block is made of columns of the test sketch
``T = A G``, which is independent of the space, and the values have to stay as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skerch_ooc.algebra.krylov.pairs import Pairs, Which, pairs_of
from skerch_ooc.algebra.krylov.space import Space, largest
from skerch_ooc.algebra.krylov.sums import BlockSource, Chain, Side
from skerch_ooc.algebra.linalg import hermitian_part
from skerch_ooc.base.arrays import Array

Ending = Literal["", "met", "rounding", "exhausted", "rounds", "products"]


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    Attributes:
        rank: So many pairs,
        tolerance: with values known to this, relative; ``None``: as many rounds as may be.
        which: Which pairs.
        most_rounds: At most so many rounds in all,
        most_products: and so many products.
        rounds_without_tests: With a tolerance, so many rounds come at most before columns of the
            test sketch are looked at; by default half of the most.
    """

    rank: int
    tolerance: float | None = None
    which: Which = "LM"
    most_rounds: int | None = None
    most_products: int | None = None
    rounds_without_tests: int | None = None


@dataclass(frozen=True)
class NextBlock:
    """How the next block is made: the draft ``source T - F (C T)``.

    Attributes:
        side: The family ``F`` that the block joins; its source has the same rows.
        source: Products of a round, columns of the test sketch, or given vectors.
        coefficients: ``C (K, c)``.
        transform: ``T (c, b)``.
        floor: Singular values of what is left of the source are dropped up to this.
        twice: Whether the draft is projected a second time, see :func:`refined`.
        most: The block has at most so many columns.
    """

    side: Side
    source: BlockSource
    coefficients: Array
    transform: Array
    floor: float
    twice: bool
    most: int

    @property
    def confirms(self) -> bool:
        """Whether the block is there to find what the space may have missed."""
        return self.source.round == 0


@dataclass(frozen=True)
class Standing:
    """How far the pairs are after a round, and what comes next.

    Attributes:
        pairs: All pairs, the wanted ones first.
        wanted: How many are wanted and there.
        met: Which of these are known to the tolerance; all ``False`` without one.
        exhausted: Whether the space is invariant: no round has anything left over.
        complete: Whether it is all there is: exhausted, and as large as the operator.
        confirmed: Whether columns of the test sketch found nothing more, or it is complete.
        ending: Why no round follows; empty if one does. ``"rounding"``: all are known as well as
            the dtype allows, but not all to the tolerance.
        step: How its block is made; ``None`` at the end.
    """

    pairs: Pairs
    wanted: int
    met: Array
    exhausted: bool
    complete: bool
    confirmed: bool
    ending: Ending
    step: NextBlock | None


def decide(chain: Chain, goal: Goal) -> Standing:
    """Says how far the pairs are, and what is done next.

    Args:
        chain: The blocks and rounds so far, at least one.
        goal: What is wanted.
    """
    space = Space.of(chain)
    pairs = pairs_of(space, goal.which)
    wanted = pairs.upto(goal.rank)
    met, settled = _known(wanted, goal)
    onward = _onward(space, wanted, settled)
    exhausted = onward is None
    complete = exhausted and _is_full(space)
    if not _is_full(space):
        wanted = _before_zeros(wanted, goal, exhausted)
        met, settled = _known(wanted, goal)
    reached = len(met) == goal.rank and bool(settled.all())
    step, confirmed = onward, complete
    if (given := _given(space)) is not None:
        step = given
    elif (reached or exhausted) and not complete:
        step, confirmed = _looked_again(space, goal, wanted, onward)
    elif _is_overdue(chain, goal):
        step = _confirming(space) or onward
    if step is None or confirmed:
        step = None
        ending: Ending = "exhausted" if not reached else "met" if met.all() else "rounding"
    else:
        ending = _limit(space, goal, step)
    step = None if ending else step
    return Standing(pairs, len(met), met, exhausted, complete, confirmed, ending, step)


def _known(wanted: Pairs, goal: Goal) -> tuple[Array, Array]:
    """Which pairs are known to the tolerance, and which at least as well as the dtype allows."""
    if goal.tolerance is None:
        return np.zeros(len(wanted.values), bool), np.zeros(len(wanted.values), bool)
    return wanted.met(goal.tolerance), wanted.settled(goal.tolerance)


def _before_zeros(wanted: Pairs, goal: Goal, exhausted: bool) -> Pairs:
    """The largest, or smallest, pairs as far as the values that are zero, if there are any.

    ``A G`` has no part of the vectors that the operator maps to zero: how many there are is not
    known. An invariant space leaves some out.
    """
    zeros = exhausted or np.any(np.abs(wanted.values) <= wanted.rounding)
    if goal.which == "LM" or not zeros:
        return wanted
    sign = 1 if goal.which == "LA" else -1
    return wanted.upto(int(np.count_nonzero(sign * wanted.values >= -wanted.rounding)))


def _looked_again(
    space: Space, goal: Goal, wanted: Pairs, onward: NextBlock | None
) -> tuple[NextBlock | None, bool]:
    """What follows when the pairs are known, or the space is exhausted; and if it is confirmed."""
    trial = _trial(space.chain)
    if trial and _stays(space.chain, trial, goal, wanted):
        excluded = len(wanted.values) < goal.rank or _excludes(space, trial, goal, wanted)
        step = None if excluded else _last_continued(space)
        return step, step is None
    fresh = _confirming(space)
    if fresh is None and _stays(space.chain, len(space.chain.rounds), goal, wanted):
        return None, False
    return fresh or onward, False


def _limit(space: Space, goal: Goal, step: NextBlock) -> Ending:
    widths = [block.width for block in space.chain.blocks]
    if goal.most_rounds is not None and np.count_nonzero(widths) >= goal.most_rounds:
        return "rounds"
    if goal.most_products is None:
        return ""
    wide = min(step.most, step.transform.shape[1])
    return "products" if sum(widths) + wide > goal.most_products else ""


def _is_full(space: Space) -> bool:
    return any(
        family.rank >= space.setting.height(side)
        for side, family in space.families.items()
        if side in space.setting.sides
    )


def _trial(chain: Chain) -> int:
    """The block made of test columns of which all later ones are the chain; 0 if there is none."""
    for number in range(len(chain.rounds), 1, -1):
        source = chain.blocks[number - 1].source
        if source is None or source.round not in (0, number - 1):
            return 0
        if source.round == 0:
            return number
    return 0


def _stays(chain: Chain, number: int, goal: Goal, wanted: Pairs) -> bool:
    """Whether the pairs were known before a round, and it and later ones left them as they were.

    Of an exhausted space that has fewer pairs than are wanted only the second is asked.
    """
    if number < 2:
        return False
    before = pairs_of(Space.of(chain.upto(number - 1)), goal.which).upto(goal.rank)
    if len(before.values) != len(wanted.values):
        return False
    if len(wanted.values) == goal.rank and not _known(before, goal)[1].all():
        return False
    size = np.abs if goal.which == "LM" else np.asarray  # x and -x may change places.
    moved = np.abs(size(before.values) - size(wanted.values))
    return bool(np.all(moved <= before.bounds + wanted.bounds))


def _excludes(space: Space, trial: int, goal: Goal, wanted: Pairs) -> bool:
    """Whether the chain of a trial is too small to hide a value beyond the last wanted one, ``t``.

    Let ``e`` be a unit vector of such a value, orthogonal to the space that was tried. Test columns
    ``T = A G`` have parts of at least ``t g`` along ``e``, ``g`` Gaussian; so the squared part of
    ``e`` in their span is at least ``w = t^2 |g|^2 / lambda_max(T^H T)``, of what the space leaves
    of ``T``, and ``||(A - c)^m Q|| >= sqrt(w) |t - c|^m`` on their orthonormal basis ``Q``: also
    where ``T`` has more of the many small values of ``A`` than of ``e``. For values of both signs
    ``c = 0``, else the middle of what the chain has.
    """
    inside, left = _chain_of(space, trial)
    last = float(wanted.values[-1])
    sign = {"LM": math.copysign(1, last), "LA": 1, "SA": -1}[goal.which]
    value = sign * last - wanted.rounding
    source = space.chain.blocks[trial - 1].source
    assert source is not None
    if not len(inside) or value <= 0:
        return True
    spread = np.linalg.eigvalsh(inside)[[0, -1]] if goal.which != "LM" else np.zeros(2)
    center = float(spread.mean())
    start = np.eye(len(inside), space.chain.blocks[trial - 1].width)
    rounds = len(space.chain.rounds) - trial + 1
    norms = np.array(_powers(inside - center * np.eye(len(inside)), left, start, rounds))
    rest = _left_of_tests(Space.of(space.chain.upto(trial - 1)), source)
    share = value**2 * _unlucky(len(rest.left)) / max(largest(rest.left), _TINY)
    powers = max(value - sign * center, 0.0) ** np.arange(1, len(norms) + 1)
    return bool(np.any(norms <= math.sqrt(min(share, 1.0)) * powers))


def _unlucky(columns: int) -> float:
    """What a sum of so many squared normal numbers is below in at most one of 100 cases."""
    # The density of chi squared without its exponential, which is at most 1.
    return 2 * math.exp((math.log(_CHANCE) + math.lgamma(columns / 2 + 1)) * 2 / columns)


def _chain_of(space: Space, trial: int) -> tuple[Array, Array]:
    """The operator within what a trial's chain spans, and the Gram matrix of what its end leaves.

    Every family has orthonormal coordinates, in which that of the trial's block come first here.
    """
    last = len(space.chain.rounds)
    chain = [k for k in range(trial, last + 1) if space.chain.blocks[k - 1].width]
    if not chain or not all(family.is_triangular for family in space.families.values()):
        return np.zeros((0, 0)), np.zeros((0, 0))
    small = space.families["range"].root.conj().T @ space.middle @ space.families["corange"].root
    inside = np.block([[_between(space, small, i, j) for j in chain] for i in chain])
    own = space.family_of(last)
    root = own.root[own.places[last], own.places[last]]
    return inside, root.conj().T @ space.left_over(last) @ root


def _powers(inside: Array, left: Array, power: Array, most: int) -> list[float]:
    """Norms ``||A^m Q||``, ``m = 1, 2, ..``, of the first block of a chain."""
    norms = []
    for _ in range(most):
        before = power[len(power) - len(left) :]
        power = inside @ power
        square = power.conj().T @ power + before.conj().T @ left @ before
        norms.append(math.sqrt(largest(square)))
    return norms


def _between(space: Space, small: Array, row: int, column: int) -> Array:
    """What the operator, or its adjoint, does from one block to another, in such coordinates."""
    sides = space.chain.blocks[row - 1].side, space.chain.blocks[column - 1].side
    rows, columns = space.family_of(row).places[row], space.family_of(column).places[column]
    if space.setting.hermitian or sides == ("range", "corange"):
        return small[rows, columns]
    if sides == ("corange", "range"):
        return np.asarray(small[columns, rows].conj().T)
    return np.zeros((rows.stop - rows.start, columns.stop - columns.start), small.dtype)


def _last_continued(space: Space) -> NextBlock | None:
    number = len(space.chain.rounds)
    if not space.chain.blocks[number - 1].width:
        return None
    return _continuing(space, space.products_side(number), number)[0]


def _is_overdue(chain: Chain, goal: Goal) -> bool:
    """Whether so many rounds passed, to a tolerance, without columns of the test sketch.

    Where copies are missing, others are in their places, and these may never be known well.
    """
    if goal.tolerance is None or goal.most_rounds is None:
        return False
    tried = any(each.source is not None and each.source.round == 0 for each in chain.blocks)
    half = -(-goal.most_rounds // 2)
    due = half if goal.rounds_without_tests is None else min(half, goal.rounds_without_tests)
    return not tried and len(chain.rounds) >= due


def _onward(space: Space, wanted: Pairs, settled: Array) -> NextBlock | None:
    """The block that is made of the round with the largest share in what is not known yet."""
    missing = ~settled if not settled.all() else settled
    steps = []
    for side in space.setting.sides:
        for number in space.open_rounds(side):
            step, left = _continuing(space, side, number)
            own = space.chain.blocks[number - 1].side
            part = wanted.right if own == "corange" else wanted.left
            part = part[space.family_of(number).places[number]][:, missing]
            if step is not None:
                steps.append((float(np.sum(part.conj() * (left @ part)).real), number, step))
    return max(steps, key=lambda each: each[:2])[2] if steps else None


def _continuing(space: Space, side: Side, number: int) -> tuple[NextBlock | None, Array]:
    squares, own = space.chain.rounds[number - 1].squares, space.family_of(number)
    scale = largest(squares)
    if own.measured:
        place = own.places[number]
        scale = space.scale * largest(own.metric[place, place])
    rest = _LeftOver(
        side, BlockSource(number), space.sums(number), squares, space.left_over(number)
    )
    return _step(space, rest, scale, space.setting.double), rest.left


def _given(space: Space) -> NextBlock | None:
    """The block that is made of the given vectors, unless there are none or it was made before.

    It is not made orthogonal to ``Omega`` where it is far from depending on it: vectors that are
    nearly invariant have products of which they leave little, and of that the next block is made;
    less of ``Omega`` they would have others. The metric is measured, whatever it is.
    """
    start = space.chain.start
    if start is None or any(each.source and each.source.is_given for each in space.chain.blocks):
        return None
    own = space.families["corange"].coordinates(start.family)
    left = hermitian_part(start.squares - own.conj().T @ own)
    sums, scale, twice = start.family, largest(start.squares), space.setting.double
    if np.linalg.eigvalsh(left)[0] > _APART * scale:
        sums, left, twice = np.zeros_like(sums), start.squares, False
    rest = _LeftOver("corange", BlockSource(-1), sums, start.squares, left)
    return _step(space, rest, scale, twice)


def _confirming(space: Space) -> NextBlock | None:
    """The block that is made of columns of the test sketch that were not used before.

    Those that were lie in the space.
    """
    used = max((each.source.columns[1] for each in space.chain.blocks if each.source), default=0)
    columns = slice(used, min(used + space.chain.blocks[0].width, len(space.chain.tests)))
    if columns.start >= columns.stop:
        return None
    rest = _left_of_tests(space, BlockSource(0, (columns.start, columns.stop)))
    return _step(space, rest, largest(rest.squares), True)


def _left_of_tests(space: Space, source: BlockSource) -> _LeftOver:
    """What the space leaves of columns of the test sketch."""
    columns = slice(*source.columns)
    side = space.setting.test_side
    # F^H T = F^H A G = (A^H F)^H G: known without reading T, to the rounding of the products. It
    # is that rounding which the second projection takes away.
    sums = [space.chain.rounds[k - 1].tests for k in space.families[side].places]
    squares = space.chain.tests[columns, columns]
    none = squares[:0]
    w = np.concatenate([none, *(each[columns].conj().T for each in sums if each is not None)])
    own = space.families[side].coordinates(w)
    return _LeftOver(side, source, w, squares, hermitian_part(squares - own.conj().T @ own))


@dataclass(frozen=True)
class _LeftOver:
    """What the family on a side leaves of a source, with the sums that tell it."""

    side: Side
    source: BlockSource
    sums: Array
    squares: Array
    left: Array


def _step(space: Space, rest: _LeftOver, scale: float, twice: bool) -> NextBlock | None:
    """The step that makes what is left orthonormal, or nothing if nothing is left.

    What is below the rounding of the sums is seen only by the second projection: it is kept, as
    large as that rounding may be.
    """
    family, epsilon = space.families[rest.side], space.setting.epsilon
    most = space.setting.height(rest.side) - family.rank
    drop = (_DROP_DOUBLE if space.setting.double else _DROP_SINGLE) * math.sqrt(scale)
    values, vectors = np.linalg.eigh(rest.left)
    values, vectors = values[::-1], vectors[:, ::-1]
    if twice:
        rounding = epsilon if rest.source.round == 0 else float(np.finfo(np.float64).eps)
        values = np.maximum(values, 4 * rounding * largest(rest.squares) or 1.0)
    else:
        kept = np.flatnonzero(values > drop**2)[:most]
        values, vectors = values[kept], vectors[:, kept]
    if most <= 0 or not len(values):
        return None
    c = family.coefficients(rest.sums)
    return NextBlock(rest.side, rest.source, c, vectors / np.sqrt(values), drop, twice, most)


def refined(space: Space, step: NextBlock, sums: Array, squares: Array) -> tuple[Array, Array]:
    """The second projection of a step's draft ``D``: the block is ``(D - F C) R``.

    Its error is relative to the draft, not to the products (Giraud, Langou, Rozloznik and van den
    Eshof 2005: twice is enough).

    Args:
        space: That the step was decided on.
        step: With ``twice``.
        sums: ``F^H D``, ``(K, c)``.
        squares: ``D^H D``.

    Returns:
        ``C (K, c)`` and ``R (c, b)``; ``b`` may be 0.
    """
    c = space.families[step.side].coefficients(sums)
    left = hermitian_part(squares - c.conj().T @ sums)
    rounding = 4 * float(np.finfo(np.float64).eps) * np.diagonal(squares).real
    lengths = np.sqrt(np.maximum(np.diagonal(left).real, np.maximum(rounding, _TINY)))
    values, vectors = np.linalg.eigh(hermitian_part(left / lengths[:, None] / lengths))
    kept = values > _SEEN * len(values)
    values, vectors = np.sqrt(values[kept]), vectors[:, kept]
    # The draft's transform is unitary times diagonal.
    undone = (step.transform / np.sum(np.abs(step.transform) ** 2, axis=0)).conj().T
    u, s, _ = np.linalg.svd((vectors * lengths[:, None] * values).conj().T @ undone, False)
    wide = min(int(np.count_nonzero(s > step.floor)), step.most)
    return c, vectors / lengths[:, None] / values @ u[:, :wide]


_CHANCE = 0.01
_APART = 0.1
_DROP_SINGLE = 1e-6
_DROP_DOUBLE = 1e-10
_SEEN = 1e-14
_TINY = float(np.finfo(np.float64).tiny)
