"""SIGKILL on a cluster: of workers, of the scheduler, of the command; nothing is lost or repeated.

Workers are watched by nannies of their own, which start new ones, as on clusters that people have.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import zlib
from functools import cache
from pathlib import Path

import pytest
from clusters import cluster_in
from contents import run_contents
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.algebra.noise import draw
from skerch_ooc.base.partition import Range
from skerch_ooc.store.rundir import open_run
from skerch_ooc.store.shards import Rectangle, list_shards

ROWS = 300_000
"""74 tiles: three tasks of merge and recovery."""

CASES = {
    "eigh": {"delay": 0.1},
    "steep hmt": {"delay": 0.1, "rate": 0.5},
}
"""The second corrects its vectors, and has a basis in pieces."""

STAGES = {
    "eigh": ["measure", "merge", "vectors"],
    "steep hmt": ["measure", "orthogonalise", "basis 2", "measure round 2", "vectors"],
}
OFTEN = {("steep hmt", "basis 2")}
stages = pytest.mark.parametrize(
    ("case", "stage"),
    [
        pytest.param(case, stage, marks=() if (case, stage) in OFTEN else pytest.mark.soak)
        for case in STAGES
        for stage in STAGES[case]
    ],
)


def spec_of(folder, case):
    return write_spec(
        folder, "synthetic", 24, operator={"args": {"n": ROWS, "rank": 12} | CASES[case]},
        sketch={"test_measurements": 4, "block": 2},
        **({"recovery": {"method": "hmt"}} if "hmt" in case else {}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run as it is when nobody interferes."""

    @cache
    def undisturbed_run(case):
        folder = tmp_path_factory.mktemp("undisturbed")
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("SKERCH_OOC_TEST_LOG", raising=False)
            return run_contents(whole_run(spec_of(folder, case), folder / "run"))

    return undisturbed_run


@pytest.fixture
def cluster(tmp_path, call_log):
    """Two workers with nannies, whose operators log their calls."""
    del call_log
    with cluster_in(tmp_path / "cluster") as started:
        started.start_scheduler()
        for _ in range(2):
            started.start_worker(nanny=True)
        yield started


