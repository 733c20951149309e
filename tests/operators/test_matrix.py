"""Matrices on disk: read in slabs, by names that need no Python from the user."""

from __future__ import annotations

import os
import sys
import zlib

import h5py
import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import skerch_ooc as ooc
from skerch_ooc.base.errors import OperatorError, UsageError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.adapters import Product, product_of
from skerch_ooc.operators.loading import build, resolved
from skerch_ooc.operators.matrices.formats import open_source
from skerch_ooc.operators.matrices.hdf5 import Hdf5Source
from skerch_ooc.operators.matrix import StoredMatrix, sparse, stored
from skerch_ooc.results.lowrank import open_result

SHAPE = (700, 40)


def entries(dtype="float32", shape=SHAPE):
    generator = np.random.default_rng(5)
    values = generator.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * generator.standard_normal(shape)
    return (10 * (abs(values) if np.dtype(dtype).kind == "u" else values)).astype(dtype)


def hdf5(folder, a, name="a.h5", **options):
    with h5py.File(folder / name, "w") as file:
        file.create_dataset("group/matrix", data=a, **options)
    return name


def npy(folder, a, name="a.npy"):
    np.save(folder / name, a)
    return name


def several(folder, a):
    """A folder of both kinds, whose names tell the order."""
    (folder / "parts").mkdir()
    for number, (start, stop) in enumerate([(0, 300), (300, 301), (301, 700)]):
        write = hdf5 if number == 1 else npy
        write(folder / "parts", a[start:stop], f"{number}.{'h5' if number == 1 else 'npy'}")
    (folder / "parts/notes.txt").write_text("no matrix")
    return "parts"


STORES = {
    "HDF5": hdf5,
    "HDF5 in chunks": lambda folder, a: hdf5(folder, a, chunks=(64, 16), compression="gzip"),
    "HDF5 in big endian": lambda folder, a: hdf5(folder, a.astype(a.dtype.newbyteorder(">"))),
    "npy": npy,
    "npy in columns": lambda folder, a: npy(folder, np.asfortranarray(a)),
    "npy in big endian": lambda folder, a: npy(folder, a.astype(a.dtype.newbyteorder(">"))),
    "folder": several,
}


@pytest.fixture
def slabs_of_100_rows(monkeypatch):
    monkeypatch.setattr("skerch_ooc.operators.matrix.SLAB_BYTES", 100 * 40 * 4)


@pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
@pytest.mark.parametrize("subtract", [None, "column-mean"])
@pytest.mark.parametrize("store", STORES)
def test_product_is_that_of_the_matrix_in_memory(
    tmp_path, slabs_of_100_rows, store, subtract, adjoint
):
    a = entries()
    matrix = stored(STORES[store](tmp_path, a), subtract=subtract, folder=str(tmp_path))
    wide = torch.from_numpy(a).double()
    if subtract:
        wide -= wide.mean(dim=0)
    x = torch.from_numpy(entries(shape=(SHAPE[0 if adjoint else 1], 6)))
    found = Product(matrix, "float32", "cpu")(x.numpy(), adjoint=adjoint)
    expected = ((wide.mH if adjoint else wide) @ x.double()).float()
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "int8", "uint16", "int64", "bool"])
@pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
def test_entries_of_other_types_are_read_too(tmp_path, slabs_of_100_rows, dtype, adjoint):
    a = entries(dtype)
    matrix = stored(npy(tmp_path, a), subtract="column-mean", folder=str(tmp_path))
    wide = torch.from_numpy(a.astype(np.complex128))
    wide -= wide.mean(dim=0)
    x = entries(matrix.dtype, (SHAPE[0 if adjoint else 1], 3))
    found = Product(matrix, matrix.dtype, "cpu")(x, adjoint=adjoint)
    expected = (wide.mH if adjoint else wide) @ torch.from_numpy(x).to(torch.complex128)
    torch.testing.assert_close(
        torch.from_numpy(found).to(torch.complex128), expected, rtol=1e-5, atol=1e-2
    )


@pytest.mark.parametrize("rows", [Range(0, 700), Range(299, 302), Range(300, 301), Range(650, 700)])
def test_rows_of_a_stack_are_those_of_its_files(tmp_path, rows):
    a = entries()
    source = open_source([tmp_path / several(tmp_path, a)])
    np.testing.assert_array_equal(source.read(rows), a[rows.slice])


