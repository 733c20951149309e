"""Steps: the stages as functions of Python (measure, merge, recover, assess) and their settings."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerch_ooc.base.errors import CorruptError, QualityError, UsageError
from skerch_ooc.base.figures import short
from skerch_ooc.base.files import is_there
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.base.time_budget import Budget
from skerch_ooc.executors.executor import Executor
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.sizes import require_inverted_core, require_order, require_recoverable
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.results import assess as assess_stage
from skerch_ooc.results.assess import Assessment
from skerch_ooc.stages.measure import task as measure_stage
from skerch_ooc.stages.merge.task import begin_merge
from skerch_ooc.stages.recover import task as recover_stage
from skerch_ooc.stages.recover.basis import make_basis
from skerch_ooc.store import names, result_files, rundir
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import list_shards
from skerch_ooc.store.sketch import Round, sketch_folder

if TYPE_CHECKING:
    from skerch_ooc.results.estimates import Estimates
    from skerch_ooc.results.lowrank import Eigh, Svd

log = logging.getLogger("skerch_ooc")


@tells_keywords
def open_run(run_dir: str | Path) -> Run:
    """Opens a planned run; imports nothing that it names.

    Args:
        run_dir: The run directory.

    Returns:
        The run, with the plan that is in force now.

    Raises:
        UsageError: If there is no run.
        CorruptError: If its plan is damaged.
        IncompleteError: If planning was interrupted; the same :func:`plan` completes it.
    """
    return rundir.open_run(run_dir)


@tells_keywords
def measure(
    run: Run,
    executor: Executor | None = None,
    *,
    operator: Any = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> bool:
    """Measures what is missing; what is published already is never measured again.

    In a run with several rounds (``hmt``) it measures the last round whose basis is known; then
    :func:`merge` makes the next basis, and this is called once more.

    Args:
        run: The run.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        operator: The operator, if the plan names no factory.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device, instead of the plan's.
        max_seconds: Stop in good order before so many seconds have passed.
        progress: Shows how far it is.

    Returns:
        Whether all is measured that can be by now; ``False`` if it was stopped.

    Raises:
        OperatorError: If the operator is unusable.
        DriftError: If it is not the one that the run was begun with.
        IncompleteError: If the workers of a cluster are lost, there is no room on the disk, or the
            shards of the run were removed by :func:`clean`.
        UsageError: If an argument is not allowed, or a scheduler cannot be reached.
    """
    work = Work.of(executor, memory, threads, device, progress, Budget(max_seconds))
    return measure_stage.measure(run, work, operator=operator)


@tells_keywords
def merge(
    run: Run,
    *,
    executor: Executor | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    rechunk: bool | None = None,
    progress: Progress | None = None,
) -> None:
    """Forms the Gram matrices of the measured sketch, and row shards where they pay.

    It streams over the shards once, and verifies every byte. What is there already is not made
    again. In a run with several rounds (``hmt``) it merges the last round that is measured, and
    makes the basis that is the test matrix of the next.

    Args:
        run: The run.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device on which tiles are multiplied; by default the processor.
        rechunk: Whether to write row shards; by default where there are many column shards.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
        DriftError: If shards were made by different operators.
        UsageError: If memory is too little, or an argument is not allowed.
    """
    work = Work.of(executor, memory, threads, device, progress)
    with work.session():
        merge_stage(run, work, rechunk)


def merge_stage(run: Run, work: Work, rechunk: bool | None = None) -> str:
    """Does what :func:`merge` does; returns the name of the stage that comes next."""
    state = State(run)
    for round_ in _lost(state):
        begin_merge(round_, rechunk).run(work)
    last = state.last
    merged = begin_merge(last, rechunk).run(work)
    if last.number == run.plan.rounds:
        return "recover"
    return "measure" if make_basis(merged, work) else "recover"


def _lost(state: State) -> list[Round]:
    """Lists the rounds of ``krylov`` before the last whose sums are gone: all of them are read."""
    last, run = state.last, state.run
    if run.plan.krylov is None or last.basis is None:
        return []
    return [
        round_
        for round_, digest in zip(state.rounds, last.basis.digests, strict=False)
        for side in round_.sides
        if not is_there(sketch_folder(run, digest) / names.TOTAL_SUMS.name(side=side.name))
    ]


@tells_keywords
def recover(
    run: Run,
    method: str | None = None,
    core: int | str | None = None,
    rank: int | str | None = None,
    name: str | None = None,
    *,
    vectors: str | None = None,
    which: str | None = None,
    executor: Executor | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Eigh | Svd:
    """Recovers the decomposition, and merges first if that is not done; reuses an existing result.

    It costs no product, whatever the settings; see :class:`RecoverySpec` for what they mean.

    Args:
        run: The run.
        method: Instead of the plan's; one that the sketch of the run serves.
        core: Instead of the plan's: an integer or ``"auto"``.
        rank: Instead of the plan's: an integer or ``"all"``.
        name: Folder of the result; by default ``default`` for the plan's settings, else a name made
            of the settings.
        vectors: Instead of the plan's: ``"stored"`` or ``"implicit"``.
        which: Instead of the plan's: ``"LM"``, ``"LA"`` or ``"SA"``; of ``krylov``.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device on which tiles are multiplied; by default the processor.
        progress: Shows how far it is.

    Returns:
        The decomposition; its vectors stay on disk until they are indexed.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a file is damaged.
        DriftError: If shards were made by different operators.
        UsageError: If the settings are not allowed, the sketch does not serve them, or the name is
            taken.
    """
    from skerch_ooc.results.lowrank import open_result

    settings = recovery_settings(run, method, core, rank, vectors, which)
    work = Work.of(executor, memory, threads, device, progress)
    return open_result(recover_result(run, settings, name, work))


def recover_result(run: Run, settings: RecoverySpec, name: str | None, work: Work) -> Path:
    """Does what :func:`recover` does; returns the path of the result."""
    name = result_files.result_name(settings, run.plan) if name is None else name
    with work.session():
        return recover_stage.recover(run, settings, name, work)


def recovery_settings(
    run: Run,
    method: str | None = None,
    core: int | str | None = None,
    rank: int | str | None = None,
    vectors: str | None = None,
    which: str | None = None,
) -> RecoverySpec:
    """Returns the plan's recovery settings, with those that are given in their place.

    Raises:
        UsageError: If the settings are not allowed.
    """
    given = {"method": method, "core": core, "rank": rank, "vectors": vectors, "which": which}
    changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if changed.get("method") not in (None, run.plan.recovery.method):
        changed = {"power_iterations": 0, "which": "LM"} | changed
    if run.plan.takes_whole(changed.get("method", "")):
        # The plan's rank is the number of pairs that the rounds look for.
        changed = {"rank": "all"} | changed
    settings = replace(run.plan.recovery, **changed)
    require_inverted_core(settings)
    require_order(settings, run.plan.identity.kind)
    whole = run.plan.takes_whole(settings.method)
    require_recoverable(settings, run.plan.whole_space if whole else run.plan.space)
    return settings


@tells_keywords
def assess(run: Run | str | Path, name: str = "default") -> Assessment:
    """Estimates the error of a result, and writes ``assessment.json`` beside it.

    It uses test columns that had no part in the recovery (arXiv 1902.08651, section 6), costs no
    product, and reads only the result.

    Args:
        run: The run, or its directory.
        name: Folder of the result.

    Returns:
        The error, with its probability bounds.

    Raises:
        IncompleteError: If there is no such result.
        CorruptError: If it is damaged.
    """
    run = run if isinstance(run, Run) else open_run(run)
    path = result_files.result_path(run, name)
    _warn_of_amendments(run, path)
    assessment = assess_stage.assess_result(run, path)
    assess_stage.write_assessment(path, assessment)
    return assessment


def _warn_of_amendments(run: Run, path: Path) -> None:
    """Warns if a result was recovered before the plan grew."""
    if len(run.plan.amendments) == 1 or run.plan.rounds > 1:
        return
    try:
        before = SealedFile(path).identity.get("sketch")
    except (FileNotFoundError, CorruptError):
        # The check that follows reports more.
        return
    mark, round_, shards = run.cleaned(), Round(run), list_shards(run.shards)
    now = mark.sketch if mark else None
    if mark is None and round_.is_measured(shards):
        now = round_.digest_by_notes(shards)
    if before != now:
        log.warning(
            "%s was recovered before the run was extended or updated: its figures are those of "
            "then. For new ones: skerch-ooc run --run %s",
            path,
            run.directory,
        )


@tells_keywords
def estimates(
    run: Run,
    name: str = "default",
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Estimates:
    """Estimates trace, diagonal, Frobenius and spectral norm of the operator, at no product.

    The share of the approximation is computed, the rest is estimated from the test columns, as in
    Hutch++ (Meyer et al. 2021, arXiv 2010.09649, algorithm 1); the diagonal follows Baston and
    Nakatsukasa 2022, arXiv 2201.10684. It takes one stream over the vectors and the test sketch.

    Args:
        run: The run.
        name: Folder of a result: the better it is, the smaller are the errors of the estimates.
        memory: Peak resident memory, in bytes or as text.
        threads: Threads.
        progress: Shows how far it is.

    Returns:
        The estimates; the diagonal is computed when it is asked for.

    Raises:
        IncompleteError: If there is no such result, or shards are gone.
        CorruptError: If a file is damaged.
        UsageError: If memory is too little.
    """
    from skerch_ooc.results.estimates import estimate as estimate_from

    return estimate_from(run, name, Resources.of(memory, threads), progress or Progress())


def require_quality(assessment: Assessment, limit: float | None) -> None:
    """Applies the quality gate: refuses a relative error above a limit.

    Raises:
        QualityError: If the relative error is above ``limit``, or unknown.
        UsageError: If ``limit`` is not positive.
    """
    if limit is None:
        return
    if not limit > 0:
        raise UsageError(f"--max-relative-error {limit}: must be positive")
    if assessment.relative_error is None:
        raise QualityError(
            "there are no test measurements to estimate the error from; plan with "
            "sketch.test_measurements of at least 10"
        )
    if not assessment.relative_error <= limit:
        raise QualityError(
            f"relative error {short(assessment.relative_error, 4)} is above --max-relative-error "
            f"{limit:g}; the result is there, and skerch-ooc assess says what makes it "
            "smaller"
        )
