"""Freeze: makes a plan of a spec and an operator: sizes, parts, and the blocks of columns."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.places import ObjectPath
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import Resources, operator_threads
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.examine import examine
from skerch_ooc.operators.probe import Probe
from skerch_ooc.pipeline import readings
from skerch_ooc.pipeline.cost import choose_block
from skerch_ooc.planning.growth import cuts, first_look
from skerch_ooc.planning.krylov import Start
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.parts import Part, runs_of
from skerch_ooc.planning.plan import Amendment, Identity, Plan, require_sound
from skerch_ooc.planning.sizes import krylov_of, sizes_of, with_rank
from skerch_ooc.planning.spec import ROLES, TEST_MATRICES, Spec
from skerch_ooc.store.rundir import Run

TEST_NOISE = "gaussian"
"""The error bounds hold for Gaussian test vectors, whatever the noise of the sketch."""

log = logging.getLogger("skerch_ooc")

_MOST_PARTS_OF_ROWS = 64
_ROWS_FOR_LEFT = 128
"""Rows that a part has at least for each left column."""


@dataclass(frozen=True)
class Examined:
    """A loaded operator, with what was found out about it.

    Attributes:
        product: The operator.
        findings: The findings of the probe, if there was one.
        fingerprint: The fingerprint, by which processes recognise the operator; ``None`` if it was
            not asked for.
        layout: The parameters that its vectors are made of, if it states them.
    """

    product: Product
    findings: Probe | None
    fingerprint: dict[str, Any] | None
    layout: ParameterLayout | None = None

    @classmethod
    def of(
        cls, product: Product, seed: int, kind: str, resources: Resources, most: int
    ) -> Examined:
        """Probes an operator, and chooses how many columns it applies at once if it can be told.

        Args:
            product: The operator.
            seed: The run's seed.
            kind: ``"eigh"``, if it must be Hermitian, or ``"svd"``.
            resources: Memory and threads that it may use.
            most: The most columns that a block will have.

        Raises:
            OperatorError: If the operator cannot be used.
        """
        # First, as one that does not fit is refused before any product is paid for.
        layout = product.layout
        with operator_threads(resources.threads):
            found = examine(product, seed, kind, most=most, memory=resources.memory)
        return cls(*found, layout)

    def note_in(self, run: Run, part: Part) -> None:
        """Publishes fingerprint and layout of a whole summand, and notes what the probe found."""
        if self.fingerprint and not part.is_piece:
            run.publish_fingerprint(self.fingerprint, part.number)
        run.publish_layout(self.layout)
        if self.findings:
            found = asdict(self.findings) | {"remarks": list(self.product.remarks)}
            run.record("receipts", provenance(stage="probe", **found))


def planned(
    spec: Spec, shape: tuple[int, int], sha256: str | None, examined: Examined | None,
    resources: Resources, run_dir: Path,
) -> Plan:  # fmt: skip
    """Makes the plan of a spec.

    Args:
        spec: The spec.
        shape: The shape of the operator.
        sha256: Hash of the factory's file, if the factory is in a file.
        examined: The operator, if it was loaded.
        resources: Memory and cores of a process.
        run_dir: The run directory.

    Raises:
        UsageError: If sizes do not fit the operator, or not even one column fits into memory.
    """
    spec = with_rank(spec, shape)
    together = examined is not None and examined.product.together
    sizes, left_noise = sizes_of(spec, shape), spec.sketch.noise
    if together:
        sizes, left_noise = readings.sizes_for_rows(spec, shape, sizes)
    parts: tuple[Part, ...] = (Part(),)
    if examined is not None:
        wanted, task_seconds = spec.operator.parts, spec.sketch.task_seconds
        least = readings.parts_that_fit(spec, examined.product, sizes, resources) if together else 1
        parts = parts_of(examined, wanted, task_seconds, Part(), left=sizes.left, least=least)
    identity = _identity(spec, shape, sha256, left_noise, tested_back=bool(sizes.test_left))
    now = sizes
    if spec.tolerance is not None:
        now = first_look(spec.recovery.method, spec.kind, sizes)
    if together:
        assert examined is not None
        runs = [part.terms for part in parts]
        widths = readings.widths_that_fit(spec, examined.product, now, runs, resources)
    else:
        findings = examined.findings if examined else None
        widths = dict.fromkeys(ROLES, choose_block(spec, shape, findings, resources))
    amendment = Amendment(
        run_id=identity.run_id,
        number=1,
        blocks=cuts(spec.kind, None, now, widths),
        recovery=spec.recovery,
        device=spec.operator.device,
        folder=relative_folder(spec.folder, run_dir),
        tolerance=spec.tolerance,
        most=None if spec.tolerance is None else sizes.right,
        parts=parts,
        krylov=krylov_of(spec, shape),
        keeps_sketches=METHODS[spec.recovery.method].keeps_sketches(
            spec.kind, spec.recovery.power_iterations, now.test
        ),
        either_cut=spec.kind == "svd" and METHODS[spec.recovery.method].nests,
    )
    plan = Plan(identity, (amendment,))
    require_sound(plan)
    return plan


def starting_with(plan: Plan, start: Start | None) -> Plan:
    """Returns a new plan with vectors to start with, if there are any.

    Raises:
        UsageError: If its method starts with none.
    """
    if start is None:
        return plan
    identity = replace(plan.identity, start=start)
    found = Plan(identity, (replace(plan.amendments[0], run_id=identity.run_id),))
    require_sound(found)
    return found


def relative_folder(folder: Path, run_dir: Path) -> str:
    """Returns a folder as an amendment states it: relative to the run directory, if it is one."""
    if isinstance(run_dir, ObjectPath):
        return str(folder.resolve())
    return os.path.relpath(folder.resolve(), run_dir.resolve())


def parts_of(
    examined: Examined,
    wanted: int | str,
    task_seconds: float,
    first: Part,
    *,
    left: int,
    least: int = 1,
) -> tuple[Part, ...]:
    """Cuts a summand into the parts in which it is measured.

    Cutting columns costs nothing, but cutting terms multiplies the sketches on disk. So terms are
    cut only if the user asks for it, if a single product would take longer than a task may, or if
    a task takes all columns together.

    Args:
        examined: The operator.
        wanted: The number of parts, at most, or ``"auto"``.
        task_seconds: Seconds that a task may take.
        first: What all parts have in common, and the number of the first.
        left: Columns of the left sketch.
        least: The number of parts, at least, if there are as many terms.
    """
    product, findings = examined.product, examined.findings
    terms = product.terms
    if isinstance(wanted, int):
        most = wanted
        if wanted > 1 and terms == 1:
            why, instead = (
                "the operator has no terms to be cut by",
                "give a skerch_ooc.Sum or Stack of terms, or ",
            )
            if product.together:
                why, instead = "the matrix is so small that its rows are measured together", ""
            log.warning(
                "operator.parts = %d changes nothing, as %s; %sleave operator.parts out",
                wanted, why, instead,
            )  # fmt: skip
    elif product.is_turned:
        most = 1
    elif product.together:
        # What a part adds to the disk, a left sketch of its own, is little beside what it reads.
        fitting = product.shape[0] // max(1, _ROWS_FOR_LEFT * left)
        most = max(least, min(_MOST_PARTS_OF_ROWS, fitting))
    else:
        seconds = findings.seconds(1) if findings else 0.0
        most = max(1, math.ceil(seconds / task_seconds))
    told = findings.columns_at_once if findings else None
    first = replace(first, together=product.together, columns_at_once=told)
    return tuple(
        replace(
            first,
            number=first.number + number,
            terms=run,
            of=1 if run is None else terms,
            rows=None if run is None else product.rows(run),
        )
        for number, run in enumerate(runs_of(terms, most))
    )


def _identity(
    spec: Spec, shape: tuple[int, int], sha256: str | None, left_noise: str, *, tested_back: bool
) -> Identity:
    names = tuple(name for name in TEST_MATRICES if name != "test-left" or tested_back)
    if spec.kind == "eigh":
        inner = METHODS[spec.recovery.method].has_inner
        names = ("right", "test", "inner-left") if inner else ("right", "test")
    others = {"test": TEST_NOISE, "test-left": TEST_NOISE, "left": left_noise}
    return Identity(
        kind=spec.kind,
        factory=spec.operator.factory,
        args=spec.operator.args,
        factory_sha256=sha256,
        shape=shape,
        dtype=spec.products_dtype,
        seed=spec.seed,
        noise={name: others.get(name, spec.sketch.noise) for name in names},
    )


def identity_like(spec: Spec, known: Identity) -> Identity:
    """Returns the identity of a spec, with what the spec leaves open taken from a known one."""
    shape = spec.operator.shape or known.shape
    left = known.noise.get("left", spec.sketch.noise)
    back = "test-left" in known.noise
    return _identity(spec, shape, known.factory_sha256, left, tested_back=back)
