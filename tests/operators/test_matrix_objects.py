"""Objects of other libraries: what is handed over is what is decomposed, or is refused."""

from __future__ import annotations

import dask.array
import distributed
import h5py
import numpy as np
import pandas
import polars
import pytest
import scipy.sparse
import torch
import xarray
import zarr

import skerch_ooc as ooc
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.adapters import dtype_of, product_of, shape_of
from skerch_ooc.operators.objects import adapted

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 60, 24
NAMES = [f"c{i}" for i in range(WIDTH)]


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """Slabs of a few rows, so that several are read."""
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 16 * WIDTH * 4)


def entries(dtype="float64", seed=3):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((HEIGHT, WIDTH)) * np.linspace(1, 9, WIDTH) + 2
    if np.dtype(dtype).kind == "c":
        values = values + 1j * generator.standard_normal((HEIGHT, WIDTH))
    if np.dtype(dtype).kind in "ub":
        values = np.abs(values)
    return values.astype(dtype)


def in_hdf5(folder, a, **options):
    return h5py.File(folder / "a.h5", "w").create_dataset("a", data=a, **options)


def in_file_by_xarray(folder, a):
    data = xarray.Dataset({"t": (("x", "y"), a)})
    data.to_zarr(folder / "a.zarr", consolidated=False, encoding={"t": {"chunks": (16, 5)}})
    return xarray.open_zarr(folder / "a.zarr", chunks=None, consolidated=False)["t"]


def lying_in_a_file(folder, a):
    np.save(folder / "a.npy", a)
    return np.load(folder / "a.npy", mmap_mode="r")


OBJECTS = {
    "numpy": lambda folder, a: a,
    "numpy by columns": lambda folder, a: np.asfortranarray(a),
    "numpy of other bytes": lambda folder, a: a.astype(a.dtype.newbyteorder(">")),
    "a masked array without a mask": lambda folder, a: np.ma.array(a),
    "a map of a file": lying_in_a_file,
    "torch": lambda folder, a: torch.from_numpy(a),
    "torch by columns": lambda folder, a: torch.from_numpy(a.T.copy()).T,
    "h5py": in_hdf5,
    "h5py in chunks": lambda folder, a: in_hdf5(folder, a, chunks=(16, 5)),
    "zarr": lambda folder, a: zarr.create_array(folder / "a.zarr", data=a, chunks=(16, 5)),
    "xarray": lambda folder, a: xarray.DataArray(a, dims=("x", "y")),
    "xarray of a file": in_file_by_xarray,
    "xarray of dask": lambda folder, a: xarray.DataArray(a, dims=("x", "y")).chunk({"x": 16}),
    "pandas": lambda folder, a: pandas.DataFrame(a, columns=NAMES),
    "polars": lambda folder, a: polars.DataFrame(a, schema=NAMES),
    "dask": lambda folder, a: dask.array.from_array(a, chunks=(16, WIDTH)),
    "dask of blocks": lambda folder, a: dask.array.from_array(a, chunks=((7, 30, 23), 5)),
}
DTYPES = (
    "float16", "float32", "float64", "complex64", "complex128", "int8", "uint16", "int32", "int64",
    "bool",
)  # fmt: skip
UNKNOWN = {("polars", "complex64"), ("polars", "complex128")}
FORMATS = ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")