@pytest.mark.parametrize("transpose", [False, True])
def test_weights_of_rows_are_found_beside_the_matrix(tmp_path, transpose):
    a, weights = entries("float64"), np.linspace(0, 2, SHAPE[0])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["weights"] = a, weights
    side = "column_weights" if transpose else "row_weights"
    matrix = stored("a.h5", "a", folder=str(tmp_path), transpose=transpose, **{side: "weights"})
    expected = np.sqrt(weights)[:, None] * a
    found = product_of(matrix, "float64", "cpu")(np.eye(matrix.shape[1]))
    np.testing.assert_allclose(found, expected.T if transpose else expected, atol=1e-12)


def by_columns(folder, a, kind):
    """Files whose columns are the rows that are meant, cut at rows 100 and 350 of all."""
    (folder / "parts").mkdir()
    for number, rows in enumerate(np.split(a, [100, 350])):
        if kind == "sparse":
            thin = scipy.sparse.csc_array(np.where(np.abs(rows) > 1, rows, 0))
            scipy.sparse.save_npz(folder / f"parts/{number}.npz", thin)
        else:
            with h5py.File(folder / f"parts/{number}.mat", "w") as file:
                file["M"] = rows.T
                file["M"].attrs["MATLAB_class"] = np.bytes_("double")
    return np.where(np.abs(a) > 1, a, 0) if kind == "sparse" else a


@pytest.mark.parametrize("kind", ["sparse", "MATLAB"])
@pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
@pytest.mark.parametrize("subtract", [None, "column-mean"])
def test_files_by_columns_are_stacked_by_their_rows(tmp_path, kind, adjoint, subtract):
    a = by_columns(tmp_path, entries("float64"), kind)
    matrix = stored("parts", subtract=subtract, folder=str(tmp_path))
    assert matrix.shape == a.shape
    a = a - a.mean(axis=0) if subtract else a
    x = entries("float64", (SHAPE[0 if adjoint else 1], 3))
    found = product_of(matrix, "float64", "cpu")(x, adjoint=adjoint)
    np.testing.assert_allclose(found, (a.T if adjoint else a) @ x, atol=1e-9)


def test_missing_entry_of_files_by_columns_is_named(tmp_path):
    a = entries("float64")
    a[123, 7] = np.nan
    by_columns(tmp_path, a, "MATLAB")
    matrix = stored("parts", folder=str(tmp_path))
    with pytest.raises(OperatorError, match=r"row 7 .* column 123"):
        product_of(matrix, "float64", "cpu")(np.ones((SHAPE[1], 2)))


@pytest.mark.parametrize("other", ["npz", "mat"])
def test_files_by_columns_are_not_stacked_with_others(tmp_path, other):
    by_columns(tmp_path, entries("float64"), "sparse" if other == "npz" else "MATLAB")
    if other == "npz":
        scipy.sparse.save_npz(tmp_path / "parts/9.npz", scipy.sparse.csr_array(np.eye(40)))
    else:
        np.save(tmp_path / "parts/9.npy", np.eye(40))
    with pytest.raises(OperatorError, match=r"by columns and .*9\.np. by rows"):
        stored("parts", folder=str(tmp_path))


def test_files_by_columns_of_other_widths_are_not_stacked(tmp_path):
    by_columns(tmp_path, entries("float64"), "sparse")
    scipy.sparse.save_npz(tmp_path / "parts/9.npz", scipy.sparse.csc_array(np.eye(41)))
    with pytest.raises(OperatorError, match="must be equally wide"):
        stored("parts", folder=str(tmp_path))


@pytest.mark.parametrize("where", [(0, 0), (123, 7), (699, 39)])
@pytest.mark.parametrize("adjoint", [False, True], ids=["A X", "A^H X"])
def test_missing_entry_is_named_by_its_row(tmp_path, slabs_of_100_rows, where, adjoint):
    a = entries()
    a[where] = np.nan
    product = Product(stored(npy(tmp_path, a), folder=str(tmp_path)), "float32", "cpu")
    x = np.ones((SHAPE[0 if adjoint else 1], 2), np.float32)
    with pytest.raises(OperatorError, match=f"row {where[0]} .* nan in column {where[1]}"):
        product(x, adjoint=adjoint)


