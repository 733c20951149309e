"""Runs submitted to a real Slurm: cancelled, requeued, out of time, without their node."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from clusters import needs_own_views
from contents import run_contents
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from skerch_ooc.base.patience import FILE_WAIT
from skerch_ooc.store.shards import list_shards

pytestmark = pytest.mark.slurm
MAX_ARRAY_SIZE = 5
WORKFLOWS = Path(__file__).resolve().parent.parent.parent / "workflows"
ROWS = 140_000
"""So many that merge and vectors have two tasks."""

CASES = {"eigh": {}, "hmt": {"recovery": {"method": "hmt"}}}
TASKS = 23


def spec_of(folder, case="eigh", delay=0.0):
    """A run of 23 tasks in the first round."""
    return write_spec(
        folder, "synthetic", 34, sketch={"test_measurements": 12, "block": 2},
        operator={"args": {"n": ROWS, "rank": 6, "delay": delay}}, **CASES[case],
    )  # fmt: skip


def command(slurm, *arguments, code=0):
    """Runs a command where there is a Slurm; what it printed."""
    done = subprocess.run(
        ["skerch-ooc", *map(str, arguments)], env=slurm.environment, capture_output=True,
        text=True, check=False, cwd=slurm.folder, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def submit(slurm, run, *options, elements=TASKS, code=0, further=()):
    return command(
        slurm, "submit", run.directory, f"--elements={elements}", *options, "--",
        "--mem-per-cpu=0", *further, code=code,
    )  # fmt: skip


def status_of(slurm, run):
    return json.loads(command(slurm, "status", run.directory, "--json"))


def is_done(run):
    return (run.results / "default/assessment.json").exists()


def logs_of(run, submission="*"):
    paths = sorted((run.logs / "slurm").glob(f"{submission}/*.log"))
    return "\n".join(path.read_text() for path in paths)


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


def require_each_block_once(calls):
    """Of the blocks of two columns, which no probe has."""
    blocks = [call["crc"] for call in calls if call["width"] == 2]
    assert len(blocks) == len(set(blocks)) == TASKS


def require_files_of_a_serial_recovery(run, copy):
    """Of shards that were measured by several processes the rest follows bit for bit."""
    shutil.copytree(run.directory, copy)
    for name in ("sketch", "results"):
        shutil.rmtree(copy / name)
        (copy / name).mkdir()
    ooc.recover(ooc.open_run(copy), threads=1)
    assert run_contents(run.directory) == run_contents(copy)


def test_digits_hessian_is_measured_and_recovered_by_submit_alone(
    tmp_path, empty_queue, real_python
):
    """Each element is a Python of its own, as everybody's; those of other tests are forked."""
    spec, smaller = (
        WORKFLOWS / "digits_hessian.toml",
        ["measurements=60", "operator.args.hidden=12"],
    )
    expected = run_contents(whole_run(spec, tmp_path / "serial", overrides=smaller))
    run = ooc.plan(ooc.Spec.from_toml(spec, smaller), tmp_path / "run", threads=1)
    submit(empty_queue, run, "--cpus-per-task=1", "--time=30", elements=2)
    empty_queue.wait()
    assert run_contents(run.directory) == expected
    assert status_of(empty_queue, run)["results"]["default"] < 1


@pytest.mark.parametrize("case", [pytest.param("eigh", marks=pytest.mark.thorough), "hmt"])
def test_more_tasks_than_an_array_may_have_elements_are_packed(tmp_path, empty_queue, case):
    spec = spec_of(tmp_path, case)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    said = submit(empty_queue, run)
    empty_queue.wait()
    assert run_contents(run.directory) == expected
    assert "5 elements of at most 5 tasks" in said


