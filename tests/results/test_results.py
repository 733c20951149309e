"""Results as matrices and as operators, against the same in memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operators import DTYPES, dense

import skerch_ooc as ooc
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.results.indexing import crossed, select
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import list_shards, publish_shard

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("eigh", "svd")
SHAPES = {"eigh": (150, 150), "svd": (4200, 110)}
MEASUREMENTS, RANK = 70, 66

Results = Callable[..., Any]


def decompose(folder: Path, kind: str, dtype: str, vectors: str, method: str = "nystrom") -> Any:
    a = dense(SHAPES[kind], "decay", dtype, hermitian=kind == "eigh")
    call = ooc.eigh if kind == "eigh" else ooc.svd
    settings = {"method": method, "vectors": vectors, "rank": RANK}
    return call(a, measurements=MEASUREMENTS, run_dir=folder, test_measurements=6, **settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results by kind, dtype, whether vectors are stored, and method; each is made once."""

    @cache
    def run(kind: str, dtype: str, method: str) -> Any:
        return decompose(tmp_path_factory.mktemp("run") / "run", kind, dtype, "stored", method)

    @cache
    def get(kind: str, dtype: str, vectors: str, method: str = "nystrom") -> Any:
        stored = run(kind, dtype, method)
        if vectors == "stored":
            return stored
        return ooc.recover(ooc.open_run(stored.path.parents[2]), vectors=vectors)

    return get


