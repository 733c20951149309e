"""The stages in order: the Python interface, of which the command line is a thin face."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from skerch_ooc import files, planning, rundir
from skerch_ooc.budget import Budget
from skerch_ooc.errors import CorruptError, IncompleteError, QualityError, UsageError, quoted
from skerch_ooc.estimate import Estimate, choose_block, estimate, require_memory
from skerch_ooc.executors import Executor, resources_of
from skerch_ooc.executors.serial import Serial
from skerch_ooc.operators.adapters import Product, dtype_of, product_of, shape_of
from skerch_ooc.operators.loading import PLACES, build, described, factory_sha256, source_of
from skerch_ooc.operators.probe import Probe, Timing, examine, probe, timings
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import Resources, operator_threads, resident_memory
from skerch_ooc.rounds import Round, count_products, known_rounds, noted_digest
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import SealedFile
from skerch_ooc.shards import list_shards
from skerch_ooc.sizing import require_recoverable, require_sense, sizes_of
from skerch_ooc.spec import OperatorSpec, RecoverySpec, Spec
from skerch_ooc.stages import assess as assess_stage
from skerch_ooc.stages import measure as measure_stage
from skerch_ooc.stages import recover as recover_stage
from skerch_ooc.stages.assess import Assessment
from skerch_ooc.stages.bases import make_basis
from skerch_ooc.stages.merge import Merge
from skerch_ooc.stages.operands import Operands
from skerch_ooc.status import is_stale
from skerch_ooc.tolerance import grown_sizes, next_look, reached, require_tolerance
from skerch_ooc.updating import Update, update_run

if TYPE_CHECKING:
    from skerch_ooc.results import Eigh, Svd
    from skerch_ooc.stages.estimates import Estimates

log = logging.getLogger("skerch_ooc")

_LONGEST_CALL = 20.0
"""Seconds that a call of ``probe_spec`` may take, as far as that can be foretold."""


@dataclass
class Planned:
    """What planning found out, for stages that follow in the same process.

    Attributes:
        run: The run.
        costs: What it will cost.
        operands: The operator, probed; ``None`` if planning did not load it, or it was measured
            with and let go of.
        findings: Of the probe; ``None`` if there was none.
        fresh: Whether the plan was made now, and not found.
    """

    run: Run
    costs: Estimate
    operands: Operands | None = None
    findings: Probe | None = None
    fresh: bool = True


def as_spec(spec: Spec | Mapping[str, Any] | str | Path) -> Spec:
    """Reads whatever stands for a spec: itself, nested tables, or the path of a TOML file."""
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, Mapping):
        return Spec.from_table(spec)
    return Spec.from_toml(spec)


def plan(
    spec: Spec | Mapping[str, Any] | str | Path,
    run_dir: str | Path,
    *,
    operator: Any = None,
    memory: int | str | None = None,
    threads: int | None = None,
) -> Run:
    """Freezes everything that decides the result, after a probe of the operator.

    The probe takes 18 products, or 34 with those of the adjoint for ``svd``, and none if the run is
    planned already. (Of a matrix on disk, for ``svd``, a few rows are read instead.)

    Args:
        spec: What is wanted: a :class:`Spec`, nested tables, or the path of a TOML file.
        run_dir: The run directory; a new one, or one of the same plan.
        operator: The operator, if the spec names no factory.
        memory: Peak resident memory of one process, in bytes or as text such as ``"2 GiB"``.
        threads: Threads of one process.

    Returns:
        The planned run.

    Raises:
        OperatorError: If the operator cannot be used: it is not Hermitian though
            ``kind = "eigh"``, not finite, not the same at each call, of another shape.
        UsageError: If the spec is not allowed, the memory is too little, or the directory holds
            another run.
        IncompleteError: If there is no room for the plan.
    """
    resources = Resources.of(memory, threads)
    return make_plan(as_spec(spec), Path(run_dir), resources, operator=operator).run


def make_plan(
    spec: Spec,
    run_dir: Path,
    resources: Resources,
    *,
    operator: Any = None,
    device: str | None = None,
) -> Planned:
    """As :func:`plan`; also returns what it found out on the way."""
    if spec.operator.shape is None:
        _require_operator(spec, operator)
    require_sense(spec)
    sha256 = factory_sha256(spec.operator.factory, spec.folder) if spec.operator.factory else None
    if rundir.is_planned(run_dir):
        run = rundir.open_run(run_dir)
        _require_same(spec, sha256, run)
        return planned_before(run)
    # Before the operator is built and probed, which may take long.
    rundir.require_place(run_dir)
    product = findings = fingerprint = None
    if operator is not None or _needs_operator(spec):
        product = _product(spec, operator, device or spec.operator.device)
        with operator_threads(resources.threads):
            findings, fingerprint = examine(product, spec.seed, spec.kind)
        shape = product.shape
    else:
        assert spec.operator.shape is not None
        shape = spec.operator.shape
    plan = planning.planned(spec, shape, sha256, product, findings, resources, run_dir)
    costs = estimate(plan, findings, resident_memory() if product else None)
    require_memory(costs, resources)
    run = rundir.create_run(run_dir, plan.identity, plan.amendments[0])
    if run.plan.amendments[0] != plan.amendments[0]:
        # Another process has planned it meanwhile.
        _require_same(spec, sha256, run)
        return planned_before(run)
    files.write_json(run.logs / PLACES, {"folder": str(spec.folder.resolve())})
    run.record("plan", provenance(estimate=costs.as_json()))
    if fingerprint and not plan.parts[0].is_piece:
        run.publish_fingerprint(fingerprint)
    if findings:
        run.record("receipts", provenance(stage="probe", **findings.as_json()))
    made = Planned(run, costs, findings=findings)
    if product is not None:
        made.operands = Operands(run, product.device, resources.threads, product=product)
    return made


def _needs_operator(spec: Spec) -> bool:
    """Whether a plan depends on more of the operator than the spec says."""
    known = spec.operator.shape is not None and spec.sketch.block != "auto"
    return not known or spec.operator.parts != "auto"


def _product(spec: Spec, operator: Any, device: str) -> Product:
    """The operator of a spec, which is built if it is not at hand."""
    if operator is None:
        assert spec.operator.factory is not None
        operator = build(spec.operator.factory, spec.operator.args, device, spec.folder)
    shape = spec.operator.shape or shape_of(operator)
    # Before anything is applied: what makes no sense for this shape takes no product.
    sizes_of(spec, shape)
    product = product_of(operator, spec.dtype, device)
    if product.shape != shape:
        raise UsageError(
            f"operator.shape = {list(shape)}, but the operator has {list(product.shape)}; correct "
            "it, "
            "or leave it out"
        )
    return product


@dataclass(frozen=True)
class Probed:
    """What :func:`probe_spec` found out.

    Attributes:
        factory: The operator's; ``None`` for a Python object.
        shape: Of the operator.
        dtype: Of its products.
        findings: Whether it can be trusted.
        timings: What calls of ever wider blocks took.
        costs: What a run of the spec would cost.
        block: Columns that a task should apply at once, by time and memory.
    """

    factory: str | None
    shape: tuple[int, int]
    dtype: str
    findings: Probe
    timings: list[Timing]
    costs: Estimate
    block: int

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return dataclasses.asdict(self)


def probe_spec(
    spec: Spec | Mapping[str, Any] | str | Path,
    *,
    operator: Any = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Probed:
    """Examines an operator and says what a run would cost; nothing is written.

    Takes the products of a plan's probe, and those of blocks of 1, 4, 16, ... columns, as far as
    one call takes at most 20 seconds and fits into the memory.

    Args:
        spec: What is wanted: a :class:`Spec`, nested tables, or the path of a TOML file.
        operator: The operator, if the spec names no factory.
        memory: Peak resident memory of one process, in bytes or as text.
        threads: Threads of one process.
        device: The operator's torch device, instead of the spec's.

    Raises:
        OperatorError: If the operator is unusable.
        UsageError: If the spec is not allowed.
    """
    spec, resources = as_spec(spec), Resources.of(memory, threads)
    require_sense(spec)
    _require_operator(spec, operator)
    product = _product(spec, operator, device or spec.operator.device)
    with operator_threads(resources.threads):
        findings, _ = probe(product, spec.seed, hermitian=spec.kind == "eigh")
        taken = timings(product, spec.seed, seconds=_LONGEST_CALL, memory=resources.memory)
    # The block that is best, whatever the spec says.
    free = dataclasses.replace(spec, sketch=dataclasses.replace(spec.sketch, block="auto"))
    plan = planning.planned(spec, product.shape, None, product, findings, resources, spec.folder)
    return Probed(
        factory=spec.operator.factory,
        shape=product.shape,
        dtype=spec.dtype,
        findings=findings,
        timings=taken,
        costs=estimate(plan, findings),
        # Where rows are at hand blocks are as wide as memory allows.
        block=plan.block_width
        if product.together
        else choose_block(free, product.shape, findings, resources),
    )


def _require_operator(spec: Spec, operator: Any) -> None:
    if spec.operator.factory is None and operator is None:
        raise UsageError(
            'the key operator.factory is missing: give "package.module:function" or '
            '"file.py:function" of a function that returns the operator'
        )


def planned_before(run: Run) -> Planned:
    """A run that was planned earlier, as :func:`make_plan` returns it."""
    return Planned(run, estimate(run.plan, None), fresh=False)


def _require_same(spec: Spec, sha256: str | None, run: Run) -> None:
    """Refuses a spec that is not the one of the planned run, and shows the difference."""
    known, amendments = run.plan.identity, run.plan.amendments
    sizes = sizes_of(spec, spec.operator.shape or known.shape)
    measured = amendments[-1].most or run.plan.reach("right")
    wanted = planning.identity_like(spec, known)
    if sha256 != known.factory_sha256:
        log.warning(
            "%s has changed since the run was planned; its products are still checked against "
            "the fingerprint",
            spec.operator.factory,
        )
    pairs = [
        ("kind", known.kind, wanted.kind),
        ("operator.factory", known.factory, wanted.factory),
        ("operator.args", dict(known.args), dict(wanted.args)),
        ("operator.shape", known.shape, wanted.shape),
        ("dtype", known.dtype, wanted.dtype),
        ("seed", known.seed, wanted.seed),
        ("sketch.noise", known.noise["right"], wanted.noise["right"]),
        ("measurements", measured, sizes.right),
        ("tolerance", amendments[0].tolerance, spec.tolerance),
        ("sketch.test_measurements", run.plan.reach("test"), sizes.test),
        ("sketch.inner_measurements", run.plan.inner, sizes.inner),
        ("recovery", run.plan.recovery, spec.recovery),
    ]
    if spec.tolerance is None and not (
        run.plan.parts[0].together and spec.sketch.left_measurements == "auto"
    ):
        pairs.append(("sketch.left_measurements", run.plan.reach("left"), sizes.left))
    if spec.sketch.block != "auto":
        block = min(int(spec.sketch.block), run.plan.amendments[0].blocks["right"].stop)
        pairs.append(("sketch.block", run.plan.amendments[0].blocks["right"].width, block))
    different = [
        f"  {key}: {old!r} in the run, {new!r} now" for key, old, new in pairs if old != new
    ]
    if run.plan.summands > 1:
        raise UsageError(
            f"{run.directory} has been updated since it was planned: its operator is now "
            f"{described(run)}. Go on with: skerch-ooc run --run {quoted(run.directory)} "
            "(in Python: open_run), or give a new run directory"
        )
    if different:
        grown = len(amendments) > 1 and measured != sizes.right
        raise UsageError(
            f"{run.directory} was planned with another spec:\n" + "\n".join(different) + "\n"
            "Give a new --run directory, or the spec that the run was planned with"
            + (f" (it has grown since: --set measurements={measured})" if grown else "")
        )


def open_run(run_dir: str | Path) -> Run:
    """Opens a planned run. Nothing that it names is imported.

    Args:
        run_dir: The run directory.

    Returns:
        The run, with the plan that is in force now.

    Raises:
        UsageError: If there is none.
        CorruptError: If its plan is damaged.
        IncompleteError: If planning was interrupted; the same :func:`plan` completes it.
    """
    return rundir.open_run(run_dir)


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

    In a run with several rounds (``hmt``) that is the round whose basis is known: after it
    :func:`merge`, then this once more.

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
    executor = executor or Serial()
    return measure_stage.measure(
        run,
        executor,
        resources_of(executor, memory, threads),
        progress or Progress(),
        operator=operator,
        device=device,
        budget=Budget(max_seconds),
    )


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

    One stream over the shards, each byte of which is verified. What is there already is not made
    again. In a run with several rounds (``hmt``) it is the last measured one that is merged, and
    the basis that is the test matrix of the next is made.

    Args:
        run: The run.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device on which tiles are multiplied; by default the processor.
        rechunk: Whether row shards are written; by default where there are many column shards.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
        DriftError: If shards were made by different operators.
        UsageError: If memory is too little, or an argument is not allowed.
    """
    executor = executor or Serial()
    resources = resources_of(executor, memory, threads, device)
    with executor.session(resources.threads):
        merge_stage(run, resources, progress or Progress(), rechunk, executor)


