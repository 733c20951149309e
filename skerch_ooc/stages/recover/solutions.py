"""The solution of the small problems: values, and how the tall vectors are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.problem import Core
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.resources import torch_threads
from skerch_ooc.base.streams import tiles_in_flight
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.memory import solve_bytes, wide_dtype
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.stages.recover.orthogonality import (
    corrected,
    expected_deviation,
    orthogonality_bound,
)
from skerch_ooc.stages.recover.problems import Posed, pose
from skerch_ooc.stages.recover.recipes import (
    LEFT_VECTORS,
    RIGHT_VECTORS,
    RecipeFile,
    publish_recipes,
    recipe_identity,
    rounds_for,
)
from skerch_ooc.stages.recover.spread import form_gram
from skerch_ooc.stages.recover.vectors import Recipe, Vectors
from skerch_ooc.store import names
from skerch_ooc.store.rundir import Run


@dataclass(frozen=True)
class Decomposition:
    """A decomposition that is known, and whose vectors can be made.

    Attributes:
        posed: What it was made from.
        core: What the method found.
        values: Eigenvalues in descending magnitude, or singular values descending.
        left: How the left vectors, or the eigenvectors, are made.
        right: How the right vectors are made; ``None`` for eigenvectors.
        deviation: About how far the vectors are from orthonormal, storing them apart.
        corrected: Whether a stream of its own has seen to that.
    """

    posed: Posed
    core: Core
    values: Array
    left: Vectors
    right: Vectors | None
    deviation: float
    corrected: bool = False

    def weights(self) -> Array:
        """``diag(values) V^H G``, ``(r, q)``: ``U`` times this is ``Ahat G``."""
        products = self.posed.problem.g_w
        assert products is not None
        return np.asarray(
            self.values[:, None] * (self.right or self.left).compressed(products).conj().T
        )

    def with_fixed_signs(self) -> Decomposition:
        """With vectors turned so that the first test vector is at an acute angle to each.

        ``omega_1^H v`` is made real and positive for each right vector or eigenvector ``v``, a rule
        that depends on neither the method nor the number of measurements.
        """
        products = self.posed.problem.omega_w
        assert products is not None
        angle = (self.right or self.left).compressed(products[:1])[0]
        size = np.abs(angle)
        turn = np.where(size > 0, angle.conj() / np.where(size > 0, size, 1), 1)
        return Decomposition(
            self.posed,
            self.core,
            self.values,
            self.left.turned(turn),
            self.right.turned(turn) if self.right else None,
            self.deviation,
            self.corrected,
        )


@dataclass(frozen=True)
class Solution:
    """All that is known of a result before its vectors are made.

    Attributes:
        values: Eigenvalues in descending magnitude, or singular values descending, ``(r,)``.
        matrices: How the vectors are made: the left ones first.
        core: How many singular values of the core were inverted.
        choosing: How many test columns chose it.
        leave_one_out: The error as leave-one-out estimates it; ``None`` if it is not known.
        tested: Sizes of the core that were tried, with their errors, ``(t, 2)``.
        corrected: Whether a stream of its own has seen to the vectors being orthonormal.
    """

    values: Array
    matrices: Mapping[str, Recipe]
    core: int
    choosing: int
    leave_one_out: float | None
    tested: Array
    corrected: bool

    @classmethod
    def of(cls, plan: Plan, found: Decomposition) -> Solution:
        """The solution that a decomposition is, with signs fixed."""
        found = found.with_fixed_signs()
        height, width = plan.identity.shape
        name = LEFT_VECTORS[plan.identity.kind]
        matrices = {name: Recipe(name, height, found.left, found.posed.test, found.weights())}
        if found.right is not None:
            matrices[RIGHT_VECTORS] = Recipe(RIGHT_VECTORS, width, found.right)
        return cls(
            values=found.values,
            matrices=matrices,
            core=found.core.size,
            choosing=found.core.choosing,
            leave_one_out=found.core.leave_one_out,
            tested=np.array(found.core.tested, np.float64).reshape(-1, 2),
            corrected=found.corrected,
        )

    @property
    def approximation_squares(self) -> Array:
        """Squared norm of each column of ``Ahat G``, ``(q,)``, as ``U`` is orthonormal."""
        left = next(iter(self.matrices.values()))
        assert left.weights is not None
        return np.asarray(np.sum(np.abs(left.weights) ** 2, axis=0))

    def publish(self, path: Path, identity: Mapping[str, Any]) -> RecipeFile:
        """Publishes it for other processes, and for those that come after a crash.

        Args:
            path: The file.
            identity: See :func:`skerch_ooc.stages.recover.recipes.recipe_identity`.
        """
        more = {"core": self.core, "choosing": self.choosing, "corrected": self.corrected}
        left_out = math.nan if self.leave_one_out is None else self.leave_one_out
        arrays = {
            "values": self.values,
            "leave_one_out": np.array(left_out),
            "tested_cores": self.tested,
        }
        return publish_recipes(path, dict(identity) | more, self.matrices, arrays)

    @classmethod
    def read(cls, file: RecipeFile) -> Solution:
        """What :meth:`publish` published."""
        left_out = float(file.arrays["leave_one_out"])
        return cls(
            values=file.arrays["values"],
            matrices=file.matrices,
            core=int(file.identity["core"]),
            choosing=int(file.identity["choosing"]),
            leave_one_out=None if math.isnan(left_out) else left_out,
            tested=file.arrays["tested_cores"],
            corrected=bool(file.identity["corrected"]),
        )


def solve(run: Run, settings: RecoverySpec, work: Work) -> Decomposition:
    """Finds a decomposition, by small matrices alone unless merging is not done yet.

    Raises:
        UsageError: If the sketch does not serve the method, memory is too little, or the operator
            is zero.
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    last, before = rounds_for(run, settings)
    merged = Merge(last).run(work)
    merged_before = Merge(before).run(work) if before else None
    with (
        work.progress.stage("solve", 1, "problem") as advance,
        torch_threads(work.resources.threads),
    ):
        tiles_in_flight("recover", work.resources, solve_bytes(run.plan), 0)
        posed = pose(run.plan, settings, merged, merged_before)
        core = SOLVERS[settings.method](posed.problem)
        solution = decompose(posed.problem, core)
        advance(1)
    if len(solution.values) == 0:
        raise UsageError(
            "there is nothing to decompose: what these test vectors show of the operator is zero, "
            "or below its rounding errors; give another seed, more measurements, or another method"
        )
    condition = max(solution.left_condition, solution.right_condition)
    return Decomposition(
        posed=posed,
        core=core,
        values=solution.values,
        left=Vectors(posed.left, solution.left),
        right=Vectors(posed.right, solution.right) if posed.right else None,
        deviation=expected_deviation(run.plan, condition),
    )


