"""Krylov: what the rounds of a run have found so far, and what the next block is made of.

All of it follows from the sums and blocks on disk: no shard is opened, and any process that looks
finds the same. The arithmetic is in :mod:`skerch_ooc.algebra.krylov`, which counts what was looked
at and had nothing new as a round too, of no columns. So it has numbers of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from skerch_ooc.algebra.krylov import sums as algebra
from skerch_ooc.algebra.krylov.drift import drifts
from skerch_ooc.algebra.krylov.pairs import Pairs, pairs_of, quadrature
from skerch_ooc.algebra.krylov.space import Family, Space, metric_root
from skerch_ooc.algebra.krylov.steps import Goal, NextBlock, Standing, decide, refined
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, DriftError, IncompleteError, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.krylov import (
    CORANGE,
    RANGE,
    BasisBlock,
    Origin,
    across,
    most_rounds_of_old,
)
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import OPEN, START, test_matrix_of_block
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.accumulate import Sums
from skerch_ooc.stages.merge.task import Merged, read_total
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sketch import Round, known_rounds, sketch_folder


def goal_of(plan: Plan, settings: RecoverySpec | None = None) -> Goal:
    """Returns what the rounds of a run look for, or a result of them."""
    krylov = plan.krylov
    assert krylov is not None
    wanted = settings or plan.recovery
    rank = wanted.rank if isinstance(wanted.rank, int) else plan.space
    due = None
    if krylov.tile is not None:
        # Plans that have no tiles of their own go on as they began.
        due = -(-most_rounds_of_old(plan.identity.kind, rank, krylov.width) // 2)
    goal = Goal(rank, krylov.tolerance, wanted.which, krylov.rounds)  # type: ignore[arg-type]
    return dataclasses.replace(goal, rounds_without_tests=due)


@dataclass(frozen=True)
class Rest:
    """What a stream over a draft of a block has found: it is projected once more by that.

    Attributes:
        coefficients: ``C`` of the draft ``X T - F (C T)``.
        transform: ``T``.
        sums: ``[F D]^H D`` of the draft ``D``.
    """

    coefficients: Array
    transform: Array
    sums: Array


@dataclass(frozen=True)
class Look:
    """How far the search is, and how the next block is made.

    Attributes:
        standing: How far the pairs are; its step is ``None`` at the end.
        space: What the rounds span.
        source: What the next block is made of.
        spent: What was looked at before, and had nothing new.
        second: For a block that is projected twice: ``C`` and ``R`` of the second projection;
            ``None`` if the first needs no second, or the sums for it are not there yet.
    """

    standing: Standing
    space: Space
    source: Origin | None = None
    spent: tuple[Origin, ...] = ()
    second: tuple[Array, Array] | None = None

    @property
    def step(self) -> NextBlock | None:
        """How the next block is made."""
        return self.standing.step

    @property
    def needs_rest(self) -> bool:
        """Whether a stream over the draft has to come first."""
        return self.step is not None and self.step.twice and self.second is None

    @property
    def family(self) -> Family:
        """The blocks to which the next one is orthogonal."""
        assert self.step is not None
        return self.space.families[self.step.side]


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of a Gauss quadrature with the spectrum of an operator.

    Attributes:
        nodes: Ascending, ``(k,)``.
        weights: For each random column, ``(k, b)``; each sums to its squared norm, or, with 1 for
            each eigenvalue that is known, to the number of all.
        residuals: How far each node may be from an eigenvalue, ``(k,)``.
    """

    nodes: Array
    weights: Array
    residuals: Array