def workers_of(cluster) -> list[int]:
    """The processes that do the tasks: children of the nannies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_text()
            except (OSError, ValueError):
                continue
            if parent in {nanny.pid for nanny in cluster.workers} and "spawn_main" in command:
                found.append(int(entry.name))
    return found


def kill_one_of(cluster, chance) -> bool:
    """Kills a worker; whether there was one."""
    alive = workers_of(cluster)
    if not alive:
        return False
    os.kill(chance.choice(alive), signal.SIGKILL)
    return True


class Killer(threading.Thread):
    """Kills a random worker again and again until it is stopped.

    Args:
        cluster: Whose workers.
        run: The run directory.
        seconds: Between two kills, on average.

    Attributes:
        kills: How many there were.
        published: After each kill, the shards that were there, and how many calls of the operator.
    """

    def __init__(self, cluster, run, seconds, calls) -> None:
        super().__init__()
        self.kills = 0
        self.published = []
        self._cluster, self._run, self._seconds, self._calls = cluster, run, seconds, calls
        self._over = threading.Event()
        self._chance = random.Random(7)

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(0.5, 1.5) * self._seconds):
            shards = list_shards(self._run / "shards") if (self._run / "shards").exists() else []
            # Shards listed first: what was published by then must not be applied after.
            self.published.append((len(self._calls()), shards))
            self.kills += kill_one_of(self._cluster, self._chance)
            if any(nanny.poll() is not None for nanny in self._cluster.workers):
                # One whose worker was killed as it started does not try again.
                self._cluster.start_worker(nanny=True)

    def stop(self) -> None:
        self._over.set()
        self.join()


def require_no_product_of_a_published_shard(run_dir, published, calls) -> None:
    """No block of a shard of the first round is applied after the shard was published."""
    identity = open_run(run_dir).plan.identity
    whole = Range(0, identity.shape[0])

    @cache
    def crc(shard: Rectangle) -> int:
        drawn = draw(identity.noise[shard.role], identity.seed, shard.role, whole, shard.columns,
                     identity.dtype)  # fmt: skip
        return zlib.crc32(drawn.tobytes())

    for position, shards in published:
        later = {call["crc"] for call in calls[position:]}
        # The task that was being published in that moment may have begun before.
        known = {crc(shard) for shard in shards if shard.role in identity.noise}
        assert not later & known


def command_of(run, spec, cluster):
    return ("run", spec, "--run", run, "--threads", 1, "--executor", "dask",
            "--scheduler", cluster.file)  # fmt: skip


def wait_for_stage(process, stage) -> None:
    for line in process.stderr:
        if f" {stage}: " in line:
            return
    raise AssertionError(f"there was no stage {stage}")


def ended(process) -> tuple[int, str]:
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, err


@pytest.mark.thorough
@stages
def test_death_of_a_worker_in_any_stage_changes_no_file(
    ooc_command, cluster, undisturbed, case, stage
):
    expected = undisturbed(case)
    spec = spec_of(ooc_command.cwd, case)
    process = ooc_command.start(*command_of("run", spec, cluster))
    wait_for_stage(process, stage)
    assert kill_one_of(cluster, random.Random(1))
    assert ended(process)[0] == 0
    assert run_contents(ooc_command.cwd / "run") == expected


def survive_kills(ooc_command, cluster, expected, case, seconds, calls) -> int:
    spec = spec_of(ooc_command.cwd, case)
    run = ooc_command.cwd / "run"
    killer = Killer(cluster, run, seconds, calls)
    killer.start()
    try:
        for _ in range(20):
            process = ooc_command.start(*command_of(run, spec, cluster))
            code, err = ended(process)
            if code == 0:
                break
            # Workers that die of the same task ten times over are reported.
            assert code == 4, err
    finally:
        killer.stop()
    assert code == 0
    assert run_contents(run) == expected
    require_no_product_of_a_published_shard(run, killer.published, calls())
    return killer.kills


@pytest.mark.soak
def test_random_deaths_of_workers_repeat_no_product_of_a_published_shard(
    ooc_command, cluster, undisturbed, call_log
):
    assert survive_kills(ooc_command, cluster, undisturbed("eigh"), "eigh", 1.5, call_log) > 0


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_run_whose_workers_die_every_few_seconds_ends_as_if_undisturbed(
    ooc_command, cluster, undisturbed, call_log, case
):
    kills = 0
    for number in range(5):
        folder = ooc_command.cwd / f"round{number}"
        folder.mkdir()
        ooc_command.cwd = folder
        kills += survive_kills(ooc_command, cluster, undisturbed(case), case, 3.0, call_log)
        (folder.parent / "calls.log").unlink()
        ooc_command.cwd = folder.parent
    assert kills >= 5


@pytest.mark.thorough
def test_death_of_the_scheduler_is_said_and_another_scheduler_goes_on(
    tmp_path, cluster, undisturbed, monkeypatch, call_log
):
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 2.0)
    run = ooc.plan(spec_of(tmp_path, "eigh"), tmp_path / "run", threads=1)

    def kill_in_the_midst():
        while len(list_shards(run.shards)) < 4:
            time.sleep(0.02)
        os.killpg(cluster.scheduler.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_midst)
    killer.start()
    with pytest.raises(ooc.IncompleteError, match=r"scheduler was lost.*the same command goes on"):
        ooc.measure(run, ooc.Dask(cluster.file), threads=1)
    killer.join()
    published = [(len(call_log()), list_shards(run.shards))]
    cluster.start_scheduler()
    cluster.start_worker()
    whole_run(spec_of(tmp_path, "eigh"), run.directory, ooc.Dask(cluster.file))
    assert run_contents(run.directory) == undisturbed("eigh")
    require_no_product_of_a_published_shard(run.directory, published, call_log())


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES["eigh"])
def test_death_of_the_scheduler_ends_the_command_in_words_and_the_same_command_goes_on(
    ooc_command, cluster, undisturbed, stage
):
    spec = spec_of(ooc_command.cwd, "eigh")
    arguments = command_of("run", spec, cluster)
    process = ooc_command.start(*arguments)
    wait_for_stage(process, stage)
    time.sleep(0.3)
    os.killpg(cluster.scheduler.pid, signal.SIGKILL)
    code, err = ended(process)
    # The last stage may have been over already.
    assert (code, "the same command goes on" in err) in {(4, True), (0, False)}, err
    cluster.start_scheduler()
    cluster.start_worker()
    assert ooc_command(*arguments).returncode == 0
    assert run_contents(ooc_command.cwd / "run") == undisturbed("eigh")


@pytest.mark.thorough
@pytest.mark.parametrize("executor", [pytest.param("same", marks=pytest.mark.soak), "serial"])
def test_command_that_was_killed_goes_on_with_any_executor_and_repeats_nothing(
    ooc_command, cluster, undisturbed, call_log, executor
):
    spec = spec_of(ooc_command.cwd, "eigh")
    arguments = command_of("run", spec, cluster)
    run = ooc_command.cwd / "run"
    process = ooc_command.start(*arguments)
    wait_for_stage(process, "measure")
    while len(list_shards(run / "shards")) < 4:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    # What the workers had in hand is done, and published, without anybody waiting for it.
    time.sleep(2)
    published = [(len(call_log()), list_shards(run / "shards"))]
    if executor == "serial":
        arguments = ("run", spec, "--run", run, "--threads", 1)
    assert ooc_command(*arguments).returncode == 0
    assert run_contents(run) == undisturbed("eigh")
    require_no_product_of_a_published_shard(run, published, call_log())


def test_no_process_is_left_behind_by_a_command_that_was_killed(ooc_command):
    spec = spec_of(ooc_command.cwd, "eigh")
    process = ooc_command.start("run", spec, "--run", "run", "--threads", 1, "--executor", "dask",
                                "--workers", 1, start_new_session=True)  # fmt: skip
    wait_for_stage(process, "measure")
    while not list_shards(ooc_command.cwd / "run/shards"):
        assert process.poll() is None
        time.sleep(0.02)
    assert len(members_of(process.pid)) > 1
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while members_of(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert members_of(process.pid) == []


def members_of(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.thorough
def test_receipts_tell_which_host_and_process_measured_each_block(tmp_path, cluster):
    spec = spec_of(tmp_path, "eigh")
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    ooc.measure(run, ooc.Dask(cluster.file), threads=1)
    lines = [json.loads(line) for path in run.logs.glob("receipts*")
             for line in path.read_text().splitlines()]  # fmt: skip
    measured = [line for line in lines if line.get("stage") == "measure"]
    assert len(measured) == 14
    assert {line["pid"] for line in measured} <= set(workers_of(cluster))
