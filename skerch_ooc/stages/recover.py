"""Recover: small dense problems, then one stream over the sketch that writes the vectors."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import CorruptError, IncompleteError, UsageError
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.recovery import METHODS, Core, decompose
from skerch_ooc.resources import Resources, torch_threads
from skerch_ooc.rounds import Round, known_rounds
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import SealedFile, sealed_writer
from skerch_ooc.sides import CORANGE, RANGE
from skerch_ooc.spec import FORMAT_VERSION, Plan, RecoverySpec
from skerch_ooc.stages.accumulate import wide_dtype
from skerch_ooc.stages.merge import Merge
from skerch_ooc.stages.problems import Posed, Source, pose, serves
from skerch_ooc.stages.vectors import (
    Vectors,
    corrected,
    expected_deviation,
    gram_of_vectors,
    layout_of,
    orthogonality_bound,
    write_vectors,
)
from skerch_ooc.streams import tiles_in_flight

Array = npt.NDArray[Any]

RESULT_FILES = {"eigh": "eigh.h5", "svd": "svd.h5"}
ASSESSMENT = "assessment.json"
VALUES = {"eigh": "eigenvalues", "svd": "S"}
LEFT_VECTORS = {"eigh": "eigenvectors", "svd": "U"}
RIGHT_VECTORS = "V"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}")


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


def result_name(settings: RecoverySpec, plan: Plan) -> str:
    """The folder of a result: ``default`` for the plan's own settings."""
    if settings == plan.recovery:
        return "default"
    powers = f"-power-{settings.power_iterations}" if settings.power_iterations else ""
    implicit = "-implicit" if settings.vectors == "implicit" else ""
    return f"{settings.method}{powers}-core-{settings.core}-rank-{settings.rank}{implicit}"


def result_path(run: Run, name: str) -> Path:
    """The file of a result.

    Raises:
        UsageError: If its name is not one that a folder should have.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"name = {name!r}: must be a plain folder name of letters, digits and _.=+-, not "
            "beginning with a dot"
        )
    return run.results / name / RESULT_FILES[run.plan.identity.kind]


def sources(run: Run, settings: RecoverySpec) -> tuple[str, Source, Source | None]:
    """The columns on disk that the vectors of a result are made of.

    Args:
        run: The run.
        settings: Those of the result.

    Returns:
        The digest of the sketch, the columns of the left vectors or of the eigenvectors, and those
        of the right vectors.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or is gone.
        CorruptError: If a shard is damaged.
    """
    last, _ = rounds_for(run, settings)
    readers = Merge(last).readers()
    left = Source(last.basis, "basis") if last.basis else Source(readers[RANGE], "right")
    right = None
    if CORANGE in readers:
        right = Source(readers[CORANGE], last.role if last.basis else "left")
    return last.sketch.digest, left, right


def solve_bytes(plan: Plan) -> int:
    """Memory of the small problems: a dozen matrices ``(m, m)``, LAPACK's workspace included."""
    m, left = plan.reach("right"), max(plan.reach("left"), plan.inner)
    return 12 * m * max(m, left) * wide_dtype(plan).itemsize


def rounds_for(run: Run, settings: RecoverySpec) -> tuple[Round, Round | None]:
    """The round whose sketch a method uses, and for ``hmt`` the one before it.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or a basis is not made yet.
    """
    serves(run.plan, settings)
    if settings.method != "hmt":
        return Round(run), None
    rounds = list(known_rounds(run))
    if len(rounds) < run.plan.rounds:
        rounds[-1].sketch  # noqa: B018 (says what is missing, if measurements are)
        raise IncompleteError(
            f"round {len(rounds) + 1} of {run.plan.rounds} has no basis yet; make it with: "
            f"skerch-ooc merge {run.directory}"
        )
    return rounds[-1], rounds[-2]


