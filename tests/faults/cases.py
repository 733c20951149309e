"""Runs that the attacks disturb: each method, kind, and way of doing the work, small and quick."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from contents import run_contents, sha
from specs import FACTORIES, write_spec

from skerch_ooc.stages.measure.requests import test_vectors, whole_of
from skerch_ooc.store.rundir import is_planned, open_run
from skerch_ooc.store.shards import list_shards
from skerch_ooc.store.sketch import known_rounds

Command = tuple[object, ...]

ONE_COMMAND: tuple[Command, ...] = (("run", "spec.toml", "--run", "run", "--threads", 1),)
BY_STAGES: tuple[Command, ...] = (
    ("plan", "spec.toml", "--run", "run", "--threads", 1),
    ("measure", "run", "--threads", 1),
    ("merge", "run", "--threads", 1, "--rechunk"),
    ("recover", "run", "--threads", 1),
    ("assess", "run"),
)


def _shares(*stages: tuple[str, int]) -> tuple[Command, ...]:
    """Plans, and has stages done by so many elements each."""
    elements = (
        ("task", "run", stage, "--index", index, "--of", of, "--threads", 1)
        for stage, of in stages
        for index in range(of)
    )
    return (BY_STAGES[0], *elements)


BY_SHARES = _shares(
    ("measure", 2), ("merge", 2), ("solve", 1), ("measure.2", 2), ("merge.2", 2), ("solve.2", 1),
    ("vectors.2", 2), ("assess", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        factory: Of the operator, in tests/tools/factories.py.
        measurements: Columns of the right sketch.
        spec: Further keys of the spec.
        commands: What is called, one after the other.
        over: What a command says that was killed when all was done already; then it may refuse.
    """

    factory: str = "matrix"
    measurements: int = 40
    spec: dict[str, Any] = field(default_factory=dict)
    commands: Sequence[Command] = ONE_COMMAND
    over: str = ""

    def write(self, folder: Path) -> None:
        """Writes the spec into a folder."""
        spec = {"sketch": {"test_measurements": 12, "block": 16}} | self.spec
        write_spec(folder, self.factory, self.measurements, **spec)


def _of(kind: str, method: str, **recovery: object) -> Case:
    return Case(spec={"kind": kind, "recovery": {"method": method, **recovery}})


_LARGE = {"args": {"n": 140_000, "rank": 8, "rate": 0.5}}
_TALL = {"test_measurements": 4, "block": 8}
_UPDATE: Command = (
    "update", "run", "--factory", f"{FACTORIES}:matrix", "--arg", "kind=poly", "--scale", "3/4",
    "--forget", "1/2", "--threads", 1,
)  # fmt: skip

CASES = {
    **{f"{kind} {method}": _of(kind, method) for kind in ("eigh", "svd")
       for method in ("nystrom", "singlepass", "oversampled", "hmt")},
    "eigh hmt, power 1": _of("eigh", "hmt", power_iterations=1),
    "svd hmt, power 1": _of("svd", "hmt", power_iterations=1),
    "eigh implicit": _of("eigh", "nystrom", vectors="implicit"),
    "eigh ssrft complex": Case(
        spec={"dtype": "complex64", "operator": {"args": {"dtype": "complex64"}},
              "sketch": {"noise": "ssrft", "test_measurements": 12, "block": 16}}
    ),
    "svd double": Case(
        spec={"kind": "svd", "dtype": "float64", "operator": {"args": {"dtype": "float64"}}}
    ),
    "eigh in parts": Case(
        factory="sum_of_terms", spec={"operator": {"args": {"terms": 4, "n": 200}, "parts": 4}}
    ),
    "eigh to a tolerance": Case(
        measurements=120,
        spec={"tolerance": 1e-3, "sketch": {"test_measurements": 20, "block": 16}},
    ),
    "eigh extended": Case(
        commands=(*ONE_COMMAND, ("extend", "run", "--measurements", 72, "--threads", 1))
    ),
    "eigh updated": Case(commands=(*ONE_COMMAND, _UPDATE), over="say --again"),
    "eigh by stages, row shards": Case(commands=BY_STAGES),
    "svd by stages, row shards": Case(spec={"kind": "svd"}, commands=BY_STAGES),
    "eigh hmt by shares": Case(spec={"recovery": {"method": "hmt"}}, commands=BY_SHARES),
    "eigh by shares, many shards": Case(
        spec={"sketch": {"test_measurements": 12, "block": 1}},
        commands=_shares(("measure", 2), ("merge", 1), ("solve", 1), ("vectors", 1), ("assess", 1)),
    ),
    "eigh in pieces": Case(
        factory="synthetic", measurements=16, spec={"operator": _LARGE, "sketch": _TALL}
    ),
    "svd hmt in pieces": Case(
        factory="synthetic", measurements=16,
        spec={"kind": "svd", "operator": _LARGE, "sketch": _TALL, "recovery": {"method": "hmt"}},
    ),
}  # fmt: skip

LARGE = {name for name, case in CASES.items() if case.factory == "synthetic"}
"""Those whose sums are formed in several tasks, and whose vectors are in pieces."""


def state_of(run: Path) -> dict[str, Any]:
    """All that a run says, but for times, hosts and versions, and what its checks cost."""
    found: dict[str, Any] = dict(run_contents(run))
    for path in (run / "plan.json", *sorted(run.glob("plan.d/*.json"))):
        found[str(path.relative_to(run))] = sha(path.read_bytes())
    for path in sorted(run.glob("results/*/assessment.json")):
        stated = json.loads(path.read_text())
        del stated["products"]["probe"], stated["sha256"]
        found[str(path.relative_to(run))] = stated
    return found


def products_missing(directory: Path) -> int | None:
    """Products of parts that are to be made yet; ``None`` before they can be known."""
    if not is_planned(directory):
        return None
    run = open_run(directory)
    if run.cleaned() is not None:
        return 0
    if run.plan.rounds > 1 or run.plan.amendments[-1].tolerance is not None:
        return None
    *_, last = known_rounds(run)
    return sum(sum(map(len, ranges)) for ranges in last.missing_strips().values())


def published_products(directory: Path) -> set[int]:
    """The CRC-32 of what the operator was applied to, of each shard that is there.

    Of an operator in parts it does not tell which part was applied.
    """
    if not is_planned(directory):
        return set()
    run = open_run(directory)
    if len(run.plan.parts) > 1 or run.cleaned() is not None:
        return set()
    shards = list_shards(run.shards)
    return {
        _crc(directory, round_, shard)
        for round_ in known_rounds(run)
        for shard in shards
        if shard.role in round_.planned
    }


@cache
def _crc(directory: Path, round_: Any, shard: Any) -> int:
    whole = whole_of(round_, shard.role)
    return zlib.crc32(test_vectors(round_, shard.role, whole, shard.columns).tobytes())
