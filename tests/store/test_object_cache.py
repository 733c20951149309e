"""The cache of ranges: results that are read again make no request, within a bound, never wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import skerch_ooc as ooc


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache of this process."""
    monkeypatch.setenv("SKERCH_OOC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def vectors(faulty, bucket):
    """Reads the vectors of a run anew, as another process would; 400 KB."""
    a = np.random.default_rng(2).normal(size=(5000, 40))
    ooc.svd(a, run_dir=bucket, measurements=20)

    def read():
        return ooc.recover(ooc.open_run(bucket)).U[:]

    return read


def ranges(faulty):
    """Which ranges of results were asked for, without the first ones of each file."""
    asked = [one for one in faulty.requests if one.kind == "get" and "/results/" in one.key]
    return [one.range for one in asked if not one.range.startswith("0-")]


def test_what_was_read_is_not_asked_for_again(faulty, vectors, cache):
    first = vectors()
    assert ranges(faulty)
    faulty.forget()
    assert torch.equal(vectors(), first)
    # A file is opened anew, twice, by two requests.
    assert len(ranges(faulty)) == 2


def test_files_that_were_altered_are_read_again(faulty, vectors, cache):
    first = vectors()
    for path in cache.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert torch.equal(vectors(), first)


def test_no_more_is_held_than_was_said(vectors, cache, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_CACHE_SIZE", "500kB")
    first = vectors()
    assert sum(path.stat().st_size for path in cache.iterdir()) <= 500_000
    assert torch.equal(vectors(), first)


def test_folder_that_cannot_be_written_stops_nothing(vectors, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKERCH_OOC_CACHE", str(tmp_path / "file"))
    assert vectors().shape[0] == 5000
    assert "nothing is cached" in caplog.text


def test_size_that_is_none_is_refused(vectors, cache, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_CACHE_SIZE", "much")
    with pytest.raises(ooc.UsageError, match="'much' is not an amount"):
        vectors()
