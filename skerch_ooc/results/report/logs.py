"""Reads the logs of a run: who did which work when, at what cost.

Nothing depends on a log, and nothing in it is trusted: anybody may have written it. What is not as
this package writes it is left out; what is kept is bounded, however long the log is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from skerch_ooc.store.rundir import Run

MOST_KEPT = 20_000
"""Pieces of work that are kept; those that follow only count in the sums."""

_MOST_NAMES = 64
_LONGEST_TEXT = 120
_MOST_SECONDS = 1e9
_LATEST = 4.1e9
"""About the end of the year 2099, in seconds since 1970: later times are not believed."""

_MOST_BYTES = 1e18
_OTHER_STAGES = ("merge", "basis", "recover")
_Entry = TypeVar("_Entry")
_ROLES = ("right", "left", "inner", "test")


@dataclass(frozen=True)
class WorkSpan:
    """A piece of work that a process did.

    Attributes:
        stage: ``"measure"``, ``"merge"``, ``"basis"`` or ``"recover"``.
        round: Number of the round.
        role: What was measured; for another stage the name of the stage.
        what: The same in full.
        worker: Host and process.
        start: When it began, in seconds since 1970.
        end: When it was done.
    """

    stage: str
    round: int
    role: str
    what: str
    worker: tuple[str, int]
    start: float
    end: float


@dataclass
class Cost:
    """The cost of a stage.

    Attributes:
        tasks: Number of pieces of work.
        seconds: The sum of their times.
        peak_bytes: Largest memory of a process that did one, until then; ``None`` if unknown.
        by_workers: Whether that is of workers, rather than of the process that put their work
            together.
    """

    tasks: int = 0
    seconds: float = 0.0
    peak_bytes: float | None = None
    by_workers: bool = False


@dataclass
class Logged:
    """All that the logs tell.

    Attributes:
        work: Pieces of work, in the order of their starts; at most :data:`MOST_KEPT`.
        more: Number of further pieces.
        costs: The cost of each stage.
        estimate: What planning foretold, by its names: numbers, and ``peak_bytes`` of stages as
            ``"peak_bytes.measure"``; empty if that is not known.
        versions: The versions of each library that were used.
        hosts: The hosts that worked.
        devices: The devices that were measured on.
        workers: The largest memory of workers on a stage whose own receipt has not come yet.
    """

    work: list[WorkSpan] = field(default_factory=list)
    more: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)
    versions: dict[str, set[str]] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    workers: dict[str, float] = field(default_factory=dict)

    def note_versions(self, record: Mapping[str, Any]) -> None:
        """Takes the versions out of what :func:`skerch_ooc.base.provenance.provenance` made."""
        versions = record.get("versions")
        for name, version in versions.items() if isinstance(versions, Mapping) else ():
            known, text = _text(name), _text(version)
            if known and text:
                _note(_entry(self.versions, known, set()), text)

    @property
    def versions_text(self) -> str:
        """The libraries with their versions, in one line."""
        return "; ".join(
            f"{name} {', '.join(sorted(known))}" for name, known in sorted(self.versions.items())
        )

    @property
    def measuring_seconds(self) -> float | None:
        """The seconds that all rounds of measuring took; ``None`` if that is unknown."""
        measured = [cost for stage, cost in self.costs.items() if stage.startswith("measure")]
        return sum(cost.seconds for cost in measured) if measured else None

    @property
    def peak(self) -> float | None:
        """The largest memory of a process; ``None`` if it is unknown."""
        known = (cost.peak_bytes for cost in self.costs.values() if cost.peak_bytes is not None)
        return max(known, default=None)

    @property
    def planned_peak(self) -> float | None:
        """The largest memory of a process that planning foretold; ``None`` if it is unknown."""
        foretold = (size for key, size in self.estimate.items() if key.startswith("peak_bytes."))
        return max(foretold, default=None)

    def by_the_clock(self, stage: str) -> float | None:
        """Returns the seconds in which any process worked on a stage; ``None`` if unknown."""
        # Unknown if not all work is kept.
        if self.more:
            return None
        together = sum(end - start for start, end in merged_spans(self.work, stage))
        return min(together, self.costs[stage].seconds)


def read_logs(run: Run, name: str) -> Logged:
    """Reads the logs of a run.

    Args:
        run: The run.
        name: The name of the result; how others were recovered is left out.
    """
    found = Logged()
    for record in run.log("plan"):
        if not found.estimate:
            found.estimate = _estimate(record.get("estimate"))
        found.note_versions(record)
    for record in run.receipts():
        if "recover" in (record.get("stage"), record.get("of")) and record.get("name") != name:
            continue
        _take(found, record)
    found.work.sort(key=lambda work: (work.start, work.end, work.worker, work.what))
    _tell_apart(found)
    return found


def merged_spans(work: list[WorkSpan], stage: str | None = None) -> list[tuple[float, float]]:
    """Merges pieces of work into the spans in which any process worked.

    Args:
        work: Pieces of work, in the order of their starts.
        stage: Count work on this stage only.
    """
    spans: list[tuple[float, float]] = []
    for piece in work:
        if stage is not None and stage_name(piece) != stage:
            continue
        if spans and piece.start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], piece.end)
        else:
            spans.append((piece.start, piece.end))
    return spans


def stage_name(work: WorkSpan) -> str:
    """Returns the stage of a piece of work, with its round if that is a later one."""
    return work.stage if work.round == 1 else f"{work.stage}, round {work.round}"


def _take(found: Logged, record: Mapping[str, Any]) -> None:
    work = _work(record)
    if work is None:
        _take_workers(found, record)
        return
    cost = _entry(found.costs, stage_name(work), Cost())
    cost.tasks += 1
    cost.seconds += work.end - work.start
    peak = _number(record.get("peak_bytes"), _MOST_BYTES)
    of_workers = found.workers.pop(work.stage, None)
    if of_workers is not None:
        known = cost.peak_bytes if cost.by_workers else None
        cost.peak_bytes = max(of_workers, known or 0.0)
        cost.by_workers = True
    elif peak is not None and not cost.by_workers:
        cost.peak_bytes = max(peak, cost.peak_bytes or 0.0)
    _note(found.hosts, work.worker[0])
    device = _text(record.get("device"))
    if device:
        _note(found.devices, device)
    found.note_versions(record)
    if len(found.work) < MOST_KEPT:
        found.work.append(work)
    else:
        found.more += 1


def _take_workers(found: Logged, record: Mapping[str, Any]) -> None:
    """Keeps the memory of workers until the receipt comes of the process that sent them tasks."""
    stage, peak = record.get("of"), _number(record.get("peak_bytes"), _MOST_BYTES)
    if record.get("stage") == "workers" and stage in _OTHER_STAGES and peak is not None:
        found.workers[stage] = max(peak, found.workers.get(stage, 0.0))


def _tell_apart(found: Logged) -> None:
    """Subtracts from the time of recovery what the same process spent on a merge meanwhile."""
    # Recovery merges first if that is not done, and then its receipt spans both.
    if "recover" not in found.costs:
        return
    inner = [work for work in found.work if work.stage in ("merge", "basis")][:_MOST_NAMES]
    outer = [work for work in found.work if work.stage == "recover"][:_MOST_NAMES]
    for merge, recovery in itertools.product(inner, outer):
        if merge.worker == recovery.worker:
            common = min(merge.end, recovery.end) - max(merge.start, recovery.start)
            found.costs["recover"].seconds -= max(0.0, common)
    found.costs["recover"].seconds = max(0.0, found.costs["recover"].seconds)


def _work(record: Mapping[str, Any]) -> WorkSpan | None:
    """Reads a piece of work from a record; ``None`` if it does not tell of one in full."""
    stage, noted = record.get("stage"), _time(record.get("time"))
    host, pid = _text(record.get("host")), _whole(record.get("pid"))
    number = _whole(record.get("round", 1))
    if noted is None or not host or pid is None or not number:
        return None
    if stage == "measure":
        blocks = list(_blocks(record))
        seconds = _number(record.get("task_seconds"), _MOST_SECONDS)
        # The receipt takes its time once the product is there, before the shard is written.
        writing = _number(record.get("write_seconds"), _MOST_SECONDS)
        if not blocks or not seconds or writing is None or record.get("products") == 0:
            return None
        role, end = blocks[0][0], noted + writing
        what = ", ".join(f"columns {start} to {stop} of {role}" for role, start, stop in blocks)
        part = _whole(record.get("part", 0))
        what += f", part {part}" if part else ""
    else:
        seconds, end = _number(record.get("seconds"), _MOST_SECONDS), noted
        if seconds is None or stage not in _OTHER_STAGES:
            return None
        role = what = stage
    return WorkSpan(stage, number, role, what, (host, pid), end - seconds, end)


def _blocks(record: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    blocks = record.get("blocks", [record])
    for block in blocks[:_MOST_NAMES] if isinstance(blocks, list) else ():
        if not isinstance(block, Mapping):
            continue
        role, columns = _text(block.get("role")), block.get("columns")
        if role and isinstance(columns, list) and len(columns) == 2:
            start, stop = map(_whole, columns)
            role = role.partition("-")[0]
            known = role in _ROLES or (role.startswith("round") and role[5:].isdigit())
            if known and start is not None and stop is not None and start < stop:
                yield role, start, stop


def _estimate(stated: Any) -> dict[str, float]:
    if not isinstance(stated, Mapping):
        return {}
    peaks: Any = stated.get("peak_bytes")
    named = {key: stated.get(key) for key in
             ("products", "tasks", "shard_bytes", "result_bytes", "seconds")}  # fmt: skip
    for stage in ("measure", "merge", "recover") if isinstance(peaks, Mapping) else ():
        named[f"peak_bytes.{stage}"] = peaks.get(stage)
    numbers = {key: _number(entry, _MOST_BYTES) for key, entry in named.items()}
    return {key: number for key, number in numbers.items() if number is not None}


def _entry(entries: dict[str, _Entry], name: str, new: _Entry) -> _Entry:
    """Returns the entry of a name; if there are too many already, a new one that is not kept."""
    has_room = name in entries or len(entries) < _MOST_NAMES
    return entries.setdefault(name, new) if has_room else new


def _note(names: set[str], name: str) -> None:
    if len(names) < _MOST_NAMES:
        names.add(name)


def _number(stated: Any, most: float) -> float | None:
    if isinstance(stated, bool) or not isinstance(stated, (int, float)):
        return None
    return float(stated) if 0 <= stated <= most else None


def _whole(stated: Any) -> int | None:
    return stated if type(stated) is int and 0 <= stated <= 2**53 else None


def _text(stated: Any) -> str | None:
    return stated[:_LONGEST_TEXT] if isinstance(stated, str) else None


def _time(stated: Any) -> float | None:
    if not isinstance(stated, str) or len(stated) > _LONGEST_TEXT:
        return None
    try:
        parsed = datetime.fromisoformat(stated)
        noted = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return noted if 0 <= noted < _LATEST else None
