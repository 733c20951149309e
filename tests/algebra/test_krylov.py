"""Block Krylov rounds of dense operators: pairs, their bounds, the end, what the sums tell."""

from __future__ import annotations

import numpy as np
import pytest
from krylov_in_memory import dense
from threadpoolctl import threadpool_limits

from skerch_ooc.algebra.krylov.steps import Goal
from skerch_ooc.planning.spec import DTYPES

all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
TOLERANCES = {"float32": 1e-4, "complex64": 1e-4, "float64": 1e-11, "complex128": 1e-11}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These matrices are too small for more."""
    with threadpool_limits(1):
        yield


def orthonormal(rows, columns, random, dtype):
    x = random.standard_normal((rows, columns))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * random.standard_normal((rows, columns))
    return np.linalg.qr(x)[0]


def of_values(values, random, dtype):
    """A Hermitian matrix as it is stored, in double precision."""
    q = orthonormal(len(values), len(values), random, dtype)
    a = ((q * values) @ q.conj().T).astype(dtype)
    return (0.5 * (a + a.conj().T)).astype(np.result_type(dtype, np.float64))


class TestPairs:
    @all_dtypes
    @pytest.mark.parametrize("width", [1, 8])
    def test_of_a_hermitian_operator_are_within_their_bounds(self, dtype, width):
        random = np.random.default_rng(0)
        signs = np.where(np.arange(200) % 3 == 0, -1, 1)
        a = of_values(signs / np.arange(1, 201), random, dtype)
        run = dense(a, width, dtype=dtype)
        standing = run.run(Goal(10, TOLERANCES[dtype]))
        pairs = standing.pairs.upto(10)
        true = np.linalg.eigvalsh(a)
        true = true[np.argsort(-np.abs(true))][:10]
        assert standing.ending == "met"
        rounding = 1e-14  # Of the truth.
        assert np.all(np.abs(pairs.values - true) <= pairs.bounds + rounding)
