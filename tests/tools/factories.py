"""Operators that the tests name by factories, so that other processes can build them too."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import time
import zlib

import numpy as np
import torch

from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.operators.synthetic import decaying
from skerch_ooc.operators.terms import Sum

LARGEST = 4000
"""Rows of a dense matrix; those who alter a run may ask for any number, and would wait for it."""


def log_call(x: torch.Tensor) -> None:
    """Notes a call in the file that the test named, from whatever process."""
    path = os.environ.get("SKERCH_OOC_TEST_LOG")
    if path:
        crc = zlib.crc32(x.resolve_conj().contiguous().numpy().tobytes())
        call = {"pid": os.getpid(), "width": x.shape[1], "crc": crc}
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (json.dumps(call) + "\n").encode())
        os.close(descriptor)


class Matrix:
    """A dense matrix, with its adjoint, a log of its calls and faults on demand."""

    def __init__(self, matrix: torch.Tensor, delay: float = 0.0, **faults: int) -> None:
        self.matrix = matrix
        self.shape = tuple(matrix.shape)
        self.delay = delay
        self.faults = faults
        self.calls = 0

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.applied(self.matrix, x)

    def __rmatmul__(self, x: torch.Tensor) -> torch.Tensor:
        return self.applied(self.matrix.mH, x.mH).mH

    def applied(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        log_call(x)
        self.calls += 1
        if self.delay:
            time.sleep(self.delay)
        y = matrix @ x
        if self.calls > self.faults.get("drift_after", 10**9):
            y = y * (1 + 1e-4)
        if self.calls > self.faults.get("nan_after", 10**9):
            y[0, 0] = float("nan")
        if self.calls > self.faults.get("fail_after", 10**9):
            raise ValueError("no more products today")
        return y


def dense(n: int, kind: str = "decay", dtype: str = "float64", seed: int = 0) -> torch.Tensor:
    """A Hermitian matrix: of decaying spectrum, of small integers, or flat."""
    if n > LARGEST:
        raise ValueError(f"n = {n}, and {LARGEST} is the largest that a test makes")
    generator = torch.Generator().manual_seed(seed)
    if kind == "integers":
        whole = torch.randint(-8, 9, (n, n), generator=generator)
        return (whole + whole.T).to(getattr(torch, dtype))
    wide = torch.complex128 if dtype.startswith("complex") else torch.float64
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=wide))[0]
    index = torch.arange(n, dtype=torch.float64)
    size = {"decay": 10 ** (-0.05 * index), "poly": 1 / (1 + index), "flat": 1 + 0 * index}[kind]
    values = torch.where(torch.arange(n) % 3 == 1, -size, size)
    return ((q * values) @ q.mH).to(getattr(torch, dtype))


def matrix(n: int = 200, kind: str = "decay", dtype: str = "float32", delay: float = 0.0, **faults):
    """A dense matrix as an operator."""
    return Matrix(dense(n, kind, dtype), delay, **faults)


def columnwise(n: int = 200, kind: str = "decay", dtype: str = "float32"):
    """A dense matrix that is applied to one column after the other."""

    class Columnwise(Matrix):
        def applied(self, matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([matrix @ column for column in x.T.contiguous()], dim=1)

    return Columnwise(dense(n, kind, dtype))


def numpy_matrix(n: int = 200, dtype: str = "float32") -> np.ndarray:
    """A plain numpy array."""
    return dense(n, "decay", dtype).numpy()


def talkative(n: int = 200):
    """A matrix that tells the world of each product."""

    class Talkative(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            print("hello from the operator")
            return super().__matmul__(x)

    return Talkative(dense(n, "decay", "float32"))


def dies_once(marker: str, n: int = 200):
    """A matrix whose process is killed at its third block; the file ``marker`` says that it was."""

    class Mortal(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] > 1 and self.calls >= 3 and not os.path.exists(marker):
                with open(marker, "x"):
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__matmul__(x)

    return Mortal(dense(n, "decay", "float32"))


def failing(marker: str, n: int = 200):
    """A matrix whose products fail while the file ``marker`` is there."""

    class Failing(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            if os.path.exists(marker):
                raise ValueError("the licence server is down")
            return super().__matmul__(x)

    return Failing(dense(n, "decay", "float32"))


def not_hermitian(n: int = 200):
    """A matrix that is not Hermitian."""
    return Matrix(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))


def noisy(n: int = 200):
    """An operator that differs from call to call, as dropout does."""

    class Noisy(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            y = super().__matmul__(x)
            return y + 0.01 * torch.randn(y.shape, generator=self.generator)

    operator = Noisy(dense(n, dtype="float32"))
    operator.generator = torch.Generator().manual_seed(0)
    return operator


def wrong_dtype(n: int = 200):
    """Returns float64 for float32."""

    class Wrong(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(x).double()

    return Wrong(dense(n, dtype="float32"))


def wrong_shape(n: int = 200):
    """Returns one row too few."""

    class Wrong(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(x)[1:]

    return Wrong(dense(n, dtype="float32"))


def rectangular(n: int = 200):
    """A matrix that is not square."""
    return Matrix(torch.randn(n, n + 1, generator=torch.Generator().manual_seed(0)))


def wrong_adjoint(n: int = 200):
    """A matrix whose adjoint is that of its conjugate."""

    class Wrong(Matrix):
        def __rmatmul__(self, x: torch.Tensor) -> torch.Tensor:
            return self.applied(self.matrix.mT, x.mH).mH

    generator = torch.Generator().manual_seed(0)
    return Wrong(torch.randn(n, n, generator=generator, dtype=torch.complex64))


def no_adjoint(n: int = 200):
    """A matrix that does not tell its adjoint."""

    class One:
        shape = (n, n)

        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return One()


def no_shape():
    """No operator at all."""
    return object()


def broken():
    """A factory that fails."""
    raise RuntimeError("the weights are not there")


class Logged:
    """A symmetric operator, with a log of its calls."""

    def __init__(self, operator, delay: float) -> None:
        self.operator = operator
        self.shape = operator.shape
        self.delay = delay

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        log_call(x)
        time.sleep(self.delay)
        return self.operator @ x

    def adjoint(self) -> Logged:
        return self


def synthetic(
    n: int = 20000, rank: int = 30, dtype: str = "float32", delay: float = 0.0, rate: float = 0.05
):
    """A large operator at no cost."""
    return Logged(decaying(n, rank, rate, dtype=dtype), delay)


def of_environment(n: int = 200):
    """A matrix that depends on the process it is built in."""
    return Matrix(dense(n, "decay", "float32") * float(os.environ.get("SKERCH_OOC_TEST_SCALE", 1)))


def fails_once(marker: str, n: int = 200):
    """A matrix whose third product fails, once; the file ``marker`` says that it has."""

    class Weak(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] > 1 and self.calls >= 3 and not os.path.exists(marker):
                with open(marker, "x"):
                    raise RuntimeError("out of memory, this time")
            return super().__matmul__(x)

    return Weak(dense(n, "decay", "float32"))


def leaves(n: int = 200, at_once: bool = False):
    """A matrix whose blocks end the process, in good order or at once."""

    class Leaving(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            # The probe's blocks are of other widths, or not in a worker.
            if x.shape[1] == 8 and multiprocessing.parent_process() is not None:
                if at_once:
                    os._exit(7)
                raise SystemExit(7)
            return super().__matmul__(x)

    return Leaving(dense(n, "decay", "float32"))


def sum_of_terms(terms: int, n: int, first: int = 0) -> object:
    """A sum of Hermitian matrices, made when they are needed."""
    from skerch_ooc import Sum

    def term(seed: int) -> Matrix:
        generator = torch.Generator().manual_seed(seed)
        factor = torch.randn(n, 12, generator=generator)
        factor *= 0.6 ** torch.arange(12)
        return Matrix(factor @ factor.T)

    makers = [lambda seed=seed: term(seed) for seed in range(first, first + terms)]
    return Sum(makers, shape=(n, n), dtype="float32")


def batches_hessian(first: int, count: int, per_batch: bool) -> object:
    """The Hessian of a small network over some of its batches, which are of equal size."""
    from skerch_ooc.operators.curvature import hessian

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(6, 9, generator=generator), torch.randn(6, 4, generator=generator))
        for _ in range(first + count)
    ]
    return hessian(model, torch.nn.MSELoss(), data[first:], per_batch=per_batch)


def scaled(n: int = 2 * 10**6, delay: float = 0.0):
    """Twice the identity, of any size."""

    class Scaled:
        shape = (n, n)

        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(delay)
            return 2 * x

        def adjoint(self):
            return self

    return Scaled()


def diagonal(n: int = 2000, dtype: str = "float32", delay: float = 0.0, **faults: int):
    """Eigenvalues 1, -1/2, 1/3, ... spread over the rows; its products do not depend on blocks."""
    index = torch.arange(n, dtype=torch.float64)
    values = (-1) ** index / (1 + index)
    places = (torch.arange(n) * 7919) % n

    class Diagonal:
        shape = (n, n)

        mH = property(lambda self: self)  # noqa: N815 (the name that torch gives it)

        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            return values[places].to(x.dtype)[:, None] * x

    operator = Matrix(Diagonal(), delay, **faults)
    operator.dtype = getattr(torch, dtype)
    return operator


REMARKS = ("mean over 3 batches", "differentiated forward over reverse")
BEST = 8


class Narrowable:
    """A matrix that is quickest at :data:`BEST` columns at once, and logs its inner calls.

    Args:
        matrix: The matrix.
        bytes_of_column: Memory that each column of an inner call takes meanwhile.
        seconds: Of an inner call of the best width; 0 for none.
    """

    def __init__(self, matrix, bytes_of_column=0, seconds=0.004):
        self.matrix, self.shape, self.dtype = matrix, tuple(matrix.shape), matrix.dtype
        self.bytes_of_column, self.seconds = bytes_of_column, seconds
        self.columns_at_once = 3
        n = self.shape[1]
        self.layout = ParameterLayout.of([("fc.weight", (2, n // 2 - 1)), ("fc.bias", (2,))])
        self.remarks = REMARKS

    def narrowed(self, columns_at_once):
        made = copy.copy(self)
        made.columns_at_once = columns_at_once
        return made

    def __matmul__(self, x):
        return torch.cat([self.inner(some) for some in x.split(self.columns_at_once, 1)], 1)

    def inner(self, x):
        log_call(x)
        width = x.shape[1]
        needed = np.ones(width * self.bytes_of_column, np.uint8)
        time.sleep(self.seconds * (1 if width <= BEST else width / 4))
        del needed
        return self.matrix @ x

    def __rmatmul__(self, x):
        return (self.matrix.mH @ x.mH).mH


def narrowable(n: int = 200, bytes_of_column: int = 0, seconds: float = 0.004, seed: int = 0):
    """An operator that can be told how many columns to apply at once."""
    return Narrowable(dense(n, dtype="float32", seed=seed), bytes_of_column, seconds)


def narrowable_sum(n: int = 200, terms: int = 3):
    """A sum of functions that return such operators, which says that they can be told."""
    made = Sum(
        [lambda seed=seed: narrowable(n, seed=seed) for seed in range(terms)],
        shape=(n, n), dtype="float32",
    )  # fmt: skip
    made.columns_at_once, made.remarks = 3, REMARKS
    made.layout = narrowable(n).layout
    return made


def uses_cluster(address: str, spec: str, n: int = 200):
    """A matrix that, once planned, starts a run of its own on the cluster that applies it."""
    import skerch_ooc as ooc

    class Nested(Matrix):
        def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
            if multiprocessing.parent_process() is not None:
                ooc.run(spec, f"{spec}.nested", executor=ooc.Dask(address))
            return super().__matmul__(x)

    return Nested(dense(n, "decay", "float32"))
