"""Matrices as people have them: each format, dtype and option gives the numbers that are meant."""

from __future__ import annotations

import contextlib
import zipfile

import h5py
import hdf5plugin
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import zarr

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.operators.matrix import stored

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 75, 24


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """Slabs of a few rows, so that several are read."""
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 16 * WIDTH * 4)


def entries(dtype="float64", *, sparse=False, seed=3, mean=2.0):
    """A matrix with columns of various means and spreads."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((HEIGHT, WIDTH)) * np.linspace(1, 9, WIDTH) + mean
    if np.dtype(dtype).kind == "c":
        values = values + 1j * generator.standard_normal((HEIGHT, WIDTH))
    if sparse:
        values *= generator.random((HEIGHT, WIDTH)) < 0.2
    if np.dtype(dtype).kind in "ub":
        values = np.abs(values)
    return values.astype(dtype)


def npy(folder, a):
    np.save(folder / "a.npy", a)
    return {"path": "a.npy"}


def npy_by_columns(folder, a):
    return npy(folder, np.asfortranarray(a))


def npy_of_other_bytes(folder, a):
    return npy(folder, a.astype(a.dtype.newbyteorder(">")))


def hdf5(folder, a, **options):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("group/matrix", data=a, **options)
    return {"path": "a.h5"}


def hdf5_in_chunks(folder, a):
    return hdf5(folder, a, chunks=(16, 5), compression="gzip", shuffle=True)


def hdf5_in_columns(folder, a):
    return hdf5(folder, a, chunks=(HEIGHT, 1))


def hdf5_by_plugin(folder, a):
    return hdf5(folder, a, chunks=(16, 5), compression=hdf5plugin.Zstd())


def netcdf(folder, a):
    """Dimensions have names, and rows are the last."""
    with h5py.File(folder / "a.nc", "w") as file:
        for name, size in (("lat", 4), ("lon", 6), ("time", len(a))):
            file[name] = np.arange(size, dtype=np.float64)
            file[name].make_scale(name)
        file["field"] = np.moveaxis(a.reshape(len(a), 4, 6), 0, -1)
        for axis, name in enumerate(("lat", "lon", "time")):
            file["field"].dims[axis].attach_scale(file[name])
    return {"path": "a.nc", "dataset": "field", "rows": ["time"]}


def matlab(folder, a):
    """Dimensions are reversed; complex numbers are pairs."""
    stored = a.T
    if a.dtype.kind == "c":
        part = a.real.dtype
        stored = np.empty(a.T.shape, [("real", part), ("imag", part)])
        stored["real"], stored["imag"] = a.T.real, a.T.imag
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        file["M"] = stored
        file["M"].attrs["MATLAB_class"] = np.bytes_("double")
        file["name"] = np.arange(6, dtype=np.uint16).reshape(2, 3)
        file["name"].attrs["MATLAB_class"] = np.bytes_("char")
    return {"path": "a.mat"}


def annotated(folder, a):
    with h5py.File(folder / "a.h5ad", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file["X"] = a
        file["obsm/X_pca"] = np.zeros((len(a), 3))
    return {"path": "a.h5ad"}


def in_zarr(version, **options):
    def write(folder, a):
        array = {"chunks": (16, 5), "zarr_format": version} | options
        zarr.create_array(folder / "a.zarr", data=a, **array)
        return {"path": "a.zarr"}

    return write


def zarr_in_zip(folder, a):
    with zarr.storage.ZipStore(folder / "a.zip", mode="w") as store:
        zarr.create_array(store, name="group/a", data=a, chunks=(16, 24))
    return {"path": "a.zip"}


def zarr_of_dimensions(folder, a):
    """Dimensions have names, and rows are the last."""
    field = np.moveaxis(a.reshape(len(a), 4, 6), 0, -1)
    group = zarr.create_group(folder / "a.zarr")
    names = ("lat", "lon", "time")
    group.create_array("t", data=field, chunks=(3, 2, 7), dimension_names=names)
    return {"path": "a.zarr", "rows": ["time"]}


def annotated_in_zarr(folder, a):
    group = zarr.create_group(folder / "a.zarr", attributes={"encoding-type": "anndata"})
    group.create_array("X", data=a, chunks=(16, 5))
    group.create_array("obsm/X_pca", data=np.zeros((len(a), 3)))
    return {"path": "a.zarr"}


def folder_of_zarr(folder, a):
    (folder / "rows").mkdir()
    for number, part in enumerate(np.split(a, [20, 21, 60])):
        zarr.create_array(folder / f"rows/{number}.zarr", data=part)
    return {"path": "rows"}


def folder_of_files(folder, a):
    (folder / "rows").mkdir()
    for number, part in enumerate(np.split(a, [20, 21, 60])):
        np.save(folder / f"rows/{number}.npy", part)
    return {"path": "rows"}


def write_sparse_zarr(group, matrix, encoding):
    group.attrs.update({"encoding-type": encoding, "shape": list(matrix.shape)})
    for name in ("data", "indices", "indptr"):
        group.create_array(name, data=getattr(matrix, name), chunks=(50,))


def annotated_csr_in_zarr(folder, a):
    group = zarr.create_group(folder / "a.zarr", zarr_format=2)
    group.attrs["encoding-type"] = "anndata"
    write_sparse_zarr(group.create_group("X"), scipy.sparse.csr_array(a), "csr_matrix")
    group.create_array("obsm/X_pca", data=np.zeros((len(a), 3)))
    return {"path": "a.zarr"}


def annotated_csc_layer_in_zarr(folder, a):
    group = zarr.create_group(folder / "a.zarr")
    group.create_array("X", data=np.zeros((HEIGHT, WIDTH)))
    layer = group.create_group("layers/counts")
    write_sparse_zarr(layer, scipy.sparse.csc_array(a), "csc_matrix")
    return {"path": "a.zarr", "dataset": "layers/counts"}


def write_sparse(group, matrix, encoding):
    group.attrs.update({"encoding-type": encoding, "shape": matrix.shape})
    for name in ("data", "indices", "indptr"):
        group[name] = getattr(matrix, name)


def annotated_csr(folder, a):
    with h5py.File(folder / "a.h5ad", "w") as file:
        write_sparse(file.create_group("X"), scipy.sparse.csr_array(a), "csr_matrix")
        file["obsm/X_pca"] = np.zeros((len(a), 3))
    return {"path": "a.h5ad"}


def annotated_csc_layer(folder, a):
    with h5py.File(folder / "a.h5ad", "w") as file:
        file["X"] = np.zeros((HEIGHT, WIDTH))
        write_sparse(file.create_group("layers/counts"), scipy.sparse.csc_array(a), "csc_matrix")
    return {"path": "a.h5ad", "dataset": "layers/counts"}


def ten_x(folder, a):
    """Genes x cells by columns; the cells are meant as rows."""
    genes = scipy.sparse.csc_array(a.T)
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(genes, name)
        group["shape"] = np.array(genes.shape, np.int32)
        group["features/name"] = np.full(WIDTH, b"gene")
    return {"path": "a.h5"}


def matlab_sparse(folder, a):
    matrix = scipy.sparse.csc_array(a)
    with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
        group = file.create_group("S")
        group.attrs["MATLAB_sparse"] = np.uint64(len(a))
        group["data"], group["ir"], group["jc"] = matrix.data, matrix.indices, matrix.indptr
    return {"path": "a.mat"}


def saved_by_scipy(order, **options):
    def write(folder, a):
        matrix = scipy.sparse.csr_array(a).asformat(order)
        scipy.sparse.save_npz(folder / "a.npz", matrix, **options)
        return {"path": "a.npz"}

    return write


def matrix_market(folder, a):
    # In text, where single precision would be another number.
    wide = a.astype(np.result_type(a, np.float64))
    scipy.io.mmwrite(folder / "a.mtx", scipy.sparse.coo_array(wide))
    return {"path": "a.mtx"}


def folder_of_sparse(folder, a):
    (folder / "rows").mkdir()
    for number, part in enumerate(np.split(a, [20, 21, 60])):
        scipy.sparse.save_npz(folder / f"rows/{number}.npz", scipy.sparse.csr_array(part))
    return {"path": "rows"}


DENSE = {
    "npy": npy,
    "npy by columns": npy_by_columns,
    "npy of other bytes": npy_of_other_bytes,
    "HDF5": hdf5,
    "HDF5 in chunks": hdf5_in_chunks,
    "HDF5 in columns": hdf5_in_columns,
    "HDF5 by a plugin": hdf5_by_plugin,
    "netCDF": netcdf,
    "MATLAB": matlab,
    "AnnData": annotated,
    "Zarr": in_zarr(3),
    "Zarr in columns": in_zarr(3, chunks=(HEIGHT, 1)),
    "Zarr in shards": in_zarr(3, shards=(32, 10)),
    "Zarr 2": in_zarr(2),
    "Zarr 2 by columns": in_zarr(2, order="F"),
    "Zarr in a zip file": zarr_in_zip,
    "Zarr of dimensions": zarr_of_dimensions,
    "AnnData in Zarr": annotated_in_zarr,
    "folder": folder_of_files,
    "folder of Zarr": folder_of_zarr,
}
SPARSE = {
    "AnnData, CSR": annotated_csr,
    "AnnData, a layer in CSC": annotated_csc_layer,
    "AnnData in Zarr, CSR": annotated_csr_in_zarr,
    "AnnData in Zarr, a layer in CSC": annotated_csc_layer_in_zarr,
    "10x": ten_x,
    "MATLAB, sparse": matlab_sparse,
    "npz, CSR": saved_by_scipy("csr"),
    "npz, CSR as it is": saved_by_scipy("csr", compressed=False),
    "npz, CSC": saved_by_scipy("csc"),
    "npz, COO": saved_by_scipy("coo"),
    "npz, BSR": saved_by_scipy("bsr"),
    "npz, DIA": saved_by_scipy("dia"),
    "Matrix Market": matrix_market,
    "folder of npz": folder_of_sparse,
}
DTYPES = (
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "int8",
    "uint16",
    "int64",
    "bool",
)
OF_SCIPY = ("float32", "float64", "complex64", "complex128", "int32")
"""What SciPy's sparse matrices hold."""