def test_product_that_overflows_is_told_from_a_missing_entry(tmp_path):
    a = np.full((5, 5), 3e38, np.float32)
    product = Product(stored(npy(tmp_path, a), folder=str(tmp_path)), "float32", "cpu")
    with pytest.raises(OperatorError, match="use a wider dtype"):
        product(np.ones((5, 1), np.float32))


def write_virtual(folder):
    hdf5(folder, entries())
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(folder / "a.h5", "group/matrix", SHAPE)
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("matrix", layout)


def write_two(folder):
    with h5py.File(folder / "v.h5", "w") as file:
        file["one"] = file["two"] = entries()
        file["three"] = entries()


WRONG = {
    "not there": (lambda folder: None, "v.h5 is not there"),
    "a pipe": (lambda folder: os.mkfifo(folder / "v.h5"), "v.h5 is a pipe or a device"),
    "no HDF5": (lambda folder: (folder / "v.h5").write_bytes(b"\0" * 16), "as an HDF5 file"),
    "a table of text": (lambda folder: (folder / "v.h5").write_text("a,b\n1,2\n"), "it is text"),
    "virtual": (write_virtual, "lie in other files"),
    "several matrices": (write_two, "holds 3 matrices"),
    "a vector": (lambda folder: hdf5(folder, np.ones(3), "v.h5"), "holds 0 matrices"),
    "text": (
        lambda folder: hdf5(folder, np.full((2, 2), b"x"), "v.h5"),
        "give a matrix of numbers",
    ),
    "no entries": (lambda folder: hdf5(folder, np.ones((0, 3)), "v.h5"), "give a matrix: two"),
    "empty folder": (
        lambda folder: (folder / "v.h5").mkdir(),
        "is a folder without matrices: give one with files that end in",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_matrix_is_refused_by_name(tmp_path, wrong):
    write, text = WRONG[wrong]
    write(tmp_path)
    with pytest.raises(OperatorError, match=text):
        stored("v.h5", folder=str(tmp_path))


def test_chunks_of_hdf5_that_were_never_written_are_said(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (40, 6), "f4", chunks=(10, 6))[:10] = 1
    (said,) = stored("a.h5", folder=str(tmp_path)).remarks
    assert said == "3 chunks of 4 were never written, and are read as the fill value 0.0"


def test_rows_that_cannot_be_chosen_are_not_passed_over(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3)))
    assert stored("a.npy", folder=str(tmp_path), rows=[0]).shape == (4, 3)
    with pytest.raises(OperatorError, match=r"rows = \[1\] cannot be chosen .* transpose = true"):
        stored("a.npy", folder=str(tmp_path), rows=[1])


def test_dense_arrays_in_an_archive_are_not_sent_to_scipy(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.eye(3))
    with pytest.raises(OperatorError, match=r"holds arrays \(x\) .* by numpy\.save"):
        stored("a.npz", folder=str(tmp_path))


def test_files_of_a_folder_that_are_hidden_are_left_out(tmp_path):
    np.save(tmp_path / "1.npy", np.eye(3))
    (tmp_path / "._1.npy").write_bytes(b"of another system")
    assert stored(".", folder=str(tmp_path)).shape == (3, 3)


def test_order_of_files_that_is_not_that_of_their_numbers_is_said(tmp_path):
    for number in (2, 10):
        np.save(tmp_path / f"{number}.npy", np.eye(3))
    (said,) = stored(".", folder=str(tmp_path)).remarks
    assert "10.npy, 2.npy" in said
    (tmp_path / "2.npy").rename(tmp_path / "02.npy")
    assert not stored(".", folder=str(tmp_path)).remarks


def test_dataset_that_is_not_there_is_named_with_those_that_are(tmp_path):
    hdf5(tmp_path, entries(), "v.h5")
    with pytest.raises(OperatorError, match="no dataset 'matrix'; give one of: group/matrix"):
        stored("v.h5", dataset="matrix", folder=str(tmp_path))


def test_layer_that_is_not_there_is_answered_with_matrices_and_not_their_parts(tmp_path):
    with h5py.File(tmp_path / "cells.h5ad", "w") as file:
        for name in ("X", "layers/counts"):
            group = file.create_group(name)
            group.attrs.update({"encoding-type": "csr_matrix", "shape": (3, 2)})
            for part, values in (("data", [1.0]), ("indices", [0]), ("indptr", [0, 1, 1, 1])):
                group[part] = values
        file["obs/_index"] = ["a", "b", "c"]
    with pytest.raises(OperatorError, match=r"give one of: X, layers/counts$"):
        stored("cells.h5ad", dataset="layers/count", folder=str(tmp_path))


