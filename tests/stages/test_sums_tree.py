"""Partial sums: tasks add them in the fixed tree, and open each shard once."""

from __future__ import annotations

import gc
import shutil

import pytest
from contents import file_contents, run_contents
from opens import files_opened
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.partition import Range, tree_sum, tree_sum_of_runs
from skerch_ooc.executors.serial import Serial
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.planning import tasks
from skerch_ooc.planning.sides import planned_sides
from skerch_ooc.planning.stage_names import RoundStage
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.store.sketch import Round

pytestmark = pytest.mark.usefixtures("no_late_files")

TILES = 21
MERGE, VECTORS = RoundStage("merge"), RoundStage("vectors")


@pytest.fixture
def short_runs(monkeypatch):
    """Tasks of one tile, whose sums are added by four."""
    monkeypatch.setattr(tasks, "SMALLEST_RUN", 0)
    monkeypatch.setattr(tasks, "ADDED_AT_ONCE", 4)


@pytest.fixture(
    scope="module", params=["float32", pytest.param("float64", marks=pytest.mark.thorough)]
)
def measured(request, tmp_path_factory):
    """A measured run of 21 tiles."""
    folder = tmp_path_factory.mktemp("measured")
    spec = write_spec(
        folder, "synthetic", 6, sketch={"test_measurements": 3, "block": 3}, dtype=request.param,
        operator={"args": {"n": (TILES - 1) * 4096 + 99, "rank": 4, "dtype": request.param}},
    )  # fmt: skip
    run = ooc.plan(spec, folder / "run", threads=1)
    ooc.measure(run, threads=1)
    return run.directory


def share(index, of):
    return Work.of(Share(index, of), threads=1)


def copy_of(directory, folder):
    shutil.copytree(directory, folder / "run")
    return ooc.open_run(folder / "run")


def sums_of(run):
    (folder,) = run.sketch.iterdir()
    return {path.name: file_contents(path) for path in sorted(folder.glob("*sums*.h5"))}


def total_of(run):
    (path,) = run.sketch.glob("*/total.h5")
    return file_contents(path)


def test_groups_are_levels_of_the_tree_down_to_a_few(short_runs, measured):
    plan = ooc.open_run(measured).plan
    (side,) = planned_sides(plan, 1)
    levels = tasks.sums_groups(plan, side)
    assert [[(run.start, run.stop) for run in level] for level in levels] == [
        [(start, min(start + 4, TILES)) for start in range(0, TILES, 4)],
        [(0, 16), (16, TILES)],
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17, 31, 37, 64])
def test_sums_of_aligned_runs_add_up_in_the_tree_of_single_values(count):
    def add(left, right):
        return f"({left}+{right})"

    def whole(run):
        return len(run), tree_sum(map(str, range(run.start, run.stop)), add)

    expected = tree_sum(map(str, range(count)), add)
    for longest in (2, 4, 16):
        for cut_at in range(0, count, longest):
            short = [Range(i, i + 1) for i in range(cut_at)]
            runs = [Range(i, min(i + longest, count)) for i in range(cut_at, count, longest)]
            assert tree_sum_of_runs(map(whole, [*short, *runs]), add) == expected


def test_shares_add_their_partial_sums_and_the_total_has_the_same_bits(
    short_runs, measured, tmp_path
):
    serial = copy_of(measured, tmp_path / "serial")
    Merge(Round(serial)).run(Work.of(threads=1))
    run = copy_of(measured, tmp_path / "shares")
    for index in (2, 0, 1):
        perform_share(run, MERGE, share(index, 3))
    done = sums_of(run)
    assert {"sums.t0-4.h5", "sums.t20-21.h5", "sums.t0-16.h5", "sums.t16-21.h5"} <= set(done)
    with files_opened(run.sketch) as opened:
        Merge(Round(run)).run(Work.of(threads=1))
    assert sum("sums.t" in name for name in opened) == 2
    assert total_of(run) == total_of(serial)


class Elsewhere(Serial):
    """Runs tasks as workers do, which know names alone, but in this process."""

    remote = True


def test_workers_add_the_partial_sums_level_by_level(short_runs, measured, tmp_path):
    serial = copy_of(measured, tmp_path / "serial")
    Merge(Round(serial)).run(Work.of(threads=1))
    run = copy_of(measured, tmp_path / "workers")
    gc.collect()
    with files_opened(run.shards) as opened:
        Merge(Round(run)).run(Work.of(Elsewhere(), threads=1))
    assert {"sums.t0-4.h5", "sums.t0-16.h5", "sums.t16-21.h5"} <= set(sums_of(run))
    assert total_of(run) == total_of(serial)
    assert sorted(opened) == sorted(map(str, run.shards.iterdir()))


def test_sums_that_nobody_added_are_added_at_the_end(short_runs, measured, tmp_path):
    serial = copy_of(measured, tmp_path / "serial")
    Merge(Round(serial)).run(Work.of(threads=1))
    run = copy_of(measured, tmp_path / "shares")
    perform_share(run, MERGE, share(0, 1))
    (folder,) = run.sketch.iterdir()
    for lost in ("sums.t0-16.h5", "sums.t4-8.h5", "sums.t16-21.h5", "sums.t5-6.h5"):
        (folder / lost).unlink()
    Merge(Round(run)).run(Work.of(threads=1))
    assert total_of(run) == total_of(serial)


@pytest.mark.thorough
def test_share_that_is_done_again_forms_and_adds_nothing(short_runs, measured, tmp_path):
    run = copy_of(measured, tmp_path)
    perform_share(run, MERGE, share(0, 2))
    perform_share(run, MERGE, share(1, 2))
    before = {path: path.stat().st_ino for path in run.sketch.glob("*/*")}
    perform_share(run, MERGE, share(0, 2))
    assert {path: path.stat().st_ino for path in run.sketch.glob("*/*")} == before


@pytest.mark.parametrize("stage", [MERGE, VECTORS], ids=str)
def test_element_opens_each_shard_once_however_many_tasks_it_has(
    short_runs, measured, tmp_path, stage
):
    run = copy_of(measured, tmp_path)
    if stage == VECTORS:
        Merge(Round(run), rechunk=False).run(Work.of(threads=1))
    gc.collect()
    with files_opened(run.shards) as opened:
        perform_share(ooc.open_run(run.directory), stage, share(0, 2))
    assert sorted(opened) == sorted(map(str, run.shards.iterdir()))


@pytest.mark.thorough
def test_whole_run_in_shares_makes_the_result_of_a_serial_run(short_runs, measured, tmp_path):
    serial = copy_of(measured, tmp_path / "serial")
    ooc.recover(serial, threads=1)
    run = copy_of(measured, tmp_path / "shares")
    for name in ("merge", "solve", "vectors", "assess"):
        for index in (1, 0):
            perform_share(run, RoundStage(name), share(index, 2))
    expected = run_contents(serial.directory)
    found = run_contents(run.directory)
    assert {name: found[name] for name in expected} == expected
