"""Why there are no workers: what is said is what was observed; another is started if it helps."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import subprocess
import sys

import dask
import pytest
from clusters import cluster_in
from distributed import LocalCluster, SpecCluster
from distributed.deploy.spec import ProcessInterface
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.executors.dask_local import Ends, local_client
from skerch_ooc.executors.dask_waiting import Watch

NO_DASHBOARD = {"dashboard_address": None, "scheduler_kwargs": {"dashboard_address": ":0"}}
REFUSAL = "sbatch: error: invalid partition specified: nowhere"


def spec_of(folder):
    return write_spec(folder, "matrix", 20, sketch={"test_measurements": 6, "block": 8})


@pytest.fixture
def planned(tmp_path):
    return ooc.plan(spec_of(tmp_path), tmp_path / "run", threads=1)


def preload(folder, text, role="worker"):
    """Settings by which workers run some lines as they start."""
    path = folder / "preload.py"
    path.write_text(text)
    return {f"distributed.{role}.preload": [str(path)]}


KILLED = "import os, pathlib\nos.kill(os.getpid(), 9)\n"
KILLED_AT_FIRST = """
import os, pathlib
folder = pathlib.Path({folder!r})
if len(list(folder.glob("start*"))) < {times}:
    (folder / f"start{{os.getpid()}}").touch()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("quick_workers")
class TestStartOfLocalWorkers:
    @pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.thorough)])
    def test_goes_on_when_a_worker_is_killed_several_times(self, tmp_path, planned, times):
        lines = KILLED_AT_FIRST.format(folder=str(tmp_path), times=times)
        with dask.config.set(preload(tmp_path, lines)):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)
        assert len(list(tmp_path.glob("start*"))) == times
        ooc.merge(planned, threads=1)

    def test_ends_when_all_are_killed(self, tmp_path, planned, monkeypatch):
        monkeypatch.setattr("skerch_ooc.executors.dask_local._MOST_STARTS", 2)
        with (
            dask.config.set(preload(tmp_path, KILLED)),
            pytest.raises(
                ooc.IncompleteError, match=r"killed by signal 9 \(.*\) as it started, 2 t"
            ),
        ):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("role", ["worker", "nanny", "scheduler"])
    def test_tells_what_a_preload_script_raises(self, tmp_path, planned, role):
        lines = "raise ValueError('no licence here')\n"
        with (
            dask.config.set(preload(tmp_path, lines, role)),
            pytest.raises(ooc.IncompleteError, match="this machine: ValueError: no licence here"),
        ):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)

    def test_names_the_exit_code_of_one_that_leaves(self, tmp_path, planned):
        with (
            dask.config.set(preload(tmp_path, "import os\nos._exit(3)\n")),
            pytest.raises(ooc.IncompleteError, match="ended with exit code 3 as it started"),
        ):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)

    def test_does_not_read_certificates_that_it_does_not_need(self, planned):
        keys = ("ca-file", "worker.cert", "worker.key", "scheduler.cert", "client.cert")
        with dask.config.set({f"distributed.comm.tls.{key}": "/nowhere" for key in keys}):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)
        ooc.merge(planned, threads=1)

    def test_tells_that_required_certificates_are_missing(self, planned):
        with (
            dask.config.set({"distributed.comm.require-encryption": True}),
            pytest.raises(ooc.IncompleteError, match="check your TLS configuration"),
        ):
            ooc.measure(planned, ooc.Dask(workers=1), threads=1)

    @pytest.mark.thorough
    @pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
    def test_is_encrypted_where_that_is_required(self, tmp_path):
        key, cert = tmp_path / "key", tmp_path / "cert"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=here",
             "-keyout", key, "-out", cert], check=True, capture_output=True,
        )  # fmt: skip
        tls = {"ca-file": cert} | {
            f"{role}.{what}": path
            for role in ("scheduler", "worker", "client")
            for what, path in (("cert", cert), ("key", key))
        }
        settings = {f"distributed.comm.tls.{name}": str(path) for name, path in tls.items()}
        with (
            dask.config.set(settings | {"distributed.comm.require-encryption": True}),
            local_client(1, 1) as (client, _),
        ):
            assert client.scheduler_info(0)["address"].startswith("tls://127.0.0.1:")
            assert client.submit(abs, -3).result() == 3


