"""Basis: an orthonormal basis of a sketch's range, written as the test matrix of the next round."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.methods.choosing import noise_floor
from skerch_ooc.algebra.methods.decompose import root_of
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.files import make_folder, remove
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import torch_threads
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.sides import CORANGE, RANGE
from skerch_ooc.planning.tasks import may_be_in_pieces
from skerch_ooc.stages.merge.task import Merged
from skerch_ooc.stages.recover.krylov import Look, Search, goal_of
from skerch_ooc.stages.recover.orthogonality import corrected, expected_deviation, may_miss_bound
from skerch_ooc.stages.recover.recipes import (
    Columns,
    RecipeFile,
    columns_of_block,
    publish_recipes,
    read_recipes,
    recipe_identity,
    remove_other_recipes,
)
from skerch_ooc.stages.recover.spread import (
    MatrixFiles,
    MatrixWriting,
    Spread,
    form_gram,
    in_pieces,
    pieces_left,
)
from skerch_ooc.stages.recover.vectors import Recipe, TileFigures, Vectors, deviation
from skerch_ooc.store import names
from skerch_ooc.store.names import BASIS_MATRIX
from skerch_ooc.store.sealed import sealed_writer
from skerch_ooc.store.sketch import BLOCK, EARLIER, Round, basis_identity, sketch_folder
from skerch_ooc.store.tiles import Tiles


def make_basis(merged: Merged, work: Work) -> bool:
    """Writes the test matrix of the next round, unless it is there.

    It is an orthonormal basis of the range of a round's sketch; directions that are rounding errors
    are left out. Beside the basis ``Q`` the file holds the transform that made it of the sketch,
    and ``Q^H T`` with the test sketch ``T`` of the same rows, which the next round is compared
    with. In ``krylov`` it is a block, unless the rounds have ended.

    Args:
        merged: The sketch.
        work: What makes a basis that is in several pieces, and with which resources.

    Returns:
        Whether there is a next round.

    Raises:
        UsageError: If memory is too little, or the operator is zero.
        CorruptError: If a shard, or the basis that is there, is damaged.
        DriftError: If the operator was another one in an earlier round of ``krylov``.
    """
    if merged.sketch.basis() is not None:
        return True
    writing = _writing(merged, work)
    if writing is None:
        return False
    path = merged.sketch.folder / names.BASIS.name()
    # A file that has lost pieces is published again once they are made again.
    remove(path)
    round_ = merged.sketch.round
    with round_.run.receipt_of("basis", round=round_.number):
        writing.write(path)
    return True


def _writing(merged: Merged, work: Work) -> BasisWriting | None:
    """Returns what writes the test matrix of the next round; ``None`` if the rounds have ended."""
    round_ = merged.sketch.round
    if round_.run.plan.krylov is None:
        return BasisWriting(merged, work)
    search = Search.of(round_, merged.sketch.digest)
    search.require_no_drift()
    while (look := search.look()).needs_rest:
        _Drafting(merged, work, search, look).publish_rest()
    _say_standing(round_, look, work)
    return None if look.step is None else BlockWriting(merged, work, search, look)


def _say_standing(round_: Round, look: Look, work: Work) -> None:
    """Says after a round how many pairs are known by now, where there is a tolerance."""
    goal = goal_of(round_.run.plan)
    if goal.tolerance is None:
        return
    pairs = look.standing.pairs.upto(goal.rank)
    off = np.max((pairs.bounds - pairs.rounding) / pairs.sizes, initial=0.0)
    work.progress.say(
        f"round {round_.number}: {np.count_nonzero(look.standing.met)} of {goal.rank} pairs are "
        f"known to {short(goal.tolerance)}, the worst to {short(float(off))}"
    )


def spread_basis(merged: Merged, work: Work, *, pieces: bool) -> None:
    """Publishes the recipe of a basis that is in pieces, and makes the pieces if asked to.

    Args:
        merged: The sketch.
        work: What makes pieces, and with which resources.
        pieces: Whether to make the pieces.

    Raises:
        UsageError: If memory is too little, or the operator is zero.
        CorruptError: If a shard is damaged.
    """
    if merged.sketch.basis() is None and (writing := _writing(merged, work)) is not None:
        writing.spread(pieces=pieces)


def basis_left(round_: Round, digest: str) -> list[int] | None:
    """Lists the numbers of the tasks of a basis in pieces that are not done; opens no shard.

    Args:
        round_: The round that the basis is made of.
        digest: The digest of its sketch.

    Returns:
        The numbers; ``None`` before its recipe is published, or if it is not in pieces.

    Raises:
        CorruptError: If the recipe is damaged.
    """
    expected = recipe_identity(round_.run, digest, {"round": round_.number})
    path = sketch_folder(round_.run, digest) / names.BASIS_RECIPE.name()
    return pieces_left(round_.run.plan, path, expected)


class BasisWriting:
    """A basis on its way to the disk."""

    def __init__(self, merged: Merged, work: Work) -> None:
        self._sketch, self._round = merged.sketch, merged.sketch.round
        self._run, self._plan = self._round.run, self._round.run.plan
        self._side = merged.sides[CORANGE if self._round.adjoint else RANGE]
        self._work = work

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What the recipe says it is."""
        of = {"round": self._round.number} | self._made_of
        return recipe_identity(self._run, self._sketch.digest, of)

    @property
    def _made_of(self) -> dict[str, Any]:
        """What the files say the basis was made of, besides the sketch."""
        if not self._plan.keeps_sketches:
            return {}
        before = self._round.basis
        return {EARLIER: list(before.digests) if before else []}

    def write(self, path: Path) -> None:
        """Writes the basis and publishes it."""
        recipe = self._prepare_recipe()
        recipes = self._publish_recipe(recipe) if in_pieces(self._plan, recipe) else None
        matrices = MatrixWriting(self._run, {BASIS_MATRIX: recipe}, recipes, self._work)
        with sealed_writer(path, *matrices.layouts) as writer:
            described, (figures,) = matrices.write(writer, {BASIS_MATRIX: self._stage})
            arrays = {
                **self._products(figures),
                "orthogonality": np.array(deviation(self._plan, figures)),
                **recipe.vectors.as_arrays(""),
            }
            identity = basis_identity(self._plan, self._sketch.digest) | described | self._made_of
            writer.publish(identity, arrays, provenance(threads=self._work.resources.threads))

    def _products(self, figures: TileFigures) -> dict[str, Array]:
        """Returns the products that were formed with the basis on the way."""
        return {"test_products": figures.test_products}

    def spread(self, *, pieces: bool) -> None:
        """Publishes the recipe of a basis that is in pieces, and makes the pieces if asked to."""
        if not may_be_in_pieces(self._plan):
            return
        recipe = self._prepare_recipe()
        if in_pieces(self._plan, recipe):
            files = MatrixFiles(self._plan, self._publish_recipe(recipe), BASIS_MATRIX)
            if pieces:
                Spread(self._run, files, self._work).run_tasks(self._stage)

    @property
    def _stage(self) -> str:
        return f"basis {self._round.number + 1}"

    def _prepare_recipe(self) -> Recipe:
        """Reads the recipe that is published; else removes that of another sketch, and finds it."""
        if (known := self._known()) is not None:
            return known
        remove_other_recipes(self._recipe_path, self._identity)
        return self._find_recipe()

    @property
    def _recipe_path(self) -> Path:
        return self._sketch.folder / names.BASIS_RECIPE.name()

    def _publish_recipe(self, recipe: Recipe) -> RecipeFile:
        return publish_recipes(self._recipe_path, self._identity, {BASIS_MATRIX: recipe}, {})

    def _recipe_of(self, vectors: Vectors) -> Recipe:
        test = self._side.reader.roles.get("test")
        return Recipe(BASIS_MATRIX, self._side.side.rows, vectors, test)

    @property
    def _columns(self) -> Columns:
        test = self._side.reader.roles.get("test")
        return Columns(self._sketch.digest, self._source, None, test)

    def _known(self) -> Recipe | None:
        """Reads the recipe that an earlier process published, perhaps before it was killed."""
        columns = self._columns
        file = read_recipes(self._recipe_path, self._identity, columns)
        return file.matrices[BASIS_MATRIX] if file else None

    @property
    def _source(self) -> Tiles:
        return self._side.reader.roles[self._round.role]

    def _find_recipe(self) -> Recipe:
        floor = noise_floor(self._plan.identity.epsilon)
        with torch_threads(self._work.resources.threads):
            root = root_of(self._side.copy(self._round.role), floor)
        if root.inverse.shape[1] == 0:
            raise UsageError(
                "there is nothing to decompose: the operator's products with all test vectors are "
                "zero; check its data"
            )
        recipe = self._recipe_of(Vectors(self._source, root.inverse))
        if not may_miss_bound(self._plan, expected_deviation(self._plan, root.condition)):
            return recipe
        gram = form_gram(
            self._run, recipe, self._identity, self._sketch.folder / names.BASIS_DRAFT.name(),
            self._work,
        )  # fmt: skip
        ones = np.ones(recipe.vectors.rank)
        return self._recipe_of(corrected(ones, [recipe.vectors], [gram])[1][0])


