"""Matrices as people have them, against what they use today: time, memory, readings, error.

* *sparse*: SciPy's ``.npz`` of counts, 100,000 x 20,000 with some 118 million entries, rank 50.
  scikit-learn loads it whole and runs ``TruncatedSVD``; ours read it in slabs, within 1 GiB, by
  ``hmt`` with two power iterations, by ``krylov``, and by default (one reading).
* *gzip*: an HDF5 dataset of 2.4 GB in compressed chunks of 1000 x 50, centred, 50 components: by
  ``IncrementalPCA`` (bands of chunks, each read once), by dask's ``svd_compressed``, by ``ooc.PCA``
  and by one reading of ours.
* *svd*: the contiguous HDF5 dataset of ``matrix_svd.py``, as there, against dask.
* *zarr*: an array of 2.4 GB in Zarr chunks, by one reading, against dask on two workers.

Each party runs in a process of its own, with its start, and leaves its right singular vectors ``V``
in a file. The error is the share of the norm that they miss, ``||A - A V V^H||_F / ||A||_F``, of
the centred matrix where it is centred. Readings are the bytes that the process read while it was
asked for rows, by the size of the file; they are counted in one more run of ours, without a clock.
The page cache may serve all.

Usage: python workflows/benchmarks/matrices.py --repeats 3 --json matrices.json
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common, comparison, matrix_svd

PROBLEMS = ("sparse", "gzip", "svd", "zarr")
RANK = 50
OVERSAMPLES = 10
MEMORY = "1GiB"
MEASUREMENTS = 150
KRYLOV_ROUNDS = 12
TOPICS = 60
TABLE = 1 << 16
"""Steps in which a cumulative distribution is looked up."""
CHUNKS = (1000, 50)
ZARR_CHUNKS = (5000, 500)
BATCH_ROWS = 250
"""What ``IncrementalPCA`` takes at once: larger batches take it longer."""
ROWS_AT_ONCE = 4000

Figures = dict[str, Any]
Goals = list[common.Goal]


# Matrices.


def make_sparse(path: str, rows: int, columns: int, entries: int) -> Figures:
    """Writes counts: each row belongs to a topic, and some columns are found in all rows."""
    import numpy as np
    import scipy.sparse as sp

    generator = np.random.default_rng(1)
    popular = 1 / (5 + np.arange(columns)) ** 0.6
    shares = np.stack([generator.permutation(popular) for _ in range(TOPICS + 1)])
    shares /= shares.sum(axis=1, keepdims=True)
    steps = (np.arange(TABLE) + 0.5) / TABLE
    chosen = np.stack([np.searchsorted(np.cumsum(one), steps) for one in shares])
    chosen = np.minimum(chosen, columns - 1).astype(np.int32)
    drawn = _draws(shares, entries)
    found: list[Any] = []
    for start in range(0, rows, ROWS_AT_ONCE):
        height = min(ROWS_AT_ONCE, rows - start)
        topics = generator.integers(1, TOPICS + 1, (height, 1)) * np.ones(drawn, np.int64)
        topics[:, : drawn // 2] = 0
        places = chosen[topics, generator.integers(0, TABLE, topics.shape)]
        keys = places + columns * np.arange(height)[:, None]
        unique, counts = np.unique(keys, return_counts=True)
        starts = np.searchsorted(unique, columns * np.arange(height + 1))
        values = np.log1p(counts).astype(np.float32)
        shape = (height, columns)
        found.append(sp.csr_array((values, (unique % columns).astype(np.int32), starts), shape))
    matrix = sp.vstack(found, "csr")
    if matrix.nnz < 1 << 31:
        matrix.indices, matrix.indptr = (
            one.astype(np.int32) for one in (matrix.indices, matrix.indptr)
        )
    sp.save_npz(path, matrix, compressed=False)
    return {"entries": int(matrix.nnz)}


def _draws(shares: Any, entries: int) -> int:
    """How often columns are drawn so that a row has so many different ones, on average."""
    import numpy as np

    width = shares.shape[1]
    mixed = (shares[0] + shares[1]) / 2
    draws, different = entries, 0.0
    while different < min(entries, 0.9 * width):
        draws += max(1, entries // 50)
        different = float((1 - np.exp(-draws * mixed)).sum())
    return draws


def dense_rows(rows: int, columns: int) -> Iterator[tuple[int, Any]]:
    """Slabs of a matrix with a mean, 100 decaying directions and noise, in steps of 1/256."""
    import numpy as np

    generator = np.random.default_rng(1)
    v, _ = np.linalg.qr(generator.standard_normal((columns, min(100, columns))))
    values = 10 ** np.linspace(0, -2, v.shape[1]) * columns**0.5
    factor, mean = (v * values).T.astype("float32"), generator.normal(10, 3, columns)
    for start in range(0, rows, 5000):
        height = min(5000, rows - start)
        slab = generator.standard_normal((height, v.shape[1]), dtype="float32") @ factor
        slab += 0.05 * generator.standard_normal((height, columns), dtype="float32")
        yield start, np.round((slab + mean.astype("float32")) * 256) / np.float32(256)


def make_gzip(path: str, rows: int, columns: int) -> Figures:
    """Writes a compressed HDF5 dataset."""
    import h5py

    chunks = (min(CHUNKS[0], rows), min(CHUNKS[1], columns))
    with h5py.File(path, "w", rdcc_nbytes=1 << 28) as file:
        data = file.create_dataset(
            "matrix", (rows, columns), "float32", chunks=chunks, compression="gzip",
            compression_opts=1, shuffle=True,
        )  # fmt: skip
        for start, slab in dense_rows(rows, columns):
            data[start : start + len(slab)] = slab
    return {}


def make_zarr(path: str, rows: int, columns: int) -> Figures:
    """Writes a Zarr array, compressed as by default."""
    zarr: Any = importlib.import_module("zarr")
    chunks = (min(ZARR_CHUNKS[0], rows), min(ZARR_CHUNKS[1], columns))
    data = zarr.create_array(path, shape=(rows, columns), dtype="float32", chunks=chunks)
    for start, slab in dense_rows(rows, columns):
        data[start : start + len(slab)] = slab
    return {}


# What others do.


def _save(target: str, v: Any) -> Figures:
    import numpy as np

    np.save(f"{target}/V.npy", v)
    return {}


def sparse_sklearn(source: str, target: str, seed: int) -> Figures:
    """``TruncatedSVD`` of the matrix in memory."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD

    found = TruncatedSVD(RANK, random_state=seed).fit(sp.load_npz(source))
    return _save(target, found.components_.T)


