"""Checkpoints: tensors of safetensors files, of several files by their index, and differences."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
import zarr
from safetensors.torch import save_file

from skerch_ooc.base.errors import OperatorError
from skerch_ooc.operators.adapters import product_of
from skerch_ooc.operators.matrix import stored

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 60, 24


def weights(dtype=torch.float32, shape=(HEIGHT, WIDTH), seed=0):
    made = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)


def applied(matrix):
    return product_of(matrix, matrix.dtype, "cpu")(np.eye(matrix.shape[1], dtype=matrix.dtype))


def opened(folder, path, **options):
    return stored(path, folder=str(folder), **options)


def numbers(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


def refusal(folder, path, **options):
    with pytest.raises(OperatorError) as caught:
        opened(folder, path, **options)
    return str(caught.value)


DTYPES = {
    torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "float32",
    torch.float16: "float32", torch.float8_e4m3fn: "float32", torch.float8_e5m2: "float32",
    torch.int8: "float32", torch.uint8: "float32", torch.int16: "float32", torch.int32: "float64",
    torch.int64: "float64", torch.bool: "float32", torch.complex64: "complex64",
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_is_what_was_saved(tmp_path, dtype):
    a = weights(torch.float32).abs().to(dtype)
    save_file({"w": a, "bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    matrix = opened(tmp_path, "a.safetensors")
    assert matrix.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(applied(matrix), numbers(a))


def test_tensor_of_several_is_named(tmp_path):
    save_file({"a": weights(), "b": weights(seed=1)}, tmp_path / "a.safetensors")
    found = applied(opened(tmp_path, "a.safetensors", dataset="b"))
    np.testing.assert_array_equal(found, weights(seed=1).numpy())


def test_several_tensors_are_candidates(tmp_path):
    save_file({"b": weights(), "a": weights(), "c": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert "holds 2 matrices (a, b); say which" in refusal(tmp_path, "a.safetensors")


def test_tensor_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    save_file({"a": weights()}, tmp_path / "a.safetensors")
    assert "no tensor 'b'; give one of: a" in refusal(tmp_path, "a.safetensors", dataset="b")


def test_vector_is_no_matrix(tmp_path):
    save_file({"a": weights(), "bias": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert "(3,); give a matrix" in refusal(tmp_path, "a.safetensors", dataset="bias")


def test_kernel_of_convolutions_is_a_matrix_by_its_rows(tmp_path):
    kernel = weights(shape=(16, 3, 5, 5))
    save_file({"w": kernel}, tmp_path / "a.safetensors")
    found = applied(opened(tmp_path, "a.safetensors", rows=[0]))
    np.testing.assert_array_equal(found, kernel.reshape(16, 75).numpy())


def test_kernel_of_convolutions_needs_to_be_told_its_rows(tmp_path):
    save_file({"w": weights(shape=(16, 3, 5, 5))}, tmp_path / "a.safetensors")
    assert "has 4 dimensions" in refusal(tmp_path, "a.safetensors")


def test_numbers_with_scales_beside_them_are_not_the_weights(tmp_path):
    tensors = {"w.weight": weights(torch.float8_e4m3fn), "w.weight_scale_inv": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    said = refusal(tmp_path, "a.safetensors", dataset="w.weight")
    assert "with scales in w.weight_scale_inv" in said


def test_tensors_of_several_files_are_found_by_their_index(tmp_path):
    files = {"x": "model-1-of-2.safetensors", "y": "model-2-of-2.safetensors"}
    for seed, (name, file) in enumerate(files.items()):
        save_file({name: weights(seed=seed)}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    for path in (".", index.name):
        found = applied(opened(tmp_path, path, dataset="y"))
        np.testing.assert_array_equal(found, weights(seed=1).numpy())


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"weight_map": 3}'])
def test_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "as the index of a checkpoint" in refusal(tmp_path, ".", dataset="y")


def test_files_of_a_folder_are_stacked(tmp_path):
    for number in range(3):
        save_file({"w": weights(seed=number)}, tmp_path / f"{number}.safetensors")
    expected = np.concatenate([weights(seed=number).numpy() for number in range(3)])
    np.testing.assert_array_equal(applied(opened(tmp_path, ".")), expected)


@pytest.mark.parametrize("size", [0, 7, 100, 3000])
def test_file_that_is_torn_is_refused(tmp_path, size):
    save_file({"w": weights()}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:size])
    assert "cannot open" in refusal(tmp_path, "a.safetensors")


def test_header_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert "cannot open" in refusal(tmp_path, "a.safetensors")


def test_missing_library_is_named_with_the_extra(tmp_path, monkeypatch):
    save_file({"w": weights()}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install 'skerch_ooc[matrices]'" in refusal(tmp_path, "a.safetensors")


MEASURE = """
import resource, sys
import numpy as np
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.safetensors_files import SafetensorsSource
from pathlib import Path
from skerch_ooc.operators.matrices.sources import Meant
source = SafetensorsSource(Path(sys.argv[1]), Meant())
out = np.empty((256, source.shape[1]), source.dtype)
source.read(Range(0, 256), out)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(0, source.shape[0], 256):
    source.read(Range(i, i + 256), out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.thorough
def test_file_is_not_held_in_memory_by_reading_it(tmp_path):
    save_file({"w": torch.ones(1 << 14, 1 << 11)}, tmp_path / "a.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.safetensors")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # KiB; the file has 128 MiB.
    assert int(done.stdout) < 24 << 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_difference_of_two_checkpoints_is_taken_row_by_row(tmp_path, dtype):
    a, b = (weights(seed=seed).abs().to(dtype) for seed in (0, 1))
    save_file({"w": a}, tmp_path / "a.safetensors")
    save_file({"w": b}, tmp_path / "b.safetensors")
    found = applied(opened(tmp_path, "a.safetensors", minus="b.safetensors"))
    np.testing.assert_allclose(found, numbers(a) - numbers(b), rtol=1e-7)


def test_difference_may_be_of_other_formats_and_centred(tmp_path):
    a, b = weights(torch.float64), weights(torch.float64, seed=1)
    np.save(tmp_path / "a.npy", a.numpy())
    zarr.create_array(tmp_path / "b.zarr", data=b.numpy(), chunks=(16, 5))
    found = applied(opened(tmp_path, "a.npy", minus="b.zarr", subtract="column-mean"))
    difference = (a - b).numpy()
    np.testing.assert_allclose(found, difference - difference.mean(axis=0), atol=1e-12)


def test_missing_entry_of_what_is_subtracted_is_named(tmp_path):
    a, b = weights(), weights(seed=1)
    b[3, 4] = torch.nan
    np.save(tmp_path / "a.npy", a.numpy())
    np.save(tmp_path / "b.npy", b.numpy())
    with pytest.raises(OperatorError, match=r"row 3 .* column 4"):
        applied(opened(tmp_path, "a.npy", minus="b.npy"))


def test_difference_of_unequal_shapes_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", weights().numpy())
    np.save(tmp_path / "b.npy", weights().numpy()[1:])
    assert "give matrices of one shape" in refusal(tmp_path, "a.npy", minus="b.npy")


def test_difference_of_sparse_matrices_is_refused(tmp_path):
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.eye_array(5).tocsr())
    assert "is sparse" in refusal(tmp_path, "a.npz", minus="a.npz")
