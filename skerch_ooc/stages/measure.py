"""Measure: tasks draw their columns of the test matrices, apply the operator, publish a shard."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.budget import Budget
from skerch_ooc.errors import OperatorError, UsageError
from skerch_ooc.executors import Executor
from skerch_ooc.noise import WHOLE_COLUMNS, draw
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.loading import build_for_run
from skerch_ooc.operators.probe import check_fingerprint, fingerprint_of
from skerch_ooc.partition import Range, cut
from skerch_ooc.progress import Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import Resources, ask_for, format_bytes, operator_threads, resident_memory
from skerch_ooc.rounds import Basis, Round, known_rounds
from skerch_ooc.rundir import Run, open_run
from skerch_ooc.sealed import SealedFile
from skerch_ooc.shards import Rectangle, publish_shard
from skerch_ooc.sides import height_of_noise, test_matrix_of
from skerch_ooc.spec import Plan
from skerch_ooc.stages.testmatrices import COLUMNS_AT_ONCE
from skerch_ooc.streams import SPARE_BYTES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MeasureTask:
    """A block of columns to be measured: a path and a few numbers, for any process.

    Attributes:
        run: The run directory.
        round: Number of the round.
        basis: The file of its test matrix, if that is a basis.
        role: Role of the columns.
        start: First column.
        stop: First column after the block.
        device: The torch device.
        threads: Threads of the operator.
        number: Of the block among all that are planned for the round.
    """

    run: str
    round: int
    basis: str | None
    role: str
    start: int
    stop: int
    device: str
    threads: int
    number: int

    def __str__(self) -> str:
        return f"columns {self.start}-{self.stop} of {self.role}"


def current_round(run: Run) -> Round:
    """The last round whose test matrix is known: the one to be measured.

    Raises:
        CorruptError: If a shard of an earlier round, or the basis, is damaged.
    """
    *_, last = known_rounds(run)
    return last


def is_complete(run: Run) -> bool:
    """Whether all columns that are known by now are measured."""
    return not any(current_round(run).missing().values())


def missing_tasks(round_: Round, device: str, threads: int) -> list[MeasureTask]:
    """The blocks of a round of which something is not published yet, in order."""
    missing = round_.missing()
    directory = str(round_.run.directory.resolve())
    basis = str(round_.basis.file.path.resolve()) if round_.basis else None
    blocks = [(role, block) for role in round_.planned for block in round_.blocks(role)]
    return [
        MeasureTask(
            directory, round_.number, basis, role, piece.start, piece.stop, device, threads, number
        )
        for number, (role, block) in enumerate(blocks)
        for gap in missing[role]
        if len(piece := gap.common(block))
    ]


def open_product(run: Run, operator: Any, device: str) -> Product:
    """Adapts an operator and checks that its shape is the plan's.

    Raises:
        OperatorError: If it is not, or the operator is unusable.
    """
    product = Product(operator, run.plan.identity.dtype, device)
    if product.shape != run.plan.identity.shape:
        raise OperatorError(
            f"the operator has shape {product.shape}, the run was planned for "
            f"{run.plan.identity.shape}"
        )
    return product


def check_or_publish_fingerprint(run: Run, product: Product, threads: int) -> None:
    """Compares the operator with the run's fingerprint; the first process publishes it.

    Takes one product.

    Raises:
        DriftError: If the operator is another.
    """
    seed = run.plan.identity.seed
    stored = run.fingerprint()
    run.record("receipts", provenance(stage="fingerprint", products=1))
    with operator_threads(threads):
        if stored is None:
            run.publish_fingerprint(fingerprint_of(product, seed))
        else:
            check_fingerprint(product, seed, stored)


def checked_product(run: Run, operator: Any, device: str, threads: int) -> Product:
    """The operator, or what the run's factory builds, compared with the fingerprint.

    Raises:
        OperatorError: If it is unusable.
        DriftError: If it is another.
    """
    built = build_for_run(run, device) if operator is None else operator
    product = open_product(run, built, device)
    check_or_publish_fingerprint(run, product, threads)
    return product


@lru_cache(maxsize=1)
def _product_of_process(directory: str, run_id: str, device: str, threads: int) -> Product:
    """The operator of this process: built once, compared with the fingerprint once."""
    run = open_run(directory)
    assert run.plan.run_id == run_id
    return checked_product(run, None, device, threads)


def forget_operator() -> None:
    """Lets go of the operator of this process, whose memory is for the stages that follow."""
    _product_of_process.cache_clear()


@lru_cache(maxsize=4)
def _round_of_process(
    directory: str,
    run_id: str,
    amendments: int,
    number: int,
    basis: str | None,
) -> Round:
    """A round as a task names it; opened once in each process, and again when the plan grows."""
    run = open_run(directory)
    assert run.plan.run_id == run_id
    assert len(run.plan.amendments) >= amendments
    return Round(run, number, Basis(SealedFile(Path(basis))) if basis else None)


def perform(task: MeasureTask) -> Callable[[], dict[str, Any]]:
    """Does a task in any process; builds the operator there if need be.

    Returns:
        As :func:`perform_with`.
    """
    plan = open_run(task.run).plan
    amendments = len(plan.amendments)
    round_ = _round_of_process(task.run, plan.run_id, amendments, task.round, task.basis)
    if (known := _published_before(round_, task)) is not None:
        return lambda: known
    product = _product_of_process(task.run, plan.run_id, task.device, task.threads)
    return perform_with(round_, product, task)


def _published_before(round_: Round, task: MeasureTask) -> dict[str, Any] | None:
    """The receipt of a task that somebody has done who did not live to tell; else ``None``."""
    columns = Range(task.start, task.stop)
    rectangle = Rectangle(task.role, 0, columns, Range(0, round_.heights[task.role]))
    if not (round_.run.shards / rectangle.name).exists():
        return None
    return provenance(
        stage="measure", round=task.round, role=task.role, columns=[task.start, task.stop],
        products=0, published=False, task_seconds=0.0,
    )  # fmt: skip


def perform_with(
    round_: Round, product: Product, task: MeasureTask
) -> Callable[[], dict[str, Any]]:
    """Computes a task's block with an operator at hand.

    Returns:
        A function that publishes the block and returns the receipt.

    Raises:
        OperatorError: If the operator fails; the returned function, if its product is not finite.
        IncompleteError: The returned function, if the shard cannot be written.
    """
    run, plan = round_.run, round_.run.plan
    columns = Range(task.start, task.stop)
    adjoint = round_.adjoint if round_.basis else task.role == "left"
    start = time.perf_counter()
    block = _test_vectors(round_, task.role, columns)
    drawn = time.perf_counter()
    with operator_threads(task.threads):
        measured = product(block, adjoint=adjoint)
        if task.role == "inner":
            measured = _inner_product(plan, measured)
    applied = time.perf_counter()
    receipt = provenance(
        stage="measure",
        round=task.round,
        role=task.role,
        columns=[task.start, task.stop],
        products=len(columns),
        device=product.device,
        threads=task.threads,
        draw_seconds=round(drawn - start, 6),
        product_seconds=round(applied - drawn, 6),
    )

    def publish() -> dict[str, Any]:
        begin = time.perf_counter()
        rectangle = Rectangle(task.role, 0, columns, Range(0, len(measured)))
        published = publish_shard(run.shards, plan, rectangle, measured, receipt)
        return receipt | {
            "published": published,
            "write_seconds": round(time.perf_counter() - begin, 6),
            "task_seconds": round(time.perf_counter() - begin + applied - start, 6),
        }

    return publish


def _test_vectors(round_: Round, role: str, columns: Range) -> Array:
    """The columns of the test matrix that a task applies the operator to."""
    identity = round_.run.plan.identity
    if round_.basis is not None:
        height, width = identity.shape
        return round_.basis.read(Range(0, height if round_.adjoint else width), columns)
    name = test_matrix_of(round_.run.plan, role)
    rows = Range(0, height_of_noise(round_.run.plan, name))
    return draw(identity.noise[name], identity.seed, name, rows, columns, identity.dtype)


def _inner_product(plan: Plan, measured: Array) -> Array:
    """``Phi^H M`` for a block ``M`` of products: columns of the inner sketch, ``(s, b)``."""
    identity = plan.identity
    name = "inner-left"
    count = Range(0, plan.inner)
    wide = np.result_type(identity.dtype, np.float64)
    total = np.zeros((len(count), measured.shape[1]), wide)
    whole = identity.noise[name] in WHOLE_COLUMNS
    if whole:
        for piece in cut(count, COLUMNS_AT_ONCE):
            rows = Range(0, len(measured))
            phi = draw(identity.noise[name], identity.seed, name, rows, piece, wide)
            total[piece.slice] = phi.conj().T @ measured.astype(wide)
    else:
        for rows in plan.tiles(len(measured)):
            phi = draw(identity.noise[name], identity.seed, name, rows, count, wide)
            total += phi.conj().T @ measured[rows.slice].astype(wide)
    return total.astype(identity.dtype)


def measure(
    run: Run,
    executor: Executor,
    resources: Resources,
    progress: Progress,
    *,
    operator: Any = None,
    checked: Product | None = None,
    device: str | None = None,
    budget: Budget | None = None,
) -> bool:
    """Measures what is missing of the last round whose test matrix is known.

    Args:
        run: The run.
        executor: What runs the tasks.
        resources: Memory and threads of each measuring process.
        progress: Shows how far it is.
        operator: The operator, if it is at hand; else it is built from its factory.
        checked: The operator, already compared with the fingerprint in this process.
        device: Instead of the plan's.
        budget: When to stop.

    Returns:
        Whether all of it is measured now (``False``: stopped in good order by the budget).

    Raises:
        OperatorError: If the operator is unusable.
        DriftError: If it is not the one of the fingerprint.
        UsageError: If a block does not fit into the memory.
    """
    device = device or run.plan.device
    budget = budget or Budget()
    round_ = current_round(run)
    tasks = executor.chosen(missing_tasks(round_, device, resources.task_threads))
    if not tasks:
        return is_complete(run)
    work: Callable[[MeasureTask], Callable[[], dict[str, Any]]] = perform
    if executor.remote:
        if operator is not None or run.plan.identity.factory is None:
            raise UsageError(
                "other processes can only build an operator that a factory names: "
                'give operator.factory = "file.py:function" in the spec, or measure serially'
            )
    else:
        if checked is None:
            checked = checked_product(run, operator, device, resources.threads)
        _require_memory(run, tasks, resources)
        work = partial(perform_with, round_, checked)
    total = sum(task.stop - task.start for task in tasks)
    stage = "measure" if round_.number == 1 else f"measure round {round_.number}"
    itemsize = np.dtype(run.plan.identity.dtype).itemsize
    entries = sum((task.stop - task.start) * round_.heights[task.role] for task in tasks)
    with progress.stage(
        stage, total, "products", entries * itemsize / total, len(tasks)
    ) as advance:
        for receipt in executor.run(work, budget.while_unspent(tasks), resources.task_threads):
            budget.took(receipt["task_seconds"])
            run.record("receipts", receipt)
            start, stop = receipt["columns"]
            advance(stop - start)
    return not missing_tasks(round_, device, resources.task_threads)


def block_bytes(shape: tuple[int, int], itemsize: int) -> int:
    """Bytes that each column of a block needs in the measuring process.

    The test matrix, the product, and the block before it on its way to the disk; what the operator
    needs for itself comes on top.
    """
    height, width = shape
    return itemsize * max(width + 3 * height, height + 3 * width)


def _require_memory(run: Run, tasks: list[MeasureTask], resources: Resources) -> None:
    widest = max(task.stop - task.start for task in tasks)
    itemsize = np.dtype(run.plan.identity.dtype).itemsize
    needed = widest * block_bytes(run.plan.identity.shape, itemsize)
    needed += resident_memory() + SPARE_BYTES
    if needed > resources.memory:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: a block of {widest} columns "
            f"needs {format_bytes(needed)} besides what the operator needs for itself; give at "
            f"least --memory {ask_for(needed)}, or plan a new run with a smaller block"
        )