OPTIONS = {
    "as it is": {},
    "transposed": {"transpose": True},
    "columns centred": {"subtract": "column-mean"},
    "rows centred": {"subtract": "row-mean"},
    "both centred": {"subtract": "both"},
    "standardised": {"subtract": "column-mean", "scale": "column-std"},
    "scaled": {"scale": "column-std"},
    "weighted": {"row_weights": "rows.npy", "column_weights": "columns.npy"},
    "all": {
        "subtract": "both", "scale": "column-std",
        "row_weights": "rows.npy", "column_weights": "columns.npy",
    },
    "columns centred and weighted": {
        "subtract": "column-mean", "row_weights": "rows.npy", "column_weights": "columns.npy",
    },
}  # fmt: skip
TRANSPOSED = {f"{name}, transposed": options | {"transpose": True}
              for name, options in OPTIONS.items() if "transpose" not in options}  # fmt: skip
ALL_OPTIONS = OPTIONS | TRANSPOSED


def weights(size):
    return np.linspace(0.5, 2.0, size)


def meant(a, options):
    """What is meant, by numpy; NaN is what is missing."""
    wide = np.result_type(a, np.float64)
    a = (a.T if options.get("transpose") else a).astype(wide)
    gone = np.isnan(a).all(axis=0)
    a = a[:, ~gone]
    if options.get("missing") == "column-mean":
        a = np.where(np.isnan(a), np.nanmean(a, axis=0), a)
    if options.get("subtract") in ("row-mean", "both"):
        a = a - a.mean(axis=1, keepdims=True)
    if options.get("subtract") in ("column-mean", "both"):
        a = a - a.mean(axis=0)
    if "scale" in options:
        deviations = a.std(axis=0)
        a = a / np.where(deviations < 1e-12, 1, deviations)
    whole = np.zeros((len(a), len(gone)), wide)
    whole[:, ~gone] = a
    rows, columns = (np.sqrt(weights(size)) for size in whole.shape)
    if "row_weights" in options:
        whole = whole * rows[:, None]
    if "column_weights" in options:
        whole = whole * columns
    return whole


