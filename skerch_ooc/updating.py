"""Updates: a further summand for a run, of which alone the sketch is then measured.

Sketches are linear: with equal test matrices, that of ``b A + a B`` is ``b`` times that of ``A``
plus ``a`` times that of ``B``. So the run becomes one of ``b A + a B``, its test sketch and error
figures included, and nothing that was measured of ``A`` is measured again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch_ooc import planning, rundir
from skerch_ooc.errors import DriftError, IncompleteError, UsageError, quoted
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.loading import build, factory_sha256
from skerch_ooc.operators.probe import check_fingerprint, examine, sizes_allowed
from skerch_ooc.parts import Part, Source, require_factor
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import Resources, operator_threads
from skerch_ooc.rounds import Round
from skerch_ooc.rundir import Run
from skerch_ooc.spec import OperatorSpec, SketchSpec
from skerch_ooc.stages.operands import Operands
from skerch_ooc.stages.recover import ASSESSMENT
from skerch_ooc.status import is_stale


@dataclass(frozen=True)
class Update:
    """What is to become of a run's operator: ``A <- forget A + scale B``.

    Attributes:
        operator: Where ``B`` comes from; its ``shape`` and ``device`` are those of the run.
        scale: What ``B`` is multiplied by.
        forget: What ``A`` is multiplied by.
        at_hand: ``B`` itself, if no factory names it.
        folder: What a factory's file is relative to.
        again: Whether what was added before may be added once more.
        assessed: Whether it leads to a result that is assessed, or to one that is recovered.
    """

    operator: OperatorSpec
    scale: float = 1.0
    forget: float = 1.0
    at_hand: Any = None
    folder: Path = Path()
    again: bool = False
    assessed: bool = False


def update_run(run: Run, update: Update, resources: Resources) -> tuple[Run, Operands | None]:
    """Plans a further summand, after a probe; one that was planned and not finished is kept.

    Args:
        run: The run; complete, unless it is this very update that was interrupted.
        update: What is added.
        resources: Memory and cores.

    Returns:
        The run with the plan now in force; and the operator, if it was built.

    Raises:
        IncompleteError: If something else is not measured yet.
        OperatorError: If ``B`` cannot be used, or has another shape.
        UsageError: If the method's sketch is not linear, this was added before, or the factors lead
            out of the range of the dtype.
    """
    scale = require_factor("scale", update.scale)
    forget = require_factor("forget", update.forget)
    plan = run.plan
    if plan.recovery.method == "hmt":
        raise UsageError(
            'a run with method = "hmt" cannot be updated: the basis of its later rounds is made of '
            "the operator, so that its sketch is not linear in it. Plan a new run, with nystrom, "
            "singlepass or oversampled"
        )
    if (update.operator.factory is None) == (update.at_hand is None):
        raise UsageError("give the operator that is to be added, or the factory that makes it")
    source = _source(run, update)
    missing = any(Round(run).missing().values())
    product, examined = None, None
    if source.factory is None:
        product = _product(run, update)
        with operator_threads(resources.threads):
            examined = examine(product, plan.identity.seed, plan.identity.kind)
    added = _added_before(run, source, product)
    if missing:
        if added != plan.summands - 1:
            raise _unfinished(run)
        return run, None
    if added is not None and not update.again:
        if not _is_finished(run, update):
            return run, None
        raise UsageError(
            f"this was added to {run.directory} before, as summand {added}; if it is to be added "
            "once more, say --again (in Python: again=True)"
        )
    if product is None or examined is None:
        product = _product(run, update)
        with operator_threads(resources.threads):
            examined = examine(product, plan.identity.seed, plan.identity.kind)
    findings, fingerprint = examined
    _require_range(run, forget, scale * float(fingerprint["norm"]))
    parts = planning.parts_of(
        product,
        update.operator.parts,
        SketchSpec().task_seconds,
        findings,
        planning.next_part(plan, source, scale),
        left=plan.reach("left"),
    )
    grown = rundir.amend_run(run, planning.updated(plan, parts, forget))
    if not parts[0].is_piece:
        grown.publish_fingerprint(fingerprint, parts[0].number)
    if findings:
        grown.record("receipts", provenance(stage="probe", **findings.as_json()))
    operands = Operands(
        grown, product.device, resources.threads, product=product, summand=parts[0].summand
    )
    return grown, operands


def _require_range(run: Run, forget: float, added: float) -> None:
    """Refuses factors by which the sum of the operators leaves the range of the run's numbers.

    Args:
        run: The run.
        forget: What its operator is multiplied by.
        added: Norm of a product of what is added.

    Raises:
        UsageError: With the size that the products would have.
    """
    stored = [(part.scale, run.fingerprint(part.number)) for part in run.plan.parts]
    norms = [abs(scale * forget) * float(found["norm"]) for scale, found in stored if found]
    norms.append(abs(added))
    dtype = run.plan.identity.dtype
    smallest, largest = sizes_allowed(dtype)
    if not (smallest < max(norms) and sum(norms) < largest):
        raise UsageError(
            f"scale and forget: products of the sum would be about {sum(norms):.1e}, which is out "
            f"of the range of {dtype}; take factors that leave them between {smallest:.0e} and "
            f"{largest:.0e}"
        )


def _added_before(run: Run, source: Source, product: Product | None) -> int | None:
    """The last summand that is the same operator, by its factory or else by its fingerprint."""
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
        check_fingerprint(mine.sampled, run.plan.identity.seed, stored)
    except DriftError:
        return False
    return True


def _unfinished(run: Run) -> IncompleteError:
    if run.plan.summands == 1:
        what = f"{run.directory} is not measured to its end, and only then can be updated"
    else:
        source = run.plan.parts[-1].source
        name = source.factory if source and source.factory else "a Python object"
        what = f"{run.directory} has an update by {name} that is not finished; finish that first"
    return IncompleteError(f"{what}; go on with: skerch-ooc measure {quoted(run.directory)}")


def _is_finished(run: Run, update: Update) -> bool:
    """Whether all that an update is to lead to is there, of what is measured now."""
    if update.assessed and not (run.results / "default" / ASSESSMENT).exists():
        return False
    return not is_stale(run, Round(run).sketch.digest)


def _source(run: Run, update: Update) -> Source:
    factory, folder = update.operator.factory, update.folder.resolve()
    sha256 = factory_sha256(factory, folder) if factory else None
    relative = os.path.relpath(folder, run.directory.resolve())
    return Source(factory, update.operator.args, sha256, relative)


def _product(run: Run, update: Update) -> Product:
    """``B``, of the shape of the run's operator."""
    identity, operator = run.plan.identity, update.at_hand
    if operator is None:
        assert update.operator.factory is not None
        operator = build(
            update.operator.factory, update.operator.args, run.plan.device, update.folder
        )
    product = product_of(operator, identity.dtype, run.plan.device)
    if product.shape != identity.shape:
        raise UsageError(
            f"what is to be added has shape {product.shape}, the operator of {run.directory} has "
            f"{identity.shape}; give one of that shape"
        )
    return product
