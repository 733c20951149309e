"""Grow: extends a run to more measurements, or updates its operator by one more summand.

A column of a sketch does not depend on how many others there are, so only new columns are measured.
And sketches are linear: with equal test matrices, the sketch of ``b A + a B`` is ``b`` times that
of ``A`` plus ``a`` times that of ``B``. So the run becomes one of ``b A + a B``, with its test
sketch and error figures, and nothing that was measured of ``A`` is measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import DriftError, IncompleteError, OperatorError, UsageError, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.places import is_object
from skerch_ooc.base.progress import Progress
from skerch_ooc.executors.executor import Executor
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.loading import factory_sha256, operator_of
from skerch_ooc.operators.probe import check_fingerprint, sizes_allowed
from skerch_ooc.pipeline import freeze
from skerch_ooc.pipeline.freeze import Examined, relative_folder
from skerch_ooc.pipeline.start import Planned, planned_before
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning import values
from skerch_ooc.planning.growth import grown_sizes, more_columns, more_parts, next_part
from skerch_ooc.planning.krylov import PAIRS, ROUND_WIDTH, TILE_COLUMNS, Krylov, most_rounds
from skerch_ooc.planning.methods import PAIRS_METHOD, names_of
from skerch_ooc.planning.parts import UNNAMED, OperatorSource, Part
from skerch_ooc.planning.plan import Amendment, source_of
from skerch_ooc.planning.sizes import require_reachable
from skerch_ooc.planning.spec import OperatorSpec, SketchSpec, parse_arguments
from skerch_ooc.stages.measure import task as measure_stage
from skerch_ooc.stages.measure.operands import Operands, compared_operands
from skerch_ooc.store import rundir
from skerch_ooc.store.result_files import keep_default_result, remove_result, result_path
from skerch_ooc.store.rundir import Run


@dataclass(frozen=True)
class Update:
    """An update of a run's operator: ``A <- forget A + scale B``.

    Attributes:
        operator: The source of ``B``; its ``shape`` and ``device`` are those of the run.
        scale: The factor of ``B``.
        forget: The factor of ``A``.
        at_hand: ``B`` itself, if no factory names it.
        folder: The folder that a factory's file is relative to.
        again: Whether an operator that was added before may be added once more.
        assessed: Whether the update ends with an assessment, not just with a recovery.
    """

    operator: OperatorSpec
    scale: float = 1.0
    forget: float = 1.0
    at_hand: Any = None
    folder: Path = Path()
    again: bool = False
    assessed: bool = False

    @classmethod
    def by_factory(
        cls, factory: str, arguments: Sequence[str], parts: int | None, **more: Any
    ) -> Update:
        """Describes an update by what a factory makes, which ends with an assessment.

        Args:
            factory: The name of the factory, relative to the current folder.
            arguments: Its keyword arguments, as in ``"batch=8"``.
            parts: The number of parts that ``B`` is measured in, at most.
            **more: Factors, and whether ``B`` is added once more.
        """
        spec = OperatorSpec(factory, parse_arguments(arguments), parts=parts or "auto")
        return cls(spec, folder=Path.cwd(), assessed=True, **more)


def update_run(run: Run, update: Update, work: Work) -> Planned:
    """Plans a further summand, after a probe; goes on with one that was planned and not finished.

    Args:
        run: The run; complete, unless this very update was interrupted.
        update: The update.
        work: What is going to measure the summand, and with which resources.

    Returns:
        The run with the plan now in force, and the operator, if it was built and this process is
        going to measure it.

    Raises:
        IncompleteError: If something else is not measured yet.
        OperatorError: If ``B`` cannot be used, or has another shape.
        UsageError: If the method's sketch is not linear, this was added before, or the factors lead
            out of the range of the dtype.
    """
    update = replace(
        update,
        scale=values.factor("scale", update.scale),
        forget=values.factor("forget", update.forget),
    )
    plan = run.plan
    if not plan.method.is_one_pass:
        *others, last = names_of(lambda method: method.is_one_pass)
        raise UsageError(
            f'a run with method = "{plan.recovery.method}" cannot be updated: the basis of its '
            "later rounds is made of the operator, so that its sketch is not linear in it. Plan a "
            f"new run, with {', '.join(others)} or {last}"
        )
    if (update.operator.factory is None) == (update.at_hand is None):
        raise UsageError("give the operator that is to be added, or the factory that makes it")
    source, state = _source(run, update), State(run)
    examined = None if source.factory else _examine(run, update, work)
    added = _added_before(run, source, examined.product if examined else None)
    if state.incomplete:
        if added != plan.summands - 1:
            raise _unfinished(run)
        return planned_before(run)
    if added is not None and not update.again:
        if state.stale or (update.assessed and not state.assessed):
            return planned_before(run)
        raise UsageError(
            f"this was added to {run.directory} before, as summand {added}; if it is to be added "
            "once more, say --again (in Python: again=True)"
        )
    return _amend(run, update, source, examined or _examine(run, update, work), work)


def _examine(run: Run, update: Update, work: Work) -> Examined:
    product, identity, most = _product(run, update), run.plan.identity, run.plan.block_width
    return Examined.of(product, identity.seed, identity.kind, work.resources, most)


def _amend(
    run: Run, update: Update, source: OperatorSource, examined: Examined, work: Work
) -> Planned:
    """Publishes the plan with one more summand."""
    assert examined.fingerprint is not None
    _require_range(run, update.forget, update.scale * float(examined.fingerprint["norm"]))
    parts = freeze.parts_of(
        examined,
        update.operator.parts,
        SketchSpec().task_seconds,
        next_part(run.plan, source, update.scale),
        left=run.plan.reach("left"),
    )
    grown = rundir.amend_run(run, more_parts(run.plan, parts, update.forget))
    examined.note_in(grown, parts[0])
    planned = planned_before(grown)
    if not work.executor.remote:
        product = examined.product
        threads, summand = work.resources.threads, parts[0].summand
        planned.operands = Operands(
            grown, product.device, threads, product=product, summand=summand
        )
    return planned


def _require_range(run: Run, forget: float, added: float) -> None:
    """Refuses factors by which the sum of the operators leaves the range of the run's numbers.

    Args:
        run: The run.
        forget: The factor of its operator.
        added: The norm of a product of the summand, with its factor.

    Raises:
        UsageError: If they do; it states the size that products would have.
    """
    stored = [(part.scale, run.fingerprint(part.number)) for part in run.plan.parts]
    norms = [abs(scale * forget) * float(found["norm"]) for scale, found in stored if found]
    norms.append(abs(added))
    dtype = run.plan.identity.dtype
    smallest, largest = sizes_allowed(dtype)
    if not (smallest < max(norms) and sum(norms) < largest):
        raise UsageError(
            f"scale and forget: products of the sum would be about {short(sum(norms))}, which is "
            f"out of the range of {dtype}; take factors that leave them between "
            f"{short(smallest, 1)} and {short(largest, 1)}"
        )


def _added_before(run: Run, source: OperatorSource, product: Product | None) -> int | None:
    """Finds the last summand that is the same operator, by its factory or by its fingerprint."""
    found = None
    for part in run.plan.parts:
        known = part.source
        if known is None or found == part.summand:
            continue
        if source.factory is not None:
            same = (known.factory, known.args) == (source.factory, source.args)
        else:
            assert product is not None
            same = known.factory is None and _is_same(run, part, product)
        found = part.summand if same else found
    return found


def _is_same(run: Run, part: Part, product: Product) -> bool:
    """Whether a part has the fingerprint of an operator that is at hand."""
    stored = run.fingerprint(part.number)
    if stored is None or (part.terms is not None and product.terms != part.of):
        return False
    mine = product if part.terms is None else product.part(part.terms)
    try:
        sampled = mine.sampled_as(stored) if part.together else mine
        check_fingerprint(sampled, run.plan.identity.seed, stored)
    except DriftError:
        return False
    return True


def _unfinished(run: Run) -> IncompleteError:
    if run.plan.summands == 1:
        what = f"{run.directory} is not measured to its end, and only then can be updated"
    else:
        source = run.plan.parts[-1].source
        name = (source and source.factory) or UNNAMED
        what = f"{run.directory} has an update by {name} that is not finished; finish that first"
    return IncompleteError(f"{what}; go on with: skerch-ooc measure {quoted(run.directory)}")


def _source(run: Run, update: Update) -> OperatorSource:
    factory, folder = update.operator.factory, update.folder.resolve()
    sha256 = factory_sha256(factory, folder) if factory else None
    relative = relative_folder(folder, run.directory)
    return OperatorSource(factory, update.operator.args, sha256, relative)


def _product(run: Run, update: Update) -> Product:
    """Returns ``B``; refuses one of another shape than the run's operator."""
    identity, device = run.plan.identity, run.plan.device
    operator = operator_of(update.operator, update.at_hand, device, update.folder)
    product = product_of(operator, identity.dtype, device)
    if product.shape != identity.shape:
        raise UsageError(
            f"what is to be added has shape {product.shape}, the operator of {run.directory} has "
            f"{identity.shape}; give one of that shape"
        )
    return product