class BlockWriting(BasisWriting):
    """A block of ``krylov`` on its way to the disk.

    Args:
        merged: The sketch of the round that ended.
        work: What makes a block that is in several pieces, and with which resources.
        search: What the rounds have found so far.
        look: How the block is made.
    """

    def __init__(self, merged: Merged, work: Work, search: Search, look: Look) -> None:
        super().__init__(merged, work)
        self._search, self._look = search, look

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        return {BLOCK: self._search.described(self._look)}

    def _products(self, figures: TileFigures) -> dict[str, Array]:
        return {"metric": figures.metric}

    @cached_property
    def _columns(self) -> Columns:
        return columns_of_block(self._round, self._sketch.digest, self._made_of[BLOCK])

    def _recipe_of(self, vectors: Vectors) -> Recipe:
        columns = self._columns
        return Recipe(
            BASIS_MATRIX, columns.left.shape[0], vectors, family=columns.family, is_block=True
        )

    def _find_recipe(self) -> Recipe:
        vectors = self._draft()
        if self._look.second is not None:
            projection, correction = self._look.second
            vectors = dataclasses.replace(vectors, correction=correction, projection=projection)
        return self._recipe_of(vectors)

    def _draft(self) -> Vectors:
        """Returns the block as it is projected for the first time."""
        step, source = self._look.step, self._columns.left
        assert step is not None
        made = np.concatenate([-step.coefficients @ step.transform, step.transform])
        transform = np.zeros((source.shape[1], made.shape[1]), made.dtype)
        transform[: len(made)] = made
        return Vectors(source, transform)


class _Drafting(BlockWriting):
    """The draft of a block, which is not written: sums over it tell how to project it once more.

    Rounding errors of what it is made of hide what is small in it.
    """

    def publish_rest(self) -> None:
        """Forms the sums, and publishes them with the factors of the draft."""
        look, search = self._look, self._search
        assert look.step is not None
        assert look.source is not None
        draft = self._sketch.folder / names.BASIS_DRAFT.name()
        recipe = self._recipe_of(self._draft())
        sums = form_gram(self._run, recipe, self._identity, draft, self._work)
        arrays = {
            "coefficients": look.step.coefficients,
            "transform": look.step.transform,
            "sums": sums,
        }
        make_folder(self._sketch.folder)
        with sealed_writer(search.rest_path(look.source)) as writer:
            writer.publish(search.rest_identity(look.source), arrays, provenance())