def opened(folder, arguments, options):
    shape = (WIDTH, HEIGHT) if options.get("transpose") else (HEIGHT, WIDTH)
    np.save(folder / "rows.npy", weights(shape[0]))
    np.save(folder / "columns.npy", weights(shape[1]))
    return stored(folder=str(folder), **arguments, **options)


def assert_same(found, expected, dtype):
    limit = 1e-5 if dtype in ("float32", "complex64") else 1e-10
    error = np.abs(found - expected).max() / max(1e-300, np.abs(expected).max())
    assert found.shape == expected.shape
    assert error < limit


def applied(matrix, dtype=None):
    """The matrix, by its product with the identity."""
    dtype = dtype or matrix.dtype
    return product_of(matrix, dtype, "cpu")(np.eye(matrix.shape[1], dtype=dtype))


def require_meant(matrix, expected, dtype=None):
    """Compares what is applied, and its adjoint, with what is meant."""
    dtype = dtype or matrix.dtype
    assert matrix.shape == expected.shape
    product = product_of(matrix, dtype, "cpu")
    height, width = matrix.shape
    assert_same(product(np.eye(width, dtype=dtype)), expected, dtype)
    # Now that means are known.
    assert_same(product(np.eye(width, dtype=dtype)), expected, dtype)
    adjoint = product(np.eye(height, dtype=dtype), adjoint=True)
    assert_same(adjoint, expected.conj().T, dtype)


@pytest.mark.covered(1)
@pytest.mark.parametrize("option", ALL_OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DENSE)
def test_dense_matrix_is_what_is_meant(tmp_path, kind, dtype, option):
    a = entries(dtype)
    arguments = DENSE[kind](tmp_path, a)
    require_meant(opened(tmp_path, arguments, ALL_OPTIONS[option]), meant(a, ALL_OPTIONS[option]))


