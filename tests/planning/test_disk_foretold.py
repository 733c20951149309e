"""Disk and memory: ``plan`` against what then happens, for runs of different shape."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import skerch_ooc as ooc
from skerch_ooc.base.resources import SPARE_BYTES
from skerch_ooc.pipeline.cost import estimate
from skerch_ooc.planning import tasks
from skerch_ooc.planning.disk import run_files

PIECES = "pieces"
"""Marks runs whose tasks are of one tile, so that there are several."""

CASES = {
    "one task": {"n": 9_000},
    "several tasks": {"n": 30_000, "marks": PIECES},
    "svd": {"n": 20_000, "kind": "svd", "marks": PIECES},
    "double": {"n": 20_000, "dtype": "float64", "marks": PIECES},
    "complex": {"n": 12_000, "dtype": "complex64"},
    "wide blocks": {"n": 12_000, "measurements": 200, "block": 50},
    "an index": {"n": 9_000, "measurements": 30, "block": 1},
    "row shards": {"n": 9_000, "measurements": 150, "block": 1, "marks": PIECES},
    "whole columns": {"n": 20_000, "noise": "ssrft", "marks": PIECES},
    "implicit": {"n": 20_000, "recovery": {"vectors": "implicit"}},
    "few vectors": {"n": 20_000, "recovery": {"rank": 5}, "marks": PIECES},
    "two rounds": {"n": 20_000, "recovery": {"method": "hmt"}, "marks": PIECES},
    "svd in rounds": {"n": 12_000, "kind": "svd", "recovery": {"method": "hmt"}},
}
CHEAP = ("one task", "svd in rounds")


def table_of(n, kind="eigh", measurements=30, dtype="float32", block=10, noise="rademacher",
             recovery=None, marks=None):  # fmt: skip
    del marks
    return {
        "kind": kind, "measurements": measurements, "dtype": dtype,
        "operator": {"factory": "skerch_ooc.operators.synthetic:decaying",
                     "args": {"n": n, "rank": 400, "dtype": dtype}},
        "sketch": {"block": block, "noise": noise, "test_measurements": 10},
        "recovery": {"rank": 10} | (recovery or {}),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in CHEAP else pytest.mark.thorough) for name in CASES],
)
def test_files_are_those_foretold_and_bytes_nearly(monkeypatch, tmp_path, name):
    if CASES[name].get("marks") == PIECES:
        monkeypatch.setattr(tasks, "SMALLEST_RUN", 0)
    ooc.run(table_of(**CASES[name]), tmp_path / "run", threads=1)
    there = [path for path in (tmp_path / "run").glob("**/*") if path.is_file()]
    plan = ooc.open_run(tmp_path / "run").plan
    found = estimate(plan, None)
    assert len(there) == found.files, run_files(plan)
    size = sum(path.stat().st_size for path in there)
    assert found.shard_bytes + found.result_bytes == pytest.approx(size, rel=0.05)


PEAKS = """
import json, sys
from pathlib import Path
import skerch_ooc as ooc
from skerch_ooc.base.resources import peak_memory
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec

def peak_of(stage):
    Path("/proc/self/clear_refs").write_text("5")
    stage(run, threads=1)
    return peak_memory()

planned = make_plan(Spec.from_table(json.loads(sys.argv[1])), Path(sys.argv[2]), Work.of(threads=1))
foretold, run, peaks = planned.costs.peak_bytes, planned.run, {"measure": [], "merge": []}
del planned
while len(peaks["merge"]) < run.plan.rounds:
    for stage, found in peaks.items():
        found.append(peak_of(getattr(ooc, stage)))
peaks["recover"] = [peak_of(ooc.recover)]
print(json.dumps([{stage: max(found) for stage, found in peaks.items()}, foretold]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "one task" else pytest.mark.thorough)
        for name in CASES
    ],
)
def test_peak_memory_of_each_stage_is_nearly_that_foretold(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, json.dumps(table_of(**CASES[name])), tmp_path / "run"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks, foretold = json.loads(done.stdout)
    # All but what is spared for what is not counted one by one.
    counted = {stage: size - SPARE_BYTES for stage, size in foretold.items()}
    assert peaks == pytest.approx(counted, rel=0.15)
