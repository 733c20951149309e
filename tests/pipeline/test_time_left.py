"""Status says how long a stage will still take, by receipts, pieces, or the probe of the plan."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time

import numpy as np
import pytest
import scipy.sparse

import skerch_ooc as ooc
from skerch_ooc.cli import tables
from skerch_ooc.pipeline import status as status_module
from skerch_ooc.pipeline.status import TimeLeft, status
from skerch_ooc.planning import tasks

SPEC = {
    "measurements": 10, "sketch": {"block": 2, "test_measurements": 10},
    "operator": {"factory": "decaying", "args": {"n": 50, "rank": 20}, "shape": [50, 50]},
}  # fmt: skip


@pytest.fixture
def planned(tmp_path):
    """A run that was planned without a look at the operator."""
    return ooc.plan(SPEC, tmp_path / "run")


def receipt(seconds=3.0, products=2, pid=1, ago=0.0, **more):
    ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago)
    return {
        "stage": "measure", "round": 1, "products": products, "task_seconds": seconds,
        "published": True, "host": "h", "pid": pid, "time": ended.isoformat(),
    } | more  # fmt: skip


def left_of(run, *receipts):
    for one in receipts:
        run.record("receipts", one)
    return status(run).left


def test_is_unknown_where_nobody_has_applied_the_operator(planned, inside):
    assert left_of(planned) == TimeLeft("measure")
    assert "  time left  unknown\n" in inside("status", planned.directory).stdout


def test_is_what_the_probe_foretold_before_the_first_task(tmp_path, inside):
    run = ooc.plan(SPEC | {"operator": SPEC["operator"] | {"shape": None}}, tmp_path / "run")
    (record,) = run.log("plan")
    left = left_of(run)
    assert left.seconds == pytest.approx(record["estimate"]["seconds"])
    assert (left.workers, left.tasks) == (0, 0)
    shown = inside("status", run.directory).stdout
    assert "of measuring in one process; none is seen at work" in shown


def test_is_shared_by_the_workers_that_were_seen_lately(planned):
    found = left_of(planned, receipt(pid=1), receipt(5.0, pid=2), receipt(pid=3, ago=600.0))
    assert found == TimeLeft("measure", pytest.approx(20 * 11 / 6 / 2), workers=2, tasks=3)


def test_is_that_of_one_process_where_none_was_seen_lately(planned):
    assert left_of(planned, receipt(ago=3600.0)) == TimeLeft("measure", 30.0, workers=0, tasks=1)


def test_is_by_the_last_tasks(planned):
    slow = [receipt(100.0) for _ in range(3)]
    assert left_of(planned, *slow, *[receipt(1.0) for _ in range(64)]).seconds == 10.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_seconds": "long"}, {"task_seconds": 1e300}, {"task_seconds": True}, {"part": 7},
        {"part": "0"}, {"products": None}, {"time": 5}, {"time": "soon"}, {"stage": "merge"},
        {"published": False}, {"products": 0},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_receipt_of_a_task_is_left_out(planned, wrong):
    assert left_of(planned, receipt(**wrong)) == TimeLeft("measure")


def test_counts_only_what_is_missing(planned):
    ooc.measure(planned)
    sealed = sorted(planned.shards.iterdir())
    for path in sealed[:3]:
        path.unlink()
    (planned.logs / "receipts.jsonl").unlink()
    assert left_of(planned, receipt(pid=1)).seconds == pytest.approx(6 * 1.5)


@pytest.mark.parametrize("stage", ["merge", "recover", "assess"])
def test_of_later_stages_is_unknown(planned, stage):
    for step in ("measure", "merge", "recover"):
        if stage == step:
            break
        getattr(ooc, step)(planned)
    assert status(planned).left == TimeLeft(stage)


def test_is_in_the_json_and_gone_when_all_is_done(tmp_path, inside):
    ooc.eigh(np.eye(8), measurements=8, run_dir=tmp_path / "run")
    assert json.loads(inside("status", "run", "--json").stdout)["left"] is None
    assert "time left" not in inside("status", "run").stdout


def test_shown_line_names_workers_and_tasks(planned, inside):
    left_of(planned, receipt(pid=1), receipt(pid=2))
    shown = inside("status", planned.directory).stdout
    text = " ".join(shown.split())
    assert "about 15.0 s of measuring, by 2 workers, as the last 2 tasks took" in text


class TestPieces:
    """Of what is made in several pieces, those that are published tell it."""

    @pytest.fixture
    def merging(self, tmp_path, monkeypatch):
        """A run of which the first three of four pieces of the merge are there."""
        monkeypatch.setattr(tasks, "SMALLEST_RUN", 0)
        a = scipy.sparse.diags(0.5 ** np.arange(4 * 4096.0)).tocsr()
        given = {"measurements": 4, "test_measurements": 4, "run_dir": tmp_path / "run"}
        result = ooc.eigh(a, dtype="float64", **given)
        run = ooc.open_run(tmp_path / "run")
        shutil.rmtree(result.path.parent)
        for path in run.sketch.rglob("total.h5"):
            path.unlink()
        pieces = sorted(run.sketch.rglob("sums.t*"))
        assert len(pieces) == 4
        pieces.pop().unlink()
        for number, path in enumerate(pieces):
            at = time.time() - 100.0 + 10.0 * number
            os.utime(path, (at, at))
        return run

    def test_of_the_merge_are_counted_and_timed(self, merging, monkeypatch):
        monkeypatch.setattr(status_module, "_LEAST_PIECES", 2)
        left = status(merging).left
        assert (left.stage, left.done, left.pieces, left.tasks) == ("merge", 3, 4, 3)
        assert left.seconds == pytest.approx(10.0, abs=1e-3)

    def test_that_are_few_tell_no_time(self, merging):
        left = status(merging).left
        assert (left.seconds, left.done, left.pieces) == (None, 3, 4)
        assert tables._time_left(left) == "unknown; 3 of 4 pieces of merge are done"

    def test_pauses_do_not_count(self, tmp_path):
        paths = []
        for number, at in enumerate([0, 10, 20, 5000, 5010, 5020]):
            paths.append(tmp_path / str(number))
            paths[-1].touch()
            os.utime(paths[-1], (at, at))
        assert status_module._pace_of_files(paths) == (10.0, 6, False)