def start_in_daemon(run, said):
    try:
        ooc.measure(run, ooc.Dask(workers=1), threads=1)
    except ooc.UsageError as error:
        said.put(str(error))


def test_daemonic_process_is_told_that_it_may_not_start_workers(planned):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=start_in_daemon, args=(planned, said), daemon=True)
    process.start()
    process.join(30)
    assert "inside a task use ooc.Dask(distributed.get_client()), or ooc.Serial()" in said.get()


UNRELATED = """
import sys
if __name__ != "__main__":
    raise SystemExit("this script cannot be imported")
import skerch_ooc as ooc
ooc.measure(ooc.open_run("run"), executor=ooc.Dask(workers=1), threads=1)
"""


@pytest.mark.thorough
def test_script_that_fails_otherwise_is_not_blamed_on_its_guard(planned, tmp_path):
    (tmp_path / "script.py").write_text(UNRELATED)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "this script cannot be imported" in done.stderr
    assert "ended with exit code 1 as it started" in done.stderr.splitlines()[-1]


@pytest.mark.thorough
def test_command_whose_workers_do_not_start_is_incomplete(ooc_command, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "['no_such_module']")
    spec = spec_of(ooc_command.cwd)
    done = ooc_command("run", spec, "--run", "run", "--executor", "dask", "--workers", 1)
    assert (done.returncode, "No module named 'no_such_module'" in done.stderr) == (4, True)
    assert "Traceback" not in done.stderr
    assert "__main__" not in done.stderr


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        (Ends([-9, -9]), "killed by signal 9 (Killed) as it started, 2 times"),
        (Ends([-15, -9]), "killed by signal 9 (Killed) as it started, 1 time"),
        (Ends([1]), "ended with exit code 1 as it started"),
        (Ends([1], "OSError: no room"), "OSError: no room"),
    ],
)
def test_end_of_a_worker_is_told_as_it_was_observed(ends, text):
    assert text in str(ends)


def test_death_of_a_worker_at_work_is_told_as_it_was_observed():
    assert Ends().last_death() == ""
    assert Ends(deaths=[1, -9]).last_death() == "; the last of them was killed by signal 9 (Killed)"


def test_workers_that_were_given_up_are_not_waited_for():
    Ends([-9]).require_none_given_up()
    with pytest.raises(ooc.IncompleteError, match="killed by signal 9"):
        Ends([-9], given_up=1).require_none_given_up()


# Clusters


class Job(ProcessInterface):
    """A job that a queue refuses, so often as it was told."""

    refusals = 10**9

    def __init__(self, scheduler, name=None):
        super().__init__(scheduler, name)

    async def start(self):
        if Job.refusals:
            Job.refusals -= 1
            raise RuntimeError(f"Command exited with non-zero exit code.\nstderr:\n{REFUSAL}")
        await super().start()


@pytest.fixture
def refusing(monkeypatch):
    """A cluster object whose queue refuses its jobs."""
    monkeypatch.setattr("skerch_ooc.executors.dask_waiting._QUIET_SECONDS", 0.05)
    monkeypatch.setattr(Job, "refusals", 10**9)
    with LocalCluster(n_workers=0, processes=True, **NO_DASHBOARD) as cluster:
        assert isinstance(cluster, SpecCluster)
        cluster.new_spec = {"cls": Job, "options": {}}
        yield cluster


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestRefusedStart:
    def test_ends_with_its_text(self, refusing, planned):
        refusing.scale(1)
        with pytest.raises(ooc.IncompleteError, match=f"LocalCluster cannot start.*{REFUSAL}"):
            ooc.measure(planned, ooc.Dask(refusing), threads=1)

    def test_is_tried_again(self, refusing, planned, monkeypatch):
        # Once by Dask, once by us; then it waits.
        monkeypatch.setattr(Job, "refusals", 2)
        refusing.scale(1)
        with pytest.raises(ooc.IncompleteError, match="waited for 1 worker that LocalCluster has"):
            ooc.measure(planned, ooc.Dask(refusing, patience=1.0), threads=1)


