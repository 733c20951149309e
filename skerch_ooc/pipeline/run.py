"""Run: all stages in one call, for a spec (``run``) or an operator (``eigh``, ``svd``)."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import (
    DriftError,
    IncompleteError,
    OperatorError,
    UsageError,
    did_you_mean,
    quoted,
)
from skerch_ooc.base.figures import short
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.places import place
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import Resources
from skerch_ooc.executors.executor import Executor
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.matrices.options import OPTIONS_OF_OBJECTS
from skerch_ooc.pipeline.start import Planned, as_spec, make_plan
from skerch_ooc.pipeline.state import State
from skerch_ooc.pipeline.steps import assess, merge_stage
from skerch_ooc.pipeline.temporary import in_folder
from skerch_ooc.planning.growth import more_columns, next_look
from skerch_ooc.planning.spec import Spec
from skerch_ooc.results.assess import Assessment, norm_of, require_tolerance, tolerance_factor
from skerch_ooc.results.pairs import require_pairs
from skerch_ooc.stages.measure import task as measure_stage
from skerch_ooc.stages.measure.operands import (
    Operands,
    OtherShapeError,
    compared_operands,
    has_newer_files,
    is_compared_by_rows,
    operands_of,
)
from skerch_ooc.stages.recover import task as recover_stage
from skerch_ooc.stages.recover.decomposition import solve
from skerch_ooc.store import result_files, rundir
from skerch_ooc.store.rundir import Run

if TYPE_CHECKING:
    from skerch_ooc.results.lowrank import Eigh, Svd

log = logging.getLogger("skerch_ooc")


def run_all(planned: Planned, work: Work, *, operator: Any = None) -> Assessment | None:
    """Does all stages after planning; what is done already is not done again.

    Returns:
        The assessment; ``None`` if measuring was stopped by the budget.
    """
    if planned.run.cleaned() is not None:
        return _finished_before(planned.run, work)
    with work.session():
        while True:
            run = planned.run
            if not _measure_all(planned, work, operator):
                return None
            if work.executor.remote and State(run).stale:
                merge_stage(run, work)
            if reached(run, work):
                break
            planned.run = rundir.amend_run(run, more_columns(run.plan, next_look(run.plan)))
        # The memory of the operator is for the stages that follow.
        planned.operands = None
        return _conclude(run, work)


def _conclude(run: Run, work: Work) -> Assessment:
    """Recovers and assesses what is measured."""
    recover_stage.recover(run, run.plan.recovery, "default", work)
    return assess(run)


def _finished_before(run: Run, work: Work) -> Assessment:
    """Returns the assessment of a run that was finished before its shards were removed.

    Raises:
        IncompleteError: If it has grown since, or the result is gone.
    """
    mark = run.cleaned()
    if mark is None or mark.amendments != len(run.plan.amendments):
        run.require_shards()
    return _conclude(run, work)


def why_not_compared(planned: Planned, work: Work) -> str | None:
    """Says why no operator is compared by going on with a run; ``None`` if one is.

    Where products are still made, the process that makes them compares. Where none are, building
    the operator might take longer than all else; so that is done only if its factory has changed,
    or the files of a stored matrix.

    Raises:
        DriftError: If they have changed, and the operator is another.
    """
    run = planned.run
    if run.cleaned() is None and not State(run, by_notes=True).measured:
        return None
    newer = has_newer_files(run)
    if not (planned.changed or newer):
        return "nothing is left to measure"
    try:
        compared_operands(run, work)
    except OperatorError as error:
        if not (newer and isinstance(error, OtherShapeError)):
            return f"nothing is left to measure, and it cannot be built here ({error})"
        raise _other_files(run) from error
    except DriftError as error:
        if not newer:
            raise
        raise _other_files(run) from error
    return None


def what_rows_leave_open(run: Run) -> str | None:
    """Says what was not compared of files that are newer than a measured run; ``None`` if all was.

    Of a stored matrix a few rows are looked at, wherever something was changed.
    """
    if run.cleaned() is None and not State(run, by_notes=True).measured:
        return None
    if not (is_compared_by_rows(run) and has_newer_files(run)):
        return None
    return (
        "files of the matrix were written since the run was planned; the few rows that are "
        "compared are the same, and what has changed in others is not seen: if something has, "
        "plan a new run"
    )


def _other_files(run: Run) -> DriftError:
    return DriftError(
        f"files of the matrix of {run.directory} have changed since the run was planned: the "
        "operator is not the one that the run started with; restore them, or plan a new run"
    )


def finish(run: Run, work: Work) -> Assessment:
    """Recovers and assesses a run that other processes have measured.

    Args:
        run: The run.
        work: What does it, and with which resources.

    Raises:
        IncompleteError: If measurements are missing, or the tolerance is not met yet: then the
            plan has grown by more columns.
        CorruptError: If a file is damaged.
    """
    if run.cleaned() is not None:
        return _finished_before(run, work)
    if not reached(run, work):
        run = rundir.amend_run(run, more_columns(run.plan, next_look(run.plan)))
        raise IncompleteError(
            f"the tolerance is not met yet; the run has grown to {run.plan.reach('right')} "
            f"measurements; go on with: skerch-ooc measure {quoted(run.directory)}"
        )
    return _conclude(run, work)


def _measure_all(planned: Planned, work: Work, operator: Any) -> bool:
    """Measures all rounds of the plan in force.

    Returns:
        Whether all of them are measured (``False``: stopped in good order by the budget).
    """
    while True:
        if planned.operands is None and not work.executor.remote:
            # Once for all rounds: it may take long to build.
            planned.operands = operands_of(planned.run, work, operator)
        if not measure_stage.measure(
            planned.run, work, operator=operator, operands=planned.operands
        ):
            return False
        if State(planned.run).last.number == planned.run.plan.rounds:
            return True
        if merge_stage(planned.run, work) == "recover":
            return True


@tells_keywords
def run(
    spec: Spec | Mapping[str, Any] | str | Path,
    run_dir: str | Path,
    executor: Executor | None = None,
    *,
    operator: Any = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Eigh | Svd:
    """Does all stages, with all rounds of a method or of a tolerance; the same call resumes.

    What is done already is not done again. For a finished run this only opens the result;
    :func:`assess` tells its error.

    Args:
        spec: What is wanted: a :class:`Spec`, nested tables, or the path of a TOML file.
        run_dir: The run directory; a new one, or one of the same plan.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        operator: The operator, if the spec names no factory; ``[operator.args]`` then are options
            of its entries, if it is an array, a frame or a dataset.
        memory: Peak resident memory of each process, in bytes or as text such as ``"2 GiB"``.
        threads: Threads of each process.
        device: Torch device of the operator, instead of the spec's, and of the arithmetic on tiles.
        progress: Shows how far it is.

    Returns:
        The decomposition.

    Raises:
        CorruptError: If a shard is damaged, foreign, swapped or a link.
        DriftError: If the directory holds a run of another operator, or the operator changed.
        IncompleteError: If the workers of a cluster are lost, or there is no room on the disk.
        OperatorError: If the operator is unusable.
        QualityError: If a tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    from skerch_ooc.results.lowrank import open_result

    work = Work.of(executor, memory, threads, device, progress)
    planned = make_plan(as_spec(spec), place(run_dir), work, operator=operator)
    if operator is not None and not planned.fresh:
        # Another object under the name of an old run must never be given the old answer.
        where = device or planned.run.plan.device
        planned.operands = Operands(planned.run, where, work.resources.threads, operator=operator)
        planned.operands.check_all()
    elif not planned.fresh:
        why_not_compared(planned, work)
        if words := what_rows_leave_open(planned.run):
            log.warning(words)
    assessment = run_all(planned, work, operator=operator)
    assert assessment is not None
    require_tolerance(planned.run.plan, assessment)
    require_pairs(planned.run, assessment.pairs)
    return open_result(result_files.result_path(planned.run, "default"))


