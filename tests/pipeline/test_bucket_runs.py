"""Runs in an object store: the same files, bit for bit, as in a folder, by every method."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from contents import run_contents

import skerch_ooc as ooc
from skerch_ooc.base.places import place
from skerch_ooc.executors.share import Share
from skerch_ooc.executors.slurm.options import JobOptions
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.grow import how_to_go_on
from skerch_ooc.pipeline.share import perform_share
from skerch_ooc.pipeline.submission import submit
from skerch_ooc.planning.stage_names import RoundStage

METHODS = {
    "eigh": ["nystrom", "singlepass", "oversampled", "hmt", "krylov"],
    "svd": ["nystrom", "singlepass", "oversampled", "hmt", "krylov"],
}
CASES = [
    (kind, method, vectors)
    for kind, methods in METHODS.items()
    for method in methods
    for vectors in ("stored", "implicit")
    # Vectors of krylov are made of all rounds.
    if (method, vectors) != ("krylov", "implicit")
]


def matrix(kind, dtype):
    rng = np.random.default_rng(3)
    shape = (260, 200)
    a = rng.normal(size=shape)
    if dtype.startswith("complex"):
        a = a + 1j * rng.normal(size=shape)
    a *= 0.8 ** np.arange(shape[1])
    return (a @ a.conj().T if kind == "eigh" else a).astype(dtype)


def wanted(method):
    if method == "krylov":
        return {"rank": 5, "rounds": 3, "round_width": 8}
    return {"measurements": 30, "test_measurements": 5}


def decompose(kind, method, dtype, run_dir, **more):
    a = matrix(kind, dtype)
    return getattr(ooc, kind)(a, run_dir=run_dir, method=method, **wanted(method), **more)


@pytest.mark.covered(1)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("kind", "method", "vectors"), CASES)
def test_run_in_a_bucket_has_the_files_of_one_in_a_folder(
    bucket, tmp_path, kind, method, dtype, vectors
):
    decompose(kind, method, dtype, bucket, vectors=vectors)
    decompose(kind, method, dtype, tmp_path / "run", vectors=vectors)
    assert run_contents(place(bucket)) == run_contents(tmp_path / "run")


def test_vectors_are_read_from_the_bucket_by_range(bucket, tmp_path):
    here = decompose("eigh", "nystrom", "float32", tmp_path / "run")
    decompose("eigh", "nystrom", "float32", bucket)
    there = ooc.recover(ooc.open_run(bucket))
    assert torch.equal(there.eigenvalues, here.eigenvalues)
    assert torch.equal(there.eigenvectors[7:9, :3], here.eigenvectors[7:9, :3])


def test_error_is_the_same(bucket, tmp_path):
    decompose("svd", "singlepass", "float64", bucket)
    decompose("svd", "singlepass", "float64", tmp_path / "run")
    errors = [ooc.assess(ooc.open_run(run)).relative_error for run in (bucket, tmp_path / "run")]
    assert errors[0] == errors[1]


def test_finished_run_is_opened_and_not_made_again(bucket):
    decompose("eigh", "hmt", "float32", bucket)
    store, key = place(bucket).store, place(bucket).key
    before = {one.key: one.version for one in store.all_below(key) if one.key.endswith(".h5")}
    decompose("eigh", "hmt", "float32", bucket)
    after = {one.key: one.version for one in store.all_below(key) if one.key.endswith(".h5")}
    assert after == before


def test_folder_and_bucket_may_be_copied_into_each_other(bucket, tmp_path):
    decompose("eigh", "nystrom", "float32", bucket)
    source, target = place(bucket), tmp_path / "copy"
    for key in source.store.keys(source.key):
        if not key.startswith("logs/"):
            path = target / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((source / key).read_bytes())
    for name in ("logs", "sketch", "results"):
        (target / name).mkdir(exist_ok=True)
    assert torch.equal(
        ooc.recover(ooc.open_run(target)).eigenvalues,
        ooc.recover(ooc.open_run(bucket)).eigenvalues,
    )
    assert isinstance(target, Path)


SPEC = {
    "kind": "eigh", "measurements": 20, "seed": 3,
    "operator": {"factory": "decaying", "args": {"n": 200, "rank": 20}},
    "sketch": {"test_measurements": 4, "block": 4},
}  # fmt: skip


@pytest.mark.parametrize("dry_run", [False, True])
def test_submission_of_a_run_in_a_bucket_is_refused_by_name(bucket, dry_run):
    run = ooc.plan(SPEC, bucket)
    with pytest.raises(
        ooc.UsageError, match=r"s3://.* Slurm .*--executor dask.*task s3://"
    ) as told:
        submit(run, JobOptions(), dry_run=dry_run)
    assert "\n" not in str(told.value)
    assert "submit" not in how_to_go_on(run)


@pytest.mark.thorough
def test_elements_of_an_array_share_a_run_in_a_bucket(bucket, tmp_path):
    for where in (bucket, tmp_path / "run"):
        run = ooc.plan(SPEC, where)
        for stage in ("measure", "merge", "solve", "vectors", "assess"):
            for index in range(2):
                work = Work.of(Share(index, 2), None, None, None, None)
                perform_share(ooc.open_run(where), RoundStage.parse(stage, run.plan.rounds), work)
    assert run_contents(place(bucket)) == run_contents(tmp_path / "run")


@pytest.mark.thorough
@pytest.mark.parametrize("of", ["/earlier", "/earlier/results/default"])
def test_run_starts_with_vectors_that_are_in_a_bucket(bucket, tmp_path, of):
    a = matrix("eigh", "float64")
    wanted = {"method": "krylov", "rank": 3, "rounds": 2, "round_width": 4}
    for where in (bucket, str(tmp_path)):
        ooc.eigh(a, run_dir=where + "/earlier", **wanted)
        ooc.eigh(a, run_dir=where + "/later", start=where + of, **wanted)
    assert run_contents(place(bucket) / "later") == run_contents(tmp_path / "later")


def test_lack_of_room_where_a_shard_is_made_is_told_from_lack_of_room_in_the_store(
    bucket, tmp_path, monkeypatch
):
    run = ooc.plan(SPEC, bucket)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ooc.IncompleteError, match=f"cannot write s3:.* in {tmp_path}, where"):
            ooc.measure(run)
    finally:
        signal.signal(signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())
