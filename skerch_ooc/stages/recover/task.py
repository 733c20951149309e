"""Recover: solves small dense problems, then streams over the sketch once to write the vectors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError
from skerch_ooc.base.files import is_there, make_folder, remove
from skerch_ooc.base.places import removal
from skerch_ooc.base.provenance import provenance
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.planning.tasks import may_be_in_pieces
from skerch_ooc.stages.recover.decomposition import Decomposition, solve_and_correct
from skerch_ooc.stages.recover.orthogonality import orthogonality_bound
from skerch_ooc.stages.recover.recipes import (
    RecipeFile,
    columns_of_result,
    read_recipes,
    recipe_identity,
    remove_other_recipes,
    rounds_for,
)
from skerch_ooc.stages.recover.spread import (
    MatrixFiles,
    MatrixWriting,
    PlannedPiece,
    Spread,
    pieced_of,
    pieces_left,
    planned_pieces,
)
from skerch_ooc.stages.recover.vectors import TileFigures, deviation, has_residuals
from skerch_ooc.store.anew import open_if_there, stated_by
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
from skerch_ooc.store.sealed import SealedFile, sealed_writer

log = logging.getLogger("skerch_ooc")


def recover(run: Run, settings: RecoverySpec, name: str, work: Work) -> Path:
    """Recovers a decomposition and writes it, unless it is there already.

    Args:
        run: The run; it is merged first if that is not done.
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
        DriftError: If the sketch is merged now, and different operators made its shards.
    """
    path = result_path(run, name)
    if (mark := run.cleaned()) is not None:
        _require_kept(path, result_identity(run.plan, mark.sketch, settings), run)
        return path
    writing = ResultWriting(run, settings, path, work)
    if writing.is_current():
        return path
    with run.receipt_of("recover", name=name):
        writing.write()
    return path


def spread_vectors(
    run: Run, settings: RecoverySpec, name: str, work: Work, *, pieces: bool
) -> None:
    """Solves the small problems of a result in pieces, and makes the pieces if asked to.

    Args:
        run: The run, merged.
        settings: Method, core and rank.
        name: The folder of the result, inside ``results/``.
        work: What makes pieces, and with which resources.
        pieces: Whether to make the pieces.

    Raises:
        UsageError: If the sketch does not serve the method, or memory is too little.
        IncompleteError: If measurements are missing.
        CorruptError: If a file is damaged.
    """
    if settings.vectors == "stored":
        writing = ResultWriting(run, settings, result_path(run, name), work)
        if not writing.is_current():
            writing.spread(pieces=pieces)


def vectors_left(run: Run, digest: str, settings: RecoverySpec, name: str) -> list[int] | None:
    """Lists the numbers of the tasks of a result in pieces that are not done.

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
    return pieces_left(run.plan, *_recipe_of(run, digest, settings, name))


def vector_pieces(
    run: Run, digest: str, settings: RecoverySpec, name: str
) -> list[PlannedPiece] | None:
    """Lists all pieces of a result, done or not; as :func:`vectors_left`."""
    return planned_pieces(run.plan, *_recipe_of(run, digest, settings, name))


def _recipe_of(
    run: Run, digest: str, settings: RecoverySpec, name: str
) -> tuple[Path, dict[str, Any]]:
    """Returns the file of a result's solution, and what it must say it is."""
    path = recipe_path(result_path(run, name))
    return path, recipe_identity(run, digest, {"settings": settings.as_json()})