@pytest.mark.covered(1)
@pytest.mark.parametrize("option", ALL_OPTIONS)
@pytest.mark.parametrize("dtype", OF_SCIPY)
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_matrix_is_what_is_meant(tmp_path, kind, dtype, option):
    a = entries(dtype, sparse=True)
    arguments = SPARSE[kind](tmp_path, a)
    require_meant(opened(tmp_path, arguments, ALL_OPTIONS[option]), meant(a, ALL_OPTIONS[option]))


MISSING = {
    "filled": {"missing": "column-mean"},
    "filled and centred": {"missing": "column-mean", "subtract": "column-mean"},
    "filled and standardised": {
        "missing": "column-mean", "subtract": "column-mean", "scale": "column-std",
    },
    "filled and weighted": {
        "missing": "column-mean", "row_weights": "rows.npy", "column_weights": "columns.npy",
    },
    "filled and centred, transposed": {
        "missing": "column-mean", "subtract": "column-mean", "transpose": True,
    },
    "filled and standardised, transposed": {
        "missing": "column-mean", "subtract": "column-mean", "scale": "column-std",
        "transpose": True,
    },
}  # fmt: skip


@pytest.mark.covered(1)
@pytest.mark.parametrize("option", MISSING)
@pytest.mark.parametrize("kind", ["npy", "HDF5 in chunks", "netCDF", "folder"])
def test_missing_entries_become_the_mean_of_their_column(tmp_path, kind, option):
    a = entries()
    a[np.random.default_rng(1).random(a.shape) < 0.1] = np.nan
    arguments = DENSE[kind](tmp_path, a)
    require_meant(opened(tmp_path, arguments, MISSING[option]), meant(a, MISSING[option]))


@pytest.mark.parametrize("option", MISSING)
@pytest.mark.parametrize("kind", ["npz, CSR", "npz, CSC", "10x"])
def test_missing_entries_of_sparse_matrices_do_too(tmp_path, kind, option):
    a = entries(sparse=True)
    a[(a != 0) & (np.random.default_rng(1).random(a.shape) < 0.2)] = np.nan
    arguments = SPARSE[kind](tmp_path, a)
    require_meant(opened(tmp_path, arguments, MISSING[option]), meant(a, MISSING[option]))


EMPTY = {
    "left out": {"empty_columns": "leave-out"},
    "and centred": {"empty_columns": "leave-out", "subtract": "column-mean"},
    "and both centred": {"empty_columns": "leave-out", "subtract": "both"},
    "and standardised": {
        "empty_columns": "leave-out", "subtract": "column-mean", "scale": "column-std",
    },
    "and weighted": {
        "empty_columns": "leave-out", "subtract": "column-mean", "row_weights": "rows.npy",
        "column_weights": "columns.npy",
    },
}  # fmt: skip
EMPTY |= {f"{name}, transposed": options | {"transpose": True} for name, options in EMPTY.items()}
EMPTY |= {
    f"{name}, others filled": options | {"missing": "column-mean"}
    for name, options in EMPTY.items()
    if options.get("subtract") != "both"
}


@pytest.mark.parametrize("option", EMPTY)
def test_columns_without_entries_are_left_out(tmp_path, option):
    options, a = EMPTY[option], entries()
    if options.get("missing"):
        a[np.random.default_rng(1).random(a.shape) < 0.1] = np.nan
    turned = a.T if options.get("transpose") else a
    turned[:, ::7] = np.nan
    require_meant(opened(tmp_path, npy(tmp_path, a), options), meant(a, options))


def packed(folder, stored_numbers, **attributes):
    with h5py.File(folder / "a.nc", "w") as file:
        file["t"] = stored_numbers
        file["t"].attrs.update(attributes)
    return {"path": "a.nc"}


CODES = {
    "_FillValue": {"_FillValue": np.int16(-32000)},
    "missing_value": {"missing_value": np.array([-32000, 5], np.int16)},
    "valid_range": {"valid_range": np.array([-31999, 32000], np.int16)},
    "valid_min": {"valid_min": np.int16(-31999)},
    "as text": {"missing_value": "-32000"},
}


