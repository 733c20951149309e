"""The cache of ranges: results that are read again make no request, within a bound, never wrong."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import skerch_ooc as ooc
from skerch_ooc.base.object_cache import CACHE, CACHE_SIZE
from skerch_ooc.cli.main import cli


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


def test_files_that_are_not_of_the_cache_stay(vectors, cache, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_CACHE_SIZE", "500kB")
    mine = {"a.h5", "ab" * 32, ".tmp-mine"}
    cache.mkdir()
    for name in mine:
        (cache / name).write_bytes(bytes(300_000))
        os.utime(cache / name, (0, 0))
    vectors()
    held = {path.name for path in cache.iterdir()}
    assert mine < held


def test_folder_that_cannot_be_written_stops_nothing(vectors, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKERCH_OOC_CACHE", str(tmp_path / "file"))
    assert vectors().shape[0] == 5000
    assert "nothing is cached" in caplog.text


def test_size_that_is_none_is_refused(vectors, cache, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_CACHE_SIZE", "much")
    with pytest.raises(ooc.UsageError, match="'much' is not an amount"):
        vectors()


def test_folder_of_an_object_store_is_refused(vectors, monkeypatch):
    monkeypatch.setenv("SKERCH_OOC_CACHE", "s3://bucket/cache")
    with pytest.raises(ooc.UsageError, match="'s3://bucket/cache' is no folder of this machine"):
        vectors()


class TestOptions:
    """The verbs that read results take folder and size as options."""

    @staticmethod
    def invoked(*arguments):
        return CliRunner().invoke(cli, ["scores", "nowhere", *arguments]).exception

    def test_set_it_for_the_process(self, monkeypatch):
        monkeypatch.setenv(CACHE, "")
        monkeypatch.setenv(CACHE_SIZE, "")
        self.invoked("--cache-size", "2GiB", "--cache", "kept")
        assert (os.environ[CACHE], os.environ[CACHE_SIZE]) == ("kept", "2GiB")

    @pytest.mark.parametrize("folder", ["", "a\0b", "s3://bucket/cache"])
    def test_folder_that_is_none_is_refused(self, monkeypatch, folder):
        monkeypatch.setenv(CACHE, "kept")
        assert f"{folder!r} is no folder of this machine" in str(self.invoked("--cache", folder))

    def test_size_alone_is_refused(self, monkeypatch):
        monkeypatch.delenv(CACHE, raising=False)
        assert "--cache-size 2GiB needs --cache FOLDER" in str(self.invoked("--cache-size", "2GiB"))

    def test_size_that_is_none_is_refused(self, monkeypatch):
        monkeypatch.setenv(CACHE, "kept")
        assert isinstance(self.invoked("--cache-size", "much"), ooc.UsageError)
        assert "much" in str(self.invoked("--cache-size", "much"))
