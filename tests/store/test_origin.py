"""Shards note of which operator they are: those of another one are named, though of one plan."""

from __future__ import annotations

import shutil

import pytest
from factories import dense
from operators import Operator

import skerch_ooc as ooc
from skerch_ooc.base.errors import DriftError

SPEC = {"measurements": 12, "sketch": {"test_measurements": 6}}


def measured(directory, matrix):
    operator = Operator(matrix)
    run = ooc.plan(SPEC, directory, operator=operator, threads=1)
    ooc.measure(run, operator=operator, threads=1)
    return run


@pytest.fixture
def run(tmp_path):
    return measured(tmp_path / "run", dense(40))


@pytest.fixture
def exchanged(run, tmp_path):
    """A run that has all shards of another one of the same plan, whose operator is twice its."""
    other = measured(tmp_path / "other", 2 * dense(40))
    assert other.plan.run_id == run.plan.run_id
    shutil.rmtree(run.shards)
    shutil.copytree(other.shards, run.shards)
    return run


def test_shards_that_are_all_of_another_operator_are_not_merged(exchanged):
    with pytest.raises(DriftError, match="was measured with another operator than that of"):
        ooc.merge(exchanged, threads=1)


def test_verify_names_each_of_them(exchanged, inside):
    done = inside("verify", "run")
    names = [path.name for path in exchanged.shards.iterdir()]
    assert (done.returncode, all(name in done.stderr for name in names)) == (5, True)


def test_fingerprint_that_was_made_again_elsewhere_differs_by_rounding_alone(run):
    own = run.fingerprint()
    pairs = [[(1 + 1e-12) * each for each in pair] for pair in own["functionals"]]
    run.fingerprint_path(0).unlink()
    run.publish_fingerprint({"functionals": pairs, "norm": own["norm"]})
    ooc.merge(run, threads=1)
    assert list(run.sketch.glob("*/total.h5"))