class TestConventions:
    """What attributes of netCDF say of numbers."""

    @pytest.mark.parametrize("factor", [np.float64, np.float32])
    def test_numbers_are_scaled(self, tmp_path, factor):
        whole = np.round(100 * entries()).astype(np.int16)
        attributes = {"scale_factor": factor(0.002), "add_offset": factor(285.0)}
        matrix = opened(tmp_path, packed(tmp_path, whole, **attributes), {})
        assert matrix.dtype == np.dtype(factor).name
        exact = whole * np.float64(attributes["scale_factor"]) + 285.0
        require_meant(matrix, exact)

    def test_centring_precedes_rounding(self, tmp_path):
        whole = np.round(100 * entries()).astype(np.int16)
        attributes = {"scale_factor": np.float32(0.002), "add_offset": np.float32(1e6)}
        options = {"subtract": "column-mean"}
        matrix = opened(tmp_path, packed(tmp_path, whole, **attributes), options)
        exact = whole * np.float64(attributes["scale_factor"])
        # What is scaled in single precision has few digits left, as the file says.
        found = product_of(matrix, "float64", "cpu")(np.eye(WIDTH))
        np.testing.assert_allclose(found, exact - exact.mean(axis=0), atol=0.1)

    @pytest.mark.parametrize("code", CODES)
    def test_what_counts_as_missing_is_no_number(self, tmp_path, code):
        whole = np.round(100 * entries()).astype(np.int16)
        whole[whole == 5] = 6
        expected = whole.astype(np.float64) * 0.5
        whole[3, 4], expected[3, 4] = -32000, np.nan
        arguments = packed(tmp_path, whole, scale_factor=0.5, **CODES[code])
        with pytest.raises(OperatorError, match=r"row 3 .* holds -32000, which .* column 4"):
            applied(opened(tmp_path, arguments, {}))
        options = {"missing": "column-mean"}
        require_meant(opened(tmp_path, arguments, options), meant(expected, options))

    @pytest.mark.parametrize("dtype", ["int8", "int32", "float32", "float64"])
    def test_codes_can_be_given(self, tmp_path, dtype):
        a = entries(dtype)
        a[a < -15] = 0
        expected = a.astype(np.float64)
        for place, code in (((3, 4), -127), ((50, 0), -99)):
            a[place], expected[place] = code, np.nan
        options = {"missing": "column-mean"}
        codes = {"missing_codes": [-127, -99]}
        matrix = opened(tmp_path, npy(tmp_path, a), options | codes)
        require_meant(matrix, meant(expected, options))

    def test_what_nobody_wrote_is_missing(self, tmp_path):
        a = entries("float32")
        a[3, 4] = 9.969209968386869e36
        with pytest.raises(OperatorError, match="netCDF's fill value"):
            applied(opened(tmp_path, packed(tmp_path, a), {}))

    def test_unsigned_numbers_are_those(self, tmp_path):
        a = np.abs(entries("int16")).astype(np.uint8) + 120
        arguments = packed(tmp_path, a.view(np.int8), _Unsigned="true")
        require_meant(opened(tmp_path, arguments, {}), a.astype(np.float64), "float64")

    def test_weights_of_latitudes_are_their_cosines(self, tmp_path):
        a = entries()
        latitudes = np.linspace(-90, 90, 4)
        for place in ("lat", "grid/latitude"):
            path = tmp_path / f"{place.replace('/', '-')}.nc"
            name = "grid/z" if "/" in place else "z"
            with h5py.File(path, "w") as file:
                file[name] = a.reshape(HEIGHT, 4, 6)
                file[place] = latitudes
            matrix = stored(
                path.name,
                name,
                folder=str(tmp_path),
                rows=[0],
                column_weights="cos-latitude",
            )
            cosines = np.sqrt(np.abs(np.cos(np.deg2rad(latitudes))))
            require_meant(matrix, (a.reshape(HEIGHT, 4, 6) * cosines[:, None]).reshape(HEIGHT, -1))

    def test_bounds_of_axes_are_not_what_is_meant(self, tmp_path):
        a = entries()
        with h5py.File(tmp_path / "a.nc", "w") as file:
            file["time"] = np.arange(float(HEIGHT))
            file["time"].attrs["bounds"] = "time_bnds"
            file["time_bnds"] = np.zeros((HEIGHT, 2))
            file["lat"], file["lon"] = np.zeros((4, 6)), np.ones((4, 6))
            file["z"] = a.reshape(HEIGHT, 4, 6)
            file["z"].attrs["coordinates"] = "lat lon"
        require_meant(stored("a.nc", folder=str(tmp_path), rows=[0]), a)

    def test_cube_beside_a_matrix_is_not_passed_over(self, tmp_path):
        with h5py.File(tmp_path / "a.nc", "w") as file:
            file["map"], file["z"] = np.zeros((4, 6)), np.zeros((5, 4, 6))
        with pytest.raises(OperatorError, match=r"holds 2 matrices \(map, z\)"):
            stored("a.nc", folder=str(tmp_path))

    @pytest.mark.parametrize("rows", [["a", "b"], ["b", "a"], ["c"], [1], ["c", 0]])
    def test_any_dimensions_can_be_rows(self, tmp_path, rows):
        cube = np.random.default_rng(0).standard_normal((5, 30, 12))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("z", data=cube, chunks=(2, 7, 5))
            for axis, name in enumerate("abc"):
                file["z"].dims[axis].label = name
        chosen = ["abc".index(one) if isinstance(one, str) else one for one in rows]
        others = [axis for axis in range(3) if axis not in chosen]
        height = np.prod([cube.shape[axis] for axis in chosen])
        expected = cube.transpose(*chosen, *others).reshape(height, -1)
        require_meant(stored("a.h5", folder=str(tmp_path), rows=rows), expected)


