"""Recover: small dense problems, then one stream over the sketch that writes the vectors.

While a tile of ``U = Y T`` is in memory, as it is stored, two figures are formed from it: the
residual of the test sketch ``T - U diag(values) U^H G``, column by column, and, by random probes,
how far ``U^H U`` is from the identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.arrays import empty_aligned
from skerch_ooc.errors import CorruptError, UsageError
from skerch_ooc.noise import draw
from skerch_ooc.partition import Range, levels, tree_sum
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.recovery import METHODS, Problem, Solution
from skerch_ooc.resources import Resources, blas_threads
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import Layout, SealedFile, SealedWriter, sealed_writer
from skerch_ooc.spec import FORMAT_VERSION, Plan, RecoverySpec
from skerch_ooc.stages.accumulate import wide_dtype
from skerch_ooc.stages.merge import Merge, Merged
from skerch_ooc.streams import Pool, ordered_map, tiles_in_flight

Array = npt.NDArray[Any]

RESULT_FILE = "eigh.h5"
VECTORS = "eigenvectors"

VECTOR_TILE_COLUMNS = 64
"""Tiles of the vectors are narrow, so that a few leading vectors are read without the rest."""

PROBES = 8
"""Random vectors that the orthogonality is estimated from."""


@dataclass
class TileFigures:
    """What one tile of the vectors, or many, contribute to the figures.

    Attributes:
        residual: Squared norm of each column of the residual of the test sketch, ``(q,)``.
        test: Squared norm of each column of the test sketch, ``(q,)``.
        probed: ``U^H (U P)`` for random ``P``, ``(r, PROBES)``.
    """

    residual: Array
    test: Array
    probed: Array

    def add(self, other: TileFigures) -> TileFigures:
        """Adds the figures of further tiles to these."""
        self.residual += other.residual
        self.test += other.test
        self.probed += other.probed
        return self


def result_name(settings: RecoverySpec, plan: Plan) -> str:
    """The folder of a result: ``default`` for the plan's own settings."""
    if settings == plan.recovery:
        return "default"
    return f"{settings.method}-core-{settings.core}-rank-{settings.rank}"


def problem_of(plan: Plan, merged: Merged, settings: RecoverySpec) -> Problem:
    """Cuts the accumulators into the matrices of a recovery problem."""
    return Problem(
        gram=merged.block("gram", "right", "right"),
        core=merged.block("cross", "right", "right"),
        gram_test=merged.block("gram", "right", "test"),
        test_gram=merged.block("gram", "test", "test"),
        core_test=merged.block("cross", "test", "right").conj().T,
        epsilon=float(np.finfo(plan.identity.dtype).eps),
        core_size=None if settings.core == "auto" else int(settings.core),
        rank=None if settings.rank == "all" else int(settings.rank),
    )


def solve_bytes(plan: Plan) -> int:
    """Memory of the small problems: a dozen matrices ``(m, m)``, LAPACK's workspace included."""
    m = plan.reach("right")
    return 12 * m * m * wide_dtype(plan).itemsize


def vectors_bytes(plan: Plan, rank: int) -> tuple[int, int]:
    """Memory of the vectors' stream: bytes needed once, and bytes for each tile in flight."""
    columns, wide = plan.products, wide_dtype(plan).itemsize
    rows = min(plan.identity.tile[0], plan.identity.shape[0])
    narrow = np.dtype(plan.identity.dtype).itemsize
    figures = rank * PROBES * wide
    fixed = plan.reach("right") * rank * wide + (levels(len(plan.tiles())) + 2) * figures
    fixed += 2 * columns**2 * wide
    return fixed, rows * (columns * (wide + narrow) + rank * (wide + 2 * narrow)) + figures


def recover(
    merge: Merge, settings: RecoverySpec, name: str, resources: Resources, progress: Progress
) -> Path:
    """Recovers a decomposition and writes it, or finds that this is done.

    Args:
        merge: The sketch; it is merged first, if it is not yet.
        settings: Method, core and rank.
        name: The folder of the result, inside ``results/``.
        resources: Memory and cores.
        progress: Shows how far it is.

    Returns:
        The path of ``eigh.h5``.

    Raises:
        UsageError: If the name is taken by a result of other settings, memory is too little, or
            the operator is zero.
        CorruptError: If a shard, or a result of this name, is damaged.
    """
    run = merge.run
    path = run.results / name / RESULT_FILE
    identity = _identity(run.plan, merge.digest, settings)
    if _is_current(path, identity, run):
        return path
    merged = merge.result(resources, progress)
    with progress.stage("solve", 1, "problem") as advance, blas_threads(resources.threads):
        tiles_in_flight("recover", resources, solve_bytes(run.plan), 0)
        solution = METHODS[settings.method](problem_of(run.plan, merged, settings))
        advance(1)
    if len(solution.values) == 0:
        raise UsageError(
            "there is nothing to decompose: the operator's products with all test vectors are zero"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, identity, run.plan, merged, solution, resources, progress)
    return path


