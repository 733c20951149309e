"""A method that a spec leaves out is the default of its kind; a planned run keeps its own."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest
from factories import dense

import skerch_ooc as ooc
from skerch_ooc.algebra.methods.auto import COMPARED
from skerch_ooc.algebra.methods.decompose import decompose
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.base.files import canonical_line
from skerch_ooc.executors.work import Work
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.stages.recover.problems import pose
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.sketch import Round

A = dense(60, dtype="float64")


def spec(**recovery):
    return {"kind": "svd", "measurements": 20, "recovery": recovery}


@pytest.mark.parametrize(("kind", "method"), [("eigh", "nystrom"), ("svd", "auto")])
@pytest.mark.parametrize("table", [{}, {"recovery": {"rank": 5}}], ids=["no table", "no key"])
def test_it_depends_on_the_kind(kind, method, table):
    made = ooc.Spec.from_table({"kind": kind, "measurements": 20, **table})
    assert made.recovery.method == method


def test_settings_made_in_python_have_a_default_of_their_own():
    made = ooc.Spec(measurements=20, kind="svd", recovery=ooc.RecoverySpec(rank=5))
    assert made.recovery == ooc.RecoverySpec("nystrom", rank=5)


def test_what_is_wrong_with_other_keys_is_said():
    with pytest.raises(ooc.UsageError, match=r"unknown key recovery\.ranks; .*did you mean rank"):
        ooc.Spec(measurements=20, kind="svd", recovery={"ranks": 5})
    with pytest.raises(ooc.UsageError, match=r"^kind = \['svd'\]: must be one of eigh, svd"):
        ooc.Spec(measurements=20, kind=["svd"], recovery={"rank": 5})


@pytest.mark.parametrize("method", ["nystrom", "singlepass", "hmt"])
def test_a_run_that_was_planned_with_another_goes_on(tmp_path, method):
    run = ooc.plan(spec(method=method), tmp_path / "run", operator=A)
    again = ooc.plan(spec(), tmp_path / "run", operator=A)
    assert again.plan == run.plan


@pytest.mark.parametrize(("planned", "asked"), [("nystrom", "auto"), ("singlepass", "nystrom")])
def test_a_method_that_is_asked_for_must_be_that_of_the_run(tmp_path, planned, asked):
    ooc.plan(spec(method=planned), tmp_path / "run", operator=A)
    with pytest.raises(ooc.UsageError, match=f"'{planned}'.* in the run, .*'{asked}'.* now"):
        ooc.plan(spec(method=asked), tmp_path / "run", operator=A)


def test_other_settings_are_compared_all_the_same(tmp_path):
    ooc.plan(spec(method="nystrom", rank=5), tmp_path / "run", operator=A)
    with pytest.raises(ooc.UsageError, match=r"rank=5.* in the run, .*rank=6.* now"):
        ooc.plan(spec(rank=6), tmp_path / "run", operator=A)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("auto") / "run"
    ooc.svd(A, measurements=20, run_dir=directory)
    return ooc.open_run(directory)


class TestResult:
    def identity(self, run, name="default"):
        return SealedFile(run.results / name / "svd.h5").identity

    def test_says_which_was_taken(self, run):
        made = self.identity(run)
        assert made["settings"]["method"] == "auto"
        assert made["method"] in COMPARED

    def test_is_that_of_the_method_by_its_name(self, run):
        taken = self.identity(run)["method"]
        ooc.recover(run, method=taken, name="named")
        assert "method" not in self.identity(run, "named")
        with (
            h5py.File(run.results / "default" / "svd.h5") as auto,
            h5py.File(run.results / "named" / "svd.h5") as named,
        ):
            assert np.array_equal(auto["S"][:], named["S"][:])

    def test_tells_of_no_method_that_was_compared(self, run):
        ooc.assess(run)
        page = ooc.report(run).read_text()
        assert "--method" not in page

    def test_recovered_from_a_sketch_for_nystrom_says_it_too(self, tmp_path):
        ooc.svd(A, measurements=20, method="nystrom", run_dir=tmp_path / "run")
        run = ooc.open_run(tmp_path / "run")
        ooc.recover(run, method="auto", name="better")
        assert self.identity(run, "better")["method"] in COMPARED


def test_assessment_says_which_method_was_taken(inside, tmp_path):
    ooc.svd(A, measurements=20, run_dir=tmp_path / "run", dtype="float64")
    taken = SealedFile(tmp_path / "run/results/default/svd.h5").identity["method"]
    assert taken in COMPARED
    assert ooc.assess(tmp_path / "run").method == taken
    assert json.loads(inside("assess", "run", "--json").stdout)["method"] == taken
    shown = inside("assess", "run").stdout
    assert f"method {taken}, taken by auto" in " ".join(shown.split())


def test_assessment_of_a_method_that_was_asked_for_says_none(tmp_path):
    ooc.eigh(A + A.T, measurements=20, run_dir=tmp_path / "run")
    found = ooc.assess(tmp_path / "run")
    assert found.method is None
    assert "method" not in found.as_json()


@pytest.mark.parametrize("method", ["nystrom", "auto"])
def test_a_plan_of_old_cuts_the_range_alone(tmp_path, method):
    first = ooc.plan(spec(method=method), tmp_path / "new", operator=A)
    old = ooc.plan(spec(method=method), tmp_path / "old", operator=A)
    (amendment,) = old.plan.amendments
    assert first.plan.either_cut
    stated = dataclasses.replace(amendment, either_cut=False)
    assert "either_cut" not in stated.as_json()
    (tmp_path / "old/plan.d/0001.json").write_bytes(canonical_line(stated.as_json()))
    ooc.svd(A, measurements=20, method=method, run_dir=tmp_path / "old")
    run = ooc.open_run(tmp_path / "old")
    merged = Merge(Round(run)).run(Work.of())
    problem = pose(run.plan, run.plan.recovery, merged, None).problem
    assert not problem.either_cut
    values = decompose(problem, SOLVERS[method](problem)).values
    result = ooc.recover(run)
    np.testing.assert_allclose(result.S, values, rtol=1e-10)
