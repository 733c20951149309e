"""How accurate the methods are, on matrices whose best approximation is known.

Two tables, of the median over seeds of the *excess* ``||A - Ahat||_F / ||A - [A]_r||_F - 1``, and
one of the error ``||A - Ahat||_F / ||A||_F`` of all that a method finds:

* *general*: the synthetic matrices of Tropp, Yurtsever, Udell and Cevher 2019 (arXiv 1902.08651,
  section 7.3.1), complex, ``n = 1000`` and ``r = 10``, at four budgets; without ExpDecay fast,
  which is rounding from rank 40 on. ``oversampled`` has the natural ``k`` and ``s`` of the budget,
  which makes ``2 k + s`` products; ``nystrom`` makes as many (``m + 1.5 m``), chooses its core
  itself and has 30 test columns besides, which ``oversampled`` does not need.
* *Hermitian*: eigenvalues of mixed signs, ``n = 3000`` and ``r = 60``, single precision sketches.
  Every method makes 240 products, ``nystrom``, ``singlepass`` and ``hmt`` with a core of their own
  choice 30 more for the test.
* *one pass*: ``kind = "svd"``, the matrices of the first table and ``10^(-0.1 i)``, ``n = 400``, in
  single and in double precision. Every method makes 120 products, in as many columns on both sides;
  ``nystrom``, ``singlepass`` and ``auto`` 30 more for the test.

Nothing is written to disk: the sketches are small, and go to the methods directly. The matrices
are diagonal wherever possible: Gaussian test matrices do not see the difference.

    python accuracy.py [--seeds 40] [--quick] [--table general|hermitian|one-pass] [--json FILE]

Beside our methods stand the square pseudo-inverses that are widely used, and those of the skerch
package, if it is installed, from the very same sketches.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).resolve().parents[2]))

from skerch_ooc.algebra.linalg import block_diagonal, triangular_factor
from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.metric import AppliedColumns, extraction
from skerch_ooc.algebra.methods.problem import Problem
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.sizes import default_left
from workflows.benchmarks import common

try:
    import skerch.recovery as peer
    import torch
except ImportError:
    peer = None

Array = npt.NDArray[Any]
Errors = dict[str, float]

TESTS = 30
MATRIX_SEED = 2**63

GENERAL_SIZE, GENERAL_RANK = 1000, 10
BUDGETS = {23: (22, 44), 46: (42, 89), 92: (79, 161), 184: (143, 286)}
"""``T / (m + n)``, and the natural ``k`` and ``s`` that belong to it."""

HERMITIAN_SIZE, HERMITIAN_RANK, HERMITIAN_PRODUCTS = 3000, 60, 240

ONE_PASS_SIZE, ONE_PASS_PRODUCTS = 400, 120
ONE_PASS_DTYPES = ("complex64", "complex128")

GENERAL_TARGETS: Mapping[str, tuple[float | None, ...]] = {
    "LowRank low noise": (1.18, 0.56, 0.27, 0.124),
    "LowRank medium noise": (1.10, 0.53, 0.28, 0.126),
    "LowRank high noise": (0.51, 0.39, 0.31, 0.20),
    "PolyDecay slow": (0.87, 0.46, 0.24, 0.109),
    "PolyDecay medium": (0.42, 0.082, 0.020, 5.5e-3),
    "PolyDecay fast": (1.7e-2, 3.9e-4, 2.1e-5, 1.6e-6),
    "ExpDecay slow": (0.54, 0.28, 0.089, 4.2e-3),
    "ExpDecay medium": (5.5e-2, 4.5e-6, None, None),
}
"""Medians of six runs of the paper's protocol; what is below 1e-10 is left out."""

