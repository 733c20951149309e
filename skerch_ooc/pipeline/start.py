"""Start: reads the spec, probes the operator, and publishes the plan of a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.base import files
from skerch_ooc.base.errors import UsageError, counted, quoted
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.places import is_object, place
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import Resources, operator_threads, resident_memory
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.adapters import Product, dtype_of, product_of, shape_of
from skerch_ooc.operators.examine import probe_at_best_width
from skerch_ooc.operators.loading import factory_sha256, operator_of
from skerch_ooc.operators.probe import Probe, Timing, timings
from skerch_ooc.pipeline import freeze
from skerch_ooc.pipeline.cost import Estimate, choose_block, estimate, require_memory
from skerch_ooc.pipeline.earlier import Earlier, find_earlier, keep_start, place_of
from skerch_ooc.planning.krylov import Krylov, most_rounds_of_old
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.plan import Plan, described
from skerch_ooc.planning.sizes import (
    Sizes,
    krylov_of,
    require_sense,
    sizes_of,
    with_dtype,
    with_rank,
)
from skerch_ooc.planning.spec import DEFAULT_BLOCK, DEFAULT_DTYPE, Spec
from skerch_ooc.stages.measure.operands import Operands
from skerch_ooc.store import rundir
from skerch_ooc.store.names import PLACES
from skerch_ooc.store.rundir import Run

log = logging.getLogger("skerch_ooc")

_LONGEST_CALL = 20.0
"""Seconds that a call of ``probe_spec`` may take, as far as that can be foretold."""

_GROW = ("measurements", "rounds", "pairs_tolerance")
"""What a run is extended to."""


@dataclass
class Planned:
    """A planned run, with what planning found out, for stages that follow in the same process.

    Attributes:
        run: The run.
        costs: The estimate of what it will cost.
        operands: The probed operator; ``None`` if planning did not load it, or its memory was freed
            after measuring.
        findings: The findings of the probe; ``None`` if there was none.
        fresh: Whether the plan was made now, not found.
        remarks: What the operator says of how it is made; empty if planning did not load it.
        changed: Whether the factory's file is another now than when the run was planned.
    """

    run: Run
    costs: Estimate
    operands: Operands | None = None
    findings: Probe | None = None
    fresh: bool = True
    remarks: tuple[str, ...] = ()
    changed: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns the plan's id, its costs and the findings of the probe as JSON values."""
        return {
            "run": self.run.plan.run_id,
            "costs": asdict(self.costs),
            "probe": self.findings and asdict(self.findings),
            "remarks": list(self.remarks),
        }


def as_spec(spec: Spec | Mapping[str, Any] | str | Path) -> Spec:
    """Reads whatever stands for a spec: itself, nested tables, or the path of a TOML file."""
    if isinstance(spec, Spec):
        return spec
    if isinstance(spec, Mapping):
        return Spec.from_table(spec)
    return Spec.from_toml(spec)


@tells_keywords
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
    work = Work.of(memory=memory, threads=threads)
    return make_plan(as_spec(spec), place(run_dir), work, operator=operator).run


