"""SIGKILL at system calls: the same command ends with the same contents, and repeats no product."""

from __future__ import annotations

import json
import random
import shutil
import signal
import zlib
from collections import Counter
from functools import cache

import pytest

from faults.cases import (
    CASES,
    LARGE,
    ONE_COMMAND,
    Case,
    products_missing,
    published_products,
    state_of,
)
from faults.tracing import Fault

KILLS = "SIGKILL at a system call"
SLICES = 8
"""Into how many tests the calls of a command are divided."""

SAMPLED = 4
"""Kills of each case by default."""

SOAKED = 40
"""Kills of each case in the soak, besides those at every call of some."""

EXHAUSTED = ("eigh nystrom", "svd hmt")


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """The run as it is when nobody interferes, and how many calls each command takes."""

    @cache
    def undisturbed_run(name):
        folder = tmp_path_factory.mktemp("undisturbed")
        case = CASES[name]
        case.write(folder)
        calls = []
        for command in case.commands:
            ended = zygote(folder, *command, fault=Fault(0))
            assert ended.code == 0, ended.err
            calls.append(len(ended.calls))
        state = state_of(folder / "run")
        shutil.rmtree(folder)
        return state, calls

    return undisturbed_run


class Attack:
    """Calls commands again and again, and watches what products they take.

    Args:
        zygote: Forks the processes.
        folder: Where they run.
        case: The run.
    """

    def __init__(self, zygote, folder, case: Case) -> None:
        self.folder = folder
        self._zygote = zygote
        self._log = folder / "calls.log"
        case.write(folder)

    def calls(self) -> list[dict]:
        """The calls of the operator up to now; none of them was torn, as each is one write."""
        return list(map(json.loads, self._log.read_text().splitlines())) if self._log.exists() else []

    def __call__(self, command, fault: Fault | None = None):
        """Calls a command; no product of a shard that is published may be made again."""
        run = self.folder / "run"
        before, missing = len(self.calls()), products_missing(run)
        published = published_products(run)
        environment = {"SKERCH_OOC_TEST_LOG": str(self._log)}
        ended = self._zygote(self.folder, *command, fault=fault, environment=environment)
        made = self.calls()[before:]
        if command[0] != "update":
            assert not published & {call["crc"] for call in made}
        if missing is not None and command[0] not in ("extend", "update"):
            assert sum(call["width"] for call in made if call["width"] > 1) <= missing
        return ended


def is_over(case: Case, ended) -> bool:
    """Whether a command did all that was left, or says that nothing was."""
    return ended.code == 0 or bool(case.over and case.over in ended.err)


def attack(zygote, tally, name, expected, folder, faults) -> None:
    """Kills the commands of a case as ``faults`` says, each until it comes to its end.

    Args:
        zygote: Forks the processes.
        tally: Counts the kills.
        name: Of the case.
        expected: The state that it is to end with.
        folder: An empty one.
        faults: For each command, the faults that hit it, one after the other.
    """
    case = CASES[name]
    attacked = Attack(zygote, folder, case)
    with tally.fault(KILLS, name, 0) as attempt:
        for command, planned in zip(case.commands, faults, strict=True):
            for fault in planned:
                ended = attacked(command, fault)
                assert ended.code == -signal.SIGKILL or is_over(case, ended), ended.err
                attempt.count += ended.struck
            ended = attacked(command)
            assert is_over(case, ended), ended.err
        assert state_of(folder / "run") == expected
        attempt.ended("same")


def sampled(chance: random.Random, calls: list[int], kills: int) -> list[list[Fault]]:
    """Faults at random calls, spread over the commands as their calls are."""
    hit = Counter(chance.choices(range(len(calls)), calls, k=kills))
    return [
        [Fault(chance.randint(1, count), chance.random() < 0.5) for _ in range(hit[number])]
        for number, count in enumerate(calls)
    ]


def seeded(*what: object) -> random.Random:
    """Chance that is the same in every session."""
    return random.Random(zlib.crc32(repr(what).encode()))


@pytest.mark.parametrize("name", CASES)
def test_killed_commands_end_with_the_contents_of_an_undisturbed_run(
    zygote, tally, undisturbed, tmp_path, name
):
    expected, calls = undisturbed(name)
    attack(zygote, tally, name, expected, tmp_path, sampled(seeded(name), calls, SAMPLED))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", CASES)
def test_often_killed_commands_end_with_the_contents_of_an_undisturbed_run(
    zygote, tally, undisturbed, tmp_path, name, part
):
    expected, calls = undisturbed(name)
    kills = SOAKED // SLICES // (2 if name in LARGE else 1)
    attack(zygote, tally, name, expected, tmp_path, sampled(seeded(name, part), calls, kills))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", EXHAUSTED)
def test_kill_before_and_after_every_call_leaves_a_run_that_goes_on(
    zygote, tally, undisturbed, tmp_path, name, part
):
    expected, calls = undisturbed(name)
    for number in range(1 + part, max(calls) + 1, SLICES):
        for after in (False, True):
            folder = tmp_path / f"{number}{after}"
            folder.mkdir()
            attack(zygote, tally, name, expected, folder, [[Fault(number, after)]] * len(calls))
            shutil.rmtree(folder)


def test_every_command_that_a_kill_can_hit_is_repeatable():
    assert all(CASES[name].commands == ONE_COMMAND for name in EXHAUSTED)