class TestPrecision:
    @pytest.mark.parametrize("mean", [1e4, 1e6, 1e8])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_large_means_are_taken_off_in_the_precision_of_the_file(self, tmp_path, mean, dtype):
        a = entries() + mean
        matrix = opened(tmp_path, npy(tmp_path, a), {"subtract": "column-mean"})
        assert matrix.dtype == "float64"
        exact = a - mean
        exact -= exact.mean(axis=0)
        product = product_of(matrix, dtype, "cpu")
        for _ in range(2):
            found = product(np.eye(WIDTH, dtype=dtype))
            np.testing.assert_allclose(found, exact, atol=3e-6, rtol=0)

    def test_rows_unlike_the_first_lose_no_digits(self, tmp_path):
        a = entries()
        a[64:] += 1e7
        a = np.concatenate([a, *[entries(seed=seed) + 1e7 for seed in range(9)]])
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("m", data=a, chunks=(len(a), 1))
        matrix = stored("a.h5", folder=str(tmp_path), subtract="column-mean")
        exact = a - a.mean(axis=0)
        assert_same(applied(matrix, "float32"), exact, "float32")

    def test_complex_file_is_refused_for_a_real_dtype(self, tmp_path):
        matrix = opened(tmp_path, npy(tmp_path, entries("complex64")), {})
        with pytest.raises(OperatorError, match='give dtype = "complex64", or leave it out'):
            product_of(matrix, "float32", "cpu")


class TestParts:
    """Rows that are measured in several parts."""

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("option", ["all", "all, transposed", "columns centred and weighted"])
    @pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
    def test_parts_make_up_the_whole(self, tmp_path, monkeypatch, is_sparse, option):
        monkeypatch.setattr("skerch_ooc.operators.matrix.TERM_BYTES", 1)
        options = ALL_OPTIONS[option]
        a = np.concatenate([entries(sparse=is_sparse, seed=seed) for seed in range(120)])
        write = SPARSE["npz, CSR"] if is_sparse else npy
        arguments = write(tmp_path, a)
        turned = options.get("transpose", False)
        shape = a.T.shape if turned else a.shape
        np.save(tmp_path / "rows.npy", weights(shape[0]))
        np.save(tmp_path / "columns.npy", weights(shape[1]))
        matrix = stored(folder=str(tmp_path), **arguments, **options)
        product, expected = product_of(matrix, "float64", "cpu"), meant(a, options)
        assert product.terms == 3
        x = np.random.default_rng(1).standard_normal((shape[1], 4))
        y = np.random.default_rng(2).standard_normal((shape[0], 4))
        parts = [product.part(Range(0, 2)), product.part(Range(2, 3))]
        if turned:
            forward = sum(part(x, wide=True) for part in parts)
            adjoint = sum(part(y, adjoint=True, wide=True) for part in parts)
        else:
            forward = np.concatenate([part(x) for part in parts])
            split = np.split(y, [2 * 4096])
            adjoint = sum(p(s, adjoint=True) for p, s in zip(parts, split, strict=True))
        assert_same(forward, expected @ x, "float64")
        assert_same(adjoint, expected.T @ y, "float64")


def broken(change):
    """A sparse .npz whose arrays are changed."""

    def write(folder):
        a = scipy.sparse.csr_array(entries(sparse=True))
        arrays = {
            "data": a.data, "indices": a.indices, "indptr": a.indptr,
            "shape": np.array(a.shape), "format": np.array(b"csr"),
        }  # fmt: skip
        change(arrays)
        np.savez_compressed(folder / "a.npz", **arrays)
        return {"path": "a.npz"}

    return write


def set_entry(name, place, value):
    def change(arrays):
        arrays[name][place] = value

    return change


def replaced(name, value):
    def change(arrays):
        arrays[name] = value if isinstance(value, np.ndarray) else value(arrays[name])

    return change


def torn(write, share=0.5):
    def cut(folder):
        arguments = write(folder, entries())
        path = folder / arguments["path"]
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return arguments

    return cut


