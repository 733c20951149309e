"""What more workers gain: a list schedule, bounded by the scheduler."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerch_ooc.cli.tables import plan_table
from skerch_ooc.operators.probe import Probe
from skerch_ooc.pipeline.cost import estimate
from skerch_ooc.pipeline.start import Planned
from skerch_ooc.planning.plan import Amendment, Cut, Identity, Plan
from skerch_ooc.planning.scaling import (
    FILE_SECONDS,
    TASK_OVERHEAD,
    WORKER_START,
    WRITE_RATE,
    Alike,
    measure_seconds,
    useful_workers,
    useful_workers_of,
    wall_seconds,
)
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.store.rundir import create_run

relaxed = settings(deadline=None)
times = st.lists(st.floats(0, 1e4), min_size=1, max_size=40)
counts = st.integers(1, 60)
overheads = st.floats(0, 10)


def at_least(limit):
    """The least that a sum of rounded terms may be."""
    return limit * (1 - 1e-12)


class TestSecondsOfMeasuring:
    @pytest.mark.parametrize(
        ("tasks", "workers", "expected"),
        [
            ([3.0, 1.0, 1.0, 1.0], 2, 3.0),
            ([1.0, 1.0, 1.0, 3.0], 2, 4.0),  # the longest last: half the workers wait for it
            ([2.0] * 7, 3, 6.0),
            ([2.0] * 7, 100, 2.0),
            ([], 4, 0.0),
        ],
        ids=str,
    )
    def test_tasks_go_in_order_to_whoever_is_free(self, tasks, workers, expected):
        assert measure_seconds(tasks, workers, overhead=0) == expected

    def test_the_scheduler_is_the_limit_of_short_tasks(self):
        assert measure_seconds([0.1] * 1000, 500, overhead=0.01) == pytest.approx(10.1)

    def test_tasks_are_handed_out_one_after_the_other(self):
        assert measure_seconds([8.0] * 4, 2, overhead=0.5) == 17.0

    def test_nothing_to_do_takes_no_time(self):
        assert measure_seconds([], 2) == 0.0

    @pytest.mark.parametrize("workers", [0, -1])
    def test_no_workers_are_refused(self, workers):
        with pytest.raises(ValueError, match=f"workers = {workers}: must be at least 1"):
            measure_seconds([1.0], workers)

    @relaxed
    @given(times)
    def test_one_worker_takes_the_sum(self, tasks):
        assert measure_seconds(tasks, 1, overhead=0) == pytest.approx(sum(tasks))

    @relaxed
    @given(times, counts, overheads)
    def test_no_faster_than_all_workers_busy(self, tasks, workers, overhead):
        found = measure_seconds(tasks, workers, overhead=overhead)
        assert found >= at_least(sum(tasks) / workers)

    @relaxed
    @given(times, counts, overheads)
    def test_no_faster_than_the_longest_task(self, tasks, workers, overhead):
        assert measure_seconds(tasks, workers, overhead=overhead) >= max(tasks)

    @relaxed
    @given(times, counts, overheads)
    def test_no_faster_than_the_scheduler(self, tasks, workers, overhead):
        found = measure_seconds(tasks, workers, overhead=overhead)
        assert found >= len(tasks) * overhead

    @relaxed
    @given(times, counts)
    def test_no_slower_than_grahams_bound(self, tasks, workers):
        # Whatever the order, a list schedule exceeds the mean load by less than the longest task.
        found = measure_seconds(tasks, workers, overhead=0)
        assert at_least(found) <= sum(tasks) / workers + (1 - 1 / workers) * max(tasks)

    @relaxed
    @given(times, counts, overheads)
    def test_another_worker_makes_it_no_slower(self, tasks, workers, overhead):
        # Other than for dependent tasks: the workers' sorted ends only ever become earlier.
        more = measure_seconds(tasks, workers + 1, overhead=overhead)
        assert at_least(more) <= measure_seconds(tasks, workers, overhead=overhead)

    @relaxed
    @given(times, counts, overheads)
    def test_workers_without_a_task_change_nothing(self, tasks, workers, overhead):
        enough = measure_seconds(tasks, len(tasks), overhead=overhead)
        assert measure_seconds(tasks, len(tasks) + workers, overhead=overhead) == enough


def one_by_one(tasks, workers, overhead):
    """The same schedule, each task by itself."""
    ends = [0.0] * workers
    for number, seconds in enumerate(tasks, 1):
        ends.sort()
        ends[0] = max(ends[0], number * overhead) + seconds
    return max(ends)


class TestTasksThatAreAlike:
    @relaxed
    @given(
        st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.0, 7.5]), st.integers(1, 90)), min_size=1,
                 max_size=5),
        st.integers(1, 12),
        st.sampled_from([0.0, 0.01, 0.125, 1.0, 3.0]),
    )  # fmt: skip
    def test_take_as_long_as_each_by_itself(self, alike, workers, overhead):
        tasks = [seconds for seconds, count in alike for _ in range(count)]
        found = wall_seconds([Alike(*each) for each in alike], workers, overhead=overhead)
        assert found == pytest.approx(one_by_one(tasks, workers, overhead))

    def test_as_many_as_columns_of_a_large_run_are_counted_not_listed(self):
        tasks = [Alike(600.0, 10**15), Alike(300.0)]
        assert wall_seconds(tasks, 1000) == pytest.approx(6e14)
        assert useful_workers_of(tasks) == 1_200_000


class TestWriting:
    def test_products_that_take_no_time_take_as_long_as_writing_them(self):
        plan, probe = a_plan(), a_probe(0.0)
        files = sum(plan.block_count(role) for role in ("right", "test"))
        assert estimate(plan, probe).seconds > files * FILE_SECONDS

    def test_workers_without_number_write_to_one_disk(self):
        plan = a_plan(columns=4_000_000, block=1000)
        found = estimate(plan, a_probe(1e-9))
        assert min(found.seconds_with.values()) > found.shard_bytes / WRITE_RATE


class TestUsefulWorkers:
    @pytest.mark.parametrize(
        ("tasks", "overhead", "expected"),
        [
            ([10.0] * 17, 0.01, 17),  # no more than tasks
            ([1.0] * 1000, 0.01, 100),  # no more than the scheduler keeps busy
            ([0.5, 1.5] * 500, 0.01, 100),
            ([1.0] * 1000, 0.0, 1000),
            ([0.001] * 1000, 0.01, 1),
            ([], 0.01, 1),
        ],
        ids=lambda value: str(value)[:12],
    )
    def test_is_the_number_of_tasks_or_of_those_that_are_kept_busy(self, tasks, overhead, expected):
        assert useful_workers(tasks, overhead=overhead) == expected

    @relaxed
    @given(st.floats(1e-3, 1e4), st.integers(1, 40), counts, overheads)
    def test_more_gain_little_where_tasks_are_equal(self, seconds, tasks, more, overhead):
        useful = useful_workers([seconds] * tasks, overhead=overhead)
        least = measure_seconds([seconds] * tasks, useful + more, overhead=overhead)
        # The last tasks may end together, or one by one.
        assert measure_seconds([seconds] * tasks, useful, overhead=overhead) <= least + seconds


def a_plan(method="nystrom", block=10, columns=400):
    identity = Identity(
        kind="eigh", factory="file.py:make", args={}, factory_sha256="ab" * 32,
        shape=(100_000, 100_000), dtype="float32", seed=1,
        noise={"right": "rademacher", "test": "gaussian"},
    )  # fmt: skip
    amendment = Amendment(
        run_id=identity.run_id, number=1, recovery=RecoverySpec(method=method), device="cpu",
        blocks={"right": Cut(0, columns, block), "test": Cut(0, 20, block)}, folder="..",
    )  # fmt: skip
    return Plan(identity, (amendment,))


def a_probe(seconds):
    """One whose blocks of 10 columns take so many seconds."""
    return Probe(
        products=18, repetition=0, width_difference=0, asymmetry=0, norm=1, call_seconds=0.0,
        column_seconds=seconds / 10, column_bytes=0, baseline_bytes=10**8,
    )  # fmt: skip


class TestEstimate:
    def test_without_a_probe_nothing_is_said(self):
        costs = estimate(a_plan(), None)
        assert (costs.seconds, costs.seconds_with, costs.useful_workers) == (None, None, None)

    def test_one_worker_is_this_process(self):
        costs = estimate(a_plan(), a_probe(10.0))
        assert costs.seconds_with[1] == costs.seconds == pytest.approx(420.0)

    def test_many_workers_start_and_try_one_product_each(self):
        costs = estimate(a_plan(), a_probe(10.0))
        assert costs.seconds_with[4] == pytest.approx(
            WORKER_START + 1.0 + 110.0, abs=42 * TASK_OVERHEAD
        )

    def test_counts_go_up_to_what_is_useful(self):
        costs = estimate(a_plan(), a_probe(10.0))
        assert costs.useful_workers == 42
        assert list(costs.seconds_with) == [1, 4, 16]

    def test_useful_is_what_the_scheduler_keeps_busy(self):
        costs = estimate(a_plan(block=1, columns=8000), a_probe(100 * TASK_OVERHEAD))
        assert costs.useful_workers == 10

    def test_later_rounds_wait_for_the_one_before(self):
        one, two = (estimate(a_plan(m), a_probe(10.0)) for m in ("nystrom", "hmt"))
        assert two.seconds_with[4] == pytest.approx(one.seconds_with[4] + 100.0, abs=0.5)
        assert two.seconds_with[16] == pytest.approx(one.seconds_with[16] + 30.0, abs=0.5)

    def test_no_more_workers_where_all_is_done_before_they_have_started(self):
        costs = estimate(a_plan(), a_probe(0.01))
        assert (costs.useful_workers, list(costs.seconds_with)) == (1, [1])

    def test_is_written_as_json(self):
        costs = json.loads(json.dumps(asdict(estimate(a_plan(), a_probe(10.0)))))
        assert costs["seconds_with"].keys() == {"1", "4", "16"}
        assert costs["useful_workers"] == 42


class TestTable:
    @pytest.fixture
    def table(self, tmp_path):
        def made(plan, probe):
            run = create_run(tmp_path / "run", plan.identity, plan.amendments[0])
            return plan_table(Planned(run, estimate(plan, probe), findings=probe))

        return made

    def test_says_what_more_workers_gain(self, table):
        row = "on workers    4: 113.5 s, 16: 33.5 s; more than 42 do not help\n"
        assert row in table(a_plan(), a_probe(10.0))

    def test_says_when_they_gain_nothing(self, table):
        assert "on workers    more than 1 do not help\n" in table(a_plan(), a_probe(0.01))

    def test_says_nothing_without_a_probe(self, table):
        assert "workers" not in table(a_plan(), None)

    @pytest.mark.thorough
    @pytest.mark.parametrize("seconds", [1.0, 100.0, 1e7])
    def test_many_counts_fit_80_columns(self, table, seconds):
        text = table(a_plan(block=1, columns=90_000), a_probe(seconds))
        lines = text.splitlines()[1:]
        assert max(map(len, lines)) <= 80
        assert not any(line.endswith(":") for line in lines)
        assert re.search(r"on workers.*do not help$", text, re.S | re.M)