@tells_keywords
def extend(
    run: Run, measurements: int | None = None, *, rounds: int | None = None,
    pairs_tolerance: float | None = None, repeat_rounds: bool = False,
) -> Run:  # fmt: skip
    """Plans more columns, or more rounds of ``krylov``, for a run; only what is new is measured.

    The run then equals one that was planned with so many columns, or rounds, from the start. With
    ``rounds`` or ``pairs_tolerance`` a run of ``nystrom`` for ``eigh`` becomes one of ``krylov``:
    its first block is paid for, and its result stays, under the name of its method. Nothing is
    measured here: :func:`measure` follows.

    Args:
        run: The run.
        measurements: Columns of the right sketch in all.
        rounds: With ``pairs_tolerance`` the most rounds, else their number in all.
        pairs_tolerance: Relative error to which the pairs are to be known.
        repeat_rounds: Whether all products of the later rounds of ``hmt`` may be repeated, whose
            test matrix changes with the first round.

    Returns:
        The run with the plan now in force.

    Raises:
        UsageError: If the run has more, the operator has not so many, the method does not allow it
            (``oversampled``; ``hmt`` only with ``repeat_rounds``), or another process has changed
            the plan meanwhile.
        IncompleteError: If the shards of the run were removed by :func:`clean`.
    """
    wanted = Extension(measurements, rounds, pairs_tolerance, repeat_rounds)
    return _grown(run, wanted.amendment(run))


