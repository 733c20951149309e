"""Solves the small problems of recovery: values, and the transforms that make tall vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.krylov.pairs import Pairs
from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.problem import Problem
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import QualityError, UsageError, quoted
from skerch_ooc.base.resources import torch_threads
from skerch_ooc.base.streams import tiles_in_flight
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.krylov import CORANGE, RANGE
from skerch_ooc.planning.memory import solve_bytes, whole_bytes
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.task import begin_merge
from skerch_ooc.stages.recover.krylov import Search, goal_of
from skerch_ooc.stages.recover.orthogonality import (
    corrected,
    expected_deviation,
    may_miss_bound,
)
from skerch_ooc.stages.recover.problems import Posed, pose
from skerch_ooc.stages.recover.recipes import (
    LEFT_VECTORS,
    RIGHT_VECTORS,
    SUMMED_SIDE,
    RecipeFile,
    columns_of_result,
    publish_recipes,
    rounds_for,
)
from skerch_ooc.stages.recover.spread import form_gram
from skerch_ooc.stages.recover.vectors import Recipe, Vectors
from skerch_ooc.stages.recover.whole import pose_whole, sums_of_whole
from skerch_ooc.store import names
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.tiles import Tiles

_PAIRS = "pairs."
_ASTRAY = 10


@dataclass(frozen=True)
class Decomposition:
    """A result before its vectors are made: values, recipes of the vectors, and error figures.

    Attributes:
        values: Eigenvalues in descending magnitude, or singular values descending, ``(r,)``.
        left: The recipe of the left vectors, or of the eigenvectors.
        right: The recipe of the right vectors; ``None`` for eigenvectors.
        core: Number of singular values of the core that were inverted.
        choosing: Number of test columns that chose the core.
        leave_one_out: The error as leave-one-out estimates it; ``None`` if it is not known.
        tested: Sizes of the core that were tried, with their errors, ``(t, 2)``.
        corrected: Whether a stream of its own has made the vectors orthonormal.
        problem: The problem that was solved; ``None`` if the decomposition was read from a file.
        deviation: About how far the vectors are from orthonormal before they are rounded to be
            stored; NaN if the decomposition was read from a file.
        pairs: What is known of the pairs of ``krylov``, as the result holds it; empty for others.
        method: Which method was taken, where several were compared; else empty.
        small: The left and right vectors in the columns of the problem, where these are not those
            that the vectors are made of.
        rounds: Of how many rounds of ``krylov`` it approximates the whole operator; else 0.
    """

    values: Array
    left: Recipe
    right: Recipe | None
    core: int
    choosing: int
    leave_one_out: float | None
    tested: Array
    corrected: bool = False
    problem: Problem | None = None
    deviation: float = math.nan
    pairs: Mapping[str, Array] = field(default_factory=dict)
    method: str = ""
    small: tuple[Vectors, ...] = ()
    rounds: int = 0

    @property
    def made(self) -> dict[str, Any]:
        """How it was found, as the file of a result says it."""
        taken = {"method": self.method} if self.method else {}
        return {"core": self.core, "choosing": self.choosing} | taken

    @property
    def matrices(self) -> dict[str, Recipe]:
        """The recipes of the vectors, by the names of their matrices: the left ones first."""
        return {recipe.name: recipe for recipe in (self.left, self.right) if recipe}

    @property
    def approximation_squares(self) -> Array:
        """The squared norm of each column of ``Ahat G``, ``(q,)``."""
        # ||U X|| is ||X||, as U is orthonormal.
        assert self.left.weights is not None
        return np.asarray(np.sum(np.abs(self.left.weights) ** 2, axis=0))

    def weights(self) -> Array:
        """Returns ``diag(values) V^H G``, ``(r, q)``: ``U`` times this is ``Ahat G``."""
        assert self.problem is not None
        right = self._in_problem[-1]
        return np.asarray(self.values[:, None] * right.compressed(self.problem.g_w).conj().T)

    def compressed(self) -> Array:
        """Returns a compressed copy of the left vectors, ``(a, r)``."""
        assert self.problem is not None
        return self._in_problem[0].compressed(self.problem.y)

    @property
    def _in_problem(self) -> tuple[Vectors, ...]:
        """The left and the right vectors, or the eigenvectors, in the columns of the problem."""
        made = [recipe.vectors for recipe in (self.left, self.right) if recipe]
        return self.small or tuple(made)

    def left_weights(self) -> Array:
        """Returns ``diag(values) U^H G'``, ``(r, p)``: ``V`` times this is ``Ahat^H G'``."""
        assert self.problem is not None
        assert self.problem.g_y is not None
        products = self._in_problem[0].compressed(self.problem.g_y)
        return np.asarray(self.values[:, None] * products.conj().T)

    def finished(self) -> Decomposition:
        """Returns the decomposition with weights, and with the signs of its vectors fixed.

        Each right vector or eigenvector ``v`` is multiplied by a sign or phase that makes
        ``omega_1^H v`` real and positive: a rule that depends on neither the method nor the number
        of measurements.
        """
        assert self.problem is not None
        assert self.problem.omega_w is not None
        turn = _turns(self._in_problem[-1].compressed(self.problem.omega_w[:1])[0])
        turned = self.with_vectors(
            self.left.vectors.turned(turn),
            self.right.vectors.turned(turn) if self.right else None,
            small=tuple(vectors.turned(turn) for vectors in self.small),
        )
        left = dataclasses.replace(turned.left, weights=turned.weights())
        right = turned.right
        if right is not None and self.problem.t_left is not None:
            right = dataclasses.replace(right, weights=turned.left_weights())
        return dataclasses.replace(turned, left=left, right=right)

    def with_vectors(
        self, left: Vectors, right: Vectors | None = None, **more: Any
    ) -> Decomposition:
        """Returns the decomposition with other vectors, and with ``more`` attributes replaced."""
        return dataclasses.replace(
            self,
            left=dataclasses.replace(self.left, vectors=left),
            right=dataclasses.replace(self.right, vectors=right) if self.right and right else None,
            **more,
        )

    def publish(self, path: Path, identity: Mapping[str, Any]) -> RecipeFile:
        """Publishes the decomposition for other processes, and for those that follow a crash.

        Args:
            path: The file.
            identity: See :func:`skerch_ooc.stages.recover.recipes.recipe_identity`.
        """
        more = {**self.made, "corrected": self.corrected}
        left_out = math.nan if self.leave_one_out is None else self.leave_one_out
        arrays = {
            "values": self.values,
            "leave_one_out": np.array(left_out),
            "tested_cores": self.tested,
            **{f"{_PAIRS}{name}": array for name, array in self.pairs.items()},
        }
        return publish_recipes(path, dict(identity) | more, self.matrices, arrays)

    @classmethod
    def read(cls, file: RecipeFile) -> Decomposition:
        """Reads what :meth:`publish` published."""
        left_out = float(file.arrays["leave_one_out"])
        left, *right = file.matrices.values()
        return cls(
            values=file.arrays["values"],
            left=left,
            right=right[0] if right else None,
            core=int(file.identity["core"]),
            choosing=int(file.identity["choosing"]),
            method=str(file.identity.get("method", "")),
            leave_one_out=None if math.isnan(left_out) else left_out,
            tested=file.arrays["tested_cores"],
            corrected=bool(file.identity["corrected"]),
            pairs={
                name.removeprefix(_PAIRS): array
                for name, array in file.arrays.items()
                if name.startswith(_PAIRS)
            },
        )


def solve(run: Run, settings: RecoverySpec, work: Work) -> Decomposition:
    """Finds a decomposition from the merged sums; merges the sketch first if that is not done.

    Raises:
        UsageError: If the sketch does not serve the method, memory is too little, or the operator
            is zero.
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
        DriftError: If the sketch is merged now, and different operators made its shards.
    """
    last, before = rounds_for(run, settings)
    merged = begin_merge(last).run(work)
    merged_before = begin_merge(before).run(work) if before else None
    with (
        work.progress.stage("solve", 1, "problem") as advance,
        torch_threads(work.resources.threads),
    ):
        # No tile is read here: this releases unused memory, and refuses too little.
        tiles_in_flight("recover", work.resources, solve_bytes(run.plan), 0)
        found = _decomposed(run, settings, pose(run.plan, settings, merged, merged_before))
        advance(1)
    return found


def _decomposed(run: Run, settings: RecoverySpec, posed: Posed) -> Decomposition:
    """Solves a problem.

    Raises:
        UsageError: If the operator vanishes on the test vectors.
    """
    core = posed.solve(settings.method)
    solution = decompose(posed.problem, core)
    if len(solution.values) == 0:
        raise UsageError(
            "there is nothing to decompose: what these test vectors show of the operator is zero, "
            "or below its rounding errors; give another seed, more measurements, or another method"
        )
    condition = max(solution.left_condition, solution.right_condition)
    deviation = expected_deviation(run.plan, condition)
    height, width = run.plan.identity.shape
    name, left = LEFT_VECTORS[run.plan.identity.kind], Vectors(posed.left, solution.left)
    right = Vectors(posed.right, solution.right) if posed.right else None
    small: tuple[Vectors, ...] = ()
    if posed.extraction is not None:
        small = tuple(vectors for vectors in (left, right) if vectors)
        left = Vectors(posed.left, posed.extraction.left @ solution.left)
        if posed.right is not None:
            right = Vectors(posed.right, posed.extraction.right @ solution.right)
        # Inner products of these columns are known from Gram matrices, whatever the dtype.
        deviation = float(np.finfo(np.float64).eps) * posed.extraction.amplification(solution) ** 2
    return Decomposition(
        small=small,
        values=solution.values,
        left=Recipe(name, height, left, posed.test),
        right=Recipe(RIGHT_VECTORS, width, right, posed.test_left) if right else None,
        core=core.size,
        choosing=core.choosing,
        method=core.method,
        leave_one_out=core.leave_one_out,
        tested=np.array(core.tested, np.float64).reshape(-1, 2),
        problem=posed.problem,
        deviation=deviation,
    )


def solve_and_correct(
    run: Run, settings: RecoverySpec, identity: Mapping[str, Any], folder: Path, work: Work,
    *, correcting: bool = False,
) -> Decomposition:  # fmt: skip
    """Finds a decomposition, and corrects vectors that may not be orthonormal, by one more stream.

    Args:
        run: The run.
        settings: The settings of the result.
        identity: See :func:`skerch_ooc.stages.recover.recipes.recipe_identity`.
        folder: The folder of the result, which holds a draft for other processes meanwhile.
        work: What runs tasks, and with which resources.
        correcting: Whether to correct the vectors in any case.

    Raises:
        UsageError: If the sketch does not serve the method, memory is too little, or the operator
            is zero.
        IncompleteError: If measurements are missing, or a file cannot be written.
        CorruptError: If a shard is damaged.
        DriftError: If the sketch is merged now, and different operators made its shards.
    """
    if METHODS[settings.method].orthogonal:
        return _solve_pairs(run, settings, work)
    if run.plan.takes_whole(settings.method):
        found = _solve_whole(run, settings, identity, folder, work)
    else:
        found = solve(run, settings, work)
    if not correcting and not may_miss_bound(run.plan, found.deviation):
        return found.finished()
    if settings.vectors == "implicit":
        # The processor makes implicit vectors as they are read: its rounding is to be corrected.
        on_processor = dataclasses.replace(work.resources, device="cpu")
        work = dataclasses.replace(work, resources=on_processor)

    def gram(recipe: Recipe) -> Array:
        draft = folder / names.DRAFT.name(matrix=recipe.name)
        return form_gram(run, recipe, identity, draft, work)

    recipes = list(found.matrices.values())
    grams = [gram(recipe) for recipe in recipes]
    with torch_threads(work.resources.threads):
        values, (u, *v) = corrected(found.values, [recipe.vectors for recipe in recipes], grams)
    floor = float(np.finfo(run.plan.identity.wide_dtype).eps)
    small = tuple(
        dataclasses.replace(one, correction=vectors.correction)
        for one, vectors in zip(found.small, (u, *v), strict=False)
    )
    return found.with_vectors(
        u, *v, values=values, deviation=floor, corrected=True, small=small
    ).finished()


def _solve_whole(
    run: Run, settings: RecoverySpec, identity: Mapping[str, Any], folder: Path, work: Work
) -> Decomposition:
    """Finds an approximation of the whole operator from the rounds of ``krylov``."""
    last, _ = rounds_for(run, settings)
    begin_merge(last).run(work)
    Search.of(last, last.sketch.digest).require_no_drift()
    name = LEFT_VECTORS[run.plan.identity.kind]

    def gram(side: str, columns: Tiles) -> Array:
        rows, count = columns.shape
        itself = np.eye(count, dtype=run.plan.identity.wide_dtype)
        recipe = Recipe(name, rows, Vectors(columns, itself))
        draft = folder / names.DRAFT.name(matrix=name)
        return form_gram(run, recipe, {**identity, SUMMED_SIDE: side}, draft, work, "sums")

    sums = sums_of_whole(last, gram)
    with (
        work.progress.stage("solve", 1, "problem") as advance,
        torch_threads(work.resources.threads),
    ):
        tiles_in_flight("recover", work.resources, whole_bytes(run.plan), 0)
        found = _decomposed(run, settings, pose_whole(last, settings, sums))
        advance(1)
    return dataclasses.replace(found, rounds=last.number)


def _solve_pairs(run: Run, settings: RecoverySpec, work: Work) -> Decomposition:
    """Finds the pairs that the rounds of ``krylov`` have found; merges the last if need be."""
    last, _ = rounds_for(run, settings)
    begin_merge(last).run(work)
    search = Search.of(last, last.sketch.digest)
    search.require_no_drift()
    with (
        work.progress.stage("solve", 1, "problem") as advance,
        torch_threads(work.resources.threads),
    ):
        tiles_in_flight("recover", work.resources, solve_bytes(run.plan), 0)
        goal = goal_of(run.plan, settings)
        standing = search.look(goal).standing
        if not standing.wanted:
            raise QualityError(
                f"recovery.which = {settings.which!r}: all values that the rounds show are "
                "on the other side of zero, and they show no more of the operator, which may have "
                f"the value 0 besides; the values are given by: skerch-ooc recover "
                f"{quoted(run.directory)} --which LM --name others"
            )
        # Not those beyond a null space, behind which as many others may hide.
        pairs, hermitian = standing.pairs.upto(standing.wanted), run.plan.identity.kind == "eigh"
        side = RANGE if hermitian else CORANGE
        turn = _turns(search.chain_start(side) @ pairs.right)
        pairs = dataclasses.replace(pairs, left=pairs.left * turn, right=pairs.right * turn)
        weights = _test_weights(search, side, pairs)
        advance(1)
    columns = columns_of_result(run, settings)
    height, width = run.plan.identity.shape
    name = LEFT_VECTORS[run.plan.identity.kind]
    left = Vectors(columns.left, pairs.left)
    right = None if columns.right is None else Vectors(columns.right, pairs.right)
    return Decomposition(
        values=pairs.values,
        left=Recipe(name, height, left, columns.test, weights),
        right=Recipe(RIGHT_VECTORS, width, right) if right else None,
        core=len(standing.pairs.values),
        choosing=0,
        leave_one_out=None,
        tested=np.zeros((0, 2)),
        corrected=True,
        deviation=float(np.finfo(run.plan.identity.wide_dtype).eps),
        pairs={
            "residuals": pairs.residuals,
            "bounds": pairs.bounds,
            "rounding": np.array(pairs.rounding),
            "spectral_norm": np.array(standing.pairs.norm),
            "rounds": np.array(last.number),
            "confirmed": np.array(standing.confirmed),
            "steady": np.array(search.is_steady(goal, pairs)),
            "exhausted": np.array(standing.exhausted),
        },
    )


def _test_weights(search: Search, side: str, pairs: Pairs) -> Array:
    """Returns ``theta_i v_i^H G`` for each pair and the test matrix ``G``, ``(r, q)``.

    The products of ``G`` with the basis follow from each other, block by block, and the rounding of
    one grows in the next by the norm of the operator over that of what the basis leaves of its
    products: without bound where the operator is near a multiple of the identity. But ``u_i^H T``
    is measured, and differs from them by ``r_i^H G`` with the pair's residual ``r_i``. So it takes
    their place where they are further away than that.
    """
    tests = search.test_products(side)
    weights = pairs.values[:, None] * (tests @ pairs.right).conj().T
    measured = pairs.left.conj().T @ search.left_tests()
    residuals = np.sqrt(2 * tests.shape[0]) * pairs.residuals
    astray = np.linalg.norm(weights - measured, axis=1) > _ASTRAY * residuals
    return np.where(astray[:, None], measured, weights)


def _turns(angle: Array) -> Array:
    """Returns the numbers of modulus 1 that make real numbers of these, and positive ones."""
    size = np.abs(angle)
    return np.asarray(np.where(size > 0, angle.conj() / np.where(size > 0, size, 1), 1))
