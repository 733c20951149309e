"""SIGKILL at system calls: the same command ends with the same contents, and repeats no product."""

from __future__ import annotations

import shutil

import pytest

from faults.attacks import attack, sampled, seeded
from faults.cases import CASES, LARGE
from faults.tracing import Fault

KILLS = "SIGKILL at a system call"
SLICES = 4
"""Into how many tests the kills of a case are divided."""

SAMPLED = 3
"""Kills of each case by default."""

SOAKED = 16
"""Kills of each case in the soak, besides those at every call of some."""

EXHAUSTED = ("eigh nystrom", "svd hmt")
"""Cases of one command that is killed at every call."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_killed_commands_end_with_the_contents_of_an_undisturbed_run(
    zygote, tally, quiet, tmp_path, name
):
    expected, calls = quiet.of(name)
    faults = sampled(seeded(name), calls, SAMPLED)
    attack(zygote, tally, KILLS, name, expected, tmp_path, faults)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", CASES)
def test_often_killed_commands_end_with_the_contents_of_an_undisturbed_run(
    zygote, tally, quiet, tmp_path, name, part
):
    expected, calls = quiet.of(name)
    kills = SOAKED // SLICES // (2 if name in LARGE else 1)
    faults = sampled(seeded(name, part), calls, kills)
    attack(zygote, tally, KILLS, name, expected, tmp_path, faults)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", EXHAUSTED)
def test_kill_before_and_after_every_call_leaves_a_run_that_goes_on(
    zygote, tally, quiet, tmp_path, name, part
):
    expected, (calls,) = quiet.of(name)
    for number in range(1 + part, calls + 1, SLICES):
        for after in (False, True):
            folder = tmp_path / f"{number}{after}"
            folder.mkdir()
            attack(zygote, tally, KILLS, name, expected, folder, [[Fault(number, after)]])
            shutil.rmtree(folder)