def merge_stage(
    run: Run, resources: Resources, progress: Progress, rechunk: bool | None = None,
    executor: Executor | None = None,
) -> bool:  # fmt: skip
    """As :func:`merge`; also returns whether another round is to be measured now."""
    *_, last = known_rounds(run)
    merged = Merge(last, rechunk).result(resources, progress, executor)
    if last.number == run.plan.rounds:
        return False
    make_basis(merged, resources, progress, executor)
    return True


def recover(
    run: Run,
    method: str | None = None,
    core: int | str | None = None,
    rank: int | str | None = None,
    name: str | None = None,
    *,
    vectors: str | None = None,
    executor: Executor | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Eigh | Svd:
    """Recovers the decomposition; merges first if need be; an existing result is returned.

    Costs no product, whatever the settings; see :class:`RecoverySpec` for what they mean.

    Args:
        run: The run.
        method: Instead of the plan's; one that the sketch of the run serves.
        core: Instead of the plan's: an integer or ``"auto"``.
        rank: Instead of the plan's: an integer or ``"all"``.
        name: Folder of the result; ``default`` for the plan's settings, else made of them.
        vectors: Instead of the plan's: ``"stored"`` or ``"implicit"``.
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
    from skerch_ooc.results import open_result

    settings = recovery_settings(run, method, core, rank, vectors)
    name = recover_stage.result_name(settings, run.plan) if name is None else name
    executor = executor or Serial()
    resources = resources_of(executor, memory, threads, device)
    progress = progress or Progress()
    with executor.session(resources.threads):
        path = recover_stage.recover(run, settings, name, resources, progress, executor)
    return open_result(path)


def recovery_settings(
    run: Run,
    method: str | None = None,
    core: int | str | None = None,
    rank: int | str | None = None,
    vectors: str | None = None,
) -> RecoverySpec:
    """The plan's recovery settings, with what is given in their place."""
    known = run.plan.recovery
    method = known.method if method is None else method
    settings = RecoverySpec(
        method=method,
        core=known.core if core is None else core,
        rank=known.rank if rank is None else rank,
        vectors=known.vectors if vectors is None else vectors,
        power_iterations=known.power_iterations if method == known.method else 0,
    )
    if settings.method == "hmt" and settings.core != "auto":
        raise UsageError(
            f'recovery.core = {settings.core}: method = "hmt" inverts no core; to cut its result, '
            "use rank"
        )
    require_recoverable(settings, run.plan.reach("right"))
    return settings


def assess(run: Run | str | Path, name: str = "default") -> Assessment:
    """Estimates the error of a result, and writes ``assessment.json`` beside it.

    From test columns that had no part in the recovery (arXiv 1902.08651, section 6); costs no
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
    path = recover_stage.result_path(run, name)
    _warn_of_amendments(run, path)
    assessment = assess_stage.assess_result(
        path,
        count_products(run),
        is_complex=run.plan.identity.dtype.startswith("complex"),
        looks=sum(amendment.tolerance is not None for amendment in run.plan.amendments) or 1,
    )
    assess_stage.write_assessment(path, assessment)
    return assessment


def _warn_of_amendments(run: Run, path: Path) -> None:
    """Says so if a result was recovered before the plan grew."""
    round_ = Round(run)
    if len(run.plan.amendments) == 1 or run.plan.rounds > 1:
        return
    try:
        before = SealedFile(path).identity.get("sketch")
    except (FileNotFoundError, CorruptError):
        # Who reads it tells more.
        return
    listed = list_shards(run.shards)
    now = None
    if (mark := run.cleaned()) is not None:
        now = mark.sketch
    elif not any(round_.missing(listed).values()):
        now = noted_digest(round_, listed) or round_.sketch.digest
    if before != now:
        log.warning(
            "%s was recovered before the run was extended or updated: its figures are those of "
            "then. For new ones: skerch-ooc run --run %s",
            path,
            run.directory,
        )


def estimates(
    run: Run,
    name: str = "default",
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Estimates:
    """Estimates trace, diagonal, Frobenius and spectral norm of the operator, at no product.

    What the approximation has of them is computed, the rest estimated from the test columns, as in
    Hutch++ (Meyer et al. 2021, arXiv 2010.09649, algorithm 1); the diagonal after Baston and
    Nakatsukasa 2022, arXiv 2201.10684. One stream over the vectors and the test sketch.

    Args:
        run: The run.
        name: Folder of a result: the better it is, the smaller are the errors of the estimates.
        memory: Peak resident memory, in bytes or as text.
        threads: Threads.
        progress: Shows how far it is.

    Returns:
        The estimates; the diagonal is made when it is asked for.

    Raises:
        IncompleteError: If there is no such result, or shards are gone.
        CorruptError: If a file is damaged.
        UsageError: If memory is too little.
    """
    from skerch_ooc.stages.estimates import estimate as estimate_from

    return estimate_from(run, name, Resources.of(memory, threads), progress or Progress())


def require_quality(assessment: Assessment, limit: float | None) -> None:
    """The quality gate.

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
            f"relative error {assessment.relative_error:.3e} is above --max-relative-error "
            f"{limit:.3e}; the result is there, and skerch-ooc assess says what makes it smaller"
        )


