"""Tiles multiplied by torch: on the processor in every run of the tests, on a GPU where one is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.plan import Amendment, Cut, Identity, Plan
from skerch_ooc.planning.sides import first_round
from skerch_ooc.planning.spec import DTYPES, RecoverySpec
from skerch_ooc.stages.merge.accumulate import Accumulator, Sums, Workspace
from skerch_ooc.stages.merge.arithmetic import Device, Host, arithmetic_on
from skerch_ooc.stages.merge.testmatrices import NoiseReader

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
devices = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[gpu, needs_gpu])], ids=["torch-cpu", "cuda"]
)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)

ROWS = 200


def plan_of(dtype):
    identity = Identity(
        kind="eigh",
        factory=None,
        args={},
        factory_sha256=None,
        shape=(ROWS, ROWS),
        dtype=dtype,
        seed=1,
        noise={"right": "rademacher", "test": "gaussian"},
        tile=(256, 16),
    )
    blocks = {"right": Cut(0, 40, 40), "test": Cut(0, 5, 5)}
    return Plan(identity, (Amendment(identity.run_id, 1, blocks, RecoverySpec(), "cpu", "."),))


def sums_with(arithmetic, dtype):
    plan = plan_of(dtype)
    (side,) = first_round(plan)
    generator = np.random.default_rng(0)
    z = generator.standard_normal((ROWS, 45))
    if dtype.startswith("complex"):
        z = z + 1j * generator.standard_normal((ROWS, 45))
    space, out = Workspace.of(plan, side), Sums.zeros(plan, side)
    tile = space.z[:ROWS]
    tile[...] = z.astype(dtype)
    matrices = NoiseReader(plan, {})
    Accumulator(plan, side, matrices, arithmetic).form(Range(0, ROWS), tile, space, out)
    return out


@devices
@all_dtypes
def test_test_matrix_times_sketch_is_that_of_numpy(device, dtype):
    there, here = sums_with(Device(device), dtype), sums_with(Host(), dtype)
    assert np.allclose(there.cross, here.cross, rtol=1e-13, atol=1e-11)


@devices
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_signs_times_single_precision_are_equal_bit_for_bit(device, dtype):
    there, here = sums_with(Device(device), dtype), sums_with(Host(), dtype)
    assert np.array_equal(there.cross[:40], here.cross[:40])


@devices
@all_dtypes
def test_squares_are_those_of_numpy(device, dtype):
    there, here = (
        sums.squares.conj().T @ sums.squares if sums.triangular else np.triu(sums.squares)
        for sums in (sums_with(Device(device), dtype), sums_with(Host(), dtype))
    )
    assert np.allclose(there, here, rtol=1e-13, atol=1e-11)


@devices
def test_products_go_to_parts_of_larger_arrays(device):
    on = Device(device)
    out = np.zeros((6, 10))
    a, b = np.arange(12.0).reshape(4, 3), np.arange(20.0).reshape(4, 5)
    on.adjoint_times(on.load(a), on.load(b), out[1:4, 2:7])
    assert np.array_equal(out[1:4, 2:7], a.T @ b)


def test_the_processor_is_numpys():
    assert isinstance(arithmetic_on("cpu"), Host)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path):
    run = measured_run(tmp_path)
    with pytest.raises(UsageError, match="device = 'cuda' cannot be used here"):
        ooc.merge(run, device="cuda")


def measured_run(folder):
    matrix = torch.diag(10.0 ** (-0.1 * torch.arange(300, dtype=torch.float32)))
    spec = {"measurements": 60, "operator": {}, "sketch": {"block": 30}}
    run = ooc.plan(spec, folder / "run", operator=matrix)
    ooc.measure(run, operator=matrix)
    return run


@gpu
@needs_gpu
def test_merge_and_recovery_on_a_gpu_give_the_eigenvalues_of_the_processor(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    there = ooc.recover(measured_run(tmp_path / "a"), device="cuda")
    here = ooc.recover(measured_run(tmp_path / "b"))
    assert torch.allclose(there.eigenvalues[:30], here.eigenvalues[:30], rtol=1e-5)


@gpu
@needs_gpu
def test_an_operator_on_a_gpu_is_measured_there(tmp_path):
    matrix = torch.diag(10.0 ** (-0.1 * torch.arange(300, dtype=torch.float32))).cuda()
    eig = ooc.eigh(matrix, measurements=60, run_dir=tmp_path / "run", device="cuda")
    assert torch.allclose(eig.eigenvalues[:10], torch.diag(matrix).cpu()[:10], rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_is_tried_before_a_factory_that_would_fail_on_it(tmp_path):
    operator = {"factory": "decaying", "args": {"n": 50, "rank": 5}, "device": "cuda"}
    with pytest.raises(ooc.OperatorError, match=r"device = 'cuda' cannot be used here: .*--device"):
        ooc.plan({"measurements": 20, "operator": operator}, tmp_path / "run")
