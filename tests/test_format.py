"""The format is frozen: golden files read as ever, and the documentation reads them too."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

import skerch_ooc as ooc
from skerch_ooc.files import canonical_json
from skerch_ooc.shards import Rectangle, SketchReader, list_shards

GOLDEN = Path(__file__).parent / "golden" / "run_v1"
FILES = sorted(path.relative_to(GOLDEN) for path in GOLDEN.glob("**/*.h5"))


def make_golden() -> None:
    """Makes the golden run anew. Only ever for a new format version."""
    index = np.arange(96.0)
    matrix = np.diag(np.where(index % 2, -1, 1) * 0.5**index).astype(np.float32)
    run = ooc.plan(
        {"measurements": 24, "sketch": {"test_measurements": 6, "block": 10}},
        GOLDEN,
        operator=matrix,
        threads=1,
    )
    ooc.measure(run, operator=matrix, threads=1)
    ooc.merge(run, rechunk=True, threads=1)
    ooc.recover(run, threads=1)
    ooc.assess(run)


@pytest.mark.parametrize("name", FILES, ids=str)
def test_golden_file_reads_as_the_documentation_says(name):
    """A reader of its own, that follows docs/format.md and nothing else."""
    data = (GOLDEN / name).read_bytes()
    lines = data[:512].rstrip(b"\0").decode().splitlines()
    assert lines[0] == "skerch_ooc seal 1"
    assert lines[1] == f"length {len(data)}"
    offset, length = map(int, lines[2].split()[1:])
    rest = data[512:offset] + data[offset + length :] if length else data[512:]
    assert lines[3] == f"sha256 {hashlib.sha256(rest).hexdigest()}"
    with h5py.File(GOLDEN / name) as file:
        identity = json.loads(file["identity"][()])
        assert identity["run"] == hashlib.sha256((GOLDEN / "plan.json").read_bytes()).hexdigest()
        if length:
            bulk = identity["bulk"]
            itemsize = np.dtype(bulk["dtype"]).itemsize
            size = bulk["tile"][0] * bulk["tile"][1] * itemsize
            stored = data[offset : offset + length]
            pieces = [stored[i : i + size] for i in range(0, length, size)]
            assert bulk["crc32"] == [f"{zlib.crc32(piece):08x}" for piece in pieces]
            assert list(file[bulk["dataset"]].shape) == bulk["shape"]


def test_golden_run_verifies(ooc_command):
    assert ooc_command("verify", GOLDEN).returncode == 0


def test_golden_run_is_complete_and_assessed(ooc_command):
    state = json.loads(ooc_command("status", GOLDEN, "--json").stdout)
    assert (state["next"], state["merged"]) == (None, True)


def test_golden_plan_keeps_its_run_id():
    assert ooc.open_run(GOLDEN).plan.run_id == (
        "670ef4219f5c58ace47bce03a7c79389dc40741a4999482b4a465949145813b7"
    )


def test_golden_sketch_is_the_matrix_times_golden_noise():
    run = ooc.open_run(GOLDEN)
    reader = SketchReader(run, run.shards, list_shards(run.shards))
    z = reader.read_tile(0, np.empty((96, 30)))
    # A diagonal matrix times signs: the first row is the signs themselves.
    signs = z[0, :24]
    assert "".join("+" if x > 0 else "-" for x in signs) == "--++-++++-+--++----+--+-"


def test_hash_of_the_sketch_is_as_documented():
    run = ooc.open_run(GOLDEN)
    identities = []
    for rectangle in list_shards(run.shards):
        with h5py.File(run.shards / rectangle.name) as file:
            identities.append(json.loads(file["identity"][()]))
    folder = hashlib.sha256(canonical_json(identities)).hexdigest()[:16]
    assert (run.sketch / folder / "total.h5").exists()


def test_golden_eigenvalues_are_those_of_the_matrix():
    with h5py.File(GOLDEN / "results/default/eigh.h5") as file:
        values = file["eigenvalues"][:5]
    expected = [1.0, -0.5, 0.25, -0.125, 0.0625]
    np.testing.assert_allclose(values, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["right.p0.c0-10.r0-96.h5", "test.p0.c0-6.r0-96.h5", "inner-left.p12.c5-6.r4096-8192.h5"],
)
def test_shard_names_round_trip(name):
    assert Rectangle.from_name(name).name == name


@pytest.mark.parametrize(
    "name",
    ["right.p0.c10-0.r0-96.h5", "right.p0.c0-10.r0-96.h5.tmp", "../right.p0.c0-1.r0-9.h5",
     "right.p00.c0-10.r0-96.h5", "right.p0.c0-10.r0-96", ".tmp-right.p0.c0-10.r0-96.h5"],
)  # fmt: skip
def test_other_names_are_no_shards(name):
    assert Rectangle.from_name(name) is None


if __name__ == "__main__":
    make_golden()
