"""Commands that are called again and again while faults hit them, and what they must not do."""

from __future__ import annotations

import json
import random
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from faults.cases import CASES, Case, products_missing, published_products, state_of
from faults.tally import Tally
from faults.tracing import Fault
from faults.zygote import Ended, Zygote

Undisturbed = tuple[dict[str, Any], list[int]]
"""The state of a run when nobody interferes, and how many calls each command takes."""

FAILURES = (0, 4)
"""Exit codes of a command that could not write: it needed not to, or says what is missing."""


class Quiet:
    """Runs that nobody disturbs.

    Args:
        zygote: Forks the processes.
        folder: Where they run.
    """

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote, self._folder = zygote, folder
        self.of = cache(self._of)

    def _of(self, name: str) -> Undisturbed:
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir()
        case = CASES[name]
        case.write(folder)
        calls = []
        for command in case.commands:
            ended = self._zygote(folder, *command, fault=Fault(0))
            assert ended.code == 0, ended.err
            calls.append(len(ended.calls))
        state = state_of(folder / "run")
        shutil.rmtree(folder)
        return state, calls


class Attacked:
    """A run whose commands are hit; watches what products they take.

    Args:
        zygote: Forks the processes.
        folder: Where they run.
        case: The run.
    """

    def __init__(self, zygote: Zygote, folder: Path, case: Case) -> None:
        self.folder = folder
        self._zygote = zygote
        self._log = folder / "calls.log"
        case.write(folder)

    def calls(self) -> list[dict[str, Any]]:
        """The calls of the operator up to now; none of them is torn, as each is one write."""
        return (
            list(map(json.loads, self._log.read_text().splitlines())) if self._log.exists() else []
        )

    def __call__(self, command: Sequence[object], fault: Fault | None = None) -> Ended:
        """Calls a command; no product of a shard that is published may be made again."""
        run = self.folder / "run"
        before, missing = len(self.calls()), products_missing(run)
        published = published_products(run)
        # Where calls fail, so would those of the log, which are the operator's own.
        logged = not (fault and fault.error)
        environment = {"SKERCH_OOC_TEST_LOG": str(self._log)} if logged else {}
        ended = self._zygote(self.folder, *command, fault=fault, environment=environment)
        made = self.calls()[before:]
        if command[0] != "update":
            assert not published & {call["crc"] for call in made}
        if missing is not None and command[0] not in ("extend", "update"):
            assert sum(call["width"] for call in made if call["width"] > 1) <= missing
        return ended


def attack(
    zygote: Zygote, tally: Tally, kind: str, name: str, expected: dict[str, Any], folder: Path,
    faults: Sequence[Sequence[Fault]],
) -> None:  # fmt: skip
    """Hits the commands of a case with faults; then each must come to its end, all is as expected.

    Args:
        zygote: Forks the processes.
        tally: Counts the faults.
        kind: Of the faults, for the table.
        name: Of the case.
        expected: The state that it is to end with.
        folder: An empty one.
        faults: For each command, the faults that hit it, one after the other.
    """
    case = CASES[name]
    attacked = Attacked(zygote, folder, case)
    with tally.fault(kind, name, 0) as attempt:
        for command, planned in zip(case.commands, faults, strict=True):
            for fault in planned:
                ended = attacked(command, fault)
                wanted = FAILURES if fault.error else (0, -signal.SIGKILL)
                assert ended.code in wanted or is_over(case, ended), (fault, ended)
                attempt.count += ended.struck
            ended = attacked(command)
            assert ended.code == 0 or is_over(case, ended), (planned, ended.err)
        assert state_of(folder / "run") == expected
        attempt.ended("same")


def is_over(case: Case, ended: Ended) -> bool:
    """Whether a command says that nothing was left to be done."""
    return bool(case.over and case.over in ended.err)


def sampled(
    chance: random.Random, calls: Sequence[int], count: int, **fault: Any
) -> list[list[Fault]]:
    """Faults at random calls, spread over the commands as their calls are."""
    hit = Counter(chance.choices(range(len(calls)), calls, k=count))
    return [
        [_at(chance, most, fault) for _ in range(hit[number])] for number, most in enumerate(calls)
    ]


def _at(chance: random.Random, most: int, fault: dict[str, Any]) -> Fault:
    call = chance.randint(1, most)
    return Fault(call, **fault) if fault else Fault(call, after=chance.random() < 0.5)


def seeded(*what: object) -> random.Random:
    """Chance that is the same in every session."""
    return random.Random(zlib.crc32(repr(what).encode()))