def floating(dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == "c" or dtype in (np.float32, np.float64):
        return dtype.name
    return "float32" if dtype.itemsize <= 2 else "float64"


def require_same(operator, expected):
    """Compares what is applied, and its adjoint, with what is meant."""
    made = adapted(operator)
    dtype = dtype_of(made)
    assert dtype == floating(expected.dtype)
    assert shape_of(made) == expected.shape
    product = product_of(made, dtype, "cpu")
    wide = expected.astype(np.result_type(expected, np.float64))
    limit = 1e-5 if dtype in ("float32", "complex64") else 1e-10
    height, width = expected.shape
    x = np.random.default_rng(0).standard_normal((width, 3)).astype(dtype)
    y = np.random.default_rng(1).standard_normal((height, 3)).astype(dtype)
    np.testing.assert_allclose(product(x), wide @ x, atol=limit * np.abs(wide @ x).max())
    adjoint = wide.conj().T @ y
    found = product(y, adjoint=True)
    np.testing.assert_allclose(found, adjoint, atol=limit * np.abs(adjoint).max())


CASES = [(kind, dtype) for kind in OBJECTS for dtype in DTYPES if (kind, dtype) not in UNKNOWN]


@pytest.mark.covered(1)
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_object_is_what_it_holds(tmp_path, kind, dtype):
    a = entries(dtype)
    require_same(OBJECTS[kind](tmp_path, a), a)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128", "int8", "int64", "bool"])
@pytest.mark.parametrize("order", FORMATS)
@pytest.mark.parametrize("old", [False, True])
def test_sparse_object_is_what_it_holds(order, dtype, old):
    generator = np.random.default_rng(3)
    a = (entries() * (generator.random((HEIGHT, WIDTH)) < 0.2)).astype(dtype)
    make = getattr(scipy.sparse, f"{order}_{'matrix' if old else 'array'}")
    require_same(make(a), a)


OF_TORCH = {
    torch.bfloat16: "float32", torch.float16: "float32", torch.float8_e4m3fn: "float32",
    torch.float8_e5m2: "float32", torch.uint16: "float32", torch.int64: "float64",
    torch.complex32: "complex64",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", OF_TORCH)
def test_tensor_of_any_dtype_is_what_it_holds(dtype):
    tensor = torch.from_numpy(entries()).abs().to(dtype)
    numbers = tensor.to(getattr(torch, OF_TORCH[dtype])).numpy()
    require_same(tensor, numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bfloat16])
def test_sparse_tensor_is_what_it_holds(dtype):
    dense = torch.eye(5)[:3].to(dtype)
    require_same(dense.to_sparse(), dense.to(torch.float32).numpy())


def test_tensor_that_is_trained_is_what_it_holds():
    a = torch.nn.Parameter(torch.ones(5, 3, dtype=torch.bfloat16))
    require_same(a, np.ones((5, 3), "float32"))


def test_columns_of_several_types_are_what_they_hold():
    frame = pandas.DataFrame(
        {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True],
         "d": pandas.array([1, 2, 3], dtype="Int64"), "e": pandas.arrays.SparseArray([0.0, 1, 0])}
    )  # fmt: skip
    expected = np.array([[1, 0.5, 1, 1, 0], [2, 1.5, 0, 2, 1], [3, 2.5, 1, 3, 0]])
    require_same(frame, expected)


def test_columns_of_polars_of_several_types_are_what_they_hold():
    frame = polars.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    require_same(frame, np.array([[1, 0.5, 1], [2, 1.5, 0]]))


@pytest.mark.parametrize("kind", ["h5py", "zarr", "xarray"])
def test_packed_numbers_are_unpacked(tmp_path, kind):
    a = entries("int16")
    dataset = OBJECTS[kind](tmp_path, a)
    dataset.attrs.update({"scale_factor": 0.5, "add_offset": 3.0})
    require_same(dataset, 0.5 * a + 3.0)


def refusal(operator):
    with pytest.raises(OperatorError) as caught:
        product_of(adapted(operator), "float64", "cpu")(np.ones((operator.shape[1], 1)))
    return str(caught.value)


def with_gap(value):
    a = entries().astype(object)
    a[4, 5] = value
    return a