def gzip_incremental(source: str, target: str, seed: int) -> Figures:  # noqa: ARG001
    """``IncrementalPCA`` of bands that are read once."""
    import h5py
    from sklearn.decomposition import IncrementalPCA

    pca, band = IncrementalPCA(RANK), CHUNKS[0]
    with h5py.File(source, "r") as file:
        data = file["matrix"]
        for start in range(0, len(data), band):
            rows = data[start : start + band]
            for first in range(0, len(rows), BATCH_ROWS):
                batch = rows[first : first + BATCH_ROWS]
                if len(batch) >= RANK:
                    pca.partial_fit(batch, check_input=False)
    return _save(target, pca.components_.T)


def gzip_dask(source: str, target: str, seed: int) -> Figures:
    """``svd_compressed`` of the centred matrix."""
    import h5py

    da: Any = importlib.import_module("dask.array")
    with _dask_workers(), h5py.File(source, "r") as file:
        a = da.from_array(file["matrix"], chunks=(5 * CHUNKS[0], -1), lock=False)
        v = da.linalg.svd_compressed(a - a.mean(axis=0), k=RANK, n_power_iter=0, seed=seed)[2]
        return _save(target, v.compute().T)


def zarr_dask(source: str, target: str, seed: int) -> Figures:
    """``svd_compressed`` with all its vectors, as ours."""
    import numpy as np

    da: Any = importlib.import_module("dask.array")
    with _dask_workers():
        a = da.from_zarr(source).rechunk({1: -1})
        u, s, v = da.compute(*da.linalg.svd_compressed(a, k=RANK, n_power_iter=0, seed=seed))
    np.save(f"{target}/U.npy", u)
    np.save(f"{target}/S.npy", s)
    return _save(target, v.T)


