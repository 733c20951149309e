"""Spreads tall matrices (vectors, bases) over tasks: each makes an aligned run of row tiles.

A task publishes a piece of the matrix with the figures of its rows or, where vectors are to be
corrected, the Gram matrix of its rows. The plan alone decides how pieces are cut, and their sums
are added in one fixed tree, so the result does not depend on the executor. A piece that is there is
not made again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skerch_ooc.algebra.linalg import mirrored
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import IncompleteError
from skerch_ooc.base.files import as_given, is_there, make_folder, remove
from skerch_ooc.base.partition import Range, tree_sum
from skerch_ooc.base.progress import ignore_progress
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import Resources, peak_memory
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.tasks import pieces_of
from skerch_ooc.stages.measure.operands import forget_operator
from skerch_ooc.stages.recover.recipes import CONTENT, RecipeFile, open_recipes, publish_recipes
from skerch_ooc.stages.recover.vectors import Making, Recipe, TileFigures, layout_of
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there, repeated_anew, stated_by
from skerch_ooc.store.arrival import FILES, Arrivals, once_seen, open_grown
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.pieces import describe_pieces, piece_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import BulkWriter, SealedFile, SealedWriter, sealed_writer


@dataclass(frozen=True)
class VectorTask:
    """A run of row tiles of a tall matrix that one task makes, as plain data for any process.

    Attributes:
        run: The run directory.
        recipe: The file of the matrix's recipe, relative to the run directory.
        content: The hash of what that file holds.
        matrix: Name of the matrix.
        tiles: The row tiles.
        gram: Whether the Gram matrix of these rows is wanted, instead of the rows.
        resources: What the process may use.
        number: The number of the task among all of its recipe.
        amendments: How many amendments the plan has.
    """

    run: str
    recipe: str
    content: str
    matrix: str
    tiles: Range
    gram: bool
    resources: Resources
    number: int
    amendments: int = 0

    def __str__(self) -> str:
        return f"row tiles {self.tiles} of {self.matrix}"


def in_pieces(plan: Plan, recipe: Recipe) -> bool:
    """Whether a matrix is so large that it lies in several files."""
    return len(pieces_of(plan, recipe.rows, recipe.vectors.rank)) > 1


def pieces_left(plan: Plan, path: Path, expected: Mapping[str, Any]) -> list[int] | None:
    """Lists the numbers of the tasks whose pieces are not there, or are of other recipes.

    Args:
        plan: The plan in force.
        path: The file of the recipes.
        expected: What the file must say it is, at least.

    Returns:
        The numbers; ``None`` if there are no recipes, or they are of another sketch.

    Raises:
        CorruptError: If the file of the recipes is damaged.
    """
    pieces = planned_pieces(plan, path, expected)
    return None if pieces is None else [one.number for one in pieces if not one.done]


class PlannedPiece(NamedTuple):
    """A file that a task writes rows of vectors to: the task's number, and whether it is there."""

    number: int
    path: Path
    done: bool


def planned_pieces(
    plan: Plan, path: Path, expected: Mapping[str, Any]
) -> list[PlannedPiece] | None:
    """Lists the pieces of matrices that are in several; arguments and errors as above."""
    file = open_if_there(path)
    if file is None or not file.states(expected):
        return None
    found, before = list[PlannedPiece](), 0
    for matrix, rows in file.identity["rows"].items():
        runs = pieces_of(plan, int(rows), file.arrays[f"{matrix}.transform"].shape[1])
        if len(runs) > 1:
            for number, tiles in enumerate(runs, before):
                piece = piece_path(path.parent, matrix, tiles)
                # A damaged piece is left too: the process that makes the piece says what is wrong.
                done = stated_by(piece).get("recipe") == file.identity[CONTENT]
                found.append(PlannedPiece(number, piece, done))
        before += len(runs)
    return found


