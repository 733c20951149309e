"""A disk that cannot be read is not told as one that cannot be written; a log stops nothing."""

from __future__ import annotations

import errno
import os
import re

import numpy as np
import pytest
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base import disk_errors, files
from skerch_ooc.executors.dask_waiting import Watch
from skerch_ooc.executors.dask_workers import Flight, FlightTerms
from skerch_ooc.executors.sight import Sights
from skerch_ooc.store import rawfile
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.sealed import SealedFile, sealed_writer


def failing_with(number):
    return OSError(number, os.strerror(number))


@pytest.fixture
def planned(tmp_path):
    spec = write_spec(tmp_path, "matrix", 16, sketch={"test_measurements": 4, "block": 8})
    return ooc.plan(spec, tmp_path / "run", threads=1)


@pytest.fixture
def cannot_read(monkeypatch):
    """Bytes of tiles cannot be read any more."""

    def fail():
        def preadv(*_):
            raise failing_with(errno.EIO)

        monkeypatch.setattr(rawfile.os, "preadv", preadv)

    return fail


def test_stage_that_cannot_read_its_input_names_it(planned, cannot_read, inside):
    ooc.measure(planned, threads=1)
    cannot_read()
    done = inside("merge", planned.directory)
    assert done.returncode == 4
    assert re.search(r"cannot read \S*/shards/\S+\.h5: Input/output error; give", done.stderr)
    assert "cannot write" not in done.stderr


def test_file_that_is_written_of_one_that_cannot_be_read_is_not_blamed(tmp_path, cannot_read):
    layout = Layout("matrix", (8, 2), "float32", (4, 2))
    with sealed_writer(tmp_path / "a.h5", layout) as writer:
        for row in range(2):
            writer.write_rows(row, np.ones((4, 2), np.float32))
        writer.publish({"run": "x"})
    source = SealedFile(tmp_path / "a.h5")
    cannot_read()
    with (
        pytest.raises(disk_errors.ReadError, match=r"a\.h5"),
        sealed_writer(tmp_path / "b.h5", layout),
    ):
        source.bulk().read_tile(0, 0)
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(
    ("number", "exists", "text"),
    [
        (errno.ENOSPC, True, "cannot write "),
        (errno.EROFS, True, "cannot write "),
        (errno.EACCES, False, "cannot write "),
        (errno.EACCES, True, "cannot write "),
        (errno.ENOENT, True, None),
    ],
)
def test_failure_that_is_not_of_reading_is_told_as_what_it_is(tmp_path, number, exists, text):
    path = tmp_path / "file"
    if exists:
        path.write_text("x")
    found = disk_errors.explained(OSError(number, os.strerror(number), str(path)))
    assert (found is None) if text is None else str(found).startswith(f"{text}{path}: ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EPERM])
@pytest.mark.parametrize("call", ["open", "pread"])
def test_file_that_is_there_and_cannot_be_read_is_told_so(tmp_path, monkeypatch, number, call):
    path = tmp_path / "file"
    path.write_text("x")

    def fail(*_):
        raise failing_with(number)

    error = OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(files.os, call, fail)
    assert str(disk_errors.explained(error)).startswith(
        f"cannot read {path}: {os.strerror(number)}; "
    )


@pytest.mark.parametrize("log", ["plan", "receipts"])
def test_logs_that_can_be_neither_read_nor_written_stop_nothing(planned, inside, log):
    path = planned.logs / f"{log}.jsonl"
    path.unlink(missing_ok=True)
    # What stands in the place of a log is no file.
    path.mkdir()
    for verb in ("measure", "merge", "recover", "assess", "status", "verify", "report"):
        done = inside(verb, planned.directory)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


class Client:
    """One that is asked for workers, and nothing else."""

    cluster = None

    def scheduler_info(self, _):
        return {"n_workers": 1}

    def cancel(self, _):
        pass

    def gather(self, futures):
        assert not futures
        return []


def test_tasks_that_cannot_be_found_are_not_blamed_on_the_scheduler():
    def tasks():
        raise failing_with(errno.EIO)
        yield

    with pytest.raises(OSError, match="Input/output error"):
        list(flight_of(tasks()).receipts())


class Future:
    """One that the scheduler has let go of."""

    status = "lost"

    def add_done_callback(self, call):
        call(self)


def test_scheduler_that_lets_go_of_tasks_is_told_to_be_lost(monkeypatch):
    monkeypatch.setattr(Client, "map", lambda *_, **__: [Future()], raising=False)
    with pytest.raises(ooc.IncompleteError, match=r"was lost \(it has let go of the tasks\)"):
        list(flight_of(iter([1])).receipts())


def flight_of(tasks):
    client = Client()
    return Flight(client, abs, tasks, FlightTerms(1, Watch(client, None), Sights()))


def task_that_cannot_read(_):
    raise disk_errors.ReadError(errno.EIO, "Input/output error", "samples")


@pytest.mark.usefixtures("quick_workers")
def test_worker_that_cannot_read_says_so_with_its_name():
    with pytest.raises(ooc.IncompleteError, match=r"cannot read samples: .*; worker tcp://"):
        list(ooc.Dask(workers=1).run(task_that_cannot_read, [1], 1))
