"""Resources: how many threads a process has where nobody said, and what is no amount of memory."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
from specs import write_spec
from threadpoolctl import ThreadpoolController, threadpool_info

from skerch_ooc.base import resources
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.resources import Resources

CORES = 8


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(CORES))


class TestThreads:
    @pytest.mark.parametrize(
        ("told", "workers", "expected"),
        [("1", 1, 1), ("3", 1, 3), (" 2 ", 1, 2), ("16", 1, 16), ("1", 4, 1), ("2", 4, 2)],
    )
    def test_are_those_that_the_environment_tells(self, monkeypatch, told, workers, expected):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert Resources.of(workers=workers).threads == expected

    def test_of_several_workers_are_not_more_than_their_share_of_the_cores(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        assert Resources.of(workers=4).threads == 2

    def test_that_are_given_come_first(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert Resources.of(threads=3).threads == 3

    @pytest.mark.parametrize("told", ["", "0", "-1", "4,2", "1.5", "two", "99999", "²"])
    def test_are_the_cores_where_the_environment_tells_no_number(self, monkeypatch, told):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert Resources.of().threads == CORES

    def test_are_the_cores_where_the_environment_is_silent(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert Resources.of(workers=2).threads == CORES // 2


@pytest.mark.parametrize("memory", [math.nan, math.inf, -1.0, 0, True, [2**30]])
def test_memory_that_is_none_is_refused(memory):
    with pytest.raises(UsageError, match=r"memory = .*: must be"):
        Resources.of(memory)


@pytest.mark.parametrize("memory", [2**30, 1e9, 10**400])
def test_memory_may_be_any_number_of_bytes(memory):
    assert Resources.of(memory).memory == int(memory)


def test_threads_are_a_whole_number():
    with pytest.raises(UsageError, match=r"threads = 1\.5: must be a whole number"):
        Resources.of(threads=1.5)


@pytest.mark.parametrize("verb", [("plan", "--run", "run"), ("probe",), ("run", "--run", "run")])
class TestSaid:
    SAID = "2 threads of a process, as OMP_NUM_THREADS says; give others by --threads"

    def said(self, inside, tmp_path, verb, *options):
        name, *more = verb
        done = inside(name, write_spec(tmp_path, "matrix", 20), *more, *options)
        assert done.returncode == 0
        return self.SAID in done.stderr

    @pytest.fixture
    def inside(self, inside, monkeypatch):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(CORES))
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        return inside

    def test_where_the_environment_decides(self, inside, tmp_path, verb):
        assert self.said(inside, tmp_path, verb)

    def test_not_where_they_are_given(self, inside, tmp_path, verb):
        assert not self.said(inside, tmp_path, verb, "--threads", "2")


def test_linear_algebra_is_looked_for_again_once_modules_were_loaded(monkeypatch):
    looked = []

    class Counted(ThreadpoolController):
        def __init__(self):
            looked.append(len(sys.modules))
            super().__init__()

    monkeypatch.setattr(resources, "ThreadpoolController", Counted)
    resources._linear_algebra.cache_clear()
    for name in ("", "", "loaded_since", ""):
        if name:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        with resources.blas_threads(1):
            assert {library["num_threads"] for library in threadpool_info()} <= {1}
    assert looked == [len(sys.modules) - 1, len(sys.modules)]


def test_memory_is_released_only_where_it_would_be_too_little(monkeypatch):
    released = []
    monkeypatch.setattr(resources, "release_memory", lambda: released.append(True))
    resources.resident_memory(10, 1 << 50)
    assert not released
    resources.resident_memory(10, 20)
    assert released
