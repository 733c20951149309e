"""A process that merges a thousand shards of a hundred million rows keeps to what was foretold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import skerch_ooc as ooc
from skerch_ooc.pipeline.cost import ASSUMED_BASELINE, estimate
from skerch_ooc.store import sealed
from skerch_ooc.store.checksums import tile_checksum
from skerch_ooc.store.sealed import sealed_writer
from skerch_ooc.store.shards import Rectangle, shard_layout
from skerch_ooc.store.sketch import Round

MERGING = """
import json, sys
import skerch_ooc as ooc
from skerch_ooc.base.partition import Range
from skerch_ooc.base.resources import Resources, peak_memory, resident_memory
from skerch_ooc.stages.merge.task import begin_merge
from skerch_ooc.store.sketch import Round
before = resident_memory()
merge = begin_merge(Round(ooc.open_run(sys.argv[1])), rechunk=False)
opened = resident_memory()
merge.side("range").form(Range(0, 8), Resources.of("8GiB", 1))
print(json.dumps([before, opened, peak_memory()]))
"""


def sparse_shards(run, width):
    """Publishes shards of zeros that take no room on the disk but for their checksums."""
    for strip in Round(run).strips:
        for start in range(strip.columns.start, strip.columns.stop, width):
            columns = type(strip.columns)(start, start + width)
            shard = Rectangle(strip.role, strip.part, columns, strip.rows)
            layout = shard_layout(run.plan, shard, "float32")
            with sealed_writer(run.shards / shard.name, layout) as writer:
                (bulk,) = writer.bulks
                for row in {0, layout.grid[0] - 1}:
                    zeros = bytes(len(layout.rows(row)) * width * 4)
                    bulk._crc32[row:] = tile_checksum(memoryview(zeros))
                bulk._written[:] = True
                writer.publish(shard.identity(run.plan.run_id))


@pytest.mark.parametrize(
    ("shards", "rows"),
    [(20, 1_000_000), pytest.param(1000, 100_000_000, marks=pytest.mark.soak)],
)
def test_opened_shards_and_eight_tiles_fit_into_what_was_foretold(
    monkeypatch, tmp_path, shards, rows
):
    monkeypatch.setattr(sealed, "verify", lambda path: None)
    table = {
        "kind": "eigh", "measurements": shards - 2, "dtype": "float32",
        "operator": {"factory": "none:none", "shape": [rows, rows]},
        "sketch": {"block": 1, "test_measurements": 2},
    }  # fmt: skip
    run = ooc.plan(table, tmp_path / "run", memory="40GiB")
    sparse_shards(run, 1)
    done = subprocess.run(
        [sys.executable, "-c", MERGING, run.directory], capture_output=True, text=True, check=True
    )
    before, opened, peak = json.loads(done.stdout)
    foretold = estimate(run.plan, None).peak_bytes["merge"]
    assert peak - before <= foretold - ASSUMED_BASELINE
    assert opened - before <= shards * (4 * min(rows / 4096, 4096) + 6000) + 24 * 2**20