@dataclass(frozen=True)
class Search:
    """What the rounds of a run have found so far.

    Attributes:
        round: The last round that is measured and merged.
        digests: The digests of the sketches of all rounds up to it.
    """

    round: Round
    digests: tuple[str, ...]

    @classmethod
    def of(cls, round_: Round, digest: str) -> Search:
        """Looks at the rounds up to one whose sketch has a digest."""
        earlier = round_.basis.digests if round_.basis else ()
        return cls(round_, (*earlier, digest))

    @property
    def _plan(self) -> Plan:
        return self.round.run.plan

    @property
    def _kind(self) -> str:
        return self._plan.identity.kind

    @property
    def blocks(self) -> list[BasisBlock]:
        """The blocks that were applied."""
        return self.round.blocks

    @cached_property
    def numbers(self) -> dict[int, int]:
        """For each round its number in the algebra."""
        found, before = {}, 0
        for block in self.blocks:
            before += len(block.spent) + 1
            found[block.number] = before
        return found

    @cached_property
    def chain(self) -> algebra.Chain:
        """The sums of all rounds, as the algebra takes them.

        Raises:
            IncompleteError: If a round is not merged.
            CorruptError: If a file is damaged.
        """
        shape, hermitian = self._plan.identity.shape, self._kind == "eigh"
        setting = algebra.Setting(shape, hermitian, self._plan.identity.dtype)
        chain = algebra.Chain(setting, (), (), self._test_squares(), self._start())
        for block in self.blocks:
            for source in block.spent:
                chain = self._without_columns(chain, source)
            chain = dataclasses.replace(
                chain,
                blocks=(*chain.blocks, self._block(block)),
                rounds=(*chain.rounds, self._products(block)),
            )
        return chain

    def _without_columns(self, chain: algebra.Chain, source: Origin) -> algebra.Chain:
        """Returns a chain that knows that there is nothing new in a source."""
        side = self._side_of(source)
        columns = {s: sum(b.width for b in chain.blocks if b.side == s) for s in _SIDES}
        there = _side(self._kind, side)
        block = algebra.Block(
            there, 0, self._algebraic(source), np.zeros((0, columns[there])),
        )  # fmt: skip
        beyond = _side(self._kind, across(self._kind, side))
        return dataclasses.replace(
            chain,
            blocks=(*chain.blocks, block),
            rounds=(*chain.rounds, algebra.no_products(columns[beyond])),
        )

    def _side_of(self, source: Origin) -> str:
        """Returns the side that a source lies on."""
        if source.is_start:
            return self.blocks[0].side
        if source.products is None:
            return RANGE
        return across(self._kind, self.blocks[source.products - 1].side)

    def _algebraic(self, source: Origin) -> algebra.BlockSource:
        if source.is_start:
            return algebra.BlockSource(-1)
        if source.tests is not None:
            return algebra.BlockSource(0, (source.tests.start, source.tests.stop))
        assert source.products is not None
        return algebra.BlockSource(self.numbers[source.products])

    def _source(self, step: NextBlock) -> Origin:
        """Returns what a step's block is made of, by the numbers of rounds."""
        if step.source.is_given:
            return Origin()
        if step.confirms:
            return Origin(tests=Range(*step.source.columns))
        back = {number: mine for mine, number in self.numbers.items()}
        return Origin(products=back[step.source.round])

    def _block(self, block: BasisBlock) -> algebra.Block:
        side = _side(self._kind, block.side)
        if block.source is None:
            return algebra.Block(side, block.columns)
        measured = self.round.bases[block.number].file.arrays["metric"]
        earlier = self.blocks[: block.number - 1]
        before = sum(b.columns for b in earlier if b.side == block.side)
        # The columns of its source, and of other open rounds, stand between those of the family
        # and its own.
        products, start = {}, before
        for source in sources_of(self._kind, earlier, block):
            width = self._columns_of(source)
            if source.products is not None:
                number = self.numbers[source.products]
                products[number] = measured[:, start : start + width]
            start += width
        metric = np.concatenate([measured[:, :before], measured[:, start:]], axis=1)
        return algebra.Block(side, block.columns, self._algebraic(block.source), metric, products)

    def _columns_of(self, source: Origin) -> int:
        if source.is_start:
            return self._plan.start_columns
        if source.tests is not None:
            return len(source.tests)
        assert source.products is not None
        return self.blocks[source.products - 1].columns

    def _sums(self, number: int, name: str) -> tuple[Sums, Mapping[str, Range]]:
        """Reads the sums of a side of a round, and the rows that each test matrix has in them.

        Raises:
            IncompleteError: If they are not there.
        """
        round_ = self.round.at_number(number)
        (side,) = (side for side in round_.sides if side.name == name)
        sums = read_total(round_.run, self.digests[number - 1], side)
        if sums is None:
            raise IncompleteError(
                f"round {number} is not merged; merge it with: skerch-ooc merge "
                f"{quoted(round_.run.directory)}"
            )
        return sums, side.noise

    def _products(self, block: BasisBlock) -> algebra.Products:
        side = across(self._kind, block.side)
        sums, noise = self._sums(block.number, side)
        columns = slice(0, block.columns)
        # Of a wider first sketch only the first columns are the products of the first block.
        rows = {name: sums.cross[place.slice][:, columns] for name, place in noise.items()}
        there = [b for b in self.blocks[: block.number] if b.side == side]
        family = [rows[test_matrix_of_block(b)][: b.columns] for b in there]
        empty = np.zeros((0, block.columns), sums.cross.dtype)
        return algebra.Products(
            family=np.concatenate([empty, *family]),
            squares=squares_of(sums)[columns, columns],
            tests=rows.get("test") if side == CORANGE or self._kind == "eigh" else None,
            others={
                self.numbers[int(name.removeprefix(OPEN))]: products
                for name, products in rows.items()
                if name.startswith(OPEN)
            },
            start=self._start_squares(block),
        )

    def _start_squares(self, block: BasisBlock) -> Array | None:
        """Returns ``Omega^H Omega`` for the first round whose products lie beside ``Omega``.

        If vectors are given it is the first of all, as the next block is made beside ``Omega``.
        """
        own, first = self.blocks[0], self._plan.start_columns > 0
        beside = (b.number for b in self.blocks if first or across(self._kind, b.side) == own.side)
        if block.number != next(beside, 0):
            return None
        return squares_of(self._sums(1, START)[0])[: own.columns, : own.columns]

    def _start(self) -> algebra.Given | None:
        """Returns the sums over the vectors that were given to start with."""
        if not self._plan.start_columns:
            return None
        squares, own = squares_of(self._sums(1, START)[0]), self.blocks[0].columns
        return algebra.Given(squares[:own, own:], squares[own:, own:])

    def _test_squares(self) -> Array:
        sums, _ = self._sums(1, RANGE)
        right = self._plan.reach("right")
        return squares_of(sums)[right:, right:]

    def look(self, goal: Goal | None = None) -> Look:
        """Says how far the pairs are, and how the next block is made; reads what was found of it.

        Args:
            goal: What is looked for, if not what the plan says.

        Raises:
            IncompleteError: If a round is not merged.
            CorruptError: If a file is damaged.
        """
        chain, spent = self.chain, list[Origin]()
        while True:
            standing = decide(chain, goal or goal_of(self._plan))
            found = Look(standing, Space.of(chain), spent=tuple(spent))
            step = standing.step
            if step is None:
                return found
            source = self._source(step)
            found = dataclasses.replace(found, source=source)
            rest = self.rest(source) if step.twice else None
            if rest is None:
                return found
            step = dataclasses.replace(
                step, coefficients=rest.coefficients, transform=rest.transform
            )
            k = found.family.size
            second = refined(found.space, step, rest.sums[:k], rest.sums[k:])
            if second[1].shape[1]:
                standing = dataclasses.replace(standing, step=step)
                return dataclasses.replace(found, standing=standing, second=second)
            spent.append(source)
            chain = self._without_columns(chain, source)

    def rest_path(self, source: Origin) -> Path:
        """Returns the file of the sums over the draft of a block."""
        return sketch_folder(self.round.run, self.digests[-1]) / names.REST.name(source=source)

    def rest_identity(self, source: Origin) -> dict[str, object]:
        """Returns what that file says it is."""
        run_id = self.round.run.plan.run_id
        return names.REST.identity(run_id, sketch=self.digests[-1], source=str(source))

    def rest(self, source: Origin) -> Rest | None:
        """Reads the sums over the draft of a block; ``None`` if they are not there.

        Raises:
            CorruptError: If the file is damaged, or of something else.
        """
        file = open_if_there(self.rest_path(source))
        if file is None:
            return None
        if not file.states_just(self.rest_identity(source)):
            raise CorruptError(f"{file.path} is not of this sketch{file.advice}")
        return Rest(**file.arrays)

    def described(self, look: Look) -> dict[str, object]:
        """Returns what the file of the next block says of its making."""
        assert look.source is not None
        side, number = self._side_of(look.source), len(self.blocks) + 1
        block = BasisBlock(number, 0, side, look.source, look.spent)
        return {**block.as_json(), "earlier": list(self.digests[:-1])}

    def require_no_drift(self) -> None:
        """Refuses rounds that were not made by one operator.

        Raises:
            DriftError: If the last round contradicts itself or an earlier one.
        """
        last = drifts(Space.of(self.chain))[-1]
        if not last.stands_out:
            return
        where = "itself" if last.within > last.between else "the rounds before it"
        raise DriftError(
            f"the operator changed while it was measured: round {self.round.number} contradicts "
            f"{where} (asymmetry {short(max(last.within, last.between))} of the operator's norm, "
            f"allowed {short(last.limit)}). Find out what changed (weights, data, dropout, a "
            f"shuffled loader), restore it, remove the shards of role {self.round.role}, and "
            "measure them again"
        )

    def is_steady(self, goal: Goal, pairs: Pairs) -> bool:
        """Whether the last block of test columns left the values where they were, within bounds.

        If not, further columns might have shown still other values.

        Args:
            goal: What is looked for.
            pairs: The pairs that were found.
        """
        trials = [b.number for b in self.blocks if b.source is not None and b.source.tests]
        if not trials:
            return True
        rounds = self.numbers[trials[-1] - 1]
        before = pairs_of(Space.of(self.chain.upto(rounds)), goal.which).upto(len(pairs.values))
        if len(before.values) < len(pairs.values):
            return False
        moved = np.abs(np.abs(before.values) - np.abs(pairs.values))
        return bool(np.all(moved <= before.bounds + pairs.bounds))

    def chain_start(self, side: str) -> Array:
        """Returns ``omega_1^H F`` with the first random column, ``(K,)``, of all blocks on a side.

        It is the side on which the first block lies.
        """
        space = Space.of(self.chain)
        return np.asarray(space.families[_side(self._kind, side)].metric[0])

    def test_products(self, side: str) -> Array:
        """Returns ``G^H F`` with the test matrix ``G``, ``(q, K)``, of all blocks on a side.

        Blocks are made of noise and of products, whose own products with ``G`` were measured.
        """
        start, noise = self._sums(1, START)
        q, wide = self._plan.reach("test"), start.cross.dtype
        tests = start.cross[noise["test"].slice] if q else np.zeros((0, start.cross.shape[1]), wide)
        first = tests[:, : self.blocks[0].columns]
        found = np.zeros((q, 0), wide)
        for block in self.blocks:
            if block.side != side:
                continue
            made = first
            if block.source is not None:
                basis = self.round.bases[block.number].file
                x = [found, *(
                    self._tests_of(source)
                    for source in sources_of(self._kind, self.blocks[: block.number - 1], block)
                )]  # fmt: skip
                made = np.concatenate(x, axis=1) @ basis.arrays["transform"]
                if "projection" in basis.arrays:
                    made = made - found @ basis.arrays["projection"]
                if "correction" in basis.arrays:
                    made = made @ basis.arrays["correction"]
            found = np.concatenate([found, made], axis=1)
        return found

    def _tests_of(self, source: Origin) -> Array:
        """Returns the products of the test matrix with a source."""
        if source.is_start:
            sums, noise = self._sums(1, START)
            return sums.cross[noise["test"].slice if noise else slice(0), self.blocks[0].columns :]
        if source.tests is not None:
            sums, noise = self._sums(1, RANGE)
            right = self._plan.reach("right")
            return sums.cross[noise["test"].slice, right:][:, source.tests.slice]
        number = self.numbers[source.products or 0]
        found = self.chain.rounds[number - 1]
        # Without a test sketch there are none.
        return np.zeros((0, found.squares.shape[0])) if found.tests is None else found.tests

    def tests_of_wider(self) -> Array:
        """Returns products of the test matrix with those of a first sketch beyond the first round.

        They are ``(q, m - b)``; usually there are none of the latter.
        """
        sums, noise = self._sums(1, RANGE)
        first, right = self.blocks[0].columns, self._plan.reach("right")
        rows = noise["test"].slice if "test" in noise else slice(0, 0)
        return np.asarray(sums.cross[rows, first:right])

    def with_start(self, known: Family) -> Family:
        """Returns the first block alone with its metric, which is measured apart from products."""
        own = slice(0, self.blocks[0].columns)
        metric = squares_of(self._sums(1, START)[0])[own, own]
        return Family(known.places, metric, metric_root(metric))

    def left_tests(self) -> Array:
        """Returns ``F^H T`` with the test sketch ``T``, ``(K, q)``, for the vectors on its side."""
        space = Space.of(self.chain)
        family = space.families[space.setting.test_side]
        tests = [self.chain.rounds[number - 1].tests for number in family.places]
        there = [each.conj().T for each in tests if each is not None]
        return np.concatenate(there) if there else np.zeros((family.size, 0))

    def quadratures(self) -> tuple[Quadrature, Quadrature | None]:
        """Returns the quadrature of all rounds, and that of all but the last.

        Where vectors were given to start with, the rounds after them tell little of the random
        columns: there it is the quadrature before the last block that follows from these.
        """
        chain, goal = self.chain, goal_of(self._plan)
        standing = decide(chain, goal)
        # Each of them is one eigenvalue, and test columns have shown no other copy.
        known = int(np.argmin([*standing.met, False])) if standing.confirmed else 0

        def of(rounds: int) -> Quadrature:
            space = Space.of(chain.upto(rounds))
            pairs = pairs_of(space, goal.which)
            nodes, weights = quadrature(space, pairs)
            weights = _with_known(weights, known, self._plan.identity.shape[0])
            order = np.argsort(nodes)
            return Quadrature(nodes[order], weights[order], pairs.residuals[order])

        last = self._last_of_noise() if self._plan.start_columns else len(self.blocks)
        before = self.numbers.get(last - 1)
        return of(len(chain.rounds)), None if before is None else of(before)

    def _last_of_noise(self) -> int:
        """Returns the number of the last block that is made of the first one's products."""
        found = {1}
        for block in self.blocks:
            if block.source is not None and block.source.products in found:
                found.add(block.number)
        return max(found)