MISSING = {
    "masked": lambda folder: np.ma.masked_less(np.where(entries() == entries()[4, 5], -99, 0), -1),
    "pandas": lambda folder: pandas.DataFrame(with_gap(np.nan).astype(float), columns=NAMES),
    "pandas, NA": lambda folder: pandas.DataFrame(
        {f"{i}": range(5) for i in range(5)} | {"a": pandas.array([1, 2, 3, 4, None], "Int64")}
    ),
    "polars": lambda folder: polars.DataFrame(
        {f"{i}": [0, 1, 2, 3, 4] for i in range(5)} | {"a": [1, 2, 3, 4, None]}
    ),
    "xarray": lambda folder: xarray.DataArray(with_gap(np.nan).astype(float)),
    "dask": lambda folder: dask.array.from_array(with_gap(np.nan).astype(float), chunks=(3, 7)),
    "dask, masked": lambda folder: dask.array.ma.masked_equal(
        dask.array.from_array(np.where(entries() == entries()[4, 5], -99, 0), chunks=(3, 7)), -99
    ),
    "h5py": lambda folder: in_hdf5(folder, with_gap(np.nan).astype(float)),
    "torch": lambda folder: torch.from_numpy(with_gap(np.nan).astype(float)).to(torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISSING)
def test_missing_entries_are_refused_by_default(tmp_path, kind):
    said = refusal(MISSING[kind](tmp_path))
    assert "row 4" in said
    assert "column 5" in said


def test_missing_entry_of_a_frame_is_named_by_its_column():
    assert "(of 'c5')" in refusal(MISSING["pandas"](None))


REFUSED = {
    "numpy of objects": (lambda: with_gap("x"), "X.astype(float)"),
    "numpy of text": (lambda: np.full((3, 2), "a"), "give numbers"),
    "dates": (lambda: np.zeros((3, 2), "datetime64[s]"), "give numbers"),
    "columns of text": (lambda: pandas.DataFrame({"a": [1], "b": ["x"]}), "its columns b hold no"),
    "columns of dates": (
        lambda: pandas.DataFrame({"a": [1], "b": pandas.to_datetime(["2020"])}), "b hold no"
    ),
    "a column": (lambda: pandas.Series([1.0, 2.0]), "give a frame"),
    "columns of text in polars": (
        lambda: polars.DataFrame({"a": [1], "b": ["x"]}), "its columns b hold no"
    ),
    "a lazy frame": (lambda: polars.LazyFrame({"a": [1]}), "X.collect()"),
    "a file of HDF5": (lambda: h5py.File("x", "w", driver="core", backing_store=False), "X[name]"),
    "a group of Zarr": (lambda: zarr.create_group({}), "X[name]"),
    "a set of arrays": (lambda: xarray.Dataset({"a": (("x", "y"), entries())}), "X[name]"),
    "an array of three dimensions": (lambda: xarray.DataArray(np.ones((2, 2, 2))), "stack"),
    "a cube of Zarr": (lambda: zarr.ones(shape=(2, 2, 2)), "by factory"),
    "a cube of Dask": (lambda: dask.array.ones((2, 2, 2)), "X.reshape"),
    "a frame of Dask": (
        type("DataFrame", (), {"__module__": "dask.dataframe", "shape": (None, 2)}),
        "X.to_dask_array(lengths=True)",
    ),
    "chunks of unknown size": (
        lambda: dask.array.ones((4, 2))[dask.array.ones(4) > 0], "X.compute_chunk_sizes()"
    ),
    "chunks that are sparse": (
        lambda: dask.array.ones((4, 2), chunks=(2, 2)).map_blocks(scipy.sparse.csr_array),
        "chunk.toarray()",
    ),
    "packed numbers of Dask": (
        lambda: xarray.DataArray(entries("int16"), attrs={"scale_factor": 0.5}).chunk(),
        "mask_and_scale=True",
    ),
    "a tensor without numbers": (lambda: torch.ones(3, 2, device="meta"), "load them first"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_is_refused_with_the_way_out(kind):
    make, way = REFUSED[kind]
    with pytest.raises(OperatorError) as caught:
        adapted(make())
    assert way in str(caught.value)


def test_object_of_another_library_is_refused_with_the_way_out():
    made = type("Array", (), {"__module__": "jax.numpy", "shape": (3, 2)})
    with pytest.raises(OperatorError, match=r"give numpy.asarray\(X\)"):
        adapted(made())


def test_sparse_matrix_in_a_file_of_anndata_is_refused_with_the_way_out():
    made = type("CSRDataset", (), {"__module__": "anndata.abc", "shape": (3, 2)})
    with pytest.raises(OperatorError, match=r"give X.to_memory\(\)"):
        adapted(made())


def test_operator_of_its_own_is_left_alone():
    made = type("Mine", (), {"shape": (3, 2)})()
    assert adapted(made) is made


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, scipy.sparse.csr_array])
def test_what_can_be_applied_is_left_as_it_is(make):
    made = make(entries("float32"))
    assert adapted(made) is made


LOW = entries()[:, :4] @ entries(seed=5)[:4]
WHOLE = ["numpy", "pandas", "polars", "torch", "zarr", "h5py", "xarray", "dask"]


@pytest.mark.parametrize("kind", WHOLE)
def test_object_is_decomposed(tmp_path, kind):
    operator = OBJECTS[kind](tmp_path, LOW)
    found = ooc.svd(operator, measurements=12, run_dir=tmp_path / "run")
    np.testing.assert_allclose(found.S[:4], np.linalg.svd(LOW)[1][:4], rtol=1e-9)


@pytest.mark.parametrize("kind", ["pandas", "torch", "zarr", "dask", "xarray of dask"])
def test_eigenpairs_of_an_object_are_found(tmp_path, kind):
    gram = LOW.T @ LOW
    found = ooc.eigh(OBJECTS[kind](tmp_path, gram), measurements=12, run_dir=tmp_path / "run")
    np.testing.assert_allclose(found.eigenvalues[:4], np.linalg.eigvalsh(gram)[::-1][:4], rtol=1e-8)


@pytest.mark.parametrize("kind", ["h5py", "zarr", "xarray", "dask"])
def test_components_of_an_object_are_found(tmp_path, kind):
    operator = OBJECTS[kind](tmp_path, LOW)
    pca = ooc.PCA(n_components=3, run_dir=tmp_path / "run").fit(operator)
    expected = np.linalg.svd(LOW - LOW.mean(axis=0))[1][:3]
    np.testing.assert_allclose(pca.singular_values_, expected, rtol=1e-9)


def test_components_of_packed_numbers_are_those_of_what_they_mean(tmp_path):
    a = entries("int16")
    dataset = in_hdf5(tmp_path, a)
    dataset.attrs["scale_factor"] = 0.5
    pca = ooc.PCA(n_components=3, run_dir=tmp_path / "run").fit(dataset)
    expected = np.linalg.svd(0.5 * (a - a.mean(axis=0)))[1][:3]
    np.testing.assert_allclose(pca.singular_values_, expected, rtol=1e-6)


def test_masked_entries_of_samples_are_refused(tmp_path):
    with pytest.raises(OperatorError, match="masked"):
        ooc.PCA(n_components=3, run_dir=tmp_path / "run").fit(MISSING["masked"](tmp_path))


def test_same_call_with_the_same_dask_array_goes_on(tmp_path):
    first = ooc.svd(OBJECTS["dask"](tmp_path, LOW), measurements=12, run_dir=tmp_path / "run")
    again = ooc.svd(OBJECTS["dask"](tmp_path, LOW), measurements=12, run_dir=tmp_path / "run")
    np.testing.assert_array_equal(first.S, again.S)


def test_same_call_with_another_dask_array_is_refused(tmp_path):
    ooc.svd(OBJECTS["dask"](tmp_path, LOW), measurements=12, run_dir=tmp_path / "run")
    with pytest.raises(ooc.DriftError):
        ooc.svd(OBJECTS["dask"](tmp_path, 2 * LOW), measurements=12, run_dir=tmp_path / "run")


def test_run_of_a_dask_array_holds_no_pickle(tmp_path):
    ooc.svd(OBJECTS["dask"](tmp_path, LOW), measurements=12, run_dir=tmp_path / "run")
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".h5", ".log", ".txt", ""}


