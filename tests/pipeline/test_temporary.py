"""A run without a run directory is in a temporary one, as long as its result is used."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

import skerch_ooc as ooc


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def decaying(n=40):
    return np.diag(0.5 ** np.arange(n, dtype=float))


@pytest.mark.parametrize("call", [ooc.eigh, ooc.svd])
def test_result_is_that_of_a_run_with_a_folder_of_its_own(tmp_path, call):
    found = call(decaying(), measurements=20)
    expected = call(decaying(), measurements=20, run_dir=tmp_path / "run")
    assert np.array_equal(found.left_vectors.read_tile(0), expected.left_vectors.read_tile(0))
    assert ooc.assess(found.path.parents[2]) == ooc.assess(tmp_path / "run")


def test_folder_is_removed_when_its_result_is_collected(scratch):
    found = ooc.eigh(decaying(), measurements=20)
    assert [found.path.parents[2]] == list(scratch.iterdir())
    del found
    gc.collect()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("matrix_of", [lambda usv: usv.U, lambda usv: usv.Vh, lambda usv: usv.U.mH])
def test_folder_stays_as_long_as_a_matrix_of_the_result(scratch, matrix_of):
    kept = matrix_of(ooc.svd(decaying(), measurements=20, vectors="implicit"))
    gc.collect()
    assert np.isfinite(kept[:].numpy()).all()
    del kept
    gc.collect()
    assert list(scratch.iterdir()) == []


def test_folder_is_said_once(scratch, caplog):
    caplog.set_level(logging.INFO, "skerch_ooc")
    found = ooc.eigh(decaying(), measurements=20)
    said = [line for line in caplog.messages if "which is removed with its result" in line]
    assert said == [f"the run is in {found.path.parents[2]}, which is removed with its result; "
                    "give run_dir to keep it"]  # fmt: skip


class Failing:
    """An operator that fails after some blocks of four columns."""

    shape, dtype = (40, 40), torch.float64

    def __init__(self, calls):
        self.left = calls

    def __matmul__(self, x):
        self.left -= x.shape[1] == 4
        if self.left < 0:
            raise RuntimeError("enough")
        return torch.from_numpy(decaying()) @ x


def test_what_was_measured_is_kept_where_the_run_fails(scratch, caplog):
    with pytest.raises(ooc.OperatorError, match="enough"):
        ooc.eigh(Failing(3), measurements=20, block=4)
    gc.collect()
    (kept,) = scratch.iterdir()
    assert f"the same call with run_dir = {str(kept)!r} goes on" in caplog.text
    again = ooc.eigh(Failing(100), measurements=20, block=4, run_dir=kept)
    assert again.rank > 0


def test_nothing_is_left_where_nothing_was_measured(scratch):
    with pytest.raises(ooc.UsageError):
        ooc.eigh(decaying(), measurements=41)
    gc.collect()
    assert list(scratch.iterdir()) == []


@pytest.mark.thorough
def test_process_leaves_nothing_behind_nor_does_its_child_take_anything(scratch):
    program = (
        "import os, numpy as np, skerch_ooc as ooc\n"
        "found = ooc.eigh(np.diag(0.5 ** np.arange(40.)), measurements=20)\n"
        "if os.fork() == 0:\n    del found\n    os._exit(0)\n"
        "os.wait()\n"
        "assert found.path.exists()\n"
    )
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (done.returncode, list(scratch.iterdir())) == (0, []), done.stderr
