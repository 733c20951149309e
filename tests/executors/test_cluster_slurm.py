"""The plain scripts of cluster/slurm on a real Slurm: copied, changed, submitted by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from contents import run_contents
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc

pytestmark = pytest.mark.slurm
SCRIPTS = Path(__file__).resolve().parent.parent.parent / "cluster" / "slurm"
ROWS = 140_000


def spec_of(folder):
    return write_spec(
        folder, "synthetic", 24, sketch={"test_measurements": 4, "block": 2},
        operator={"args": {"n": ROWS, "rank": 6}}, recovery={"method": "hmt"},
    )  # fmt: skip


def chain(slurm, run, *options, **environment):
    """Submits all stages; what was printed."""
    done = subprocess.run(
        ["bash", str(SCRIPTS / "chain.sh"), str(run), "--mem-per-cpu=0", *options],
        env=slurm.environment | {"ELEMENTS": "3", "ROWS": "2", "ROUNDS": "2"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_chain_of_arrays_makes_the_files_of_a_serial_run_whatever_its_name(tmp_path, empty_queue):
    spec = spec_of(tmp_path)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    folder = tmp_path / 'it\'s a "test" äß 行列 $HOME'
    folder.mkdir()
    run = ooc.plan(spec, folder / "run it", threads=1)
    chain(empty_queue, run.directory, "--job-name=it's a name")
    empty_queue.wait()
    assert run_contents(run.directory) == expected
    assert list(run.logs.glob("measure.*_2.log"))


def test_stage_after_one_that_failed_says_what_is_missing(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    subprocess.run(
        ["sbatch", "--mem-per-cpu=0", f"--output={run.logs}/merge.log", "--array=0",
         str(SCRIPTS / "stage.sbatch"), str(run.directory), "merge", "1"],
        env=empty_queue.environment, check=True, capture_output=True,
    )  # fmt: skip
    empty_queue.wait()
    assert "28 of 28 columns are not measured yet" in (run.logs / "merge.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (["nowhere"], {}, "is no planned run"),
        (["run"], {"ELEMENTS": "none"}, "must be positive integers"),
        (["run", "--partition=nowhere"], {}, "sbatch refused measure"),
        (["run", "--mem-per-cpu=0"], {"ELEMENTS": "2000"}, "sbatch refused measure"),
    ],
)
def test_chain_that_cannot_be_submitted_is_refused_with_the_reason(
    tmp_path, empty_queue, arguments, options, text
):
    ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    done = subprocess.run(
        ["bash", str(SCRIPTS / "chain.sh"), *arguments], cwd=tmp_path,
        env=empty_queue.environment | options, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr
