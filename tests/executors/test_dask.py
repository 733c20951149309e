"""Dask clusters that are running already, and workers that die."""

from __future__ import annotations

import json
import os

import pytest
from contents import run_contents
from distributed import Client, LocalCluster
from runs import whole_run
from specs import write_spec
from workers import forked_workers

import skerch_ooc as ooc

pytestmark = pytest.mark.usefixtures("quick_workers")

WIDE = {
    "eigh": {},
    "hmt": {"kind": "svd", "recovery": {"method": "hmt"}},
    "eigh hmt, power 1": {"recovery": {"method": "hmt", "power_iterations": 1}},
    "svd hmt, power 1": {"kind": "svd", "recovery": {"method": "hmt", "power_iterations": 1}},
    "svd in double precision": {
        "kind": "svd", "dtype": "float64", "recovery": {"method": "singlepass"},
    },
}  # fmt: skip
"""Operators of so many rows that the merge has several tasks."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A worker process with four threads, as others might have started it."""
    with forked_workers(), LocalCluster(
        n_workers=1, threads_per_worker=4, processes=True, memory_limit=0,
        scheduler_kwargs={"dashboard_address": ":0"}, dashboard_address=None,
        local_directory=tmp_path_factory.mktemp("scratch"),
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def place(request, cluster, tmp_path):
    """What names the cluster, in each way that can be given."""
    if request.param == "file":
        path = tmp_path / "scheduler.json"
        path.write_text(json.dumps({"address": cluster.scheduler_address}))
        yield path
    elif request.param == "client":
        with Client(cluster, set_as_default=False) as client:
            yield client
    else:
        yield {"address": cluster.scheduler_address, "cluster": cluster}[request.param]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("place", ["address", "file", "client", "cluster"], indirect=True)
def test_cluster_that_is_running_makes_the_same_files(tmp_path, place):
    spec = write_spec(tmp_path, "matrix", 40, sketch={"test_measurements": 12, "block": 8})
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    assert run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(place))) == expected


def test_client_that_was_given_stays_open(tmp_path, cluster):
    spec = write_spec(tmp_path, "matrix", 40, sketch={"block": 8})
    with Client(cluster, set_as_default=False) as client:
        whole_run(spec, tmp_path / "run", ooc.Dask(client))
        assert client.submit(abs, -3).result() == 3


def set_in_environment(name, value):
    os.environ[name] = value


def test_worker_with_many_threads_builds_the_operator_once(tmp_path, cluster):
    log = tmp_path / "calls.log"
    spec = write_spec(tmp_path, "matrix", 40, sketch={"block": 2})
    with Client(cluster, set_as_default=False) as client:
        client.run(set_in_environment, "SKERCH_OOC_TEST_LOG", str(log))
        whole_run(spec, tmp_path / "run", ooc.Dask(client))
        client.run(set_in_environment, "SKERCH_OOC_TEST_LOG", "")
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [call["width"] for call in calls].count(1) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("case", WIDE)
def test_merge_on_workers_makes_the_same_files(tmp_path, case):
    more = WIDE[case]
    spec = write_spec(
        tmp_path, "synthetic", 16,
        operator={"args": {"n": 140_000, "rank": 8, "dtype": more.get("dtype", "float32")}},
        sketch={"test_measurements": 4, "block": 8}, **more,
    )  # fmt: skip
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    found = run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(workers=2)))
    assert found == expected
    assert any("sums.t" in str(name) for name in found)


@pytest.mark.thorough
def test_plan_that_grows_while_the_workers_stay_makes_the_same_files(tmp_path):
    spec = write_spec(
        tmp_path, "matrix", 120, tolerance=1e-4, sketch={"test_measurements": 12, "block": 8}
    )
    expected = run_contents(whole_run(spec, tmp_path / "serial"))
    found = run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(workers=1)))
    assert found == expected
    assert len(ooc.open_run(tmp_path / "run").plan.amendments) > 1


@pytest.mark.thorough
def test_row_shards_are_written_by_workers_too(tmp_path):
    spec = write_spec(
        tmp_path, "synthetic", 8, operator={"args": {"n": 140_000, "rank": 4}},
        sketch={"test_measurements": 4, "block": 4},
    )  # fmt: skip
    contents = []
    for name, executor in (("serial", ooc.Serial()), ("dask", ooc.Dask(workers=2))):
        run = ooc.plan(spec, tmp_path / name, memory="4GiB", threads=1)
        ooc.measure(run, threads=1)
        ooc.merge(run, executor=executor, threads=1, rechunk=True)
        contents.append(run_contents(tmp_path / name))
    assert contents[0] == contents[1]


def test_death_of_a_worker_is_not_blamed_on_its_task(tmp_path):
    marker = tmp_path / "died"
    spec = write_spec(
        tmp_path, "dies_once", 40, operator={"args": {"marker": str(marker)}}, sketch={"block": 4}
    )
    expected = write_spec(
        tmp_path, "matrix", 40, operator={"args": {"n": 200}}, sketch={"block": 4},
        name="immortal.toml",
    )  # fmt: skip
    run_dir = whole_run(spec, tmp_path / "run", ooc.Dask(workers=1))
    assert marker.exists()
    values = ooc.recover(ooc.open_run(run_dir)).eigenvalues
    whole_run(expected, tmp_path / "expected")
    assert (values == ooc.recover(ooc.open_run(tmp_path / "expected")).eigenvalues).all()


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [("tcp://127.0.0.1:9", "no scheduler answers"), ("nowhere.json", "no scheduler file")],
)
def test_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch, scheduler, text):
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 0.3)
    spec = write_spec(tmp_path, "matrix", 40)
    with pytest.raises(ooc.UsageError, match=text):
        whole_run(spec, tmp_path / "run", ooc.Dask(scheduler))


def test_scheduler_without_workers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("skerch_ooc.executors.dask.PATIENCE", 0.5)
    spec = write_spec(tmp_path, "matrix", 40)
    with (
        LocalCluster(
            n_workers=0, scheduler_kwargs={"dashboard_address": ":0"}, dashboard_address=None,
            processes=True,
        ) as empty,
        pytest.raises(ooc.IncompleteError, match="no workers"),
    ):  # fmt: skip
        whole_run(spec, tmp_path / "run", ooc.Dask(empty.scheduler_address))


def test_workers_beside_a_scheduler_are_refused():
    with pytest.raises(ooc.UsageError, match="give either workers or a scheduler"):
        ooc.Dask("tcp://somewhere:8786", workers=2)


def test_command_runs_on_a_cluster_by_its_address(forked_command, cluster):
    spec = write_spec(forked_command.cwd, "matrix", 40, sketch={"block": 8})
    done = forked_command("run", spec, "--run", "run", "--executor", "dask",
                       "--scheduler", cluster.scheduler_address)  # fmt: skip
    assert (done.returncode, "relative error" in done.stdout) == (0, True)
