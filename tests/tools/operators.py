"""Dense operators of known spectrum, named by factories: with adjoints, and a log of their calls.

Their singular values are exact but for rounding: they multiply random orthonormal vectors.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import torch

import skerch_ooc as ooc

HERE = Path(__file__).resolve()
SHAPES = {"square": (150, 150), "tall": (190, 130), "wide": (130, 190)}
SINGLE = ("float32", "complex64")
DTYPES = ("float32", "float64", "complex64", "complex128")


def singular_values(spectrum: str, count: int) -> torch.Tensor:
    """Descending values, ``(count,)``."""
    i = torch.arange(count, dtype=torch.float64)
    return {
        "rank 30": torch.where(i < 30, 10 ** (-0.05 * i), 0),
        "rank 1": torch.where(i < 1, 2.0, 0.0).double(),
        "steep": torch.maximum(10 ** (-0.2 * i), torch.tensor(1e-14)),
        "decay": 10 ** (-0.1 * i),
        "slow": 1 / (1 + i),
        "flat": torch.ones_like(i),
        "clustered": torch.where(i < 60, 10.0 ** -(i // 10), 0),
    }[spectrum]


def wide_dtype(dtype: str) -> torch.dtype:
    """The dtype of double precision."""
    return torch.complex128 if dtype.startswith("complex") else torch.float64


def dense(
    shape: tuple[int, int] = (150, 150),
    spectrum: str = "rank 30",
    dtype: str = "float64",
    hermitian: bool = True,
    definite: bool = False,
    seed: int = 0,
) -> torch.Tensor:
    """A matrix rounded to ``dtype``; if Hermitian, with eigenvalues of both signs or ``definite``.

    Besides the spectra there are ``"integers"``, of which products are exact in double precision,
    and ``"zero"``.
    """
    generator = torch.Generator().manual_seed(seed)
    wide = wide_dtype(dtype)
    if spectrum == "zero":
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    if spectrum == "integers":
        whole = torch.randint(-4, 5, shape, generator=generator)
        if dtype.startswith("complex"):
            whole = whole + 1j * torch.randint(-4, 5, shape, generator=generator)
        whole = whole.to(wide)
        return (whole + whole.mH if hermitian else whole).to(getattr(torch, dtype))
    size = min(shape)
    values = singular_values(spectrum, size)
    u, v = (
        torch.linalg.qr(torch.randn(n, size, generator=generator, dtype=wide))[0] for n in shape
    )
    if hermitian:
        signs = torch.ones(size) if definite else 1 - 2.0 * (torch.arange(size) % 3 == 1)
        product = (u * (values * signs)) @ u.mH
        product = (product + product.mH) / 2
    else:
        product = (u * values) @ v.mH
    return product.to(getattr(torch, dtype))


class Operator:
    """A matrix that logs its calls, and does not tell its adjoint but by ``adjoint()``.

    Attributes:
        products: Products so far, in this process.
        adjoint_products: Those of the adjoint among them.
    """

    def __init__(self, matrix: torch.Tensor, delay: float = 0.0) -> None:
        self.matrix = matrix
        self.shape = tuple(matrix.shape)
        self.dtype = matrix.dtype
        self.delay = delay
        self.products = self.adjoint_products = 0

    def apply(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return matrix @ x

    def counted(self, matrix: torch.Tensor, x: torch.Tensor, adjoint: bool) -> torch.Tensor:
        log_call(x, adjoint)
        if self.delay:
            time.sleep(self.delay)
        self.products += x.shape[1]
        self.adjoint_products += x.shape[1] * adjoint
        # Rounding errors of another machine, say, if the test wants some.
        nudge = float(os.environ.get("SKERCH_OOC_TEST_NUDGE", 0))
        return self.apply(matrix, x) * (1 + nudge)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.counted(self.matrix, x, False)

    def adjoint(self) -> Adjoint:
        return Adjoint(self)


class Adjoint:
    """The adjoint of an operator."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator.counted(self.operator.matrix.mH, x, True)


class Columnwise(Operator):
    """Applied to one column after the other: the products do not depend on the blocks."""

    def apply(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([matrix @ column.clone() for column in x.T], dim=1)


def log_call(x: torch.Tensor, adjoint: bool) -> None:
    """Notes a call in the file that the test named, from whatever process."""
    path = os.environ.get("SKERCH_OOC_TEST_LOG")
    if path:
        crc = zlib.crc32(x.contiguous().numpy().tobytes())
        call = {"pid": os.getpid(), "width": x.shape[1], "adjoint": adjoint, "crc": crc}
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (json.dumps(call) + "\n").encode())
        os.close(descriptor)


def make(shape: str | list[int] = "square", columnwise: bool = False, delay: float = 0.0, **which):
    """The factory: see :func:`dense`."""
    size = SHAPES[shape] if isinstance(shape, str) else tuple(shape)
    return (Columnwise if columnwise else Operator)(dense(size, **which), delay)


FACTORY = f"{HERE}:make"


def triple(result: ooc.Eigh | ooc.Svd) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``U``, the values and ``V`` in double precision."""
    if isinstance(result, ooc.Eigh):
        stored, values = (result.eigenvectors, result.eigenvectors), result.eigenvalues
    else:
        stored, values = (result.U, result.V), result.S
    wide = torch.complex128 if stored[0].dtype.is_complex else torch.float64
    u, v = (matrix[:].to(wide) for matrix in stored)
    return u, values.double(), v


def relative_error(result: ooc.Eigh | ooc.Svd, a: torch.Tensor) -> float:
    """``||A - U diag(values) V^H||_F / ||A||_F``."""
    u, values, v = triple(result)
    exact = a.to(u.dtype)
    return float(torch.linalg.norm((u * values) @ v.mH - exact) / torch.linalg.norm(exact))


def orthogonality(vectors: torch.Tensor) -> float:
    """``||U^H U - I||`` in the spectral norm."""
    gram = vectors.mH @ vectors
    return float(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=gram.dtype), 2))


def exact_values(a: torch.Tensor, kind: str) -> torch.Tensor:
    """Eigenvalues in descending magnitude, or singular values, by dense algebra."""
    exact = a.to(torch.complex128 if a.is_complex() else torch.float64)
    if kind == "svd":
        return torch.linalg.svdvals(exact)
    values = torch.linalg.eigvalsh(exact)
    return values[values.abs().argsort(descending=True)]


def best_error(a: torch.Tensor, rank: int) -> float:
    """The relative error of the best approximation of that rank."""
    squares = exact_values(a, "svd") ** 2
    return float((squares[rank:].sum() / squares.sum()).sqrt())