def eigh(
    A: Any, *, run_dir: str | Path | None = None, measurements: int | None = None, **options: Any
) -> Eigh:  # fmt: skip
    """Computes eigenpairs of a Hermitian operator, in this process, with all data on disk.

    The same call on the same directory goes on where an earlier one was interrupted.

    Args:
        A: Anything with ``.shape`` ``(n, n)`` and ``@``; definite or not; or an array, a frame, a
            dataset, as for :func:`svd`.
        run_dir: The run directory; left out, a temporary one, which is there as long as the result.
        measurements: Columns of the right sketch, at most ``n``; with ``pairs_tolerance`` or
            ``rounds`` it may be left out.
        **options: See :func:`decompose`.

    Returns:
        The decomposition; ``assess(open_run(run_dir))`` tells its error.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        QualityError: If a tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    _require_known(options)
    result: Any = decompose("eigh", A, measurements, run_dir, **options)
    return cast("Eigh", result)


def svd(
    A: Any, *, run_dir: str | Path | None = None, measurements: int | None = None, **options: Any
) -> Svd:  # fmt: skip
    """Computes singular values and vectors of any operator, in this process, with data on disk.

    The same call on the same directory goes on where an earlier one was interrupted.

    Args:
        A: Anything with ``.shape`` ``(h, w)``, ``A @ X``, and ``adjoint()``, ``.H``, ``rmatmat`` or
            ``X @ A``; or with ``matvec`` and ``rmatvec``; or an array, a frame, a dataset: see
            the page "Matrices" of the documentation.
        run_dir: The run directory; left out, a temporary one, which is there as long as the result.
        measurements: Columns of the right sketch, at most ``min(h, w)``; with ``pairs_tolerance``
            or ``rounds`` it may be left out.
        **options: See :func:`decompose`.

    Returns:
        The decomposition; ``assess(open_run(run_dir))`` tells its error.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        QualityError: If a tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    _require_known(options)
    result: Any = decompose("svd", A, measurements, run_dir, **options)
    return cast("Svd", result)