@contextmanager
def _dask_workers() -> Iterator[None]:
    distributed: Any = importlib.import_module("distributed")
    workers = {"n_workers": matrix_svd.DASK_WORKERS, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(dashboard_address=None, **workers) as cluster,
        distributed.Client(cluster),
    ):
        yield


# Ours.


def gzip_pca(source: str, target: str, seed: int) -> Figures:
    """``ooc.PCA``."""
    import skerch_ooc as ooc

    pca = ooc.PCA(RANK, random_state=seed, memory=MEMORY)
    return _save(target, pca.fit(source).components_.T)


def count_pca(source: str, target: str) -> Figures:
    """The bytes that ``ooc.PCA`` reads of the file."""
    with counted_reads() as read:
        gzip_pca(source, target, 1)
    return {"read": sum(read)}


def count_run(spec: str, run_dir: str, options: list[str]) -> Figures:
    """The bytes that a run reads of the file."""
    from skerch_ooc.cli.main import run_command_line

    with counted_reads() as read:
        if run_command_line(["run", spec, "--run", run_dir, *options]):
            raise RuntimeError(f"{spec} failed")
    return {"read": sum(read)}


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """Notes the bytes that this process reads each time that a source is asked for rows."""
    from skerch_ooc.operators.matrices.sources import Source, SparseSource

    read: list[int] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **more: Any) -> Any:
            before = _bytes_read()
            found = function(*arguments, **more)
            read.append(_bytes_read() - before)
            return found

        return count

    kept = {one: one.read for one in (Source, SparseSource)}
    for one, function in kept.items():
        setattr(one, "read", counted(function))  # noqa: B010 (type checkers know no patches)
    try:
        yield read
    finally:
        for one, function in kept.items():
            setattr(one, "read", function)  # noqa: B010


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def write_spec(path: Path, matrix: Path, recovery: str, **given: str | int) -> Path:
    """Writes the spec of a run; texts are arguments of the operator."""
    top = "".join(f"{key} = {value}\n" for key, value in given.items() if isinstance(value, int))
    args = "".join(f'{key} = "{value}"\n' for key, value in given.items() if isinstance(value, str))
    path.write_text(
        f'kind = "svd"\n{top}[operator]\nfactory = "stored"\n'
        f'[operator.args]\npath = "{matrix.name}"\n{args}'
        f"[recovery]\nrank = {RANK}\n{recovery}"
    )
    return path


# Judgement.


def judge(source: str, targets: list[str], centred: bool) -> Figures:
    """The share of the norm that the vectors miss which everybody left."""
    import numpy as np

    found = {target: _vectors(target) for target in targets}
    columns = np.concatenate(list(found.values()), axis=1)
    kept, total, height = np.zeros(columns.shape[1]), 0.0, 0
    sums, products = np.zeros(len(columns)), np.zeros(columns.shape[1])
    for slab in _slabs(source):
        product = np.asarray(slab @ columns, np.float64)
        kept += (product**2).sum(axis=0)
        products += product.sum(axis=0)
        entries = slab.data if hasattr(slab, "indptr") else slab
        total += float((np.asarray(entries, np.float64) ** 2).sum())
        sums += np.asarray(slab.sum(axis=0, dtype=np.float64))
        height += slab.shape[0]
    if centred:
        kept -= products**2 / height
        total -= float(sums @ sums) / height
    shares = np.split(kept / total, np.cumsum([v.shape[1] for v in found.values()])[:-1])
    return {
        target: {"error": max(0.0, 1 - float(share.sum())) ** 0.5}
        for target, share in zip(targets, shares, strict=True)
    }


