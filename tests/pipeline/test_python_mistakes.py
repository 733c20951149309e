"""Mistakes in calls from Python are told as those on the command line are."""

from __future__ import annotations

import numpy as np
import pytest

import skerch_ooc as ooc


@pytest.mark.parametrize("call", [ooc.eigh, ooc.svd])
def test_misspelt_option_is_named_with_the_one_that_is_like_it(tmp_path, call):
    with pytest.raises(ooc.UsageError, match=r"unknown option mehtod.*did you mean method"):
        call(np.eye(8), measurements=4, run_dir=tmp_path / "run", mehtod="hmt")
    assert not (tmp_path / "run").exists()


def test_misspelt_device_is_refused_for_operators_of_numpy_too(tmp_path):
    with pytest.raises(ooc.OperatorError, match="device = 'nosuch' is no device"):
        ooc.eigh(np.eye(8), measurements=4, run_dir=tmp_path / "run", device="nosuch")


def test_assess_takes_a_run_or_its_directory(tmp_path):
    ooc.eigh(np.eye(8), measurements=8, run_dir=tmp_path / "run", test_measurements=10)
    assert ooc.assess(tmp_path / "run") == ooc.assess(ooc.open_run(tmp_path / "run"))
    assert ooc.assess(str(tmp_path / "run")) == ooc.assess(tmp_path / "run")