def test_files_of_other_widths_are_not_stacked(tmp_path):
    paths = [npy(tmp_path, entries(), "a.npy"), npy(tmp_path, entries(shape=(3, 9)), "b.npy")]
    with pytest.raises(OperatorError, match=r"b\.npy has 9"):
        stored(paths, folder=str(tmp_path))


def test_npy_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(OperatorError, match=r"as a \.npy file"):
        stored("a.npy", folder=str(tmp_path))


def test_other_centring_is_refused(tmp_path):
    with pytest.raises(OperatorError, match="column-mean"):
        stored(npy(tmp_path, entries()), subtract="median", folder=str(tmp_path))


def test_bits_do_not_depend_on_who_asks_for_how_many_columns(tmp_path):
    matrix = stored(npy(tmp_path, entries("int8")), folder=str(tmp_path))
    x = np.sign(entries(shape=(40, 8)))
    product = Product(matrix, "float32", "cpu")
    np.testing.assert_array_equal(product(x)[:, :3], product(np.ascontiguousarray(x[:, :3])))


class TestSparse:
    def matrix(self, folder, **options):
        a = scipy.sparse.random_array(
            (60, 30), density=0.1, rng=np.random.default_rng(1), **options
        )
        scipy.sparse.save_npz(folder / "a.npz", a.tocsr())
        return a.toarray()

    def test_it_is_applied_as_it_is(self, tmp_path):
        a = self.matrix(tmp_path)
        product = Product(sparse("a.npz", folder=str(tmp_path)), "float64", "cpu")
        x = entries("float64", (30, 4))
        np.testing.assert_allclose(product(x), a @ x)

    def test_missing_entry_is_named_by_its_row(self, tmp_path):
        a = scipy.sparse.csr_array(([1.0, np.nan], ([3, 41], [0, 2])), shape=(60, 30))
        scipy.sparse.save_npz(tmp_path / "a.npz", a)
        product = Product(sparse("a.npz", folder=str(tmp_path)), "float64", "cpu")
        with pytest.raises(OperatorError, match="row 41"):
            product(np.ones((30, 2)))

    @pytest.mark.parametrize("content", [None, b"hello"])
    def test_what_is_no_sparse_matrix_is_refused(self, tmp_path, content):
        if content:
            (tmp_path / "a.npz").write_bytes(content)
        said = r"as a sparse \.npz file" if content else r"a\.npz is not there; give"
        with pytest.raises(OperatorError, match=said):
            sparse("a.npz", folder=str(tmp_path))


class TestNames:
    def test_registered_name_is_that_of_a_function(self):
        assert resolved("stored") == "skerch_ooc.operators.matrix:stored"

    def test_name_that_nobody_registered_is_refused_with_those_that_are(self, tmp_path):
        with pytest.raises(OperatorError, match=r"registered \(decaying, sparse, stored\)"):
            build("nobody", {}, "cpu", tmp_path)

    def test_name_that_nobody_registered_is_refused_when_it_is_planned(self, tmp_path):
        spec = {"measurements": 9, "operator": {"factory": "nobody", "shape": [99, 99]}}
        with pytest.raises(OperatorError, match="no installed package has registered"):
            ooc.plan(spec, tmp_path / "run")

    @pytest.mark.parametrize("name", ["", "a b", "x.y", ":f", "file.py:"])
    def test_name_that_cannot_be_one_is_refused(self, name):
        with pytest.raises(UsageError, match="factory"):
            ooc.OperatorSpec(factory=name)

    def test_paths_are_relative_to_the_spec(self, tmp_path):
        npy(tmp_path, entries())
        operator = build("stored", {"path": "a.npy"}, "cpu", tmp_path)
        assert isinstance(operator, StoredMatrix)


SPEC = """
kind = "svd"
measurements = 64
dtype = "float64"
[operator]
factory = "stored"
[operator.args]
path = "digits.npy"
subtract = "column-mean"
"""