def _identity(plan: Plan, digest: str, settings: RecoverySpec) -> dict[str, Any]:
    return {
        "format": FORMAT_VERSION,
        "type": "eigh",
        "run": plan.run_id,
        "sketch": digest,
        "settings": settings.as_json(),
    }


def _is_current(path: Path, identity: Mapping[str, Any], run: Run) -> bool:
    """Whether a result is there and of this very sketch; a stale one is removed."""
    again = f"rm -r {path.parent} && skerch-ooc recover {run.directory}"
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
    # A result is derived data. This one is of shards that have been measured anew since.
    path.unlink()
    return False


def _write(
    path: Path, identity: dict[str, Any], plan: Plan, merged: Merged, solution: Solution,
    resources: Resources, progress: Progress,
) -> None:  # fmt: skip
    height, rank = plan.identity.shape[0], len(solution.values)
    layout = Layout(
        name=VECTORS,
        shape=(height, rank),
        dtype=plan.identity.dtype,
        tile=(min(plan.identity.tile[0], height), min(VECTOR_TILE_COLUMNS, rank)),
    )
    in_flight = tiles_in_flight("recover", resources, *vectors_bytes(plan, rank))
    probes = draw(
        "gaussian", plan.identity.seed, "probe", Range(0, rank), Range(0, PROBES), wide_dtype(plan)
    )
    with (
        sealed_writer(path, layout) as writer,
        progress.stage("vectors", len(plan.tiles()), "tiles") as advance,
    ):
        stream = _VectorStream(plan, merged, solution, writer, probes)

        def counted(figures: TileFigures) -> TileFigures:
            advance(1)
            return figures

        numbers = range(len(plan.tiles()))
        figures = tree_sum(
            map(counted, ordered_map(stream.write_tile, numbers, in_flight)), TileFigures.add
        )
        deviation = np.abs(figures.probed - probes) ** 2
        orthogonality = math.sqrt(float(deviation.sum()) / PROBES)
        writer.publish(
            identity | {"core": solution.core_size, "choosing": solution.choosing},
            {
                "eigenvalues": solution.values.astype(np.float64),
                "residual_squares": figures.residual,
                "test_squares": figures.test,
                "orthogonality": np.array(orthogonality),
                "leave_one_out": np.array(solution.leave_one_out),
                "tested_cores": np.array(solution.tested, np.float64).reshape(-1, 2),
            },
            provenance(threads=resources.threads),
        )


class _VectorStream:
    """Computes and writes row tiles of the vectors."""

    def __init__(
        self, plan: Plan, merged: Merged, solution: Solution, writer: SealedWriter, probes: Array
    ) -> None:
        self._reader = merged.reader
        self._writer = writer
        self._dtype = plan.identity.dtype
        self._probes = probes
        self._transform = np.ascontiguousarray(solution.transform)
        self._right = plan.columns["right"].slice
        self._test = plan.columns["test"].slice
        # diag(values) U^H G, by U = Y T from the accumulated Y^H G.
        core_test = merged.block("cross", "test", "right").conj().T
        self._weights = solution.values[:, None] * (self._transform.conj().T @ core_test)
        rows = min(plan.identity.tile[0], plan.identity.shape[0])
        wide = wide_dtype(plan)
        self._buffers = Pool(
            lambda: (
                empty_aligned((rows, plan.products), wide),
                empty_aligned((rows, len(solution.values)), wide),
            )
        )

    def write_tile(self, number: int) -> TileFigures:
        """Computes and writes one row tile.

        Returns:
            Its contribution to the figures, formed from the vectors as they are stored.
        """
        buffer, vectors = self._buffers.take()
        z = self._reader.read_tile(number, buffer)
        u = np.matmul(z[:, self._right], self._transform, out=vectors[: len(z)])
        stored = u.astype(self._dtype)
        self._writer.write_rows(number, stored)
        u[:] = stored
        test = z[:, self._test]
        residual = test - u @ self._weights
        figures = TileFigures(
            residual=np.sum(np.abs(residual) ** 2, axis=0),
            test=np.sum(np.abs(test) ** 2, axis=0),
            probed=u.conj().T @ (u @ self._probes),
        )
        self._buffers.give((buffer, vectors))
        return figures
