"""Mistakes in calls from Python are told as those on the command line are."""

from __future__ import annotations

import inspect

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


class TestArgumentsOfFactories:
    @pytest.fixture
    def planned(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "import torch\n\n"
            "def make(size, *, hidden=3, device='cpu'):\n    return torch.eye(size)\n\n"
            "def any(**options):\n    return torch.eye(options['size'])\n"
        )

        def plan(name, **args):
            operator = {"factory": f"mine.py:{name}", "args": args}
            table = {"measurements": 4, "operator": operator}
            return ooc.plan(ooc.Spec.from_table(table, tmp_path), tmp_path / "run")

        return plan

    def test_unknown_one_is_answered_with_the_one_that_is_like_it(self, planned):
        said = r"operator.args.hiden: mine.py:make has no such argument; allowed here: size, hidden"
        with pytest.raises(ooc.OperatorError, match=rf"^{said}; did you mean hidden\?$"):
            planned("make", size=8, hiden=4)

    def test_one_that_is_missing_is_named(self, planned):
        with pytest.raises(ooc.OperatorError, match=r"^the key operator.args.size is missing"):
            planned("make", hidden=4)

    def test_functions_that_take_all_judge_themselves(self, planned):
        assert planned("any", size=8, hiden=4).plan.identity.shape == (8, 8)

    def test_misspelt_option_of_a_matrix_on_disk_is_answered_too(self, tmp_path):
        np.save(tmp_path / "a.npy", np.eye(8))
        operator = {"factory": "stored", "args": {"path": "a.npy", "subtrct": "row-mean"}}
        table = {"measurements": 4, "operator": operator}
        with pytest.raises(ooc.OperatorError, match=r"'subtrct' is unknown.*did you mean subtract"):
            ooc.plan(ooc.Spec.from_table(table, tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ooc.recover("runs/a", metod="hmt"), "recover has no argument metod"),
        (lambda: ooc.PCA(n_component=3), "did you mean n_components"),
        (lambda: ooc.Spec(30, sed=2), "did you mean seed"),
        (lambda: ooc.Dask(worker=2), "did you mean workers"),
        (lambda: ooc.plan({}, rundir="runs/a"), "did you mean run_dir"),
    ],
)
def test_misspelt_argument_is_answered_with_the_one_that_is_like_it(call, said):
    with pytest.raises(TypeError, match=said) as caught:
        call()
    assert isinstance(caught.value, ooc.UsageError)


def test_every_public_function_tells_its_arguments():
    told = []
    for name in ooc.__all__:
        function = getattr(ooc, name)
        if inspect.isfunction(function) and inspect.signature(function).parameters:
            with pytest.raises(ooc.UsageError, match=r"nosuch; allowed here: "):
                function(*[None] * (name in ("eigh", "svd")), nosuch=1)
            told.append(name)
    assert len(told) > 15
