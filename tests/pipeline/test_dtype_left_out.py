"""A dtype that a spec leaves out is the operator's own; a run that was planned goes on with its."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse
import torch
from factories import dense
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.operators.adapters import dtype_of
from skerch_ooc.pipeline.start import probe_spec


def stating(dtype):
    return type("Stating", (), {"shape": (4, 4), "dtype": dtype})()


STATED = [
    (torch.eye(3), "float32"),
    (torch.eye(3, dtype=torch.complex128), "complex128"),
    (np.eye(3), "float64"),
    (np.eye(3, dtype=">f8"), "float64"),
    (scipy.sparse.eye_array(3, dtype=np.complex64), "complex64"),
    (scipy.sparse.linalg.aslinearoperator(np.eye(3)), "float64"),
    (stating("float64"), "float64"),
    (stating(np.float64), "float64"),
    (stating(torch.float64), "float64"),
    (stating("f4"), "float32"),
    (stating(float), "float64"),
    # None that will do.
    (torch.eye(3, dtype=torch.float16), "float32"),
    (torch.eye(3, dtype=torch.bfloat16), "float32"),
    (np.eye(3, dtype=np.int64), "float32"),
    (stating(None), "float32"),
    (stating(lambda: "float64"), "float32"),
    (stating("no dtype"), "float32"),
    (type("Silent", (), {"shape": (4, 4)})(), "float32"),
]


@pytest.mark.parametrize(("operator", "dtype"), STATED, ids=range(len(STATED)))
def test_operators_state_it_in_many_ways(operator, dtype):
    assert dtype_of(operator) == dtype


class TestPlanned:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
    def test_is_that_of_the_operator(self, tmp_path, dtype):
        run = ooc.plan({"measurements": 20}, tmp_path / "run", operator=dense(60, dtype=dtype))
        assert run.plan.identity.dtype == dtype

    def test_what_the_spec_says_counts_more(self, tmp_path):
        spec = {"measurements": 20, "dtype": "float32"}
        with pytest.raises(ooc.OperatorError, match="set dtype = "):
            ooc.plan(spec, tmp_path / "run", operator=dense(60).numpy().view())
        spec = {"measurements": 20, "dtype": "float64"}
        run = ooc.plan(spec, tmp_path / "run", operator=dense(60))
        assert run.plan.identity.dtype == "float64"

    def test_is_single_where_the_plan_loads_no_operator(self, tmp_path):
        (tmp_path / "gone.py").write_text("raise RuntimeError('loaded')")
        spec = {
            "measurements": 20, "sketch": {"block": 10},
            "operator": {"factory": f"{tmp_path}/gone.py:make", "shape": [60, 60]},
        }  # fmt: skip
        assert ooc.plan(spec, tmp_path / "run").plan.identity.dtype == "float32"

    @pytest.mark.parametrize(
        ("stored", "dtype"),
        [("float64", "float64"), ("float32", "float32"), ("int16", "float32"),
         ("complex128", "complex128")],
    )  # fmt: skip
    def test_matrix_on_disk_is_measured_in_its_own(self, tmp_path, stored, dtype):
        entries = 10 * dense(60, dtype=dtype).numpy()
        np.save(tmp_path / "matrix.npy", entries.astype(stored))
        spec = {
            "kind": "svd", "measurements": 20,
            "operator": {"factory": "stored", "args": {"path": str(tmp_path / "matrix.npy")}},
        }  # fmt: skip
        assert ooc.plan(spec, tmp_path / "run").plan.identity.dtype == dtype

    def test_storage_is_filled_with_numbers_of_it(self, tmp_path):
        sizes = []
        for dtype in ("float32", "complex128"):
            spec = {"storage": "60 kB", "sketch": {"test_measurements": 0}}
            run = ooc.plan(spec, tmp_path / dtype, operator=dense(200, dtype=dtype))
            sizes.append(run.plan.reach("right"))
        assert sizes == [75, 18]

    def test_probe_examines_in_it(self, inside, tmp_path):
        assert probe_spec({"measurements": 20}, operator=dense(60)).dtype == "float64"
        # The factory's operator does not state its own.
        spec = write_spec(tmp_path, "matrix", 20)
        assert json.loads(inside("probe", spec, "--json").stdout)["dtype"] == "float32"


class TestNoise:
    SPEC = {"measurements": 20, "sketch": {"noise": "phase"}}  # noqa: RUF012

    def test_complex_noise_suits_a_complex_operator(self, tmp_path):
        run = ooc.plan(self.SPEC, tmp_path / "run", operator=dense(60, dtype="complex64"))
        assert run.plan.identity.noise["right"] == "phase"

    def test_complex_noise_is_refused_of_a_real_operator(self, tmp_path):
        with pytest.raises(ooc.UsageError, match="is complex, but dtype = 'float64' is real"):
            ooc.plan(self.SPEC, tmp_path / "run", operator=dense(60))

    def test_complex_noise_is_refused_where_no_operator_is_loaded(self, tmp_path):
        spec = {
            "measurements": 20, "sketch": {"noise": "phase", "block": 10},
            "operator": {"factory": "package.module:make", "shape": [60, 60]},
        }  # fmt: skip
        with pytest.raises(ooc.UsageError, match="is complex, but dtype = 'float32' is real"):
            ooc.plan(spec, tmp_path / "run")


class TestGoingOn:
    def test_run_of_another_dtype_goes_on_with_it(self, tmp_path):
        """So do runs that were planned when a dtype that was left out was float32."""
        a = dense(60, dtype="float32").numpy()
        told = {"measurements": 20, "dtype": "float32", "operator": {}}
        before = ooc.plan(told, tmp_path / "run", operator=a)
        left_out = {"measurements": 20}
        again = ooc.plan(left_out, tmp_path / "run", operator=a.astype(np.float64))
        assert again.plan == before.plan

    def test_another_dtype_that_is_said_is_refused(self, tmp_path):
        ooc.plan({"measurements": 20}, tmp_path / "run", operator=dense(60))
        with pytest.raises(ooc.UsageError, match="dtype: 'float64' in the run, 'float32' now"):
            ooc.plan({"measurements": 20, "dtype": "float32"}, tmp_path / "run", operator=dense(60))

    def test_decomposition_goes_on_without_naming_it(self, tmp_path):
        a = dense(60)
        first = ooc.eigh(a, measurements=20, dtype="float64", run_dir=tmp_path / "run")
        again = ooc.eigh(a, measurements=20, run_dir=tmp_path / "run")
        assert again.eigenvalues.dtype == torch.float64
        assert torch.equal(first.eigenvalues, again.eigenvalues)
