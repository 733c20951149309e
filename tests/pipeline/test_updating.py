"""Updates that are interrupted, repeated, or followed by something else: nothing is added twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError, IncompleteError, UsageError
from skerch_ooc.pipeline.status import status

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (300, 40)


def matrix(seed):
    """A matrix of rank 6."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((SHAPE[0], 6)) @ generator.standard_normal((6, SHAPE[1]))


@pytest.fixture
def files(tmp_path):
    """Matrices in files, by their numbers."""
    for seed in range(4):
        np.save(tmp_path / f"{seed}.npy", matrix(seed))
    return tmp_path


def named(folder, seed, **more):
    return ooc.OperatorSpec("stored", {"path": str(folder / f"{seed}.npy")}, **more)


def run_of(folder, seed=0):
    operator = {"factory": "stored", "args": {"path": str(folder / f"{seed}.npy")}}
    spec = {"kind": "svd", "measurements": 30, "dtype": "float64", "operator": operator}
    run = ooc.plan(spec, folder / "run")
    finish(run)
    return ooc.open_run(folder / "run")


def object_run(folder, seed=0):
    ooc.svd(matrix(seed), measurements=30, run_dir=folder / "run")
    return ooc.open_run(folder / "run")


def finish(run):
    ooc.measure(run)
    ooc.recover(run)


def scales(folder):
    return [part.scale for part in ooc.open_run(folder / "run").plan.parts]


class Failing:
    """A matrix whose product fails after a while."""

    def __init__(self, seed, calls):
        self.matrix, self.calls, self.shape = torch.from_numpy(matrix(seed)), calls, SHAPE

    def __matmul__(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("power failure")
        return self.matrix @ x

    def adjoint(self):
        return self.matrix.mH


class TestOfFactories:
    def test_measured_update_that_is_not_recovered_is_not_added_again(self, files):
        run = run_of(files)
        for _ in range(2):
            run = ooc.update(run, named(files, 1), scale=2)
        assert scales(files) == [1.0, 2.0]
        ooc.recover(run)

    def test_recovered_update_is_added_again_only_if_that_is_said(self, files):
        run = ooc.update(run_of(files), named(files, 1))
        ooc.recover(run)
        with pytest.raises(UsageError, match=r"was added .* before, as summand 1.*--again"):
            ooc.update(run, named(files, 1))
        ooc.update(run, named(files, 1), again=True)
        assert scales(files) == [1.0, 1.0, 1.0]

    def test_extension_in_between_does_not_let_it_be_added_again(self, files):
        run = ooc.update(run_of(files), named(files, 1))
        run = ooc.extend(run, 35)
        finish(run)
        with pytest.raises(UsageError, match="was added"):
            ooc.update(run, named(files, 1))

    def test_other_update_in_between_does_not_let_it_be_added_again(self, files):
        run = ooc.update(run_of(files), named(files, 1))
        run = ooc.update(run, named(files, 2), forget=0.5)
        ooc.recover(run)
        with pytest.raises(UsageError, match="as summand 1"):
            ooc.update(run, named(files, 1))

    def test_other_update_while_one_is_unfinished_names_it(self, files):
        run = ooc.update(run_of(files), named(files, 1))
        next(run.shards.glob("right.p1.*")).unlink()
        with pytest.raises(IncompleteError, match="an update by stored that is not finished"):
            ooc.update(run, named(files, 2))

    def test_original_spec_is_refused_with_what_the_operator_is_now(self, files):
        ooc.update(run_of(files), named(files, 1), scale=0.5)
        with pytest.raises(UsageError, match=r"is now 1 x stored\(.*\) \+ 0\.5 x stored\(.*1\.npy"):
            run_of(files)

    def test_status_says_what_the_operator_is_now(self, files):
        run = ooc.update(run_of(files), named(files, 1), scale=-0.25)
        assert "-0.25 x stored" in status(run).summands


class TestOfObjects:
    def test_the_same_lines_can_be_run_again(self, tmp_path):
        run = object_run(tmp_path)
        for _ in range(2):
            run = ooc.update(run, matrix(1))
        ooc.recover(run)
        assert scales(tmp_path) == [1.0, 1.0]
        with pytest.raises(UsageError, match="again=True"):
            ooc.update(run, matrix(1))

    def test_interrupted_update_goes_on(self, tmp_path):
        run = object_run(tmp_path)
        with pytest.raises(ooc.OperatorError, match="power failure"):
            ooc.update(run, Failing(1, 4))
        run = ooc.update(ooc.open_run(run.directory), matrix(1))
        usv = ooc.recover(run)
        expected = torch.linalg.svdvals(torch.from_numpy(matrix(0) + matrix(1)))
        assert usv.S[0] == pytest.approx(float(expected[0]), rel=1e-6)
        assert scales(tmp_path) == [1.0, 1.0]

    def test_other_object_while_one_is_unfinished_is_told_so(self, tmp_path):
        run = object_run(tmp_path)
        with pytest.raises(ooc.OperatorError, match="power failure"):
            ooc.update(run, Failing(1, 4))
        with pytest.raises(IncompleteError, match=r"an update by a Python object .* not finished"):
            ooc.update(ooc.open_run(run.directory), matrix(2))

    def test_decomposing_the_first_operator_again_is_refused(self, tmp_path):
        ooc.recover(ooc.update(object_run(tmp_path), matrix(1)))
        with pytest.raises(UsageError, match="has been updated since"):
            object_run(tmp_path)

    def test_columns_of_several_objects_cannot_be_added(self, tmp_path):
        run = ooc.update(object_run(tmp_path), matrix(1))
        with pytest.raises(UsageError, match="handed over as Python objects"):
            ooc.extend(run, 35)
        assert len(ooc.open_run(run.directory).plan.amendments) == 2

    def test_changed_object_is_found_while_it_is_measured(self, tmp_path):
        run = ooc.update(object_run(tmp_path), matrix(1))
        next(run.shards.glob("right.p1.*")).unlink()
        with pytest.raises(DriftError):
            ooc.measure(run, operator=matrix(2))

    def test_name_of_a_factory_is_told_from_an_object(self, tmp_path):
        with pytest.raises(UsageError, match=r"OperatorSpec\(factory='a.py:f'\)"):
            ooc.update(object_run(tmp_path), "a.py:f")


def test_assessing_a_result_from_before_an_update_says_so(tmp_path, caplog):
    run = ooc.update(object_run(tmp_path), matrix(1))
    ooc.assess(run)
    assert "before the run was extended or updated" in caplog.text
    caplog.clear()
    ooc.recover(run)
    ooc.assess(run)
    assert caplog.text == ""


def test_update_that_was_killed_before_its_assessment_goes_on(inside, files):
    run_of(files)
    command = ("update", "run", "--factory", "stored", "--arg", "path=1.npy")
    assert inside(*command).returncode == 0
    (files / "run/results/default/assessment.json").unlink()
    assert inside(*command).returncode == 0
    assert (files / "run/results/default/assessment.json").exists()
    assert inside(*command).returncode == 2
