"""SVD of a tall matrix on disk, vectors written: against dask, and against scikit-learn, in turn.

The matrix lies in one contiguous HDF5 dataset, float32: rank 100 with singular values from 1 down
to 0.01, and Gaussian noise whose spectral norm is about 0.002. All three are asked for 100 singular
values and vectors, without power iterations, and leave U, S and V in files.

* Ours: ``skerch-ooc run`` in a process of its own, with its start: plan, measure (one reading of
  the matrix), merge, recover, assess. The factory is ``"stored"``: no Python is the user's.
* dask: ``dask.array.linalg.svd_compressed`` on a local cluster of two workers of one thread each.
* scikit-learn: the matrix is read into memory, then ``randomized_svd``; both with ``n_iter=0``, as
  the two others have it, and with its default, which makes seven iterations here.

The errors are those of the vectors in the files, ``||A - U S V^H||_F / ||A||_F``; the best of rank
100 is that of the noise. Bytes read are counted in one more run of ours, without a clock, where the
rows come from. The page cache may serve all.

Usage: python workflows/benchmarks/matrix_svd.py --repeats 3 --json matrix_svd.json
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common

RANK = 100
DECADES = 2.0
NOISE = 0.002
MEMORY = "1200MiB"
DASK_WORKERS = 2
ROWS_AT_ONCE = 8192


def make_matrix(path: str, rows: int, columns: int) -> dict[str, Any]:
    """Writes the matrix."""
    import h5py
    import numpy as np

    generator = np.random.default_rng(1)
    v, _ = np.linalg.qr(generator.standard_normal((columns, RANK)))
    values = 10 ** np.linspace(0, -DECADES, RANK)
    factor = (v * values).T.astype("float32") / rows**0.5
    sigma = NOISE / (rows**0.5 + columns**0.5)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("matrix", (rows, columns), "float32")
        for start in range(0, rows, ROWS_AT_ONCE):
            height = min(ROWS_AT_ONCE, rows - start)
            u = generator.standard_normal((height, RANK), dtype="float32")
            noise = generator.standard_normal((height, columns), dtype="float32")
            noise *= sigma
            noise += u @ factor
            data[start : start + height] = noise
    return {}


def dask_svd(source: str, target: str, chunk_rows: int) -> dict[str, Any]:
    """Decomposes by dask."""
    import h5py
    import numpy as np

    da, distributed = map(importlib.import_module, ("dask.array", "distributed"))
    with (
        distributed.LocalCluster(
            n_workers=DASK_WORKERS, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        h5py.File(source, "r") as file,
    ):
        a = da.from_array(file["matrix"], chunks=(chunk_rows, -1), lock=False)
        u, s, v = da.linalg.svd_compressed(a, k=RANK, n_power_iter=0, seed=1)
        found = da.compute(u, s, v)
    for name, array in zip(("U", "S", "Vh"), found, strict=True):
        np.save(f"{target}/{name}.npy", array)
    return {}


def sklearn_svd(source: str, target: str, n_iter: int | str) -> dict[str, Any]:
    """Reads the matrix and decomposes it by scikit-learn."""
    import h5py
    import numpy as np
    from sklearn.utils.extmath import randomized_svd

    start = time.perf_counter()
    with h5py.File(source, "r") as file:
        a = file["matrix"][:]
    load = time.perf_counter() - start
    found = randomized_svd(a, RANK, n_iter=n_iter, random_state=1)
    for name, array in zip(("U", "S", "Vh"), found, strict=True):
        np.save(f"{target}/{name}.npy", array)
    return {"load": load}


def count_reads(spec: str, run_dir: str, options: list[str]) -> dict[str, Any]:
    """Runs ours in this process, and counts the bytes of the matrix that are read."""
    from skerch_ooc.cli.main import run_command_line
    from skerch_ooc.operators.matrices.hdf5 import Hdf5Source

    read, total = Hdf5Source.read, 0

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal total
        rows = read(self, *arguments)
        total += rows.nbytes
        return rows

    setattr(Hdf5Source, "read", counted)  # noqa: B010 (type checkers know no patches)
    if run_command_line(["run", spec, "--run", run_dir, *options]):
        raise RuntimeError("our run failed")
    return {"read": total}


def true_error(source: str, target: str) -> dict[str, Any]:
    """The relative error of the vectors that somebody left in files."""
    import h5py
    import numpy as np

    if Path(target, "results").exists():
        import skerch_ooc as ooc

        usv: Any = ooc.recover(ooc.open_run(target))
        u, s, vh = (np.asarray(part) for part in (usv.U[:], usv.S, usv.Vh[:]))
    else:
        u, s, vh = (np.load(f"{target}/{name}.npy") for name in ("U", "S", "Vh"))
    scaled = (s[:, None] * vh).astype("float32")
    square = norm = 0.0
    with h5py.File(source, "r") as file:
        data = file["matrix"]
        for start in range(0, len(data), ROWS_AT_ONCE):
            a = data[start : start + ROWS_AT_ONCE]
            difference = a - u[start : start + ROWS_AT_ONCE].astype("float32") @ scaled
            square += float(np.vdot(difference, difference))
            norm += float(np.vdot(a, a))
    return {"error": (square / norm) ** 0.5, "columns": len(s)}


def write_spec(path: Path, matrix: Path, measurements: int) -> None:
    """Writes the spec: all that a user has to."""
    path.write_text(
        f'kind = "svd"\nmeasurements = {measurements}\ndtype = "float32"\n'
        f'[operator]\nfactory = "stored"\n[operator.args]\npath = "{matrix.name}"\n'
        f"[recovery]\nrank = {RANK}\n"
    )


def compare(options: Any, folder: Path) -> dict[str, Any]:
    """Makes the matrix, decomposes it by all in turn, and returns all figures."""
    threads, matrix, spec = options.threads, folder / "matrix.h5", folder / "spec.toml"
    common.say("making the matrix")
    shape = {"rows": options.rows, "columns": options.columns}
    common.run_part(__file__, make_matrix, threads, path=str(matrix), **shape)
    write_spec(spec, matrix, options.measurements)
    ours = ["--memory", MEMORY, "--threads", str(threads)]
    contenders: dict[str, Any] = {
        "ours": lambda target: common.run_cli(
            "run", spec, "--run", target, *ours, threads=threads, warm=options.warm
        ),
        "dask": lambda target: common.run_part(
            __file__, dask_svd, 1, options.warm, source=str(matrix), target=str(target),
            chunk_rows=options.chunk_rows,
        )[0],
        "scikit-learn, n_iter=0": lambda target: common.run_part(
            __file__, sklearn_svd, threads, options.warm, source=str(matrix), target=str(target),
            n_iter=0,
        )[0],
        "scikit-learn": lambda target: common.run_part(
            __file__, sklearn_svd, threads, options.warm, source=str(matrix), target=str(target),
            n_iter="auto",
        )[0],
    }  # fmt: skip
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, decompose in contenders.items():
            target = folder / "target"
            target.mkdir()
            child = decompose(target)
            _, figures = common.run_part(
                __file__, true_error, threads, source=str(matrix), target=str(target)
            )
            runs[name].append(child.figures() | figures)
            common.say(f"{name}: {child.wall:.1f} s, error {figures['error']:.4f}")
            common.remove(target)
    target = folder / "target"
    _, counted = common.run_part(
        __file__, count_reads, threads, spec=str(spec), run_dir=str(target), options=ours
    )
    medians = {name: common.median_of(found) for name, found in runs.items()}
    walls = {name: [run["wall"] for run in found] for name, found in runs.items()}
    size = options.rows * options.columns * 4
    goals = [
        common.Goal("wall, ours / dask", _ratio(walls, "dask"), "<=", 0.75),
        common.Goal("error, ours / dask", _of(medians, "error", "dask"), "<=", 1),
        common.Goal("readings of the matrix", counted["read"] / size, "<=", 1.01),
        common.Goal("our peak memory, GB", medians["ours"]["peak"] / 1e9, "<=", 1.2),
        common.Goal(
            "wall, ours / scikit-learn, n_iter=0", _ratio(walls, "scikit-learn, n_iter=0"), "<=", 1
        ),
        common.Goal("wall, ours / scikit-learn", _ratio(walls, "scikit-learn"), "<=", 1),
    ]
    rows = [
        [name] + [f"{found[key] * scale:.{digits}f}" for key, scale, digits in _COLUMNS]
        for name, found in medians.items()
    ]
    return {
        "settings": shape | {"measurements": options.measurements, "threads": threads,
                             "memory": MEMORY, "chunk_rows": options.chunk_rows},
        "medians": medians,
        "read": counted["read"],
        "goals": {goal.name: goal.as_json() for goal in goals},
        "runs": runs,
        "text": common.text_table(["", "wall, s", "user, s", "system, s", "peak, GB", "error"],
                                  rows) + "\n\n" + common.goal_table(goals),
    }  # fmt: skip


_COLUMNS = (
    ("wall", 1, 1), ("user", 1, 1), ("system", 1, 1), ("peak", 1e-9, 2), ("error", 1, 4),
)  # fmt: skip


def _ratio(walls: dict[str, list[float]], other: str) -> float:
    return common.median_ratio(walls["ours"], walls[other])


def _of(medians: dict[str, dict[str, float]], key: str, other: str) -> float:
    return medians["ours"][key] / medians[other][key]


def main() -> None:
    """Reads the command line and runs the comparison."""
    parts: list[common.Part] = [make_matrix, dask_svd, sklearn_svd, count_reads, true_error]
    if common.serve_part(parts):
        return
    parser = common.argument_parser(__doc__, rows=200_000, columns=4000, repeats=3)
    parser.add_argument("--measurements", type=int, default=150, help="of ours, 150")
    parser.add_argument("--chunk-rows", type=int, default=10_000, help="of dask's arrays, 10000")
    options = parser.parse_args()
    needed = 4 * options.rows * options.columns + 4 * 10**9
    with common.scratch(options.folder, needed) as folder:
        figures = compare(options, folder)
    print(figures.pop("text"))
    common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
