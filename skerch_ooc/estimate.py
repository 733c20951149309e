"""What a plan will cost: products, bytes on disk, files, memory, and, after a probe, hours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skerch_ooc.errors import UsageError
from skerch_ooc.operators.probe import Probe
from skerch_ooc.resources import Resources, ask_for, format_bytes
from skerch_ooc.spec import DEFAULT_BLOCK, ROLES, Plan, Spec
from skerch_ooc.stages.accumulate import sums_bytes
from skerch_ooc.stages.measure import block_bytes
from skerch_ooc.stages.merge import RECHUNK_ABOVE, merge_bytes
from skerch_ooc.stages.recover import solve_bytes, vectors_bytes
from skerch_ooc.streams import SPARE_BYTES

ASSUMED_BASELINE = 512 * 1024**2
"""Resident memory of a process with its libraries, where no probe has measured it."""


@dataclass(frozen=True)
class Estimate:
    """What a plan will cost.

    Attributes:
        products: Products of the measurements.
        probe_products: Products that the probe took.
        tasks: Measurement tasks, which is also the number of column shards.
        shard_bytes: Bytes of all column shards.
        result_bytes: Bytes of sums and results, at most.
        files: Files of the run, roughly.
        peak_bytes: Largest memory that each stage needs at least.
        seconds: Seconds of all products in one process; ``None`` without a probe.
    """

    products: int
    probe_products: int
    tasks: int
    shard_bytes: int
    result_bytes: int
    files: int
    peak_bytes: dict[str, int]
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return asdict(self)


def estimate(plan: Plan, probe: Probe | None) -> Estimate:
    """Predicts what a plan will cost."""
    height = plan.identity.shape[0]
    itemsize = np.dtype(plan.identity.dtype).itemsize
    baseline = (probe.baseline_bytes if probe else ASSUMED_BASELINE) + SPARE_BYTES
    blocks = [block for role in ROLES for block in plan.blocks(role)]
    widest = max(len(block) for block in blocks)
    operator_bytes = probe.column_bytes if probe else 0
    right = plan.reach("right")
    rank = right if plan.recovery.rank == "all" else min(right, int(plan.recovery.rank))
    shard_bytes = height * plan.products * itemsize
    rechunked = shard_bytes if len(blocks) > RECHUNK_ABOVE else 0
    return Estimate(
        products=plan.products,
        probe_products=probe.products if probe else 1,
        tasks=len(blocks),
        shard_bytes=shard_bytes,
        result_bytes=rechunked + sums_bytes(plan) + height * rank * itemsize,
        files=len(blocks) + 8,
        peak_bytes={
            "measure": baseline
            + widest * max(block_bytes(plan.identity.shape, itemsize), operator_bytes),
            "merge": baseline + sum(merge_bytes(plan)),
            "recover": baseline + max(solve_bytes(plan), sum(vectors_bytes(plan, rank))),
        },
        seconds=sum(probe.seconds(len(block)) for block in blocks) if probe else None,
    )


def require_memory(costs: Estimate, resources: Resources) -> None:
    """Refuses a plan of which a stage would not fit.

    Raises:
        UsageError: Naming the stage.
    """
    stage, needed = max(costs.peak_bytes.items(), key=lambda item: item[1])
    if needed > resources.memory:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: the stage {stage} needs "
            f"about {format_bytes(needed)}; give --memory {ask_for(needed)}, or fewer "
            "measurements" + (", or a smaller block" if stage == "measure" else "")
        )


def choose_block(
    spec: Spec, shape: tuple[int, int], probe: Probe | None, resources: Resources
) -> int:
    """The width of blocks: as asked for, else what memory and time of a task allow.

    Raises:
        UsageError: If not even one column fits into the memory.
    """
    if spec.sketch.block != "auto":
        return int(spec.sketch.block)
    block = DEFAULT_BLOCK
    baseline = (probe.baseline_bytes if probe else ASSUMED_BASELINE) + SPARE_BYTES
    column = block_bytes(shape, np.dtype(spec.dtype).itemsize)
    if probe:
        column = max(column, probe.column_bytes)
        if probe.column_seconds > 0:
            time_left = spec.sketch.task_seconds - probe.call_seconds
            block = min(block, max(1, int(time_left / probe.column_seconds)))
    fitting = (resources.memory - baseline) // column
    if fitting < 1:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: one column of "
            f"{shape[1]} x {shape[0]} needs {format_bytes(baseline + column)}"
        )
    return int(min(block, fitting))