def _vectors(target: str) -> Any:
    import numpy as np

    if not Path(target, "results").exists():
        return np.load(f"{target}/V.npy").astype("float32")
    import skerch_ooc as ooc

    usv: Any = ooc.recover(ooc.open_run(target))
    return np.asarray(usv.V[:]).astype("float32")


def _slabs(source: str) -> Iterator[Any]:
    if source.endswith(".npz"):
        import scipy.sparse as sp

        matrix = sp.csr_array(sp.load_npz(source))
        yield from (matrix[i : i + 10_000] for i in range(0, matrix.shape[0], 10_000))
        return
    if source.endswith(".zarr"):
        data: Any = importlib.import_module("zarr").open_array(source, mode="r")
    else:
        data = importlib.import_module("h5py").File(source, "r")["matrix"]
    yield from (data[i : i + 5000] for i in range(0, data.shape[0], 5000))


# Comparisons.


def _made(make: common.Part, path: Path, options: Any, **sizes: Any) -> Figures:
    common.say(f"making {path.name}")
    return common.run_part(__file__, make, options.threads, path=str(path), **sizes)[1]


def _ours(options: Any) -> list[str]:
    return ["--memory", MEMORY, "--threads", str(options.threads)]


def _run(spec: Path, options: Any) -> comparison.Contender:
    """A run of ours."""

    def contender(target: Path, seed: int) -> tuple[common.Child, Figures]:
        child = common.run_cli(
            "run", spec, "--run", target, "--set", f"seed={seed}", *_ours(options),
            threads=options.threads, warm=options.warm,
        )  # fmt: skip
        return child, {}

    return contender


def _part(function: common.Part, source: Path, options: Any) -> comparison.Contender:
    """Somebody's function; dask's workers have one thread each."""
    threads = 1 if "dask" in function.__name__ else options.threads
    return lambda target, seed: common.run_part(
        __file__, function, threads, options.warm, source=str(source), target=str(target),
        seed=seed,
    )  # fmt: skip


def _counted(options: Any, folder: Path, size: int, specs: dict[str, Path]) -> dict[str, float]:
    """The readings of each of our runs."""
    found = {}
    for name, spec in specs.items():
        target = folder / "counted"
        _, counted = common.run_part(
            __file__, count_run, options.threads, spec=str(spec), run_dir=str(target),
            options=_ours(options),
        )  # fmt: skip
        common.remove(target)
        found[name] = counted["read"] / size
    return found


def _cells(
    contenders: dict[str, comparison.Contender], source: Path, options: Any, folder: Path,
    *, centred: bool = False,
) -> comparison.Cells:  # fmt: skip
    """Runs all in turn and judges what they left."""

    def judged(targets: list[str]) -> Figures:
        where: Any = {"source": str(source), "targets": targets, "centred": centred}
        return common.run_part(__file__, judge, options.threads, **where)[1]

    return comparison.in_turn(contenders, judged, options.repeats, folder)


def _walls(cells: comparison.Cells, ours: str, theirs: str) -> float:
    mine, other = ([run["wall"] for run in cells[name]] for name in (ours, theirs))
    return common.median_ratio(mine, other)


def _goals(
    cells: comparison.Cells, readings: dict[str, float], most: float, walls: tuple[str, str, float]
) -> Goals:
    """Goals of a problem: the wall of the two that are compared, peaks and readings of ours."""
    ours, theirs, limit = walls
    goals = [common.Goal(f"wall, {ours} / {theirs}", _walls(cells, ours, theirs), "<=", limit)]
    for name in cells:
        if name.startswith("ours"):
            peak = common.median_of(cells[name])["peak"] / (1 << 30)
            goals.append(common.Goal(f"peak, GiB, {name}", peak, "<=", 1))
    goals.append(common.Goal(f"readings, {ours}", readings[ours], "<=", most))
    return goals


