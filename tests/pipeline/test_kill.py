"""SIGKILL at random moments: nothing published is lost, no product of it is repeated."""

from __future__ import annotations

import random
import signal
import time
import zlib
from functools import cache

import pytest
from commands import CommandLine
from contents import run_contents
from specs import write_spec

from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from skerch_ooc.store.rundir import open_run
from skerch_ooc.store.shards import list_shards

STAGES = {
    "eigh": ["measure", "merge", "vectors"],
    "svd": ["measure", "merge", "merge corange", "vectors U", "vectors V"],
}
ALL = [(kind, stage) for kind in STAGES for stage in STAGES[kind]]
OFTEN = [("eigh", "measure"), ("eigh", "merge")]
SIZE = {"n": 30000, "rank": 30, "delay": 0.05}


def spec_of(folder, kind="eigh"):
    return write_spec(
        folder, "synthetic", 320, kind=kind, operator={"args": SIZE},
        sketch={"test_measurements": 12, "block": 16}, recovery={"rank": 200},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run as it is when nobody interferes, and how long each stage takes."""

    @cache
    def undisturbed_run(kind):
        folder = tmp_path_factory.mktemp("undisturbed")
        spec = spec_of(folder, kind)
        command = CommandLine(folder)
        with pytest.MonkeyPatch.context() as patch:
            # These calls are none of those that a test counts.
            patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
            done = command("run", spec, "--run", "run", "--threads", 1)
        assert done.returncode == 0
        seconds = {
            stage: float(line.split(" in ")[1].removesuffix(" s"))
            for line in done.stderr.splitlines()
            for stage in STAGES[kind]
            if f" {stage}: done in" in line
        }
        return spec, run_contents(folder / "run"), seconds

    return undisturbed_run


def start_and_kill(command, arguments, stage: str, delay: float) -> bool:
    """Starts a command, waits until a stage begins, kills; whether it was killed in time."""
    process = command.start(*arguments)
    try:
        for line in process.stderr:
            if f" {stage}: " in line:
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    finally:
        process.stdout.close()
        process.stderr.close()
        code = process.wait()
    return code == -signal.SIGKILL


def kill_often(command, undisturbed, stage: str, kills: int, calls) -> None:
    spec, expected, seconds = undisturbed
    arguments = ("run", spec, "--run", "run", "--threads", 1)
    run = command.cwd / "run"
    chance = random.Random(stage)
    published_at_kill = []
    done = 0
    while done < kills:
        for path in run.glob("results/default/*.h5"):
            path.unlink()
        if stage.startswith("merge"):
            for path in run.glob("sketch/*/*.h5"):
                path.unlink()
        if stage == "measure":
            for shard in list_shards(run / "shards"):
                # What was published before the last kill stays; the rest is measured again.
                if chance.random() < 0.3:
                    (run / "shards" / shard.name).unlink()
        done += start_and_kill(command, arguments, stage, chance.uniform(0, seconds[stage]))
        published_at_kill.append((len(calls()), list_shards(run / "shards")))
    assert command(*arguments).returncode == 0
    assert run_contents(run) == expected
    if stage != "measure":
        require_no_repetition(run, published_at_kill, calls())


def require_no_repetition(run, published_at_kill, calls) -> None:
    identity = open_run(run).plan.identity
    height = Range(0, identity.shape[0])
    crcs = {
        shard: zlib.crc32(
            draw(identity.noise[shard.role], identity.seed, shard.role, height, shard.columns,
                 identity.dtype).tobytes()
        )
        for shard in published_at_kill[-1][1]
    }  # fmt: skip
    for position, shards in published_at_kill:
        later = {call["crc"] for call in calls[position:]}
        assert not later & {crcs[shard] for shard in shards}


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "stage"), OFTEN)
def test_killed_stage_ends_with_the_files_of_an_undisturbed_run(
    ooc_command, undisturbed, kind, stage, call_log
):
    kill_often(ooc_command, undisturbed(kind), stage, 3, call_log)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "stage"), ALL)
def test_stage_killed_twenty_times(ooc_command, undisturbed, kind, stage, call_log):
    kill_often(ooc_command, undisturbed(kind), stage, 20, call_log)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["eigh", "svd"])
def test_no_product_of_a_published_shard_is_repeated_however_often_measuring_is_killed(
    ooc_command, undisturbed, call_log, kind
):
    spec, expected, seconds = undisturbed(kind)
    chance = random.Random(5)
    published_at_kill = []
    arguments = ("run", spec, "--run", "run", "--threads", 1)
    for _ in range(4):
        start_and_kill(ooc_command, arguments, "measure", chance.uniform(0, seconds["measure"] / 4))
        published_at_kill.append((len(call_log()), list_shards(ooc_command.cwd / "run/shards")))
    assert ooc_command(*arguments).returncode == 0
    require_no_repetition(ooc_command.cwd / "run", published_at_kill, call_log())
    # At most one single product, to compare with the fingerprint, in each process but the first.
    pids = {call["pid"] for call in call_log()}
    single = [call for call in call_log() if call["width"] == 1]
    assert len(single) <= 2 + len(pids) - 1
    assert run_contents(ooc_command.cwd / "run") == expected


@pytest.mark.thorough
def test_leftovers_of_killed_processes_are_ignored_and_counted(ooc_command, undisturbed):
    spec, expected, _ = undisturbed("eigh")
    arguments = ("run", spec, "--run", "run", "--threads", 1)
    start_and_kill(ooc_command, arguments, "measure", 0.2)
    (ooc_command.cwd / "run/shards/.tmp-somebody").write_bytes(b"half a shard")
    assert "private files" in ooc_command("status", "run").stdout
    assert ooc_command(*arguments).returncode == 0
    assert run_contents(ooc_command.cwd / "run") == expected


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_signal_while_measuring_finishes_the_task_and_exits_in_good_order(forked_command, number):
    spec = spec_of(forked_command.cwd)
    process = forked_command.start("run", spec, "--run", "run", "--threads", 1)
    for line in process.stderr:
        if " measure: " in line:
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, "stopped in good order" in err) == (0, True)
    assert not list((forked_command.cwd / "run/shards").glob(".tmp*"))


@pytest.mark.thorough
def test_signal_outside_of_measuring_interrupts_and_the_same_command_goes_on(
    ooc_command, undisturbed
):
    spec, expected, _ = undisturbed("eigh")
    arguments = ("run", spec, "--run", "run", "--threads", 1)
    process = ooc_command.start(*arguments)
    for line in process.stderr:
        if " merge: " in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, "nothing published is lost" in err) == (128 + 15, True)
    assert ooc_command(*arguments).returncode == 0
    assert run_contents(ooc_command.cwd / "run") == expected
