"""Small and medium problems, side by side with other packages: where each wins.

Three problems, each with a known best approximation:

* *dense*: a float32 matrix in memory whose singular values fall off as 1, 1/2, 1/3 and so on; 50
  singular values and vectors.
* *disk*: the matrix of ``matrix_svd.py`` in an HDF5 file, larger than the memory given to ours;
  100 singular values and vectors.
* *free*: a Hermitian operator without entries, eigenvalues of both signs that fall off down to a
  flat tail; 20 eigenvalues and vectors.

Everybody works in a process of its own, with the same threads, in turn; figures are medians. *wall*
is the whole process, with its start, reading and writing; *processor* its seconds of all
processors, which say more where other programs are at work; *inside* is the decomposition alone,
without them (ours writes files all the same); *products* are the columns that the operator and its
adjoint are applied to, counted where an operator can be counted, else those of the documented
iterations; *error* is ``||A - Ahat||_F`` over that of the best approximation of this rank, so that
1 is perfect; *worst value* is the largest relative error of an eigenvalue. Vectors are written to
files by all, and judged afterwards. Settings are the defaults of each package, unless it is said.

Usage: python workflows/benchmarks/comparison.py --repeats 3 --markdown --json comparison.json
"""

from __future__ import annotations

import importlib
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common, matrix_svd

DENSE_RANK, FREE_RANK = 50, 20
OVERSAMPLES = 10
POWER_ITERATIONS = 2
DISK_MEMORY = "800MiB"
DISK_MEASUREMENTS = 150
BATCH_ROWS = 2 * matrix_svd.RANK
CHUNKS = 4
FREE_DECAYING, FREE_RATE, FREE_TAIL = 50, 0.05, 1e-3
FREE_MEASUREMENTS = 300
EIGSH_TOLERANCE = 1e-4

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "dask", "skerch", "skerch_ooc")
PROBLEMS = ("dense", "disk", "free")
Figures = dict[str, float]
Cells = dict[str, list[Figures]]


class Counted:
    """An operator that counts the columns that it is applied to."""

    __array_ufunc__ = None  # numpy leaves ``x @ A`` to us

    def __init__(self, inner: Any) -> None:
        self.inner, self.shape, self.dtype, self.products = inner, inner.shape, inner.dtype, 0

    def __matmul__(self, x: Any) -> Any:
        """``A x``."""
        self.products += x.shape[1] if x.ndim == 2 else 1
        return self.inner @ x

    def __rmatmul__(self, x: Any) -> Any:
        """``x A``."""
        self.products += x.shape[0] if x.ndim == 2 else 1
        return x @ self.inner


class CountedHermitian(Counted):
    """One that is its own adjoint."""

    def __rmatmul__(self, x: Any) -> Any:
        """``x A = (A x^T)^T``."""
        return (self @ x.T).T

    def adjoint(self) -> CountedHermitian:
        """Itself."""
        return self