HERMITIAN_TARGETS: Mapping[str, Mapping[str, float]] = {
    "exp .02": {"hmt": 2.2e-2, "singlepass square": 5e-4, "oversampled": 3.8e-2, "nystrom": 2e-5},
    "exp .1": {"hmt": 1e-4, "singlepass square": 4e-3, "oversampled": 2e-4, "nystrom": 4e-3},
    "poly 1": {"hmt": 0.39, "singlepass square": 15.6, "oversampled": 0.61, "nystrom": 0.29},
    "poly 2": {"hmt": 0.25, "singlepass square": 9.6, "oversampled": 0.40, "nystrom": 0.083},
    "60 outliers + bulk": {
        "hmt": 0.71, "singlepass square": 14, "oversampled": 0.99, "nystrom": 0.34,
    },
    "poly .5": {"hmt": 0.21, "singlepass square": 20, "oversampled": 0.40, "nystrom": 0.21},
}  # fmt: skip
"""Medians of an earlier implementation."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that knows its best approximations.

    Attributes:
        name: For the table.
        entries: The matrix itself ``(n, n)``, or its diagonal ``(n,)``.
        values: Its singular values, descending.
    """

    name: str
    entries: Array
    values: Array

    def times(self, x: Array) -> Array:
        """``A x``; these matrices are Hermitian."""
        if self.entries.ndim == 1:
            return np.asarray(self.entries[:, None] * x)
        return np.asarray(self.entries @ x)

    def distance(self, u: Array, values: Array, v: Array) -> float:
        """``||A - U diag(values) V^H||_F``."""
        approximation = (u * values) @ v.conj().T
        if self.entries.ndim == 1:
            approximation[np.diag_indices(len(self.entries))] -= self.entries
        else:
            approximation -= self.entries
        return float(np.linalg.norm(approximation))

    def excess(self, u: Array, values: Array, v: Array, rank: int) -> float:
        """The excess of ``U diag(values) V^H``."""
        return self.distance(u, values, v) / float(np.linalg.norm(self.values[rank:])) - 1

    def error(self, u: Array, values: Array, v: Array) -> float:
        """The relative error of ``U diag(values) V^H``."""
        return self.distance(u, values, v) / float(np.linalg.norm(self.values))


def general_matrices(n: int = GENERAL_SIZE) -> Iterator[Matrix]:
    """The synthetic matrices, with ``R = 10``."""
    first = GENERAL_RANK
    ones = np.concatenate([np.ones(first), np.zeros(n - first)])
    whole = Range(0, n)
    g = draw("gaussian", MATRIX_SEED, "probe", whole, whole, np.complex128)
    # As in the paper's code the real and the imaginary parts have variance 1 each.
    wishart = 2 * g @ g.conj().T / n
    for name, noise in (("low", 1e-4), ("medium", 1e-2), ("high", 1e-1)):
        entries = np.diag(ones) + noise * wishart
        values = np.linalg.eigvalsh(entries)[::-1]
        yield Matrix(f"LowRank {name} noise", entries, values)
    index = np.arange(1, n - first + 1)
    for name, power in (("slow", 0.5), ("medium", 1.0), ("fast", 2.0)):
        values = np.concatenate([np.ones(first), (index + 1.0) ** -power])
        yield Matrix(f"PolyDecay {name}", values, values)
    for name, rate in (("slow", 0.01), ("medium", 0.1)):
        values = np.concatenate([np.ones(first), 10.0 ** (-rate * index)])
        yield Matrix(f"ExpDecay {name}", values, values)


def one_pass_matrices() -> Iterator[Matrix]:
    """Smaller ones of these, and one whose values fall all the way."""
    yield from general_matrices(ONE_PASS_SIZE)
    values = 10.0 ** (-0.1 * np.arange(ONE_PASS_SIZE))
    yield Matrix("10^(-0.1 i)", values, values)