@dataclass(frozen=True)
class Extension:
    """What a run is to be extended by; see :func:`extend`."""

    measurements: int | None = None
    rounds: int | None = None
    pairs_tolerance: float | None = None
    repeat_rounds: bool = False

    def amendment(self, run: Run) -> Amendment | None:
        """Returns what extends the plan of a run; ``None`` if it says this already.

        Raises:
            UsageError: As :func:`extend`.
            IncompleteError: As :func:`extend`.
        """
        if (self.measurements is None) == ((self.rounds, self.pairs_tolerance) == (None, None)):
            raise UsageError(
                f"measurements = {self.measurements}, rounds = {self.rounds}, pairs_tolerance = "
                f"{self.pairs_tolerance}: give measurements alone, or rounds, or pairs_tolerance, "
                "or both of these"
            )
        if self.measurements is None:
            return _more_rounds(run, self.rounds, self.pairs_tolerance)
        return _more_columns(run, self.measurements, repeat_rounds=self.repeat_rounds)


def extend_run(run: Run, wanted: Extension, work: Work) -> Planned:
    """Extends the plan of a run whose operator is going to be applied by this process or workers.

    The operator is compared first: a run that has grown by what cannot be measured has lost its
    result, and never gets another.

    Args:
        run: The run.
        wanted: What it is extended by.
        work: What is going to measure that, and with which resources.

    Returns:
        The run with the plan now in force, and the operator, if this process is going to measure.

    Raises:
        DriftError: If the operator is not the one that the run started with.
        OperatorError: If it cannot be built by this process, which is going to measure.
        UsageError: As :func:`extend`.
        IncompleteError: As :func:`extend`.
    """
    amendment = wanted.amendment(run)
    if amendment is None:
        return planned_before(run)
    if not all(source_of(run.plan, part).factory for part in run.plan.parts):
        raise OperatorError(
            f"the operator of {run.directory} was handed over as a Python object: extend it by "
            "ooc.extend in Python, or by this command with --plan-only; then give the same call "
            "in Python as before, with what the run is extended to"
        )
    run.require_shards()
    operands = None
    try:
        operands = compared_operands(run, work)
    except OperatorError:
        if not work.executor.remote:
            raise
    planned = planned_before(_grown(run, amendment))
    if operands is not None and not work.executor.remote:
        planned.operands = operands.of_grown(planned.run)
    return planned


def _grown(run: Run, amendment: Amendment | None) -> Run:
    """Publishes an amendment, and before that what its plan calls the results there are."""
    if amendment is None:
        return run
    if run.plan.krylov is None and amendment.krylov is not None:
        keep_default_result(run, amendment.recovery)
    return rundir.amend_run(run, amendment)


