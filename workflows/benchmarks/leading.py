"""Leading pairs to a tolerance: products, rounds, time and true errors, side by side.

Six problems, float32 operators without entries whose eigenvalues are known in float64:

* *digits*: the Hessian of ``digits_hessian.py``, 16,522 parameters; the truth is that of the same
  network in double precision, by ``eigsh`` with a tolerance of 1e-10.
* *flat*: 50 eigenvalues from 10 to 1, the others uniform between 0 and 0.1; 200,000 rows.
* *inverse*: 1, -1/2, 1/3, -1/4 and so on; 20,000 rows.
* *exponential*: ``(-1)^i 10^(-0.02 i)``, 20,000 rows.
* *slow*: as *exponential*, but each column takes 20 ms more, in which nothing is computed.
* *singular*: the singular values of *inverse*.

Everybody works in a process of its own, with the same threads, in turn, in the same run; figures
are medians. ``krylov`` has rounds of several widths; the methods that know no tolerance (our
``nystrom`` and ``hmt``, skerch's ``hmt``, hessian-eigenthings) get as many products as ``krylov``
made in rounds of the first of ``--equal``. PRIMME and hessian-eigenthings are run if they are
installed.

A cell reads *products* in *rounds* that wait for each other, the *largest relative error* of the
wanted values, and the *seconds* of the decomposition, without start and reading, ours with all
files; behind them how many times those of the first row. What each package calls its tolerance is
its own: ours bounds the relative error of each value, ARPACK and PRIMME the residual. Products of
tests and probes (ours only) are not counted in the cells; the JSON has them, and the wall time of
the whole process.

Usage: python workflows/benchmarks/leading.py --repeats 3 --markdown --json leading.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from workflows.benchmarks import common, comparison

PROBLEMS = {
    "digits": 0, "flat": 200_000, "inverse": 20_000, "exponential": 20_000, "slow": 20_000,
    "singular": 20_000,
}  # fmt: skip
"""Rows; those of the Hessian follow from its hidden layers."""

FLAT_SEED = 0
OUTLIERS = 50
RATE = 0.02
SLOW_SECONDS = 0.02
TRUTH_TOLERANCE = 1e-10
EQUAL_WHERE_REFUSED = 8
"""Products for each pair, where ours refuses the tolerance and makes none."""
PRIMME_BLOCKS = (1, 8)
PEERS = {"primme": "PRIMME", "hessian_eigenthings": "hessian-eigenthings"}
"""What is run only where it is installed: module and name."""

Figures = dict[str, Any]


class Slow:
    """A symmetric operator whose columns take their time.

    Args:
        inner: What it computes.
        seconds: For each column, in addition.
    """

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds
        self.shape, self.dtype = inner.shape, inner.dtype

    def __matmul__(self, x: Any) -> Any:
        """``A x``."""
        time.sleep(self.seconds * (x.shape[1] if x.ndim == 2 else 1))
        return self.inner @ x

    def adjoint(self) -> Slow:
        """Itself."""
        return self


def spectrum(problem: str, size: int) -> Any:
    """The eigenvalues of a problem that is made of them, float64, in no order."""
    import torch

    if problem == "flat":
        generator = torch.Generator().manual_seed(FLAT_SEED)
        rest = 0.1 * torch.rand(size - OUTLIERS, generator=generator, dtype=torch.float64)
        return torch.cat([torch.linspace(10, 1, OUTLIERS, dtype=torch.float64), rest])
    index = torch.arange(size, dtype=torch.float64)
    signs = 1 - 2 * (index % 2)
    return signs * (
        10.0 ** (-RATE * index) if problem in ("exponential", "slow") else 1 / (1 + index)
    )


def build(problem: str, size: int, hidden: int) -> Any:
    """The operator of a problem: what the spec of ours names, and the others are given."""
    from skerch_ooc.operators.synthetic import ReflectedDiagonal
    from workflows import digits_hessian

    if problem == "digits":
        return digits_hessian.make(hidden=hidden)
    made = ReflectedDiagonal(spectrum(problem, size).float())
    return Slow(made, SLOW_SECONDS) if problem == "slow" else made


def truth(problem: str, size: int, hidden: int, most: int) -> Figures:
    """The leading eigenvalues in double precision."""
    import torch

    if problem == "digits":
        values = torch.from_numpy(_true_digits(hidden, most))
    else:
        values = spectrum(problem, size)
    if problem == "singular":
        values = values.abs()
    leading = values.abs().argsort(descending=True, stable=True)[:most]
    return {"values": values[leading].tolist()}


def _true_digits(hidden: int, most: int) -> Any:
    from skerch_ooc.operators import curvature
    from workflows import digits_hessian

    model, loss, data = digits_hessian.problem(hidden=hidden)
    data = [(x.double(), y) for x, y in data]
    a = curvature.hessian(model.double(), loss, data)
    return _arpack(a, most, TRUTH_TOLERANCE, "float64", 0)


def _arpack(a: Any, pairs: int, tolerance: float, dtype: str, seed: int) -> Any:
    """Values by ``eigsh``; those that it has where it gives up."""
    import numpy as np
    import torch
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    operator = LinearOperator(
        a.shape, lambda x: (a @ torch.from_numpy(x).reshape(-1, 1)).numpy(), dtype=np.dtype(dtype)
    )
    start = np.random.default_rng(seed).standard_normal(a.shape[0]).astype(dtype)
    try:
        return eigsh(operator, pairs, which="LM", v0=start, tol=tolerance)[0]
    except ArpackNoConvergence as stopped:
        return stopped.eigenvalues


def by_arpack(seed: int, pairs: int, tolerance: float, **where: Any) -> Figures:
    """SciPy's ``eigsh`` or ``svds`` (both ARPACK), in memory."""
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, svds

    a = comparison.CountedHermitian(build(**where))
    if where["problem"] != "singular":
        values, seconds = comparison.timed(lambda: _arpack(a, pairs, tolerance, "float32", seed))
        return _sequential(values, seconds, a.products)
    apply = _numpy_product(a)
    operator = LinearOperator(a.shape, apply, rmatvec=apply, dtype=np.dtype("float32"))
    start = np.random.default_rng(seed).standard_normal(a.shape[0], dtype="float32")
    (_, values, _), seconds = comparison.timed(
        lambda: svds(operator, pairs, tol=tolerance, v0=start)
    )
    return _sequential(values, seconds, a.products)