def hermitian_matrices() -> Iterator[Matrix]:
    """Spectra that decay slowly and fast, with random signs."""
    n = HERMITIAN_SIZE
    index = np.arange(n)
    spectra = {
        "exp .02": 10.0 ** (-0.02 * index),
        "exp .1": 10.0 ** np.maximum(-0.1 * index, -300),
        "poly 1": (1.0 + index) ** -1.0,
        "poly 2": (1.0 + index) ** -2.0,
        "60 outliers + bulk": np.where(index < HERMITIAN_RANK, 1.0, 0.01),
        "poly .5": (1.0 + index) ** -0.5,
    }
    signs = draw("rademacher", MATRIX_SEED, "probe", Range(0, n), Range(0, 1), np.float64)[:, 0]
    for name, values in spectra.items():
        yield Matrix(name, values * signs, values)


class Sketcher:
    """Draws test matrices and makes products of one precision."""

    def __init__(self, matrix: Matrix, seed: int, dtype: str) -> None:
        self.matrix = matrix
        self.dtype = np.dtype(dtype)
        self.wide = np.result_type(dtype, np.float64)
        self.epsilon = float(np.finfo(dtype).eps)
        self._seed = seed

    def draw(self, role: str, columns: int) -> Array:
        """The first columns of a test matrix."""
        rows = Range(0, len(self.matrix.entries))
        return draw("gaussian", self._seed, role, rows, Range(0, columns), self.wide)

    def products(self, x: Array) -> Array:
        """``A x``, rounded as it would be stored."""
        return self.matrix.times(x).astype(self.dtype).astype(self.wide)


def problem_of(
    sketcher: Sketcher, y: Array, w: Array | None, g: Array | None, **more: Any
) -> Problem:
    """Compresses sketches; ``w`` is ``None`` for a Hermitian problem."""
    t = y[:, :0] if g is None else sketcher.products(g)
    packed = triangular_factor(np.concatenate([y, t], axis=1))
    small = packed[:, : y.shape[1]]
    other = y if w is None else w
    return Problem(
        hermitian=w is None,
        epsilon=sketcher.epsilon,
        y=small,
        t=packed[:, y.shape[1] :],
        w=small if w is None else triangular_factor(w),
        g_w=other[:0] if g is None else g.conj().T @ other,
        **more,
    )


def excess_of(
    method: str, problem: Problem, matrix: Matrix, y: Array, w: Array, rank: int
) -> float:
    """Solves a problem, and compares with the best approximation of this rank."""
    solution = decompose(problem, SOLVERS[method](problem))
    values, left, right = solution.values[:rank], solution.left[:, :rank], solution.right[:, :rank]
    return matrix.excess(y @ left, values, w @ right, rank)


def general_errors(matrix: Matrix, budget: int, seed: int) -> Errors:
    """The excess of each method at one budget."""
    k, s = BUDGETS[budget]
    sketcher = Sketcher(matrix, seed, "complex128")
    omega, psi = sketcher.draw("right", k), sketcher.draw("left", k)
    phi, xi = sketcher.draw("inner-left", s), sketcher.draw("inner-right", s)
    y, w = sketcher.products(omega), sketcher.products(psi)
    z = phi.conj().T @ sketcher.products(xi)
    rank = GENERAL_RANK
    problem = problem_of(sketcher, y, w, None, phi_y=phi.conj().T @ y, xi_w=xi.conj().T @ w, z=z)
    errors = {"oversampled": excess_of("oversampled", problem, matrix, y, w, rank)}
    if peer is not None:
        u, values, vh = peer.oversampled(*_tensors(y, w.conj().T, z, phi.conj().T, xi))
        errors["skerch oversampled"] = _peer_excess(matrix, u, values, vh, rank)
    products = 2 * k + s
    m = next(m for m in range(products, 0, -1) if m + default_left("nystrom", "svd", m) <= products)
    omega = sketcher.draw("right", m)
    psi = sketcher.draw("left", default_left("nystrom", "svd", m))
    y, w = sketcher.products(omega), sketcher.products(psi)
    g = sketcher.draw("test", TESTS)
    core = psi.conj().T @ y
    problem = problem_of(sketcher, y, w, g, psi_y=core, omega_w=omega.conj().T @ w, either_cut=True)
    errors["nystrom"] = excess_of("nystrom", problem, matrix, y, w, rank)
    if peer is not None:
        u, values, vh = peer.nystrom(*_tensors(y, w.conj().T, omega))
        errors["skerch nystrom"] = _peer_excess(matrix, u, values, vh, rank)
    return errors


