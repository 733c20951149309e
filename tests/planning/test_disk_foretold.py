"""Disk and memory: ``plan`` against what then happens, for runs of different shape."""

from __future__ import annotations

import pytest

import skerch_ooc as ooc
from skerch_ooc.pipeline.cost import estimate
from skerch_ooc.planning import tasks
from skerch_ooc.planning.disk import run_files

FACTORY = "operators:decaying_of_full_rank"
PIECES = "pieces"
"""Marks runs whose tasks are of one tile, so that there are several."""

CASES = {
    "one task": {"n": 9_000},
    "several tasks": {"n": 30_000, "marks": PIECES},
    "svd": {"n": 20_000, "kind": "svd", "marks": PIECES},
    "double": {"n": 20_000, "dtype": "float64", "marks": PIECES},
    "complex": {"n": 12_000, "dtype": "complex64"},
    "wide blocks": {"n": 12_000, "measurements": 200, "block": 50},
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
import json, os, sys
from pathlib import Path
import torch
import skerch_ooc as ooc
from skerch_ooc.base.resources import peak_memory
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.start import make_plan
from skerch_ooc.planning.spec import Spec
table, folder = json.loads(sys.argv[1]), sys.argv[2]
peaks = {}
planned = make_plan(Spec.from_table(table), Path(folder), Work.of(threads=1))
foretold, run = planned.costs.peak_bytes, planned.run
del planned
while True:
    for stage in ("measure", "merge"):
        Path("/proc/self/clear_refs").write_text("5")
        getattr(ooc, stage)(run, threads=1)
        peaks[stage] = max(peaks.get(stage, 0), peak_memory())
    if len(list(Path(folder).glob("sketch/*/basis.h5"))) == run.plan.rounds - 1:
        if len(list(Path(folder).glob("sketch/*"))) == run.plan.rounds:
            break
Path("/proc/self/clear_refs").write_text("5")
ooc.recover(run, threads=1)
peaks["recover"] = peak_memory()
print(json.dumps([peaks, foretold]))
"""