def test_principal_components_of_the_digits_are_those_of_scikit_learn(tmp_path, inside):
    digits = load_digits().data
    np.save(tmp_path / "digits.npy", digits)
    (tmp_path / "pca.toml").write_text(SPEC)
    done = inside("run", "pca.toml", "--run", "run", "--threads", 1)
    assert done.returncode == 0, done.stderr
    usv = open_result(tmp_path / "run/results/default/svd.h5")
    pca = PCA(n_components=10, svd_solver="full").fit(digits)
    np.testing.assert_allclose(usv.S[:10].numpy(), pca.singular_values_, rtol=1e-5)
    overlap = np.abs(np.sum(usv.V[:, :10].numpy() * pca.components_.T, axis=0))
    np.testing.assert_allclose(overlap, 1, rtol=1e-5)


class TestCompressedChunks:
    """Chunks that are decompressed here, in threads, and not by HDF5."""

    @staticmethod
    def file(folder, a, **filters):
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("a", data=a, chunks=(64, 16), **filters)
        return Hdf5Source(folder / "a.h5")

    @pytest.mark.parametrize("dtype", ["float32", ">f8", "float16", "int16", "uint64"])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_rows_that_begin_anywhere_are_those_that_were_written(self, tmp_path, dtype, shuffle):
        a = np.random.default_rng(1).integers(0, 1000, (300, 50)).astype(dtype)
        source = self.file(tmp_path, a, compression="gzip", shuffle=shuffle)
        assert source._inflated is not None
        for start, stop in ((0, 100), (100, 101), (101, 300), (20, 30), (64, 192)):
            assert np.array_equal(source.read(Range(start, stop)), a[start:stop])

    @pytest.mark.parametrize("filters", [{}, {"compression": "lzf"}, {"fletcher32": True}])
    def test_other_filters_are_left_to_hdf5(self, tmp_path, filters):
        assert self.file(tmp_path, np.ones((300, 50)), **filters)._inflated is None

    def test_chunk_that_was_stored_without_its_filters_is_read(self, tmp_path):
        a = np.arange(64 * 16.0).reshape(64, 16)
        self.file(tmp_path, np.zeros_like(a), compression="gzip", shuffle=True)
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["a"].id.write_direct_chunk((0, 0), a.tobytes(), filter_mask=3)
        assert np.array_equal(Hdf5Source(tmp_path / "a.h5").read(Range(0, 64)), a)

    def test_chunk_that_nobody_wrote_is_left_to_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset(
                "a", (128, 16), "f8", chunks=(64, 16), compression="gzip", fillvalue=7.0
            )
            data[:64] = 1
        rows = Hdf5Source(tmp_path / "a.h5").read(Range(0, 128))
        assert (rows[:64] == 1).all()
        assert (rows[64:] == 7).all()

    @pytest.mark.parametrize(
        "stored",
        [
            pytest.param(b"no stream", id="damaged"),
            pytest.param(zlib.compress(b"few"), id="short"),
            pytest.param(zlib.compress(bytes(1 << 24)), id="bomb"),
        ],
    )
    def test_chunk_that_is_broken_is_refused_with_the_file(self, tmp_path, stored):
        self.file(tmp_path, np.zeros((64, 16)), compression="gzip")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            file["a"].id.write_direct_chunk((0, 0), stored)
        with pytest.raises(OperatorError, match=r"a\.h5: a cannot be read"):
            Hdf5Source(tmp_path / "a.h5").read(Range(0, 64))


def test_compressed_entries_that_are_damaged_are_refused_with_the_file(tmp_path):
    path = tmp_path / "a.npz"
    matrix = scipy.sparse.random_array((400, 300), density=0.5, rng=1, format="csr")
    scipy.sparse.save_npz(path, matrix)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 8 * 3 : len(raw) // 8 * 3 + 4000] = bytes(4000)
    path.write_bytes(raw)
    with pytest.raises(OperatorError, match=r"a\.npz.*(cannot be read|cannot open|is broken)"):
        stored(str(path)) @ torch.ones(300, 1, dtype=torch.float64)


def test_factory_that_was_written_again_in_the_same_second_is_read_again(tmp_path, monkeypatch):
    # Python keeps what it compiles only where it may.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, shapes = tmp_path / "mine.py", []
    for size in (3, 4):
        file.write_text(f"import numpy\ndef make():\n    return numpy.eye({size})\n")
        os.utime(file, (1, 1))
        shapes.append(build("mine.py:make", {}, "cpu", tmp_path).shape)
    assert shapes == [(3, 3), (4, 4)]