def run_all(
    planned: Planned,
    executor: Executor,
    resources: Resources,
    progress: Progress,
    *,
    operator: Any = None,
    device: str | None = None,
    budget: Budget | None = None,
) -> Assessment | None:
    """All stages after planning; what is done already is not done again.

    Returns:
        The assessment; ``None`` if measuring was stopped by the budget.
    """
    if planned.run.cleaned() is not None:
        return _finished_before(planned.run, resources, progress)
    with executor.session(resources.threads):
        while True:
            run = planned.run
            if not _measure_all(planned, executor, resources, progress, operator, device, budget):
                return None
            if executor.remote and not _is_recovered(run):
                merge_stage(run, resources, progress, executor=executor)
            if reached(run, resources, progress):
                break
            planned.run = rundir.amend_run(run, planning.grown(run.plan, next_look(run.plan)))
        # The memory of the operator is for the stages that follow.
        planned.operands = None
        settings = run.plan.recovery
        recover_stage.recover(run, settings, "default", resources, progress, executor)
    return assess(run)


def _is_recovered(run: Run) -> bool:
    """Whether the result of a measured run is there, so that sums are of no use to it."""
    if not recover_stage.result_path(run, "default").exists():
        return False
    *_, last = known_rounds(run)
    return not is_stale(run, last.sketch.digest)


