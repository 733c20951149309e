"""Tasks that are counted by arithmetic are those that one finds by looking at each block."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import skerch_ooc as ooc
from skerch_ooc.executors.slurm.elements import pack
from skerch_ooc.stages.measure.missing import columns_of, missing_numbers, missing_tasks
from skerch_ooc.store.sketch import Round

SIZE = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("missing")


def planned(folder, block, measurements, grown):
    """A run of two roles, whose right columns are cut twice; its operator is never built."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    spec = {
        "measurements": measurements,
        "operator": {"factory": "nowhere:make", "shape": [SIZE, SIZE]},
        "sketch": {"block": block, "test_measurements": 11},
    }
    return ooc.extend(ooc.plan(spec, folder / "run"), measurements + grown)


def publish(run, role, ranges):
    """Names alone tell what is there."""
    for start, length in ranges:
        stop = min(start + length, run.plan.reach(role))
        if start < stop:
            (run.shards / f"{role}.p0.c{start}-{stop}.r0-{SIZE}.h5").touch()


def looked_at(round_):
    """Number, role and columns of what is missing, block by block."""
    missing = {strip.role: ranges for strip, ranges in round_.missing_strips().items()}
    blocks = [(role, b) for role in round_.planned for b in round_.run.plan.blocks(role)]
    return [
        (number, ((role, piece.start, piece.stop),))
        for number, (role, block) in enumerate(blocks)
        for gap in missing[role]
        if len(piece := gap.common(block))
    ]


shards = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    block=st.integers(1, 30),
    measurements=st.integers(1, 60),
    grown=st.integers(0, 40),
    right=shards,
    test=shards,
    of=st.integers(1, 7),
)
def test_missing_tasks_are_those_found_block_by_block(
    block, measurements, grown, right, test, of, folder
):
    run = planned(folder, block, measurements, grown)
    publish(run, "right", right)
    publish(run, "test", test)
    round_ = Round(run)
    expected = looked_at(round_)
    for index in range(of):
        tasks = missing_tasks(round_, "cpu", 1, (index, of))
        mine = [pair for pair in expected if pair[0] % of == index]
        assert [(task.number, task.blocks) for task in tasks] == mine
        assert len(tasks) == len(mine)
        assert sum(tasks.columns.values()) == sum(task.columns for task in tasks)
        if mine:
            assert columns_of(tasks.widest) == max(task.columns for task in tasks)
    assert list(missing_numbers(round_)) == sorted({number for number, _ in expected})


@given(
    first=st.integers(0, 50), count=st.integers(1, 200), most=st.integers(1, 50),
    limit=st.integers(1, 60),
)  # fmt: skip
def test_tasks_without_gaps_are_packed_as_if_they_were_counted(first, count, most, limit):
    numbers = range(first, first + count)
    packed = pack(numbers, most, limit)
    loads = [sum(1 for n in numbers if n % packed.of == i) for i in packed.indices]
    assert (max(loads), sum(loads)) == (packed.longest, count)
    for of in range(2, min(limit, first + count) + 1):
        if min(of, count) <= most:
            assert packed.longest <= -(-count // of)