class ResultWriting:
    """Writes one result: its values, its vectors, and the figures that are formed on the way.

    Args:
        run: The run.
        settings: Method, core, rank and kind of vectors.
        path: The file of the result.
        work: What makes vectors that are in several pieces, and with which resources.
    """

    def __init__(self, run: Run, settings: RecoverySpec, path: Path, work: Work) -> None:
        self._run, self._plan, self._settings = run, run.plan, settings
        self.path, self._work = path, work
        digest = rounds_for(run, settings)[0].sketch.digest
        self._identity = result_identity(run.plan, digest, settings)
        self._recipe_path = recipe_path(path)
        self._recipe_identity = recipe_identity(run, digest, {"settings": settings.as_json()})

    def is_current(self) -> bool:
        """Whether the result is there, whole and of this sketch; raises as :func:`_is_current`."""
        return _is_current(self.path, self._identity, self._run)

    def write(self) -> None:
        """Recovers the decomposition, and writes it.

        A result of an earlier sketch goes once it is known that there will be another: merging may
        find that shards do not fit.
        """
        is_implicit = self._settings.vectors == "implicit"
        found = self._solved() if is_implicit else self._prepare_solution()
        if self.is_current():
            return  # Another process was faster.
        remove_result(self.path)
        if is_implicit:
            _publish_implicit(self.path, self._identity, self._plan, found)
        elif not self._publish(found):
            # Rare, as the condition of the columns foretells it. One more stream corrects the
            # vectors; the recipe goes first, else it would be read instead of the new solution.
            remove(self._recipe_path)
            self._publish(self._solved(correcting=True))

    def spread(self, *, pieces: bool) -> None:
        """Publishes the solution of a result in pieces, and makes the pieces if asked to."""
        if not may_be_in_pieces(self._plan):
            # The process that publishes a small result also solves it: here every element of a job
            # array would solve it again.
            return
        make_folder(self.path.parent)
        found = self._prepare_solution()
        if self.is_current():
            return
        remove(self.path)
        pieced = pieced_of(self._plan, found.matrices)
        if pieced:
            recipes = self._publish_solution(found)
            for name in pieced if pieces else ():
                files = MatrixFiles(self._plan, recipes, name)
                Spread(self._run, files, self._work).run_tasks(f"vectors {name}")

    def _publish_solution(self, found: Decomposition) -> RecipeFile:
        """Publishes a solution.

        Returns:
            The published solution, which is another process's if that was faster.
        """
        found.publish(self._recipe_path, self._recipe_identity)
        known = self._known_file()
        if known is None:
            raise IncompleteError(f"{self._recipe_path} is gone again; run the same command again")
        return known

    def _prepare_solution(self) -> Decomposition:
        """Reads the solution that is published; else removes that of another sketch, and solves."""
        if (known := self._known()) is not None:
            return known
        remove_other_recipes(self._recipe_path, self._recipe_identity)
        return self._solved()

    def _known(self) -> Decomposition | None:
        """Reads the solution that an earlier process published, perhaps before it was killed."""
        file = self._known_file()
        return Decomposition.read(file) if file else None

    def _known_file(self) -> RecipeFile | None:
        stated = stated_by(self._recipe_path)
        same = stated.get("sketch") == self._recipe_identity["sketch"]
        if same and stated.get("settings") != self._recipe_identity["settings"]:
            raise UsageError(
                f"{self.path.parent} is being made with {stated.get('settings')}, or was when "
                f"that was killed, not with {self._recipe_identity['settings']}; give another "
                f"--name, or remove it: {removal(self.path.parent, below=True)}"
            )
        if not is_there(self._recipe_path):
            return None
        columns = columns_of_result(self._run, self._settings)
        return read_recipes(self._recipe_path, self._recipe_identity, columns)

    def _solved(self, *, correcting: bool = False) -> Decomposition:
        return solve_and_correct(
            self._run, self._settings, self._recipe_identity, self.path.parent, self._work,
            correcting=correcting,
        )  # fmt: skip

    def _publish(self, found: Decomposition) -> bool:
        """Writes the vectors, and publishes the result unless a correction would better it.

        Returns:
            Whether the result is published; if not, the vectors are not orthonormal yet.
        """
        make_folder(self.path.parent)
        recipes = None
        if pieced_of(self._plan, found.matrices):
            recipes = self._publish_solution(found)
            found = Decomposition.read(recipes)
        stages = {name: f"vectors {name}" for name in found.matrices}
        if len(stages) == 1:
            stages = dict.fromkeys(stages, "vectors")
        matrices = MatrixWriting(self._run, found.matrices, recipes, self._work)
        with sealed_writer(self.path, *matrices.layouts) as writer:
            described, figures = matrices.write(writer, stages)
            orthogonality = max(deviation(self._plan, made) for made in figures)
            # A Frobenius norm over r vectors, which grows as sqrt(r) where each is off by as much.
            per_vector = orthogonality / math.sqrt(len(found.values))
            if per_vector > orthogonality_bound(self._plan) and not found.corrected:
                return False
            first = writer.publish(
                {**self._identity, **found.made, **described},
                _arrays(self._plan, found, figures, orthogonality),
                provenance(threads=self._work.resources.threads),
            )
        if not first:
            # Another process was faster: this raises if its result has other settings.
            self.is_current()
        return True


def _require_kept(path: Path, identity: Mapping[str, Any], run: Run) -> None:
    """Refuses a result that is not there, of a run whose shards were removed."""
    file = open_if_there(path)
    if file is None or not file.states(identity):
        if file is not None:
            log.warning("%s is a result of other settings, or of another sketch", path)
        run.require_shards()
    assert file is not None
    check_pieces(file)