def solve(
    run: Run, settings: RecoverySpec, resources: Resources, progress: Progress
) -> Decomposition:
    """Finds a decomposition, by small matrices alone unless merging is not done yet.

    Raises:
        UsageError: If the sketch does not serve the method, memory is too little, or the operator
            is zero.
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    last, before = rounds_for(run, settings)
    merged = Merge(last).result(resources, progress)
    merged_before = Merge(before).result(resources, progress) if before else None
    with progress.stage("solve", 1, "problem") as advance, torch_threads(resources.threads):
        tiles_in_flight("recover", resources, solve_bytes(run.plan), 0)
        posed = pose(run.plan, settings, merged, merged_before)
        core = METHODS[settings.method](posed.problem)
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


def recover(
    run: Run, settings: RecoverySpec, name: str, resources: Resources, progress: Progress
) -> Path:
    """Recovers a decomposition and writes it, or finds that this is done.

    Args:
        run: The run; it is merged first, if it is not yet.
        settings: Method, core and rank.
        name: The folder of the result, inside ``results/``.
        resources: Memory and cores.
        progress: Shows how far it is.

    Returns:
        The path of the result.

    Raises:
        UsageError: If the sketch does not serve the method, the name is taken by a result of other
            settings, memory is too little, or the operator is zero.
        IncompleteError: If measurements are missing.
        CorruptError: If a shard, or a result of this name, is damaged.
    """
    path = result_path(run, name)
    identity = _identity(run.plan, rounds_for(run, settings)[0].sketch.digest, settings)
    if _is_current(path, identity, run):
        return path
    # Of a result that is gone or replaced.
    (path.parent / ASSESSMENT).unlink(missing_ok=True)
    found = solve(run, settings, resources, progress)
    if needs_correction_of(run.plan, found):
        # Implicit vectors are made by the processor: it is its rounding that is to be corrected.
        where = "cpu" if settings.vectors == "implicit" else resources.device
        on = dataclasses.replace(resources, device=where)
        found = correct(run.plan, found, on, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings.vectors == "implicit":
        _publish_implicit(path, identity, run.plan, found.with_fixed_signs())
    elif not _write(path, identity, run.plan, found, resources, progress):
        # Not to be expected: the condition foretells it. A stream more puts it right.
        again = correct(run.plan, found, resources, progress)
        _write(path, identity, run.plan, again, resources, progress)
    return path


def needs_correction_of(plan: Plan, found: Decomposition) -> bool:
    """Whether vectors of a solved problem may miss their bound of orthogonality."""
    return 8 * found.deviation > orthogonality_bound(plan)


def correct(
    plan: Plan, found: Decomposition, resources: Resources, progress: Progress
) -> Decomposition:
    """Makes the vectors orthonormal, by a stream over their sources."""
    height, width = plan.identity.shape
    left = gram_of_vectors(plan, found.left, height, resources, progress)
    right = None
    if found.right:
        right = gram_of_vectors(plan, found.right, width, resources, progress)
    with torch_threads(resources.threads):
        values, u, v = corrected(found.values, found.left, left, found.right, right)
    floor = float(np.finfo(wide_dtype(plan)).eps)
    return Decomposition(found.posed, found.core, values, u, v, floor, corrected=True)


def _identity(plan: Plan, digest: str, settings: RecoverySpec) -> dict[str, Any]:
    implicit = {"vectors": "implicit"} if settings.vectors == "implicit" else {}
    return {
        "format": FORMAT_VERSION,
        "type": plan.identity.kind,
        "run": plan.run_id,
        "sketch": digest,
        "settings": settings.as_json() | implicit,
    }


def _command(run: Run, name: str, settings: Mapping[str, Any]) -> str:
    """What makes a result on the command line."""
    planned = run.plan.recovery.as_json()
    options = {} if name == "default" else {"name": name}
    options |= {
        key: settings[key]
        for key in ("method", "core", "rank", "vectors")
        if settings.get(key) != planned.get(key)
    }
    words = [f" --{key} {value}" for key, value in options.items()]
    return f"skerch-ooc recover {run.directory}" + "".join(words)


def _is_current(path: Path, identity: Mapping[str, Any], run: Run) -> bool:
    """Whether a result is there and of this very sketch; a stale one is removed."""
    again = f"rm -r {path.parent} && {_command(run, path.parent.name, identity['settings'])}"
    try:
        file = SealedFile(path)
    except FileNotFoundError:
        return False
    except CorruptError as error:
        raise CorruptError(f"{error}. To make it anew: {again}") from error
    stated = {key: value for key, value in file.identity.items() if key in identity}
    if stated == identity:
        return True
    if stated.get("run") != identity["run"]:
        raise CorruptError(f"{path} is a result of another run. To replace it: {again}")
    if stated.get("settings") != identity["settings"]:
        raise UsageError(
            f"{path.parent} holds a result with {stated.get('settings')}, not with "
            f"{identity['settings']}; give another --name, or remove it: {again}"
        )
    # A result is derived data. This one is of a sketch that has grown, or was measured anew, since.
    path.unlink()
    return False


def _write(
    path: Path, identity: dict[str, Any], plan: Plan, found: Decomposition,
    resources: Resources, progress: Progress,
) -> bool:  # fmt: skip
    """Writes the vectors and publishes the result.

    Returns:
        Whether the vectors turned out orthonormal; if not, and that can be mended, nothing is
        published.
    """
    kind, (height, width) = plan.identity.kind, plan.identity.shape
    found = found.with_fixed_signs()
    layouts = [layout_of(plan, LEFT_VECTORS[kind], height, found.left.rank)]
    if found.right:
        layouts.append(layout_of(plan, RIGHT_VECTORS, width, found.right.rank))
    with sealed_writer(path, *layouts) as writer:
        figures, orthogonality = write_vectors(
            plan, found.left, writer.bulks[0], resources, progress,
            test=found.posed.test, weights=found.weights(),
            stage=f"vectors {layouts[0].name}" if found.right else "vectors",
        )  # fmt: skip
        if found.right:
            _, right = write_vectors(
                plan, found.right, writer.bulks[1], resources, progress,
                stage=f"vectors {RIGHT_VECTORS}",
            )  # fmt: skip
            orthogonality = max(orthogonality, right)
        per_vector = orthogonality / math.sqrt(len(found.values))
        if per_vector > orthogonality_bound(plan) and not found.corrected:
            return False
        writer.publish(
            identity | {"core": found.core.size, "choosing": found.core.choosing},
            _figures(plan, found, figures.residual, figures.test, orthogonality),
            provenance(threads=resources.threads),
        )
    return True


def _publish_implicit(
    path: Path, identity: dict[str, Any], plan: Plan, found: Decomposition
) -> None:
    """Publishes the transforms that vectors are made with as they are read."""
    problem = found.posed.problem
    residual = problem.t - found.left.compressed(problem.y) @ found.weights()
    arrays = _figures(
        plan,
        found,
        np.sum(np.abs(residual) ** 2, axis=0),
        np.sum(np.abs(problem.t) ** 2, axis=0),
        found.deviation * math.sqrt(len(found.values)),
    )
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


def _figures(
    plan: Plan, found: Decomposition, residual: Array, test: Array, orthogonality: float
) -> dict[str, Array]:
    left_out = found.core.leave_one_out
    return {
        VALUES[plan.identity.kind]: found.values.astype(np.float64),
        "residual_squares": residual,
        "test_squares": test,
        "orthogonality": np.array(orthogonality),
        "leave_one_out": np.array(math.nan if left_out is None else left_out),
        "tested_cores": np.array(found.core.tested, np.float64).reshape(-1, 2),
    }
