"""How many columns an operator applies at once is chosen by the plan, and kept by every process."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from contents import run_contents
from factories import BEST, REMARKS, Narrowable, dense, narrowable
from peaks import run_with_peak
from runs import whole_run
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.executors.work import Work
from skerch_ooc.operators import examine
from skerch_ooc.operators.probe import Timing
from skerch_ooc.pipeline.start import make_plan, probe_spec
from skerch_ooc.planning.spec import Spec
from skerch_ooc.store import rundir

BLOCK = 20
IN_A_BLOCK = [BEST, BEST, BLOCK - 2 * BEST]


@pytest.fixture(autouse=True)
def best_width(monkeypatch):
    """Timing is left out where it is not what is tested: on a busy machine it errs."""
    times = {1: 1.0, 2: 1.1, 4: 1.3, BEST: 1.6, 16: 4.0}
    found = tuple(Timing(width, 0.001 * taken, 100 * width) for width, taken in times.items())
    tell(monkeypatch, found)


def tell(monkeypatch, timings):
    """Lets a trial of widths find these times."""
    trial = examine.WidthTrial(timings, 32, 10**8)
    monkeypatch.setattr(examine, "try_widths", lambda *_, **__: trial)


@pytest.fixture
def spec(tmp_path):
    return written(tmp_path)


def written(folder, *, factory="narrowable", seconds=0):
    return write_spec(
        folder, factory, 40, operator={"args": {} if seconds is None else {"seconds": seconds}},
        sketch={"block": BLOCK, "test_measurements": BLOCK},
    )  # fmt: skip


def amendment(run_dir, number=1):
    return json.loads((run_dir / f"plan.d/{number:04}.json").read_bytes())


def inner_widths(calls, others_than=()):
    """The widths of inner calls, but for those of the probe and of fingerprints."""
    return [call["width"] for call in calls if call["pid"] not in others_than]


class TestChosen:
    def test_plan_records_it_beside_the_blocks_and_not_in_the_identity(self, spec, tmp_path):
        run = ooc.plan(spec, tmp_path / "run")
        assert run.plan.parts[0].columns_at_once == BEST
        assert amendment(run.directory)["parts"] == [
            {"number": 0, "scale": 1.0, "columns_at_once": BEST}
        ]
        assert "columns_at_once" not in (run.directory / "plan.json").read_text()

    def test_other_operators_have_no_such_entry(self, tmp_path):
        run = ooc.plan({"measurements": 20}, tmp_path / "run", operator=torch.eye(60))
        assert amendment(run.directory)["parts"] == [{"number": 0, "scale": 1.0}]

    @pytest.mark.parametrize("value", [0, -1, True, 2.0, "8", 2**50])
    def test_plan_with_another_value_is_damaged(self, spec, tmp_path, value):
        run = ooc.plan(spec, tmp_path / "run")
        part = amendment(run.directory)["parts"][0] | {"columns_at_once": value}
        with pytest.raises(ooc.UsageError, match="is no part"):
            type(run.plan.parts[0]).from_json(part)

    def test_measured_in_this_process(self, spec, tmp_path, call_log):
        planned = make_plan(Spec.from_toml(spec), tmp_path / "run", Work.of(threads=1))
        before = len(call_log())
        ooc.measure(planned.run)
        # After one column for the fingerprint, three blocks.
        assert inner_widths(call_log()[before:]) == [1, *3 * IN_A_BLOCK]

    def test_operator_of_the_plan_goes_on_with_it(self, tmp_path, call_log):
        ooc.eigh(narrowable(seconds=0), measurements=40, block=BLOCK, test_measurements=BLOCK,
                 run_dir=tmp_path / "run")  # fmt: skip
        assert inner_widths(call_log())[-9:] == 3 * IN_A_BLOCK

    def test_measured_by_workers_of_dask(self, spec, tmp_path, call_log, quick_workers):
        whole_run(spec, tmp_path / "run", ooc.Dask(workers=2))
        widths = inner_widths(call_log(), {os.getpid()})
        assert sorted(width for width in widths if width != 1) == sorted(3 * IN_A_BLOCK)
        alone = whole_run(spec, tmp_path / "alone")
        assert run_contents(alone) == run_contents(tmp_path / "run")

    def test_resumed_run_goes_on_with_the_width_of_its_plan(self, spec, tmp_path, monkeypatch,
                                                            call_log):  # fmt: skip
        run = ooc.plan(spec, tmp_path / "run")
        # As if this machine were quickest at another width.
        tell(monkeypatch, (Timing(1, 0.001, 0),))
        before = len(call_log())
        ooc.run(spec, run.directory)
        assert inner_widths(call_log()[before:]) == [1, *3 * IN_A_BLOCK]

    def test_extended_run_goes_on_with_the_width_of_its_plan(self, spec, tmp_path, call_log):
        ooc.run(spec, tmp_path / "run")
        grown = ooc.extend(ooc.open_run(tmp_path / "run"), 60)
        assert grown.plan.parts[0].columns_at_once == BEST
        before = len(call_log())
        ooc.measure(grown)
        assert inner_widths(call_log()[before:]) == [1, *IN_A_BLOCK]

    def test_summand_that_is_added_has_a_width_of_its_own(self, spec, tmp_path, monkeypatch):
        ooc.run(spec, tmp_path / "run")
        tell(monkeypatch, (Timing(1, 0.001, 0), Timing(2, 0.001, 0)))
        run = ooc.update(ooc.open_run(tmp_path / "run"), narrowable(seed=1, seconds=0))
        assert [part.columns_at_once for part in run.plan.parts] == [BEST, 2]

    def test_terms_are_measured_with_it(self, tmp_path, call_log):
        spec = written(tmp_path, factory="narrowable_sum", seconds=None)
        run = ooc.plan(spec, tmp_path / "run")
        before = len(call_log())
        ooc.measure(run)
        assert inner_widths(call_log()[before:]) == 3 * [1] + 9 * IN_A_BLOCK

    def test_plan_without_it_leaves_the_operator_as_it_is(self, spec, tmp_path, call_log):
        run = ooc.plan(spec, tmp_path / "run")
        bare = dataclasses.replace(run.plan.parts[0], columns_at_once=None)
        first = dataclasses.replace(run.plan.amendments[0], parts=(bare,))
        old = rundir.create_run(tmp_path / "old", run.plan.identity, first)
        before = len(call_log())
        ooc.measure(old)
        assert inner_widths(call_log()[before:]) == [1, *3 * (6 * [3] + [2])]

    def test_operator_that_can_no_longer_be_told_is_measured_nevertheless(self, tmp_path):
        operator = narrowable(seconds=0)
        spec = {"measurements": 40, "sketch": {"block": BLOCK}}
        run = ooc.plan(spec, tmp_path / "run", operator=operator)
        assert ooc.measure(run, operator=operator.matrix)


class TestForetold:
    def test_memory_of_inner_calls_does_not_grow_with_the_block(self, tmp_path, monkeypatch):
        size = 1 << 28
        found = (Timing(1, 0.001, size), Timing(2, 0.0011, 2 * size))
        monkeypatch.setattr(
            examine, "try_widths", lambda *_, **__: examine.WidthTrial(found, 4, 10**8)
        )
        peaks = []
        for number, block in enumerate([4, 20]):
            spec = Spec(measurements=40, sketch={"block": block})
            planned = make_plan(
                spec, tmp_path / str(number), Work.of(memory="8GiB"), operator=narrowable(seconds=0)
            )
            peaks.append(planned.costs.peak_bytes["measure"] - planned.findings.baseline_bytes)
        # Two columns at once, whatever the block; each column of a block takes a few kB.
        assert 2 * size < min(peaks)
        assert max(peaks) < 2.3 * size

    def test_block_is_as_wide_as_time_allows_whatever_inner_calls_need(self, tmp_path, monkeypatch):
        found = (Timing(1, 0.001, 1 << 28), Timing(2, 0.0011, 1 << 29))
        monkeypatch.setattr(
            examine, "try_widths", lambda *_, **__: examine.WidthTrial(found, 4, 10**8)
        )
        run = ooc.plan({"measurements": 150}, tmp_path / "run", memory="2GiB",
                       operator=narrowable(seconds=0))  # fmt: skip
        assert run.plan.block_width == 128

    def test_block_holds_whole_inner_calls(self, tmp_path):
        spec = {"measurements": 150, "sketch": {"task_seconds": 0.02}}
        # 1.6 ms for 8 columns: 100 fit into the time.
        run = ooc.plan(spec, tmp_path / "run", operator=narrowable(seconds=0))
        assert run.plan.block_width == 96


class TestShown:
    def test_probe_shows_it_with_the_times_of_all_widths(self, inside, tmp_path):
        spec = written(tmp_path, seconds=0.004)
        done = inside("probe", spec)
        assert "columns at once  8 of a block, the best width by time and memory" in done.stdout
        rows = [line.split() for line in done.stdout.splitlines()]
        start = rows.index(["at", "once", "s", "s/column", "memory"])
        assert [row[0] for row in rows[start + 1 : start + 6]] == ["1", "2", "4", "8", "16"]
        figures = json.loads(inside("probe", spec, "--json").stdout)
        assert figures["findings"]["columns_at_once"] == BEST
        assert [one["columns"] for one in figures["findings"]["widths"]] == [1, 2, 4, 8, 16]

    def test_plan_shows_it_also_when_asked_again(self, inside, tmp_path, spec):
        first = inside("plan", spec, "--run", "run").stdout
        took = "per column of 1: 0.0010, 2: 5.5e-04, 4: 3.3e-04, 8: 2.0e-04, 16: 2.5e-04"
        assert took in " ".join(first.split())
        assert max(map(len, first.splitlines()[1:])) <= 80
        for shown in (first, inside("plan", spec, "--run", "run").stdout):
            assert "columns at once  8 of a block" in shown
        figures = json.loads(inside("plan", spec, "--run", "third", "--json").stdout)["probe"]
        assert [one["columns"] for one in figures["widths"]] == [1, 2, 4, 8, 16]

    def test_others_are_not_shown_it(self, inside, tmp_path):
        spec = written(tmp_path, factory="matrix", seconds=None)
        assert "at once" not in inside("probe", spec).stdout

    def test_remarks_are_shown_by_probe_plan_and_run(self, inside, spec):
        assert f"remarks          {REMARKS[0]}" in inside("probe", spec).stdout
        figures = json.loads(inside("probe", spec, "--json").stdout)
        assert figures["remarks"] == list(REMARKS)
        done = inside("run", spec, "--run", "run")
        assert f"operator: {REMARKS[1]}" in done.stderr
        assert REMARKS[1] in inside("plan", spec, "--run", "other").stdout
        assert json.loads(inside("plan", spec, "--run", "third", "--json").stdout)["remarks"]

    def test_remarks_are_kept_in_the_receipt_of_the_probe(self, spec, tmp_path):
        run = ooc.plan(spec, tmp_path / "run")
        (receipt,) = [one for one in run.receipts() if one["stage"] == "probe"]
        assert receipt["remarks"] == list(REMARKS)
        assert receipt["columns_at_once"] == BEST
        assert receipt["products"] == 18 + 32


@pytest.mark.thorough
def test_foretold_memory_is_kept_and_not_far_above(tmp_path):
    column = 8 << 20
    spec = write_spec(
        tmp_path, "narrowable", 60, operator={"args": {"bytes_of_column": column}},
        sketch={"block": 60},
    )  # fmt: skip
    planned, _ = run_with_peak(tmp_path, "plan", spec, "--run", "run", "--json")
    foretold = json.loads(planned.stdout)
    done, peak = run_with_peak(tmp_path, "measure", "run")
    assert done.returncode == 0
    assert peak <= foretold["costs"]["peak_bytes"]["measure"] < peak + (100 << 20)
    assert foretold["probe"]["inner_bytes"] > 0.8 * foretold["probe"]["columns_at_once"] * column


def test_widths_are_timed_where_a_plan_is_made(tmp_path, monkeypatch):
    monkeypatch.undo()
    probed = probe_spec({"measurements": 60}, operator=Narrowable(dense(200, dtype="float32")))
    assert [one.columns for one in probed.findings.widths][:4] == [1, 2, 4, 8]
    # Eight columns take as long as one; on a busy machine it is not sure which width wins.
    assert probed.findings.columns_at_once > 1
