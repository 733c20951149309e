"""Workers and schedulers that are not as they should be: each is named, none does harm."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest
from clusters import cluster_in, other_package, without_package
from contents import run_contents
from distributed import Client
from runs import whole_run
from specs import FACTORIES, write_spec

import skerch_ooc as ooc

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture
def cluster(tmp_path):
    """A cluster whose processes the test starts."""
    with cluster_in(tmp_path / "cluster") as started:
        yield started


def spec_of(folder, factory="matrix", **args):
    return write_spec(
        folder, factory, 40, operator={"args": args},
        sketch={"test_measurements": 12, "block": 8},
    )  # fmt: skip


def measured(cluster, run):
    return ooc.measure(run, ooc.Dask(cluster.file), threads=1)


VERSIONS = {
    "format": ("FORMAT_VERSION = 1", "FORMAT_VERSION = 2"),
    "noise_version": ("NOISE_VERSION = 1", "NOISE_VERSION = 2"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", VERSIONS)
def test_worker_of_another_format_or_noise_version_is_refused_by_name(tmp_path, cluster, version):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    other = other_package(tmp_path / "other", "planning/plan.py", *VERSIONS[version])
    cluster.start_scheduler()
    cluster.start_worker(PYTHONPATH=other)
    with pytest.raises(
        ooc.OocError, match=rf"{version} 1, but .* knows 2.*worker tcp://127\.0\.0\.1:\d"
    ):
        measured(cluster, run)
    assert list(run.shards.glob("*.h5")) == []


def test_worker_that_builds_another_operator_is_refused_by_name(tmp_path, cluster):
    run = ooc.plan(spec_of(tmp_path, "of_environment"), tmp_path / "run", threads=1)
    cluster.start_scheduler()
    cluster.start_worker(SKERCH_OOC_TEST_SCALE="1.001")
    with pytest.raises(ooc.DriftError, match=r"worker tcp://127\.0\.0\.1:\d+ on \w"):
        measured(cluster, run)
    assert list(run.shards.glob("*.h5")) == []


def test_operator_file_that_a_worker_does_not_see_is_named(tmp_path, cluster):
    own = tmp_path / "own.py"
    own.write_text(FACTORIES.read_text())
    spec = spec_of(tmp_path)
    spec.write_text(spec.read_text().replace(str(FACTORIES), "own.py"))
    run = ooc.plan(spec, tmp_path / "run", threads=1)
    own.unlink()
    cluster.start_scheduler()
    cluster.start_worker()
    with pytest.raises(ooc.UsageError, match=r"'own\.py:matrix' is in none of.*worker tcp://"):
        measured(cluster, run)


def test_run_directory_that_a_worker_does_not_see_is_named(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_FILE_WAIT", "0.2")
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    cluster.start_scheduler()
    # This worker's view of the folder is an empty one of its own.
    cluster.start_worker(
        command=("unshare", "-rm", sys.executable, "-c", f"""
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", {str(run.directory)!r}], check=True)
from dask.__main__ import main
main()
"""),
    )  # fmt: skip
    with pytest.raises(ooc.OocError, match=rf"(?s){re.escape(str(run.directory))}.*worker tcp://"):
        measured(cluster, run)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("who", ["scheduler", "worker"])
def test_who_does_not_have_the_package_is_told_of_it(tmp_path, cluster, who):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    lacks = {"command": without_package()}
    cluster.start_scheduler(**(lacks if who == "scheduler" else {}))
    cluster.start_worker(**(lacks if who == "worker" else {}))
    named = r"1 worker \(tcp://" if who == "worker" else ""
    with pytest.raises(ooc.UsageError, match=rf"{named}.*cannot import skerch_ooc"):
        measured(cluster, run)


@pytest.mark.thorough
def test_other_version_of_the_package_is_recorded_and_warned_of_once(tmp_path, cluster, caplog):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    version = ooc.__version__
    other = other_package(
        tmp_path / "other", "base/version.py", f'__version__ = "{version}"', '__version__ = "99.0"'
    )
    cluster.start_scheduler()
    cluster.start_worker(PYTHONPATH=other)
    measured(cluster, run)
    for path in sorted(run.shards.glob("*.h5"))[:3]:
        path.unlink()
    ooc.measure(run, threads=1)
    with caplog.at_level("WARNING", logger="skerch_ooc"):
        for _ in range(2):
            ooc.merge(run, threads=1)
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "skerch_ooc.base.provenance"]
    assert re.search(rf"skerch_ooc {re.escape(version)} \(\d+\), 99\.0 \(\d+\)", warning)


@pytest.mark.thorough
def test_cluster_of_other_people_s_processes_makes_the_same_files(tmp_path, cluster):
    spec = spec_of(tmp_path)
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    cluster.start_scheduler()
    for _ in range(2):
        cluster.start_worker()
    found = run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(cluster.file)))
    assert found == expected


def test_task_that_fails_stops_the_run_with_its_columns_and_its_worker(tmp_path):
    spec = spec_of(tmp_path, "fails_once", marker=str(tmp_path / "failed"))
    with pytest.raises(
        ooc.OperatorError, match=r"out of memory, this time.*columns \d+-\d+ of \w+; worker tcp://"
    ):
        whole_run(spec, tmp_path / "run", ooc.Dask(workers=1))


@pytest.mark.thorough
def test_task_that_fails_is_tried_as_often_as_was_said(tmp_path, caplog):
    spec = spec_of(tmp_path, "fails_once", marker=str(tmp_path / "failed"))
    run_dir = whole_run(spec, tmp_path / "run", ooc.Dask(workers=1, tries=2))
    assert ooc.assess(ooc.open_run(run_dir)).relative_error < 1
    assert "try 1 of 2 failed" in caplog.text


def environment_of_worker(name):
    return os.environ.get(name)


@pytest.mark.thorough
def test_local_workers_see_one_gpu_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    executor = ooc.Dask(workers=3)
    with executor._connected(1) as client:
        seen = client.run(environment_of_worker, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["3", "3", "5"]


def test_local_cluster_is_reached_from_this_machine_only():
    with ooc.Dask(workers=1)._connected(1) as client:
        assert client.scheduler_info()["address"].startswith("tcp://127.0.0.1:")


UNGUARDED = """
import skerch_ooc as ooc
run = ooc.open_run("run")
ooc.measure(run, executor=ooc.Dask(workers=1), threads=1)
"""


def test_script_without_a_main_guard_is_told_of_it(tmp_path):
    ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


@pytest.mark.thorough
def test_command_says_where_its_workers_can_be_watched(forked_command):
    spec = spec_of(forked_command.cwd)
    done = forked_command("run", spec, "--run", "run", "--executor", "dask", "--workers", 1)
    assert re.search(r"dask: 1 worker\(s\) of tcp://127.*dashboard", done.stderr)


@pytest.mark.thorough
def test_progress_in_a_log_tells_tasks_rate_and_bytes(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("skerch_ooc.base.progress.LINE_SECONDS", 0.0)
    from skerch_ooc.base.progress import Lines

    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    with open(tmp_path / "log", "w") as log:
        ooc.measure(run, ooc.Dask(workers=1), threads=1, progress=Lines(log, every=0.0))
    text = (tmp_path / "log").read_text()
    assert re.search(
        r"measure: 52 of 52 products, 7 of 7 tasks, \S+ of \S+ kB, \S+ products/s", text
    )


def test_task_whose_shard_is_there_is_not_measured_again(tmp_path, call_log):
    from skerch_ooc.stages.measure.task import missing_tasks, perform
    from skerch_ooc.store.sketch import Round

    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    task = next(iter(missing_tasks(Round(run), "cpu", 1)))
    receipts = [perform(task)() for _ in range(2)]
    before = len(call_log())
    receipts.append(perform(task)())
    assert [receipt["products"] for receipt in receipts] == [8, 0, 0]
    assert len(call_log()) == before


@pytest.mark.thorough
def test_scheduler_file_is_an_option_of_its_own_name_too(forked_command, cluster):
    spec = spec_of(forked_command.cwd)
    cluster.start_scheduler()
    cluster.start_worker()
    done = forked_command("run", spec, "--run", "run", "--executor", "dask",
                       "--scheduler-file", cluster.file, "--json")  # fmt: skip
    assert json.loads(done.stdout)["relative_error"] < 1


@pytest.mark.thorough
def test_workers_stay_from_stage_to_stage_of_a_session(tmp_path):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    executor = ooc.Dask(workers=1)
    addresses = []
    with executor.session(1):
        for stage in (ooc.measure, ooc.merge):
            stage(run, executor=executor, threads=1)
            addresses.append(executor._client.scheduler.address)
    assert addresses[0] == addresses[1]


def test_another_service_at_the_port_is_told_from_a_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 0.3)
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ooc.UsageError, match=f"no scheduler answers at {address}"):
            ooc.measure(run, ooc.Dask(address), threads=1)


@pytest.mark.parametrize("text", ["", "garbage", "{}", "[1]"])
def test_file_that_is_no_scheduler_file_is_refused(tmp_path, text):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    (tmp_path / "scheduler.json").write_text(text)
    with pytest.raises(ooc.UsageError, match="is no scheduler file"):
        ooc.measure(run, ooc.Dask(tmp_path / "scheduler.json"), threads=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
@pytest.mark.parametrize("name", ["workers", "tries"])
def test_counts_that_are_none_are_refused(name, value):
    with pytest.raises(ooc.UsageError, match=f"{name} = "):
        ooc.Dask(**{name: value})


def test_client_that_was_closed_is_refused(tmp_path, cluster):
    run = ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)
    cluster.start_scheduler()
    client = Client(scheduler_file=str(cluster.file), set_as_default=False)
    client.close()
    with pytest.raises(ooc.UsageError, match="cannot be used any more"):
        ooc.measure(run, ooc.Dask(client), threads=1)


def test_operator_that_leaves_python_is_named(tmp_path):
    with pytest.raises(ooc.UsageError, match=r"SystemExit\(7\).*columns \d"):
        whole_run(spec_of(tmp_path, "leaves"), tmp_path / "run", ooc.Dask(workers=1))


@pytest.mark.soak
def test_operator_that_ends_its_process_is_named_in_the_end(tmp_path, caplog):
    spec = spec_of(tmp_path, "leaves", at_once=True)
    with pytest.raises(
        ooc.IncompleteError,
        match=r"columns \d.* keeps killing its workers .*; the last of them ended with exit code 7",
    ):
        whole_run(spec, tmp_path / "run", ooc.Dask(workers=1))
    assert "has lost its worker several times" in caplog.text


@pytest.mark.thorough
def test_client_that_was_given_keeps_its_workers(tmp_path, cluster):
    spec = spec_of(tmp_path)
    cluster.start_scheduler()
    cluster.start_worker()
    with Client(scheduler_file=str(cluster.file), set_as_default=False) as client:
        whole_run(spec, tmp_path / "run", ooc.Dask(client))
        assert len(client.scheduler_info()["workers"]) == 1
