"""Reading for a merge from an object store, against bare ranges of the same objects.

A server of S3 is started on this machine, and a sketch measured into a bucket of it. Then, in turn:

* *row tiles*: all row tiles of the sketch, as a merge reads them, each byte verified;
* *bare ranges*: the same objects by ``obstore`` alone, 8 ranges of 8 MiB at once.

Each is timed in a process of its own; its start, and opening the shards, are not counted. The
server has the same processors as the readers, and takes most of them.

Usage: python workflows/benchmarks/object_store.py --repeats 3 --json object_store.json
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

RANGE_BYTES, RANGES = 8 << 20, 8
MEMORY = "2GiB"
_RUN = "s3://runs/benchmark"
_START_SECONDS = 30.0


def row_tiles(run_dir: str, cores: int) -> dict[str, Any]:
    """Reads all row tiles of a sketch."""
    import numpy as np

    from skerch_ooc import open_run
    from skerch_ooc.base.resources import Resources
    from skerch_ooc.base.streams import Pool, ordered_map
    from skerch_ooc.planning.memory import merge_bytes
    from skerch_ooc.store.object_bytes import tiles_beside_windows
    from skerch_ooc.store.sketch import Round

    round_ = Round(open_run(run_dir))
    plan, side = round_.run.plan, round_.sides[0]
    reader, tiles = round_.sketch.readers[side.name], plan.tiles(side.rows)
    resources = Resources.of(MEMORY, cores, 1, "cpu")
    needed = merge_bytes(plan, side)
    in_flight = tiles_beside_windows("merge", resources, needed, reader.far_bytes)
    buffers = Pool(lambda: np.empty((len(tiles[0]), side.columns), plan.identity.dtype))

    def read(number: int) -> None:
        buffer = buffers.take()
        reader.read_row(number, buffer)
        buffers.give(buffer)

    watch = common.Stopwatch()
    for _ in ordered_map(read, range(len(tiles)), in_flight):
        pass
    return watch.figures()


def bare_ranges(run_dir: str) -> dict[str, Any]:
    """Reads all column shards in long ranges, several at once."""
    import obstore

    from skerch_ooc.base.places import place

    folder: Any = place(run_dir) / "shards"
    client = obstore.store.from_url(folder.store.root, client_options={"allow_http": True})
    ranges = [
        (one.key, start, min(start + RANGE_BYTES, one.size))
        for one in folder.store.listed(folder.key)
        for start in range(0, one.size, RANGE_BYTES)
    ]

    def read(part: tuple[str, int, int]) -> int:
        key, start, stop = part
        return len(obstore.get_range(client, key, start=start, end=stop))

    watch = common.Stopwatch()
    with ThreadPoolExecutor(RANGES) as pool:
        total = sum(pool.map(read, ranges))
    return watch.figures() | {"bytes": total}


PARTS: list[common.Part] = [row_tiles, bare_ranges]


@contextlib.contextmanager
def server(log: Path) -> Iterator[None]:
    """Runs a server of S3 with a bucket, which the environment of this process leads to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", f"{port}"]
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _make_bucket(f"{endpoint}/runs", process)
        yield
    finally:
        process.kill()
        process.wait()


def _make_bucket(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.1)


def compare(options: Any, folder: Path) -> dict[str, Any]:
    """Does both in turn and returns all figures."""
    rows, columns, threads = options.rows, options.columns, options.threads
    spec = folder / "spec.toml"
    common.write_spec(spec, rows, columns, 0, options.block, max(1, columns * 15 // 16), 2.4)
    common.say("making a sketch in a bucket")
    common.run_cli("plan", spec, "--run", _RUN, threads=threads)
    common.run_cli("measure", _RUN, "--threads", threads, threads=threads)
    runs: dict[str, list[dict[str, float]]] = {"row tiles": [], "bare ranges": []}
    for _ in range(options.repeats):
        for name, function, more in (
            ("row tiles", row_tiles, {"cores": threads}), ("bare ranges", bare_ranges, {}),
        ):  # fmt: skip
            child, figures = common.run_part(
                __file__, function, threads, options.warm, run_dir=_RUN, **more
            )
            runs[name].append(child.figures() | figures)
            common.say(f"  {name}: {figures['seconds']:.2f} s")
    return report(runs, options)


def report(runs: dict[str, list[dict[str, float]]], options: Any) -> dict[str, Any]:
    """Rates, their ratio and a table of them."""
    gigabytes = 4 * options.rows * options.columns / 1e9
    seconds = {name: [run["seconds"] for run in of_name] for name, of_name in runs.items()}
    medians = {name: common.median_of(of_name) for name, of_name in runs.items()}
    ratio = common.median_ratio(seconds["bare ranges"], seconds["row tiles"])
    goal = common.Goal("reading for a merge, rate over bare ranges'", ratio, ">=", 0.7)
    rows = [
        [name, f"{figures['seconds']:.2f}", f"{gigabytes / figures['seconds']:.3f}",
         f"{figures['processor']:.2f}", f"{figures['peak'] / 1e9:.2f}"]
        for name, figures in medians.items()
    ]  # fmt: skip
    head = [f"{gigabytes:.2f} GB", "s", "GB/s", "processor, s", "peak, GB"]
    return {
        "settings": {"rows": options.rows, "columns": options.columns, "block": options.block,
                     "threads": options.threads, "memory": MEMORY},
        "medians": medians,
        "goals": {goal.name: goal.as_json()},
        "runs": runs,
        "text": common.text_table(head, rows) + "\n\n" + common.goal_table([goal]),
    }  # fmt: skip


def main() -> None:
    """Reads the command line and runs the comparison."""
    if common.serve_part(PARTS):
        return
    parser = common.argument_parser(__doc__, rows=1_000_000, columns=160, repeats=3)
    parser.add_argument("--block", type=int, default=16, help="columns of a shard, 16")
    options = parser.parse_args()
    missing = [name for name in ("moto", "obstore") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed")
        return
    with (
        common.scratch(options.folder, 10**8) as folder,
        server(folder / "server.log"),
    ):
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