def one_pass_errors(matrix: Matrix, dtype: str, seed: int) -> Errors:
    """The error of each method of one pass, from the same two sketches where it can be."""
    half = ONE_PASS_PRODUCTS // 2
    sketcher = Sketcher(matrix, seed, dtype)
    omega, psi = sketcher.draw("right", half), sketcher.draw("left", half)
    g = sketcher.draw("test", TESTS)
    y, w = sketcher.products(omega), sketcher.products(psi)
    core = psi.conj().T @ y
    problem = problem_of(sketcher, y, w, g, psi_y=core, omega_w=omega.conj().T @ w, either_cut=True)
    errors = {}
    for name in ("nystrom", "singlepass", "auto"):
        solution = decompose(problem, SOLVERS[name](problem))
        errors[name] = matrix.error(y @ solution.left, solution.values, w @ solution.right)
    if peer is not None:
        sketches = _tensors(y, w.conj().T, omega)
        found = {name: getattr(peer, name)(*sketches) for name in ("nystrom", "singlepass")}
        # Half as many outer columns, and as many inner ones as there were outer.
        phi, xi = sketcher.draw("inner-left", half), sketcher.draw("inner-right", half)
        z = phi.conj().T @ sketcher.products(xi)
        outer = y[:, : half // 2], w[:, : half // 2].conj().T
        found["oversampled"] = peer.oversampled(*_tensors(*outer, z, phi.conj().T, xi))
        for name, (u, values, vh) in found.items():
            errors[f"skerch {name}"] = matrix.error(u.numpy(), values.numpy(), vh.numpy().conj().T)
    return errors


def hermitian_errors(matrix: Matrix, seed: int) -> Errors:
    """The excess of each method with the same number of products."""
    m, rank = HERMITIAN_PRODUCTS, HERMITIAN_RANK
    k = m // 2
    sketcher = Sketcher(matrix, seed, "float32")
    omega, g = sketcher.draw("right", m), sketcher.draw("test", TESTS)
    y = sketcher.products(omega)
    core = omega.conj().T @ y
    problem = problem_of(sketcher, y, None, g, psi_y=core, omega_w=core)
    errors = {
        name: excess_of(name, problem, matrix, y, y, rank) for name in ("nystrom", "singlepass")
    }

    q, r = np.linalg.qr(y)
    # C = (Q^H A Omega) (Q^H Omega)^+ and Y (Omega^H Y)^+ Y^H, both with all of the inverse.
    solved = np.linalg.lstsq((q.conj().T @ omega).conj().T, r.conj().T, rcond=1e-6)[0]
    errors["singlepass square"] = _from_core(matrix, q, solved.conj().T, rank)
    solved = np.linalg.lstsq(core, r.conj().T, rcond=1e-6)[0]
    errors["nystrom square"] = _from_core(matrix, q, r @ solved, rank)

    first = y[:, :k]
    basis, before = np.linalg.qr(first)
    basis = basis.astype(sketcher.dtype).astype(sketcher.wide)
    second = sketcher.products(basis)
    applied, columns = np.hstack([omega[:, :k], basis]), np.hstack([basis, second])
    errors["hmt"] = _extraction_excess(matrix, sketcher, applied, columns, before, rank)

    phi = sketcher.draw("inner-left", m)
    for name, left in (("oversampled", phi), ("oversampled Phi=Xi", omega)):
        z = left.conj().T @ y
        inner = problem_of(
            sketcher, first, None, None, phi_y=z[:, :k], xi_w=core[:, :k], z=z
        )  # fmt: skip
        errors[name] = excess_of("oversampled", inner, matrix, first, first, rank)

    if peer is not None:
        tensors = dict(zip(("y", "omega"), _tensors(y, omega), strict=True))
        for name in ("singlepass", "nystrom"):
            values, u = getattr(peer, f"{name}_h")(tensors["y"], tensors["omega"])
            errors[f"skerch {name}"] = _peer_eigh_excess(matrix, values, u, rank)
        values, u = peer.hmt_h(tensors["y"][:, :k], _TorchMatrix(sketcher))
        errors["skerch hmt"] = _peer_eigh_excess(matrix, values, u, rank)
        z, lilop, y1 = _tensors(phi.conj().T @ y, phi.conj().T, first)
        values, u = peer.oversampled_h(y1, z, lilop, tensors["omega"])
        errors["skerch oversampled"] = _peer_eigh_excess(matrix, values, u, rank)
    return errors


def _extraction_excess(
    matrix: Matrix, sketcher: Sketcher, applied: Array, columns: Array, before: Array, rank: int
) -> float:
    """The excess of ``hmt``, from both of its sketches: ``A Omega`` is ``Q before``."""
    g = sketcher.draw("test", TESTS)
    second = columns.shape[1] - len(before)
    coordinates = block_diagonal([before, np.eye(second)])
    packed = triangular_factor(np.concatenate([columns, sketcher.products(g)], axis=1))
    found = extraction(
        AppliedColumns(
            metric=applied.conj().T @ applied,
            middle=applied.conj().T @ columns @ coordinates,
            coordinates=coordinates,
            tests=g.conj().T @ columns @ coordinates,
        ),
        packed[:, : columns.shape[1]],
        packed[:, columns.shape[1] :],
        sketcher.epsilon,
    )
    solution = decompose(found.problem, found.solve())
    u = columns @ (found.left @ solution.left[:, :rank])
    return matrix.excess(u, solution.values[:rank], u, rank)


def _from_core(matrix: Matrix, q: Array, core: Array, rank: int) -> float:
    """The excess of ``Q C Q^H``, cut to a rank after it is made Hermitian."""
    values, vectors = np.linalg.eigh((core + core.conj().T) / 2)
    leading = np.argsort(-np.abs(values))[:rank]
    u = q @ vectors[:, leading]
    return matrix.excess(u, values[leading], u, rank)


class _TorchMatrix:
    """A matrix that multiplies tensors."""

    def __init__(self, sketcher: Sketcher) -> None:
        self._sketcher = sketcher

    def __matmul__(self, x: Any) -> Any:
        return torch.from_numpy(self._sketcher.products(x.numpy()))


def _tensors(*arrays: Array) -> list[Any]:
    """In double precision, which favours a package that computes in what it is given."""
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]


