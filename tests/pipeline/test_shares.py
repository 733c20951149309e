"""Stages in shares: what the elements of a job array do, in any order, and again."""

from __future__ import annotations

import signal
import time

import pytest
from contents import run_contents
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.executors.share import Share
from skerch_ooc.planning import tasks
from skerch_ooc.store.shards import list_shards

pytestmark = pytest.mark.usefixtures("no_late_files")

ROWS = 9_000
"""Three tiles: so many that merge and vectors have two tasks, as tasks are cut here."""


@pytest.fixture(autouse=True)
def tasks_of_two_tiles(monkeypatch):
    monkeypatch.setattr(tasks, "SMALLEST_RUN", 1)


CASES = {
    "eigh": {},
    "svd": {"kind": "svd"},
    "svd hmt": {"kind": "svd", "recovery": {"method": "hmt"}},
    "double": {"dtype": "float64"},
}


def spec_of(folder, case, n=ROWS):
    more = CASES[case]
    return write_spec(
        folder, "synthetic", 12, sketch={"test_measurements": 4, "block": 4},
        operator={"args": {"n": n, "rank": 6, "dtype": more.get("dtype", "float32")}}, **more,
    )  # fmt: skip


def stages_of(rounds):
    """All stages in order, as people name them."""
    for number in range(1, rounds + 1):
        suffix = "" if number == 1 else f".{number}"
        yield from (f"{name}{suffix}" for name in ("measure", "merge", "solve", "vectors"))
    yield "assess"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("case", "of"),
    [
        pytest.param("eigh", 1, marks=pytest.mark.soak),
        ("eigh", 3),
        pytest.param("svd", 3, marks=pytest.mark.soak),
        ("svd hmt", 3),
        pytest.param("double", 3, marks=pytest.mark.soak),
    ],
)
def test_shares_of_all_stages_make_the_files_of_a_serial_run(inside, tmp_path, case, of):
    spec = spec_of(tmp_path, case)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    for stage in stages_of(run.plan.rounds):
        for index in reversed(range(of)):
            done = inside("task", "run", stage, "--index", index, "--of", of, "--threads", 1)
            assert done.returncode == 0, done.stderr
    assert run_contents(run.directory) == expected
    assert list(run.directory.glob("results/default/*.t0-2.h5"))


def test_small_run_has_nothing_to_share_in_merge_and_vectors(inside, tmp_path):
    spec = spec_of(tmp_path, "eigh", n=2000)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    ooc.plan(spec, tmp_path / "run", threads=1)
    for stage in stages_of(1):
        assert inside("task", "run", stage, "--index", 0, "--of", 1).returncode == 0
    assert run_contents(tmp_path / "run") == expected


def test_share_that_is_done_again_applies_nothing(inside, tmp_path, call_log):
    ooc.plan(spec_of(tmp_path, "eigh", n=2000), tmp_path / "run", threads=1)
    arguments = ("task", "run", "measure", "--index", 1, "--of", 2)
    counts = []
    for _ in range(2):
        assert inside(*arguments).returncode == 0
        counts.append(len(call_log()))
    assert counts[0] == counts[1]


def test_tasks_keep_their_number_when_others_are_done(inside, tmp_path):
    ooc.plan(spec_of(tmp_path, "eigh", n=2000), tmp_path / "run", threads=1)
    names = []
    for index in (0, 1, 0, 1):
        inside("task", "run", "measure", "--index", index, "--of", 2)
        names.append(len(list((tmp_path / "run/shards").glob("*.h5"))))
    assert names == [2, 4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("measure", "--index", 2, "--of", 2), "the index must be from 0 to 1"),
        (("measure", "--index", 0, "--of", 0), "--of 0"),
        (("measures", "--index", 0, "--of", 1), "must be one of measure, merge"),
        (("measure.2", "--index", 0, "--of", 1), "must be of a round from 1 to 1"),
        (("assess.2", "--index", 0, "--of", 1), "all but assess"),
    ],
)
def test_share_that_does_not_exist_is_refused(inside, tmp_path, arguments, text):
    ooc.plan(spec_of(tmp_path, "eigh", n=2000), tmp_path / "run", threads=1)
    done = inside("task", "run", *arguments)
    assert (done.returncode, text in done.stderr) == (2, True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stage", ["merge", "solve", "vectors", "assess"])
def test_stage_whose_measurements_are_missing_exits_with_4(inside, tmp_path, stage):
    ooc.plan(spec_of(tmp_path, "eigh", n=2000), tmp_path / "run", threads=1)
    done = inside("task", "run", stage, "--index", 0, "--of", 1)
    assert (done.returncode, "skerch-ooc measure" in done.stderr) == (4, True)


def test_later_round_before_its_time_exits_with_4(inside, tmp_path):
    ooc.plan(spec_of(tmp_path, "svd hmt", n=2000), tmp_path / "run", threads=1)
    done = inside("task", "run", "measure.2", "--index", 0, "--of", 1)
    assert (done.returncode, "round 1 is not complete" in done.stderr) == (4, True)


def test_tolerance_that_is_not_met_grows_the_plan_and_exits_with_4(inside, tmp_path):
    spec = write_spec(
        tmp_path, "matrix", 120, tolerance=1e-4, sketch={"test_measurements": 12, "block": 8}
    )
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    codes = []
    for _ in range(12):
        for stage in ("measure", "assess"):
            done = inside("task", "run", stage, "--index", 0, "--of", 1, "--threads", 1)
        codes.append(done.returncode)
        if done.returncode == 0:
            break
    assert codes == [4] * (len(codes) - 1) + [0]
    assert len(ooc.open_run(run.directory).plan.amendments) == len(codes)


def test_shares_have_no_task_in_common():
    class Numbered:
        def __init__(self, number):
            self.number = number

    numbered = [Numbered(number) for number in range(17)]
    chosen = [task.number for index in range(5) for task in Share(index, 5).chosen(numbered)]
    assert sorted(chosen) == list(range(17))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_share_that_is_told_to_stop_finishes_its_task_and_ends_with_0(
    forked_command, tmp_path, number
):
    spec = write_spec(
        tmp_path, "matrix", 40, operator={"args": {"delay": 0.1}}, sketch={"block": 2}
    )
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    process = forked_command.start("task", "run", "measure", "--index", 0, "--of", 1)
    end = time.monotonic() + 60
    while not list_shards(run.shards):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "stopped in good order" in err) == (0, True)
    assert 0 < len(list_shards(run.shards)) < 35