def _numpy_product(a: Any) -> Callable[[Any], Any]:
    import torch

    return lambda x: (a @ torch.from_numpy(x.astype("float32").reshape(len(x), -1))).numpy()


def _sequential(values: Any, seconds: float, products: int, block: int = 1) -> Figures:
    """Figures of a method that takes one block after the other."""
    return {
        "values": [float(value) for value in values], "inside": seconds, "products": products,
        "rounds": math.ceil(products / block),
    }  # fmt: skip


def by_primme(seed: int, pairs: int, tolerance: float, block: int, **where: Any) -> Figures:
    """PRIMME's ``eigsh`` or ``svds``, with blocks, in memory."""
    import numpy as np

    primme: Any = importlib.import_module("primme")
    from scipy.sparse.linalg import LinearOperator

    a = comparison.CountedHermitian(build(**where))
    apply = _numpy_product(a)
    operator = LinearOperator(
        a.shape, apply, matmat=apply, rmatvec=apply, rmatmat=apply, dtype=np.dtype("float32")
    )
    # What it draws its start from.
    np.random.seed(seed)
    singular = where["problem"] == "singular"
    solve = primme.svds if singular else primme.eigsh
    options = {"which": "LM", "maxBlockSize": block, "tol": tolerance}
    found, seconds = comparison.timed(lambda: solve(operator, pairs, **options))
    return _sequential(found[1 if singular else 0], seconds, a.products, block)


