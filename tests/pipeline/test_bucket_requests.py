"""Requests of runs in an object store: few, long ones, as many as the plan foretells."""

from __future__ import annotations

import sys

import pytest
from peaks import run_with_peak

import skerch_ooc as ooc
from skerch_ooc.base.resources import parse_bytes
from skerch_ooc.pipeline.start import planned_before
from skerch_ooc.store.arrival import open_grown

READS, WRITES = {"get", "head"}, {"put", "create", "copy", "begin", "part", "finish"}


def planned(run_dir, rows, columns, block, **recovery):
    spec = ooc.Spec(
        kind="eigh", measurements=columns, seed=1, dtype="float32",
        operator={"factory": "skerch_ooc.operators.synthetic:decaying",
                  "args": {"n": rows, "rank": 20}},
        sketch={"test_measurements": 10, "block": block}, recovery=recovery,
    )  # fmt: skip
    return ooc.plan(spec, run_dir)


def foretold(run):
    return planned_before(run).costs.requests


def made(faulty):
    """How many requests that read, write and list there were."""
    kinds = faulty.kinds()
    count = [sum(kinds[kind] for kind in group) for group in (READS, WRITES, {"list"})]
    faulty.forget()
    return count


@pytest.mark.thorough
def test_measuring_and_merging_310_shards_make_as_many_requests_as_the_plan_says(bucket, faulty):
    run = planned(bucket, 300, 300, 1)
    said = foretold(run)
    for stage in (ooc.measure, ooc.merge):
        made(faulty)
        stage(run)
        each = said[stage.__name__]
        assert sum(made(faulty)) == pytest.approx(each.get + each.put + each.list, rel=0.1)


@pytest.mark.thorough
def test_recovery_and_assessment_make_no_more_requests_than_the_plan_says(bucket, faulty):
    run = planned(bucket, 9000, 64, 16)
    ooc.measure(run)
    ooc.merge(run)
    said = foretold(run)
    for stage in (ooc.recover, ooc.assess):
        made(faulty)
        stage(run)
        each = said[stage.__name__]
        assert sum(made(faulty)) <= 1.2 * (each.get + each.put + each.list)


def test_row_tiles_of_all_shards_are_read_once(bucket, faulty):
    run = planned(bucket, 9000, 12, 4)
    ooc.measure(run)
    made(faulty)
    ooc.merge(run)
    of_shards = [r for r in faulty.requests if r.kind == "get" and r.key.count("/shards/")]
    # Metadata at both ends of the file, and all three tiles at once.
    assert max(sum(r.key == key for r in of_shards) for key in {r.key for r in of_shards}) <= 3


def test_slice_of_vectors_is_one_range(bucket, faulty):
    run = planned(bucket, 9000, 12, 4)
    for stage in (ooc.measure, ooc.merge):
        stage(run)
    vectors = ooc.recover(run).eigenvectors
    vectors[:1]
    made(faulty)
    vectors[4000:9000]
    assert [request.kind for request in faulty.requests] == ["get"]


def test_tasks_of_a_process_read_the_plan_once(bucket, faulty):
    run = planned(bucket, 300, 12, 4)
    open_grown(bucket, 1)
    made(faulty)
    assert open_grown(bucket, 1).plan == run.plan
    assert [request.kind for request in faulty.requests] == ["head"]


def test_plan_that_has_grown_is_read_again(bucket):
    planned(bucket, 300, 12, 4)
    open_grown(bucket, 1)
    ooc.extend(ooc.open_run(bucket), measurements=16)
    assert len(open_grown(bucket, 2).plan.amendments) == 2


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("verb", ["merge", "recover"])
def test_windows_keep_within_the_memory_that_is_promised(bucket, tmp_path, verb):
    run = planned(bucket, 200_000, 128, 16, rank=32)
    ooc.measure(run)
    memory = "400MiB"
    if verb == "recover":
        ooc.merge(run)
    done, peak = run_with_peak(tmp_path, verb, bucket, "--memory", memory)
    assert done.returncode == 0, done.stderr
    assert peak <= parse_bytes(memory)
