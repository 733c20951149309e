"""Workers that do not see the run as the client does, and files that show up late.

Each worker is a process with a mount namespace of its own: another folder, a copy, or a read-only
view is in the place of the shared one. Files are late where a worker writes to a folder of its own,
of which a helper copies what is complete into the shared one some seconds later.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time

import pytest
from clusters import DASK, cluster_in, in_own_view, needs_own_views
from contents import run_contents
from distributed import Client
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.patience import FILE_WAIT
from skerch_ooc.executors.sight import Sight, doubt_of
from skerch_ooc.store.arrival import Arrivals, once_seen

ROWS = 140_000
"""So many that merge and vectors have two tasks."""


class Shared:
    """A folder that hosts share, and a cluster of which some do not."""

    def __init__(self, root, cluster):
        self.root, self.cluster = root, cluster
        self.folder, self.other = root / "shared", root / "other"
        self.folder.mkdir()
        self.other.mkdir()
        self.spec = write_spec(
            root, "synthetic", 16, operator={"args": {"n": ROWS, "rank": 8}},
            sketch={"test_measurements": 4, "block": 4},
        )  # fmt: skip
        self._count = 0

    def planned(self, name="run"):
        return ooc.plan(self.spec, self.folder / name, memory="4GiB", threads=1)

    def worker(self, kind):
        """Starts a worker of a kind."""
        mounts = {
            "good": None,
            "blind": f"mount --bind {self.other} {self.folder}",
            "read-only": f"mount --bind {self.folder} {self.folder} && "
                         f"mount -o remount,ro,bind {self.folder}",
        }[kind]  # fmt: skip
        command = DASK if mounts is None else (*in_own_view(mounts), *DASK)
        self.cluster.start_worker(command)
        self._count += 1
        with Client(scheduler_file=str(self.cluster.file), set_as_default=False) as client:
            client.wait_for_workers(self._count, timeout=120)

    def do(self, stage, run):
        executor = ooc.Dask(self.cluster.file)
        return getattr(ooc, stage)(run, executor=executor, threads=1, memory="4GiB")

    def done_before(self, stage, run):
        """Does what comes before a stage, in this process."""
        for before in ("measure", "merge", "recover"):
            if before == stage:
                return
            getattr(ooc, before)(run, threads=1, memory="4GiB")

    @contextlib.contextmanager
    def copying(self, seconds):
        """Copies what workers publish in the other folder, so much later; private files at once."""
        end = threading.Event()
        since: dict[str, float] = {}
        copied: set[str] = set()

        def copy_late(path):
            name = str(path.relative_to(self.other))
            private = path.name.startswith(".tmp-")
            if name in copied or path.is_dir() or (private and path.stat().st_size > 64):
                return
            late = seconds if path.suffix == ".h5" else 0
            if time.monotonic() >= since.setdefault(name, time.monotonic()) + late:
                copied.add(name)
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    shutil.copy2(path, self.root / "copied")
                    os.rename(self.root / "copied", target)

        def copy_at_once(path):
            target = self.other / path.relative_to(self.folder)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif not target.exists():
                copied.add(str(path.relative_to(self.folder)))
                shutil.copy2(path, self.root / "copied")
                os.rename(self.root / "copied", target)

        def copy():
            while not end.is_set():
                for source, to_other in ((self.other, copy_late), (self.folder, copy_at_once)):
                    for path in sorted(source.rglob("*")):
                        # Others remove files meanwhile.
                        with contextlib.suppress(OSError):
                            to_other(path)
                time.sleep(0.05)

        thread = threading.Thread(target=copy)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


@pytest.fixture
def shared(tmp_path):
    needs_own_views()
    with cluster_in(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        yield Shared(tmp_path, cluster)


def receipts(run):
    path = run.logs / "receipts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def products(run):
    return sum(r["products"] for r in receipts(run) if r["stage"] == "measure")


STAGES = ("measure", "merge", "recover")
FAULTS = ("blind", "read-only", "copy")
WHY = {
    "blind": "No such file or directory",
    "read-only": "Read-only file system",
    "copy": "another copy",
}


@pytest.mark.thorough
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_worker_that_does_not_see_the_run_is_left_out_and_named(
    shared, stage, fault, monkeypatch, caplog
):
    monkeypatch.setenv(FILE_WAIT, "2")
    run, expected = shared.planned(), shared.planned("expected")
    for one in (run, expected):
        shared.done_before(stage, one)
    getattr(ooc, stage)(expected, threads=1, memory="4GiB")
    if fault == "copy":
        shutil.copytree(run.directory, shared.other / "run")
    shared.worker("read-only" if fault == "read-only" else "blind")
    with pytest.raises(ooc.IncompleteError, match=f"no worker sees .*{WHY[fault]}"):
        shared.do(stage, run)
    shared.worker("good")
    shared.do(stage, run)
    if fault == "read-only":  # Others may still be waited for when the last task ends.
        assert "left out" in caplog.text
        assert WHY[fault] in caplog.text
    assert run_contents(run.directory) == run_contents(expected.directory)


@pytest.mark.thorough
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.soak),
                                     pytest.param(80, marks=pytest.mark.soak)])  # fmt: skip
@pytest.mark.parametrize("beside", [False, True])
def test_files_that_show_up_late_are_waited_for(shared, stage, seconds, beside):
    run, expected = shared.planned(), shared.planned("expected")
    for one in (run, expected):
        shared.done_before(stage, one)
    getattr(ooc, stage)(expected, threads=1, memory="4GiB")
    with shared.copying(seconds):
        shared.worker("blind")
        if beside:
            shared.worker("good")
        shared.do(stage, run)
    assert run_contents(run.directory) == run_contents(expected.directory)
    assert products(run) == 20


@pytest.mark.thorough
def test_files_that_never_show_up_are_named_and_not_taken_for_a_good_end(shared, monkeypatch):
    monkeypatch.setenv(FILE_WAIT, "3")
    run = shared.planned()
    with shared.copying(3600):
        shared.worker("blind")
        with pytest.raises(ooc.IncompleteError, match=r"worker tcp.* published: .*shards/") as told:
            shared.do("measure", run)
    assert str(run.shards) in str(told.value)
    monkeypatch.undo()
    shutil.copytree(shared.other / "run/shards", run.shards, dirs_exist_ok=True)
    before = products(run)
    assert ooc.measure(run, threads=1)
    assert products(run) - before < 20


class TestProof:
    """What a worker finds, in this process."""

    def test_who_sees_the_folder_is_admitted(self, tmp_path):
        sight = Sight(str(tmp_path))
        answer = doubt_of(sight.proof())
        assert sight.admits(answer)
        assert doubt_of(sight.proof(answer.process)) is None
        assert doubt_of(sight.proof()) is None
        sight.close()
        assert list(tmp_path.iterdir()) == []

    def test_folder_of_another_host_is_not_admitted_before_its_answer_arrives(self, tmp_path):
        here, there = tmp_path / "here", tmp_path / "there"
        for folder in (here, there):
            folder.mkdir()
        sight = Sight(str(here))
        (token,) = here.iterdir()
        shutil.copy(token, there)
        proof = sight.proof()
        answer = doubt_of(type(proof)(str(there), proof.name, proof.token))
        assert not sight.admits(answer)
        shutil.copy(there / answer.wrote, here)
        assert sight.admits(answer)

    @pytest.mark.parametrize("content", [None, [], ["plan.json"]])
    def test_what_is_there_instead_is_said(self, tmp_path, content):
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        if content is not None:
            there.mkdir()
        for name in content or ():
            (there / name).touch()
        proof = Sight(str(here)).proof()
        answer = doubt_of(type(proof)(str(there), proof.name, proof.token))
        said = {None: "No such file", "": "is empty", "plan.json": "another copy"}
        assert said[content[0] if content else content if content is None else ""] in str(answer)

    def test_last_worker_that_is_left_out_ends_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setenv(FILE_WAIT, "0")
        here = tmp_path / "here"
        here.mkdir()
        sight = Sight(str(here))
        proof = sight.proof()
        answer = doubt_of(type(proof)(str(tmp_path / "there"), proof.name, proof.token))
        assert not sight.admits(answer)
        sight.look([answer.worker, "tcp://another:1"])
        assert sight.allowed([answer.worker, "tcp://another:1"]) == ["tcp://another:1"]
        with pytest.raises(ooc.IncompleteError, match="no worker sees"):
            sight.look([answer.worker])


class TestArrivals:
    """Files that receipts name."""

    def test_late_file_is_waited_for(self, tmp_path):
        arrivals = Arrivals(tmp_path)
        arrivals.note({"files": ["late"], "by": "somebody"})
        timer = threading.Timer(0.2, (tmp_path / "late").touch)
        timer.start()
        arrivals.wait()
        timer.join()

    def test_file_that_never_comes_is_named_with_its_maker(self, tmp_path, monkeypatch):
        monkeypatch.setenv(FILE_WAIT, "0.1")
        arrivals = Arrivals(tmp_path)
        arrivals.note({"files": ["shards/one.h5"], "by": "worker tcp://w:1 on node7"})
        with pytest.raises(ooc.IncompleteError, match=r"worker tcp://w:1 on node7 .*shards/one.h5"):
            arrivals.wait()

    def test_what_a_task_needs_is_found_once_it_is_seen(self, tmp_path):
        timer = threading.Timer(0.2, (tmp_path / "late").write_text, ["found"])
        timer.start()
        assert once_seen(str(tmp_path), (tmp_path / "late").read_text) == "found"
        timer.join()

    @pytest.mark.parametrize("said", ["soon", "-1", "inf"])
    def test_wait_that_is_no_number_of_seconds_is_refused(self, tmp_path, monkeypatch, said):
        monkeypatch.setenv(FILE_WAIT, said)
        with pytest.raises(ooc.UsageError, match=FILE_WAIT):
            Arrivals(tmp_path)


def test_shards_that_vanish_are_no_good_end(tmp_path, monkeypatch):
    spec = write_spec(tmp_path, "matrix", 40, sketch={"test_measurements": 4, "block": 8})
    run = ooc.plan(spec, tmp_path / "run", threads=1)

    class Vanishing(ooc.Serial):
        def run(self, function, tasks, threads):
            yield from super().run(function, tasks, threads)
            next(run.shards.iterdir()).unlink()

    with pytest.raises(ooc.IncompleteError, match="gone again"):
        ooc.measure(run, Vanishing(), threads=1)


@pytest.mark.parametrize("url", ["hdfs://host/run", "https://host/run"])
def test_url_is_no_run_directory(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    spec = write_spec(tmp_path, "matrix", 40)
    for call in (lambda: ooc.plan(spec, url), lambda: ooc.open_run(url)):
        with pytest.raises(ooc.UsageError, match="is a URL"):
            call()
    assert not list(tmp_path.glob("*:*"))


def test_links_in_the_path_of_a_run_are_sent_as_given(tmp_path):
    from skerch_ooc.stages.measure.missing import missing_tasks
    from skerch_ooc.store.sketch import Round

    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    spec = write_spec(tmp_path, "matrix", 40)
    run = ooc.plan(spec, tmp_path / "link/run", threads=1)
    task, *_ = missing_tasks(Round(run), "cpu", 1)
    assert task.run == str(tmp_path / "link/run")