def _require_known(options: Mapping[str, Any]) -> None:
    """Refuses options that :func:`decompose` does not have.

    Raises:
        UsageError: If an option is unknown; it names one like it.
    """
    known = [name for name, parameter in inspect.signature(decompose).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY]  # fmt: skip
    known += OPTIONS_OF_OBJECTS
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"unknown option {name}; allowed here: {', '.join(known)}{hint}")


def decompose(
    kind: str, A: Any, measurements: int | None, run_dir: str | Path | None, *,
    method: str | None = None, core: int | str = "auto", rank: int | str = "all",
    pairs_tolerance: float | None = None, rounds: int | None = None,
    round_width: int | None = None, start: str | Path | None = None, which: str = "LM",
    power_iterations: int = 0, vectors: str = "stored", seed: int = 1, noise: str = "rademacher",
    dtype: str | None = None, test_measurements: int = 30, left_measurements: int | str = "auto",
    left_test_measurements: int | str = "auto", inner_measurements: int | str = "auto",
    block: int | str = "auto", tolerance: float | None = None, memory: int | str | None = None,
    device: str = "cpu", progress: Progress | None = None, **entries: Any,
) -> Eigh | Svd:  # fmt: skip
    """Decomposes an operator for :func:`eigh` and :func:`svd`; its options are keys of a spec.

    Args:
        kind: ``"eigh"`` or ``"svd"``.
        A: The operator.
        measurements: Columns of the right sketch; with ``tolerance``, at most so many.
        run_dir: The run directory; ``None`` for a temporary one.
        method: See :class:`RecoverySpec`; by default what the other keys ask for.
        core: Singular values of the core that are inverted, or ``"auto"``.
        rank: Values and vectors that are returned, or ``"all"``.
        pairs_tolerance: See :class:`Spec`, as for the next three.
        rounds: Most rounds, or their number.
        round_width: Columns of a round.
        start: The run of an earlier, similar operator, whose leading vectors are applied second.
        which: See :class:`RecoverySpec`.
        power_iterations: Of ``hmt``.
        vectors: ``"stored"`` or ``"implicit"``.
        seed: Seed of the test matrices.
        noise: Distribution of the test matrices; see :class:`SketchSpec`.
        dtype: Of the products; by default that of ``A``, else float32.
        test_measurements: Columns of the test sketch.
        left_measurements: See :class:`SketchSpec`, as for the next two.
        left_test_measurements: Of the adjoint.
        inner_measurements: Of the inner sketch.
        block: Columns that are applied at once, or ``"auto"``.
        tolerance: Relative error at which measuring may stop.
        memory: Peak resident memory of this process, in bytes or as text.
        device: Torch device on which ``A`` is applied.
        progress: Shows how far it is.
        **entries: Options of an array's entries, as of a file's: see the page "Matrices".

    Returns:
        The decomposition; raises as :func:`eigh`.
    """
    A, said = _with_options(A, entries, memory)
    table = {
        "kind": kind, "measurements": measurements, "seed": seed, "dtype": dtype,
        "tolerance": tolerance, "pairs_tolerance": pairs_tolerance, "rounds": rounds,
        "round_width": round_width, "start": None if start is None else os.fspath(start),
        "operator": {"device": device, "args": said},
        "sketch": {
            "noise": noise, "test_measurements": test_measurements, "block": block,
            "left_measurements": left_measurements, "inner_measurements": inner_measurements,
            "left_test_measurements": left_test_measurements},
        "recovery": _stating(method, core=core, rank=rank, vectors=vectors, which=which,
                             power_iterations=power_iterations),
    }  # fmt: skip
    at = partial(run, table, operator=A, memory=memory, device=device, progress=progress)
    return in_folder(run_dir, at)


