"""Power cuts: whatever a disk lost that was not synced, the same command goes on to the same bits.

The commands of a run are recorded, call by call. From the record follow the contents that a power
cut may leave (:mod:`faults.powercut`); each is laid out in a folder, and gone on with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from faults import calls, powercut
from faults.attacks import Attacked, is_over, seeded
from faults.cases import CASES, Case, Command, state_of
from faults.powercut import Content, Disk, content_of, digest_of, lay_out
from faults.recording import Step, recorded
from skerch_ooc.base.private_names import is_private
from skerch_ooc.store.rundir import is_planned

pytestmark = pytest.mark.skipif(
    not calls.NUMBERS, reason="the numbers of system calls are not known of this processor"
)

CLEANING: tuple[Command, ...] = tuple(
    ("clean", "run", *option) for option in ((), ("--sketch",), ("--shards",))
)
KRYLOV = Case(
    measurements=48,
    spec={
        "recovery": {"method": "krylov", "rank": 6},
        "round_width": 8,
        "pairs_tolerance": 1e-3,
    },
)
RUNS = {
    # Implicit vectors are made of the shards as they are read, which therefore stay.
    name: replace(case, commands=(*case.commands, *CLEANING[: 2 if "implicit" in name else 3]))
    for name, case in {**CASES, "eigh krylov": KRYLOV}.items()
}
POWER, CARELESS = "power cut", "power cut after others were killed before they synced folders"

STATES = 26
"""Power cuts of each run, in the soak."""

CHOICES = (powercut.all_lost, powercut.removals_only, powercut.names_only)
LOST_SHARES = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Record:
    """What the commands of a run did to its files when nobody interfered.

    Attributes:
        before: What was there before.
        steps: Of each command.
        products: How many calls of the operator each command took.
        expected: The state in the end.
    """

    before: Content
    steps: list[list[Step]]
    products: list[int]
    expected: dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """A power cut.

    Attributes:
        command: The number of the command that it hit.
        step: How many steps were done, in all.
        left: What it left.
    """

    command: int
    step: int
    left: Content


@pytest.fixture(scope="session")
def records(zygote, tmp_path_factory):
    """The records of runs, by name."""

    @cache
    def of(name: str) -> Record:
        folder = tmp_path_factory.mktemp("recorded")
        work, file, log = folder / "work", folder / "steps", folder / "calls.log"
        work.mkdir()
        log.touch()
        case = RUNS[name]
        case.write(work)
        before, steps, products, number = content_of(work), [], [], 0
        for command in case.commands:
            known = len(log.read_text().splitlines())
            environment = {"SKERCH_OOC_TEST_LOG": str(log)}
            ended = zygote(work, *command, record=file, environment=environment)
            assert ended.code == 0, (command, ended.err)
            found = [replace(step, since=step.since + number) for step in recorded(file)]
            steps.append(found)
            number += len(found)
            products.append(len(log.read_text().splitlines()) - known)
        disk = Disk(before)
        for step in chain(*steps):
            disk.do(step)
        # Else the record, or the model, lacks something.
        assert disk.left(list) == content_of(work)
        return Record(before, steps, products, state_of(work / "run"))

    return of


def cuts(record: Record, chance: random.Random, count: int) -> list[Cut]:
    """Different power cuts of a run: as many in each of its commands, as far as there are any."""
    # Some commands find nothing to do.
    at_work = [number for number, steps in enumerate(record.steps) if steps]
    places = []
    for number in range(count):
        command = at_work[number % len(at_work)]
        before = sum(map(len, record.steps[:command]))
        places.append(before + 1 + chance.randrange(len(record.steps[command])))
    found: dict[str, Cut] = {}
    choices = [*CHOICES, *(powercut.some_lost(chance, share) for share in LOST_SHARES)]
    for command, number, disk in replayed(record):
        for _ in range(places.count(number)):
            for choice in chance.sample(choices, len(choices)):
                left = disk.left(choice)
                if digest_of(left) not in found:
                    found[digest_of(left)] = Cut(command, number, left)
                    break
    return list(found.values())


def replayed(record: Record) -> Iterator[tuple[int, int, Disk]]:
    """The disk after each step, with the numbers of the command and of the step."""
    disk, number = Disk(record.before), 0
    for command, steps in enumerate(record.steps):
        for step in steps:
            disk.do(step)
            number += 1
            yield command, number, disk


def careless_cuts(record: Record, command: int, chance: random.Random, count: int) -> list[Cut]:
    """Power cuts while ``clean`` removes files, where nobody else has synced any folder.

    So it is if each process was killed when it had published a file, and the next one found it.
    """
    disk, removing = Disk(record.before), []
    steps = [(at, step) for at, some in enumerate(record.steps[: command + 1]) for step in some]
    for number, (at, step) in enumerate(steps, 1):
        is_folder = step.what == "sync" and disk.is_folder(step.path)
        disk.do(replace(step, since=0) if is_folder and at < command else step)
        name = step.path.rpartition("/")[2]
        if at == command and step.what == "remove" and not is_private(name):
            removing.append(Cut(at, number, disk.left(powercut.removals_only)))
    return chance.sample(removing, min(count, len(removing)))


def go_on(zygote, folder: Path, name: str, record: Record, cut: Cut) -> None:
    """Goes on after a power cut: nothing is damaged, nothing paid for is lost, the bits same."""
    case = RUNS[name]
    folder.mkdir()
    lay_out(cut.left, folder)
    attacked = Attacked(zygote, folder, case)
    if is_planned(folder / "run"):
        for verb in ("status", "verify"):
            ended = attacked((verb, "run"))
            assert ended.code == 0, (verb, cut.command, cut.step, ended.out, ended.err)
    for number in range(cut.command, len(case.commands)):
        before = len(attacked.calls())
        ended = attacked(case.commands[number])
        assert ended.code == 0 or is_over(case, ended), (cut.command, cut.step, ended.err)
        made = len(attacked.calls()) - before
        assert record.products[number] or not made, (cut.command, cut.step)
    assert state_of(folder / "run") == record.expected, (cut.command, cut.step)


def attack(zygote, tally, kind, name, record, folder, found):
    for number, cut in enumerate(found):
        with tally.fault(kind, name) as attempt:
            go_on(zygote, folder / str(number), name, record, cut)
            attempt.ended("same")


@pytest.mark.parametrize(
    ("name", "count"),
    [("eigh nystrom", 3), pytest.param("svd hmt", 4, marks=pytest.mark.thorough)],
)
def test_commands_go_on_after_a_power_cut(zygote, tally, records, tmp_path, name, count):
    record = records(name)
    found = cuts(record, seeded(name, "power"), count)
    attack(zygote, tally, POWER, name, record, tmp_path, found)


@pytest.mark.soak
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("name", RUNS)
def test_commands_go_on_after_any_power_cut(zygote, tally, records, tmp_path, name, part):
    record = records(name)
    found = cuts(record, seeded(name, part), STATES // 2)
    attack(zygote, tally, POWER, name, record, tmp_path, found)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("eigh nystrom", 1),
        *(pytest.param(name, 2, marks=pytest.mark.soak) for name in RUNS),
    ],
)
def test_clean_removes_only_what_is_durable_elsewhere(
    zygote, tally, records, tmp_path, name, count
):
    record, chance = records(name), seeded(name, "careless")
    last = len(record.steps)
    found = [
        cut
        for command in range(last - len(CLEANING), last)
        for cut in careless_cuts(record, command, chance, count)
    ]
    assert found
    attack(zygote, tally, CARELESS, name, record, tmp_path, found)