def _peer_excess(matrix: Matrix, u: Any, values: Any, vh: Any, rank: int) -> float:
    v = vh[:rank].numpy().conj().T
    return matrix.excess(u[:, :rank].numpy(), values[:rank].numpy(), v, rank)


def _peer_eigh_excess(matrix: Matrix, values: Any, u: Any, rank: int) -> float:
    vectors = u[:, :rank].numpy()
    return matrix.excess(vectors, values[:rank].numpy(), vectors, rank)


def medians(trial: Callable[[int], Errors], seeds: int) -> dict[str, dict[str, float]]:
    """The median and its standard error for each method."""
    trials = [trial(seed) for seed in range(seeds)]
    figures = {}
    for name in trials[0]:
        sample = [errors[name] for errors in trials]
        # That of the median of a normal sample is sqrt(pi / 2) times that of its mean.
        deviation = statistics.stdev(sample) if seeds > 1 else 0.0
        error = math.sqrt(math.pi / 2 / seeds) * deviation
        figures[name] = {"median": statistics.median(sample), "standard_error": error}
    return figures


def row(name: str, budget: str, figures: Mapping[str, float | None]) -> str:
    """A line of a table."""
    cells = [f"{'-' if x is None else format(x, '.2g'):>13}" for x in figures.values()]
    return f"{name:24}{budget:>6}" + "".join(cells)