def by_eigenthings(
    seed: int, pairs: int, tolerance: float, equal: int, reorthogonalize: bool | None, **where: Any
) -> Figures:
    """``lanczos`` of hessian-eigenthings, in memory, with as many steps as products are equal."""
    peer: Any = importlib.import_module("hessian_eigenthings")
    base: Any = importlib.import_module("hessian_eigenthings.operators.base")
    a = comparison.CountedHermitian(build(**where))
    operator = base.LambdaOperator(lambda v: (a @ v[:, None])[:, 0], a.shape[0])
    found, seconds = comparison.timed(
        lambda: peer.lanczos(
            operator, k=pairs, max_iter=equal, tol=tolerance, seed=seed,
            reorthogonalize=reorthogonalize,
        )
    )  # fmt: skip
    return _sequential(found.eigenvalues, seconds, a.products)


def by_skerch(seed: int, pairs: int, tolerance: float, equal: int, **where: Any) -> Figures:  # noqa: ARG001
    """Skerch's ``hmt``, in memory: two rounds."""
    from skerch.algorithms import seigh, ssvd

    a, m = comparison.CountedHermitian(build(**where)), equal // 2
    options = {"seed": seed, "meas_blocksize": m}
    if where["problem"] == "singular":
        (_, values, _), seconds = comparison.timed(lambda: ssvd(a, "cpu", a.dtype, m, **options))
    else:
        (values, _), seconds = comparison.timed(lambda: seigh(a, "cpu", a.dtype, m, **options))
    return _sequential(values, seconds, a.products, m)


def by_ours(
    seed: int, pairs: int, folder: str, workers: int, spec: dict[str, Any], **where: Any
) -> Figures:
    """A run of ours: in this process, or on Dask workers."""
    import skerch_ooc as ooc

    kind = "svd" if where["problem"] == "singular" else "eigh"
    recovery = {"rank": pairs} | spec.pop("recovery", {})
    table = spec | {
        "kind": kind, "seed": seed, "dtype": "float32", "recovery": recovery,
    }  # fmt: skip
    given: dict[str, Any] = {"threads": int(os.environ["OMP_NUM_THREADS"])}
    if workers:
        # Each builds the operator for itself.
        table["operator"] = {"factory": f"{__file__}:build", "args": where}
        given["executor"] = ooc.Dask(workers=workers)
    else:
        given["operator"] = build(**where)

    def decompose() -> Any:
        # A tolerance that is not met is said by the figures.
        with contextlib.suppress(ooc.QualityError):
            ooc.run(table, folder, **given)
        return ooc.recover(ooc.open_run(folder))

    try:
        found, seconds = comparison.timed(decompose)
    except ooc.UsageError as error:
        return {"refused": str(error)}
    run = ooc.open_run(folder)
    values = found.S if isinstance(found, ooc.Svd) else found.eigenvalues
    return {"values": values.tolist(), "inside": seconds} | _effort(ooc, run)


def _effort(ooc: Any, run: Any) -> Figures:
    """Products and rounds of a run of ours."""
    from skerch_ooc.pipeline.status import status

    error, columns = ooc.assess(run), status(run).columns
    tests, pairs = columns.get("test", {}).get("done", 0), error.pairs
    return {
        "products": error.products["done"] - tests,
        "beside": tests + error.products["probe"],
        "rounds": pairs.rounds if pairs else run.plan.rounds,
        "met": pairs.met if pairs else None,
    }


@dataclass(frozen=True)
class Question:
    """What is looked for: a problem, how many pairs of it, and to which tolerance."""

    problem: str
    pairs: int
    tolerance: float


PARTS: list[common.Part] = [truth, by_arpack, by_primme, by_eigenthings, by_skerch, by_ours]
Task = tuple[common.Part, dict[str, Any]]
Cells = dict[str, list[Figures]]


def krylov(width: int, workers: int, tolerance: float) -> Task:
    """Ours in rounds of a width."""
    spec = {"pairs_tolerance": tolerance, "round_width": width}
    return by_ours, {"workers": workers, "spec": spec}