def _finished_before(run: Run, resources: Resources, progress: Progress) -> Assessment:
    """The result of a run whose shards were removed, as it was finished by then.

    Raises:
        IncompleteError: If it has grown since, or the result is gone.
    """
    mark = run.cleaned()
    if mark is None or mark.amendments != len(run.plan.amendments):
        run.require_shards()
    recover_stage.recover(run, run.plan.recovery, "default", resources, progress)
    return assess(run)


def finish(run: Run, resources: Resources, progress: Progress) -> Assessment:
    """Recovers and assesses a run that was measured by others.

    Args:
        run: The run.
        resources: Memory and cores.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If measurements are missing; also if the tolerance is not met yet: the plan
            has grown by then.
        CorruptError: If a file is damaged.
    """
    if run.cleaned() is not None:
        return _finished_before(run, resources, progress)
    if not reached(run, resources, progress):
        run = rundir.amend_run(run, planning.grown(run.plan, next_look(run.plan)))
        raise IncompleteError(
            f"the tolerance is not met yet; the run has grown to {run.plan.reach('right')} "
            f"measurements; go on with: skerch-ooc measure {quoted(run.directory)}"
        )
    recover_stage.recover(run, run.plan.recovery, "default", resources, progress)
    return assess(run)


def _measure_all(
    planned: Planned, executor: Executor, resources: Resources, progress: Progress,
    operator: Any, device: str | None, budget: Budget | None,
) -> bool:  # fmt: skip
    """Measures all rounds of the plan in force; whether that was completed."""
    while True:
        if planned.operands is None and not executor.remote:
            # Once for all rounds: it may take long to build.
            planned.operands = measure_stage.operands_of(
                planned.run, device or planned.run.plan.device, resources.threads, operator
            )
        complete = measure_stage.measure(
            planned.run,
            executor,
            resources,
            progress,
            operator=operator,
            operands=planned.operands,
            device=device,
            budget=budget,
        )
        if not complete:
            return False
        if len(list(known_rounds(planned.run))) == planned.run.plan.rounds:
            return True
        merge_stage(planned.run, resources, progress, executor=executor)