def test_names_may_have_spaces_quotes_and_other_alphabets(tmp_path, empty_queue):
    folder = tmp_path / 'it\'s a "test" äß 行列 $HOME 50% %j\n#SBATCH --hold'
    folder.mkdir()
    run = ooc.plan(spec_of(folder), folder / "run it", threads=1)
    setup = folder / "set up"
    setup.write_text('export SKERCH_OOC_TEST=1 # it\'s "quoted"\n')
    submit(empty_queue, run, '--job-name=it\'s a "name" äß', "--setup", setup)
    empty_queue.wait()
    assert is_done(run)
    state = status_of(empty_queue, run)["slurm"]
    assert {e["state"] for job in state["jobs"] for e in job["elements"]} == {"done"}


INTERFERENCE = {
    "cancelled": lambda slurm, element: slurm.call("scancel", element),
    "requeued": lambda slurm, element: slurm.call("scontrol", "requeue", element),
    "without its node's daemon": lambda slurm, _: (slurm.kill_node(), slurm.start_node()),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", INTERFERENCE)
def test_chain_goes_on_after_an_element_that_is(tmp_path, empty_queue, call_log, what):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    run = ooc.plan(spec_of(tmp_path, delay=0.3), tmp_path / "run", threads=1)
    submit(empty_queue, run)
    wait_for_shards(run, 3)
    published = [(len(call_log()), list_shards(run.shards))]
    INTERFERENCE[what](empty_queue, random.Random(3).choice(elements_at_work(empty_queue)))
    empty_queue.wait()
    require_no_product_of_a_published_shard(run, published, call_log())
    require_files_of_a_serial_recovery(run, tmp_path / "copy")
    singles = [call for call in call_log() if call["width"] == 1]
    # The plan's own, and one to compare with the fingerprint in each process that measured.
    assert len({call["pid"] for call in singles}) >= len(singles) - 2


@pytest.mark.thorough
def test_chain_submits_what_is_missing_when_elements_run_out_of_time(
    tmp_path, empty_queue, call_log
):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    run = ooc.plan(spec_of(tmp_path, delay=3.5), tmp_path / "run", threads=1)
    submit(empty_queue, run, "--time=1", elements=1)
    empty_queue.wait()
    assert is_done(run)
    first = logs_of(run, "0001")
    assert "stopped in good order" in first
    assert "submitted again, as 0002" in first
    assert "CANCELLED" not in first
    require_each_block_once(call_log())


def test_element_that_slurm_warns_stops_in_good_order_and_the_chain_goes_on(
    tmp_path, empty_queue, call_log
):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    run = ooc.plan(spec_of(tmp_path, delay=0.3), tmp_path / "run", threads=1)
    submit(empty_queue, run, elements=1)
    wait_for_shards(run, 3)
    # As Slurm does before the end of a job; whether it was heard is told by the log.
    (element,) = elements_at_work(empty_queue)
    empty_queue.call("scancel", "--batch", "--signal=USR1", element, check=False)
    empty_queue.wait()
    assert is_done(run)
    assert "stopped in good order" in logs_of(run, "0001")
    require_each_block_once(call_log())


def test_end_of_the_job_is_known_where_slurm_says_it(tmp_path, empty_queue, call_log):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    setup = tmp_path / "setup.sh"
    setup.write_text("export SLURM_JOB_END_TIME=$(($(date +%s) + 34))\n")
    run = ooc.plan(spec_of(tmp_path, delay=0.3), tmp_path / "run", threads=1)
    submit(empty_queue, run, "--setup", setup, elements=1)
    empty_queue.wait()
    assert is_done(run)
    assert "submitted again, as 0002" in logs_of(run, "0001")
    require_each_block_once(call_log())


def test_chain_gives_up_when_nothing_is_done_any_more_and_says_why(tmp_path, empty_queue):
    marker = tmp_path / "down"
    spec = write_spec(tmp_path, "failing", 20, operator={"args": {"marker": str(marker)}})
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    marker.touch()
    submit(empty_queue, run, "--tries=2")
    empty_queue.wait()
    state = status_of(empty_queue, run)["slurm"]
    assert state["submission"] == "0003"
    assert "measure" in Path(state["last_failing"]).name
    assert "the licence server is down" in state["reason"]
    assert "the last 3 submission(s) have changed nothing" in logs_of(run, "0003")
    marker.unlink()
    command(empty_queue, "submit", run.directory)
    empty_queue.wait()
    assert is_done(run)


def test_only_elements_with_missing_tasks_are_submitted_again(tmp_path, empty_queue, call_log):
    empty_queue.environment["SKERCH_OOC_TEST_LOG"] = os.environ["SKERCH_OOC_TEST_LOG"]
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    ooc.measure(run, threads=1)
    lost = sorted(run.shards.glob("*.h5"))[7]
    lost.unlink()
    before = len(call_log())
    assert re.search(r"measure +job [0-9]+, 1 element\n", submit(empty_queue, run))
    empty_queue.wait()
    assert is_done(run)
    assert sorted(call["width"] for call in call_log()[before:]) == [1, 2]


def test_run_that_is_complete_has_nothing_to_submit(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    whole_run(tmp_path / "spec.toml", tmp_path / "run")
    assert "nothing to submit" in submit(empty_queue, run)
    assert empty_queue.queue() == []


def test_submission_while_another_is_in_the_queue_is_refused_unless_told(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path, delay=1.0), tmp_path / "run", threads=1)
    submit(empty_queue, run, "--for", "measure=--hold")
    said = submit(empty_queue, run, code=2)
    assert "still in the queue (PENDING)" in said
    assert "scancel" in said
    state = status_of(empty_queue, run)["slurm"]
    assert state["queue"] == "squeue answered"
    assert state["jobs"][0]["elements"][0]["state"] == "PENDING"
    assert "wait: " in command(empty_queue, "status", run.directory)
    submit(empty_queue, run, "--again", "--for", "measure=--hold")


def test_dry_run_prints_what_would_be_run_and_submits_nothing(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    said = submit(empty_queue, run, "--dry-run", "--throttle=2")
    assert "sbatch --parsable --array=0-4%2" in said
    assert not (run.logs / "slurm").exists()
    assert empty_queue.queue() == []


def test_what_sbatch_refuses_is_an_error_with_its_text(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    said = submit(empty_queue, run, "--partition=nowhere", code=2)
    assert "invalid partition specified: nowhere" in said


def test_stage_that_is_refused_takes_those_before_it_along(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path, delay=1.0), tmp_path / "run", threads=1)
    said = submit(empty_queue, run, "--for", "assess=--partition=nowhere", code=2)
    assert "assess was not submitted" in said
    assert "were cancelled" in said
    empty_queue.wait()
    assert not list_shards(run.shards)


def test_tolerance_that_is_not_met_yet_is_measured_on_by_the_chain(tmp_path, empty_queue):
    spec = write_spec(
        tmp_path, "matrix", 120, tolerance=1e-4, sketch={"test_measurements": 12, "block": 8}
    )
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    submit(empty_queue, run)
    empty_queue.wait()
    assert is_done(run)
    assert len(ooc.open_run(run.directory).plan.amendments) > 2


def test_rounds_that_follow_the_pairs_are_submitted_by_the_chain(tmp_path, empty_queue):
    spec = write_spec(
        tmp_path, "synthetic", 4 * 14, sketch={"test_measurements": 8, "block": 2},
        operator={"args": {"n": ROWS, "rank": 40, "rate": 0.05}}, recovery={"rank": 8},
        pairs_tolerance=1e-4, round_width=4,
    )  # fmt: skip
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    submit(empty_queue, run, elements=3)
    empty_queue.wait()
    assert is_done(run)
    found = ooc.assess(run).pairs
    # More than are submitted ahead.
    assert (found.met, found.rounds > 5) == (8, True)
    expected = whole_run(spec, tmp_path / "serial")
    assert run_contents(run.directory) == run_contents(expected)


def test_one_job_with_workers_makes_the_files_of_a_serial_run(tmp_path, empty_queue):
    spec = spec_of(tmp_path, "hmt")
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    run = ooc.plan(spec, tmp_path / "it's a run", threads=1)
    command(empty_queue, "submit", run.directory, "--executor=dask", "--workers=2", "--time=20",
            "--", "--mem-per-cpu=0")  # fmt: skip
    empty_queue.wait()
    assert run_contents(run.directory) == expected
    jobs = status_of(empty_queue, run)["slurm"]["jobs"]
    assert [(job["stage"], job["elements"][0]["state"]) for job in jobs] == [
        ("dask", "done"), ("check", "done"),
    ]  # fmt: skip


def test_check_submits_again_what_the_last_stage_has_left(tmp_path, empty_queue):
    setup = tmp_path / "setup.sh"
    once = tmp_path / "once"
    # The assessment is killed, as by its limit of memory, the first time.
    setup.write_text(
        f'[[ $SLURM_JOB_NAME != *assess ]] || ! mkdir "{once}" 2>/dev/null || kill -9 $$\n'
    )
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    submit(empty_queue, run, "--setup", setup)
    empty_queue.wait()
    assert is_done(run)
    assert "submitted again, as 0002" in logs_of(run, "0001")


@pytest.mark.thorough
def test_killed_vectors_of_a_run_that_grew_are_made_again_as_vectors(tmp_path, empty_queue):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    whole_run(tmp_path / "spec.toml", run.directory)
    ooc.extend(run, 40)
    setup = tmp_path / "setup.sh"
    once = tmp_path / "once"
    setup.write_text(
        f'[[ $SLURM_JOB_NAME != *vectors ]] || ! mkdir "{once}" 2>/dev/null || kill -9 $$\n'
    )
    submit(empty_queue, run, "--setup", setup)
    empty_queue.wait()
    assert is_done(run)
    second = run.logs / "slurm/0002"
    assert [path.stem for path in sorted(second.glob("*.sh"))] == ["assess", "check", "vectors"]


def test_node_that_does_not_see_the_run_is_named_with_how_to_do_without_it(
    empty_queue, tmp_path_factory
):
    needs_own_views()
    slurm, folder = empty_queue, tmp_path_factory.mktemp("shared")
    run = ooc.plan(spec_of(folder), folder / "run", memory="4GiB", threads=1)
    slurm.environment[FILE_WAIT] = "1"
    with slurm.blind_node(folder) as node:
        submit(slurm, run, elements=2, code=0, further=[f"--nodelist={node}"])
        slurm.wait()
        shown = " ".join(command(slurm, "status", run.directory).split())
        assert f"left no log: look whether {node} sees" in shown
        assert f"-- --exclude={node}" in shown
        submit(slurm, run, elements=2, further=[f"--exclude={node}"])
        slurm.wait()
    slurm.environment.pop(FILE_WAIT)
    assert is_done(run)


def test_late_logs_and_shards_are_waited_for_and_nothing_is_measured_twice(empty_queue, tmp_path):
    slurm = empty_queue
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", memory="4GiB", threads=1)
    submit(slurm, run, elements=2)
    # The first of the elements that merge finds shards hidden, as a slow network would have it.
    while logs_of(run).count("ended with exit code 0") < 2:
        time.sleep(0.02)
    hidden = sorted(run.shards.glob("right*"))[:3]
    for path in hidden:
        path.rename(tmp_path / path.name)
    time.sleep(4)
    for path in hidden:
        (tmp_path / path.name).rename(path)
    slurm.wait()
    assert is_done(run)
    assert "submitted again" not in logs_of(run)
    measured = [one for one in run.receipts() if one["stage"] == "measure"]
    assert sum(one["products"] for one in measured) == 46