def contenders(
    question: Question, equal: int, options: argparse.Namespace
) -> dict[str, Task | None]:
    """Who takes part, and what with; ``None`` for what is not installed."""
    tolerance, told = question.tolerance, {"tolerance": question.tolerance, "equal": equal}
    arpack = "svds" if question.problem == "singular" else "eigsh"
    found: dict[str, Task | None] = {f"scipy {arpack}": (by_arpack, {"tolerance": tolerance})}
    for block in PRIMME_BLOCKS:
        found[f"PRIMME, blocks of {block}"] = (by_primme, {"tolerance": tolerance, "block": block})
    if question.problem != "singular":
        for name, always in (("", None), (", reorthogonalized", True)):
            task = by_eigenthings, told | {"reorthogonalize": always}
            found[f"hessian-eigenthings{name}"] = task
    found["skerch hmt"] = (by_skerch, told)
    # The left sketch of ``nystrom`` has one and a half times as many columns as the right one.
    share = 1 if question.problem != "singular" else 2.5
    for method, columns in (("nystrom", equal / share), ("hmt", equal / 2)):
        spec = {"measurements": int(columns), "recovery": {"method": method}}
        found[method] = (by_ours, {"workers": 0, "spec": spec})
    for width, workers in product(options.widths, options.workers):
        where = f", {workers} worker{'s' * (workers > 1)}" if workers else ""
        found[f"krylov, rounds of {width}{where}"] = krylov(width, workers, tolerance)
    if options.contenders:
        found = {name: task for name, task in found.items() if name.startswith(options.contenders)}
    missing = tuple(name for module, name in PEERS.items() if not importlib.util.find_spec(module))
    return {
        name: None if missing and name.startswith(missing) else task for name, task in found.items()
    }


def answer(
    question: Question, options: argparse.Namespace, true: Sequence[float], folder: Path
) -> Cells:
    """Runs all in turn, and returns the figures of each run; none of what is not installed."""
    cells: Cells = {}
    for number in range(options.repeats):
        where = problem_of(question.problem, options) | {"pairs": question.pairs}
        where |= {"seed": number + 1}
        # First, as it tells the others how many products are equal.
        ours = krylov(options.equal, 0, question.tolerance)
        ours_figures = _run(ours, where, options.threads, folder)
        equal = ours_figures.get("products", EQUAL_WHERE_REFUSED * question.pairs)
        for name, task in contenders(question, equal, options).items():
            runs = cells.setdefault(name, [])
            if task is None:
                continue
            done = task == ours
            figures = ours_figures if done else _run(task, where, options.threads, folder)
            runs.append(figures | {"error": worst(figures.get("values", []), true)})
            common.say(f"{question}, {name}: {figures.get('inside', 0):.1f} s")
    return cells


def _run(task: Task, where: dict[str, Any], threads: int, folder: Path) -> Figures:
    """One task in a process of its own, in a new folder if it is ours."""
    function, arguments = task
    target = folder / "run"
    own: dict[str, Any] = {"folder": str(target)} if function is by_ours else {}
    child, figures = common.run_part(__file__, function, threads, **where, **arguments, **own)
    if target.exists():
        common.remove(target)
    return child.figures() | figures


