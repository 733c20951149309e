"""Cost: estimates the products, bytes on disk, files, memory and hours of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.resources import (
    SPARE_BYTES,
    Resources,
    ask_for,
    format_bytes,
)
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.probe import Probe
from skerch_ooc.planning.disk import file_count, opened_bytes, partial_sums_bytes, result_bytes
from skerch_ooc.planning.krylov import likely_rounds
from skerch_ooc.planning.memory import (
    Reading,
    block_bytes,
    measure_bytes,
    shard_bytes,
    stage_bytes,
    stored_bytes,
    window_bytes,
    window_room,
)
from skerch_ooc.planning.methods import METHODS
from skerch_ooc.planning.parts import Part
from skerch_ooc.planning.plan import Cut, Plan
from skerch_ooc.planning.requests import Requests, requests_of
from skerch_ooc.planning.scaling import (
    FILE_SECONDS,
    WORKER_START,
    WRITE_RATE,
    Alike,
    useful_workers_of,
    wall_seconds,
)
from skerch_ooc.planning.sides import rows_of_part
from skerch_ooc.planning.sizes import sizes_of
from skerch_ooc.planning.spec import DEFAULT_BLOCK, ROLES, Spec
from skerch_ooc.planning.tasks import measure_tasks

ASSUMED_BASELINE = 512 * 1024**2
"""The resident memory of a process with its libraries, if no probe has measured it."""

LEAST_BASELINE = 64 * 1024**2
"""The resident memory of a process that has loaded neither torch nor an operator, at least."""

WORTH_A_TASK = 0.2
"""Seconds of products beside which the start of a task, and its file, are little."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of what a plan will cost.

    Attributes:
        products: Products of the measurements.
        probe_products: Products that the probe took.
        tasks: Measurement tasks, which is also the number of column shards.
        shard_bytes: Bytes of all column shards.
        result_bytes: Bytes of all other files, at most: sums, bases, results, and what files say
            of themselves.
        files: Files of the run, before any are removed; of ``krylov`` roughly.
        peak_bytes: Largest memory that each stage needs at least.
        seconds: Seconds of all products in one process, or of writing them where that takes
            longer; ``None`` without a probe.
        seconds_with: Seconds of measuring with 1, 4, 16, ... workers, as far as they are useful;
            ``None`` without a probe.
        useful_workers: The number of workers beyond which more do not help; ``None`` without a
            probe.
        likely: The same of as many rounds of ``krylov`` as most spectra take; ``None`` where these
            are not fewer than the most, or the number of rounds is given.
        partial_sums_bytes: Bytes of the partial sums among those of results.
        requests: Requests of each stage, of a run in an object store.
    """

    products: int
    probe_products: int
    tasks: int
    shard_bytes: int
    result_bytes: int
    files: int
    peak_bytes: dict[str, int]
    seconds: float | None
    seconds_with: dict[int, float] | None
    useful_workers: int | None
    likely: Estimate | None = None
    partial_sums_bytes: int = 0
    requests: dict[str, Requests] | None = None


def estimate(
    plan: Plan, probe: Probe | None, held: int | None = None, product: Product | None = None,
    far: Resources | None = None,
) -> Estimate:  # fmt: skip
    """Predicts what a plan will cost.

    Args:
        plan: The plan.
        probe: What the probe of its operator found, if there was one.
        held: Resident memory of a process that has the operator, if that is known.
        product: The operator, if it is loaded: what it comes to hold when it is applied counts.
        far: What a process may use, if the run lies in an object store.
    """
    baseline = SPARE_BYTES + (probe.baseline_bytes if probe else held or ASSUMED_BASELINE)
    likely = _likely(plan)
    found, *less = (
        _far(one, _estimate(one, probe, baseline, product), far)
        for one in (plan, likely)
        if one is not None
    )
    return replace(found, likely=less[0]) if less else found


def _far(plan: Plan, costs: Estimate, far: Resources | None) -> Estimate:
    """Adds what a run in an object store takes: memory of windows on shards, and requests."""
    if far is None:
        return costs
    windows = window_bytes(plan)
    peaks = {stage: peak + windows.get(stage, 0) for stage, peak in costs.peak_bytes.items()}
    left = window_room(max(windows["merge"], far.memory - costs.peak_bytes["merge"]))
    return replace(costs, peak_bytes=peaks, requests=requests_of(plan, left))


def _likely(plan: Plan) -> Plan | None:
    """Returns the plan with as many rounds as are likely; ``None`` if these are not fewer."""
    krylov, *before = plan.krylov, *plan.amendments
    if krylov is None or krylov.tolerance is None:
        return None
    rank = plan.recovery.rank
    rounds = likely_rounds(plan.identity.kind, int(rank), krylov.width)
    if rounds >= krylov.rounds:
        return None
    last = replace(before.pop(), krylov=replace(krylov, rounds=rounds))
    return Plan(plan.identity, (*before, last))


def _estimate(plan: Plan, probe: Probe | None, baseline: int, product: Product | None) -> Estimate:
    peaks = stage_bytes(plan)
    if product is not None:
        reading = Reading(product.slab_bytes, product.is_turned, terms=product.terms)
        peaks["measure"] = measure_bytes(plan, reading) + product.held_bytes
    if probe:
        widest = max(map(plan.widest, ROLES))
        # What an operator needs for each column of a block, or for the few that it applies at once.
        peaks["measure"] = max(peaks["measure"], widest * probe.column_bytes) + probe.inner_bytes
    # Both read the column shards, or hold their checksums.
    for stage in ("merge", "recover"):
        peaks[stage] += opened_bytes(plan)
    tasks = measure_tasks(plan)
    seconds_with = _seconds_with(plan, probe) if probe else None
    return Estimate(
        products=plan.products,
        probe_products=probe.products if probe else 1,
        tasks=tasks,
        shard_bytes=shard_bytes(plan),
        result_bytes=result_bytes(plan),
        files=file_count(plan),
        partial_sums_bytes=partial_sums_bytes(plan),
        peak_bytes={stage: baseline + needed for stage, needed in peaks.items()},
        seconds=seconds_with[1] if seconds_with else None,
        seconds_with=seconds_with,
        useful_workers=_useful_workers(plan, probe) if probe else None,
    )


def _rounds(plan: Plan, probe: Probe) -> list[list[Alike]]:
    """Lists the tasks of each round, which begins when the one before is done."""

    def tasks(*cuts: Cut) -> list[Alike]:
        return [alike for part in plan.parts for cut in cuts for alike in _alike(part, cut)]

    def _alike(part: Part, cut: Cut) -> Iterator[Alike]:
        # All blocks are equally wide but the last.
        whole, rest = divmod(len(cut.columns), cut.width)
        for columns, count in ((cut.width, whole), (rest, int(rest > 0))):
            products = part.weight * probe.seconds(columns) if count else 0.0
            # While a task applies the operator, a thread writes the products of the one before.
            yield Alike(max(products, _writing_seconds(plan, part, columns)), count)

    later = plan.cuts("right")
    if plan.krylov is not None:
        # As if all columns of the later rounds were those of one round.
        later = [Cut(0, plan.later_columns, plan.block_width)]
    first = [cut for role in ROLES for cut in plan.cuts(role)]
    return [tasks(*first)] + (plan.rounds - 1) * [tasks(*later)]


def _writing_seconds(plan: Plan, part: Part, columns: int) -> float:
    """Returns the seconds that writing a block takes, by a process that has the disk for itself."""
    rows = len(rows_of_part(plan, part, "right", plan.identity.shape[0]))
    return FILE_SECONDS + stored_bytes(plan, rows, columns) / WRITE_RATE


def _seconds(plan: Plan, probe: Probe, workers: int) -> float:
    """Returns the seconds of measuring; one worker is this process, which has started already."""
    rounds = _rounds(plan, probe)
    if workers == 1:
        return sum(alike.seconds * alike.count for tasks in rounds for alike in tasks)
    # Each worker compares its operator with the fingerprint, by one product.
    start = WORKER_START + probe.seconds(1)
    applying = sum(wall_seconds(tasks, workers) for tasks in rounds)
    # However many workers there are, they write to one disk.
    return start + max(applying, shard_bytes(plan) / WRITE_RATE)


def _useful_workers(plan: Plan, probe: Probe) -> int:
    useful = max(map(useful_workers_of, _rounds(plan, probe)))
    # Where all is done before other workers have started, none of them helps.
    return useful if _seconds(plan, probe, useful) < _seconds(plan, probe, 1) else 1


def _seconds_with(plan: Plan, probe: Probe) -> dict[int, float]:
    """Returns the seconds of measuring with 1, 4, 16, ... workers, as far as they are useful."""
    most = _useful_workers(plan, probe)
    counts = [4**i for i in range(most.bit_length()) if 4**i <= most]
    return {workers: _seconds(plan, probe, workers) for workers in counts}


def require_memory(costs: Estimate, resources: Resources) -> None:
    """Refuses a plan if one of its stages would not fit into the memory.

    Raises:
        UsageError: If a stage does not fit; it names the stage.
    """
    # Of rounds that may never come each stage refuses what does not fit.
    peaks = (costs.likely or costs).peak_bytes
    stage, needed = max(peaks.items(), key=lambda item: item[1])
    if needed > resources.memory:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: the stage {stage} needs "
            f"about {format_bytes(needed)}; give --memory {ask_for(needed)}, or fewer "
            "measurements" + (", or a smaller block" if stage == "measure" else "")
        )


def least_memory(plan: Plan) -> dict[str, int]:
    """Returns the memory of a process below which each stage is sure to refuse its work.

    That of the operator, and of torch where a stage loads it, comes on top.
    """
    held = LEAST_BASELINE + SPARE_BYTES
    found = {stage: held + needed for stage, needed in stage_bytes(plan).items()}
    opened = opened_bytes(plan)
    of_stages = {"measure": found["measure"], "merge": found["merge"] + opened}
    return of_stages | dict.fromkeys(("solve", "vectors", "assess"), found["recover"] + opened)


def choose_block(
    spec: Spec, shape: tuple[int, int], probe: Probe | None, resources: Resources
) -> int:
    """Chooses the width of blocks: as asked for, else what memory and time of a task allow.

    Raises:
        UsageError: If not even one column fits into the memory.
    """
    if spec.sketch.block != "auto":
        return int(spec.sketch.block)
    block = DEFAULT_BLOCK
    baseline = (probe.baseline_bytes if probe else ASSUMED_BASELINE) + SPARE_BYTES
    column = block_bytes(shape, spec.products_dtype)
    if probe:
        column = max(column, probe.column_bytes)
        baseline += probe.inner_bytes
        short = (n for n in range(block, 0, -1) if probe.seconds(n) <= spec.sketch.task_seconds)
        block = next(short, 1)
    fitting = (resources.memory - baseline) // column
    if fitting < 1:
        require_fitting(shape, baseline + column, resources)
    block = int(min(block, fitting))
    at_once = (probe and probe.columns_at_once) or 1
    if METHODS[spec.recovery.method].orthogonal:
        block = min(block, _share_of_round(spec, shape, probe, at_once))
    # A last inner call of fewer columns would take nearly as long as one of all.
    return block - block % at_once if block > at_once else block


def _share_of_round(spec: Spec, shape: tuple[int, int], probe: Probe | None, least: int) -> int:
    """Returns the columns of a task where all workers wait for the end of a narrow round.

    The round is halved as long as a task is worth starting, and an inner call stays full.
    """
    block = sizes_of(spec, shape).right
    while probe and block >= 2 * least and probe.seconds(-(-block // 2)) > WORTH_A_TASK:
        block = -(-block // 2)
    return block


def require_fitting(shape: tuple[int, int], needed: int, resources: Resources) -> None:
    """Refuses a memory into which not even one column fits.

    Raises:
        UsageError: If one column needs more; it states both amounts.
    """
    if needed > resources.memory:
        raise UsageError(
            f"memory = {format_bytes(resources.memory)} is too little: one column of "
            f"{shape[1]} x {shape[0]} needs {format_bytes(needed)}; "
            f"give at least --memory {ask_for(needed)}"
        )
