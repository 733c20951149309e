"""Recover: small dense problems, then one stream over the sketch that writes the vectors."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError, quoted
from skerch_ooc.base.files import is_there, make_folder, remove
from skerch_ooc.base.provenance import provenance
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.memory import may_be_in_pieces
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.recover.orthogonality import orthogonality_bound
from skerch_ooc.stages.recover.recipes import (
    RecipeFile,
    columns_of_result,
    read_recipes,
    recipe_identity,
    remove_other_recipes,
    rounds_for,
)
from skerch_ooc.stages.recover.solutions import (
    Decomposition,
    Solution,
    correct,
    needs_correction_of,
    solve,
)
from skerch_ooc.stages.recover.spread import Spread, in_pieces, pieces_left
from skerch_ooc.stages.recover.vectors import Making, Recipe, TileFigures, deviation, layout_of
from skerch_ooc.store.anew import open_if_there
from skerch_ooc.store.pieces import check_pieces, lost_pieces
from skerch_ooc.store.result_files import (
    VALUES,
    command_of,
    recipe_path,
    remove_result,
    result_identity,
    result_path,
)
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import BulkWriter, SealedFile, sealed_writer

log = logging.getLogger("skerch_ooc")


def recover(run: Run, settings: RecoverySpec, name: str, work: Work) -> Path:
    """Recovers a decomposition and writes it, or finds that this is done.

    Args:
        run: The run; it is merged first, if it is not yet.
        settings: Method, core and rank.
        name: The folder of the result, inside ``results/``.
        work: What makes vectors that are in several pieces, and with which resources.

    Returns:
        The path of the result.

    Raises:
        UsageError: If the sketch does not serve the method, the name is taken by a result of other
            settings, memory is too little, or the operator is zero.
        IncompleteError: If measurements are missing, or there is no such result and the shards were
            removed.
        CorruptError: If a shard, or a result of this name, is damaged.
    """
    path = result_path(run, name)
    if (mark := run.cleaned()) is not None:
        _require_kept(path, result_identity(run.plan, mark.sketch, settings), run)
        return path
    digest = rounds_for(run, settings)[0].sketch.digest
    identity = result_identity(run.plan, digest, settings)
    if _is_current(path, identity, run):
        return path
    remove_result(path)
    with run.receipt_of("recover", name=name):
        _write(run, settings, digest, path, identity, work)
    return path


def _write(
    run: Run, settings: RecoverySpec, digest: str, path: Path, identity: dict[str, Any], work: Work
) -> None:
    """Recovers a decomposition that is not there, and writes it."""
    if settings.vectors == "implicit":
        found = solve(run, settings, work)
        if needs_correction_of(run.plan, found):
            # They are made by the processor: it is its rounding that is to be corrected.
            on = dataclasses.replace(work.resources, device="cpu")
            there = dataclasses.replace(work, resources=on)
            found = correct(run, settings, found, path.parent, there)
        make_folder(path.parent)
        _publish_implicit(path, identity, run.plan, found.with_fixed_signs())
    else:
        _Writing(run, settings, digest, path, work).write(identity)


def spread_vectors(
    run: Run, settings: RecoverySpec, name: str, work: Work, *, pieces: bool
) -> None:
    """Solves the small problems of a result in pieces, and makes its pieces if wanted.

    Args:
        run: The run, merged.
        settings: Method, core and rank.
        name: The folder of the result, inside ``results/``.
        work: What makes pieces, and with which resources.
        pieces: Whether they are made.

    Raises:
        UsageError: If the sketch does not serve the method, or memory is too little.
        IncompleteError: If measurements are missing.
        CorruptError: If a file is damaged.
    """
    path = result_path(run, name)
    digest = rounds_for(run, settings)[0].sketch.digest
    if settings.vectors == "implicit":
        return
    if not _is_current(path, result_identity(run.plan, digest, settings), run):
        remove(path)
        _Writing(run, settings, digest, path, work).spread(pieces=pieces)


def vectors_left(run: Run, digest: str, settings: RecoverySpec, name: str) -> list[int] | None:
    """Numbers of the tasks of a result in pieces which are not done.

    Args:
        run: The run.
        digest: The digest of the last round's sketch.
        settings: Method, core and rank.
        name: The folder of the result.

    Returns:
        The numbers; ``None`` before the solution is published, or if the result is in one file.

    Raises:
        CorruptError: If the solution is damaged.
    """
    path = recipe_path(result_path(run, name))
    expected = recipe_identity(run, digest, {"settings": settings.as_json()})
    return pieces_left(run.plan, path, expected)


class _Writing:
    """The vectors of a result on their way to the disk."""

    def __init__(
        self, run: Run, settings: RecoverySpec, digest: str, path: Path, work: Work
    ) -> None:
        self._run, self._plan, self._settings = run, run.plan, settings
        self._path = path
        self._work = work
        self._recipe_path = recipe_path(path)
        self._recipe_identity = recipe_identity(run, digest, {"settings": settings.as_json()})

    def write(self, identity: Mapping[str, Any]) -> None:
        """Writes the vectors and publishes the result."""
        if self._publish(identity, self._prepare_solution()):
            return
        # Not to be expected: the condition foretells it. A stream more puts it right.
        remove(self._recipe_path)
        self._publish(identity, self._solved(correcting=True))

    def spread(self, *, pieces: bool) -> None:
        """Publishes the solution of a result that is in pieces, and makes these if wanted."""
        if not may_be_in_pieces(self._plan):
            # Who publishes the result solves it; each element would solve it once more.
            return
        make_folder(self._path.parent)
        solution = self._prepare_solution()
        pieced = self._pieced(solution)
        if not pieced:
            return
        recipes, _ = self._publish_solution(solution)
        spread = Spread(self._run, recipes, self._work)
        for name in pieced if pieces else ():
            spread.spread(name, gram=False, stage=f"vectors {name}")

    def _publish_solution(self, solution: Solution) -> tuple[RecipeFile, Solution]:
        """Publishes a solution; returns what is published, should another process be faster."""
        solution.publish(self._recipe_path, self._recipe_identity)
        known = self._known_file()
        if known is None:
            raise IncompleteError(f"{self._recipe_path} is gone again; run the same command again")
        return known, Solution.read(known)

    def _pieced(self, solution: Solution) -> list[str]:
        return [name for name, recipe in solution.matrices.items() if in_pieces(self._plan, recipe)]

    def _prepare_solution(self) -> Solution:
        """Reads the solution that is published, or solves, and removes that of another sketch."""
        if (known := self._known()) is not None:
            return known
        remove_other_recipes(self._recipe_path, self._recipe_identity)
        return self._solved(correcting=False)

    def _known(self) -> Solution | None:
        """The solution that a process which did not come to an end has published."""
        file = self._known_file()
        return Solution.read(file) if file else None

    def _known_file(self) -> RecipeFile | None:
        with contextlib.suppress(FileNotFoundError, CorruptError):
            stated = SealedFile(self._recipe_path).identity
            same = stated.get("sketch") == self._recipe_identity["sketch"]
            if same and stated.get("settings") != self._recipe_identity["settings"]:
                raise UsageError(
                    f"{self._path.parent} is being made with {stated.get('settings')}, or was when "
                    f"that was killed, not with {self._recipe_identity['settings']}; give another "
                    f"--name, or remove it: rm -r {quoted(self._path.parent)}"
                )
        if not is_there(self._recipe_path):
            return None
        columns = columns_of_result(self._run, self._settings)
        return read_recipes(self._recipe_path, self._recipe_identity, columns)

    def _solved(self, *, correcting: bool) -> Solution:
        found = solve(self._run, self._settings, self._work)
        if correcting or needs_correction_of(self._plan, found):
            found = correct(self._run, self._settings, found, self._path.parent, self._work)
        return Solution.of(self._plan, found)

    def _publish(self, identity: Mapping[str, Any], solution: Solution) -> bool:
        """Writes the vectors, and publishes the result if they turn out orthonormal.

        Returns:
            Whether they did; if not, and that can be mended, there is no result.
        """
        make_folder(self._path.parent)
        plan, matrices = self._plan, solution.matrices
        pieced = self._pieced(solution)
        recipes = None
        if pieced:
            recipes, solution = self._publish_solution(solution)
            matrices = solution.matrices
        layouts = [
            layout_of(plan, name, recipe.rows, recipe.vectors.rank)
            for name, recipe in matrices.items()
            if name not in pieced
        ]
        described: dict[str, Any] = {}
        figures: list[TileFigures] = []
        with sealed_writer(self._path, *layouts) as writer:
            bulks = {bulk.layout.name: bulk for bulk in writer.bulks}
            for name, recipe in matrices.items():
                stage = f"vectors {name}" if len(matrices) > 1 else "vectors"
                if recipes is not None and name in pieced:
                    described[name], found = self._make_pieces(recipes, name, stage)
                else:
                    found = self._streamed(recipe, bulks[name], stage)
                figures.append(found)
            orthogonality = max(deviation(plan, found) for found in figures)
            per_vector = orthogonality / math.sqrt(len(solution.values))
            if per_vector > orthogonality_bound(plan) and not solution.corrected:
                return False
            pieces = {"pieces": described} if described else {}
            first = writer.publish(
                {**identity, "core": solution.core, "choosing": solution.choosing, **pieces},
                _arrays(plan, solution, figures[0], orthogonality),
                provenance(threads=self._work.resources.threads),
            )
        if not first:
            # By another process, with other settings perhaps.
            _is_current(self._path, identity, self._run)
        return True

    def _make_pieces(
        self, recipes: RecipeFile, name: str, stage: str
    ) -> tuple[dict[str, Any], TileFigures]:
        spread = Spread(self._run, recipes, self._work)
        return spread.write(name, stage)

    def _streamed(self, recipe: Recipe, bulk: BulkWriter, stage: str) -> TileFigures:
        making = Making(self._plan, recipe, self._work.resources)
        tile = recipe.tile_bytes(self._plan)
        with self._work.progress.stage(stage, len(making.tiles), "tiles", tile) as advance:
            return making.write(making.tiles, bulk, advance)


def _require_kept(path: Path, identity: Mapping[str, Any], run: Run) -> None:
    """Refuses anything but a result that is there, of a run whose shards were removed."""
    file = open_if_there(path)
    if file is None or not file.states(identity):
        if file is not None:
            log.warning("%s is a result of other settings, or of another sketch", path)
        run.require_shards()
    assert file is not None
    check_pieces(file)


def _is_current(path: Path, identity: Mapping[str, Any], run: Run) -> bool:
    """Whether a result is there, in one piece, and of this very sketch.

    Raises:
        UsageError: If it is one with other settings.
        CorruptError: If it is damaged, or of another run.
    """
    again = command_of(run, path.parent.name, identity["settings"])
    again = f"rm -r {quoted(path.parent)} && {again}"
    try:
        file = SealedFile(path, f". To make it anew: {again}")
    except FileNotFoundError:
        return False
    stated = file.identity
    if file.states(identity):
        if lost_pieces(file):
            # It is published again once they are made again.
            return False
        check_pieces(file)
        return True
    if stated.get("run") != identity["run"]:
        raise CorruptError(f"{path} is a result of another run. To replace it: {again}")
    if stated.get("settings") != identity["settings"]:
        raise UsageError(
            f"{path.parent} holds a result with {stated.get('settings')}, not with "
            f"{identity['settings']}; give another --name, or remove it: {again}"
        )
    # A result is derived data. This one is of a sketch that has grown, or was measured anew, since.
    return False


def _publish_implicit(
    path: Path, identity: dict[str, Any], plan: Plan, found: Decomposition
) -> None:
    """Publishes the transforms that vectors are made with as they are read."""
    problem = found.posed.problem
    compressed = found.left.compressed(problem.y)
    residual = problem.t - compressed @ found.weights()
    products = compressed.conj().T @ residual
    figures = TileFigures(
        probed=np.zeros((0, 0)),
        residual=np.sum(np.abs(residual) ** 2, axis=0),
        test=np.sum(np.abs(problem.t) ** 2, axis=0),
        test_products=products[:0],
        residual_products=products if plan.identity.kind == "eigh" else products[:0],
    )
    deviation = found.deviation * math.sqrt(len(found.values))
    arrays = _arrays(plan, Solution.of(plan, found), figures, deviation)
    for side, vectors in (("left", found.left), ("right", found.right)):
        if vectors is not None:
            arrays[f"{side}_transform"] = vectors.transform
            if vectors.correction is not None:
                arrays[f"{side}_correction"] = vectors.correction
    # What the vectors are like, and of which columns they are made, should the plan grow.
    made = {
        "shape": list(plan.identity.shape),
        "dtype": plan.identity.dtype,
        "tile": plan.identity.tile[0],
        "amendments": len(plan.amendments),
    }
    with sealed_writer(path) as writer:
        writer.publish(
            identity | {"core": found.core.size, "choosing": found.core.choosing} | made,
            arrays,
            provenance(),
        )


def _arrays(
    plan: Plan, solution: Solution, figures: TileFigures, orthogonality: float
) -> dict[str, Array]:
    """What a result holds besides its vectors."""
    left_out = solution.leave_one_out
    products = figures.residual_products[:, solution.choosing :]
    of_values = {}
    if products.size:
        # ||A u - value u||, as Ahat u is value u: the mean of |u^H (A - Ahat) g|^2 is its square.
        of_values["residuals"] = np.sqrt(np.mean(np.abs(products) ** 2, axis=1))
    return {
        VALUES[plan.identity.kind]: solution.values.astype(np.float64),
        **of_values,
        "residual_squares": figures.residual,
        "test_squares": figures.test,
        "approximation_squares": solution.approximation_squares,
        "orthogonality": np.array(orthogonality),
        "leave_one_out": np.array(math.nan if left_out is None else left_out),
        "tested_cores": solution.tested,
    }