def problem_of(problem: str, options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`build`."""
    size = min(options.size or PROBLEMS[problem], PROBLEMS[problem])
    return {"problem": problem, "size": size, "hidden": options.hidden}


def worst(values: Sequence[float], true: Sequence[float]) -> float:
    """The largest relative error of the wanted values; one that is not there is taken for 0."""
    found = sorted(sorted(values, key=abs, reverse=True)[: len(true)])
    found = sorted(found + [0.0] * (len(true) - len(found)))
    return max(abs(a - b) / abs(b) for a, b in zip(found, sorted(true), strict=True))


def cell(runs: Sequence[Figures], first: Sequence[Figures]) -> str:
    """Medians of a contender's runs, for people."""
    if not runs:
        return "not installed"
    if "refused" in runs[0]:
        return "refused"
    numbers = ("products", "rounds", "error", "inside")
    found = common.median_of([{key: run[key] for key in numbers} for run in runs])
    text = f"{found['products']:.0f} in {found['rounds']:.0f}; {found['error']:.0e}; "
    text += f"{found['inside']:.2g} s"
    if len(runs) == len(first) and "inside" in first[0] and runs is not first:
        ratio = common.median_ratio(_inside(runs), _inside(first))
        text += f" ({ratio:.2g})"
    return text


def _inside(runs: Sequence[Figures]) -> list[float]:
    return [run["inside"] for run in runs]


def table(found: dict[str, Cells], markdown: bool) -> str:
    """A row for each contender, a column for each problem."""
    names = dict.fromkeys(_role(name) for cells in found.values() for name in cells)
    rows = [[name, *(_cell_of(cells, name) for cells in found.values())] for name in names]
    head = ["", *found]
    return comparison.markdown_table(head, rows) if markdown else common.text_table(head, rows)


def _role(name: str) -> str:
    """ARPACK's two functions have one row."""
    return "scipy eigsh, svds" if name.startswith("scipy") else name


def _cell_of(cells: Cells, role: str) -> str:
    first = next(runs for name, runs in cells.items() if name.startswith("scipy"))
    chosen = [runs for name, runs in cells.items() if _role(name) == role]
    return cell(chosen[0], first) if chosen else "-"


def circumstances(options: argparse.Namespace) -> str:
    """Where and with what the figures were measured."""
    installed = [name for module, name in PEERS.items() if importlib.util.find_spec(module)]
    versions = ", ".join(f"{name} {version(name.lower())}" for name in installed)
    return comparison.circumstances(options) + (f" Besides: {versions}." if versions else "")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), help="all")
    add("--pairs", nargs="+", type=int, default=[10, 20, 50], help="10 20 50")
    add("--tolerances", nargs="+", type=float, default=[1e-4, 1e-6], help="1e-4 1e-6")
    add("--widths", nargs="+", type=int, default=[8, 16, 64], help="of rounds, 8 16 64")
    add("--workers", nargs="+", type=int, default=[0],
        help="Dask workers of krylov; 0, the default: in its own process")  # fmt: skip
    add("--contenders", nargs="+", default=(),
        help="only those whose names begin so, scipy among them; all")  # fmt: skip
    add("--equal", type=int, default=16, help="width of the krylov that others are equal to, 16")
    add("--size", type=int, help="rows at most, of all but the Hessian")
    add("--hidden", type=int, default=96, help="width of the network's hidden layers, 96")
    add("--repeats", type=int, default=1, help="1")
    add("--threads", type=int, default=1, help="of each process, 1")
    add("--folder", type=Path, help="for all files, removed again; a temporary one")
    add("--markdown", action="store_true", help="print tables in Markdown")
    common.add_json(parser)
    found = parser.parse_args()
    found.contenders = tuple(found.contenders)
    return found


def compare(options: argparse.Namespace, folder: Path) -> dict[tuple[int, float], dict[str, Cells]]:
    """Asks all questions, each problem in turn."""
    found: dict[tuple[int, float], dict[str, Cells]] = {}
    for problem in options.problems:
        where = problem_of(problem, options) | {"most": max(options.pairs)}
        values = common.run_part(__file__, truth, options.threads, **where)[1]["values"]
        for pairs, tolerance in product(options.pairs, options.tolerances):
            question = Question(problem, pairs, tolerance)
            cells = answer(question, options, values[:pairs], folder)
            found.setdefault((pairs, tolerance), {})[problem] = cells
    return found


def main() -> None:
    """Reads the command line and runs the comparison."""
    if common.serve_part(PARTS):
        return
    options = arguments()
    # Products, basis and vectors of one run at a time, of at most some 1000 columns.
    largest = max(problem_of(name, options)["size"] for name in options.problems)
    with common.scratch(options.folder, 12_000 * largest + 10**9) as folder:
        found = compare(options, folder)
    for (pairs, tolerance), problems in found.items():
        print(f"{pairs} pairs to {tolerance:.0e}:\n\n{table(problems, options.markdown)}\n")
    print(circumstances(options))
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "folder")}
    runs = {f"{pairs} pairs to {tolerance:.0e}": each for (pairs, tolerance), each in found.items()}
    common.write_json(options.json, {"settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