def head(first: str, columns: Mapping[str, Any]) -> str:
    """The head of a table: long names in two lines."""
    words = [name.rpartition(" ") for name in columns]
    upper = "".join(f"{a:>13}" for a, _, _ in words)
    lower = "".join(f"{b:>13}" for _, _, b in words)
    return f"{'':30}{upper}\n{first:30}{lower}"


def general_table(seeds: int, budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    """Runs and prints the table of general matrices."""
    cells: list[dict[str, Any]] = []
    print(f"\nGeneral: n = {GENERAL_SIZE}, r = {GENERAL_RANK}, complex128; columns T/(m+n)")
    for matrix in general_matrices():
        for place, budget in enumerate(BUDGETS):
            target = GENERAL_TARGETS[matrix.name][place]
            if budget not in budgets:
                continue
            figures = medians(partial(general_errors, matrix, budget), seeds)
            line = {"target": target} | {name: x["median"] for name, x in figures.items()}
            if not cells:
                print(head("matrix, T/(m+n)", line))
            print(row(matrix.name, str(budget), line), flush=True)
            cells.append(
                {"matrix": matrix.name, "budget": budget, "target": target, "methods": figures}
            )
    return cells


def hermitian_table(seeds: int) -> list[dict[str, Any]]:
    """Runs and prints the table of Hermitian matrices."""
    cells: list[dict[str, Any]] = []
    print(
        f"\nHermitian: n = {HERMITIAN_SIZE}, r = {HERMITIAN_RANK}, "
        f"{HERMITIAN_PRODUCTS} products, float32"
    )
    for matrix in hermitian_matrices():
        figures = medians(partial(hermitian_errors, matrix), seeds)
        targets = HERMITIAN_TARGETS[matrix.name]
        line = {name: x["median"] for name, x in figures.items()}
        if not cells:
            print(head("spectrum", line))
        print(row(matrix.name, "", line))
        print(row("", "target", {name: targets.get(name) for name in line}), flush=True)
        cells.append({"matrix": matrix.name, "targets": dict(targets), "methods": figures})
    return cells


def one_pass_table(seeds: int) -> list[dict[str, Any]]:
    """Runs and prints the table of one pass for ``svd``."""
    cells: list[dict[str, Any]] = []
    print(
        f"\nOne pass: svd, n = {ONE_PASS_SIZE}, {ONE_PASS_PRODUCTS} products; errors of the whole"
    )
    for matrix in one_pass_matrices():
        for dtype in ONE_PASS_DTYPES:
            figures = medians(partial(one_pass_errors, matrix, dtype), seeds)
            line = {name: x["median"] for name, x in figures.items()}
            if not cells:
                print(head("matrix", line))
            print(row(matrix.name, dtype[7:], line), flush=True)
            cells.append({"matrix": matrix.name, "dtype": dtype, "methods": figures})
    return cells


def main() -> None:
    """Runs the tables that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="three seeds, and two budgets")
    parser.add_argument(
        "--table", choices=["general", "hermitian", "one-pass"], help="only this one"
    )
    common.add_json(parser)
    options = parser.parse_args()
    seeds = 3 if options.quick else options.seeds
    budgets = tuple(BUDGETS)[:2] if options.quick else tuple(BUDGETS)
    start = time.perf_counter()
    report: dict[str, Any] = {"seeds": seeds}
    if options.table in (None, "general"):
        report["general"] = general_table(seeds, budgets)
    if options.table in (None, "hermitian"):
        report["hermitian"] = hermitian_table(seeds)
    if options.table in (None, "one-pass"):
        report["one_pass"] = one_pass_table(seeds)
    report["seconds"] = round(time.perf_counter() - start, 1)
    print(f"\n{seeds} seeds in {report['seconds']} s")
    common.write_json(options.json, report)


if __name__ == "__main__":
    main()