@dataclass(frozen=True)
class MatrixFiles:
    """The files that tasks make for a matrix: its pieces, or the Gram matrices of their rows.

    Attributes:
        plan: The plan in force.
        recipes: The published recipes.
        matrix: Name of the matrix.
        gram: Whether tasks make Gram matrices, instead of pieces.
    """

    plan: Plan
    recipes: RecipeFile
    matrix: str
    gram: bool = False

    @property
    def recipe(self) -> Recipe:
        """The recipe of the matrix."""
        return self.recipes.matrices[self.matrix]

    @property
    def runs(self) -> list[Range]:
        """The row tiles of each task."""
        return pieces_of(self.plan, self.recipe.rows, self.recipe.vectors.rank)

    def path(self, tiles: Range) -> Path:
        """Returns the path of the file for a run of row tiles."""
        folder = self.recipes.path.parent
        if self.gram:
            return folder / names.GRAM.name(matrix=self.matrix, tiles=tiles)
        return piece_path(folder, self.matrix, tiles)

    def published(self, tiles: Range) -> SealedFile | None:
        """Opens what was published for a task of this very recipe; ``None`` if nothing was."""
        path = self.path(tiles)
        try:
            file = SealedFile(path, repeated_anew(path, "the same command"))
        except FileNotFoundError:
            return None
        return file if file.states_just(self._identity(tiles)) else None

    def form(self, making: Making, tiles: Range) -> Callable[[], dict[str, Any]]:
        """Makes some row tiles, or their Gram matrix.

        Returns:
            A function that publishes them, and returns the receipt.
        """
        with contextlib.ExitStack() as stack:
            if self.gram:
                arrays = {"gram": making.gram(tiles, ignore_progress)}
                writer = stack.enter_context(sealed_writer(self.path(tiles)))
            else:
                writer = stack.enter_context(sealed_writer(self.path(tiles), self._layout(tiles)))
                arrays = making.write(tiles, writer.bulks[0], ignore_progress).as_arrays()
            opened = stack.pop_all()

        def publish() -> dict[str, Any]:
            with opened:
                writer.publish(self._identity(tiles), arrays, provenance())
            return self.receipt(tiles)

        return publish

    def receipt(self, tiles: Range) -> dict[str, Any]:
        """Returns the receipt of a task: how many tiles, and the file that it published."""
        folder = self.recipes.path.parent
        return {
            "tiles": len(tiles),
            "peak_bytes": peak_memory(),
            FILES: [f"{folder.parent.name}/{folder.name}/{self.path(tiles).name}"],
        }

    def _layout(self, tiles: Range) -> Layout:
        rows = self.plan.tiles(self.recipe.rows)
        height = rows[tiles.stop - 1].stop - rows[tiles.start].start
        return layout_of(self.plan, self.matrix, height, self.recipe.vectors.rank)

    def _identity(self, tiles: Range) -> dict[str, Any]:
        kind, sketch = names.GRAM if self.gram else names.PIECE, self.recipes.identity["sketch"]
        return kind.identity(
            self.plan.run_id, sketch=sketch, recipe=self.recipes.content, matrix=self.matrix,
            tiles=tiles,
        )  # fmt: skip


@lru_cache(maxsize=1)
def _recipes_of_process(
    directory: str, path: str, content: str, amendments: int
) -> tuple[Plan, RecipeFile]:
    """Opens the recipes that a task names; once in each process."""
    run = open_grown(directory, amendments)
    return run.plan, open_recipes(run, run.directory / path, content)


def perform_vectors(task: VectorTask) -> Callable[[], dict[str, Any]]:
    """Does a task in any process, unless its file is published already.

    Returns:
        A function that publishes what was made, and returns the receipt.

    Raises:
        IncompleteError: If the recipe is gone.
        CorruptError: If a shard is damaged.
        UsageError: If the memory is too little.
    """
    # Nothing is measured any more: the memory of the operator is for the vectors.
    forget_operator()
    plan, recipes = once_seen(
        task.run, lambda: _recipes_of_process(task.run, task.recipe, task.content, task.amendments)
    )
    files = MatrixFiles(plan, recipes, task.matrix, task.gram)
    if is_there(files.path(task.tiles)):
        return lambda: files.receipt(task.tiles)
    return files.form(Making(plan, files.recipe, task.resources), task.tiles)


