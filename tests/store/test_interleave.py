"""Narrow arrays side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerch_ooc.store.interleave import BATCH_BYTES, Batch, batch_size

DTYPES = ("float32", "float64", "complex64", "complex128")


def numbers(shape, dtype):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@given(
    count=st.integers(1, 9), rows=st.integers(1, 300), width=st.integers(1, 7),
    leading=st.integers(0, 300), dtype=st.sampled_from(DTYPES), data=st.data(),
)  # fmt: skip
def test_batch_is_turned_into_its_arrays_side_by_side(count, rows, width, leading, dtype, data):
    arrays = numbers((count, rows, width), dtype)
    wider = np.result_type(dtype, np.float64)
    target = np.zeros((min(leading, rows), count * width + 3),
                      data.draw(st.sampled_from([dtype, wider])))  # fmt: skip
    batch = Batch(count, rows, width, dtype)
    for number, array in enumerate(arrays):
        batch[number][:] = array
    batch.turn_into(target[:, 2:-1])
    assert (target[:, 2:-1] == np.concatenate(arrays, axis=1)[: len(target)]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_holds_about_as_many_bytes_as_said(dtype):
    size = np.dtype(dtype).itemsize
    assert batch_size(4096, 1, dtype) * 4096 * size == BATCH_BYTES


@pytest.mark.parametrize("width", [9, 16, 512])
def test_wide_arrays_are_no_batch(width):
    assert batch_size(4096, width, "float32") == 1