def double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def factors(result: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``U``, the values and ``V``, in memory and in double precision."""
    if isinstance(result, ooc.Eigh):
        u = v = result.eigenvectors[:]
        values = result.eigenvalues
    else:
        u, values, v = result.U[:], result.S, result.V[:]
    wide = double(u.dtype)
    return u.to(wide), values.to(wide), v.to(wide)


def approximation(result: Any) -> torch.Tensor:
    u, values, v = factors(result)
    return (u * values) @ v.mH


def tolerance(dtype: torch.dtype) -> float:
    return 3e-6 if dtype in (torch.float32, torch.complex64) else 1e-13


def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(5))


MASK = torch.arange(SHAPES["svd"][0]) % 701 == 3
INDICES = {
    "all": slice(None),
    "dots": ...,
    "a row": 4100,
    "the last row": -1,
    "a row as numpy counts": np.int64(17),
    "a row as torch counts": torch.tensor(17),
    "rows": slice(4090, 4105),
    "rows from the end": slice(-5, None),
    "every 1000th row": slice(3, None, 1000),
    "no rows": slice(7, 7),
    "beyond the end": slice(4190, 9999),
    "a column": (slice(None), 65),
    "a column after dots": (..., -2),
    "columns": (slice(None), slice(60, 68)),
    "every 30th column": (slice(4000, 4150), slice(None, None, 30)),
    "an entry": (4099, 65),
    "an entry after dots": (..., 4099, 65),
    "an entry before dots": (4099, 65, ...),
    "an entry around dots": (4099, ..., 65),
    "a list of rows": [4199, 0, -1, 4096, 0],
    "a tuple of rows": ((1, 4100), slice(2)),
    "a range of rows": range(5, 4200, 2000),
    "a tensor of rows": torch.tensor([4100, 3]),
    "a row in a tensor": torch.tensor([3]),
    "an array of rows": np.array([4100, 3], np.int32),
    "no rows of a list": [],
    "a mask of rows": MASK,
    "a mask of numpy": MASK.numpy(),
    "a list of booleans": MASK.tolist(),
    "a list of columns": (slice(4094, 4098), [65, 0, -1]),
    "a list of columns of a row": (4097, [65, 0]),
    "an entry of each of a list of rows": ([65, 4100], 3),
    "a tensor of columns": (slice(None), torch.tensor([2, 65])),
    "a mask of columns": (slice(9), torch.arange(RANK) % 30 == 2),
}


@pytest.mark.covered(1)
@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
def test_vectors_are_indexed_as_tensors_are(results, vectors, index):
    u = results("svd", "complex64", vectors).U
    assert torch.equal(u[INDICES[index]], u[:][INDICES[index]])


TURNED = {
    "all": slice(None),
    "a row": 65,
    "rows": slice(60, 70),
    "a column": (slice(None), 4100),
    "an entry": (-1, 4100),
    "a list of rows": [65, 2],
    "a list of columns": (slice(60, 68), [4100, 3]),
    "a mask of columns": (slice(2), MASK),
}


@pytest.mark.parametrize("index", TURNED)
def test_adjoint_is_indexed_as_tensors_are(results, index):
    u = results("svd", "complex64", "stored").U
    assert torch.equal(u.mH[TURNED[index]], u[:].mH[TURNED[index]])


@pytest.mark.parametrize(
    "index", [np.s_[::-1], np.s_[4150:3:-997, ::-3], np.s_[[1], ::-1]], ids=str
)
def test_negative_steps_read_backwards_as_in_numpy(results, index):
    u = results("svd", "complex64", "stored").U
    np.testing.assert_array_equal(u[index].numpy(), u[:].numpy()[index])


WRONG = {
    "too many": ((0, 0, 0), "too many indices: 3"),
    "too many after dots": ((..., 0, 0, 0), "too many indices: 3"),
    "dots twice": ((..., ...), "single ellipsis"),
    "row beyond": (4200, "index 4200 is out of range: there are 4200 rows"),
    "row before": (-4201, "index -4201 is out of range"),
    "column beyond": ((0, RANK), f"there are {RANK} columns"),
    "listed row beyond": ([0, 4200], "index 4200 is out of range"),
    "listed column before": ((0, [-RANK - 1]), "is out of range"),
    "huge": (2**70, "is no index of rows"),
    "text": ("U", "is no index of rows"),
    "number with a point": (1.0, "is no index of rows"),
    "list of numbers with points": ([1.0], "is no index of rows"),
    "a boolean": (True, "is no index of rows"),
    "nothing": (None, "is no index of rows"),
    "list of lists": ([[0, 1], [2, 3]], "of one dimension"),
    "uneven lists": ([[0, 1], [2]], "is no list of row numbers"),
    "mask of two dimensions": (torch.ones(4200, RANK, dtype=torch.bool), "of one dimension"),
    "short mask": ([True, False], "a mask of 2 entries does not fit a matrix of 4200 rows"),
    "bytes": (torch.zeros(4200, dtype=torch.uint8), "is no index of rows"),
    "two lists": (([0, 1], [0, 1]), r"use submatrix\(rows, columns\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_index_that_means_nothing_is_an_index_error(results, wrong):
    index, text = WRONG[wrong]
    with pytest.raises(IndexError, match=text):
        results("svd", "complex64", "stored").U[index]


@given(
    size=st.integers(1, 60),
    tile=st.integers(1, 20),
    index=st.one_of(
        st.slices(60), st.lists(st.integers(0, 59)).map(lambda numbers: numbers or slice(None))
    ),
)
def test_tiles_together_hold_what_was_selected(size, tile, index):
    index = index if isinstance(index, slice) else [number % size for number in index]
    numbers = np.arange(size)
    selection = select(index, size, 0)
    found = np.full(len(selection), -1)
    tiles = [cut(Range(0, size), tile)[number] for number in selection.tiles(tile)]
    parts = [(here, selection.within(here)) for here in tiles]
    assert [np.put(found, np.arange(len(found))[to], numbers[here.slice][inside])
            for here, (to, inside) in parts].count(None) == len(parts)  # fmt: skip
    assert all(len(numbers[here.slice][inside]) for here, (_, inside) in parts)
    np.testing.assert_array_equal(found, numbers[index])


@pytest.mark.parametrize("rows", [slice(1, 9, 3), np.array([4, 1])], ids=["slice", "list"])
@pytest.mark.parametrize("columns", [slice(2), np.array([3, 0])], ids=["slice", "list"])
def test_crossed_indices_take_all_columns_of_all_rows(rows, columns):
    a = np.arange(50).reshape(10, 5)
    np.testing.assert_array_equal(a[crossed(rows, columns)], a[rows][:, columns])


def test_matrix_says_what_it_is(results):
    u = results("svd", "float32", "stored").U
    assert (len(u), u.shape, u.dtype) == (4200, (4200, RANK), torch.float32)
    assert "TallMatrix(shape=(4200, 66), dtype=torch.float32, path=" in repr(u)


def test_adjoint_of_the_adjoint_is_the_matrix(results):
    v = results("svd", "complex64", "stored").V
    assert v.mH.shape == (RANK, 110)
    assert torch.equal(v.mH.mH[5:9], v[5:9])


@pytest.mark.parametrize("name", ["U", "Vh"])
def test_iterating_gives_the_rows(results, name):
    matrix = getattr(results("svd", "complex64", "stored"), name)
    assert torch.equal(torch.stack(list(matrix)), matrix[:])


@pytest.mark.parametrize("dtype", [None, np.complex128])
def test_numpy_takes_the_matrix_as_an_array(results, dtype):
    u = results("svd", "complex64", "stored").U
    array = np.asarray(u, dtype)
    assert array.dtype == (dtype or np.complex64)
    np.testing.assert_array_equal(array, u[:].numpy())


def test_matrix_is_no_array_without_a_copy(results):
    with pytest.raises(ValueError, match="without being copied"):
        np.asarray(results("svd", "complex64", "stored").U, copy=False)


def test_altered_tile_is_found_when_it_is_read(tmp_path):
    result = decompose(tmp_path / "run", "svd", "float32", "stored")
    data = bytearray(result.path.read_bytes())
    found = data.find(result.U[4199, 65].numpy().tobytes())
    assert found > 0
    data[found] ^= 1
    result.path.write_bytes(data)
    assert result.U[0, 0].isfinite()
    with pytest.raises(ooc.CorruptError, match="wrong checksum"):
        result.U[4199]


@pytest.mark.covered(2)
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
class TestProducts:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("columns", [(), (3,), (0,)], ids=["vector", "matrix", "no columns"])
    def test_from_the_left_are_those_of_the_approximation(
        self, results, kind, dtype, vectors, columns
    ):
        result = results(kind, dtype, vectors)
        x = gaussian(result.shape[1], *columns, dtype=result.dtype)
        expected = (approximation(result) @ x.to(double(result.dtype))).to(result.dtype)
        limit = tolerance(result.dtype)
        torch.testing.assert_close(result @ x, expected, rtol=limit, atol=limit)

    @pytest.mark.parametrize("rows", [(), (3,)], ids=["vector", "matrix"])
    def test_from_the_right_are_those_of_the_approximation(
        self, results, kind, dtype, vectors, rows
    ):
        result = results(kind, dtype, vectors)
        x = gaussian(*rows, result.shape[0], dtype=result.dtype)
        expected = (x.to(double(result.dtype)) @ approximation(result)).to(result.dtype)
        limit = 10 * tolerance(result.dtype)
        torch.testing.assert_close(x @ result, expected, rtol=limit, atol=limit)

    def test_of_numpy_are_those_of_torch(self, results, kind, dtype, vectors):
        result = results(kind, dtype, vectors)
        x, y = (gaussian(n, dtype=result.dtype) for n in result.shape[::-1])
        forth, back = result @ x.numpy(), y.numpy() @ result
        assert (type(forth), type(back)) == (np.ndarray, np.ndarray)
        np.testing.assert_array_equal(forth, (result @ x).numpy())
        np.testing.assert_array_equal(back, (y @ result).numpy())

    def test_submatrix_is_that_of_the_approximation(self, results, kind, dtype, vectors):
        result = results(kind, dtype, vectors)
        rows, cols = slice(-1, 3, -61), [7, 0, 99, 7]
        expected = approximation(result)[range(result.shape[0] - 1, 3, -61)][:, cols]
        expected = expected.to(result.dtype)
        limit = tolerance(result.dtype)
        torch.testing.assert_close(result.submatrix(rows, cols), expected, rtol=limit, atol=limit)


PROMOTED = {
    ("float32", torch.float64): torch.float64,
    ("float32", torch.complex64): torch.complex64,
    ("float32", torch.float16): torch.float32,
    ("float32", torch.bfloat16): torch.float32,
    ("float32", torch.int64): torch.float32,
    ("float32", torch.bool): torch.float32,
    ("complex64", torch.float32): torch.complex64,
    ("complex64", torch.float64): torch.complex128,
    ("float64", torch.complex64): torch.complex128,
}


@pytest.mark.parametrize(("dtype", "other"), PROMOTED, ids=str)
def test_product_has_the_dtype_that_torch_promotes_to(results, dtype, other):
    result = results("eigh", dtype, "stored")
    x = (10 * gaussian(150, 2)).to(other)
    y = result @ x
    wide = double(y.dtype)
    expected = (approximation(result).to(wide) @ x.to(wide)).to(y.dtype)
    assert y.dtype == PROMOTED[dtype, other]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("vectors", ["stored", "implicit"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=["vector", "block"])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_vectors_are_multiplied_from_both_sides(results, dtype, vectors, shape, library):
    lazy = results("svd", dtype, vectors).U
    dense = lazy[:]
    tall, short = (gaussian(n, *shape, dtype=dense.dtype) for n in dense.shape)
    if library == "numpy":
        tall, short, dense = tall.numpy(), short.numpy(), dense.numpy()
    adjoint = dense.conj().T
    row = tall.T if shape else tall
    for got, expected in ((lazy @ short, dense @ short), (lazy.mH @ tall, adjoint @ tall),
                          (row @ lazy, row @ dense)):  # fmt: skip
        assert type(got) is type(expected)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [np.float64, np.complex64, np.int64, np.float16])
def test_product_has_the_dtype_that_numpy_promotes_to(results, other):
    result = results("eigh", "float32", "stored")
    x = (10 * gaussian(150)).numpy().astype(other)
    assert (result @ x).dtype == (x @ result).dtype == np.result_type(np.float32, other)


@pytest.mark.parametrize("turn", [torch.Tensor.conj, torch.Tensor.mH.__get__], ids=["conj", "mH"])
def test_lazily_conjugated_tensors_are_multiplied_as_they_look(results, turn):
    result = results("eigh", "complex128", "stored")
    x = turn(gaussian(150, 150, dtype=torch.complex128))
    torch.testing.assert_close(result @ x, approximation(result) @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(149,), (149, 2), (2, 150), (150, 2, 1), ()], ids=str)
@pytest.mark.parametrize("library", [torch, np], ids=["torch", "numpy"])
def test_product_with_another_shape_is_refused_with_both(results, shape, library):
    with pytest.raises(ValueError, match=r"cannot multiply the shapes \(150, 150\) and"):
        results("eigh", "float32", "stored") @ library.ones(shape)


@pytest.mark.parametrize("other", [2.0, [1.0] * 150, None], ids=["number", "list", "nothing"])
def test_product_with_what_is_no_array_is_a_type_error(results, other):
    with pytest.raises(TypeError, match="unsupported operand"):
        results("eigh", "float32", "stored") @ other


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_product_with_a_tensor_on_a_gpu_is_there(results):
    result = results("eigh", "float32", "stored")
    x = gaussian(150, 2, dtype=torch.float32)
    assert (result @ x.cuda()).is_cuda
    assert torch.equal((result @ x.cuda()).cpu(), result @ x)


def test_product_does_not_drop_a_gradient_in_silence(results):
    with pytest.raises(RuntimeError, match="detach"):
        results("eigh", "float32", "stored") @ torch.ones(150, requires_grad=True)


def test_result_can_be_decomposed_itself(results, tmp_path):
    known = results("svd", "float64", "implicit")
    again = ooc.svd(known, measurements=RANK, run_dir=tmp_path / "run")
    torch.testing.assert_close(again.S[:20], known.S[:20], rtol=1e-9, atol=0)


SUBMATRICES = {
    "an entry": (4100, 3),
    "a row": (-1, slice(None)),
    "a column": (slice(None), 109),
    "two lists": ([4199, 0, 4199], [5, -1]),
    "masks": (MASK, torch.arange(110) % 50 == 1),
    "nothing": (slice(0), [1, 2]),
}


@pytest.mark.parametrize("case", SUBMATRICES)
def test_submatrix_crosses_rows_and_columns(results, case):
    result = results("svd", "float64", "stored")
    rows, cols = SUBMATRICES[case]
    expected = approximation(result)[rows][..., cols]
    torch.testing.assert_close(result.submatrix(rows, cols), expected, rtol=1e-12, atol=1e-14)


def test_submatrix_of_vectors_crosses_rows_and_columns(results):
    u = results("svd", "complex64", "implicit").U
    assert torch.equal(u.submatrix([4100, 3], [65, 0]), u[:][[4100, 3]][:, [65, 0]])
    assert torch.equal(u.mH.submatrix([65, 0], [4100, 3]), u[:].mH[[65, 0]][:, [4100, 3]])


def test_submatrix_out_of_range_is_an_index_error(results):
    with pytest.raises(IndexError, match="index 110 is out of range: there are 110 columns"):
        results("svd", "float64", "stored").submatrix(0, 110)


def test_more_rows_than_are_formed_at_once_are_right(results, monkeypatch):
    monkeypatch.setattr("skerch_ooc.results.streamed._ROWS_AT_ONCE", 40)
    result = results("eigh", "float64", "stored")
    found = result.submatrix(slice(None), list(range(150)))
    torch.testing.assert_close(found, approximation(result), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eigenpairs_in_memory_are_a_named_tuple_like_torchs(results, dtype):
    eig = results("eigh", dtype, "stored")
    values, vectors = eig.torch()
    assert eig.torch()._fields == ("eigenvalues", "eigenvectors")
    assert torch.equal(values, eig.eigenvalues)
    assert torch.equal(vectors, eig.eigenvectors[:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_vectors_in_memory_are_a_named_tuple_like_torchs(results, dtype):
    usv = results("svd", dtype, "stored")
    u, s, vh = usv.torch()
    assert usv.torch()._fields == ("U", "S", "Vh")
    wide = double(usv.dtype)
    torch.testing.assert_close((u * s).to(wide) @ vh.to(wide), approximation(usv),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    assert torch.equal(vh, usv.V[:].mH)


@pytest.mark.covered(1)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("kind", KINDS)
def test_scipy_takes_the_result_as_an_operator(results, kind, dtype):
    from scipy.sparse.linalg import svds

    result = results(kind, dtype, "stored")
    operator = result.scipy()
    assert (operator.shape, operator.dtype) == (result.shape, np.dtype(dtype))
    found = np.sort(svds(operator, k=3, return_singular_vectors=False, random_state=0))[::-1]
    expected = torch.linalg.svdvals(approximation(result))[:3].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("columns", [(), (1,), (4,)], ids=str)
def test_scipy_operator_has_the_adjoint(results, columns):
    usv = results("svd", "complex128", "stored")
    operator = usv.scipy()
    y = gaussian(usv.shape[0], *columns, dtype=torch.complex128).numpy()
    product = operator.rmatvec(y) if y.ndim == 1 else operator.rmatmat(y)
    np.testing.assert_allclose(
        product, approximation(usv).T.conj().resolve_conj().numpy() @ y, rtol=1e-10
    )


def test_without_scipy_the_error_says_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ooc.UsageError, match="pip install scipy"):
        results("eigh", "float32", "stored").scipy()


def names_of(kind: str) -> tuple[str, ...]:
    return ("eigenvectors",) if kind == "eigh" else ("U", "V")


MADE = [
    ("nystrom", "float32"),
    ("nystrom", "complex128"),
    ("singlepass", "float32"),
    ("oversampled", "complex64"),
    ("hmt", "float32"),
    ("hmt", "complex128"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("method", "dtype"), MADE)
@pytest.mark.parametrize("kind", KINDS)
def test_implicit_vectors_are_the_stored_ones(results, kind, dtype, method):
    stored = results(kind, dtype, "stored", method)
    implicit = results(kind, dtype, "implicit", method)
    pairs = [(getattr(stored, name)[:], getattr(implicit, name)[:]) for name in names_of(kind)]
    last_bit = 1e-15 if dtype == "complex128" else 1.2e-7
    assert [float((a - b).abs().max()) <= last_bit for a, b in pairs] == [True] * len(pairs)
    assert implicit.rank == stored.rank
    assert torch.equal(implicit.torch()[kind == "svd"].abs(), stored.torch()[kind == "svd"].abs())


def test_bits_of_implicit_vectors_do_not_depend_on_what_is_read_along(results):
    u = results("svd", "complex128", "implicit", "nystrom").U
    whole = u[:]
    assert torch.equal(torch.stack([u[row, 65] for row in (0, 255, 256, 4199)]),
                       whole[[0, 255, 256, 4199], 65])  # fmt: skip
    assert torch.equal(u[4100:4101, 63:65], whole[4100:4101, 63:65])
    assert torch.equal(u[:, -1], whole[:, -1])


def test_implicit_result_is_small_and_has_no_bulk(results):
    usv = results("svd", "float32", "implicit")
    assert SealedFile(usv.path).layouts == {}
    assert usv.path.stat().st_size < 0.2 * results("svd", "float32", "stored").path.stat().st_size


class SteepSum:
    """``sum 10^(-i/10) q_i q_i^T``: its sketches are as ill-conditioned as can be."""

    def __init__(self, n: int, rank: int) -> None:
        self.shape, self.dtype = (n, n), torch.float64
        self._q = torch.linalg.qr(gaussian(n, rank))[0]
        self._values = 10 ** (-0.1 * torch.arange(rank, dtype=torch.float64))

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return (self._q * self._values) @ (self._q.T @ x)


def test_implicit_vectors_of_an_ill_conditioned_sketch_are_orthonormal(tmp_path):
    eig = ooc.eigh(SteepSum(4500, 120), measurements=120, run_dir=tmp_path / "run",
                   vectors="implicit")  # fmt: skip
    assert "left_correction" in SealedFile(eig.path).arrays
    u = eig.eigenvectors[:]
    assert torch.linalg.norm(u.T @ u - torch.eye(eig.rank)) < 1e-11
    x = gaussian(4500)
    torch.testing.assert_close(eig @ x, approximation(eig) @ x, rtol=1e-9, atol=1e-12)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("method", ["nystrom", "hmt"])
def test_implicit_vectors_move_with_their_run(tmp_path, method):
    before = decompose(tmp_path / "a", "svd", "float32", "implicit", method).U[:]
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = ooc.recover(ooc.open_run(tmp_path / "b"))
    assert torch.equal(moved.U[:], before)


def test_result_opened_by_a_relative_path_finds_its_run(tmp_path, monkeypatch):
    before = decompose(tmp_path / "run", "eigh", "float32", "implicit").eigenvectors[:]
    monkeypatch.chdir(tmp_path / "run/results/default")
    assert torch.equal(ooc.Eigh(Path("eigh.h5")).eigenvectors[:], before)


def test_implicit_result_outside_of_its_run_still_has_its_values(tmp_path):
    eig = decompose(tmp_path / "run", "eigh", "float32", "implicit")
    shutil.copytree(tmp_path / "run/results", tmp_path / "copy/results")
    copied = ooc.Eigh(tmp_path / "copy/results/default/eigh.h5")
    assert torch.equal(copied.eigenvalues, eig.eigenvalues)
    assert (copied.shape, copied.dtype, copied.rank) == (eig.shape, eig.dtype, eig.rank)
    with pytest.raises(ooc.IncompleteError, match='recover it with vectors = "stored"'):
        copied.eigenvectors[0]


def test_implicit_result_of_another_run_is_refused(tmp_path):
    decompose(tmp_path / "a", "eigh", "float32", "implicit")
    decompose(tmp_path / "b", "eigh", "float64", "implicit")
    shutil.copy(tmp_path / "a/results/default/eigh.h5", tmp_path / "b/results/default/eigh.h5")
    with pytest.raises(ooc.CorruptError, match="is a result of another run"):
        ooc.Eigh(tmp_path / "b/results/default/eigh.h5").eigenvectors[0]


def a_shard(folder: Path) -> tuple[ooc.Run, Any]:
    run = ooc.open_run(folder)
    return run, next(shard for shard in list_shards(run.shards) if shard.role == "right")


@pytest.mark.usefixtures("no_late_files")
def test_implicit_vectors_without_their_shards_say_what_to_measure(tmp_path):
    eig = decompose(tmp_path / "run", "eigh", "float32", "implicit")
    run, shard = a_shard(tmp_path / "run")
    (run.shards / shard.name).unlink()
    with pytest.raises(ooc.IncompleteError, match=r"from the shards: .*the call in Python"):
        eig.eigenvectors[0]


def test_implicit_vectors_of_shards_that_were_made_anew_are_refused(tmp_path):
    eig = decompose(tmp_path / "run", "eigh", "float32", "implicit")
    run, shard = a_shard(tmp_path / "run")
    whole = SealedFile(run.shards / shard.name).bulk().read(shard.rows, shard.columns)
    (run.shards / shard.name).unlink()
    publish_shard(run.shards, run.plan, shard, whole * np.float32(1.0001), {})
    with pytest.raises(ooc.CorruptError, match=r"measured anew since.*skerch-ooc recover"):
        eig.eigenvectors[0]


def test_altered_shard_is_found_when_vectors_are_made_of_it(tmp_path):
    eig = decompose(tmp_path / "run", "eigh", "float32", "implicit")
    run, shard = a_shard(tmp_path / "run")
    path = run.shards / shard.name
    entry = SealedFile(path).bulk().read(Range(149, 150), Range(0, 1)).tobytes()
    data = bytearray(path.read_bytes())
    data[data.rfind(entry)] ^= 1
    path.write_bytes(data)
    with pytest.raises(ooc.CorruptError, match=r"wrong checksum.*the call in Python"):
        eig.eigenvectors[0]


def test_implicit_vectors_are_still_there_when_their_run_has_grown(tmp_path):
    eig = decompose(tmp_path / "run", "eigh", "float32", "implicit")
    before = eig.eigenvectors[:]
    ooc.extend(ooc.open_run(tmp_path / "run"), MEASUREMENTS + 10)
    assert torch.equal(ooc.Eigh(eig.path).eigenvectors[:], before)


def test_result_without_vectors_says_so(tmp_path):
    usv = decompose(tmp_path / "run", "svd", "float32", "stored")
    with pytest.raises(ooc.IncompleteError, match="holds no eigenvectors"):
        ooc.Eigh.__mro__[1](usv.path, "S", "eigenvectors", None)