class TestWaiting:
    @pytest.fixture
    def empty(self):
        with LocalCluster(n_workers=0, processes=True, **NO_DASHBOARD) as cluster:
            yield cluster

    def test_for_a_cluster_that_was_asked_for_none_says_so(self, empty, planned):
        with pytest.raises(ooc.IncompleteError, match="has been asked for none yet: scale or ada"):
            ooc.measure(planned, ooc.Dask(empty, patience=0.3), threads=1)

    def test_for_a_cluster_that_adapts_does_not_say_to_adapt_it(self, empty, planned):
        empty.adapt(minimum=0, maximum=0)
        with pytest.raises(ooc.IncompleteError, match="which adapts, and has asked for none yet;"):
            ooc.measure(planned, ooc.Dask(empty, patience=0.3), threads=1)

    def test_for_a_scheduler_says_what_to_start(self, tmp_path, planned):
        with cluster_in(tmp_path / "cluster") as cluster:
            cluster.start_scheduler()
            with pytest.raises(ooc.IncompleteError, match="by `dask worker`; start some"):
                ooc.measure(planned, ooc.Dask(cluster.file, patience=0.3), threads=1)

    def test_is_said_once_in_a_while(self, monkeypatch, caplog):
        class Client:
            cluster = None

            def scheduler_info(self, _):
                return {"n_workers": 0}

        now = iter(range(0, 400, 2))
        monkeypatch.setattr("skerch_ooc.executors.dask_waiting.time.monotonic", lambda: next(now))
        watch = Watch(Client(), None)
        with caplog.at_level(logging.WARNING):
            for _ in range(95):
                watch.look()
        said = [record.getMessage() for record in caplog.records]
        assert [text.partition("(")[2] for text in said] == [
            "6 s so far)", "66 s so far)", "126 s so far)", "186 s so far)",
        ]  # fmt: skip


class Other:
    """A cluster object that does not say what it has asked for."""


@pytest.mark.parametrize(
    ("cluster", "text"),
    [(None, "workers that somebody starts by `dask worker`"), (Other(), "workers of Other")],
)
def test_what_is_waited_for_is_what_is_known(cluster, text):
    class Client:
        def scheduler_info(self, _):
            return {"n_workers": 0}

    client = Client()
    client.cluster = cluster
    watch = Watch(client, 0.0)
    watch._since = -1.0
    with pytest.raises(ooc.IncompleteError, match=text):
        watch.look()


def test_cluster_object_that_is_asynchronous_is_refused():
    class Asynchronous:
        asynchronous = True

    with pytest.raises(ooc.UsageError, match="is asynchronous; give one that is not"):
        ooc.Dask(Asynchronous())


@pytest.mark.thorough
def test_command_waits_no_longer_than_its_patience(forked_command, tmp_path):
    spec = spec_of(forked_command.cwd)
    with cluster_in(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        done = forked_command(
            "run", spec, "--run", "run", "--executor", "dask", "--scheduler", cluster.file,
            "--patience", "1",
        )  # fmt: skip
    assert (done.returncode, "has had no workers for 1 s" in done.stderr) == (4, True)


@pytest.mark.parametrize("patience", [0, -1, float("nan"), "long"])
def test_patience_that_is_none_is_refused(patience):
    with pytest.raises(ooc.UsageError, match="patience = "):
        ooc.Dask(patience=patience)