def make_plan(spec: Spec, run_dir: Path, work: Work, *, operator: Any = None) -> Planned:
    """Does what :func:`plan` does; also returns what it found out on the way."""
    if spec.operator.shape is None:
        _require_operator(spec, operator)
    require_sense(spec)
    sha256 = factory_sha256(spec.operator.factory, spec.folder) if spec.operator.factory else None
    if rundir.is_planned(run_dir):
        return _go_on(spec, sha256, rundir.open_run(run_dir))
    # The directory is checked before the operator is built and probed, which may take long.
    rundir.require_place(run_dir)
    _say_threads(work.resources)
    examined = None
    if operator is not None or _needs_operator(spec):
        spec, product = _product(spec, operator, work)
        earlier = find_earlier(spec, product.shape, product.layout)
        most = _most_columns(spec, product)
        examined = freeze.Examined.of(product, spec.seed, spec.kind, work.resources, most)
        shape = product.shape
    else:
        assert spec.operator.shape is not None
        shape, spec = spec.operator.shape, with_dtype(spec, DEFAULT_DTYPE)
        earlier = find_earlier(spec, shape, None)
    plan = freeze.planned(spec, shape, sha256, examined, work.resources, run_dir)
    plan = freeze.starting_with(plan, earlier.start if earlier else None)
    findings = examined.findings if examined else None
    held = resident_memory() if examined else None
    far = work.resources if is_object(run_dir) else None
    costs = estimate(plan, findings, held, examined.product if examined else None, far)
    require_memory(costs, work.resources)
    run = rundir.create_run(run_dir, plan.identity, plan.amendments[0])
    if run.plan.amendments[0] != plan.amendments[0]:
        # Another process has planned it meanwhile.
        return _go_on(spec, sha256, run)
    # After the plan, whose id the copy states: until it is there, no next block is made.
    keep_start(run, earlier)
    _note_place(run, spec)
    run.record("plan", provenance(estimate=asdict(costs)))
    made = Planned(run, costs, findings=findings)
    if examined is not None:
        examined.note_in(run, plan.parts[0])
        product = examined.product
        made.remarks = product.remarks
        made.operands = Operands(run, product.device, work.resources.threads, product=product)
    return made


def _go_on(spec: Spec, sha256: str | None, run: Run) -> Planned:
    """Returns a run that was planned before with the same spec.

    Raises:
        UsageError: If the spec is another.
    """
    changed = _require_same(spec, sha256, run)
    keep_start(run, _same_start(spec, run))
    if sha256 is not None and is_object(run.directory):
        # Another machine may have it elsewhere than the one on which the run was planned.
        with contextlib.suppress(OSError):
            _note_place(run, spec)
    return replace(planned_before(run), changed=changed)


def _note_place(run: Run, spec: Spec) -> None:
    """Notes where the spec is, beside which the file of a factory is looked for."""
    files.write_json(run.logs / PLACES.name(), {"folder": str(spec.folder.resolve())})


def _same_start(spec: Spec, run: Run) -> Earlier | None:
    """Finds the vectors that a planned run starts with; ``None`` if they are where they were not.

    Raises:
        UsageError: If they are others now.
    """
    known = run.plan.identity
    if spec.start is None or (known.start and not files.is_there(place_of(spec))):
        # The run has a copy of them.
        return None
    spec = _with_width(_completed(spec, run.plan), run.plan)
    found = find_earlier(spec, known.shape, run.layout())
    if found is None or found.start != known.start:
        had = "other vectors" if known.start else "no vectors"
        raise UsageError(
            f"start = {spec.start!r}: {run.directory} was planned with {had}. Give a new --run "
            "directory, or leave start out to go on as it was planned"
        )
    return found


def _say_threads(resources: Resources) -> None:
    if resources.threads_by:
        log.info(
            "%s of a process, as %s says; give others by --threads",
            counted(resources.threads, "thread"), resources.threads_by,
        )  # fmt: skip


def _needs_operator(spec: Spec) -> bool:
    """Whether a plan depends on more of the operator than the spec says."""
    known = spec.operator.shape is not None and spec.sketch.block != "auto"
    return not known or spec.operator.parts != "auto"


def _product(spec: Spec, operator: Any, work: Work) -> tuple[Spec, Product]:
    """Returns the operator of a spec, built if it is not at hand, and the spec with its dtype."""
    device = work.device or spec.operator.device
    operator = operator_of(spec.operator, operator, device, spec.folder, work.resources.memory)
    spec = with_dtype(spec, dtype_of(operator))
    shape = spec.operator.shape or shape_of(operator)
    # Before anything is applied: what makes no sense for this shape takes no product.
    sizes_of(spec, shape)
    product = product_of(operator, spec.products_dtype, device)
    if product.shape != shape:
        raise UsageError(
            f"operator.shape = {list(shape)}, but the operator has {list(product.shape)}; correct "
            "it, or leave it out"
        )
    return spec, product


def _most_columns(spec: Spec, product: Product) -> int:
    """Returns the most columns that a block can have."""
    asked = spec.sketch.block
    right = sizes_of(spec, product.shape).right
    return min(DEFAULT_BLOCK if isinstance(asked, str) else asked, right)