def timed(decompose: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and its seconds."""
    start = time.perf_counter()
    found = decompose()
    return found, time.perf_counter() - start


def save(target: str, **arrays: Any) -> None:
    """Writes vectors and values to files."""
    import numpy as np

    for name, array in arrays.items():
        np.save(f"{target}/{name}.npy", np.asarray(array))


def saved_svd(target: str, found: Sequence[Any], seconds: float, products: float) -> Figures:
    """Writes ``U, S, Vh``."""
    u, s, vh = found
    save(target, U=u, S=s, Vh=vh)
    return {"inside": seconds, "products": products}


def make_dense(path: str, rows: int, columns: int) -> dict[str, Any]:
    """Writes the dense matrix, and the error of its best approximation."""
    import numpy as np

    generator = np.random.default_rng(1)
    small = min(rows, columns)
    values = 1 / np.arange(1.0, small + 1)
    u, _ = np.linalg.qr(generator.standard_normal((rows, small)))
    v, _ = np.linalg.qr(generator.standard_normal((columns, small)))
    np.save(path, ((u * values) @ v.T).astype("float32"))
    return {"best": float(np.linalg.norm(values[DENSE_RANK:]) / np.linalg.norm(values))}


def dense_tensor(source: str) -> Any:
    """The dense matrix for torch."""
    import numpy as np
    import torch

    return torch.from_numpy(np.load(source))


def dense_torch_full(source: str, target: str, seed: int) -> Figures:  # noqa: ARG001
    """All singular values and vectors by LAPACK, of which the leading are kept."""
    import torch

    a, k = dense_tensor(source), DENSE_RANK
    (u, s, vh), seconds = timed(lambda: torch.linalg.svd(a, full_matrices=False))
    return saved_svd(target, (u[:, :k], s[:k], vh[:k]), seconds, 0)


def dense_torch_lowrank(source: str, target: str, seed: int) -> Figures:
    """``torch.svd_lowrank``, with its default of two iterations."""
    import torch

    a, k, q = dense_tensor(source), DENSE_RANK, DENSE_RANK + OVERSAMPLES
    torch.manual_seed(seed)
    (u, s, v), seconds = timed(lambda: torch.svd_lowrank(a, q=q, niter=POWER_ITERATIONS))
    products = q * (2 * POWER_ITERATIONS + 2)
    return saved_svd(target, (u[:, :k], s[:k], v[:, :k].mH), seconds, products)


def dense_sklearn(source: str, target: str, seed: int) -> Figures:
    """``randomized_svd`` with its defaults; with few vectors it makes seven iterations."""
    import numpy as np
    from sklearn.utils.extmath import randomized_svd

    a, k = np.load(source), DENSE_RANK
    found, seconds = timed(lambda: randomized_svd(a, k, random_state=seed))
    iterations = 7 if k < 0.1 * min(a.shape) else 4
    return saved_svd(target, found, seconds, (k + OVERSAMPLES) * (2 * iterations + 2))


def dense_scipy(source: str, target: str, seed: int) -> Figures:
    """``svds`` (ARPACK) with its defaults."""
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, svds

    a = Counted(np.load(source))
    operator = LinearOperator(
        a.shape, lambda x: a @ x, rmatvec=lambda x: x.reshape(-1) @ a, dtype=a.dtype
    )
    found, seconds = timed(lambda: svds(operator, DENSE_RANK, rng=np.random.default_rng(seed)))
    return saved_svd(target, found, seconds, a.products)


def dense_dask(source: str, target: str, seed: int) -> Figures:
    """``svd_compressed`` in threads of this process, with its defaults: no power iterations."""
    import numpy as np

    dask, da = map(importlib.import_module, ("dask", "dask.array"))
    a, k = np.load(source), DENSE_RANK

    def decompose() -> Any:
        array = da.from_array(a, chunks=(-(-len(a) // CHUNKS), -1))
        return dask.compute(*da.linalg.svd_compressed(array, k=k, seed=seed))

    found, seconds = timed(decompose)
    return saved_svd(target, found, seconds, 2 * (k + OVERSAMPLES))


def dense_skerch(source: str, target: str, seed: int) -> Figures:
    """``ssvd`` with its default recovery, ``hmt``; twice as many measurements as the rank."""
    from skerch.algorithms import ssvd

    a, k = Counted(dense_tensor(source)), DENSE_RANK
    found, seconds = timed(
        lambda: ssvd(a, "cpu", a.dtype, 2 * k, seed=seed, meas_blocksize=2 * k)
    )  # fmt: skip
    u, s, vh = found
    return saved_svd(target, (u[:, :k], s[:k], vh[:k]), seconds, a.products)


def dense_ours(source: str, target: str, seed: int) -> Figures:
    """The default method, one pass; twice as many measurements as the rank."""
    return _dense_ours(source, target, seed, measurements=2 * DENSE_RANK)


def dense_ours_power(source: str, target: str, seed: int) -> Figures:
    """``hmt`` with as many iterations as ``torch.svd_lowrank`` makes."""
    return _dense_ours(
        source, target, seed, measurements=DENSE_RANK + OVERSAMPLES, method="hmt",
        power_iterations=POWER_ITERATIONS,
    )  # fmt: skip


def _dense_ours(source: str, target: str, seed: int, **options: Any) -> Figures:
    import skerch_ooc as ooc

    a = Counted(dense_tensor(source))
    _, seconds = timed(lambda: ooc.svd(a, run_dir=target, rank=DENSE_RANK, seed=seed, **options))
    return {"inside": seconds, "products": a.products}


def judge_dense(source: str, targets: list[str], best: float) -> dict[str, Any]:
    """The errors of the vectors that everybody left in files."""
    import numpy as np

    a = np.load(source).astype("float64")
    errors = {}
    for target in targets:
        u, s, vh = _svd_of(target)
        error = np.linalg.norm(a - (u * s) @ vh) / np.linalg.norm(a)
        errors[target] = {"error": float(error) / best}
    return errors


def _svd_of(target: str) -> Any:
    import numpy as np

    if Path(target, "results").exists():
        import skerch_ooc as ooc

        usv: Any = ooc.recover(ooc.open_run(target))
        return usv.U[:].numpy(), usv.S.numpy(), usv.Vh[:].numpy()
    return tuple(np.load(f"{target}/{name}.npy") for name in ("U", "S", "Vh"))


def best_on_disk(source: str) -> dict[str, Any]:
    """The relative error of the best approximation, from the Gram matrix of all columns."""
    import h5py
    import numpy as np

    with h5py.File(source, "r") as file:
        data = file["matrix"]
        gram = np.zeros((data.shape[1],) * 2)
        for start in range(0, len(data), matrix_svd.ROWS_AT_ONCE):
            rows = data[start : start + matrix_svd.ROWS_AT_ONCE]
            gram += rows.T @ rows
    squares = np.linalg.eigvalsh(gram)
    return {"best": float((squares[: -matrix_svd.RANK].sum() / squares.sum()) ** 0.5)}


def disk_torch(source: str, target: str, seed: int) -> Figures:
    """``torch.svd_lowrank`` of the matrix in memory, as for the dense one."""
    import h5py
    import torch

    k, q = matrix_svd.RANK, matrix_svd.RANK + OVERSAMPLES
    torch.manual_seed(seed)

    def decompose() -> Any:
        with h5py.File(source, "r") as file:
            a = torch.from_numpy(file["matrix"][:])
        return torch.svd_lowrank(a, q=q, niter=POWER_ITERATIONS)

    (u, s, v), seconds = timed(decompose)
    products = q * (2 * POWER_ITERATIONS + 2)
    return saved_svd(target, (u[:, :k], s[:k], v[:, :k].mH), seconds, products)


def disk_incremental(source: str, target: str, seed: int) -> Figures:  # noqa: ARG001
    """``IncrementalPCA``, batch by batch, and a second reading for the left vectors.

    It centres the columns, whose means are next to nothing here.
    """
    import h5py
    import numpy as np
    from sklearn.decomposition import IncrementalPCA

    def decompose() -> Any:
        pca = IncrementalPCA(matrix_svd.RANK)
        with h5py.File(source, "r") as file:
            data = file["matrix"]
            # The last batch may not be too small.
            edges = [*range(0, len(data) - BATCH_ROWS + 1, BATCH_ROWS), len(data)]
            batches = list(pairwise(edges))
            for start, stop in batches:
                pca.partial_fit(data[start:stop], check_input=False)
            parts = [pca.transform(data[start:stop]) for start, stop in batches]
        s = pca.singular_values_
        return np.concatenate(parts).astype("float32") / s.astype("float32"), s, pca.components_

    found, seconds = timed(decompose)
    return saved_svd(target, found, seconds, 0)


def judge_disk(source: str, targets: list[str], best: float) -> dict[str, Any]:
    """The errors of the vectors that everybody left in files."""
    return {
        target: {"error": matrix_svd.true_error(source, target)["error"] / best}
        for target in targets
    }


def free_operator(size: int) -> CountedHermitian:
    """The operator without entries."""
    from skerch_ooc.operators.synthetic import decaying

    return CountedHermitian(decaying(size, FREE_DECAYING, FREE_RATE, FREE_TAIL))


def saved_eigh(target: str, found: Sequence[Any], seconds: float, products: float) -> Figures:
    """Writes eigenvalues and eigenvectors."""
    values, vectors = found
    save(target, values=values, vectors=vectors)
    return {"inside": seconds, "products": products}


def free_scipy(size: int, target: str, seed: int) -> Figures:
    """``eigsh`` (ARPACK), the largest in magnitude, to a tolerance of 1e-4."""
    import numpy as np
    import torch
    from scipy.sparse.linalg import LinearOperator, eigsh

    a = free_operator(size)
    operator = LinearOperator(
        a.shape, lambda x: (a @ torch.from_numpy(x)).numpy(), dtype=np.dtype("float32")
    )
    start = np.random.default_rng(seed).standard_normal(size, dtype="float32")
    found, seconds = timed(
        lambda: eigsh(operator, FREE_RANK, which="LM", v0=start, tol=EIGSH_TOLERANCE)
    )
    return saved_eigh(target, found, seconds, a.products)


def free_skerch(size: int, target: str, seed: int) -> Figures:
    """``seigh`` with its default recovery, ``hmt``: as many products as ours."""
    from skerch.algorithms import seigh

    a, m = free_operator(size), FREE_MEASUREMENTS // 2
    found, seconds = timed(lambda: seigh(a, "cpu", a.dtype, m, seed=seed, meas_blocksize=m))
    values, vectors = found
    return saved_eigh(target, (values[:FREE_RANK], vectors[:, :FREE_RANK]), seconds, a.products)


def free_ours(size: int, target: str, seed: int) -> Figures:
    """The default method, one pass."""
    return _free_ours(size, target, seed, measurements=FREE_MEASUREMENTS)


def free_ours_hmt(size: int, target: str, seed: int) -> Figures:
    """``hmt``, two rounds of half as many measurements."""
    return _free_ours(size, target, seed, measurements=FREE_MEASUREMENTS // 2, method="hmt")


def _free_ours(size: int, target: str, seed: int, **options: Any) -> Figures:
    import skerch_ooc as ooc

    a = free_operator(size)
    _, seconds = timed(lambda: ooc.eigh(a, run_dir=target, rank=FREE_RANK, seed=seed, **options))
    return {"inside": seconds, "products": a.products}


def judge_free(size: int, targets: list[str]) -> dict[str, Any]:
    """The errors of what everybody left, against what the operator is made of."""
    import numpy as np
    import torch

    a = free_operator(size).inner
    true = np.sort(np.abs(a.eigenvalues.double().numpy()))[::-1]
    best = float(np.linalg.norm(true[FREE_RANK:]))
    errors = {}
    for target in targets:
        values, vectors = _eigh_of(target)
        order = np.argsort(-np.abs(values))
        values, vectors = values[order].astype("float64"), vectors[:, order].astype("float64")
        product = (a @ torch.from_numpy(vectors).float()).double().numpy()
        # ||A - U L U^T||^2 = ||A||^2 - 2 tr(L U^T A U) + ||U L U^T||^2
        gram = vectors.T @ vectors * values
        square = float(true @ true) - 2 * float(values @ np.sum(vectors * product, 0))
        square += float(np.sum(gram * gram.T))
        worst = float(np.max(np.abs(np.abs(values) / true[:FREE_RANK] - 1)))
        errors[target] = {"error": math.sqrt(max(square, 0)) / best, "worst": worst}
    return errors


def _eigh_of(target: str) -> Any:
    import numpy as np

    if Path(target, "results").exists():
        import skerch_ooc as ooc

        eig: Any = ooc.recover(ooc.open_run(target))
        return eig.eigenvalues.numpy(), eig.eigenvectors[:].numpy()
    return np.load(f"{target}/values.npy"), np.load(f"{target}/vectors.npy")


DENSE: dict[str, common.Part] = {
    "torch.linalg.svd (all values)": dense_torch_full,
    "torch.svd_lowrank": dense_torch_lowrank,
    "sklearn randomized_svd": dense_sklearn,
    "scipy svds": dense_scipy,
    "dask svd_compressed": dense_dask,
    "skerch ssvd": dense_skerch,
    "skerch_ooc": dense_ours,
    "skerch_ooc, hmt, 2 iterations": dense_ours_power,
}
DISK: dict[str, common.Part] = {
    "torch.svd_lowrank, in memory": disk_torch,
    "sklearn IncrementalPCA": disk_incremental,
}
FREE: dict[str, common.Part] = {
    "scipy eigsh": free_scipy,
    "skerch seigh": free_skerch,
    "skerch_ooc": free_ours,
    "skerch_ooc, hmt": free_ours_hmt,
}
Contender = Callable[[Path, int], tuple[common.Child, Figures]]


def in_turn(
    contenders: dict[str, Contender], judge: Callable[[list[str]], dict[str, Any]],
    repeats: int, folder: Path,
) -> Cells:  # fmt: skip
    """Runs all in turn, judges them after each turn, and returns the figures of each run."""
    cells: Cells = {name: [] for name in contenders}
    for number in range(repeats):
        targets = {name: folder / f"target{place}" for place, name in enumerate(contenders)}
        for name, decompose in contenders.items():
            targets[name].mkdir()
            child, figures = decompose(targets[name], number + 1)
            processor = child.user + child.system
            measured = {"wall": child.wall, "processor": processor, "peak": child.peak}
            cells[name].append(measured | figures)
            common.say(f"{name}: {child.wall:.1f} s")
        errors = judge([str(target) for target in targets.values()])
        for name, target in targets.items():
            cells[name][-1] |= errors[str(target)]
            common.remove(target)
    return cells


def parts(functions: dict[str, common.Part], threads: int, warm: bool, **where: Any) -> Any:
    """Contenders of functions of this script."""

    def contender(function: common.Part) -> Contender:
        return lambda target, seed: common.run_part(
            __file__, function, threads, warm, target=str(target), seed=seed, **where
        )

    return {name: contender(function) for name, function in functions.items()}


def compare_dense(options: Any, folder: Path) -> Cells:
    """The dense matrix."""
    source = str(folder / "dense.npy")
    shape = {"rows": options.rows, "columns": options.columns}
    _, truth = common.run_part(__file__, make_dense, options.threads, path=source, **shape)

    def judge(targets: list[str]) -> dict[str, Any]:
        where = {"source": source, "targets": targets, "best": truth["best"]}
        return common.run_part(__file__, judge_dense, options.threads, **where)[1]

    contenders = parts(DENSE, options.threads, options.warm, source=source)
    return in_turn(contenders, judge, options.repeats, folder)


def compare_disk(options: Any, folder: Path) -> Cells:
    """The matrix on disk."""
    threads, warm, matrix, spec = options.threads, options.warm, folder / "a.h5", folder / "a.toml"
    common.say("making the matrix")
    shape = {"rows": options.disk_rows, "columns": options.disk_columns}
    common.run_part(matrix_svd.__file__, matrix_svd.make_matrix, threads, path=str(matrix), **shape)
    _, truth = common.run_part(__file__, best_on_disk, threads, source=str(matrix))
    matrix_svd.write_spec(spec, matrix, DISK_MEASUREMENTS)

    def dask(target: Path, _: int) -> tuple[common.Child, Figures]:
        child, _found = common.run_part(
            matrix_svd.__file__, matrix_svd.dask_svd, 1, warm, source=str(matrix),
            target=str(target), chunk_rows=options.chunk_rows,
        )  # fmt: skip
        return child, {}

    def ours(target: Path, seed: int) -> tuple[common.Child, Figures]:
        child = common.run_cli(
            "run", spec, "--run", target, "--set", f"seed={seed}", "--memory", DISK_MEMORY,
            "--threads", threads, threads=threads, warm=warm,
        )  # fmt: skip
        return child, {}

    def judge(targets: list[str]) -> dict[str, Any]:
        where = {"source": str(matrix), "targets": targets, "best": truth["best"]}
        return common.run_part(__file__, judge_disk, threads, **where)[1]

    contenders = parts(DISK, threads, warm, source=str(matrix))
    contenders |= {"dask svd_compressed, 2 workers": dask, f"skerch_ooc, {DISK_MEMORY}": ours}
    return in_turn(contenders, judge, options.repeats, folder)


def compare_free(options: Any, folder: Path) -> Cells:
    """The operator without entries."""

    def judge(targets: list[str]) -> dict[str, Any]:
        where = {"size": options.size, "targets": targets}
        return common.run_part(__file__, judge_free, options.threads, **where)[1]

    contenders = parts(FREE, options.threads, options.warm, size=options.size)
    return in_turn(contenders, judge, options.repeats, folder)


_COLUMNS = {
    "wall": ("wall, s", 1, ".1f"),
    "processor": ("processor, s", 1, ".1f"),
    "inside": ("inside, s", 1, ".2f"),
    "peak": ("peak, GB", 1e-9, ".2f"),
    "products": ("products", 1, ".0f"),
    "error": ("error / best", 1, ".3f"),
    "worst": ("worst value", 1, ".1e"),
}


def table(cells: Cells, markdown: bool) -> str:
    """The medians: figures that nobody has are left out, those that one has not are a dash."""
    medians = {name: common.median_of(runs) for name, runs in cells.items()}
    keys = [key for key in _COLUMNS if sum(bool(found.get(key)) for found in medians.values()) > 1]
    # What only some have of the disk's contenders does not compare them.
    if any("inside" not in found for found in medians.values()):
        keys = [key for key in keys if key not in ("inside", "products")]
    head = ["", *(_COLUMNS[key][0] for key in keys)]
    rows = [
        [name, *(_cell(found.get(key), key) for key in keys)] for name, found in medians.items()
    ]
    return markdown_table(head, rows) if markdown else common.text_table(head, rows)


def _cell(value: float | None, key: str) -> str:
    _, scale, form = _COLUMNS[key]
    if value is None or (key == "products" and value == 0):
        return "-"
    return format(value * scale, form) if value else "0"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: the first column is flush left, the others flush right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(
        f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, rule, *rows)
    )


def titles(options: Any) -> dict[str, str]:
    """What the problems are, for people."""
    gigabytes = 4 * options.disk_rows * options.disk_columns / 1e9
    return {
        "dense": f"A dense {options.rows} x {options.columns} float32 matrix in memory, singular "
        f"values 1/i, rank {DENSE_RANK}:",
        "disk": f"A {options.disk_rows} x {options.disk_columns} float32 matrix of {gigabytes:.1f} "
        f"GB on disk, rank {matrix_svd.RANK}:",
        "free": f"A Hermitian operator of {options.size} rows without entries, {FREE_DECAYING} "
        f"eigenvalues of both signs from 1 down to {10 ** -(FREE_RATE * (FREE_DECAYING - 1)):.4f}, "
        f"then a flat tail of {FREE_TAIL}; rank {FREE_RANK}:",
    }  # fmt: skip


def circumstances(options: Any) -> str:
    """Where and with what the figures were measured."""
    models = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Medians of {options.repeats} runs, {options.threads} threads of {processor}; Python "
        f"{platform.python_version()}, {packages}."
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Reads the command line and runs the comparison."""
    judges: list[common.Part] = [make_dense, best_on_disk, judge_dense, judge_disk, judge_free]
    if common.serve_part([*DENSE.values(), *DISK.values(), *FREE.values(), *judges]):
        return
    parser = common.argument_parser(__doc__, rows=4000, columns=2000, repeats=3)
    parser.add_argument("--disk-rows", type=int, default=100_000, help="on disk, 100000")
    parser.add_argument("--disk-columns", type=int, default=4000, help="on disk, 4000")
    parser.add_argument("--chunk-rows", type=int, default=10_000, help="of dask's arrays, 10000")
    parser.add_argument("--size", type=int, default=200_000, help="of the operator, 200000")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=PROBLEMS, help="problems")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    options = parser.parse_args()
    compare = {"dense": compare_dense, "disk": compare_disk, "free": compare_free}
    # The matrix, everybody's vectors, our sketches.
    needed = 8 * options.disk_rows * options.disk_columns + 5000 * options.size + 10**9
    found: dict[str, Cells] = {}
    with common.scratch(options.folder, needed) as folder:
        for name in options.only:
            found[name] = compare[name](options, folder)
    for name, cells in found.items():
        print(f"{titles(options)[name]}\n\n{table(cells, options.markdown)}\n")
    print(circumstances(options))
    settings = {key: getattr(options, key) for key in ("rows", "columns", "disk_rows",
                "disk_columns", "chunk_rows", "size", "threads", "repeats")}  # fmt: skip
    common.write_json(options.json, {"settings": settings, "runs": found})


if __name__ == "__main__":
    main()
