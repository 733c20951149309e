"""Zarr: conventions of netCDF, what is refused, what is read how often, and reading by URL."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import xarray
import zarr

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.operators.matrices.sources import Meant
from skerch_ooc.operators.matrices.zarr_arrays import ZarrSource, open_zarr
from skerch_ooc.operators.matrix import stored

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 75, 24
FILL = 1e20


def entries(seed=3):
    return np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)) + 2


def applied(matrix):
    return product_of(matrix, matrix.dtype, "cpu")(np.eye(matrix.shape[1], dtype=matrix.dtype))


def written(folder, a, version, **encoding):
    """As xarray writes it."""
    data = xarray.Dataset(
        {"t": (("time", "lat", "lon"), a.reshape(HEIGHT, 4, 6))},
        coords={"lat": np.linspace(-80, 80, 4)},
    )
    data.to_zarr(
        folder / "a.zarr", zarr_format=version, encoding={"t": encoding}, consolidated=False
    )
    return {"path": "a.zarr", "dataset": "t", "rows": ["time"], "folder": str(folder)}


@pytest.mark.parametrize("version", [2, 3])
def test_packed_numbers_are_unpacked(tmp_path, version):
    a = np.round(entries(), 2)
    arguments = written(
        tmp_path, a, version, dtype="int16", scale_factor=0.01, add_offset=2.0, _FillValue=-999
    )
    np.testing.assert_allclose(applied(stored(**arguments)), a, atol=1e-12)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("fill", [FILL, np.nan])
def test_fill_values_are_missing(tmp_path, version, fill):
    a = entries()
    a[4, 5] = np.nan
    arguments = written(tmp_path, a, version, _FillValue=fill)
    with pytest.raises(OperatorError, match=r"row 4.*column 5"):
        applied(stored(**arguments))


@pytest.mark.parametrize("version", [2, 3])
def test_missing_entries_are_filled_if_that_is_said(tmp_path, version):
    a = entries()
    a[4, 5] = np.nan
    arguments = written(tmp_path, a, version, _FillValue=FILL)
    a[4, 5] = np.nanmean(a[:, 5])
    np.testing.assert_allclose(applied(stored(**arguments, missing="column-mean")), a)


def test_zeros_are_zeros_where_the_library_itself_fills_with_them(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.zeros((3, 2)), zarr_format=2)
    np.testing.assert_array_equal(applied(stored("a.zarr", folder=str(tmp_path))), np.zeros((3, 2)))


def test_columns_are_weighted_by_the_latitudes_beside_them(tmp_path):
    a = entries()
    arguments = written(tmp_path, a, 3)
    roots = np.repeat(np.sqrt(np.cos(np.deg2rad(np.linspace(-80, 80, 4)))), 6)
    found = applied(stored(**arguments, column_weights="cos-latitude"))
    np.testing.assert_allclose(found, a * roots)


class Counted:
    """An array that notes which chunks it is asked for."""

    def __init__(self, array):
        self._array, self.counts = array, np.zeros(-(-np.array(array.shape) // array.chunks), int)

    def __getattr__(self, name):
        return getattr(self._array, name)

    def __getitem__(self, index):
        places = []
        for one, size, chunk in zip(index, self.shape, self.chunks, strict=True):
            start, stop, _ = one.indices(size)
            places.append(slice(start // chunk, -(-stop // chunk)))
        self.counts[tuple(places)] += 1
        return self._array[index]


@pytest.mark.parametrize("chunks", [(16, 5), (HEIGHT, 1), (7, WIDTH), (1, 24), (50, 24)])
@pytest.mark.parametrize("piece", [1, 1 << 10, 1 << 25])
def test_library_is_asked_for_each_chunk_once(monkeypatch, chunks, piece):
    monkeypatch.setattr("skerch_ooc.operators.matrices.bands.PIECE", piece)
    a = entries()
    # Of folders on this machine chunks are read without the library.
    array = Counted(zarr.create_array(zarr.storage.MemoryStore(), data=a, chunks=chunks))
    source = ZarrSource("a", array, Meant())
    found = [source.read(Range(i, min(i + 16, HEIGHT))) for i in range(0, HEIGHT, 16)]
    np.testing.assert_array_equal(np.concatenate(found), a)
    assert (array.counts == 1).all()


CODECS = [
    (3, None), (3, zarr.codecs.ZstdCodec()), (3, zarr.codecs.GzipCodec()),
    (3, zarr.codecs.BloscCodec(cname="lz4")), (2, None), (2, numcodecs.Zlib()),
    (2, numcodecs.GZip()), (2, numcodecs.Zstd()), (2, numcodecs.Blosc()),
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("version", "codec"), CODECS, ids=str)
def test_file_of_each_chunk_is_read_once(tmp_path, monkeypatch, version, codec):
    a = entries().astype("float32")
    zarr.create_array(
        tmp_path / "a.zarr", data=a, chunks=(20, 5), compressors=codec, zarr_format=version
    )
    read = Counter()
    plain = Path.read_bytes

    def counted(path):
        read[path] += 1
        return plain(path)

    source = open_zarr(tmp_path / "a.zarr", Meant())
    monkeypatch.setattr(Path, "read_bytes", counted)
    found = [source.read(Range(i, min(i + 16, HEIGHT))) for i in range(0, HEIGHT, 16)]
    np.testing.assert_array_equal(np.concatenate(found), a)
    assert len(read) == 20
    assert set(read.values()) == {1}


OTHER_ARRAYS = {
    "shards": {"shards": (40, 10)},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "checksums": {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
    "Fortran order": {"order": "F", "zarr_format": 2},
    "filters": {"filters": [numcodecs.Delta("<i4")], "zarr_format": 2},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", OTHER_ARRAYS.values(), ids=OTHER_ARRAYS)
def test_arrays_that_only_the_library_decodes_are_read(tmp_path, options):
    a = np.arange(HEIGHT * WIDTH, dtype="int32").reshape(HEIGHT, WIDTH)
    zarr.create_array(tmp_path / "a.zarr", data=a, chunks=(20, 5), **options)
    np.testing.assert_array_equal(applied(stored("a.zarr", folder=str(tmp_path))), a)


def test_chunks_that_are_not_there_are_read_as_the_fill_value(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(30, 9), chunks=(8, 4), dtype="float64", fill_value=2.5
    )
    array[8:16] = 1
    expected = np.where((np.arange(30) // 8 == 1)[:, None], 1.0, 2.5) * np.ones(9)
    np.testing.assert_array_equal(applied(stored("a.zarr", folder=str(tmp_path))), expected)


def test_each_chunk_of_a_grid_is_read_once(tmp_path):
    field = entries().reshape(15, 5, 24)
    array = zarr.create_array(tmp_path / "a.zarr", data=field, chunks=(4, 2, 9))
    source = ZarrSource("a", counted := Counted(array), Meant(rows=(0, 1)))
    found = [source.read(Range(i, min(i + 16, HEIGHT))) for i in range(0, HEIGHT, 16)]
    np.testing.assert_array_equal(np.concatenate(found), entries())
    assert (counted.counts == 1).all()
    assert source.rows_together == 20


def test_chunks_that_memory_does_not_hold_are_said_to_be_read_several_times(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1 << 16, 64), chunks=(1 << 16, 1), dtype="float64"
    )
    source = ZarrSource("a", array, Meant(memory=1 << 22))
    assert source.readings(1 << 12) == 16
    assert "are read several times" in source.remarks[0]


def refusal(tmp_path, name="a.zarr", **options):
    with pytest.raises(OperatorError) as caught:
        applied(stored(name, folder=str(tmp_path), **options))
    return str(caught.value)


def test_several_arrays_are_named(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    for name in ("a", "deep/b"):
        group.create_array(name, data=entries())
    assert "holds 2 matrices (a, deep/b)" in refusal(tmp_path)


def test_array_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    zarr.create_group(tmp_path / "a.zarr").create_array("a", data=entries())
    assert "has no array 'b'; give one of: a" in refusal(tmp_path, dataset="b")


def test_layer_that_is_not_there_is_answered_with_matrices_and_not_their_parts(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr")
    group = root.create_group("X", attributes={"encoding-type": "csr_matrix", "shape": [3, 2]})
    for part, values in (("data", [1.0]), ("indices", [0]), ("indptr", [0, 1, 1, 1])):
        group.create_array(part, data=np.array(values))
    assert refusal(tmp_path, dataset="layers/counts").endswith("give one of: X")


def test_vector_is_no_matrix(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.ones(5))
    assert "has shape (5,); give a matrix" in refusal(tmp_path)


def test_text_is_no_matrix(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.full((3, 2), b"ab"), zarr_format=2)
    assert "give a matrix of numbers" in refusal(tmp_path)


def test_folder_without_zarr_is_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    assert "cannot open" in refusal(tmp_path)


def test_zip_file_without_zarr_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    assert "is a zip file without Zarr" in refusal(tmp_path, "a.zip")


def test_chunk_that_is_broken_is_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=entries(), chunks=(16, 5))
    (tmp_path / "a.zarr/c/1/2").write_bytes(b"nonsense")
    assert "cannot be read" in refusal(tmp_path)


def test_chunk_of_too_few_bytes_is_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=entries(), chunks=(16, 5), compressors=None)
    (tmp_path / "a.zarr/c/1/2").write_bytes(bytes(8))
    assert "the chunk at 16, 10 does not have 640 bytes" in refusal(tmp_path)


def test_chunk_that_is_larger_than_memory_is_refused_before_it_is_made(tmp_path):
    huge = (1 << 40, 1 << 10)
    zarr.create_array(tmp_path / "a.zarr", shape=huge, chunks=huge, dtype="float64")
    assert "a chunk of" in refusal(tmp_path)


def test_sparse_matrix_with_a_column_out_of_range_is_refused(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr", attributes={"encoding-type": "csr_matrix"})
    group.attrs["shape"] = [2, 3]
    for name, values in (("data", [1.0, 2.0]), ("indices", [1, 7]), ("indptr", [0, 1, 2])):
        group.create_array(f"m/{name}", data=np.array(values))
    group["m"].attrs.update({"encoding-type": "csr_matrix", "shape": [2, 3]})
    assert "row 1 has an entry in column 7" in refusal(tmp_path)


def test_absent_chunks_are_said(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(20, 6), chunks=(10, 6), dtype="float64", fill_value=0
    )
    array[:10] = 1
    source = open_zarr(tmp_path / "a.zarr", Meant())
    assert source.remarks == ("1 chunk of 2 are not there, and are read as the fill value 0.0",)


def test_missing_library_is_named_with_the_extra(tmp_path, monkeypatch):
    zarr.create_array(tmp_path / "a.zarr", data=entries())
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert "pip install 'skerch_ooc[matrices]'" in refusal(tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_array_is_read_by_url(tmp_path, server):
    a = entries()
    zarr.create_array(tmp_path / "a.zarr", data=a, chunks=(16, 24))
    np.testing.assert_array_equal(applied(stored(f"{server}/a.zarr")), a)


def test_url_without_zarr_is_refused(tmp_path, server):
    assert "cannot open" in refusal(tmp_path, f"{server}/nothing.zarr")
