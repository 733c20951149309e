"""The stages in order: the Python interface, of which the command line is a thin face."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerch_ooc import files, rundir
from skerch_ooc.budget import Budget
from skerch_ooc.errors import QualityError, UsageError
from skerch_ooc.estimate import Estimate, choose_block, estimate, require_memory
from skerch_ooc.executors import Executor
from skerch_ooc.executors.serial import Serial
from skerch_ooc.operators.adapters import Product, dtype_of, shape_of
from skerch_ooc.operators.loading import PLACES, build, factory_sha256
from skerch_ooc.operators.probe import Probe, probe
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import Resources, operator_threads
from skerch_ooc.rundir import Run
from skerch_ooc.shards import count_products
from skerch_ooc.spec import Amendment, Cut, Identity, Plan, RecoverySpec, Spec
from skerch_ooc.stages import assess as assess_stage
from skerch_ooc.stages import measure as measure_stage
from skerch_ooc.stages import recover as recover_stage
from skerch_ooc.stages.assess import Assessment
from skerch_ooc.stages.merge import Merge

if TYPE_CHECKING:
    from skerch_ooc.results import Eigh

log = logging.getLogger("skerch_ooc")

TEST_NOISE = "gaussian"
"""The error bounds hold for Gaussian test vectors, whatever the noise of the sketch."""


@dataclass
class Planned:
    """What planning found out, for stages that follow in the same process.

    Attributes:
        run: The run.
        costs: What it will cost.
        product: The operator, probed; ``None`` if planning did not load it, or it was measured
            with and let go of.
        findings: Of the probe; ``None`` if there was none.
        fresh: Whether the plan was made now, and not found.
    """

    run: Run
    costs: Estimate
    product: Product | None = None
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

    Args:
        spec: What is wanted: a :class:`Spec`, nested tables, or the path of a TOML file.
        run_dir: The run directory; a new one, or one of the same plan.
        operator: The operator, if the spec names no factory.
        memory: Peak resident memory of one process, in bytes or as text.
        threads: Threads of one process.

    Returns:
        The planned run.

    Raises:
        UsageError: If the spec is not allowed, the operator cannot be used, the memory is too
            little, or the directory holds another run.
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
    if spec.operator.factory is None and operator is None and spec.operator.shape is None:
        raise UsageError(
            'the key operator.factory is missing: give "package.module:function" or '
            '"file.py:function" of a function that returns the operator'
        )
    sha256 = factory_sha256(spec.operator.factory, spec.folder) if spec.operator.factory else None
    if (run_dir / rundir.PLAN).exists():
        run = rundir.open_run(run_dir)
        _require_same(spec, sha256, run)
        return Planned(run, estimate(run.plan, None), fresh=False)
    product = findings = fingerprint = None
    if spec.operator.shape is None or spec.sketch.block == "auto" or operator is not None:
        device = device or spec.operator.device
        if operator is None:
            assert spec.operator.factory is not None
            operator = build(spec.operator.factory, spec.operator.args, device, spec.folder)
        shape = spec.operator.shape or shape_of(operator)
        _require_sizes(spec, shape)
        product = Product(operator, spec.dtype, device)
        if product.shape != shape:
            raise UsageError(
                f"operator.shape = {list(shape)}, but the operator has {list(product.shape)}"
            )
        with operator_threads(resources.threads):
            findings, fingerprint = probe(product, spec.seed, hermitian=spec.kind == "eigh")
    else:
        shape = spec.operator.shape
        _require_sizes(spec, shape)
    identity = _identity(spec, shape, sha256)
    block = choose_block(spec, shape, findings, resources)
    amendment = _amendment(spec, identity, block, run_dir)
    costs = estimate(Plan(identity, (amendment,)), findings)
    require_memory(costs, resources)
    run = rundir.create_run(run_dir, identity, amendment)
    files.write_json(run.logs / PLACES, {"folder": str(spec.folder.resolve())})
    run.record("plan", provenance(estimate=costs.as_json()))
    if findings and fingerprint:
        run.publish_fingerprint(fingerprint)
        run.record("receipts", provenance(stage="probe", **findings.as_json()))
    return Planned(run, costs, product, findings)


def _require_sizes(spec: Spec, shape: tuple[int, int]) -> None:
    _require_recoverable(spec.recovery, spec.measurements)
    if spec.kind == "eigh" and shape[0] != shape[1]:
        raise UsageError(
            f'kind = "eigh" needs a square operator, this one is {shape[0]} x {shape[1]}'
        )
    if spec.measurements > shape[1]:
        raise UsageError(
            f"measurements = {spec.measurements}: the operator has only {shape[1]} columns, so "
            f"that at most {shape[1]} measurements make sense"
        )


def _identity(spec: Spec, shape: tuple[int, int], sha256: str | None) -> Identity:
    return Identity(
        kind=spec.kind,
        factory=spec.operator.factory,
        args=spec.operator.args,
        factory_sha256=sha256,
        shape=shape,
        dtype=spec.dtype,
        seed=spec.seed,
        noise={"right": spec.sketch.noise, "test": TEST_NOISE},
    )


def _amendment(spec: Spec, identity: Identity, block: int, run_dir: Path) -> Amendment:
    reach = {"right": spec.measurements, "test": spec.sketch.test_measurements}
    folder = os.path.relpath(spec.folder.resolve(), run_dir.resolve())
    return Amendment(
        run_id=identity.run_id,
        number=1,
        blocks={
            role: Cut(0, columns, min(block, columns)) for role, columns in reach.items() if columns
        },
        recovery=spec.recovery,
        device=spec.operator.device,
        folder=folder,
    )


def _require_same(spec: Spec, sha256: str | None, run: Run) -> None:
    """Refuses a spec that is not the one of the planned run, and shows the difference."""
    known = run.plan.identity
    wanted = _identity(spec, spec.operator.shape or known.shape, known.factory_sha256)
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
        ("measurements", run.plan.reach("right"), spec.measurements),
        ("sketch.test_measurements", run.plan.reach("test"), spec.sketch.test_measurements),
        ("recovery", run.plan.recovery.as_json(), spec.recovery.as_json()),
    ]
    if spec.sketch.block != "auto":
        block = min(int(spec.sketch.block), spec.measurements)
        pairs.append(("sketch.block", run.plan.amendments[0].blocks["right"].width, block))
    different = [
        f"  {key}: {old!r} in the run, {new!r} now" for key, old, new in pairs if old != new
    ]
    if different:
        raise UsageError(
            f"{run.directory} was planned with another spec:\n" + "\n".join(different) + "\n"
            "Give a new --run directory, or the spec that the run was planned with"
        )


def open_run(run_dir: str | Path) -> Run:
    """Opens a planned run.

    Raises:
        UsageError: If there is none.
        CorruptError: If its plan is damaged.
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

    Args:
        run: The run.
        executor: :class:`Serial` (the default) or :class:`Dask`.
        operator: The operator, if the plan names no factory.
        memory: Peak resident memory of each process, in bytes or as text.
        threads: Threads of each process.
        device: Torch device, instead of the plan's.
        max_seconds: Stop in good order before this time.
        progress: Shows how far it is.

    Returns:
        Whether all is measured now.

    Raises:
        OperatorError: If the operator is unusable.
        DriftError: If it is not the one that the run was begun with.
    """
    executor = executor or Serial()
    return measure_stage.measure(
        run,
        executor,
        Resources.of(memory, threads, executor.workers),
        progress or Progress(),
        operator=operator,
        device=device,
        budget=Budget(max_seconds),
    )


def merge(
    run: Run,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    rechunk: bool | None = None,
    progress: Progress | None = None,
) -> None:
    """Forms the Gram matrices of the measured sketch, and row shards where they pay.

    Args:
        run: The run.
        memory: Peak resident memory, in bytes or as text.
        threads: Threads.
        rechunk: Whether row shards are written; by default where there are many column shards.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
        DriftError: If shards were made by different operators.
    """
    Merge(run, rechunk).result(Resources.of(memory, threads), progress or Progress())


def recover(
    run: Run,
    method: str | None = None,
    core: int | str | None = None,
    rank: int | str | None = None,
    name: str | None = None,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Eigh:
    """Recovers the decomposition; merges first if need be; an existing result is returned.

    Args:
        run: The run.
        method: Instead of the plan's.
        core: Instead of the plan's.
        rank: Instead of the plan's.
        name: Folder of the result; ``default`` for the plan's settings, else made of them.
        memory: Peak resident memory, in bytes or as text.
        threads: Threads.
        progress: Shows how far it is.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a file is damaged.
        UsageError: If the settings are not allowed, or the name is taken.
    """
    from skerch_ooc.results import Eigh

    settings = recovery_settings(run, method, core, rank)
    name = name or recover_stage.result_name(settings, run.plan)
    resources = Resources.of(memory, threads)
    path = recover_stage.recover(Merge(run), settings, name, resources, progress or Progress())
    return Eigh(path)


def recovery_settings(
    run: Run, method: str | None, core: int | str | None, rank: int | str | None
) -> RecoverySpec:
    """The plan's recovery settings, with what is given in their place."""
    known = run.plan.recovery
    settings = RecoverySpec(
        method=known.method if method is None else method,
        core=known.core if core is None else core,
        rank=known.rank if rank is None else rank,
        vectors=known.vectors,
    )
    _require_recoverable(settings, run.plan.reach("right"))
    return settings