def two_matrices(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file["one"] = file["group/two"] = entries()
        file["names"] = np.full((3, 2), b"x")
        file["lat"] = np.arange(3.0)
    return {"path": "a.h5"}


def begins(name, content):
    def write(folder):
        (folder / name).write_bytes(content)
        return {"path": name}

    return write


def bomb(folder):
    """An archive that says it has more rows than memory holds, in a few bytes."""
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, count in (("data", 5), ("indices", 5), ("indptr", 10**15), ("shape", 2)):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(bytes(min(8 * count, 10**6)))
    return {"path": "a.npz"}


def pickled(folder):
    np.save(folder / "a.npy", np.array([[{}]]), allow_pickle=True)
    return {"path": "a.npy"}


def huge_chunk(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("m", (40000, 40000), "f8", chunks=(20000, 20000), compression="gzip")
    return {"path": "a.h5"}


def odd_filter(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((64, 64))
        access = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        access.set_chunk((8, 8))
        access.set_filter(54321, h5py.h5z.FLAG_OPTIONAL, (1,))
        h5py.h5d.create(file.id, b"m", h5py.h5t.NATIVE_DOUBLE, space, access)
    return {"path": "a.h5"}


def write_attribute(**attributes):
    return lambda folder: packed(folder, entries("int16"), **attributes)


def broken_group(change):
    """An .h5ad whose sparse group is changed."""

    def write(folder):
        arguments = annotated_csr(folder, entries(sparse=True))
        with h5py.File(folder / "a.h5ad", "r+") as file:
            change(file["X"])
        return arguments

    return write


def far_index(group):
    group["indices"][7] = 10**6


def other_shape(group):
    group.attrs["shape"] = (HEIGHT + 1, WIDTH)


def no_shape(group):
    del group.attrs["shape"]


def linked(group):
    del group["data"]
    group.create_dataset("data", (9,), "f8", external=[("gone.bin", 0, 72)])


REFUSED = {
    "an index in a group": (broken_group(far_index), "column 1000000"),
    "another shape of a group": (broken_group(other_shape), "each of 76 rows"),
    "no shape of a group": (broken_group(no_shape), "has shape None"),
    "values of a group elsewhere": (broken_group(linked), "lie in other files"),
    "an index beyond the columns": (broken(set_entry("indices", 5, 10**6)), "column 1000000"),
    "a negative index": (broken(set_entry("indices", 5, -1)), "column -1"),
    "starts that go back": (broken(set_entry("indptr", 5, 10**6)), "do not lie one behind"),
    "starts that do not begin": (broken(set_entry("indptr", 0, 3)), "do not lie one behind"),
    "too few starts": (broken(replaced("indptr", lambda one: one[:-1])), "each of 75 rows"),
    "starts that are no numbers": (
        broken(replaced("indptr", lambda one: one.astype(float))), "each of 75 rows",
    ),
    "fewer values than indices": (broken(replaced("data", lambda one: one[:-1])), "values"),
    "indices of another kind": (
        broken(replaced("indices", lambda one: one.astype(float))), "at float64",
    ),
    "another shape": (broken(replaced("shape", np.array([75, 3]))), "there are 3"),
    "no shape": (broken(lambda arrays: arrays.pop("shape")), "it has no 'shape'"),
    "a negative shape": (broken(replaced("shape", np.array([-1, 3]))), "has shape"),
    "another format": (broken(replaced("format", np.array(b"lil"))), "its format is 'lil'"),
    "objects in an archive": (
        broken(replaced("data", np.array([{}], object))), "no plain numbers",
    ),
    "a compressed bomb": (bomb, "the file is too small"),
    "objects": (pickled, "holds Python objects"),
    "a torn npy": (torn(npy), "is torn"),
    "a torn npz": (torn(SPARSE["npz, CSR"]), "as a sparse .npz file"),
    "torn HDF5": (torn(hdf5), "cannot open"),
    "an empty npy": (begins("a.npy", b""), "as a .npy file"),
    "several matrices": (two_matrices, r"holds 2 matrices \((group/two, one|one, group/two)\)"),
    "a chunk beyond the memory": (huge_chunk, "give more --memory"),
    "an unknown filter": (odd_filter, "filter 54321"),
    "netCDF 3": (begins("a.nc", b"CDF\x01"), "nccopy"),
    "MATLAB 5": (begins("a.mat", b"MATLAB 5.0 MAT-file"), "-v7.3"),
    "Parquet": (begins("a.parquet", b"PAR1"), "it is Parquet"),
    "no Matrix Market": (begins("a.mtx", b"hello"), "as a Matrix Market file"),
    "Matrix Market of another size": (
        begins("a.mtx", b"%%MatrixMarket matrix coordinate real general\n3 3 99999999999\n1 1 1\n"),
        "give more --memory",
    ),
    "a scale that is no number": (write_attribute(scale_factor="two"), "must be a number"),
    "several scales": (write_attribute(scale_factor=[1.0, 2.0]), "must be one number"),
    "a scale that is NaN": (write_attribute(scale_factor=np.nan), "must be one number"),
}  # fmt: skip


@pytest.mark.sampled(60)
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["npz, CSR", "npz, CSC", "npz, DIA", "npy", "Matrix Market"])
def test_altered_file_is_read_or_refused(tmp_path, kind, seed):
    arguments = (DENSE | SPARSE)[kind](tmp_path, entries(sparse=kind != "npy"))
    path = tmp_path / arguments["path"]
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    for place in generator.integers(min(len(content), 3000), size=3):
        content[place] = generator.integers(256)
    path.write_bytes(content)
    with contextlib.suppress(OperatorError):
        # Sizes may have been altered, too.
        matrix = stored(folder=str(tmp_path), memory=1 << 28, **arguments)
        product_of(matrix, "complex128", "cpu")(np.ones((matrix.shape[1], 1), "complex128"))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_broken_is_refused(tmp_path, what):
    write, text = REFUSED[what]
    arguments = write(tmp_path)
    with pytest.raises(OperatorError, match=text) as raised:
        applied(opened(tmp_path, arguments, {}), "float64")
    assert "pickle" not in str(raised.value)


WRONG = {
    "an unknown option": ({"centre": True}, "the option 'centre' is unknown"),
    "another centring": ({"subtract": "median"}, 'must be one of "column-mean", "row-mean"'),
    "another scale": ({"scale": "row-std"}, 'must be one of "column-std", or left out'),
    "no boolean": ({"transpose": "yes"}, "must be one of false, true"),
    "codes that are no numbers": ({"missing_codes": ["x"]}, "must be a list of numbers"),
    "rows that are none": ({"rows": [2]}, "has no dimension 2"),
    "all dimensions": ({"rows": [0, 1]}, "leaves no columns"),
    "an unknown dimension": ({"rows": ["time"]}, "has no dimension 'time'"),
    "no such weights": ({"row_weights": "area"}, "has no such dataset beside it"),
    "no such file": ({"row_weights": "area.npy"}, "No such file"),
    "weights of another length": ({"row_weights": "columns.npy"}, "give 75 weights"),
    "no latitudes": ({"column_weights": "cos-latitude"}, "has no latitudes"),
    "means that depend on each other": (
        {"missing": "column-mean", "subtract": "both"}, "fill the matrix first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_option_that_cannot_be_is_refused(tmp_path, what):
    options, text = WRONG[what]
    with pytest.raises(OperatorError, match=text):
        opened(tmp_path, hdf5(tmp_path, entries()), options)


def test_column_that_lacks_some_entries_is_not_left_out(tmp_path):
    a = entries()
    a[:, 3] = a[40, 5] = np.nan
    matrix = opened(tmp_path, npy(tmp_path, a), {"empty_columns": "leave-out"})
    with pytest.raises(OperatorError, match="row 40 of the matrix holds nan in column 5"):
        product_of(matrix, "float64", "cpu")(np.eye(WIDTH))


@pytest.mark.parametrize("options", [{}, {"subtract": "column-mean"}])
def test_empty_column_is_not_filled(tmp_path, options):
    a = entries()
    a[:, 3] = np.nan
    matrix = opened(tmp_path, npy(tmp_path, a), options | {"missing": "column-mean"})
    with pytest.raises(OperatorError, match=r'in column 3 .* give empty_columns = "leave-out"'):
        product_of(matrix, "float64", "cpu")(np.eye(WIDTH))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [{}, {"subtract": "column-mean"}], ids=["as it is", "centred"])
@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("chunks", [(8192, 1), (1024, 32), (8192, 7), (3, 256)])
def test_each_chunk_is_read_once(tmp_path, monkeypatch, chunks, compression, options):
    """Counted where bytes come from: the 16 MiB are more than HDF5 keeps by itself."""
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 1 << 18)
    a = np.random.default_rng(0).integers(0, 50, (16384, 256)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("m", data=a, chunks=chunks, compression=compression)
    matrix = stored("a.h5", folder=str(tmp_path), **options)
    product, x = product_of(matrix, "float32", "cpu"), np.ones((256, 2), np.float32)
    before = bytes_read()
    product(x)
    # Small chunks lie on pages of the file that hold others, too.
    assert bytes_read() - before < 1.25 * (tmp_path / "a.h5").stat().st_size


def test_chunks_that_do_not_fit_are_read_as_often_as_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 1 << 20)
    a = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("m", data=a, chunks=(4096, 64), compression="gzip")
    matrix = stored("a.h5", folder=str(tmp_path), memory=24 << 20)
    assert "each reading takes its bytes 16.0 times" in matrix.remarks
    assert any("with --memory" in remark for remark in matrix.remarks)
    assert matrix.held_bytes < 8 << 20


def bytes_read():
    """Bytes that this process has read so far, from whatever."""
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])
