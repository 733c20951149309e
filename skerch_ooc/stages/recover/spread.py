"""Tall matrices made by tasks: aligned runs of row tiles, by whatever executor, in any process.

A task publishes a piece of the matrix, and the figures of its rows beside it; or, where vectors are
to be corrected, the Gram matrix of its rows. Pieces and sums are cut by the plan alone and summed
in one fixed tree, so who made them changes nothing. A piece that is there is not made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.linalg import mirrored
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.files import is_there, make_folder, remove, wait_for_files
from skerch_ooc.base.partition import Range, tree_sum
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import Resources
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.memory import pieces_of
from skerch_ooc.planning.plan import FORMAT_VERSION, Plan
from skerch_ooc.stages.measure.operands import forget_operator
from skerch_ooc.stages.recover.recipes import CONTENT, RecipeFile, open_recipes, publish_recipes
from skerch_ooc.stages.recover.vectors import Making, Recipe, TileFigures, layout_of
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there, repeated_anew
from skerch_ooc.store.pieces import describe_pieces, piece_path
from skerch_ooc.store.rundir import Run, open_run
from skerch_ooc.store.sealed import BulkWriter, SealedFile, SealedWriter, sealed_writer


@dataclass(frozen=True)
class VectorTask:
    """A run of tiles of a tall matrix: a path and a few numbers, for any process.

    Attributes:
        run: The run directory.
        recipe: The file of its recipe, relative to that.
        content: The hash of what that file holds.
        matrix: Name of the matrix.
        start: First row tile.
        stop: First row tile after the run.
        gram: Whether the Gram matrix of these rows is wanted, instead of the rows.
        memory: Peak resident memory of the process, in bytes.
        threads: Threads of the process.
        device: Torch device on which tiles are multiplied.
        number: Of the task among all of its recipe.
    """

    run: str
    recipe: str
    content: str
    matrix: str
    start: int
    stop: int
    gram: bool
    memory: int
    threads: int
    device: str
    number: int

    @property
    def tiles(self) -> Range:
        """The row tiles."""
        return Range(self.start, self.stop)

    def __str__(self) -> str:
        return f"row tiles {self.start}-{self.stop} of {self.matrix}"


def _is_of(piece: Path, content: str) -> bool:
    """Whether a piece is one of the recipes with this hash; a damaged one is for who makes it."""
    with contextlib.suppress(FileNotFoundError, CorruptError):
        return SealedFile(piece).identity.get("recipe") == content
    return False


def in_pieces(plan: Plan, recipe: Recipe) -> bool:
    """Whether a matrix is so large that it lies in several files."""
    return len(pieces_of(plan, recipe.rows, recipe.vectors.rank)) > 1


def pieces_left(plan: Plan, path: Path, expected: Mapping[str, Any]) -> list[int] | None:
    """Numbers of the tasks whose pieces are not there, or are of other recipes.

    Args:
        plan: The plan in force.
        path: The file of the recipes.
        expected: What that must say it is, at least.

    Returns:
        The numbers; ``None`` if there are no recipes, or those of something else.

    Raises:
        CorruptError: If the file is damaged.
    """
    file = open_if_there(path)
    if file is None or not file.states(expected):
        return None
    left, before = [], 0
    for matrix, rows in file.identity["rows"].items():
        runs = pieces_of(plan, int(rows), file.arrays[f"{matrix}.transform"].shape[1])
        if len(runs) > 1:
            pieces = (piece_path(path.parent, matrix, tiles) for tiles in runs)
            left += [
                number
                for number, piece in enumerate(pieces, before)
                if not _is_of(piece, file.identity[CONTENT])
            ]
        before += len(runs)
    return left


@lru_cache(maxsize=1)
def _recipes_of_process(directory: str, path: str, content: str) -> tuple[Plan, RecipeFile]:
    """The recipes that this process works by; opened once."""
    run = open_run(directory)
    return run.plan, open_recipes(run, run.directory / path, content)


def perform_vectors(task: VectorTask) -> Callable[[], dict[str, Any]]:
    """Does a task in any process, unless somebody has who did not live to tell.

    Returns:
        A function that publishes what was made, and returns the receipt.

    Raises:
        IncompleteError: If the recipe is gone.
        CorruptError: If a shard is damaged.
        UsageError: If the memory is too little.
    """
    # Its memory is for the vectors, and nothing is measured any more.
    forget_operator()
    plan, recipes = _recipes_of_process(task.run, task.recipe, task.content)
    tiles = task.tiles
    if is_there((_gram_path if task.gram else _piece_path)(recipes, task.matrix, tiles)):
        return lambda: {"tiles": len(tiles)}
    resources = Resources(task.memory, task.threads, device=task.device)
    # One task after the other: what the one has freed is what the next takes.
    making = Making(plan, recipes.matrices[task.matrix], resources, tidy=False)
    return _perform(plan, recipes, task.matrix, making, task.gram, tiles)


def _perform(
    plan: Plan, recipes: RecipeFile, matrix: str, making: Making, gram: bool, tiles: Range
) -> Callable[[], dict[str, Any]]:
    publish: Callable[[], None]
    if gram:
        publish = partial(_publish_gram, plan, recipes, matrix, tiles, making.gram(tiles, _ignore))
    else:
        publish = _write_piece(plan, recipes, matrix, making, tiles)

    def finish() -> dict[str, Any]:
        publish()
        return {"tiles": len(tiles)}

    return finish


def _ignore(_: int) -> None:
    """Progress that is told by the task."""


def _identity(
    plan: Plan, recipes: RecipeFile, kind: str, matrix: str, tiles: Range
) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "type": kind,
        "run": plan.run_id,
        "sketch": recipes.identity["sketch"],
        "recipe": recipes.content,
        "matrix": matrix,
        "tiles": [tiles.start, tiles.stop],
    }


def _piece_path(recipes: RecipeFile, matrix: str, tiles: Range) -> Path:
    return piece_path(recipes.path.parent, matrix, tiles)


def _gram_path(recipes: RecipeFile, matrix: str, tiles: Range) -> Path:
    return recipes.path.parent / names.GRAM.name(matrix=matrix, tiles=tiles)


def _write_piece(
    plan: Plan, recipes: RecipeFile, matrix: str, making: Making, tiles: Range
) -> Callable[[], None]:
    recipe = recipes.matrices[matrix]
    of_tiles = plan.tiles(recipe.rows)
    rows = of_tiles[tiles.stop - 1].stop - of_tiles[tiles.start].start
    layout = layout_of(plan, matrix, rows, recipe.vectors.rank)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(sealed_writer(_piece_path(recipes, matrix, tiles), layout))
        figures = making.write(tiles, writer.bulks[0], _ignore)
        opened = stack.pop_all()
    identity = _identity(plan, recipes, "piece", matrix, tiles)

    def publish() -> None:
        with opened:
            writer.publish(identity, figures.as_arrays(), provenance())

    return publish


def _publish_gram(plan: Plan, recipes: RecipeFile, matrix: str, tiles: Range, gram: Array) -> None:
    path = _gram_path(recipes, matrix, tiles)
    with sealed_writer(path) as writer:
        identity = _identity(plan, recipes, "gram", matrix, tiles)
        writer.publish(identity, {"gram": gram}, provenance())


def form_gram(
    run: Run, recipe: Recipe, identity: Mapping[str, Any], draft: Path, work: Work
) -> Array:
    """Forms ``U^H U`` of vectors that are not written, ``(r, r)``, by a stream over their source.

    Args:
        run: The run.
        recipe: How the vectors are made.
        identity: See :func:`skerch_ooc.stages.recover.recipes.recipe_identity`.
        draft: The file that other processes are given the recipe in, for as long as they need it.
        work: What runs tasks, and with which resources.

    Raises:
        IncompleteError: If something cannot be written.
        CorruptError: If a shard is damaged.
        UsageError: If memory is too little.
    """
    stage = "orthogonalise"
    if not work.executor.remote or not in_pieces(run.plan, recipe):
        making = Making(run.plan, recipe, work.resources)
        tile_bytes = recipe.tile_bytes(run.plan)
        with work.progress.stage(stage, len(making.tiles), "tiles", tile_bytes) as advance:
            return mirrored(making.gram(making.tiles, advance))
    make_folder(draft.parent)
    recipes = publish_recipes(draft, identity, {recipe.name: recipe}, {}, replace=True)
    gram = Spread(run, recipes, work).form_gram(recipe.name, stage)
    remove(draft)
    return gram


def pieced_of(plan: Plan, matrices: Mapping[str, Recipe]) -> list[str]:
    """Those of some matrices that lie in several files."""
    return [name for name, recipe in matrices.items() if in_pieces(plan, recipe)]


class MatrixWriting:
    """Tall matrices of a file on their way to the disk: into it, or in pieces beside it.

    Args:
        run: The run.
        matrices: How they are made, by their names.
        recipes: The same, published; ``None`` if none of them is in pieces.
        work: What makes pieces, and with which resources.

    Attributes:
        layouts: Of those that lie in the file itself.
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
        """Makes all of them.

        Args:
            writer: Writes the file.
            stages: What the user is told while each is made.

        Returns:
            What the identity of the file says of pieces, and the figures of each matrix.

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
            spread = Spread(self._run, self._recipes, self._work)
            described[name], found = spread.write(name, stages[name])
            figures.append(found)
        return {"pieces": described} if described else {}, figures

    def _streamed(self, recipe: Recipe, bulk: BulkWriter, stage: str) -> TileFigures:
        making = Making(self._plan, recipe, self._work.resources)
        tile = recipe.tile_bytes(self._plan)
        with self._work.progress.stage(stage, len(making.tiles), "tiles", tile) as advance:
            return making.write(making.tiles, bulk, advance)


class Spread:
    """The matrices of a file of recipes, made by the tasks of an executor.

    Args:
        run: The run.
        recipes: The recipes, published.
        work: What runs the tasks, and what each process may use.
    """

    def __init__(self, run: Run, recipes: RecipeFile, work: Work) -> None:
        self._run, self._plan = run, run.plan
        self._recipes = recipes
        self._resources, self._executor = work.resources, work.executor
        self._progress = work.progress

    def write(self, matrix: str, stage: str) -> tuple[dict[str, Any], TileFigures]:
        """Makes the pieces of a matrix that are not there yet.

        Args:
            matrix: Its name.
            stage: What the user is told.

        Returns:
            What the file that the matrix belongs to says of them, and the figures of all tiles.

        Raises:
            IncompleteError: If a piece cannot be written.
            CorruptError: If a shard, or a piece that is there, is damaged.
            UsageError: If memory is too little.
        """
        recipe = self._recipes.matrices[matrix]
        self.spread(matrix, gram=False, stage=stage)
        done = list(self._opened(matrix, gram=False))
        layout = layout_of(self._plan, matrix, recipe.rows, recipe.vectors.rank)
        figures = tree_sum(
            (TileFigures.from_arrays(file.arrays) for _, file in done), TileFigures.add
        )
        return describe_pieces(layout, done), figures

    def form_gram(self, matrix: str, stage: str) -> Array:
        """Forms ``U^H U`` of a matrix that is not written, ``(r, r)``; raises as :meth:`write`.

        What the tasks publish for it is removed at the end.
        """
        self.spread(matrix, gram=True, stage=stage)
        done = list(self._opened(matrix, gram=True))
        total = mirrored(tree_sum((file.arrays["gram"] for _, file in done), np.add))
        for _, file in done:
            remove(file.path)
        return total

    def spread(self, matrix: str, *, gram: bool, stage: str) -> None:
        """Has the executor do its tasks of a matrix; raises as :meth:`write` does."""
        # What others are to make is theirs to verify.
        chosen = self._executor.chosen(self._tasks(matrix, gram))
        tasks = [task for task in chosen if not self._is_done(task)]
        for task in tasks:
            self._remove_other(task)
        total = sum(task.stop - task.start for task in tasks)
        tile = self._recipes.matrices[matrix].tile_bytes(self._plan)
        with self._progress.stage(stage, total, "tiles", tile, len(tasks)) as advance:
            if tasks:
                work = self._work(matrix, gram)
                for receipt in self._executor.run(work, tasks, self._resources.task_threads):
                    advance(receipt["tiles"])
        wait_for_files(self._path(matrix, gram, task.tiles) for task in tasks)

    def _runs(self, matrix: str) -> list[Range]:
        recipe = self._recipes.matrices[matrix]
        return pieces_of(self._plan, recipe.rows, recipe.vectors.rank)

    def _tasks(self, matrix: str, gram: bool) -> Iterator[VectorTask]:
        before = 0
        for other in self._recipes.matrices:
            if other == matrix:
                break
            before += len(self._runs(other))
        for number, tiles in enumerate(self._runs(matrix), before):
            yield self._task(matrix, gram, tiles, number)

    def _is_done(self, task: VectorTask) -> bool:
        file = self._published(task.matrix, task.gram, task.tiles)
        if file is not None:
            # Of a process that did not come to an end, perhaps with its machine.
            file.verify_bulk()
        return file is not None

    def _remove_other(self, task: VectorTask) -> None:
        """Removes what was published for a task of a recipe that was replaced: derived data."""
        path = self._path(task.matrix, task.gram, task.tiles)
        if is_there(path) and self._published(task.matrix, task.gram, task.tiles) is None:
            remove(path)

    def _work(self, matrix: str, gram: bool) -> Callable[[VectorTask], Callable[[], Any]]:
        if self._executor.remote:
            return perform_vectors
        making = Making(self._plan, self._recipes.matrices[matrix], self._resources)

        def work(task: VectorTask) -> Callable[[], dict[str, Any]]:
            return _perform(self._plan, self._recipes, matrix, making, gram, task.tiles)

        return work

    def _task(self, matrix: str, gram: bool, tiles: Range, number: int) -> VectorTask:
        directory = self._run.directory.resolve()
        return VectorTask(
            run=str(directory),
            recipe=str(self._recipes.path.resolve().relative_to(directory)),
            content=self._recipes.content,
            matrix=matrix,
            start=tiles.start,
            stop=tiles.stop,
            gram=gram,
            memory=self._resources.memory,
            threads=self._resources.task_threads,
            device=self._resources.device,
            number=number,
        )

    def _opened(self, matrix: str, gram: bool) -> Iterator[tuple[Range, SealedFile]]:
        for tiles in self._runs(matrix):
            file = self._published(matrix, gram, tiles)
            if file is None:
                path = self._path(matrix, gram, tiles)
                raise IncompleteError(f"{path} is gone again; run the same command again")
            yield tiles, file

    def _path(self, matrix: str, gram: bool, tiles: Range) -> Path:
        path_of = _gram_path if gram else _piece_path
        return path_of(self._recipes, matrix, tiles)

    def _published(self, matrix: str, gram: bool, tiles: Range) -> SealedFile | None:
        """What was published for a task of this very recipe; ``None`` if there is nothing."""
        path = self._path(matrix, gram, tiles)
        try:
            file = SealedFile(path, repeated_anew(path, "the same command"))
        except FileNotFoundError:
            return None
        expected = _identity(self._plan, self._recipes, "gram" if gram else "piece", matrix, tiles)
        return file if file.states_just(expected) else None
