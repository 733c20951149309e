"""Block Krylov rounds of a dense operator in memory, with the algebra of the package.

The streams over rows are products of numpy: basis and products are rounded to the dtype of the
storage, sums are in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skerch_ooc.algebra.krylov.space import Space
from skerch_ooc.algebra.krylov.steps import Goal, Standing, decide, refined
from skerch_ooc.algebra.krylov.sums import Block, Chain, Products, Setting, no_products


def noise(rows, columns, seed, dtype="float32"):
    """Signs, or for a complex dtype phases of a quarter turn."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "c":
        return (1j ** random.integers(0, 4, (rows, columns))).astype(dtype)
    return (2.0 * random.integers(0, 2, (rows, columns)) - 1).astype(dtype)


@dataclass
class InMemory:
    """A run: ``apply(x)`` and ``adjoint(x)`` are the operator; the rest is as in the package."""

    apply: object
    adjoint: object
    setting: Setting
    width: int
    test_columns: int = 30
    seed: int = 0

    def __post_init__(self):
        w = self.setting.shape[1]
        self.dtype = np.dtype(self.setting.dtype)
        self.double = np.result_type(self.dtype, np.float64)
        self.stored = [noise(w, min(self.width, w), (self.seed, 1), self.dtype)]
        self.products = []
        random = np.random.default_rng((self.seed, 2))
        self.g = random.standard_normal((w, self.test_columns)).astype(self.dtype)
        self.t = self.applied(self.g, "corange")
        self.chain = Chain(
            self.setting,
            (Block("corange", self.stored[0].shape[1]),),
            (),
            self.sums(self.t, self.t),
        )

    def applied(self, x, side):
        if x.shape[1] == 0:
            return np.zeros((self.setting.height(self.setting.across(side)), 0), self.dtype)
        product = self.apply if side == "corange" else self.adjoint
        return np.asarray(product(x)).astype(self.dtype)

    def sums(self, left, right):
        """``left^H right``, added in double precision."""
        return left.astype(self.double).conj().T @ right.astype(self.double)

    def family(self, side):
        h = self.setting.height(side)
        members = [self.stored[k - 1] for k in self.chain.members(side)]
        return np.concatenate([np.zeros((h, 0), self.dtype), *members], axis=1)

    def round(self):
        """Applies the operator to the last block, and the first stream."""
        chain, number = self.chain, len(self.chain.rounds) + 1
        block = chain.blocks[number - 1]
        side = self.setting.across(block.side)
        y = self.applied(self.stored[number - 1], block.side)
        self.products.append(y)
        if not block.width:
            products = no_products(self.family(side).shape[1])
        else:
            unknown = side == "corange" and all(each.start is None for each in chain.rounds)
            omega = self.stored[0]
            products = Products(
                self.sums(self.family(side), y),
                self.sums(y, y),
                self.sums(self.g, y) if side == "corange" else None,
                {j: self.sums(self.products[j - 1], y) for j in chain.open_rounds(side)},
                self.sums(omega, omega) if unknown else None,
            )
        self.chain = Chain(chain.setting, chain.blocks, (*chain.rounds, products), chain.tests)

    def write(self, step):
        """The second stream: the next block."""
        chain = self.chain
        family = self.family(step.side).astype(self.double)
        start, stop = step.source.columns
        source = (
            self.products[step.source.round - 1] if step.source.round else self.t[:, start:stop]
        )
        draft = source @ step.transform - family @ (step.coefficients @ step.transform)
        if step.twice:
            c, r = refined(Space.of(chain), step, self.sums(family, draft), self.sums(draft, draft))
            draft = draft @ r - family @ (c @ r)
        new = draft.astype(self.dtype)
        block = Block(
            step.side,
            new.shape[1],
            step.source,
            np.concatenate([self.sums(new, family), self.sums(new, new)], axis=1),
            {j: self.sums(new, self.products[j - 1]) for j in chain.open_rounds(step.side)},
        )
        self.stored.append(new)
        self.chain = Chain(chain.setting, (*chain.blocks, block), chain.rounds, chain.tests)

    def run(self, goal: Goal) -> Standing:
        """Rounds until the end; goes on from where it is."""
        if not self.chain.rounds:
            self.round()
        while (standing := decide(self.chain, goal)).step is not None:
            self.write(standing.step)
            self.round()
        return standing

    @property
    def used(self):
        """Products, without those of the test sketch."""
        return sum(block.width for block in self.chain.blocks)

    def vectors(self, standing, rank):
        """The Ritz vectors, left and right."""
        pairs = standing.pairs.upto(rank)
        right = self.family("corange").astype(self.double) @ pairs.right
        side = "corange" if self.setting.hermitian else "range"
        return self.family(side).astype(self.double) @ pairs.left, right


def dense(a, width, hermitian=True, dtype="float32", **more):
    """A run on a dense matrix."""
    a = a.astype(dtype)
    return InMemory(
        lambda x: a @ x, lambda x: a.conj().T @ x, Setting(a.shape, hermitian, dtype), width, **more
    )


def diagonal(values, width, dtype="float32", **more):
    """A run on a Hermitian operator whose eigenvectors are unit vectors."""
    d = np.asarray(values).astype(dtype)[:, None]
    return InMemory(
        lambda x: d * x, lambda x: d * x, Setting((len(d), len(d)), True, dtype), width, **more
    )


def ordered(values, dtype="float32", which="LM"):
    """Values as they are stored, those that are wanted first."""
    values = np.sort(np.asarray(values).astype(dtype).astype(np.float64))
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")]
    return values[::-1] if which == "LA" else values
