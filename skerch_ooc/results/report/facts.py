"""Facts of a report, read from verified files; logs only add to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.files import digest, read_json
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.results.assess import Assessment, assess_result
from skerch_ooc.results.density import Density
from skerch_ooc.results.density import density as density_of
from skerch_ooc.results.lowrank import LazyMatrix, Svd, open_result
from skerch_ooc.results.pairs import known, relative_bounds
from skerch_ooc.results.report.convergence import Progression, progression_of
from skerch_ooc.results.report.known import Known, known_of
from skerch_ooc.results.report.layers import Shares, layers_of, read_shares
from skerch_ooc.results.report.leading import Leading, read_leading
from skerch_ooc.results.report.logs import Logged, read_logs
from skerch_ooc.results.report.maps import Maps, maps_of
from skerch_ooc.results.report.values import Values
from skerch_ooc.stages.recover.recipes import rounds_for
from skerch_ooc.store.anew import recovered_anew
from skerch_ooc.store.result_files import (
    VALUES,
    assessment_path,
    bytes_of_result,
    command_of,
    command_on,
    opened_result,
    result_path,
)
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import bytes_of, list_shards

_AS_WRITTEN = 1e-9


@dataclass(frozen=True)
class Facts:
    """All facts that a report states.

    Attributes:
        run: The run.
        name: The name of the result.
        values: The values of the result, and what they may be off by.
        density: The density of all values; ``None`` if it is not known.
        progression: How the pairs became known; ``None`` if that cannot be followed.
        assessment: The quality of the result.
        known: What is known of the whole operator.
        settings: The settings that it was recovered with.
        sketch: The digest of its sketch.
        made: When, where and with which libraries it was written.
        fingerprint: The digest of the operator's fingerprint; ``None`` if there is none.
        logged: What the logs tell.
        vectors: The leading vectors: name of the chart, name of the vectors, what was read.
        maps: The leading vectors on a grid; ``None`` if they have none.
        shares: How the leading vectors lie in the layers of a model; ``None`` if it is none.
        shards: Number of shards.
        shard_bytes: Bytes of the shards.
        result_bytes: Bytes of the sums and of this result.
    """

    run: Run
    name: str
    values: Values
    density: Density | None
    progression: Progression | None
    assessment: Assessment
    known: tuple[Known, ...]
    settings: RecoverySpec
    sketch: str
    made: Mapping[str, Any]
    fingerprint: str | None
    logged: Logged
    vectors: tuple[tuple[str, str, Leading], ...]
    maps: Maps | None
    shares: Shares | None
    shards: int
    shard_bytes: int
    result_bytes: int

    @property
    def title(self) -> str:
        """The name of the run: that of its folder."""
        return self.run.directory.resolve().name or "run"


def gather(run: Run, name: str) -> Facts:
    """Reads the facts of a report.

    Args:
        run: The run.
        name: The folder of the result.

    Raises:
        IncompleteError: If there is no such result, it is not assessed, or the run has grown since
            either was made.
        CorruptError: If a file is damaged.
    """
    path = result_path(run, name)
    assessment, file, settings = _assessed(run, path)
    if run.cleaned() is None:
        # A cleaned run cannot have grown since, and what the result was made of is gone.
        _require_current(run, path, file, settings)
    _require_assessment(run, path, assessment)
    fingerprint = run.fingerprint()
    listed = list_shards(run.shards)
    logged = read_logs(run, name)
    logged.note_versions(file.provenance)
    values, density = _values(run.plan.identity.kind, file, assessment, settings), _density(run)
    return Facts(
        run=run,
        name=name,
        values=values,
        density=density,
        progression=progression_of(run),
        assessment=assessment,
        known=known_of(run, name, values, assessment, density),
        settings=settings,
        sketch=str(file.identity["sketch"]),
        made=file.provenance,
        fingerprint=None if fingerprint is None else digest(fingerprint),
        logged=logged,
        vectors=tuple(_vectors(path)),
        maps=maps_of(run, name),
        shares=_shares(run, path),
        shards=len(listed),
        shard_bytes=bytes_of(run.shards, listed),
        result_bytes=bytes_of_result(path),
    )


def _values(kind: str, file: SealedFile, assessment: Assessment, settings: RecoverySpec) -> Values:
    values = np.asarray(file.arrays[VALUES[kind]], np.float64)
    if assessment.pairs is None:
        bounds = assessment.bounds_of(file.arrays.get("residuals"))
        return Values(values, kind, assessment.error, bounds, norm=assessment.norm)
    bounds, rounding = file.arrays["bounds"], float(file.arrays["rounding"])
    norm = float(file.arrays["spectral_norm"])
    return Values(
        values,
        kind,
        assessment.error,
        bounds,
        assessment.pairs,
        rounding,
        relative_bounds(values, bounds - rounding, norm),
        ~known(values, file.arrays, assessment.pairs.tolerance),
        settings.which,
        assessment.norm,
    )


def _density(run: Run) -> Density | None:
    """Finds the density of all values, where its rounds are still there, and more than one."""
    if run.plan.krylov is None or run.plan.identity.kind != "eigh":
        return None
    try:
        found = density_of(run)
    except IncompleteError:
        return None
    return None if found.is_guessed else found


def _assessed(run: Run, path: Path) -> tuple[Assessment, SealedFile, RecoverySpec]:
    """Computes the figures of a result from its file, and refuses what makes no sense."""
    try:
        assessment = assess_result(run, path)
        file = opened_result(path)
        if file.identity.get("run") != run.plan.run_id:
            raise CorruptError(f"{path} is a result of another run; restore it from a copy")
        settings = RecoverySpec(**file.identity["settings"])
        values = file.arrays[VALUES[run.plan.identity.kind]]
        sensible = values.ndim == 1 and len(values) > 0 and bool(np.isfinite(values).all())
        figures = (assessment.error, assessment.norm, assessment.orthogonality)
        sensible = sensible and all(f is None or math.isfinite(f) for f in figures)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CorruptError(
            f"{path} is not a result as this version writes it: {error}{recovered_anew(path)}"
        ) from error
    if not sensible:
        raise CorruptError(f"{path} holds values that are no numbers{recovered_anew(path)}")
    return assessment, file, settings


def _require_current(run: Run, path: Path, file: SealedFile, settings: RecoverySpec) -> None:
    """Refuses a result that was recovered before the run grew, or is still growing."""
    now = rounds_for(run, settings)[0].digest_by_notes(list_shards(run.shards))
    if file.identity.get("sketch") != now:
        command = command_of(
            run, path.parent.name, settings.as_json() | {"vectors": settings.vectors}
        )
        raise IncompleteError(
            f"{path} was recovered before the run was extended or updated; make it anew with: "
            f"{command}"
        )


def _require_assessment(run: Run, path: Path, assessment: Assessment) -> None:
    """Refuses a result that nobody has assessed since it was recovered."""
    command = command_on("assess", run.directory, path.parent.name)
    written = assessment_path(path)
    try:
        found = read_json(written)
    except FileNotFoundError:
        raise IncompleteError(f"{path} is not assessed yet; do that with: {command}") from None
    figures = assessment.as_json()
    if not isinstance(found, dict) or not all(
        _same(found.get(key), figures[key])
        for key in ("error", "norm", "relative_error", "test_measurements", "rank", "core")
    ):
        raise IncompleteError(
            f"{written} is not of {path.name} beside it; renew it with: {command}"
        )


def _same(written: Any, figure: float | None) -> bool:
    """Whether two figures agree to rounding, as another machine may sum in another order."""
    if figure is None or isinstance(written, bool) or not isinstance(written, (int, float)):
        return written is None and figure is None
    return abs(written - figure) <= _AS_WRITTEN * abs(figure)


def _vectors(path: Path) -> Iterator[tuple[str, str, Leading]]:
    found: Any = open_result(path)
    matrices: list[tuple[str, str, LazyMatrix]]
    if isinstance(found, Svd):
        matrices = [("vectors", "left singular vectors", found.U),
                    ("right-vectors", "right singular vectors", found.V)]  # fmt: skip
    else:
        matrices = [("vectors", "eigenvectors", found.eigenvectors)]
    for name, noun, matrix in matrices:
        yield name, noun, read_leading(matrix)


def _shares(run: Run, path: Path) -> Shares | None:
    """Reads how the leading vectors lie in the layers of a model."""
    layout = run.layout() if run.plan.identity.kind == "eigh" else None
    layers = () if layout is None else layers_of(layout)
    found: Any = open_result(path)
    return read_shares(found.eigenvectors, layers) if len(layers) > 1 else None