def form_gram(
    run: Run, recipe: Recipe, identity: Mapping[str, Any], draft: Path, work: Work,
    stage: str = "orthogonalise",
) -> Array:  # fmt: skip
    """Forms ``U^H U`` of vectors that are not written, ``(r, r)``, by a stream over their source.

    Of a block it forms ``[F U]^H U``, ``(f + r, r)``.

    Args:
        run: The run.
        recipe: How the vectors are made.
        identity: See :func:`skerch_ooc.stages.recover.recipes.recipe_identity`.
        draft: The file that gives other processes the recipe; it is removed at the end.
        work: What runs tasks, and with which resources.
        stage: The name that progress shows.

    Raises:
        IncompleteError: If a file cannot be written, or is gone again.
        CorruptError: If a shard is damaged.
        UsageError: If memory is too little.
    """
    if not work.executor.remote or not in_pieces(run.plan, recipe):
        making = Making(run.plan, recipe, work.resources)
        tile_bytes = recipe.tile_bytes(run.plan)
        with work.progress.stage(stage, len(making.tiles), "tiles", tile_bytes) as advance:
            return _whole(recipe, making.gram(making.tiles, advance))
    make_folder(draft.parent)
    recipes = publish_recipes(draft, identity, {recipe.name: recipe}, {}, replace=True)
    gram = Spread(run, MatrixFiles(run.plan, recipes, recipe.name, gram=True), work).gram(stage)
    remove(draft)
    return gram


def _whole(recipe: Recipe, gram: Array) -> Array:
    """Mirrors the triangle of ``U^H U`` that was formed, which ends the sums of a block."""
    return np.concatenate([gram[: recipe.family], mirrored(gram[recipe.family :])])


def pieced_of(plan: Plan, matrices: Mapping[str, Recipe]) -> list[str]:
    """Lists the names of the matrices that are so large that they lie in several files."""
    return [name for name, recipe in matrices.items() if in_pieces(plan, recipe)]


class MatrixWriting:
    """Writes the tall matrices of a file: into the file itself, or in pieces beside it.

    Args:
        run: The run.
        matrices: The recipes of the matrices, by name.
        recipes: The same recipes, published; ``None`` if no matrix is in pieces.
        work: What makes pieces, and with which resources.

    Attributes:
        layouts: The layouts of the matrices that lie in the file itself.
    """

    def __init__(
        self, run: Run, matrices: Mapping[str, Recipe], recipes: RecipeFile | None, work: Work
    ) -> None:
        self._run, self._plan, self._matrices = run, run.plan, matrices
        self._recipes, self._work = recipes, work
        pieced = pieced_of(self._plan, matrices)
        self.layouts = [
            layout_of(self._plan, name, recipe.rows, recipe.vectors.rank)
            for name, recipe in matrices.items()
            if name not in pieced
        ]

    def write(
        self, writer: SealedWriter, stages: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[TileFigures]]:
        """Makes and writes all of the matrices.

        Args:
            writer: Writes the file.
            stages: For each matrix, the name of the stage that progress shows.

        Returns:
            What the identity of the file says about pieces, and the figures of each matrix.

        Raises:
            IncompleteError: If a piece cannot be written.
            CorruptError: If a shard, or a piece that is there, is damaged.
            UsageError: If memory is too little.
        """
        bulks = {bulk.layout.name: bulk for bulk in writer.bulks}
        described: dict[str, Any] = {}
        figures = []
        for name, recipe in self._matrices.items():
            if name in bulks:
                figures.append(self._streamed(recipe, bulks[name], stages[name]))
                continue
            assert self._recipes is not None
            files = MatrixFiles(self._plan, self._recipes, name)
            described[name], found = Spread(self._run, files, self._work).pieces(stages[name])
            figures.append(found)
        return {"pieces": described} if described else {}, figures

    def _streamed(self, recipe: Recipe, bulk: BulkWriter, stage: str) -> TileFigures:
        making = Making(self._plan, recipe, self._work.resources)
        tile = recipe.tile_bytes(self._plan)
        with self._work.progress.stage(stage, len(making.tiles), "tiles", tile) as advance:
            return making.write(making.tiles, bulk, advance)


