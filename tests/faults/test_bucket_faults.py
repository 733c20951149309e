"""A run in a bucket whose store loses, repeats, refuses, cuts and alters what it is asked for."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from contents import run_contents
from faulty_store import Rule

import skerch_ooc as ooc
from skerch_ooc.base.places import place
from skerch_ooc.store.sealed import SealedFile

PASSING = [
    Rule("lost", share=0.03), Rule("reset", share=0.03), Rule("broken", share=0.03),
    Rule("busy", share=0.03), Rule("slow", share=0.03, seconds=0.02), Rule("twice", share=0.03),
    Rule("again", share=0.02, seconds=0.05), Rule("cut", share=0.03),
]  # fmt: skip
ALTERING = [
    *PASSING, Rule("flipped", lambda request: request.kind == "get", share=0.02),
    Rule("late", lambda request: request.kind == "list", share=0.2, seconds=0.2),
]  # fmt: skip
FAULTS = 500
KINDS = {
    "eigh": {"measurements": 24, "block": 4},
    "svd": {"measurements": 20, "method": "hmt", "block": 5},
    "krylov": {"method": "krylov", "rank": 3, "rounds": 3, "round_width": 6},
}


def decompose(name, run_dir):
    a = np.random.default_rng(5).normal(size=(120, 120)) * 0.9 ** np.arange(120)
    a = a if name == "svd" else a @ a.T
    call = ooc.svd if name == "svd" else ooc.eigh
    return call(a, run_dir=run_dir, **KINDS[name])


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """Returns the contents of a run, made in a folder."""

    @lru_cache
    def contents(name):
        folder = tmp_path_factory.mktemp("quiet") / name
        decompose(name, folder)
        return run_contents(folder)

    return contents


def survives(faulty, url, name, rules, seed):
    """Runs with faults and then without; returns the error, if the first ended with one."""
    error = None
    faulty.seed, faulty.rules = seed, rules
    try:
        decompose(name, url)
    except (ooc.IncompleteError, ooc.CorruptError) as found:
        error = found
    faulty.rules = []
    decompose(name, url)
    return error


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_faults_that_pass_are_not_noticed(faulty, bucket, wanted, name, seed):
    assert survives(faulty, bucket, name, PASSING, seed) is None
    assert faulty.injected.total() > 0
    assert run_contents(place(bucket)) == wanted(name)


@pytest.mark.soak
def test_hundreds_of_faults_end_in_the_right_result_or_in_the_name_of_a_file(
    faulty, bucket, wanted
):
    number, ended = 0, []
    while faulty.injected.total() < FAULTS:
        name = list(KINDS)[number % len(KINDS)]
        url = f"{bucket}{number}"
        error = survives(faulty, url, name, ALTERING, number)
        # What is said names the run, or one of its files.
        assert error is None or url.partition("//")[2] in str(error)
        ended.append(error)
        assert run_contents(place(url)) == wanted(name)
        number += 1
    print(f"{len(ended)} runs, {len(ended) - ended.count(None)} refused", dict(faulty.injected))
    assert any(error is None for error in ended)


def test_object_that_was_emptied_is_damaged(bucket):
    path = place(bucket) / "file.h5"
    path.store.replace(path.key, b"")
    with pytest.raises(ooc.CorruptError, match="the seal in its first 512 bytes is damaged"):
        SealedFile(path)


@pytest.mark.parametrize("fault", ["lost", "reset", "broken", "busy", "cut", "twice"])
def test_first_publication_is_told_from_a_lost_answer(faulty, bucket, fault):
    path = place(bucket) / "file"
    faulty.rules = [Rule(fault, lambda request: request.kind == "create", times=1)]
    assert path.store.put_if_absent(path.key, b"mine")
    assert not path.store.put_if_absent(path.key, b"other")
    assert path.read_bytes() == b"mine"
