"""Job arrays on a real Slurm: cancelled, requeued, out of time, without their node."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from conftest import write_spec
from contents import run_contents
from slurmd import missing_programs, slurm_in
from test_executors import whole_run

import skerch_ooc as ooc
from skerch_ooc.noise import draw
from skerch_ooc.partition import Range
from skerch_ooc.shards import list_shards

pytestmark = pytest.mark.slurm
SCRIPTS = Path(__file__).resolve().parent.parent / "cluster" / "slurm"
ROWS = 140_000
CASES = {"eigh": {}, "hmt": {"recovery": {"method": "hmt"}}}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this machine."""
    missing = missing_programs()
    if missing and os.environ.get("SKERCH_OOC_REQUIRE_SLURM"):
        pytest.fail(f"Slurm is required here, and there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"Slurm is not installed: there is no {', '.join(missing)}")
    # Its socket's path must be short.
    folder = Path(tmp_path_factory.mktemp("s"))
    with slurm_in(folder) as started:
        bin_ = folder / "bin"
        bin_.mkdir()
        command = bin_ / "skerch-ooc"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m skerch_ooc "$@"\n')
        command.chmod(0o755)
        started.environment["PATH"] = f"{bin_}:{started.environment['PATH']}"
        yield started


@pytest.fixture
def empty_queue(slurm):
    """The Slurm, with no jobs of an earlier test."""
    yield slurm
    slurm.call("scancel", "--user", str(os.getuid()), check=False)
    slurm.wait()


def spec_of(folder, case="eigh", delay=0.0):
    return write_spec(
        folder, "synthetic", 24, sketch={"test_measurements": 4, "block": 2},
        operator={"args": {"n": ROWS, "rank": 6, "delay": delay}}, **CASES[case],
    )  # fmt: skip


def chain(slurm, run, *options, **environment):
    """Submits all stages; what was printed."""
    done = subprocess.run(
        ["bash", str(SCRIPTS / "chain.sh"), str(run), "--mem-per-cpu=0", *options],
        env=slurm.environment | {"ELEMENTS": "3", "ROWS": "2"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def elements_at_work(slurm):
    return [line.split()[0] for line in slurm.queue() if line.endswith("RUNNING")]


def wait_for_shards(run, count):
    end = time.monotonic() + 60
    while len(list_shards(run.shards)) < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def require_no_product_of_a_published_shard(run, published, calls):
    identity = run.plan.identity
    for position, shards in published:
        later = {call["crc"] for call in calls[position:]}
        known = {
            zlib.crc32(
                draw(identity.noise[shard.role], identity.seed, shard.role,
                     Range(0, identity.shape[0]), shard.columns, identity.dtype).tobytes()
            )
            for shard in shards
        }  # fmt: skip
        assert not later & known


@pytest.mark.parametrize("case", CASES)
def test_chain_of_arrays_makes_the_files_of_a_serial_run(tmp_path, empty_queue, case):
    spec = spec_of(tmp_path, case)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    chain(empty_queue, run.directory, ROUNDS=str(run.plan.rounds))
    empty_queue.wait()
    assert run_contents(run.directory) == expected
    assert (run.results / "default/assessment.json").exists()


def test_names_may_have_spaces_quotes_and_other_alphabets(tmp_path, empty_queue):
    folder = tmp_path / 'it\'s a "test" äß 行列 $HOME'
    folder.mkdir()
    spec = spec_of(folder)
    run = ooc.plan(spec, folder / "run it", threads=1)
    chain(empty_queue, run.directory, "--job-name=it's a name")
    empty_queue.wait()
    assert (run.results / "default/assessment.json").exists()
    assert list(run.logs.glob("measure.*_2.log"))


INTERFERENCE = {
    "cancelled": lambda slurm, element: slurm.call("scancel", element),
    "requeued": lambda slurm, element: slurm.call("scontrol", "requeue", element),
    "without its node's daemon": lambda slurm, _: (slurm.kill_node(), slurm.start_node()),
}


@pytest.mark.parametrize("what", INTERFERENCE)
def test_element_that_is(tmp_path, empty_queue, call_log, what):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    run = ooc.plan(spec_of(tmp_path, delay=0.3), tmp_path / "run", threads=1)
    (tmp_path / "other").mkdir()
    expected = tmp_path / "expected"
    chain(empty_queue, run.directory)
    wait_for_shards(run, 3)
    shards = list_shards(run.shards)
    published = [(len(call_log()), shards)]
    INTERFERENCE[what](empty_queue, random.Random(3).choice(elements_at_work(empty_queue)))
    empty_queue.wait()
    published.append((len(call_log()), list_shards(run.shards)))
    chain(empty_queue, run.directory)
    empty_queue.wait()
    require_no_product_of_a_published_shard(run, published, call_log())
    shutil.copytree(run.directory, expected)
    for name in ("sketch", "results"):
        shutil.rmtree(expected / name)
        (expected / name).mkdir()
    ooc.recover(ooc.open_run(expected), threads=1)
    assert run_contents(run.directory) == run_contents(expected)
    singles = [call for call in call_log() if call["width"] == 1]
    # The plan's own, and one to compare with the fingerprint in each process that measured.
    assert len({call["pid"] for call in singles}) >= len(singles) - 2


def test_element_that_runs_out_of_time_finishes_its_task_and_the_next_chain_the_rest(
    tmp_path, empty_queue
):
    run = ooc.plan(spec_of(tmp_path, delay=3.0), tmp_path / "run", threads=1)
    # Slurm counts minutes; a signal 50 s before the end of one.
    chain(empty_queue, run.directory, "--time=1", "--signal=B:USR1@50", ELEMENTS="1")
    empty_queue.wait()
    measured = len(list_shards(run.shards))
    assert 0 < measured < 14
    (log,) = run.logs.glob("measure.*.log")
    assert "stopped in good order" in log.read_text()
    assert not (run.results / "default").exists()
    chain(empty_queue, run.directory, ELEMENTS="2")
    empty_queue.wait()
    assert (run.results / "default/assessment.json").exists()


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
