"""Dense operators with known spectra, and the recovery problems that their sketches make."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.problem import Core, Problem, Solution
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.planning.sizes import default_inner, default_left

KINDS = ("eigh", "svd")
SINGLE = ("float32", "complex64")
SHAPES = {"square": (240, 240), "tall": (300, 200), "wide": (200, 300)}
INDEX = np.arange(300)


def _clustered() -> np.ndarray:
    return np.repeat(10.0 ** -np.arange(6), 50)


SPECTRA = {
    "poly .5": (1.0 + INDEX) ** -0.5,
    "poly 1": 1 / (1.0 + INDEX),
    "poly 2": (1.0 + INDEX) ** -2,
    "exp .02": 10 ** (-0.02 * INDEX),
    "exp .1": 10 ** (-0.1 * INDEX),
    "steep": 10.0 ** np.maximum(-0.2 * INDEX, -14),
    "outliers on a flat bulk": np.where(INDEX < 20, 1, 0.02),
    "clustered": _clustered(),
    "flat": np.ones(300),
    "rank 30": np.where(INDEX < 30, 10 ** (-0.05 * INDEX), 0),
    "rank 58": np.where(INDEX < 58, 1 / (1.0 + INDEX), 0),
    "rank 1": np.where(INDEX < 1, 1.0, 0),
    "zero": np.zeros(300),
}


@dataclass(frozen=True)
class Case:
    """A dense operator, its sketches as they would be stored, and the problem made of them."""

    method: str
    a: Any
    y: Any
    w: Any
    problem: Problem
    g: Any = None

    def solve(self, **settings: Any) -> Core:
        return SOLVERS[self.method](replace(self.problem, **settings))

    def decompose(self, **settings: Any) -> Solution:
        problem = replace(self.problem, **settings)
        return decompose(problem, SOLVERS[self.method](problem))

    def approximation_by(self, core: Core) -> Any:
        return (self.y @ core.left) @ core.middle @ (self.w @ core.right).conj().T

    def vectors(self, solution: Solution) -> tuple[Any, Any]:
        return self.y @ solution.left, self.w @ solution.right

    def approximation(self, solution: Solution) -> Any:
        u, v = self.vectors(solution)
        return (u * solution.values) @ v.conj().T

    def error(self, approximation: Any) -> float:
        return float(np.linalg.norm(self.a - approximation))

    def error_of(self, solution: Solution) -> float:
        return self.error(self.approximation(solution))

    def error_by(self, core: Core) -> float:
        return self.error(self.approximation_by(core))


def normals(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if np.dtype(dtype).kind == "c":
        pair = generator.standard_normal((2, *shape)) / math.sqrt(2)
        return pair[0] + 1j * pair[1]
    return generator.standard_normal(shape)


@cache
def dense(kind: str, spectrum: str, shape: tuple[int, int], dtype: str, seed: int = 0) -> Any:
    """An operator with these singular values; with ``eigh`` the eigenvalues have mixed signs."""
    generator = np.random.default_rng([seed, 1])
    h, w = shape
    size = min(shape)
    values = SPECTRA[spectrum][:size]
    u = np.linalg.qr(normals(generator, (h, h), dtype))[0][:, :size]
    if kind == "eigh":
        a = (u * values * generator.choice([-1.0, 1.0], size)) @ u.conj().T
        return (a + a.conj().T) / 2
    v = np.linalg.qr(normals(generator, (w, w), dtype))[0][:, :size]
    return (u * values) @ v.conj().T


def integers(kind: str, dtype: str, shape: tuple[int, int], rank: int, seed: int = 0) -> Any:
    """A matrix of small integers and at most this rank: its products are exact."""
    generator = np.random.default_rng([seed, 4])

    def factor(rows: int) -> Any:
        x = generator.integers(-2, 3, (rows, rank)).astype(np.result_type(dtype, np.float64))
        if x.dtype.kind == "c":
            x += 1j * generator.integers(-2, 3, (rows, rank))
        return x

    u = factor(shape[0])
    if kind == "eigh":
        return (u * generator.choice([-1.0, 1.0], rank)) @ u.conj().T
    return u @ factor(shape[1]).conj().T


def sketch_of(
    a: Any,
    method: str,
    kind: str,
    dtype: str,
    m: int,
    *,
    left: int | None = None,
    inner: int | None = None,
    q: int = 30,
    seed: int = 0,
    normal_noise: bool = False,
    phi_apart: bool = True,
) -> Case:
    """Sketches an operator, rounds the products to ``dtype`` and makes a problem of them."""
    generator = np.random.default_rng([seed, 2])
    wide = np.result_type(dtype, np.float64)
    hermitian = kind == "eigh"
    h, w = a.shape

    def noise(rows: int, columns: int) -> Any:
        if normal_noise:
            return normals(generator, (rows, columns), dtype)
        return generator.choice([-1.0, 1.0], (rows, columns)).astype(wide)

    def rounded(x: Any) -> Any:
        return x.astype(dtype).astype(wide)

    left = default_left(method, kind, m) if left is None else left
    inner = default_inner(m, wide.kind == "c") if inner is None else inner
    epsilon = float(np.finfo(dtype).eps)
    g = normals(np.random.default_rng([seed, 3]), (w, q), dtype)
    t = rounded(a @ g)
    more: dict[str, Any] = {}
    omega = noise(w, m)
    if method == "oversampled" and hermitian:
        xi = np.concatenate([omega, noise(w, inner - m)], axis=1)
        y = rounded(a @ omega)
        sketched_w, psi = y, omega
        z = xi.conj().T @ rounded(a @ xi)
        if phi_apart:
            phi = noise(h, inner)
            more = {"phi_y": phi.conj().T @ y, "z": phi.conj().T @ rounded(a @ xi)}
        else:
            more = {"phi_y": xi.conj().T @ y, "z": (z + z.conj().T) / 2}
        more["xi_w"] = xi.conj().T @ y
    elif method == "hmt":
        before = rounded(a @ omega)
        u, s, _ = np.linalg.svd(before, full_matrices=False)
        y = rounded(u[:, s > 2 * epsilon * s[0]])
        more["before"] = np.linalg.qr(before, mode="r")
        if hermitian:
            second = rounded(a @ y)
            sketched_w = y
            psi = None
            more["psi_y"] = y.conj().T @ second
            more["second_square"] = float(np.linalg.norm(second) ** 2)
        else:
            sketched_w, psi = rounded(a.conj().T @ y), None
    else:
        y = rounded(a @ omega)
        psi = omega if hermitian else noise(h, left)
        sketched_w = y if hermitian else rounded(a.conj().T @ psi)
        if method == "oversampled":
            phi, xi = noise(h, inner), noise(w, inner)
            more = {
                "phi_y": phi.conj().T @ y,
                "xi_w": xi.conj().T @ sketched_w,
                "z": rounded(phi.conj().T @ rounded(a @ xi)),
            }
    if psi is not None:
        more |= {"psi_y": psi.conj().T @ y, "omega_w": omega.conj().T @ sketched_w}
    columns = y.shape[1]
    packed = np.linalg.qr(np.concatenate([y, t], axis=1), mode="r")
    small_y = packed[:, :columns]
    problem = Problem(
        hermitian=hermitian,
        epsilon=epsilon,
        y=small_y,
        t=packed[:, columns:],
        w=small_y if hermitian else np.linalg.qr(sketched_w, mode="r"),
        g_w=g.conj().T @ sketched_w,
        **more,
    )
    return Case(method, a, y, sketched_w, problem, g)


@cache
def case(
    method: str,
    kind: str,
    spectrum: str,
    dtype: str,
    m: int = 80,
    *,
    shape: str = "square",
    left: int | None = None,
    q: int = 30,
    seed: int = 0,
) -> Case:
    """The sketch of an operator with one of the known spectra."""
    a = dense(kind, spectrum, SHAPES[shape], dtype, seed)
    return sketch_of(a, method, kind, dtype, m, left=left, q=q, seed=seed)