def extend(run: Run, measurements: int, *, repeat_rounds: bool = False) -> Run:
    """Plans more columns for a run; only these are measured afterwards.

    What is measured, merged and recovered then equals a run that was planned with so many from the
    start.

    Nothing is measured here: :func:`measure` follows.

    Args:
        run: The run.
        measurements: Columns of the right sketch, all together.
        repeat_rounds: Allow to repeat all products of the later rounds of ``hmt``, whose test
            matrix changes with the first round.

    Returns:
        The run with the plan now in force.

    Raises:
        UsageError: If the run has more, the operator has not so many, the method does not allow it
            (``oversampled``; ``hmt`` only with ``repeat_rounds``), or another process has changed
            the plan meanwhile.
        IncompleteError: If the shards of the run were removed by :func:`clean`.
    """
    plan = run.plan
    method, has = plan.recovery.method, plan.reach("right")
    if measurements == has:
        return run
    if measurements < has:
        raise UsageError(
            f"measurements = {measurements}: the run has {has} already, and none is ever thrown "
            "away; for fewer values, recover with a smaller --rank"
        )
    if plan.summands > 1 and any(source_of(run, part).factory is None for part in plan.parts):
        raise UsageError(
            f"{run.directory} is of several operators, some of which were handed over as Python "
            "objects, so that further columns cannot be measured of all; plan a new run"
        )
    if method == "oversampled":
        raise UsageError(
            'a run with method = "oversampled" cannot be extended: its sizes are fixed by the '
            "inner sketch, whose columns do not nest; plan a new run, or use nystrom"
        )
    if method == "hmt" and not repeat_rounds:
        raise UsageError(
            f"the basis of the later rounds of hmt changes with the first: {plan.rounds - 1} "
            f"round(s) of {measurements} products each would be measured anew, besides the "
            f"{measurements - has} of the first. If that is wanted, add --repeat-rounds"
        )
    sizes = grown_sizes(plan, measurements)
    if measurements > min(plan.identity.shape):
        raise UsageError(
            f"measurements = {measurements}: the operator is {plan.identity.shape[0]} x "
            f"{plan.identity.shape[1]}, so that at most {min(plan.identity.shape)} make sense"
        )
    amendment = planning.grown(plan, sizes)
    if amendment.tolerance is not None:
        amendment = dataclasses.replace(amendment, most=measurements)
    return rundir.amend_run(run, amendment)


