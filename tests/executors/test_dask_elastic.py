"""Clusters that scale to zero, and tasks of a cluster that use it themselves."""

from __future__ import annotations

import os
import shutil
from functools import partial

import pytest
from contents import run_contents
from distributed import Client, LocalCluster, get_client, secede
from runs import whole_run
from specs import write_spec
from workers import forked_workers

import skerch_ooc as ooc
from skerch_ooc.executors.dask_waiting import Watch
from skerch_ooc.executors.dask_workers import Flight, FlightTerms, _Group
from skerch_ooc.executors.sight import Sights

ONE_THREAD = {
    "threads_per_worker": 1, "processes": True, "memory_limit": 0, "dashboard_address": None,
    "scheduler_kwargs": {"dashboard_address": ":0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A spec, and the contents of all files that it leads to."""
    folder = tmp_path_factory.mktemp("made")
    spec = write_spec(folder, "matrix", 20, sketch={"test_measurements": 6, "block": 8})
    return spec, run_contents(whole_run(spec, folder / "run"))


def test_local_cluster_that_scales_to_zero_makes_the_same_files(tmp_path, made):
    spec, expected = made
    with (
        forked_workers(),
        LocalCluster(n_workers=0, local_directory=tmp_path / "scratch", **ONE_THREAD) as cluster,
    ):
        cluster.adapt(minimum=0, maximum=2)
        assert run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(cluster))) == expected


def doubled(number):
    return partial(int, 2 * number)


def test_what_a_worker_took_with_it_is_done_again_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr("skerch_ooc.executors.dask_workers._ASK_SECONDS", 0.3)
    with (
        forked_workers(),
        LocalCluster(n_workers=1, local_directory=tmp_path, **ONE_THREAD) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        flight = Flight(client, doubled, iter(()), FlightTerms(1, Watch(client, None), Sights()))
        # Sent to a worker that has proven its sight, and to no other.
        flight._send([_Group([7])], None, list(client.scheduler_info(-1)["workers"]))
        client.gather(list(flight._groups))
        client.run(os._exit, 1, on_error="ignore")
        assert list(flight.receipts()) == [14]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of one worker of one thread."""
    with (
        forked_workers(),
        LocalCluster(
            n_workers=1, local_directory=tmp_path_factory.mktemp("scratch"), **ONE_THREAD
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def run_inside(spec, folder, how):
    """What a user's task does."""
    if how == "has seceded":
        secede()
    executor = {
        "client": lambda: ooc.Dask(get_client()),
        "has seceded": lambda: ooc.Dask(get_client()),
        "address": lambda: ooc.Dask(get_client().scheduler.address),
        "local": lambda: ooc.Dask(workers=1),
        "serial": ooc.Serial,
    }[how]()
    whole_run(spec, folder, executor)


async def run_in_coroutine(spec, folder, address):
    whole_run(spec, folder, ooc.Dask(address))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["client", "address", "serial", "has seceded"])
def test_task_on_the_only_thread_of_a_cluster_uses_it(tmp_path, made, client, how):
    spec, expected = made
    client.submit(run_inside, spec, tmp_path / "run", how).result(timeout=100)
    assert run_contents(tmp_path / "run") == expected
    # And its thread goes on.
    assert client.submit(abs, -3, pure=False).result(timeout=20) == 3


@pytest.mark.thorough
def test_two_tasks_that_use_their_only_thread_do_not_wait_for_each_other(tmp_path, made, client):
    spec, expected = made
    folders = [tmp_path / "one", tmp_path / "two"]
    futures = client.map(run_inside, [spec] * 2, folders, ["client"] * 2)
    client.gather(futures)
    assert [run_contents(folder) for folder in folders] == [expected, expected]


def test_task_that_starts_workers_is_told_what_to_do(tmp_path, made, client):
    future = client.submit(run_inside, made[0], tmp_path / "run", "local")
    with pytest.raises(ooc.UsageError, match=r"use ooc\.Dask\(distributed\.get_client\(\)\)"):
        future.result(timeout=60)


def test_coroutine_on_a_worker_is_refused(tmp_path, made, client):
    address = client.scheduler.address
    future = client.submit(run_in_coroutine, made[0], tmp_path / "run", address)
    with pytest.raises(ooc.UsageError, match="make the task a plain function"):
        future.result(timeout=60)


def test_operator_that_uses_the_cluster_that_applies_it_is_refused(tmp_path, made, client):
    spec = write_spec(
        tmp_path, "uses_cluster", 20, name="nested.toml", sketch={"block": 8},
        operator={"args": {"address": client.scheduler.address, "spec": str(made[0])}},
    )  # fmt: skip
    with pytest.raises(ooc.OocError, match=r"in an operator use ooc\.Serial\(\)"):
        whole_run(spec, tmp_path / "run", ooc.Dask(client))


@pytest.mark.slurm
class TestSlurm:
    """On a real Slurm, by ``dask_jobqueue``."""

    @pytest.fixture
    def cluster_of(self, empty_queue, tmp_path, monkeypatch):
        jobqueue = pytest.importorskip("dask_jobqueue")
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, empty_queue.environment[name])

        def make(*directives):
            return jobqueue.SLURMCluster(
                cores=1, memory="1GB", interface="lo", log_directory=str(tmp_path),
                local_directory=str(tmp_path), walltime="00:10:00", job_directives_skip=["--mem"],
                job_extra_directives=list(directives), worker_extra_args=["--no-dashboard"],
                scheduler_options={"dashboard_address": ":0"},
                job_script_prologue=["export OMP_NUM_THREADS=1"],
            )  # fmt: skip

        assert shutil.which("sbatch")
        return make

    def test_jobs_that_scale_to_zero_make_the_same_files(self, tmp_path, made, cluster_of):
        spec, expected = made
        with cluster_of() as cluster:
            cluster.adapt(minimum_jobs=0, maximum_jobs=2)
            assert run_contents(whole_run(spec, tmp_path / "run", ooc.Dask(cluster))) == expected

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_refused_job_ends_the_run_with_its_text(
        self, tmp_path, made, cluster_of, monkeypatch, adaptive
    ):
        monkeypatch.setattr("skerch_ooc.executors.dask_waiting._QUIET_SECONDS", 0.5)
        with cluster_of("--partition=nowhere") as cluster:
            cluster.adapt(minimum_jobs=0, maximum_jobs=1) if adaptive else cluster.scale(jobs=1)
            with pytest.raises(ooc.IncompleteError, match=r"SLURMCluster .*invalid partition spec"):
                whole_run(made[0], tmp_path / "run", ooc.Dask(cluster))
