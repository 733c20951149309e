"""Whole: the rounds of ``krylov`` approximate the whole operator, not only its leading pairs.

No product is made. All blocks that the operator was applied to are test columns, whose products are
known: most of them lie in later blocks. What is not known of the others is found by one stream over
these alone. It leaves a small file, so that it is done once. The arithmetic is in
:mod:`skerch_ooc.algebra.methods.metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skerch_ooc.algebra.krylov.space import Family, Space
from skerch_ooc.algebra.methods.metric import (
    AppliedColumns,
    AppliedSides,
    Extraction,
    compressed_copies,
    extraction,
    projection,
)
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.files import make_folder
from skerch_ooc.base.provenance import provenance
from skerch_ooc.planning.krylov import CORANGE, RANGE, partly_kept_rounds
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.recover.krylov import Search
from skerch_ooc.stages.recover.problems import Posed
from skerch_ooc.stages.recover.recipes import columns_of_result, columns_of_sums, parts_of_sums
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.sealed import sealed_writer
from skerch_ooc.store.sketch import Round
from skerch_ooc.store.tiles import Tiles

FormGram = Callable[[str, Tiles], Array]
"""Forms the Gram matrix of tall columns on a side."""


def sums_of_whole(last: Round, form_gram: FormGram) -> dict[str, Summed]:
    """Reads the sums that the rounds do not have, by sides; forms and publishes them if need be.

    Args:
        last: The last round, merged.
        form_gram: Forms sums over columns on disk.

    Raises:
        UsageError: If memory is too little.
        IncompleteError: If a file cannot be written, or is gone.
        CorruptError: If a file is damaged.
    """
    sides = (RANGE,) if last.run.plan.identity.kind == "eigh" else (RANGE, CORANGE)
    return {side: _sums_of(last, side, form_gram) for side in sides}


def pose_whole(last: Round, settings: RecoverySpec, sums: Mapping[str, Summed]) -> Posed:
    """Poses the problem of the whole operator.

    Args:
        last: The last round, merged.
        settings: Core and rank.
        sums: What :func:`sums_of_whole` returned.

    Raises:
        IncompleteError: If a file is gone.
        CorruptError: If a file is damaged.
    """
    hermitian = last.run.plan.identity.kind == "eigh"
    search = Search.of(last, last.sketch.digest)
    rank = settings.rank if isinstance(settings.rank, int) else None
    core = settings.core if isinstance(settings.core, int) else None
    if hermitian:
        found = _Hermitian(search, sums[RANGE]).extraction(core, rank)
    else:
        found = _General(search, sums[RANGE], sums[CORANGE]).extraction(rank)
    columns = columns_of_result(last.run, settings, last.number)
    return Posed(found.problem, columns.left, columns.right, columns.test, found)


@dataclass(frozen=True)
class Summed:
    """The Gram matrix of columns of several kinds.

    Attributes:
        gram: Of all.
        places: The columns of each kind.
    """

    gram: Array
    places: Mapping[str, slice]

    def of(self, left: str, right: str) -> Array:
        """``X^H Y`` of columns ``X`` of one kind and ``Y`` of another."""
        return self.gram[self.places[left], self.places[right]]


def _sums_of(last: Round, side: str, form_gram: FormGram) -> Summed:
    """Reads the sums over columns on a side; forms and publishes them first if need be."""
    places, start = {}, 0
    for kind, parts in parts_of_sums(last, side).items():
        width = sum(part.shape[1] for part in parts)
        places[kind] = slice(start, start + width)
        start += width
    wide = last.run.plan.identity.wide_dtype
    if not start:
        return Summed(np.zeros((0, 0), wide), places)
    path = last.sketch.folder / names.WHOLE.name(side=side)
    identity = names.WHOLE.identity(last.run.plan.run_id, sketch=last.sketch.digest, side=side)
    file = open_if_there(path)
    if file is not None and not file.states_just(identity):
        raise CorruptError(f"{path} is not of this sketch{file.advice}")
    if file is not None:
        return Summed(file.arrays["gram"], places)
    gram = form_gram(side, columns_of_sums(last, side).left)
    make_folder(path.parent)
    with sealed_writer(path) as writer:
        writer.publish(identity, {"gram": gram}, provenance())
    return Summed(gram, places)


@dataclass(frozen=True)
class _Held:
    """What the blocks on a side hold of the products there, and how tall columns stand.

    Attributes:
        family: The blocks.
        products: ``F^H Y`` with the blocks ``F`` and all products ``Y``.
        beside: Which of the products stand beside the blocks, as these do not hold all of them.
    """

    family: Family
    products: Array
    beside: Array

    @property
    def coordinates(self) -> Array:
        """Of the products in blocks and products beside them, ``(k, m)``."""
        inside = self.family.coefficients(self.products)
        inside[:, self.beside] = 0
        own = np.zeros((len(self.beside), inside.shape[1]), inside.dtype)
        own[np.arange(len(self.beside)), self.beside] = 1
        return np.concatenate([inside, own])

    @property
    def blocks(self) -> Array:
        """The coordinates of the blocks themselves."""
        size = self.family.size
        return np.eye(size + len(self.beside), size, dtype=self.products.dtype)

    def copies(self, beside: Array, tests: tuple[Array, Array, Array] | None) -> list[Array]:
        """Returns compressed copies of the tall columns, and of the test sketch.

        Args:
            beside: The Gram matrix of the products beside the blocks.
            tests: Products of the blocks, of these products and of the test sketch with the last.
        """
        across = self.products[:, self.beside]
        gram = np.block([[self.family.metric, across], [across.conj().T, beside]])
        widths, start = [self.family.size, len(self.beside)], len(gram)
        if tests is not None:
            column = np.concatenate(tests[:2])
            gram = np.block([[gram, column], [column.conj().T, tests[2]]])
            widths.append(len(gram) - start)
        return compressed_copies(gram, widths)


@dataclass(frozen=True)
class _Rounds:
    """The rounds, as the extraction takes them.

    Attributes:
        search: What the rounds have found.
        sums: The sums over columns on the range.
    """

    search: Search
    sums: Summed

    @cached_property
    def space(self) -> Space:
        """What the rounds span."""
        return Space.of(self.search.chain)

    @property
    def epsilon(self) -> float:
        """Relative precision of the products."""
        return self.space.setting.epsilon

    def beside(self, side: str, places: Mapping[int, slice]) -> Array:
        """Which columns of the blocks across have products that those on a side do not hold."""
        search = self.search
        rounds = partly_kept_rounds(search.round.run.plan.identity.kind, search.blocks, side)
        ranges = [places[search.numbers[number]] for number in rounds]
        return np.concatenate([np.zeros(0, int), *(np.r_[place] for place in ranges)])

    def measured(self, products: Array, places: Mapping[int, slice]) -> Array:
        """Returns ``F^H Y`` of a family, with what was measured where it was, as far as it was.

        The rest is what symmetry, or the adjoint's products, say: that is exact only to the
        rounding of products, and what the family leaves of ``Y`` may be smaller.
        """
        found = products.copy()
        for number, place in places.items():
            sums = self.space.sums(number)
            found[: len(sums), place] = sums
        return found

    @cached_property
    def tests(self) -> tuple[Array, Array, Array]:
        """Products of the blocks on the range, and of those beside them, with the test sketch."""
        blocks, own = self.search.left_tests(), self.search.chain.tests
        q = len(own)
        beside = np.zeros((0, q), blocks.dtype)
        if "test" in self.sums.places:
            beside = self.sums.of("products", "test")
        elif "products" in self.sums.places:
            beside = np.zeros((len(self.sums.of("products", "products")), q), blocks.dtype)
        return blocks, beside, own

    @property
    def spent(self) -> int:
        """How many of the first test columns blocks were made of."""
        sources = (block.source for block in self.search.blocks)
        return max((s.tests.stop for s in sources if s is not None and s.tests), default=0)

    def of_products(self) -> Array:
        """Returns the Gram matrix of the products beside the blocks on the range."""
        if "products" not in self.sums.places:
            return np.zeros((0, 0), self.space.middle.dtype)
        return self.sums.of("products", "products")


class _Hermitian(_Rounds):
    """The rounds of a Hermitian operator."""

    def extraction(self, core: int | None, rank: int | None) -> Extraction:
        """Poses the problem."""
        space = self.space
        family = space.families["corange"]
        metric, middle, products = self._widened(family.metric, space.middle)
        products = self.measured(products, family.places)
        tests = self.search.left_tests().conj().T
        width, size = len(metric) - family.size, family.size
        beside = self.beside(RANGE, family.places)
        beside = np.concatenate([beside, np.arange(size, size + width)])
        side = _Held(family, products, beside)
        *copies, t = side.copies(self.of_products(), self.tests)
        columns = AppliedColumns(
            metric=metric,
            middle=middle,
            coordinates=side.coordinates,
            tests=np.concatenate([tests, self.search.tests_of_wider()], axis=1),
            spent=self.spent,
        )
        copy = np.concatenate(copies, axis=1)
        return extraction(columns, copy, t, self.epsilon, core_size=core, rank=rank)

    def _widened(self, metric: Array, middle: Array) -> tuple[Array, Array, Array]:
        """Returns ``X^H X``, ``X^H Y`` and ``F^H Y``, with the further columns of a first sketch.

        The products of these with the blocks are those of their noise with the blocks' products.
        """
        places = self.sums.places
        if "blocks" not in places:
            return metric, middle, middle
        width = places["noise"].stop - places["noise"].start
        across, noise = self.sums.of("blocks", "noise"), self.sums.of("noise", "noise")
        metric = np.block([[metric, across], [across.conj().T, noise]])
        products = self.sums.of("blocks", "products")[:, -width:]
        own = self.sums.of("noise", "products")[:, -width:]
        rows = np.concatenate([middle, products], axis=1)
        return metric, np.block([[rows], [products.conj().T, own]]), rows


@dataclass(frozen=True)
class _General(_Rounds):
    """The rounds of an operator that is not Hermitian.

    Attributes:
        corange_sums: The sums over columns on the corange.
    """

    corange_sums: Summed

    def extraction(self, rank: int | None) -> Extraction:
        """Poses the problem."""
        space = self.space
        u, v = space.families["range"], space.families["corange"]
        if not v.measured:
            v = self.search.with_start(v)
        middle = space.middle
        left = _Held(u, self.measured(middle, v.places), self.beside(RANGE, v.places))
        back = self.measured(middle.conj().T, u.places)
        right = _Held(v, back, self.beside(CORANGE, u.places))
        *copies, t = left.copies(self.of_products(), self.tests)
        other = _Rounds(self.search, self.corange_sums).of_products()
        # Where the blocks on the range hold all products, those on the corange add nothing.
        count = v.size if len(left.beside) else 0
        none = np.zeros((0, u.size + count), middle.dtype)
        sides = AppliedSides(
            left=left.blocks,
            right=right.blocks[:, :count],
            left_metric=u.metric,
            right_metric=v.metric[:count, :count],
            adjoint_products=right.coordinates,
            products=left.coordinates[:, :count],
            middle=middle[:, :count],
            tests=self._tests(u.places) if self.search.chain.tests.size else none,
            start=np.concatenate([middle[:, :1].conj().T, v.metric[:1, :count]], axis=1),
            spent=self.spent,
        )
        both = (np.concatenate(copies, axis=1), np.concatenate(right.copies(other, None), axis=1))
        return projection(sides, both, t, self.epsilon, rank=rank)

    def _tests(self, places: Mapping[int, slice]) -> Array:
        """Returns ``G^H [A^H U, V]`` with the test matrix ``G``; without ``V`` if not used."""
        rounds, q = self.search.chain.rounds, len(self.search.chain.tests)
        found = [rounds[number - 1].tests for number in places]
        if "blocks" in self.corange_sums.places:
            found.append(self.corange_sums.of("noise", "blocks"))
        none = np.zeros((q, 0), self.space.middle.dtype)
        return np.concatenate([none, *(each for each in found if each is not None)], axis=1)