def _with_known(weights: Array, known: int, n: int) -> Array:
    """Counts each of the first nodes as one eigenvalue, and what is left as the other nodes say.

    That takes the random columns' parts along their vectors out of the estimate (as Hutch++ does:
    Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649, algorithm 1).
    """
    rest = weights[known:].sum(axis=0)
    if not known or not rest.all():
        return weights
    return np.concatenate([np.ones_like(weights[:known]), weights[known:] * ((n - known) / rest)])


_SIDES: tuple[algebra.Side, ...] = ("range", "corange")


def _side(kind: str, side: str) -> algebra.Side:
    """Returns the side as the algebra calls it, for which a Hermitian operator has only one."""
    return "corange" if kind == "eigh" or side == CORANGE else "range"


def sources_of(kind: str, earlier: Sequence[BasisBlock], block: BasisBlock) -> list[Origin]:
    """Returns what the columns of a block's source are besides the blocks on its side.

    First comes what it is made of, then the products of all other rounds that are open on its side:
    they have no part in it, but its products with them are measured.

    Args:
        kind: ``"eigh"`` or ``"svd"``.
        earlier: The blocks before it.
        block: The block.
    """
    assert block.source is not None
    spent = {source.products for b in (*earlier, block) for source in b.spent}
    used = spent | {b.source.products for b in earlier if b.source is not None}
    others = [
        Origin(products=b.number)
        for b in earlier
        if across(kind, b.side) == block.side and b.number not in used
    ]
    return [block.source, *(source for source in others if source != block.source)]