def needs_correction_of(plan: Plan, found: Decomposition) -> bool:
    """Whether vectors of a solved problem may miss their bound of orthogonality."""
    return 8 * found.deviation > orthogonality_bound(plan)


def correct(
    run: Run, settings: RecoverySpec, found: Decomposition, folder: Path, work: Work
) -> Decomposition:
    """Makes the vectors orthonormal, by a stream over their sources.

    Args:
        run: The run.
        settings: Those of the result.
        found: What is to be corrected.
        folder: Of the result; what other processes need lies there for a while.
        work: What runs tasks, and with which resources.
    """
    plan = run.plan
    height, width = plan.identity.shape
    identity = recipe_identity(
        run, rounds_for(run, settings)[0].sketch.digest, {"settings": settings.as_json()}
    )

    def gram(name: str, rows: int, vectors: Vectors) -> Array:
        draft, recipe = folder / names.DRAFT.name(matrix=name), Recipe(name, rows, vectors)
        return form_gram(run, recipe, identity, draft, work)

    left = gram(LEFT_VECTORS[plan.identity.kind], height, found.left)
    right = gram(RIGHT_VECTORS, width, found.right) if found.right else None
    with torch_threads(work.resources.threads):
        values, u, v = corrected(found.values, found.left, left, found.right, right)
    floor = float(np.finfo(wide_dtype(plan)).eps)
    return Decomposition(found.posed, found.core, values, u, v, floor, corrected=True)
