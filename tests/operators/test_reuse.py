"""Operators that return their own buffer again and again: nothing kept of them changes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from contents import run_contents
from scipy.sparse.linalg import LinearOperator

import skerch_ooc as ooc
from skerch_ooc.operators.adapters import Product
from skerch_ooc.operators.reuse import is_shared
from skerch_ooc.stages.measure import task as measuring

N = 40
TENSOR = torch.zeros(6, 4)
ARRAY = np.zeros((6, 4))


def matrix(n=N, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    signs = torch.where(torch.arange(n) % 3 == 1, -1.0, 1.0)
    values = signs * 10 ** (-0.05 * torch.arange(n, dtype=torch.float64))
    return ((q * values) @ q.T).to(dtype)


class Copying:
    """A matrix that makes new memory for each product."""

    def __init__(self, a):
        self.a, self.shape, self.dtype = a, tuple(a.shape), a.dtype
        self.buffers = {}

    def __matmul__(self, x):
        return self.a @ x

    def rmatmat(self, x):
        return self.a.mH @ x

    def buffer(self, key, shape):
        return self.buffers.setdefault(key, torch.empty(shape, dtype=self.a.dtype))


class ByShape(Copying):
    """One buffer for each width, written by ``out=``."""

    def __matmul__(self, x):
        shape = (self.shape[0], x.shape[1])
        return torch.matmul(self.a, x, out=self.buffer(shape, shape))

    def rmatmat(self, x):
        shape = (self.shape[1], x.shape[1])
        return torch.matmul(self.a.mH, x, out=self.buffer(("H", shape), shape))


class Ranges(Copying):
    """The first entries of one large buffer, for both sides."""

    def filled(self, a, x):
        size = a.shape[0] * x.shape[1]
        part = self.buffer("all", (N * N,))[:size].view(a.shape[0], x.shape[1])
        part.copy_(a @ x)
        return part

    def __matmul__(self, x):
        return self.filled(self.a, x)

    def rmatmat(self, x):
        return self.filled(self.a.mH, x)


class Lent(Ranges):
    """Memory of numpy, of which torch does not know who else refers to it."""

    def buffer(self, key, shape):
        made = self.buffers.setdefault(key, np.empty(shape, np.float32))
        return torch.from_numpy(made)


class Columns:
    """Vectors only, in one buffer."""

    def __init__(self, a):
        self.a, self.shape, self.dtype = a, tuple(a.shape), a.dtype
        self.out = torch.empty(a.shape[0], dtype=a.dtype)

    def matvec(self, x):
        return torch.mv(self.a, x.contiguous(), out=self.out)

    def rmatvec(self, x):
        return torch.mv(self.a.mH, x.contiguous(), out=self.out)


class CopyingColumns(Columns):
    def matvec(self, x):
        return torch.mv(self.a, x.contiguous())

    def rmatvec(self, x):
        return torch.mv(self.a.mH, x.contiguous())


def of_numpy(a):
    array = a.numpy()
    out = np.empty(N * N, array.dtype)

    def filled(m, x):
        part = out[: m.shape[0] * x.shape[1]].reshape(m.shape[0], x.shape[1])
        return np.matmul(m, x, out=part)

    return LinearOperator(
        array.shape, matvec=lambda x: array @ x, matmat=lambda x: filled(array, x),
        rmatmat=lambda x: filled(array.T, x), dtype=array.dtype,
    )  # fmt: skip


def fresh_of_numpy(a):
    array = a.numpy()
    return LinearOperator(
        array.shape, matvec=lambda x: array @ x, matmat=lambda x: array @ x,
        rmatmat=lambda x: array.T @ x, dtype=array.dtype,
    )  # fmt: skip


ALIASING = {
    "a buffer for each width": (ByShape, Copying),
    "ranges of one buffer": (Ranges, Copying),
    "lent memory": (Lent, Copying),
    "vectors": (Columns, CopyingColumns),
    "numpy": (of_numpy, fresh_of_numpy),
}
FRESH = {
    "product": lambda: TENSOR.mT @ TENSOR,
    "transposed": lambda: (TENSOR.mT @ TENSOR).mH,
    "view": lambda: (TENSOR.mT @ TENSOR).view(-1)[:8].reshape(2, 4),
    "part of a sum": lambda: torch.cat([TENSOR, TENSOR]).split(3)[0],
    "gradient": lambda: torch.func.grad(lambda x: (x**3).sum())(TENSOR),
    "array": lambda: ARRAY.T @ ARRAY,
    "view of an array": lambda: (ARRAY.T @ ARRAY).T[:2],
    "reshaped array": lambda: (ARRAY.T @ ARRAY).reshape(-1)[:8].reshape(2, 4),
}
HELD = {
    "tensor": lambda: TENSOR,
    "view": lambda: TENSOR[:3],
    "view of a view": lambda: TENSOR[:4].view(-1)[:8].view(2, 4),
    "detached": lambda: TENSOR.detach(),
    "array": lambda: ARRAY,
    "view of an array": lambda: ARRAY[:3],
    "view of a view of an array": lambda: ARRAY[:3].reshape(-1)[:8].reshape(2, 4),
}
LENT = {
    "tensor of an array": lambda: torch.from_numpy(np.zeros(3)),
    "array of a tensor": lambda: torch.zeros(3).numpy(),
    "array of bytes": lambda: np.frombuffer(bytearray(8)),
    "sparse": lambda: torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("case", FRESH)
def test_memory_that_is_new_is_known_to_be(case):
    assert is_shared([FRESH[case]()]) is False


@pytest.mark.parametrize("case", HELD)
def test_memory_that_somebody_holds_is_known_to_be(case):
    assert is_shared([HELD[case]()]) is True


@pytest.mark.parametrize("case", LENT)
def test_of_memory_that_was_lent_nobody_can_tell(case):
    assert is_shared([LENT[case]()]) is None


def test_without_a_count_of_torch_nobody_can_tell(monkeypatch):
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert is_shared([torch.zeros(3)]) is None


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("case", ALIASING)
def test_product_does_not_change_with_the_next_one(case, adjoint):
    aliasing, copying = (make(matrix()) for make in ALIASING[case])
    given = [np.random.default_rng(i).standard_normal((N, 8)).astype("float32") for i in range(5)]
    product, expected = (Product(operator, "float32", "cpu") for operator in (aliasing, copying))
    found = [product(x, adjoint=adjoint) for x in given]
    for x, y in zip(given, found, strict=True):
        assert (y == expected(x, adjoint=adjoint)).all()


class Noting(Copying):
    """Notes where its products are."""

    def __matmul__(self, x):
        y = self.a @ x
        self.place = y.data_ptr()
        return y


class NotingLent(Noting):
    def __matmul__(self, x):
        y = torch.from_numpy(self.a.numpy() @ x.numpy())
        self.place = y.data_ptr()
        return y


@pytest.mark.parametrize(("kind", "copies"), [(Noting, []), (NotingLent, [0])])
def test_products_in_new_memory_are_not_copied(kind, copies):
    operator = kind(matrix())
    product, kept, copied = Product(operator, "float32", "cpu"), [], []
    for number in range(4):
        kept.append(product(np.ones((N, 8), np.float32)))
        if kept[-1].ctypes.data != operator.place:
            copied.append(number)
    assert copied == copies


CASES = {
    "eigh": {},
    "eigh, hmt": {"method": "hmt", "power_iterations": 1},
    "eigh, krylov": {"method": "krylov", "rounds": 3, "round_width": 6, "measurements": None},
    "svd, nystrom": {"kind": "svd", "method": "nystrom"},
    "svd, singlepass": {"kind": "svd", "method": "singlepass"},
    "svd, oversampled": {"kind": "svd", "method": "oversampled"},
    "svd, hmt": {"kind": "svd", "method": "hmt"},
    "svd, krylov": {"kind": "svd", "method": "krylov", "rounds": 3, "round_width": 6,
                    "measurements": None},
    "terms": {"terms": 3},
}  # fmt: skip


def decomposed(make, folder, terms=1, kind="eigh", **more):
    a = matrix()
    operator = ooc.Sum([make(a / terms) for _ in range(terms)]) if terms > 1 else make(a)
    run = getattr(ooc, kind)
    more = {"measurements": 16, "test_measurements": 6} | more
    run(operator, run_dir=folder, block=4, **{k: v for k, v in more.items() if v is not None})
    return run_contents(folder)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("disk", ["fast", "slow"])
@pytest.mark.parametrize("aliasing", ALIASING)
@pytest.mark.parametrize("case", CASES)
def test_run_of_an_aliasing_operator_has_the_bits_of_a_copying_one(
    tmp_path, monkeypatch, case, aliasing, disk
):
    makes = ALIASING[aliasing]
    expected = decomposed(makes[1], tmp_path / "copying", **CASES[case])
    publish = measuring.publish_shard

    def publish_late(*arguments):
        # By then the next product has been made.
        time.sleep(0.02)
        return publish(*arguments)

    if disk == "slow":
        monkeypatch.setattr(measuring, "publish_shard", publish_late)
    assert decomposed(makes[0], tmp_path / "aliasing", **CASES[case]) == expected


class Returning:
    shape = (N, N)

    def __init__(self, returned):
        self.returned = returned

    def __matmul__(self, x):
        return self.returned(x)


def leave(_):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (lambda x: x.to_sparse(), "operator @ X returned a sparse_coo tensor, whose entries"),
        (lambda x: x.to("meta"), "operator @ X returned a meta tensor, whose entries cannot"),
        (lambda x: x.int(), "the plan says dtype = float32; let the operator return float32"),
        (leave, r"the operator ended its process: SystemExit\(0\) \(in leave, .*test_reuse.py"),
    ],
    ids=["sparse", "meta", "a dtype of no plan", "leaves"],
)  # fmt: skip
def test_what_is_no_product_is_named(tmp_path, returned, text):
    with pytest.raises(ooc.OperatorError, match=text):
        ooc.eigh(Returning(returned), measurements=8, run_dir=tmp_path / "run")
