"""Many shards: what is left is known by names alone, however many files there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from opens import files_opened
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.partition import cut
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.slurm.options import JobOptions
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.pipeline.state import State
from skerch_ooc.pipeline.status import status
from skerch_ooc.pipeline.submission import require_earlier_stages, submit
from skerch_ooc.planning import tasks
from skerch_ooc.planning.stage_names import RoundStage
from skerch_ooc.stages.merge import task
from skerch_ooc.store import index, sketch
from skerch_ooc.store.shards import Rectangle, open_shard
from skerch_ooc.store.sketch import Round

pytestmark = pytest.mark.usefixtures("no_late_files")

SHARDS = 10_000
OPTIONS = JobOptions(max_array_size=1001)
FEW = 20
"""Files: plan, amendments, fingerprint and logs."""


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A run with the names of all its shards, which hold nothing: whoever opens one sees that."""
    folder = tmp_path_factory.mktemp("named")
    run = ooc.plan(
        {
            "kind": "eigh", "measurements": SHARDS, "dtype": "float32",
            "operator": {"factory": "none:none", "shape": [200_000, 200_000]},
            "sketch": {"block": 1, "test_measurements": 10},
        },
        folder / "run", memory="40GiB",
    )  # fmt: skip
    for strip in Round(run).strips:
        for column in cut(strip.columns, 1):
            (run.shards / Rectangle(strip.role, strip.part, column, strip.rows).name).touch()
    return run


@pytest.mark.thorough
def test_submit_and_status_of_ten_thousand_shards_open_few_files(named):
    with files_opened(named.directory) as opened:
        done = submit(ooc.open_run(named.directory), OPTIONS, dry_run=True)
        found = status(ooc.open_run(named.directory))
    assert [job.stage for job in done.jobs] == ["assess", "check"]
    assert found.columns_missing == ""
    assert len(opened) <= FEW


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Returns a planned run with several tasks in each stage, and a shard for each column."""
    monkeypatch.setattr(tasks, "SMALLEST_RUN", 0)

    def planned(columns, rows):
        spec = write_spec(
            tmp_path, "synthetic", columns, sketch={"test_measurements": 10, "block": 1},
            operator={"args": {"n": rows, "rank": 4}}, recovery={"rank": 3},
        )  # fmt: skip
        return ooc.plan(spec, tmp_path / "run", threads=1)

    return planned


@pytest.fixture
def measured(planned):
    """Returns such a run that is measured."""

    def measured(columns, rows):
        run = planned(columns, rows)
        ooc.measure(run, threads=1)
        return run

    return measured


def element(run, stage, index, of):
    """Does what an element of a job array does; lists the files that it opened."""
    with files_opened(run.directory) as opened:
        opened_run = ooc.open_run(run.directory)
        require_earlier_stages(opened_run, stage)
        perform_share(opened_run, stage, Work.of(Share(index, of), threads=1))
    return opened


def elements(run, stage, count):
    """Does what the elements of a job array do, each in a process of its own."""
    opened = []
    for number in range(count):
        # What another process would not know.
        sketch._OPENED.clear()
        sketch._DIGESTS.clear()
        task._merge_of_process.cache_clear()
        opened.append(element(run, stage, number, count))
    return opened


@pytest.fixture
def opened_whole(monkeypatch):
    """The column shards of which all that they state was read, each time again."""
    found = []

    def counting(run, folder, shard):
        if folder == run.shards:
            found.append(shard.name)
        return open_shard(run, folder, shard)

    for module in (index, sketch):
        monkeypatch.setattr(module, "open_shard", counting)
    return found


def names_once(opened, folder):
    """The names of the files in a folder that were opened, none of them twice."""
    found = [Path(path).name for path in opened if Path(path).parent == folder]
    assert len(found) == len(set(found))
    return found


def in_elements(planned, opened_whole, merging):
    """Measures and merges a run by elements, and checks what they open."""
    elements(planned, RoundStage("measure"), 3)
    shards = sorted(path.name for path in planned.shards.iterdir())
    assert sorted(opened_whole) == shards
    merged = elements(planned, RoundStage("merge"), merging)
    elements(planned, RoundStage("solve"), 1)
    elements(planned, RoundStage("vectors"), 2)
    # By the last element that measured, and by nobody else.
    assert sorted(opened_whole) == shards
    for opened in merged:
        # An element without a task reads no shard.
        assert sorted(names_once(opened, planned.shards)) in (shards, [])
        assert len(opened) <= len(shards) + FEW


def test_what_shards_state_is_read_once_whatever_the_number_of_elements(planned, opened_whole):
    in_elements(planned(30, rows=9000), opened_whole, merging=3)


@pytest.mark.soak
def test_what_310_shards_state_is_read_once_by_40_elements(planned, opened_whole):
    in_elements(planned(300, rows=160_000), opened_whole, merging=40)


@pytest.mark.thorough
def test_elements_of_310_shards_open_few_more_files_than_these(measured):
    run = measured(300, rows=36_000)
    for name in ("merge", "solve", "vectors"):
        assert len(element(run, RoundStage(name), 0, 1)) <= 310 + FEW, name


def test_what_is_left_of_a_merge_is_known_without_opening_shards(measured):
    run = measured(5, rows=9000)
    element(run, RoundStage("merge"), 1, 3)
    with files_opened(run.shards) as opened:
        left = {str(each.stage): list(each.tasks) for each in State(run, by_notes=True).left}
    assert left["merge"] == [0, 2]
    assert opened == []
