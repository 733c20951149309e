"""Whatever people have becomes an operator: the smallest objects of each sort."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

import skerch_ooc as ooc
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.adapters import Product, product_of


class Matvec:
    """Vectors only, as functions give them."""

    def __init__(self, a):
        self.a, self.shape = a, tuple(a.shape)

    def matvec(self, x):
        return self.a @ x

    def rmatvec(self, x):
        return self.a.mH @ x


class Matmat(Matvec):
    def matmat(self, x):
        return self.a @ x

    def rmatmat(self, x):
        return self.a.mH @ x


class WithAdjoint:
    def __init__(self, a):
        self.a, self.shape = a, tuple(a.shape)

    def __matmul__(self, x):
        return self.a @ x

    def adjoint(self):
        return WithAdjoint(self.a.mH)


class WithH(WithAdjoint):
    adjoint = None

    @property
    def H(self):  # noqa: N802 (as SciPy names it)
        return WithAdjoint(self.a.mH)


class WithRmatmul(WithAdjoint):
    adjoint = None

    def __rmatmul__(self, x):
        return x @ self.a


def scipy_functions(a):
    array = a.numpy()
    return scipy.sparse.linalg.LinearOperator(
        array.shape, matvec=lambda x: array @ x, rmatvec=lambda x: array.conj().T @ x,
        dtype=array.dtype,
    )  # fmt: skip


ADAPTERS = {
    "torch tensor": lambda a: a,
    "torch sparse": lambda a: a.to_sparse_coo(),
    "numpy array": lambda a: a.numpy(),
    "numpy array in columns": lambda a: np.asfortranarray(a.numpy()),
    "scipy csr_array": lambda a: scipy.sparse.csr_array(a.numpy()),
    "scipy csc_matrix": lambda a: scipy.sparse.csc_matrix(a.numpy()),
    "scipy coo_array": lambda a: scipy.sparse.coo_array(a.numpy()),
    "scipy LinearOperator": lambda a: scipy.sparse.linalg.aslinearoperator(a.numpy()),
    "scipy LinearOperator of functions": scipy_functions,
    "matvec and rmatvec": Matvec,
    "matmat and rmatmat": Matmat,
    "class with adjoint()": WithAdjoint,
    "class with .H": WithH,
    "class with __rmatmul__": WithRmatmul,
}


def matrix(height, width, dtype):
    generator = torch.Generator().manual_seed(height + width)
    a = torch.randn(height, width, generator=generator, dtype=getattr(torch, dtype))
    # Empty rows and columns, as sparse matrices have.
    a[3] = 0
    a[:, 2] = 0
    return a


@pytest.mark.covered(2)
@pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(9, 9), (30, 7), (7, 30)], ids=str)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_product_is_that_of_the_dense_matrix(adapter, shape, dtype, adjoint):
    a = matrix(*shape, dtype)
    x = matrix(shape[0] if adjoint else shape[1], 5, dtype).contiguous()
    product = Product(ADAPTERS[adapter](a), dtype, "cpu")
    found = torch.from_numpy(product(x.numpy(), adjoint=adjoint))
    torch.testing.assert_close(found, (a.mH if adjoint else a) @ x)


def test_object_without_a_product_is_refused_in_its_own_words():
    class Nothing:
        shape = (3, 3)

    with pytest.raises(OperatorError, match="unsupported operand"):
        Product(Nothing(), "float32", "cpu")(np.zeros((3, 2), np.float32))


def test_object_without_an_adjoint_is_told_what_would_do():
    class Half(WithAdjoint):
        adjoint = None

    with pytest.raises(OperatorError, match=r"adjoint\(\), \.H, rmatmat\(X\), rmatvec\(x\)"):
        Product(Half(torch.eye(3)), "float32", "cpu")(np.zeros((3, 2), np.float32), adjoint=True)


def test_operator_of_numpy_may_have_a_device_that_torch_has_not(tmp_path):
    factory = tmp_path / "mine.py"
    factory.write_text(
        "import numpy as np\n\ndef make(device='cpu'):\n    return np.diag(0.5 ** np.arange(60))\n"
    )
    operator = {"factory": f"{factory}:make", "device": "cuda:0"}
    spec = {"measurements": 20, "dtype": "float64", "operator": operator}
    assert ooc.plan(spec, tmp_path / "run").plan.device == "cuda:0"


def test_interruption_of_compiled_code_is_no_failure_of_the_operator():
    class Compiled:
        shape = (3, 3)

        def __matmul__(self, x):
            raise RuntimeError("the operation failed: KeyboardInterrupt")

    product = product_of(Compiled(), "float32", "cpu")
    with pytest.raises(KeyboardInterrupt):
        product(np.ones((3, 1), np.float32))