def _require_recoverable(settings: RecoverySpec, measurements: int) -> None:
    for key, value in (("core", settings.core), ("rank", settings.rank)):
        if isinstance(value, int) and value > measurements:
            raise UsageError(
                f"recovery.{key} = {value}: there are only {measurements} measurements"
            )


def assess(run: Run, name: str = "default") -> Assessment:
    """Estimates the error of a result, and writes ``assessment.json`` beside it.

    Args:
        run: The run.
        name: Folder of the result.

    Raises:
        IncompleteError: If there is no such result.
        CorruptError: If it is damaged.
    """
    path = run.results / name / recover_stage.RESULT_FILE
    assessment = assess_stage.assess_result(path, count_products(run))
    files.write_json(path.parent / "assessment.json", assessment.as_json())
    return assessment


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
            f"{limit:.3e}; more measurements make it smaller"
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
    run = planned.run
    complete = measure_stage.measure(
        run,
        executor,
        resources,
        progress,
        operator=operator,
        checked=planned.product,
        device=device,
        budget=budget,
    )
    # The memory of the operator is for the stages that follow.
    planned.product = None
    if not complete:
        return None
    recover_stage.recover(Merge(run), run.plan.recovery, "default", resources, progress)
    return assess(run)


def eigh(
    A: Any,
    *,
    measurements: int,
    run_dir: str | Path,
    method: str = "nystrom",
    core: int | str = "auto",
    rank: int | str = "all",
    seed: int = 1,
    noise: str = "rademacher",
    dtype: str | None = None,
    test_measurements: int = 30,
    block: int | str = "auto",
    memory: int | str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Eigh:
    """Eigendecomposition of a Hermitian operator, in this process, with all data on disk.

    The same call on the same directory goes on where an earlier one was interrupted.

    Args:
        A: Anything with ``.shape`` and ``@``.
        measurements: Columns of the right sketch.
        run_dir: The run directory.
        method: Recovery method.
        core: Eigenpairs of the core that are inverted, or ``"auto"``.
        rank: Eigenpairs that are returned, or ``"all"``.
        seed: Seed of the test matrices.
        noise: Distribution of the test matrix.
        dtype: Of the products; by default that of ``A``, else float32.
        test_measurements: Columns of the test sketch.
        block: Columns that are applied at once, or ``"auto"``.
        memory: Peak resident memory of this process, in bytes or as text.
        device: Torch device on which ``A`` is applied.
        progress: Shows how far it is.

    Returns:
        The decomposition; ``assess(open_run(run_dir))`` tells its error.

    Raises:
        DriftError: If the directory holds a run of another operator.
        OperatorError: If the operator is unusable.
        UsageError: If an argument is not allowed, or the directory holds another run.
    """
    from skerch_ooc.results import Eigh

    spec = Spec.from_table(
        {
            "measurements": measurements,
            "seed": seed,
            "dtype": dtype or dtype_of(A),
            "operator": {"device": device},
            "sketch": {"noise": noise, "test_measurements": test_measurements, "block": block},
            "recovery": {"method": method, "core": core, "rank": rank},
        }
    )
    resources = Resources.of(memory)
    planned = make_plan(spec, Path(run_dir), resources, operator=A)
    if not planned.fresh:
        # Another object under the name of an old run must never be given the old answer.
        planned.product = measure_stage.open_product(planned.run, A, device)
        measure_stage.check_or_publish_fingerprint(planned.run, planned.product, resources.threads)
    run_all(planned, Serial(), resources, progress or Progress(), operator=A)
    return Eigh(planned.run.results / "default" / recover_stage.RESULT_FILE)