def _is_current(path: Path, identity: Mapping[str, Any], run: Run) -> bool:
    """Whether a result is there, with all of its pieces, and of this very sketch.

    Raises:
        UsageError: If it is a result with other settings.
        CorruptError: If it is damaged, or of another run.
    """
    again = command_of(run, path.parent.name, identity["settings"])
    again = f"{removal(path.parent, below=True)} && {again}"
    try:
        file = SealedFile(path, f". To make it anew: {again}")
    except FileNotFoundError:
        return False
    stated = file.identity
    if file.states(identity):
        if lost_pieces(file):
            # It is published again once the pieces are made again.
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
    """Publishes the transforms with which implicit vectors are computed when they are read."""
    # The small copy of the sketch has the geometry of the tall one, so figures follow from it.
    problem = found.problem
    assert problem is not None
    figures = [_compressed_figures(plan, found.compressed(), problem.t, found.weights())]
    if found.right is not None and problem.t_left is not None:
        right = found.right.vectors.compressed(problem.w)
        figures.append(_compressed_figures(plan, right, problem.t_left, found.left_weights()))
    deviation = found.deviation * math.sqrt(len(found.values))
    # The signs are fixed a second time: for complex vectors this moves the last bits of the
    # weights, and files that were written before must stay equal.
    arrays = _arrays(plan, found.finished(), figures, deviation)
    for side, recipe in (("left", found.left), ("right", found.right)):
        if recipe is not None:
            arrays |= recipe.vectors.as_arrays(f"{side}_")
    # How the vectors are read; and the amendments in force, as the plan may grow later.
    made = {
        "shape": list(plan.identity.shape),
        "dtype": plan.identity.dtype,
        "tile": plan.identity.tile[0],
        "amendments": len(plan.amendments),
    }
    if found.rounds:
        made["rounds"] = found.rounds
    make_folder(path.parent)
    with sealed_writer(path) as writer:
        writer.publish(
            identity | found.made | made,
            arrays,
            provenance(),
        )


def _arrays(
    plan: Plan, found: Decomposition, all_figures: Sequence[TileFigures], orthogonality: float
) -> dict[str, Array]:
    """Collects what a result holds besides its vectors."""
    left_out, (figures, *_) = found.leave_one_out, all_figures
    of_values = dict(found.pairs) or _residuals(found, all_figures)
    return {
        VALUES[plan.identity.kind]: found.values.astype(np.float64),
        **of_values,
        "residual_squares": figures.residual,
        "test_squares": figures.test,
        "approximation_squares": found.approximation_squares,
        "orthogonality": np.array(orthogonality),
        "leave_one_out": np.array(math.nan if left_out is None else left_out),
        "tested_cores": found.tested,
    }


def _residuals(found: Decomposition, figures: Sequence[TileFigures]) -> dict[str, Array]:
    """Estimates the residual of each pair from the test sketches.

    As ``Ahat u = value u``, that of an eigenpair, ``||A u - value u||``, is ``||(A - Ahat) u||``;
    its square is the mean of ``|u^H (A - Ahat) g|^2`` over Gaussian ``g``, ``A - Ahat`` being
    Hermitian. For singular values this is ``||A^H u - value v||``, and the test sketch of the
    adjoint tells ``||A v - value u||``. The residual of the eigenpair ``(u, v) / sqrt(2)`` of
    ``[0 A; A^H 0]``, whose eigenvalues are the singular values, is the root of their mean square.
    """
    sides = [each.residual_products for each in figures]
    # Those that chose the core are among the columns of the first test sketch.
    sides[0] = sides[0][:, found.choosing :]
    if not all(products.size for products in sides) or len(sides) < 1 + (found.right is not None):
        return {}
    squares = [np.mean(np.abs(products) ** 2, axis=1) for products in sides]
    residuals = {"residuals": np.sqrt(np.mean(squares, axis=0))}
    if found.right is not None:
        residuals["left_residuals"], residuals["right_residuals"] = map(np.sqrt, squares)
        residuals["left_tests"] = np.array(sides[1].shape[1])
    return residuals


def _compressed_figures(plan: Plan, vectors: Array, test: Array, weights: Array) -> TileFigures:
    """Forms the figures of vectors from their small copy and that of the test sketch."""
    residual = test - vectors @ weights
    products = vectors.conj().T @ residual
    return TileFigures(
        probed=np.zeros((0, 0)),
        residual=np.sum(np.abs(residual) ** 2, axis=0),
        test=np.sum(np.abs(test) ** 2, axis=0),
        test_products=products[:0],
        residual_products=products if has_residuals(plan) else products[:0],
        metric=np.zeros((0, 0)),
    )