def _with_readings(cells: comparison.Cells, readings: dict[str, float]) -> comparison.Cells:
    return {
        name: [run | {"readings": readings.get(name, 0.0)} for run in runs]
        for name, runs in cells.items()
    }


def compare_sparse(options: Any, folder: Path) -> tuple[comparison.Cells, Goals]:
    """Sparse counts."""
    source = folder / "counts.npz"
    shape = {"rows": options.sparse_rows, "columns": options.sparse_columns}
    _made(make_sparse, source, options, entries=options.entries, **shape)
    few = RANK + OVERSAMPLES
    power = 'method = "hmt"\npower_iterations = 2\n'
    specs = {
        "ours, hmt": write_spec(folder / "hmt.toml", source, power, measurements=few),
        "ours, krylov": write_spec(
            folder / "krylov.toml", source, 'method = "krylov"\n', rounds=KRYLOV_ROUNDS
        ),
        "ours": write_spec(folder / "one.toml", source, "", measurements=MEASUREMENTS),
    }
    contenders = {"scikit-learn": _part(sparse_sklearn, source, options)}
    contenders |= {name: _run(spec, options) for name, spec in specs.items()}
    cells = _cells(contenders, source, options, folder)
    readings = _counted(options, folder, source.stat().st_size, specs)
    # Two for each of: the range, two iterations, the last; and a few rows.
    goals = _goals(cells, readings, 6.05, ("ours, hmt", "scikit-learn", 1.5))
    return _with_readings(cells, readings), goals


def compare_gzip(options: Any, folder: Path) -> tuple[comparison.Cells, Goals]:
    """Compressed chunks, centred."""
    source = folder / "matrix.h5"
    _made(make_gzip, source, options, rows=options.rows, columns=options.columns)
    spec = write_spec(
        folder / "gzip.toml", source, "", measurements=MEASUREMENTS, subtract="column-mean"
    )
    contenders = {
        "IncrementalPCA": _part(gzip_incremental, source, options),
        "dask": _part(gzip_dask, source, options),
        "ours, PCA": _part(gzip_pca, source, options),
        "ours": _run(spec, options),
    }
    cells = _cells(contenders, source, options, folder, centred=True)
    size = source.stat().st_size
    readings = _counted(options, folder, size, {"ours": spec})
    target = folder / "counted"
    target.mkdir()
    where: Any = {"source": str(source), "target": str(target)}
    readings["ours, PCA"] = (
        common.run_part(__file__, count_pca, options.threads, **where)[1]["read"] / size
    )
    goals = _goals(cells, readings, 1.05, ("ours, PCA", "IncrementalPCA", 0.7))
    goals += _goals(cells, readings, 1.05, ("ours", "IncrementalPCA", 0.7))[:: len(goals) - 1]
    return _with_readings(cells, readings), goals


def compare_svd(options: Any, folder: Path) -> tuple[comparison.Cells, Goals]:
    """The matrix of ``matrix_svd.py``."""
    source, spec = folder / "matrix.h5", folder / "svd.toml"
    common.say("making matrix.h5")
    shape = {"rows": options.svd_rows, "columns": options.svd_columns}
    threads = options.threads
    common.run_part(matrix_svd.__file__, matrix_svd.make_matrix, threads, path=str(source), **shape)
    matrix_svd.write_spec(spec, source, MEASUREMENTS)

    def dask(target: Path, _: int) -> tuple[common.Child, Figures]:
        child, _found = common.run_part(
            matrix_svd.__file__, matrix_svd.dask_svd, 1, options.warm, source=str(source),
            target=str(target), chunk_rows=options.chunk_rows,
        )  # fmt: skip
        return child, {}

    def judged(targets: list[str]) -> Figures:
        return {
            target: common.run_part(
                matrix_svd.__file__, matrix_svd.true_error, threads, source=str(source),
                target=target,
            )[1]
            for target in targets
        }  # fmt: skip

    contenders = {"dask": dask, "ours": _run(spec, options)}
    cells = comparison.in_turn(contenders, judged, options.repeats, folder)
    readings = _counted(options, folder, source.stat().st_size, {"ours": spec})
    goals = _goals(cells, readings, 1.05, ("ours", "dask", 0.65))
    return _with_readings(cells, readings), goals