class Spread:
    """Lets an executor run the tasks that make the files of a matrix.

    Args:
        run: The run.
        files: The files to make.
        work: What runs the tasks, and what each process may use.
    """

    def __init__(self, run: Run, files: MatrixFiles, work: Work) -> None:
        self._run, self._files, self._work = run, files, work

    def pieces(self, stage: str) -> tuple[dict[str, Any], TileFigures]:
        """Makes the pieces that are not there yet.

        Args:
            stage: The name of the stage that progress shows.

        Returns:
            What the file of the result says of its pieces, and the figures of all tiles.

        Raises:
            IncompleteError: If a piece cannot be written.
            CorruptError: If a shard, or a piece that is there, is damaged.
            UsageError: If memory is too little.
        """
        self.run_tasks(stage)
        files, done = self._files, list(self._opened())
        recipe = files.recipe
        layout = layout_of(files.plan, files.matrix, recipe.rows, recipe.vectors.rank)
        figures = tree_sum(
            (TileFigures.from_arrays(file.arrays) for _, file in done), TileFigures.add
        )
        return describe_pieces(layout, done), figures

    def gram(self, stage: str) -> Array:
        """Forms ``U^H U`` of a matrix that is not written, ``(r, r)``; raises as :meth:`pieces`.

        The files that the tasks publish for it are removed at the end.
        """
        self.run_tasks(stage)
        done = list(self._opened())
        total = tree_sum((file.arrays["gram"] for _, file in done), np.add)
        for _, file in done:
            remove(file.path)
        return _whole(self._files.recipe, total)

    def run_tasks(self, stage: str) -> None:
        """Lets the executor do its share of the tasks; raises as :meth:`pieces` does."""
        files, work = self._files, self._work
        # Only its share: verifying reads every byte of a piece, and others verify theirs.
        tasks = [task for task in work.executor.chosen(self._tasks()) if not self._is_done(task)]
        for task in tasks:
            path = files.path(task.tiles)
            if is_there(path) and files.published(task.tiles) is None:
                # Derived data, of a recipe that was replaced: a publication never replaces a file.
                remove(path)
        tile_bytes = files.recipe.tile_bytes(files.plan)
        arrivals = Arrivals(self._run.directory)
        function = self._perform() if tasks else perform_vectors
        work.run_tiles(function, tasks, stage, tile_bytes, arrivals.note)
        arrivals.wait()
        if work.is_shared:
            folder = files.recipes.path.parent
            of_result = folder.parent.name == names.RESULTS
            named = {"name": folder.name} if of_result else {}
            arrivals.record_peaks(self._run, "recover" if of_result else "basis", **named)

    def _is_done(self, task: VectorTask) -> bool:
        file = self._files.published(task.tiles)
        if file is not None:
            # The process that wrote it did not come to an end; perhaps its machine crashed.
            file.verify_bulk()
        return file is not None

    def _perform(self) -> Callable[[VectorTask], Callable[[], Any]]:
        if self._work.executor.remote:
            return perform_vectors
        making = Making(self._files.plan, self._files.recipe, self._work.resources)
        return lambda task: self._files.form(making, task.tiles)

    def _tasks(self) -> Iterator[VectorTask]:
        files, directory = self._files, as_given(self._run.directory)
        recipes = files.recipes
        path = str(as_given(recipes.path).relative_to(directory))
        before = itertools.takewhile(lambda name: name != files.matrix, recipes.matrices)
        first = sum(len(replace(files, matrix=name).runs) for name in before)
        for number, tiles in enumerate(files.runs, first):
            yield VectorTask(
                str(directory), path, recipes.content, files.matrix, tiles, files.gram,
                self._work.resources.of_task, number, len(files.plan.amendments),
            )  # fmt: skip

    def _opened(self) -> Iterator[tuple[Range, SealedFile]]:
        for tiles in self._files.runs:
            file = self._files.published(tiles)
            if file is None:
                path = self._files.path(tiles)
                raise IncompleteError(f"{path} is gone again; run the same command again")
            yield tiles, file