def where_it_was_worked_on(chunk):
    """A chunk, and a note of the worker that had it."""
    distributed.get_worker().log_event("chunks", len(chunk))
    return chunk


def test_chunks_are_worked_on_by_the_workers_that_have_them(tmp_path):
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        array = dask.array.from_array(LOW, chunks=(16, 5)).map_blocks(
            where_it_was_worked_on, meta=LOW
        )
        found = ooc.svd(array, measurements=12, run_dir=tmp_path / "run")
        assert len(client.get_events("chunks")) > 0
    np.testing.assert_allclose(found.S[:4], np.linalg.svd(LOW)[1][:4], rtol=1e-9)


CUTS = {"of equal chunks": 10, "of chunks of all sizes": (7, 1, 20, 2, 0, 17, 13)}


class TestPartsOfChunks:
    """A part is made of whole chunks, which are worked on again only if they were under way."""

    @pytest.fixture(autouse=True)
    def terms_of_one_chunk(self, monkeypatch):
        monkeypatch.setattr("skerch_ooc.operators.dask_arrays.TERM_BYTES", 1)

    def run(self, array, folder, method="nystrom", parts=3, kind="svd"):
        spec = {
            "kind": kind, "measurements": 12, "operator": {"parts": parts},
            "recovery": {"method": method}, "sketch": {"noise": "rademacher"},
        }  # fmt: skip
        return ooc.run(spec, folder, operator=array)

    @pytest.mark.parametrize("cuts", CUTS)
    @pytest.mark.parametrize(
        "method", ["nystrom", *(pytest.param(one, marks=pytest.mark.thorough)
                                for one in ("oversampled", "hmt"))]
    )  # fmt: skip
    def test_parts_give_the_same_numbers_as_one(self, tmp_path, cuts, method):
        array = dask.array.from_array(LOW, chunks=(CUTS[cuts], 5))
        found = self.run(array, tmp_path / "run", method)
        one = self.run(array, tmp_path / "one", method, parts=1)
        parts = ooc.open_run(tmp_path / "run").plan.parts
        starts = [0, *np.cumsum([size for size in array.chunks[0] if size])]
        assert len(parts) > 1
        assert {part.rows.start for part in parts} <= set(starts)
        np.testing.assert_allclose(found.S[:4], np.linalg.svd(LOW)[1][:4], rtol=1e-9)
        if method != "oversampled":
            np.testing.assert_array_equal(found.S, one.S)

    @pytest.mark.thorough
    def test_eigenpairs_of_parts(self, tmp_path):
        gram = LOW.T @ LOW
        array = dask.array.from_array(gram, chunks=(5, 24))
        found = self.run(array, tmp_path / "run", kind="eigh")
        expected = np.linalg.eigvalsh(gram)[::-1][:4]
        np.testing.assert_allclose(found.eigenvalues[:4], expected, rtol=1e-8)

    @pytest.mark.parametrize("together", [2, pytest.param(1, marks=pytest.mark.thorough)])
    def test_bits_do_not_depend_on_how_many_go_together(self, tmp_path, monkeypatch, together):
        array = dask.array.from_array(LOW, chunks=(5, 24))
        one = self.run(array, tmp_path / "one")
        monkeypatch.setattr("skerch_ooc.operators.dask_arrays._TOGETHER", together)
        np.testing.assert_array_equal(self.run(array, tmp_path / "run").S, one.S)

    def test_parts_that_were_measured_are_not_computed_again(self, tmp_path):
        computed, broken = [], [True]

        def noted(chunk, block_info=None):
            if block_info:
                start = block_info[0]["array-location"][0][0]
                if start == 50 and broken and len(computed) > 8:
                    raise KeyboardInterrupt
                computed.append(start)
            return chunk

        array = dask.array.from_array(LOW, chunks=(10, 24)).map_blocks(noted, meta=LOW)
        with dask.config.set(scheduler="synchronous"):
            with pytest.raises(KeyboardInterrupt):
                self.run(array, tmp_path / "run", parts=6)
            broken.clear()
            before = ooc.open_run(tmp_path / "run")
            done = len(list(before.shards.glob("*.h5")))
            computed.clear()
            self.run(array, tmp_path / "run", parts=6)
        assert done > 1
        # Those of the part that was under way, and one of each part for its fingerprint.
        assert len(computed) < 2 * 6
        assert computed.count(50) >= 1


@pytest.mark.covered(1)
@pytest.mark.parametrize("noise", ["sparse-sign", "phase", "ssrft"])
@pytest.mark.parametrize("method", ["nystrom", "hmt", "oversampled"])
def test_dask_array_is_decomposed_by_all_methods(tmp_path, noise, method):
    a = np.kron(LOW, np.ones((3, 4)))
    a = a + 1j * a if noise == "phase" else a
    found = ooc.svd(
        dask.array.from_array(a, chunks=((7, 100, 73), 25)), measurements=64, rank=4, noise=noise,
        method=method, run_dir=tmp_path / "run",
    )  # fmt: skip
    np.testing.assert_allclose(found.S, np.linalg.svd(a)[1][:4], rtol=1e-8)