def compare_zarr(options: Any, folder: Path) -> tuple[comparison.Cells, Goals]:
    """Zarr chunks."""
    source = folder / "matrix.zarr"
    _made(make_zarr, source, options, rows=options.rows, columns=options.columns)
    spec = write_spec(folder / "zarr.toml", source, "", measurements=MEASUREMENTS)
    contenders = {"dask": _part(zarr_dask, source, options), "ours": _run(spec, options)}
    cells = _cells(contenders, source, options, folder)
    readings = _counted(options, folder, common.folder_bytes(source), {"ours": spec})
    goals = _goals(cells, readings, 1.05, ("ours", "dask", 0.8))
    return _with_readings(cells, readings), goals


COMPARISONS = {
    "sparse": compare_sparse, "gzip": compare_gzip, "svd": compare_svd, "zarr": compare_zarr,
}  # fmt: skip

_COLUMNS = {
    "wall": ("wall, s", 1, ".1f"),
    "processor": ("processor, s", 1, ".1f"),
    "peak": ("peak, GB", 1e-9, ".2f"),
    "readings": ("readings", 1, ".2f"),
    "error": ("error", 1, ".4f"),
}


def table(cells: comparison.Cells, markdown: bool) -> str:
    """The medians; of others readings are not counted."""
    rows = []
    for name, runs in cells.items():
        found = common.median_of([{key: run[key] for key in _COLUMNS} for run in runs])
        rows.append([name] + [
            format(found[key] * scale, form) if found[key] else "-"
            for key, (_, scale, form) in _COLUMNS.items()
        ])  # fmt: skip
    head = ["", *(title for title, _, _ in _COLUMNS.values())]
    return comparison.markdown_table(head, rows) if markdown else common.text_table(head, rows)


def main() -> None:
    """Reads the command line and runs the comparisons."""
    parts: list[common.Part] = [
        make_sparse, make_gzip, make_zarr, sparse_sklearn, gzip_incremental, gzip_dask, zarr_dask,
        gzip_pca, count_pca, count_run, judge,
    ]  # fmt: skip
    if common.serve_part(parts):
        return
    parser = common.argument_parser(__doc__, rows=300_000, columns=2000, repeats=3)
    parser.add_argument("--sparse-rows", type=int, default=100_000, help="100000")
    parser.add_argument("--sparse-columns", type=int, default=20_000, help="20000")
    parser.add_argument("--entries", type=int, default=1180, help="of a sparse row, 1180")
    parser.add_argument("--svd-rows", type=int, default=200_000, help="200000")
    parser.add_argument("--svd-columns", type=int, default=4000, help="4000")
    parser.add_argument("--chunk-rows", type=int, default=10_000, help="of dask's arrays, 10000")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=PROBLEMS, help="problems")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    options = parser.parse_args()
    largest = max(options.rows * options.columns, options.svd_rows * options.svd_columns)
    found: dict[str, Figures] = {}
    for name in options.only:
        with common.scratch(options.folder, 4 * largest + 2 * 10**9) as folder:
            cells, goals = COMPARISONS[name](options, folder)
        print(f"{name}:\n\n{table(cells, options.markdown)}\n\n{common.goal_table(goals)}\n")
        met = {goal.name: goal.as_json() for goal in goals}
        found[name] = {"runs": cells, "goals": met}
    settings = {key: value for key, value in vars(options).items() if key not in _NO_SETTINGS}
    common.write_json(options.json, {"settings": settings, "problems": found})


_NO_SETTINGS = ("folder", "json", "markdown")


if __name__ == "__main__":
    main()