def squares_of(sums: Sums) -> Array:
    """Returns ``Z^H Z`` of sums, which may be its root."""
    return sums.squares.conj().T @ sums.squares if sums.triangular else sums.squares


def has_ended(round_: Round, digest: str) -> bool:
    """Whether no round follows a measured one; not if it is not merged yet.

    Args:
        round_: The last round that is measured.
        digest: The digest of its sketch.

    Raises:
        CorruptError: If a file is damaged.
    """
    try:
        return Search.of(round_, digest).look().step is None
    except IncompleteError:
        return False


def is_last(merged: Merged) -> bool:
    """Whether no round follows a merged one."""
    round_, plan = merged.sketch.round, merged.sketch.round.run.plan
    if round_.number == plan.rounds or plan.krylov is None:
        return round_.number == plan.rounds
    return has_ended(round_, merged.sketch.digest)


def search_of(run: Run) -> Search:
    """Returns what the rounds of a run have found so far, as far as they are merged.

    Raises:
        IncompleteError: If the first round is not measured and merged, or the shards were removed.
        CorruptError: If a file is damaged.
    """
    run.require_shards()
    last = None
    for round_ in known_rounds(run):
        if round_.is_measured():
            search = Search.of(round_, round_.sketch.digest)
            try:
                _ = search.chain
            except IncompleteError:
                if last is None:
                    raise
                break
            last = search
    if last is None:
        raise IncompleteError(
            f"no round of {run.directory} is measured; go on with: {run.how_to_measure()}"
        )
    return last
