"""Measure: tasks draw columns of the test matrices, apply the operator, and publish shards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from skerch_ooc.base.arrays import Array, converted
from skerch_ooc.base.errors import IncompleteError, UsageError
from skerch_ooc.base.partition import Range
from skerch_ooc.base.progress import Advance, Meter, Stage, shares_heard
from skerch_ooc.base.provenance import provenance
from skerch_ooc.base.resources import (
    SPARE_BYTES,
    Resources,
    ask_for,
    format_bytes,
    operator_threads,
    peak_memory,
    resident_memory,
)
from skerch_ooc.executors.work import Work
from skerch_ooc.operators.adapters import Product
from skerch_ooc.planning.memory import Reading, block_bytes, rows_bytes
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import source_of
from skerch_ooc.stages.measure.missing import (
    Blocks,
    MeasureTask,
    MissingTasks,
    columns_of,
    missing_tasks,
)
from skerch_ooc.stages.measure.operands import Operands, operands_of, operands_of_process
from skerch_ooc.stages.measure.pace import foretold_seconds
from skerch_ooc.stages.measure.requests import (
    inner_product,
    is_adjoint_role,
    request_for,
    rows_given,
    test_vectors,
)
from skerch_ooc.store import names
from skerch_ooc.store.arrival import FILES, Arrivals, once_seen, open_grown
from skerch_ooc.store.rundir import Run, open_run
from skerch_ooc.store.shards import Rectangle, are_there, publish_shard, strip_of
from skerch_ooc.store.sketch import Round, known_rounds, publish_index

_ENDING_SECONDS = 10.0
"""So long a process that was asked to stop waits for files that show up late."""


@lru_cache(maxsize=4)
def _round_of_process(
    directory: str,
    run_id: str,
    amendments: int,
    number: int,
    basis: str | None,
) -> Round:
    """Opens a round that a task names; once in each process, and again when the plan grows."""
    # The id and the number of amendments are keys of the cache; what is read now may be newer.
    run = open_run(directory)
    assert run.plan.run_id == run_id
    assert len(run.plan.amendments) >= amendments
    return Round.at(run, number, basis)


def perform(task: MeasureTask) -> Callable[[], dict[str, Any]]:
    """Does a task in any process, and builds the operator there if it is not built yet.

    Returns:
        As :func:`perform_with`.

    Raises:
        OperatorError: If the operator cannot be built, or fails.
        DriftError: If the operator does not agree with the fingerprint.
    """
    plan = once_seen(task.run, lambda: open_grown(task.run, task.amendments)).plan
    amendments = len(plan.amendments)
    round_ = once_seen(
        task.run,
        lambda: _round_of_process(task.run, plan.run_id, amendments, task.round, task.basis),
    )
    if (known := _published_before(round_, task)) is not None:
        return lambda: known
    operands = operands_of_process(task.run, plan.run_id, amendments, task.device, task.threads)
    operands.receive(plan.parts[task.part], task.shipped)
    return perform_with(round_, operands, task)


def _published_before(round_: Round, task: MeasureTask) -> dict[str, Any] | None:
    """Returns a receipt without products if the task's shards are there; else ``None``.

    They are there if a worker published them and died before it could say so.
    """
    wanted = _rectangles(round_, task)
    if not are_there(round_.run.shards, wanted):
        return None
    receipt = _receipt(task, products=0, published=False, task_seconds=0.0)
    return receipt | {FILES: _files_of(wanted)}


def _rectangles(round_: Round, task: MeasureTask) -> list[Rectangle]:
    """Lists the rectangles of the shards that a task publishes."""
    plan = round_.run.plan
    part = plan.parts[task.part]
    return [
        strip_of(plan, part, role, columns, round_.heights[role])
        for role, start, stop in task.blocks
        if (columns := Range(start, stop))
    ]


def _files_of(rectangles: Iterable[Rectangle]) -> list[str]:
    """Lists the files of shards, relative to the run directory."""
    return [f"{names.SHARDS}/{rectangle.name}" for rectangle in rectangles]


def _receipt(task: MeasureTask, **more: Any) -> dict[str, Any]:
    """Makes the receipt of a task: what the log keeps of it."""
    blocks = [{"role": role, "columns": [start, stop]} for role, start, stop in task.blocks]
    what = blocks[0] if len(blocks) == 1 else {"blocks": blocks}
    part = {"part": task.part} if task.part else {}
    return provenance(stage="measure", round=task.round, **part, **what, **more)


def perform_with(
    round_: Round, operands: Operands, task: MeasureTask
) -> Callable[[], dict[str, Any]]:
    """Computes a task's blocks with an operator at hand.

    Returns:
        A function that publishes the blocks and returns the receipt.

    Raises:
        OperatorError: If the operator fails; from the returned function, if a product is not
            finite.
        DriftError: If the operator does not agree with the fingerprint.
        IncompleteError: From the returned function, if a shard cannot be written.
    """
    run, plan = round_.run, round_.run.plan
    part = plan.parts[task.part]
    product = operands.of(part)
    start = time.perf_counter()
    rectangles = _rectangles(round_, task)
    with operator_threads(task.threads):
        take = _taken_together if part.together else _taken_alone
        measured, drawn = take(round_, part, product, rectangles)
    applied = time.perf_counter()
    receipt = _receipt(
        task,
        products=task.columns,
        device=product.device,
        threads=task.threads,
        draw_seconds=round(drawn - start, 6),
        product_seconds=round(applied - drawn, 6),
    )

    noted = receipt | operands.origin(part)

    def publish() -> dict[str, Any]:
        begin = time.perf_counter()
        published = False
        for rectangle, block in zip(rectangles, measured, strict=True):
            published |= publish_shard(run.shards, plan, rectangle, block, noted)
        return receipt | {
            "published": published,
            "write_seconds": round(time.perf_counter() - begin, 6),
            "task_seconds": round(time.perf_counter() - begin + applied - start, 6),
            "peak_bytes": peak_memory(),
            FILES: _files_of(rectangles),
        }

    return publish


def _taken_alone(
    round_: Round, part: Part, product: Product, rectangles: list[Rectangle]
) -> tuple[list[Array], float]:
    """Measures the only block of a task; returns it, and when its test vectors were drawn."""
    ((role, columns),) = ((rectangle.role, rectangle.columns) for rectangle in rectangles)
    plan, adjoint = round_.run.plan, is_adjoint_role(round_, role)
    vectors = test_vectors(round_, role, rows_given(round_, part, role), columns)
    drawn = time.perf_counter()
    # What is to be added to other parts stays in double precision, and is rounded once at the end.
    partial = part.is_partial(adjoint=adjoint or role == "inner")
    measured = product(vectors, adjoint=adjoint, wide=partial)
    if role == "inner":
        rows = part.rows or Range(0, plan.identity.shape[0])
        measured = inner_product(plan, rows, measured)
        measured = measured if partial else converted(measured, plan.identity.dtype)
    return [measured], drawn


def _taken_together(
    round_: Round, part: Part, product: Product, rectangles: list[Rectangle]
) -> tuple[list[Array], float]:
    """Measures all blocks of a task in one pass over the operator's rows.

    Returns:
        The blocks, and when their test vectors were ready.
    """
    requests = [request_for(round_, rectangle) for rectangle in rectangles]
    drawn = time.perf_counter()
    rows: Any = product
    return rows.sketch(requests, wide=part.is_piece), drawn


def measure(
    run: Run, work: Work, *, operator: Any = None, operands: Operands | None = None
) -> bool:
    """Measures what is missing of the last round whose test matrix is known.

    Args:
        run: The run.
        work: What runs the tasks, with which resources, on which device, and until when.
        operator: The operator, if it is at hand; else it is built from its factory.
        operands: The operator, if it was built or compared in this process already.

    Returns:
        Whether all of it is measured now (``False``: stopped in good order by the budget).

    Raises:
        OperatorError: If the operator is unusable.
        DriftError: If the operator does not agree with the fingerprint.
        UsageError: If a block does not fit into the memory, or other processes cannot build the
            operator.
        IncompleteError: If a shard cannot be written, or one that was published is not seen here.
    """
    device = work.device or run.plan.device
    resources, executor, budget = work.resources, work.executor, work.budget
    *_, round_ = known_rounds(run)
    tasks = missing_tasks(round_, device, resources.task_threads, executor.share)
    if not tasks:
        return executor.share[1] == 1 or round_.is_measured()
    _require_planned_memory(round_, tasks, resources)
    function: Callable[[MeasureTask], Callable[[], dict[str, Any]]] = perform
    if executor.remote:
        tasks = _as_sent(tasks, operator)
    else:
        if operands is None:
            operands = operands_of(run, work, operator)
        # Built before memory is looked at: what it holds is part of it.
        product = operands.of(run.plan.parts[tasks.stretches[0].part])
        _require_memory(round_, tasks, product, resources)
        function = partial(perform_with, round_, operands)
    done, arrivals = 0, Arrivals(run.directory)
    with work.progress.entered(_stage_of(round_, tasks, executor.workers)) as advance:
        told = function if executor.remote else _told(function, advance)
        for receipt in executor.run(told, budget.while_unspent(tasks), resources.task_threads):
            budget.took(receipt["task_seconds"])
            done += 1
            run.record("receipts", receipt)
            arrivals.note(receipt)
            blocks = receipt.get("blocks", [receipt])
            advance(sum(stop - start for start, stop in (block["columns"] for block in blocks)))
        stopped = done < len(tasks)
        arrivals.wait(_ENDING_SECONDS if stopped else None)
    if not stopped:
        _require_kept(missing_tasks(round_, device, resources.task_threads, executor.share))
    # For all processes that merge, which may begin at the same moment, if nothing is missing.
    publish_index(round_)
    # Where all tasks are this process's, what is gone again by now is for the merge to say.
    whole = not stopped and executor.share[1] == 1
    return whole or not missing_tasks(round_, device, resources.task_threads)


def _told(
    function: Callable[[MeasureTask], Callable[[], dict[str, Any]]], advance: Advance
) -> Callable[[MeasureTask], Callable[[], dict[str, Any]]]:
    """Returns a function of this process that also says how many columns it has computed."""
    if not isinstance(advance, Meter):
        return function
    before = 0

    def with_shares(task: MeasureTask) -> Callable[[], dict[str, Any]]:
        nonlocal before
        with shares_heard(lambda share: advance.computed(before + share * task.columns)):
            finish = function(task)
        before += task.columns
        advance.computed(before)
        return finish

    return with_shares


def _stage_of(round_: Round, tasks: MissingTasks, workers: int) -> Stage:
    """Describes the stage of some tasks, for people."""
    plan, total = round_.run.plan, sum(tasks.columns.values())
    name = "measure" if round_.number == 1 else f"measure round {round_.number}"
    heights = {(strip.part, strip.role): len(strip.rows) for strip in round_.strips}
    entries = sum(heights[place] * count for place, count in tasks.columns.items())
    noun = "products of parts" if any(part.is_piece for part in plan.parts) else "products"
    size = entries * np.dtype(plan.identity.dtype).itemsize / total
    first = plan.parts[tasks.stretches[0].part]
    seconds = foretold_seconds(round_.run) if plan.summands == 1 else None
    pace = workers / (seconds * first.weight) if seconds else 0.0
    return Stage(name, total, noun, size, len(tasks), pace, workers)


def _require_kept(again: MissingTasks) -> None:
    """Refuses to end well if shards are gone that have been there a moment ago.

    Raises:
        IncompleteError: If some are.
    """
    if again:
        run = again.round.run
        first, *_ = again
        raise IncompleteError(
            f"{len(again)} task(s) are done, and what they published is gone again: {first}; look "
            f"what removes files from {run.shards}, then: {run.how_to_measure(first.part)}"
        )


def _as_sent(tasks: MissingTasks, operator: Any) -> MissingTasks:
    """Returns tasks as other processes get them, which can only call factories.

    Raises:
        UsageError: If a factory does not name every operator that they apply.
    """
    plan = tasks.round.run.plan
    sources = (source_of(plan, plan.parts[number]) for number in tasks.parts)
    if operator is not None or any(source.factory is None for source in sources):
        raise UsageError(
            "other processes can only build an operator that a factory names: "
            'give operator.factory = "file.py:function" in the spec, or measure serially'
        )
    return tasks.with_factories()


def _require_planned_memory(round_: Round, tasks: MissingTasks, resources: Resources) -> None:
    """Refuses less memory than the plan foretold for a block.

    Only the probe at plan time has seen what the operator needs for itself.

    Raises:
        UsageError: With both amounts.
    """
    for record in round_.run.log("plan"):
        needed: object = record
        for key in ("estimate", "peak_bytes", "measure"):
            # A log may hold anything.
            needed = needed.get(key) if isinstance(needed, dict) else None
        if isinstance(needed, int) and needed > resources.memory:
            raise UsageError(
                f"memory = {format_bytes(resources.memory)} is too little: a block of "
                f"{columns_of(tasks.widest)} columns needs about {format_bytes(needed)}, as was "
                f"said when the run was planned; give at least --memory {ask_for(needed)}, or plan "
                "a new run with this memory, which makes blocks smaller"
            )


def _require_memory(
    round_: Round, tasks: MissingTasks, product: Product, resources: Resources
) -> None:
    widest = tasks.widest
    terms = round_.run.plan.parts[tasks.stretches[0].part].terms
    count = product.terms if terms is None else len(terms)
    reading = Reading(product.slab_bytes, product.is_turned, len(tasks) == 1, count)
    task = SPARE_BYTES + _task_bytes(round_, widest, product, reading)
    needed = task + resident_memory(task, resources.memory)
    if needed > resources.memory:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: a block of "
            f"{columns_of(widest)} columns needs {format_bytes(needed)} besides what the operator "
            "needs for itself; "
            f"give at least --memory {ask_for(needed)}, or plan a new run with a smaller block"
        )


def _task_bytes(round_: Round, blocks: Blocks, product: Product, reading: Reading) -> int:
    """Returns the bytes of a task of some blocks, without what the operator needs for itself."""
    identity = round_.run.plan.identity
    if not product.together:
        return columns_of(blocks) * block_bytes(identity.shape, identity.dtype)
    columns: Counter[str] = Counter()
    for role, start, stop in blocks:
        columns["left" if is_adjoint_role(round_, role) else role] += stop - start
    size = (product.shape[0], identity.shape[1])
    return rows_bytes(size, identity.dtype, columns, reading) + product.held_bytes
