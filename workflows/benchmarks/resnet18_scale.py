"""All stages at the size of ResNet-18's Hessian, and what 1500 measurements would cost.

The operator costs next to nothing and has a known spectrum, so that what is timed is the storage
and the recovery, each stage by ``skerch-ooc`` in a process of its own with ``--memory 4GiB``.

The cost at 1500 measurements is found in two ways, and both are printed:

* *fit*: a stage takes ``a m + b m^2`` seconds at ``m`` measurements; ``b`` from the rate at which
  this machine multiplies in double precision, ``a`` from what is left of the measured seconds;
* *slab*: the stages are run at 1500 measurements on few of the rows, at two heights, and scaled.

Published for the same size (k 1500, s 3000, 16 CPUs, 400 GB of memory; measuring and the error
test left out): 647 to 879 minutes for merge, QR and core (arXiv 2504.14701).

Usage: python workflows/benchmarks/resnet18_scale.py --json resnet18_scale.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common
from workflows.benchmarks.storage import rechunk_only

TESTS = 20
SHARDS = 16
DECADES = 3.0
MEMORY = "4GiB"
GOAL_COLUMNS = 1500
LEADING = 50
PUBLISHED_MINUTES = (647, 879)
PUBLISHED_GIGABYTES = 400
SLABS = 64


def bare_products(rows: int, columns: int, cores: int) -> dict[str, Any]:
    """Seconds of the products of all rows at this width, from those of a few tiles."""
    return common.gemm_seconds(rows, columns, cores, tiles=16)


def eigenvalues(run_dir: str) -> dict[str, Any]:
    """The eigenvalues that were recovered."""
    import skerch_ooc as ooc

    result = ooc.recover(ooc.open_run(run_dir))
    assert isinstance(result, ooc.Eigh)
    return {"values": result.eigenvalues.double().tolist()}


def run_stages(
    folder: Path, rows: int, columns: int, threads: int, complete: bool, warm: bool
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Runs the stages on a run of its own.

    Args:
        folder: For its files.
        rows: Height and width of the operator.
        columns: Measurements.
        threads: Of each stage.
        complete: Whether it is rechunked and assessed, too.
        warm: Whether free memory is touched before each stage.

    Returns:
        What each stage took, with the bytes that it reads and writes; and the figures of the
        result, if it is complete.
    """
    rank = max(1, columns * 9 // 10)
    folder.mkdir()
    spec, run_dir = folder / "spec.toml", folder / "run"
    block = max(1, -(-columns // max(SHARDS, -(-columns // 19))))
    common.write_spec(spec, rows, columns, TESTS, block, rank, DECADES)
    options = ("--memory", MEMORY, "--threads", threads)
    stages: dict[str, dict[str, float]] = {}

    def stage(name: str, child: common.Child, size: int) -> None:
        stages[name] = child.figures() | {"bytes": size}
        common.say(f"  {name}: {child.wall:.1f} s, {child.peak / 1e9:.2f} GB")

    stage("plan", common.run_cli("plan", spec, "--run", run_dir, *options, threads=threads), 0)
    child = common.run_cli("measure", run_dir, *options, threads=threads, warm=warm)
    sketch = common.folder_bytes(run_dir / "shards")
    stage("measure", child, sketch)
    if complete:
        child, _ = common.run_part(
            __file__, rechunk_only, threads, warm, run_dir=str(run_dir), cores=threads
        )
        stage("rechunk", child, sketch)
        common.clear(run_dir / "sketch")
    child = common.run_cli("merge", run_dir, *options, threads=threads, warm=warm)
    stage("merge", child, sketch)
    child = common.run_cli("recover", run_dir, *options, threads=threads, warm=warm)
    stage("recover", child, sketch + common.folder_bytes(run_dir / "results"))
    if not complete:
        return stages, {}
    child = common.run_cli("assess", run_dir, "--json", threads=threads)
    stage("assess", child, 0)
    assessment = json.loads(child.output)
    _, found = common.run_part(__file__, eigenvalues, threads, run_dir=str(run_dir))
    truth = common.known_eigenvalues(rank, DECADES)
    leading = [abs(a - b) / abs(b) for a, b in zip(found["values"], truth, strict=False)]
    return stages, {
        "relative_error": assessment["relative_error"],
        "orthogonality": assessment["orthogonality"],
        "rank": assessment["rank"],
        "true_rank": rank,
        "eigenvalue_error": max(leading[:LEADING]),
        "disk_bytes": common.folder_bytes(run_dir),
    }


def fit(
    stages: dict[str, dict[str, float]], products: dict[str, float], columns: int, goal: int
) -> dict[str, dict[str, float]]:
    """Extrapolates by ``a m + b m^2``.

    Args:
        stages: What was measured at ``columns``.
        products: Seconds of bare products at ``goal`` columns, all rows.
        columns: Measurements of the run.
        goal: Measurements that are extrapolated to.
    """
    squares = {"merge": products["gram"] + products["cross"], "recover": products["cross"]}
    fitted = {}
    for name in ("rechunk", "merge", "recover"):
        b = squares.get(name, 0.0) / goal**2
        a = max(0.0, stages[name]["wall"] / columns - b * columns)
        seconds = a * goal + b * goal**2
        fitted[name] = {"a": a, "b": b, "minutes": seconds / 60}
    return fitted


def slabs(folder: Path, rows: int, columns: int, threads: int, parts: int) -> dict[str, Any]:
    """Extrapolates from runs of all ``columns`` at few rows: two heights, a line through them."""
    heights = [max(columns, rows // parts), max(columns, rows // parts // 4)]
    taken = []
    for height in heights:
        common.say(f"a slab of {height} x {columns}")
        stages, _ = run_stages(
            folder / f"slab-{height}", height, columns, threads, complete=False, warm=False
        )
        taken.append(stages)
        common.remove(folder / f"slab-{height}")
    minutes = {}
    for name in ("merge", "recover"):
        high, low = (stages[name]["wall"] for stages in taken)
        slope = max(0.0, high - low) / max(1, heights[0] - heights[1])
        minutes[name] = (low + slope * (rows - heights[1])) / 60
    peak = max(stages[name]["peak"] for stages in taken for name in minutes)
    return {"heights": heights, "minutes": minutes, "peak": peak, "stages": taken}


def scale(options: Any, folder: Path) -> dict[str, Any]:
    """Runs all and returns all figures."""
    rows, columns, goal, threads = options.rows, options.columns, options.goal, options.threads
    runs = []
    for number in range(options.repeats):
        common.say(f"run {number + 1} of {options.repeats}: {rows} x {columns}")
        runs.append(
            run_stages(folder / "run", rows, columns, threads, complete=True, warm=options.warm)
        )
        common.remove(folder / "run")
    stages = {name: common.median_of([run[0][name] for run in runs]) for name in runs[0][0]}
    result = runs[-1][1]
    _, products = common.run_part(
        __file__, bare_products, threads, rows=rows, columns=goal, cores=threads
    )
    fitted = fit(stages, products, columns, goal)
    slab = slabs(folder, rows, goal, threads, options.slabs) if options.slabs else None
    minutes = sum(figures["minutes"] for figures in fitted.values())
    peak = max(stage["peak"] for stage in stages.values())
    rechunk = stages["rechunk"]["bytes"] / stages["rechunk"]["wall"] / 1e9
    goals = [
        common.Goal("bare rechunking, GB/s", rechunk, ">=", 0.4),
        common.Goal("peak memory, GiB", peak / 2**30, "<=", 4.0),
        common.Goal(f"minutes at {goal} measurements, fit", minutes, "<=", 60.0),
    ]
    return {
        "settings": {
            "rows": rows, "columns": columns, "tests": TESTS, "memory": MEMORY,
            "threads": threads, "goal": goal,
        },
        "stages": stages,
        "result": result,
        "bare_products": products,
        "fit": fitted,
        "fit_minutes": minutes,
        "slab": slab,
        "published": {"minutes": PUBLISHED_MINUTES, "gigabytes": PUBLISHED_GIGABYTES},
        "goals": {each.name: each.as_json() for each in goals},
        "runs": [{"stages": run[0], "result": run[1]} for run in runs],
        "text": "\n\n".join(
            [stage_table(stages, result), goal_minutes(fitted, slab, products, goal),
             common.goal_table(goals)]
        ),
    }  # fmt: skip


def stage_table(stages: dict[str, dict[str, float]], result: dict[str, Any]) -> str:
    """The stages and the quality of the result, for people."""
    rows = [
        [
            name,
            f"{stage['wall'] / 60:.2f}",
            f"{stage['bytes'] / 1e9:.2f}",
            f"{stage['bytes'] / stage['wall'] / 1e9:.3f}" if stage["bytes"] else "",
            f"{stage['user']:.1f}",
            f"{stage['system']:.1f}",
            f"{stage['peak'] / 1e9:.2f}",
        ]
        for name, stage in stages.items()
    ]
    head = ["", "minutes", "GB", "GB/s", "user, s", "system, s", "peak, GB"]
    return common.text_table(head, rows) + (
        f"\nrelative error {result['relative_error']:.1e}, of each of the leading {LEADING} "
        f"eigenvalues at most {result['eigenvalue_error']:.1e}"
        f"\nrank {result['rank']} (in truth {result['true_rank']}), "
        f"||U^H U - I||_F {result['orthogonality']:.1e}, "
        f"{result['disk_bytes'] / 1e9:.1f} GB on disk"
    )


def goal_minutes(
    fitted: dict[str, dict[str, float]], slab: dict[str, Any] | None, products: dict[str, float],
    goal: int,
) -> str:  # fmt: skip
    """The extrapolations beside the published figures, for people."""
    rows = []
    for name, figures in fitted.items():
        scaled = slab["minutes"].get(name) if slab else None
        rows.append([name, f"{figures['minutes']:.1f}", "" if scaled is None else f"{scaled:.1f}"])
    total = [f"{sum(figures['minutes'] for figures in fitted.values()):.1f}"]
    total.append(f"{sum(slab['minutes'].values()):.1f}" if slab else "")
    rows.append(["all", *total])
    low, high = PUBLISHED_MINUTES
    text = common.text_table([f"minutes at {goal}", "fit", "slab"], rows)
    text += f"\npublished: {low} to {high} minutes, {PUBLISHED_GIGABYTES} GB of memory, 16 CPUs"
    if slab:
        text += f"\npeak memory of the slabs {slab['peak'] / 1e9:.2f} GB"
    return text + f"\ndouble precision products at {products['gflops']:.0f} GFLOP/s"


def main() -> None:
    """Reads the command line and runs the stages."""
    if common.serve_part([bare_products, eigenvalues, rechunk_only]):
        return
    parser = common.argument_parser(__doc__, rows=11_689_512, columns=300, repeats=1)
    parser.add_argument("--goal", type=int, default=GOAL_COLUMNS, help="extrapolate to this, 1500")
    parser.add_argument(
        "--slabs", type=int, default=SLABS, help="part of the rows in a slab, 64; 0 for no slab"
    )
    options = parser.parse_args()
    # The shards, and the row shards or the vectors.
    needed = 2 * 4 * options.rows * (options.columns + TESTS)
    if options.slabs:
        height = max(options.goal, options.rows // options.slabs)
        needed = max(needed, 2 * 4 * height * (options.goal + TESTS))
    with common.scratch(options.folder, needed + 2 * 10**8) as folder:
        figures = scale(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
