"""Operands: the parts of a run's operator, built and compared with their fingerprints once."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.files import is_folder, written_at
from skerch_ooc.base.places import is_object
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import operator_threads
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.loading import build, with_options
from skerch_ooc.operators.matrices.formats import located
from skerch_ooc.operators.probe import check_fingerprint, fingerprint_of
from skerch_ooc.planning.parts import OperatorSource, Part
from skerch_ooc.planning.plan import SAMPLED_ROWS, source_of
from skerch_ooc.stages.measure.shipping import Shipped
from skerch_ooc.stages.measure.whereabouts import find_folder, folders_of, say_changed
from skerch_ooc.store.origin import ORIGIN, origin_of
from skerch_ooc.store.rundir import PLAN, Run, open_run
from skerch_ooc.store.sketch import Round

STORED = ("stored", "sparse")
"""Factories of matrices in files."""


class Operands:
    """Builds the parts of an operator when they are first needed, and hands out their products.

    It holds one summand at a time.

    Args:
        run: The run.
        device: Torch device of the operators.
        threads: Threads of the operators.
        operator: An operator that is at hand; others are built from their factories.
        summand: The number of the summand that ``operator`` is.
        product: The same operator, already adapted and compared with its fingerprint.

    Attributes:
        memory: Peak resident memory of the process, in bytes, for factories that ask for it.
    """

    memory: int | None = None

    def __init__(
        self, run: Run, device: str, threads: int, *, operator: Any = None, summand: int = 0,
        product: Product | None = None,
    ) -> None:  # fmt: skip
        self._run, self._device, self._threads = run, device, threads
        self._shipped: dict[int, Shipped] = {}
        self._at_hand = (summand, operator) if operator is not None else None
        self._opened = (summand, product) if product is not None else None
        self._checked: set[int] = set()
        self._origins: dict[int, list[float]] = {}
        if product is not None:
            # The fingerprint of an operator in one piece was taken of this very object.
            whole = (p for p in run.plan.parts if p.summand == summand and p.terms is None)
            self._checked = {part.number for part in whole if run.fingerprint(part.number)}

    def of_grown(self, run: Run) -> Operands:
        """Returns the same, built and compared as far as they are, for the run that has grown."""
        grown = copy.copy(self)
        grown._run = run
        return grown

    def of(self, part: Part) -> Product:
        """Returns the product that applies a part.

        Raises:
            OperatorError: If the operator cannot be built or used, or has another shape or other
                terms than the plan says.
            DriftError: If the operator does not agree with the fingerprint.
        """
        product = self._summand(part)
        if part.terms is not None:
            if product.terms != part.of:
                raise OperatorError(
                    f"the operator has {product.terms} terms, the run was planned for {part.of}; "
                    "restore them, or plan a new run"
                )
            product = product.part(part.terms)
        if part.number not in self._checked:
            self._check_or_publish(part, product)
            self._checked.add(part.number)
        return product

    def origin(self, part: Part) -> dict[str, list[float]]:
        """Returns what the shards of a part note of its operator, once it was compared."""
        if part.number not in self._origins:
            self._origins[part.number] = origin_of(self._run.fingerprint(part.number))
        return {ORIGIN: self._origins[part.number]}

    def receive(self, part: Part, shipped: Shipped | None) -> None:
        """Takes the file of the factory of a part, which came with a task."""
        if shipped is not None:
            self._shipped[part.summand] = shipped

    def check_all(self, summand: int = 0) -> None:
        """Compares all parts of a summand with their fingerprints.

        Raises:
            DriftError: If a part does not agree with its fingerprint.
            OperatorError: If the operator is unusable.
        """
        for part in self._run.plan.parts:
            if part.summand == summand:
                self.of(part)

    def _summand(self, part: Part) -> Product:
        if self._opened is None or self._opened[0] != part.summand:
            # Let go of the other summand first: both may not fit into memory together.
            self._opened = None
            self._opened = (part.summand, self._open(part))
        return self._opened[1]

    def _open(self, part: Part) -> Product:
        run, options = self._run, dict[str, Any]()
        if self._at_hand is not None and self._at_hand[0] == part.summand:
            operator, source = self._at_hand[1], source_of(run.plan, part)
            options = dict(source.args) if source.factory is None else {}
        else:
            shipped = self._shipped.get(part.summand)
            operator = build_for_run(run, self._device, part, self.memory, shipped)
        operator = with_options(operator, options, self.memory)
        product = product_of(operator, run.plan.identity.dtype, self._device)
        if product.shape != run.plan.identity.shape:
            raise OtherShapeError(
                f"the operator has shape {product.shape}, the run was planned for "
                f"{run.plan.identity.shape}; restore it, or plan a new run"
            )
        run.publish_layout(product.layout)
        if part.columns_at_once is None or product.columns_at_once is None:
            return product
        # In each process the same, as bits depend on it.
        return product.narrowed(part.columns_at_once)

    def _check_or_publish(self, part: Part, product: Product) -> None:
        """Compares a product with the fingerprint, which the first process publishes."""
        run, seed = self._run, self._run.plan.identity.seed
        stored = run.fingerprint(part.number)
        count = 0 if part.together else 1
        # Noted first: a product counts even if the process dies of it.
        run.record("receipts", provenance(stage="fingerprint", part=part.number, products=count))
        with operator_threads(self._threads):
            # An operator whose rows were not at hand when it was planned was compared as a whole.
            sampled = product.sampled_as(stored or {}) if part.together else product
            if stored is None:
                run.publish_fingerprint(fingerprint_of(sampled, seed), part.number)
            else:
                check_fingerprint(sampled, seed, stored)


class OtherShapeError(OperatorError):
    """The operator has another shape than the one that the run started with."""


def is_compared_by_rows(run: Run) -> bool:
    """Whether a few rows are all that is compared of the operator, and there are more."""
    few = max(run.plan.identity.shape) <= SAMPLED_ROWS
    return not few and any(part.together for part in run.plan.parts)


def compared_operands(run: Run, work: Work) -> Operands:
    """Builds the operator of a run by its factories, and compares it with all fingerprints.

    Raises:
        DriftError: If it is not the one that the run started with.
        OperatorError: If it cannot be built, or is unusable.
    """
    operands = Operands(run, work.device or run.plan.device, work.resources.threads)
    operands.memory = work.resources.memory
    for summand in range(run.plan.summands):
        operands.check_all(summand)
    return operands


def build_for_run(
    run: Run, device: str | None = None, part: Part | None = None, memory: int | None = None,
    shipped: Shipped | None = None,
) -> Any:  # fmt: skip
    """Builds the operator of a planned run, wherever run and factory have been moved to.

    The factory's file is looked for where the plan's relative path leads, where it was when the
    run was planned, and in the current folder. A file whose hash is the plan's comes first; one
    that came with a task before all.

    Args:
        run: The run.
        device: The torch device; the plan's by default.
        part: A part of the summand to build; the first part by default.
        memory: Peak resident memory of the process, in bytes, for factories that ask for it.
        shipped: The file of the factory, if it came with a task.

    Raises:
        CorruptError: If that file was altered on its way.
        OperatorError: If the operator has no factory, or the factory cannot be found or run.
    """
    source = source_of(run.plan, part or Part())
    if source.factory is None:
        raise OperatorError(
            f"the operator of {run.directory} was handed over as a Python object; go on with the "
            "same call in Python, with run_dir at this directory"
        )
    device = device or run.plan.device
    if shipped is None:
        folder, content = find_folder(run, source), None
    else:
        folder, content = next(filter(is_folder, folders_of(run, source))), shipped.checked()
        if shipped.sha256 != source.sha256:
            say_changed(shipped.name)
    try:
        return build(source.factory, source.args, device, folder, memory, content)
    except OperatorError as error:
        if source.factory not in STORED or not is_object(run.directory):
            raise
        raise OperatorError(
            f"{error}. The run is in a bucket, and its matrix is read on {socket.gethostname()}: "
            "give it by a URL, or by a path that all workers see"
        ) from error


def has_newer_files(run: Run) -> bool:
    """Whether files of a stored matrix were written, or put there, since the run was planned.

    That they are as old as before says nothing where only a file deep in a folder was replaced.
    """
    planned = written_at(run.directory / PLAN)
    return any(
        max(there.st_mtime_ns, there.st_ctime_ns) > planned
        for part in run.plan.parts
        for path in _files_of(run, source_of(run.plan, part))
        if (there := _found(path)) is not None
    )


def _files_of(run: Run, source: OperatorSource) -> Iterator[Path]:
    """The files that a stored matrix is made of, and those that lie in its folders."""
    if source.factory not in STORED:
        return
    folder = find_folder(run, source)
    for key in ("path", "minus"):
        given = source.args.get(key) or ()
        for name in [given] if isinstance(given, str) else given:
            path = located(folder, name)
            if isinstance(path, Path):
                yield path
                yield from path.iterdir() if is_folder(path) else ()


def _found(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


@lru_cache(maxsize=1)
def operands_of_process(
    directory: str, run_id: str, amendments: int, device: str, threads: int
) -> Operands:
    """Returns the operator of this process: built once, compared with the fingerprint once."""
    # The id and the number of amendments are keys of the cache: a plan that grew is opened anew.
    run = open_run(directory)
    assert run.plan.run_id == run_id
    assert len(run.plan.amendments) >= amendments
    return Operands(run, device, threads)


def operands_of(run: Run, work: Work, operator: Any) -> Operands:
    """Returns the operator of this process.

    An operator at hand is taken to be the first summand that still has columns to measure.
    """
    missing = Round(run).missing_strips()
    lacking = [run.plan.parts[strip.part].summand for strip, ranges in missing.items() if ranges]
    device, summand = work.device or run.plan.device, min(lacking, default=0)
    resources = work.resources
    found = Operands(run, device, resources.threads, operator=operator, summand=summand)
    found.memory = resources.memory
    return found


def forget_operator() -> None:
    """Frees the operator of this process: the stages that follow need its memory."""
    operands_of_process.cache_clear()
