"""Basis: an orthonormal basis of a sketch's range, written as the test matrix of the next round."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skerch_ooc.algebra.methods.choosing import noise_floor
from skerch_ooc.algebra.methods.decompose import root_of
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.files import remove
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import torch_threads
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.sides import CORANGE, RANGE
from skerch_ooc.planning.tasks import may_be_in_pieces
from skerch_ooc.stages.merge.task import Merged
from skerch_ooc.stages.recover.orthogonality import corrected, expected_deviation, may_miss_bound
from skerch_ooc.stages.recover.recipes import (
    Columns,
    RecipeFile,
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
from skerch_ooc.stages.recover.vectors import Recipe, Vectors, deviation
from skerch_ooc.store import names
from skerch_ooc.store.names import BASIS_MATRIX
from skerch_ooc.store.sealed import sealed_writer
from skerch_ooc.store.sketch import Sketch, basis_identity
from skerch_ooc.store.tiles import Tiles


def make_basis(merged: Merged, work: Work) -> None:
    """Writes an orthonormal basis of the range of a round's sketch, unless it is there.

    Directions that are rounding errors are left out. Beside the basis ``Q`` the file holds the
    transform that made it of the sketch, and ``Q^H T`` with the test sketch ``T`` of the same rows,
    which the next round is compared with.

    Args:
        merged: The sketch.
        work: What makes a basis that is in several pieces, and with which resources.

    Raises:
        UsageError: If memory is too little, or the operator is zero.
        CorruptError: If a shard, or the basis that is there, is damaged.
    """
    if merged.sketch.basis() is not None:
        return
    path = merged.sketch.folder / names.BASIS.name()
    # A file that has lost pieces is published again once they are made again.
    remove(path)
    round_ = merged.sketch.round
    with round_.run.receipt_of("basis", round=round_.number):
        BasisWriting(merged, work).write(path)


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
    if merged.sketch.basis() is None:
        BasisWriting(merged, work).spread(pieces=pieces)


def basis_left(sketch: Sketch) -> list[int] | None:
    """Lists the numbers of the tasks of a basis in pieces that are not done.

    Args:
        sketch: The sketch that the basis is made of.

    Returns:
        The numbers; ``None`` before its recipe is published, or if it is not in pieces.

    Raises:
        CorruptError: If the recipe is damaged.
    """
    round_ = sketch.round
    expected = recipe_identity(round_.run, sketch.digest, {"round": round_.number})
    return pieces_left(round_.run.plan, sketch.folder / names.BASIS_RECIPE.name(), expected)


class BasisWriting:
    """A basis on its way to the disk."""

    def __init__(self, merged: Merged, work: Work) -> None:
        self._sketch, self._round = merged.sketch, merged.sketch.round
        self._run, self._plan = self._round.run, self._round.run.plan
        self._side = merged.sides[CORANGE if self._round.adjoint else RANGE]
        self._work = work
        self._identity = recipe_identity(
            self._run, self._sketch.digest, {"round": self._round.number}
        )

    def write(self, path: Path) -> None:
        """Writes the basis and publishes it."""
        recipe = self._prepare_recipe()
        recipes = self._publish_recipe(recipe) if in_pieces(self._plan, recipe) else None
        matrices = MatrixWriting(self._run, {BASIS_MATRIX: recipe}, recipes, self._work)
        with sealed_writer(path, *matrices.layouts) as writer:
            described, (figures,) = matrices.write(writer, {BASIS_MATRIX: self._stage})
            arrays = {
                "test_products": figures.test_products,
                "orthogonality": np.array(deviation(self._plan, figures)),
                **recipe.vectors.as_arrays(""),
            }
            identity = basis_identity(self._plan, self._sketch.digest) | described
            writer.publish(identity, arrays, provenance(threads=self._work.resources.threads))

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

    def _known(self) -> Recipe | None:
        """Reads the recipe that an earlier process published, perhaps before it was killed."""
        recipe = self._recipe_of(Vectors(self._source, np.zeros((0, 0))))
        columns = Columns(self._sketch.digest, self._source, None, recipe.test)
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
