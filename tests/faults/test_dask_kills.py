"""SIGKILL at system calls of any process of a Dask run: command, nanny or worker."""

from __future__ import annotations

import signal

import pytest

from faults.attacks import Attacked, seeded
from faults.cases import CASES, ONE_COMMAND, state_of
from faults.tracing import Fault

pytestmark = pytest.mark.soak
COMMAND = (*ONE_COMMAND[0], "--executor", "dask", "--workers", 2)
KILLS = 3


@pytest.fixture(scope="module")
def calls(zygote, tmp_path_factory):
    """How many calls that concern files all processes of such a run make together."""
    folder = tmp_path_factory.mktemp("dask")
    CASES["eigh in pieces"].write(folder)
    ended = zygote(folder, *COMMAND, fault=Fault(0))
    assert ended.code == 0, ended.err
    return len(ended.calls)


@pytest.mark.parametrize("number", range(10))
def test_killed_processes_of_a_cluster_lose_and_repeat_nothing(
    zygote, tally, quiet, tmp_path, calls, number
):
    name, chance = "eigh in pieces", seeded("dask", number)
    attacked = Attacked(zygote, tmp_path, CASES[name])
    with tally.fault("SIGKILL at a system call", f"{name}, two Dask workers", 0) as attempt:
        for _ in range(KILLS):
            fault = Fault(chance.randint(1, calls), chance.random() < 0.5)
            ended = attacked(COMMAND, fault)
            # A worker is started again; what the command itself does not survive is said.
            assert ended.code in (0, 4, -signal.SIGKILL), ended.err
            attempt.count += ended.struck
        assert attacked(COMMAND).code == 0
        assert state_of(tmp_path / "run") == quiet.of(name)[0]
        attempt.ended("same")
