"""What ``init`` writes runs as it is, says what may be changed, and overwrites nothing."""

from __future__ import annotations

import json
import shlex
import tomllib

import h5py
import numpy as np
import pytest

import skerch_ooc as ooc


@pytest.fixture
def matrix(tmp_path):
    """A small matrix in the test's folder."""
    entries = np.random.default_rng(0).standard_normal((30, 12)) * 0.3 ** np.arange(12)
    np.save(tmp_path / "matrix.npy", entries)
    return entries


def assert_runs(inside, shown, kind):
    """Runs the command that was shown last, and that for a report of what came out."""
    command = shlex.split(shown.stdout.rpartition("next: ")[2])
    assert command[0] == "skerch-ooc"
    done = inside(*command[1:], "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", [pytest.param("hessian", marks=pytest.mark.thorough), "operator"])
def test_what_it_writes_for_an_example_runs_as_it_is(inside, tmp_path, what):
    shown = inside("init", f"--{what}")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 1
    assert 0 < assert_runs(inside, shown, "eigh")["relative_error"] < 1


@pytest.mark.parametrize("folder", [".", "new/deep"])
def test_what_it_writes_for_a_matrix_runs_as_it_is(inside, tmp_path, matrix, folder):
    shown = inside("init", folder, "--matrix", "matrix.npy")
    assert assert_runs(inside, shown, "svd")["relative_error"] < 1e-4
    assert (
        f"the matrix is {matrix.shape[0]} x {matrix.shape[1]}"
        in (tmp_path / folder / "matrix.toml").read_text()
    )


def test_all_values_of_a_matrix_of_few_columns_are_found(inside, tmp_path):
    """With seed 5 the signs that are drawn by default depend on each other."""
    np.save(tmp_path / "matrix.npy", np.random.default_rng(0).standard_normal((150, 4)))
    spec, command = tmp_path / "matrix.toml", ("--run", "run", "--set", "seed=5")
    assert inside("init", "--matrix", "matrix.npy").returncode == 0
    assert "4 singular values" in inside("run", spec, *command).stdout
    assert ooc.assess(tmp_path / "run").relative_error < 1e-12
    signs = inside("run", spec, "--run", "b", "--set", "seed=5", "--set", "sketch.noise=rademacher")
    assert "--set sketch.noise=gaussian" in signs.stdout


def test_arguments_of_the_factory_are_written_into_the_spec(inside, tmp_path, matrix):
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = matrix, matrix[:5]
    assert inside("init", "--matrix", "two.h5").returncode == 2
    shown = inside("init", "--matrix", "two.h5", "--arg", "dataset=b", "--arg", "transpose=true")
    args = tomllib.loads((tmp_path / "matrix.toml").read_text())["operator"]["args"]
    assert args == {"path": "two.h5", "dataset": "b", "transpose": True}
    assert shown.returncode == 0


@pytest.mark.parametrize("name", ["hessian.toml", "hessian.py"])
def test_a_file_that_is_there_is_not_overwritten(inside, tmp_path, name):
    (tmp_path / name).write_text("mine")
    refused = inside("init", "--hessian")
    assert (refused.returncode, (tmp_path / name).read_text()) == (2, "mine")
    assert f"{name} is there already" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "init nothing: give one of --hessian, --matrix FILE, --operator"),
        (["--hessian", "--operator"], "init --hessian and --operator: give one of"),
        (["--matrix", "gone.npy"], "gone.npy"),
        (["--matrix", "matrix.npy", "--arg", "subtrct=row-mean"], "did you mean subtract"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(inside, tmp_path, matrix, given, said):
    refused = inside("init", "out", *given)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "out").exists()


def test_comments_of_a_spec_are_of_keys_with_their_default_values(inside, tmp_path):
    inside("init", "--hessian")
    text = (tmp_path / "hessian.toml").read_text()
    told = text.replace('# dtype = "float32"', "#").replace("\n# ", "\n")
    body = told[told.index("kind =") :]
    assert tomllib.loads(body)["recovery"] == {
        "method": "nystrom", "rank": "all", "which": "LM", "vectors": "stored",
    }  # fmt: skip
    assert tomllib.loads(body)["sketch"] == {"test_measurements": 30, "block": "auto"}
    assert max(map(len, text.splitlines())) <= 100