@dataclass(frozen=True)
class Probed:
    """What :func:`probe_spec` found out about an operator.

    Attributes:
        factory: The factory of the operator; ``None`` for a Python object.
        shape: The shape of the operator.
        dtype: The dtype of its products.
        findings: The findings of the probe: whether the operator can be trusted.
        timings: The times of calls with ever wider blocks.
        costs: The estimate of what a run of the spec would cost.
        block: Columns that a task should apply at once, by time and memory.
        remarks: What the operator says of how it is made.
        by_rounds: Whether rounds decide how much is measured, and no ``storage``.
    """

    factory: str | None
    shape: tuple[int, int]
    dtype: str
    findings: Probe
    timings: list[Timing]
    costs: Estimate
    block: int
    remarks: tuple[str, ...] = ()
    by_rounds: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        return asdict(self)


def probe_spec(
    spec: Spec | Mapping[str, Any] | str | Path,
    *,
    operator: Any = None,
    memory: int | str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Probed:
    """Examines an operator and says what a run would cost; nothing is written.

    It takes the products of a plan's probe, and those of blocks of 1, 4, 16, ... columns, as long
    as one call takes at most 20 seconds and fits into the memory.

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
    work = Work.of(memory=memory, threads=threads, device=device)
    return probe_operator(as_spec(spec), work, operator=operator)


def probe_operator(spec: Spec, work: Work, *, operator: Any = None) -> Probed:
    """Does what :func:`probe_spec` does, with resources that are at hand."""
    resources = work.resources
    require_sense(spec)
    _require_operator(spec, operator)
    _say_threads(resources)
    spec, product = _product(spec, operator, work)
    with operator_threads(resources.threads):
        product, findings, _ = probe_at_best_width(
            product,
            spec.seed,
            spec.kind,
            most=_most_columns(spec, product),
            memory=resources.memory,
        )
        # A wide block is but several inner calls, of which all widths were timed already.
        taken = []
        if not findings.widths:
            taken = timings(product, spec.seed, seconds=_LONGEST_CALL, memory=resources.memory)
    # The block that is best, whatever the spec says.
    free = replace(spec, sketch=replace(spec.sketch, block="auto"))
    plan = freeze.planned(
        spec, product.shape, None, freeze.Examined(product, findings, None), resources, spec.folder
    )
    return Probed(
        factory=spec.operator.factory,
        shape=product.shape,
        dtype=product.dtype,
        findings=findings,
        timings=taken,
        costs=estimate(plan, findings),
        # Where rows are at hand blocks are as wide as memory allows.
        block=plan.block_width
        if product.together
        else choose_block(free, product.shape, findings, resources),
        remarks=product.remarks,
        by_rounds=plan.krylov is not None,
    )


def _require_operator(spec: Spec, operator: Any) -> None:
    if spec.operator.factory is None and operator is None:
        raise UsageError(
            'the key operator.factory is missing: give "package.module:function" or '
            '"file.py:function" of a function that returns the operator'
        )


def _rounds_compared(spec: Spec, plan: Plan) -> list[tuple[str, Any, Any]]:
    """Lists the keys of rounds that a spec states, with what the plan has and what is wanted."""
    known, wanted = plan.krylov, krylov_of(spec, plan.identity.shape)
    if known is None or wanted is None:
        # Another method: the recovery settings differ.
        return []
    return [
        (key, old, new)
        for stated, key, old, new in (
            (spec.round_width, "round_width", known.width, wanted.width),
            (spec.pairs_tolerance, "pairs_tolerance", known.tolerance, wanted.tolerance),
            (spec.rounds or spec.measurements, "rounds", known.rounds, wanted.rounds),
        )
        if stated is not None
        if key != "rounds" or spec.rounds or not _is_of_old(spec, known)
    ]


def _is_of_old(spec: Spec, known: Krylov) -> bool:
    """Whether a plan has the most rounds that the measurements of a spec once allowed."""
    usual = most_rounds_of_old(spec.kind, int(spec.recovery.rank), known.width)
    return known.rounds == min(usual, (spec.measurements or 0) // known.width)


def _sketch_compared(spec: Spec, plan: Plan, sizes: Sizes) -> list[tuple[str, Any, Any]]:
    """Lists the keys of the sketch that a spec states, with what the plan has and is wanted."""
    pairs = []
    if spec.sketch.left_test_measurements != "auto":
        back = plan.reach("test-left")
        pairs.append(("sketch.left_test_measurements", back, sizes.test_left))
    if spec.tolerance is None and not (
        plan.parts[0].together and spec.sketch.left_measurements == "auto"
    ):
        pairs.append(("sketch.left_measurements", plan.reach("left"), sizes.left))
    if spec.sketch.block != "auto":
        block = min(int(spec.sketch.block), plan.amendments[0].blocks["right"].stop)
        pairs.append(("sketch.block", plan.amendments[0].blocks["right"].width, block))
    return pairs


def _with_width(spec: Spec, plan: Plan) -> Spec:
    """Returns the spec with the plan's width of rounds where it is left out.

    The number of the rounds that the other keys allow follows from it.
    """
    if plan.krylov is None or spec.round_width or not METHODS[spec.recovery.method].orthogonal:
        return spec
    return replace(spec, round_width=plan.krylov.width)


def planned_before(run: Run) -> Planned:
    """Returns a run that was planned earlier, as :func:`make_plan` does."""
    far = Resources.of(None, None, 1, "cpu") if is_object(run.directory) else None
    return Planned(run, estimate(run.plan, None, far=far), fresh=False)


def _completed(spec: Spec, plan: Plan) -> Spec:
    """Returns a spec with what it leaves out as in the plan, whatever the default is by now."""
    spec = with_dtype(spec, plan.identity.dtype)
    if spec.recovery.states_method or plan.krylov is not None:
        return spec
    return replace(spec, recovery=replace(spec.recovery, method=plan.recovery.method))


def _require_same(spec: Spec, sha256: str | None, run: Run) -> bool:
    """Refuses a spec that is not that of the planned run, and shows the difference.

    Returns:
        Whether the factory's file has changed.

    Raises:
        UsageError: If the spec is another.
    """
    known, amendments = run.plan.identity, run.plan.amendments
    spec = _with_width(_completed(spec, run.plan), run.plan)
    spec = with_rank(spec, spec.operator.shape or known.shape)
    sizes = sizes_of(spec, spec.operator.shape or known.shape)
    measured = amendments[-1].most or run.plan.reach("right")
    wanted = freeze.identity_like(spec, known)
    if changed := sha256 != known.factory_sha256 and wanted.factory == known.factory:
        log.warning(
            "%s has changed since the run was planned; products that are still made are checked "
            "against the fingerprint",
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
        ("measurements", measured, sizes.right if run.plan.krylov is None else measured),
        ("tolerance", amendments[0].tolerance, spec.tolerance),
        ("sketch.test_measurements", run.plan.reach("test"), sizes.test),
        ("sketch.inner_measurements", run.plan.inner, sizes.inner),
        ("recovery", run.plan.recovery, spec.recovery),
    ]
    pairs += _rounds_compared(spec, run.plan) + _sketch_compared(spec, run.plan, sizes)
    different = [
        f"  {key}: {old!r} in the run, {new!r} now" for key, old, new in pairs if old != new
    ]
    if run.plan.summands > 1:
        raise UsageError(
            f"{run.directory} has been updated since it was planned: its operator is now "
            f"{described(run.plan)}. Go on with: skerch-ooc run --run {quoted(run.directory)} "
            "(in Python: open_run), or give a new run directory"
        )
    if different:
        grown = [
            f"--set {key}={old}"
            for key, old, new in pairs
            if key in _GROW and old != new and len(amendments) > 1 and old is not None
        ]
        raise UsageError(
            f"{run.directory} was planned with another spec:\n" + "\n".join(different) + "\n"
            "Give a new --run directory, or the spec that the run was planned with"
            + (f" (it has grown since: {' '.join(grown)})" if grown else "")
        )
    return changed