def _more_columns(run: Run, measurements: int, *, repeat_rounds: bool) -> Amendment | None:
    """Plans more columns of the first round."""
    plan = run.plan
    method, has = plan.recovery.method, plan.reach("right")
    if plan.krylov is not None:
        raise UsageError(
            f'a run with method = "{method}" grows by rounds of {plan.krylov.width}, not by '
            "measurements: give --rounds or --pairs-tolerance (in Python: rounds=, "
            "pairs_tolerance=)"
        )
    if measurements == has:
        return None
    if measurements < has:
        raise UsageError(
            f"measurements = {measurements}: the run has {has} already, and none is ever thrown "
            "away; for fewer values, recover with a smaller --rank"
        )
    if plan.summands > 1 and any(source_of(plan, part).factory is None for part in plan.parts):
        raise UsageError(
            f"{run.directory} is of several operators, some of which were handed over as Python "
            "objects, so that further columns cannot be measured of all; plan a new run"
        )
    if plan.method.has_inner:
        raise UsageError(
            f'a run with method = "{method}" cannot be extended: its sizes are fixed by the '
            "inner sketch, whose columns do not nest; plan a new run, or use nystrom"
        )
    if not plan.method.is_one_pass and not repeat_rounds:
        raise UsageError(
            f"the basis of the later rounds of {method} changes with the first: {plan.rounds - 1} "
            f"round(s) of {measurements} products each would be measured anew, besides the "
            f"{measurements - has} of the first. If that is wanted, add --repeat-rounds"
        )
    sizes = grown_sizes(plan, measurements)
    if measurements > min(plan.identity.shape):
        raise UsageError(
            f"measurements = {measurements}: the operator is {plan.identity.shape[0]} x "
            f"{plan.identity.shape[1]}, so that at most {min(plan.identity.shape)} make sense"
        )
    amendment = more_columns(plan, sizes)
    if amendment.tolerance is not None:
        amendment = replace(amendment, most=measurements)
    return amendment


def _more_rounds(run: Run, rounds: int | None, tolerance: float | None) -> Amendment | None:
    """Plans more rounds of ``krylov``, also for a run of ``nystrom``."""
    plan, last = run.plan, run.plan.amendments[-1]
    known, recovery = plan.krylov, plan.recovery
    kind = plan.identity.kind
    if known is None:
        if not plan.method.nests or kind != "eigh" or plan.summands > 1:
            raise UsageError(
                f'a run with kind = "{kind}" and method = "{recovery.method}" has no rounds to be '
                'added: they can follow a sketch of kind = "eigh" and one pass, of one operator. '
                f'Plan a new run with method = "{PAIRS_METHOD}"'
            )
        rank = min(recovery.rank, PAIRS) if isinstance(recovery.rank, int) else PAIRS
        recovery = replace(recovery, method=PAIRS_METHOD, core="auto", rank=rank, vectors="stored")
        known = Krylov(min(ROUND_WIDTH, plan.reach("right")), 1, tile=TILE_COLUMNS)
    usual = most_rounds(kind, int(recovery.rank), known.width)
    most = max(known.rounds, usual) if rounds is None else rounds
    done = 0 if plan.krylov is None else State(run).last.number
    if most < done:
        raise UsageError(
            f"rounds = {most}: {done} are known already, and none is ever thrown away; give more"
        )
    wanted = replace(known, rounds=most, tolerance=tolerance)
    if wanted == plan.krylov:
        return None
    if tolerance is not None:
        require_reachable(tolerance, plan.identity.dtype)
    run.require_shards()
    return replace(
        last, number=last.number + 1, blocks={}, recovery=recovery, krylov=wanted,
        tolerance=None, most=None,
    )  # fmt: skip


def look_for_more(run: Run, rank: int) -> Run:
    """Plans rounds of ``krylov`` that look for more pairs than before, to the same tolerance.

    The default result, whose pairs are the first of those, is removed.

    Returns:
        The run with the plan now in force.

    Raises:
        IncompleteError: If the shards of the run were removed by :func:`clean`.
    """
    plan, last = run.plan, run.plan.amendments[-1]
    known = plan.krylov
    assert known is not None
    rounds = max(known.rounds, most_rounds(plan.identity.kind, rank, known.width))
    run.require_shards()
    # First: what is left of it when this is interrupted is made anew of the shards.
    remove_result(result_path(run, "default"))
    return rundir.amend_run(
        run,
        replace(
            last, number=last.number + 1, blocks={}, recovery=replace(plan.recovery, rank=rank),
            krylov=replace(known, rounds=rounds),
        ),
    )  # fmt: skip


@tells_keywords
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
        scale: The factor of ``B``.
        forget: The factor of ``A``.
        again: Whether to add once more what was added before (the same factory with the same
            arguments, or an object with the same fingerprint).
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
    if isinstance(operator, str):
        raise UsageError(
            f"operator = {operator!r}: for a factory give OperatorSpec(factory={operator!r})"
        )
    named = isinstance(operator, OperatorSpec)
    spec = operator if isinstance(operator, OperatorSpec) else OperatorSpec()
    asked = Update(spec, scale, forget, None if named else operator, Path.cwd(), again)
    work = Work.of(executor, memory, threads, device, progress)
    planned = update_run(run, asked, work)
    measure_stage.measure(planned.run, work, operator=asked.at_hand, operands=planned.operands)
    return planned.run


def how_to_go_on(run: Run) -> str:
    """Says what to do next with a plan that has grown."""
    command = run.how_to_measure()
    if not command.startswith("skerch-ooc"):
        return command
    path = quoted(run.directory)
    submitted = "" if is_object(run.directory) else f", or skerch-ooc submit {path}"
    return f"skerch-ooc run --run {path}{submitted}"
