"""Writing, rechunking and merging a sketch, against skerch's HDF5 layer, copies and bare products.

* *write*: blocks of columns in memory become checked, synced shards; or the files of skerch's
  ``DistributedHDF5Tensor`` (in its own layout, with its defaults; also without its compression);
  or, by a plain copy with fsync, files of as many bytes.
* *rechunk*: many column shards become row shards; the reference merges as many files of its own
  into one; the copy is the same as above.
* *merge*: row shards and Gram matrices in one stream, against the larger of the rechunking alone
  and bare double-precision products of the same size on data in the cache.

Each is timed inside of a process of its own, in turn; the start of the process is not counted.
What is read may be in the page cache, for all.

Usage: python workflows/benchmarks/storage.py --repeats 3 --json storage.json
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

WRITE_COLUMNS = 128
MEMORY = "2GiB"


def random_block(rows: int, columns: int) -> Any:
    """A block that no compression makes smaller, as those of a sketch."""
    import numpy as np

    return np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32)


def write_shards(run_dir: str, target: str, columns: int, block: int) -> dict[str, Any]:
    """Writes all columns as shards."""
    from skerch_ooc import open_run
    from skerch_ooc.base.partition import Range
    from skerch_ooc.store.shards import Rectangle, publish_shard

    plan = open_run(run_dir).plan
    rows = plan.identity.shape[0]
    array = random_block(rows, block)
    watch = common.Stopwatch()
    for first in range(0, columns, block):
        part = array[:, : min(block, columns - first)]
        rectangle = Rectangle("right", 0, Range(first, first + part.shape[1]), Range(0, rows))
        publish_shard(Path(target), plan, rectangle, part, {})
    return watch.figures()


def copy_files(source: str, target: str) -> dict[str, Any]:
    """Copies the files of a folder, and waits until each is on the disk."""
    watch = common.Stopwatch()
    for file in sorted(Path(source).iterdir()):
        shutil.copyfile(file, Path(target, file.name))
        descriptor = os.open(Path(target, file.name), os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return watch.figures()


def write_reference(
    target: str, rows: int, columns: int, block: int, compression: str | None
) -> dict[str, Any]:
    """Writes all columns by the reference layer, in which they are rows."""
    import numpy as np
    from skerch.hdf5 import DistributedHDF5Tensor

    array = np.ascontiguousarray(random_block(rows, block).T)
    watch = common.Stopwatch()
    _, paths, ranges = DistributedHDF5Tensor.create(
        f"{target}/right_{{}}.h5", (columns, rows), block, "float32", compression
    )
    for path, (first, last) in zip(paths, ranges, strict=True):
        data, flags, file = DistributedHDF5Tensor.load(path)
        data[:] = array[: last - first]
        flags[:] = "done"
        file.close()
    return watch.figures()


def merge_reference(source: str, target: str, compression: str | None) -> dict[str, Any]:
    """Merges what :func:`write_reference` wrote."""
    from skerch.hdf5 import DistributedHDF5Tensor

    watch = common.Stopwatch()
    DistributedHDF5Tensor.merge(
        f"{source}/right_ALL.h5", f"{target}/merged.h5", compression, check_success_flag="done"
    )
    return watch.figures()


def rechunk_only(run_dir: str, cores: int) -> dict[str, Any]:
    """Writes the row shards that a merge would write, and forms no sums."""
    import numpy as np

    from skerch_ooc import open_run
    from skerch_ooc.base.partition import Range
    from skerch_ooc.base.streams import Pool, ordered_map
    from skerch_ooc.planning.tasks import merge_runs
    from skerch_ooc.store.sealed import sealed_writer
    from skerch_ooc.store.shards import Rectangle, shard_layout
    from skerch_ooc.store.sketch import Round

    watch = common.Stopwatch()
    run = open_run(run_dir)
    round_ = Round(run)
    side = round_.sides[0]
    plan, tiles, reader = run.plan, run.plan.tiles(side.rows), round_.sketch.readers[side.name]
    buffers = Pool(lambda: np.empty((len(tiles[0]), side.columns), plan.identity.dtype))
    for task in merge_runs(plan, side):
        rows = Range(tiles[task.start].start, tiles[task.stop - 1].stop)
        with contextlib.ExitStack() as stack:
            writers = []
            for role, place in side.sketches.items():
                rectangle = Rectangle(role, 0, Range(0, len(place)), rows)
                path = run.sketch / rectangle.name
                layout = shard_layout(plan, rectangle, plan.identity.dtype)
                writer = stack.enter_context(sealed_writer(path, layout))
                writers.append((rectangle, place, writer))

            def copy(number: int) -> None:
                buffer = buffers.take()
                z = reader.read_row(number, buffer)
                for _, place, writer in writers:  # noqa: B023 (used up in this round)
                    writer.write_rows(number - task.start, z[:, place.slice])  # noqa: B023
                buffers.give(buffer)

            for _ in ordered_map(copy, range(task.start, task.stop), cores):
                pass
            for rectangle, _, writer in writers:
                writer.publish(rectangle.identity(plan.run_id))
    return watch.figures()


def merge(run_dir: str, cores: int) -> dict[str, Any]:
    """Merges a run, row shards included."""
    import torch  # noqa: F401 (its integer units serve the merge; loading it is not counted)

    import skerch_ooc as ooc

    run = ooc.open_run(run_dir)
    watch = common.Stopwatch()
    ooc.merge(run, memory=MEMORY, threads=cores, rechunk=True)
    return watch.figures()


def bare_products(rows: int, columns: int, cores: int) -> dict[str, Any]:
    """Seconds of the products alone; see :func:`common.gemm_seconds`."""
    watch = common.Stopwatch()
    seconds = common.gemm_seconds(rows, columns, cores)
    return watch.figures() | seconds | {"seconds": seconds["gram"] + seconds["cross"]}


PARTS: list[common.Part] = [
    write_shards, copy_files, write_reference, merge_reference, rechunk_only, merge, bare_products,
]  # fmt: skip


def compare(options: Any, folder: Path) -> dict[str, Any]:
    """Does all in turn and returns all figures."""
    rows, columns, threads = options.rows, options.columns, options.threads
    block, narrow = min(WRITE_COLUMNS, columns), min(options.narrow, columns)
    spec, run_dir = folder / "spec.toml", folder / "run"
    common.write_spec(spec, rows, columns, 0, narrow, max(1, columns * 15 // 16), 2.4)
    common.say("making a sketch of many column shards")
    common.run_cli("plan", spec, "--run", run_dir, threads=threads)
    common.run_cli("measure", run_dir, "--threads", threads, threads=threads)
    runs: dict[str, list[dict[str, float]]] = {}

    def timed(name: str, function: common.Part, *cleared: Path, **arguments: Any) -> None:
        child, figures = common.run_part(__file__, function, threads, options.warm, **arguments)
        runs.setdefault(name, []).append(child.figures() | figures)
        common.say(f"  {name}: {figures['seconds']:.2f} s")
        common.clear(*cleared)

    written, target, parts = (folder / name for name in ("written", "target", "parts"))
    for path in (written, target, parts):
        path.mkdir()
    size = {"rows": rows, "columns": columns}
    for number in range(options.repeats):
        common.say(f"round {number + 1} of {options.repeats}")
        timed("write, shards", write_shards, run_dir=str(run_dir), target=str(written),
              columns=columns, block=block)  # fmt: skip
        timed("copy", copy_files, written, target, source=str(written), target=str(target))
        ours = {"run_dir": str(run_dir), "cores": threads}
        timed("rechunk, shards", rechunk_only, run_dir / "sketch", **ours)
        timed("merge", merge, run_dir / "sketch", **ours)
        timed("bare products", bare_products, cores=threads, **size)
        for name, compression in (("skerch", "lzf"), ("skerch uncompressed", None)):
            timed(f"write, {name}", write_reference, target, target=str(target), block=block,
                  compression=compression, **size)  # fmt: skip
            common.run_part(__file__, write_reference, threads, target=str(parts), block=narrow,
                            compression=compression, **size)  # fmt: skip
            timed(f"rechunk, {name}", merge_reference, target, parts, source=str(parts),
                  target=str(target), compression=compression)  # fmt: skip
    return report(runs, options, {"block": block, "narrow": narrow, "memory": MEMORY})


def report(
    runs: dict[str, list[dict[str, float]]], options: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    """Rates, ratios and a table of them."""
    gigabytes = 4 * options.rows * options.columns / 1e9
    seconds = {name: [run["seconds"] for run in of_name] for name, of_name in runs.items()}
    medians = {name: common.median_of(of_name) for name, of_name in runs.items()}
    larger = list(map(max, seconds["rechunk, shards"], seconds["bare products"]))
    goals = [
        common.Goal(f"{verb}, rate over {other}'s", common.median_ratio(seconds[than],
                    seconds[f"{verb}, shards"]), ">=", limit)
        for verb in ("write", "rechunk")
        for other, than, limit in (("skerch", f"{verb}, skerch", 8.0), ("a copy", "copy", 0.6))
    ]  # fmt: skip
    merged = common.median_ratio(seconds["merge"], larger)
    goals.append(common.Goal("merge, time over the larger of both", merged, "<=", 1.25))
    rows = [
        [
            name,
            f"{figures['seconds']:.2f}",
            f"{gigabytes / figures['seconds']:.3f}",
            f"{figures['processor']:.2f}",
            f"{figures['peak'] / 1e9:.2f}",
        ]
        for name, figures in medians.items()
    ]
    head = [f"{gigabytes:.2f} GB", "s", "GB/s", "processor, s", "peak, GB"]
    return {
        "settings": {"rows": options.rows, "columns": options.columns, "threads": options.threads}
        | settings,
        "medians": medians,
        "goals": {goal.name: goal.as_json() for goal in goals},
        "runs": runs,
        "text": common.text_table(head, rows) + "\n\n" + common.goal_table(goals),
    }


def main() -> None:
    """Reads the command line and runs the comparison."""
    if common.serve_part(PARTS):
        return
    parser = common.argument_parser(__doc__, rows=1_000_000, columns=512, repeats=3)
    parser.add_argument("--narrow", type=int, default=4, help="columns of a shard to rechunk, 4")
    options = parser.parse_args()
    # The run with its row shards, and twice what is written and copied, or merged.
    with common.scratch(options.folder, 4 * 4 * options.rows * options.columns + 10**8) as folder:
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