def update(
    run: Run,
    operator: OperatorSpec | Any,
    *,
    scale: float = 1.0,
    forget: float = 1.0,
    again: bool = False,
    executor: Executor | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Adds a summand ``B`` to the operator of a finished run: ``A <- forget A + scale B``.

    Only ``B`` is measured, test sketch included; :func:`recover` and :func:`assess` then give what
    a run of the sum would have given, to rounding.

    Args:
        run: The run; complete.
        operator: ``B``, or the :class:`OperatorSpec` of a factory that makes it (a file is relative
            to the current folder).
        scale: What ``B`` is multiplied by.
        forget: What ``A`` is multiplied by.
        again: Whether what was added before (the same factory with the same arguments, or an
            object with the same fingerprint) is to be added once more.
        executor: :class:`Serial` (the default) or :class:`Dask`, which needs a factory.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device, instead of the plan's.
        progress: Shows how far it is.

    Returns:
        The run with the plan now in force; the same call resumes one that was interrupted.

    Raises:
        IncompleteError: If something else of the run is not measured yet.
        OperatorError: If ``B`` is unusable.
        UsageError: If the method's sketch is not linear in the operator (``hmt``), shapes differ,
            or it was added before.
    """
    executor = executor or Serial()
    if isinstance(operator, str):
        raise UsageError(
            f"operator = {operator!r}: for a factory give OperatorSpec(factory={operator!r})"
        )
    named = isinstance(operator, OperatorSpec)
    spec = operator if isinstance(operator, OperatorSpec) else OperatorSpec()
    asked = Update(spec, scale, forget, None if named else operator, Path.cwd(), again)
    resources = resources_of(executor, memory, threads, device)
    run, operands = update_run(run, asked, resources)
    measure_stage.measure(
        run, executor, resources, progress or Progress(), operator=asked.at_hand,
        operands=None if executor.remote else operands, device=device,
    )  # fmt: skip
    return run


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
    """All stages, with all rounds of a method or of a tolerance; the same call resumes.

    What is done already is not done again; of a finished run this opens the result, for which
    :func:`assess` has the error.

    Args:
        spec: What is wanted: a :class:`Spec`, nested tables, or the path of a TOML file.
        run_dir: The run directory; a new one, or one of the same plan.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        operator: The operator, if the spec names no factory.
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
    from skerch_ooc.results import open_result

    executor = executor or Serial()
    resources = resources_of(executor, memory, threads, device)
    planned = make_plan(as_spec(spec), Path(run_dir), resources, operator=operator, device=device)
    if operator is not None and not planned.fresh:
        # Another object under the name of an old run must never be given the old answer.
        where = device or planned.run.plan.device
        planned.operands = Operands(planned.run, where, resources.threads, operator=operator)
        planned.operands.check_all()
    assessment = run_all(
        planned, executor, resources, progress or Progress(), operator=operator, device=device
    )
    assert assessment is not None
    require_tolerance(planned.run.plan, assessment)
    return open_result(recover_stage.result_path(planned.run, "default"))


def eigh(A: Any, *, measurements: int, run_dir: str | Path, **options: Any) -> Eigh:
    """Eigendecomposition of a Hermitian operator, in this process, with all data on disk.

    The same call on the same directory goes on where an earlier one was interrupted.

    Args:
        A: Anything with ``.shape`` ``(n, n)`` and ``@``; definite or not.
        measurements: Columns of the right sketch, at most ``n``.
        run_dir: The run directory.
        **options: See :func:`decompose`.

    Returns:
        The decomposition; ``assess(open_run(run_dir))`` tells its error.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        QualityError: If the tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    _require_known(options)
    result: Any = decompose("eigh", A, measurements, run_dir, **options)
    return cast("Eigh", result)


def svd(A: Any, *, measurements: int, run_dir: str | Path, **options: Any) -> Svd:
    """Singular value decomposition of any operator, in this process, with all data on disk.

    The same call on the same directory goes on where an earlier one was interrupted.

    Args:
        A: Anything with ``.shape`` ``(h, w)``, ``A @ X``, and ``adjoint()``, ``.H``, ``rmatmat`` or
            ``X @ A``; or with ``matvec`` and ``rmatvec``.
        measurements: Columns of the right sketch, at most ``min(h, w)``.
        run_dir: The run directory.
        **options: See :func:`decompose`.

    Returns:
        The decomposition; ``assess(open_run(run_dir))`` tells its error.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        QualityError: If the tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    _require_known(options)
    result: Any = decompose("svd", A, measurements, run_dir, **options)
    return cast("Svd", result)


def _require_known(options: Mapping[str, Any]) -> None:
    """Refuses options that :func:`decompose` has not.

    Raises:
        UsageError: Naming the option, and one like it.
    """
    known = [name for name, parameter in inspect.signature(decompose).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY]  # fmt: skip
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"unknown option {name}; allowed here: {', '.join(known)}{hint}")


