"""Eigenvectors from a sketch on disk, against dask's SVD of the same data, in turn.

Ours: ``skerch-ooc merge`` and ``recover``, each in a process of its own, with its start; the
vectors are written, synced, and read back. Dask: ``dask.array.linalg.svd`` (tall-skinny QR) on a
local cluster of two workers of one thread each. It reads one plain HDF5 file in which the sketch
lies row by row (the making of which is not counted), and writes as many left singular vectors as
ours has, one .npy file for each chunk, not synced. The page cache may serve both.

Usage: python workflows/benchmarks/recovery.py --repeats 3 --json recovery.json
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

TESTS = 10
SHARDS = 16
DECADES = 2.4
MEMORY = "1GiB"
DASK_WORKERS = 2
DASK_MEMORY = 3 * 10**9


def write_by_rows(run_dir: str, target: str) -> dict[str, Any]:
    """Copies the column shards of the right sketch into one plain HDF5 file."""
    import h5py

    with contextlib.ExitStack() as stack, h5py.File(target, "w") as out:
        paths = Path(run_dir, "shards").glob("right.*.h5")
        by_column = sorted(paths, key=lambda path: int(path.name.split(".c")[1].split("-")[0]))
        sources = [stack.enter_context(h5py.File(path, "r"))["right"] for path in by_column]
        rows = sources[0].shape[0]
        data = out.create_dataset("right", (rows, sum(s.shape[1] for s in sources)), "float32")
        for start in range(0, rows, 1 << 16):
            here, position = slice(start, min(start + (1 << 16), rows)), 0
            for source in sources:
                data[here, position : position + source.shape[1]] = source[here]
                position += source.shape[1]
    return {}


def read_rows(path: str, start: int, stop: int) -> Any:
    """Rows of the plain HDF5 file."""
    import h5py

    with h5py.File(path, "r") as file:
        return file["right"][start:stop]


def write_block(path: str, block: Any) -> int:
    """Writes a block of the vectors, and returns its bytes."""
    import numpy as np

    np.save(path, block)
    return int(block.nbytes)


def dask_svd(
    source: str, target: str, rows: int, columns: int, rank: int, chunk_rows: int, memory: int
) -> dict[str, Any]:
    """Decomposes the plain HDF5 file by dask; writes the leading left singular vectors."""
    # dask has types for some of what it exports only.
    dask, da, distributed = map(importlib.import_module, ("dask", "dask.array", "distributed"))
    folder = Path(target)
    with (
        dask.config.set({"temporary-directory": str(folder / "spilled")}),
        distributed.LocalCluster(
            n_workers=DASK_WORKERS, threads_per_worker=1, memory_limit=memory // DASK_WORKERS,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster),
    ):  # fmt: skip
        start = time.perf_counter()
        read = dask.delayed(read_rows, pure=True)
        blocks = []
        for first in range(0, rows, chunk_rows):
            last = min(first + chunk_rows, rows)
            block = read(source, first, last)
            blocks.append(da.from_delayed(block, (last - first, columns), "float32"))
        u, s, _ = da.linalg.svd(da.concatenate(blocks))
        write = dask.delayed(write_block, pure=False)
        written = [
            write(str(folder / f"{number}.npy"), block)
            for number, block in enumerate(u[:, :rank].to_delayed()[:, 0])
        ]
        sizes, values = dask.compute(written, s)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": sum(sizes), "largest": float(values[0])}


def ours(run_dir: Path, threads: int, warm: bool) -> dict[str, Any]:
    """Merges and recovers; returns what that took, and the figures of the result."""
    options = ("--memory", MEMORY, "--threads", threads)
    merge = common.run_cli("merge", run_dir, *options, threads=threads, warm=warm)
    recover = common.run_cli("recover", run_dir, *options, threads=threads, warm=warm)
    assessment = json.loads(common.run_cli("assess", run_dir, "--json", threads=threads).output)
    return {
        "wall": merge.wall + recover.wall,
        "peak": max(merge.peak, recover.peak),
        "merge": merge.figures(),
        "recover": recover.figures(),
        "rank": assessment["rank"],
        "relative_error": assessment["relative_error"],
        "orthogonality": assessment["orthogonality"],
    }


def compare(options: Any, folder: Path) -> dict[str, Any]:
    """Makes the sketch, decomposes it by both in turn, and returns all figures."""
    rows, columns, threads = options.rows, options.columns, options.threads
    spec, run_dir, plain = folder / "spec.toml", folder / "run", folder / "right.h5"
    block = max(1, columns // SHARDS)
    common.write_spec(spec, rows, columns, TESTS, block, max(1, columns * 15 // 16), DECADES)
    common.say("making the sketch")
    common.run_cli("plan", spec, "--run", run_dir, threads=threads)
    common.run_cli("measure", run_dir, "--threads", threads, threads=threads)
    common.run_part(__file__, write_by_rows, threads, run_dir=str(run_dir), target=str(plain))
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "dask": []}
    for number in range(options.repeats):
        common.clear(run_dir / "sketch", run_dir / "results")
        mine = ours(run_dir, threads, options.warm)
        runs["ours"].append(mine)
        common.say(f"{number + 1}: ours {mine['wall']:.1f} s, {mine['peak'] / 1e9:.2f} GB")
        common.clear(run_dir / "results")
        target = folder / "u"
        target.mkdir()
        child, figures = common.run_part(
            __file__, dask_svd, 1, options.warm, source=str(plain), target=str(target),
            rows=rows, columns=columns, rank=mine["rank"], chunk_rows=options.chunk_rows,
            memory=options.dask_memory,
        )  # fmt: skip
        runs["dask"].append(child.figures() | figures)
        common.say(f"{number + 1}: dask {child.wall:.1f} s, {child.peak / 1e9:.2f} GB")
        common.clear(target)
        target.rmdir()
    keys = ("wall", "user", "system", "peak")
    medians = {
        "merge": common.median_of([run["merge"] for run in runs["ours"]]),
        "recover": common.median_of([run["recover"] for run in runs["ours"]]),
        "dask": common.median_of([{key: run[key] for key in keys} for run in runs["dask"]]),
        "ours": common.median_of([{key: run[key] for key in keys[::3]} for run in runs["ours"]]),
    }
    wall_ratio = common.median_ratio(*([run["wall"] for run in runs[who]] for who in runs))
    goals = [
        common.Goal("wall, ours / dask", wall_ratio, "<=", 0.2),
        common.Goal("our peak memory, GB", medians["ours"]["peak"] / 1e9, "<=", 1.2),
    ]
    return {
        "settings": {
            "rows": rows, "columns": columns, "tests": TESTS, "threads": threads,
            "memory": MEMORY, "chunk_rows": options.chunk_rows, "dask_memory": options.dask_memory,
        },
        "medians": medians,
        "goals": {goal.name: goal.as_json() for goal in goals},
        "runs": runs,
        "text": table(medians, runs["ours"][-1]) + "\n\n" + common.goal_table(goals),
    }  # fmt: skip


def table(medians: dict[str, dict[str, float]], last: dict[str, Any]) -> str:
    """The medians, for people."""
    rows = [
        [name] + [_cell(medians[who].get(key), scale, form) for who in medians]
        for name, key, scale, form in (
            ("wall, s", "wall", 1, ".1f"),
            ("user, s", "user", 1, ".1f"),
            ("system, s", "system", 1, ".1f"),
            ("peak memory, GB", "peak", 1e-9, ".2f"),
        )
    ]
    figures = (
        f"rank {last['rank']}, relative error {last['relative_error']:.1e}, "
        f"||U^H U - I||_F {last['orthogonality']:.1e}"
    )
    return common.text_table(["", *medians], rows) + "\n" + figures


def _cell(value: float | None, scale: float, form: str) -> str:
    return "" if value is None else format(value * scale, form)


def main() -> None:
    """Reads the command line and runs the comparison."""
    if common.serve_part([write_by_rows, dask_svd]):
        return
    parser = common.argument_parser(__doc__, rows=4_000_000, columns=256, repeats=3)
    parser.add_argument("--chunk-rows", type=int, default=10_000, help="of dask's arrays, 10000")
    parser.add_argument("--dask-memory", type=int, default=DASK_MEMORY, help="bytes, all workers")
    options = parser.parse_args()
    # Shards, the plain file, the larger of both results; dask spills about as much again.
    needed = 5 * 4 * options.rows * (options.columns + TESTS) + 10**8
    with common.scratch(options.folder, needed) as folder:
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