def _stating(method: str | None, **settings: Any) -> dict[str, Any]:
    """The table of recovery, which states a method only if one was asked for."""
    return settings if method is None else settings | {"method": method}


def _with_options(
    operator: Any, entries: Mapping[str, Any], memory: int | str | None
) -> tuple[Any, dict[str, Any]]:
    """An operator of which options have made another, and these as a plan says them."""
    given = {key: value for key, value in entries.items() if value is not None}
    if not given:
        return operator, {}
    from skerch_ooc.operators.prepared import prepared, stated

    return prepared(operator, given, Resources.of(memory).memory), stated(given)


def reached(run: Run, work: Work) -> bool:
    """Whether a run need not measure more: its tolerance is met, or all it may measure is measured.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    plan = run.plan
    tolerance, most = plan.amendments[-1].tolerance, plan.amendments[-1].most
    if tolerance is None or most is None or plan.reach("right") >= most:
        return True
    # By the small matrices alone: vectors are written once, when the last look has been taken.
    found = solve(run, plan.recovery, work.here)
    problem, choosing = found.problem, found.choosing
    assert problem is not None
    weights, tests = found.weights()[:, choosing:], problem.t[:, choosing:]
    residual = tests - found.left.vectors.compressed(problem.y) @ weights
    columns = residual.shape[1]
    error = float(np.linalg.norm(residual)) / math.sqrt(columns)
    norm = norm_of(found.values, _squares(tests), _squares(weights))
    assert norm is not None
    relative = error / norm
    margin = tolerance_factor(plan, columns)
    work.progress.say(
        f"{plan.reach('right')} measurements: relative error {short(relative, 3)}; to be sure of "
        f"{tolerance:g} it must be below {short(tolerance / margin, 3)}"
    )
    return relative * margin <= tolerance


def _squares(columns: Array) -> Array:
    return np.asarray(np.sum(np.abs(columns) ** 2, axis=0))