def decompose(
    kind: str,
    A: Any,
    measurements: int,
    run_dir: str | Path,
    *,
    method: str = "nystrom",
    core: int | str = "auto",
    rank: int | str = "all",
    power_iterations: int = 0,
    vectors: str = "stored",
    seed: int = 1,
    noise: str = "rademacher",
    dtype: str | None = None,
    test_measurements: int = 30,
    left_measurements: int | str = "auto",
    inner_measurements: int | str = "auto",
    block: int | str = "auto",
    tolerance: float | None = None,
    memory: int | str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Eigh | Svd:
    """What :func:`eigh` and :func:`svd` share; its options are the keys of a spec.

    Args:
        kind: ``"eigh"`` or ``"svd"``.
        A: The operator.
        measurements: Columns of the right sketch; with ``tolerance``, at most so many.
        run_dir: The run directory.
        method: ``"nystrom"``, ``"singlepass"``, ``"oversampled"`` or ``"hmt"``; see
            :class:`RecoverySpec` for their sources.
        core: Singular values of the core that are inverted, or ``"auto"``.
        rank: Values and vectors that are returned, or ``"all"``.
        power_iterations: Of ``hmt``: 0, 1 or 2.
        vectors: ``"stored"`` or ``"implicit"``.
        seed: Seed of the test matrices.
        noise: Distribution of the test matrices; see :class:`SketchSpec`.
        dtype: Of the products; by default that of ``A``, else float32.
        test_measurements: Columns of the test sketch.
        left_measurements: Columns of the left sketch, or ``"auto"``.
        inner_measurements: Columns of the inner sketch, or ``"auto"``.
        block: Columns that are applied at once, or ``"auto"``.
        tolerance: Relative error at which measuring may stop.
        memory: Peak resident memory of this process, in bytes or as text.
        device: Torch device on which ``A`` is applied.
        progress: Shows how far it is.

    Returns:
        The decomposition.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        QualityError: If the tolerance was not reached; the result is there.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    spec = Spec.from_table(
        {
            "kind": kind,
            "measurements": measurements,
            "seed": seed,
            "dtype": dtype or dtype_of(A),
            "tolerance": tolerance,
            "operator": {"device": device},
            "sketch": {
                "noise": noise,
                "test_measurements": test_measurements,
                "left_measurements": left_measurements,
                "inner_measurements": inner_measurements,
                "block": block,
            },
            "recovery": {
                "method": method,
                "core": core,
                "rank": rank,
                "vectors": vectors,
                "power_iterations": power_iterations,
            },
        }
    )
    return run(spec, run_dir, operator=A, memory=memory, device=device, progress=progress)
