"""Clean: removes files that nothing needs any more, and says what it kept and why.

There are three steps. Without options clean removes leftovers of dead processes, and derived files
that were superseded. With ``sketch`` it removes what the merge stage has made and can make again.
With ``shards`` it also removes the column shards, which products were paid for: only those of a
finished run whose results were verified, and after a mark was published
(:mod:`skerch_ooc.store.cleaned`).

It imports nothing that the run names, and removes only plain files with names of this package, in
real folders of the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError, counted
from skerch_ooc.base.html import never_raising, table
from skerch_ooc.base.keywords import tells_keywords
from skerch_ooc.base.progress import Progress
from skerch_ooc.base.resources import format_bytes, release_memory
from skerch_ooc.executors.slurm import commands
from skerch_ooc.executors.slurm.queue import elements_in_queue, scancel_command
from skerch_ooc.pipeline.needs import mark_of, needs_of, publish_mark, require_finished, verify_kept
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import Cleaned
from skerch_ooc.store.inventory import (
    Entry,
    Inventory,
    make_durable,
    remove_entries,
    take_inventory,
)
from skerch_ooc.store.leftovers import DAY, Owner, may_be_at_work, seconds_of
from skerch_ooc.store.rundir import Run

LEFTOVERS, SUPERSEDED, DUPLICATES, SKETCH, SHARDS = KINDS = (
    "leftovers", "superseded", "duplicates", "sketch", "shards",
)  # fmt: skip
"""The reasons for which files are removed, in the order in which they are removed."""


@dataclass(frozen=True)
class Freed:
    """A file that was removed, or would be.

    Attributes:
        path: The path of the file within the run.
        kind: The reason: ``"leftovers"``, ``"superseded"``, ``"duplicates"``, ``"sketch"`` or
            ``"shards"``.
        bytes: The size of the file.
    """

    path: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class Cleaning:
    """The outcome of a cleaning: what was removed, or would be.

    Attributes:
        directory: The run directory.
        dry_run: Whether nothing was removed.
        freed: The files that were removed, or would be.
        kept: Why other files were kept, where that may be a surprise.
        strangers: Paths among the files of the run that are none of this package's.
        larger: Bytes that further options would free, by the option.
    """

    directory: str
    dry_run: bool
    freed: list[Freed]
    kept: list[str]
    strangers: list[str]
    larger: dict[str, int]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Counts the files and bytes of each kind that there is, in order."""
        sizes = {kind: [one.bytes for one in self.freed if one.kind == kind] for kind in KINDS}
        return {kind: (len(found), sum(found)) for kind, found in sizes.items() if found}

    @never_raising
    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (kind, f"{counted(files, 'file')}, {format_bytes(size)}")
            for kind, (files, size) in self.counts().items()
        ]
        rows += [("kept", reason) for reason in self.kept]
        rows += [(f"with {option}", f"{format_bytes(size)} more")
                 for option, size in self.larger.items()]  # fmt: skip
        total = format_bytes(sum(one.bytes for one in self.freed))
        would = "would free" if self.dry_run else "freed"
        return table(f"Cleaning of {self.directory}: {would} {total}", rows)

    def as_json(self) -> dict[str, Any]:
        """Returns all figures as JSON values."""
        return {
            "directory": self.directory,
            "dry_run": self.dry_run,
            "freed": {
                kind: {"files": files, "bytes": size}
                for kind, (files, size) in self.counts().items()
            },
            "bytes": sum(one.bytes for one in self.freed),
            "files": [asdict(one) for one in self.freed],
            "kept": self.kept,
            "strangers": self.strangers,
            "larger": self.larger,
        }  # fmt: skip


@dataclass
class _Going:
    """The files that may be removed, each with one reason; and why others are kept."""

    kept: list[str]
    kinds: dict[Entry, str] = field(default_factory=dict)

    def add(self, kind: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.kinds.setdefault(entry, kind)

    def of(self, kind: str) -> list[Entry]:
        return [entry for entry, own in self.kinds.items() if own == kind]

    def size(self, kind: str) -> int:
        return sum(entry.size for entry in self.of(kind))


@tells_keywords
def clean(
    run: Run,
    *,
    sketch: bool = False,
    shards: bool = False,
    older_than: float | str = DAY,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Cleaning:
    """Removes files of a run that are not needed any more.

    Without options these are leftovers of processes that have ended, and files that nothing uses.

    Args:
        run: The run.
        sketch: Remove also what the merge stage of a finished run made: `merge` makes it again from
            the shards. Bases of ``hmt`` stay, as shards depend on their bits.
        shards: Remove also the column shards of a finished run, and all else but the results.
            Nothing can be measured, merged or recovered afterwards.
        older_than: Seconds, or a text such as ``"12h"``, after which a private file of another host
            is of a dead process if nobody has written it; one day by default.
        dry_run: Remove nothing; only list what would go.
        progress: Shows how far it is.

    Returns:
        What was removed, or would be, and what further options would free.

    Raises:
        IncompleteError: If something may still need the files; it says what, and what to do.
        UsageError: If jobs of the run are in the queue of Slurm, or folders of it are links.
        CorruptError: If a file that is to stay, or must be read first, is damaged.
    """
    inventory, seconds = take_inventory(run.directory), seconds_of(older_than)
    if sketch or shards:
        _require_rest(run, seconds, queue=shards)
    going = _sort(run, inventory, seconds, whole=sketch or shards)
    if shards:
        mark = _verified_mark(run, inventory, progress or Progress())
        # Verifying may have taken long: a process may have begun to work on the run meanwhile.
        _require_rest(run, seconds, queue=False)
        if not dry_run:
            publish_mark(run, mark)
    steps = [LEFTOVERS, SUPERSEDED, DUPLICATES]
    steps += ([SKETCH] if sketch or shards else []) + ([SHARDS] if shards else [])
    entries = [(kind, entry) for kind in steps for entry in going.of(kind)]
    if not dry_run:
        if any(kind != LEFTOVERS for kind, _ in entries):
            make_durable(run.directory, inventory, _staying(inventory, going, steps))
        gone = {e.path for e in remove_entries(run.directory, [entry for _, entry in entries])}
        # Sketches that nobody uses any more may hold descriptors, and these the room on the disk.
        release_memory()
        entries = [(kind, entry) for kind, entry in entries if entry.path in gone]
    return Cleaning(
        directory=str(run.directory),
        dry_run=dry_run,
        freed=[Freed(entry.path, kind, entry.size) for kind, entry in entries],
        kept=going.kept,
        strangers=_strangers(inventory),
        larger=_larger(going, sketch, shards),
    )


def _sort(run: Run, inventory: Inventory, older_than: float, *, whole: bool) -> _Going:
    """Sorts the files of a run by the reason for which they may be removed.

    Args:
        run: The run.
        inventory: The files of the run.
        older_than: Seconds after which a private file of another host is of a dead process.
        whole: Whether to refuse a run that is not finished, or damaged; else its leftovers go.

    Raises:
        IncompleteError: If ``whole`` and the run is not finished.
        CorruptError: If ``whole`` and a file is damaged.
    """
    working = _at_work(inventory, older_than)
    going = _Going([_told(working)] if working else [])
    going.add(LEFTOVERS, [entry for entry in _private(inventory) if entry not in working])
    mark = run.cleaned()
    try:
        _sort_published(run, mark, inventory, going, unused=not working)
    except (IncompleteError, CorruptError) as error:
        if whole:
            raise
        going.kept.append(f"all but leftovers: {error}")
    return going


def _verified_mark(run: Run, inventory: Inventory, progress: Progress) -> Cleaned:
    """Verifies all that is to stay, and returns the mark to publish before the shards go."""
    shown = [entry.size for entry in inventory.entries if entry.kind is names.COLUMN_SHARD]
    mark = run.cleaned() or mark_of(run, len(shown), sum(shown))
    verify_kept(run, mark, progress)
    return mark


def _staying(inventory: Inventory, going: _Going, steps: Sequence[str]) -> list[Entry]:
    """Lists the published files that the removal of others rests on: all that stay, but logs."""
    return [
        entry
        for entry in inventory.entries
        if entry.kind is not None
        and entry.folder[:1] != (names.LOGS,)
        and going.kinds.get(entry) not in steps
        and not entry.is_private
    ]


def _private(inventory: Inventory) -> list[Entry]:
    return [entry for entry in inventory.entries if entry.is_private]


def _at_work(inventory: Inventory, older_than: float) -> list[Entry]:
    """Lists the private files of processes that may be at work."""
    private = _private(inventory)
    return [one for one in private if may_be_at_work(one.name, one.written, older_than)]


def _told(working: Sequence[Entry]) -> str:
    """Says which processes the private files that are kept belong to."""
    newest = max(working, key=lambda entry: entry.written)
    owner = Owner.of(newest.name) or "some process"
    age = max(0.0, time.time() - newest.written)
    return (
        f"{len(working)} private file(s) of processes that may be at work: {newest.path} of "
        f"{owner}, written {age:.0f} s ago"
    )


def _require_rest(run: Run, older_than: float, *, queue: bool) -> None:
    """Refuses while some process or job may still read the files."""
    inventory = take_inventory(run.directory)
    working = _at_work(inventory, older_than)
    if working:
        raise IncompleteError(
            f"{run.directory} has {_told(working)}; wait until it has ended. If it has, and this "
            "host cannot know: --older-than 0"
        )
    links = [
        path for path in inventory.others if path in (names.SHARDS, names.SKETCH, names.RESULTS)
    ]
    if links:
        raise UsageError(
            f"{run.directory / links[0]} is a link: nothing behind a link is removed; put the "
            "folder itself in its place"
        )
    if not queue or not commands.available("squeue"):
        # Without squeue the queue is not known; but jobs of a finished run have nothing to do.
        return
    queued = elements_in_queue(run.logs)
    if queued:
        raise UsageError(
            f"{len(queued)} element(s) of jobs of {run.directory} are in the queue: wait for them, "
            f"or stop them with: {scancel_command(queued)}"
        )


def _sort_published(
    run: Run, mark: Cleaned | None, inventory: Inventory, going: _Going, *, unused: bool
) -> None:
    """Sorts the published files of a finished run; a cleaned run needs its results alone.

    Raises:
        IncompleteError: If the run is not finished: its files may still be needed.
        CorruptError: If a file is damaged.
    """
    entries = inventory.entries
    if mark is None:
        require_finished(run)
        needs = needs_of(run)
        if unused:
            # Both are found before any file is removed, so that a damaged run loses nothing.
            superseded, duplicates = needs.superseded(inventory), needs.duplicates(inventory)
            going.add(SUPERSEDED, _heads_first(superseded))
            going.add(DUPLICATES, duplicates)
        kept = names.BASES | (names.SUMS_OF_ROUNDS if run.plan.krylov is not None else set())
        going.add(SKETCH, [e for e in entries if e.kind in names.DERIVED - kept])
    # Without shards a basis is of no use.
    going.add(SKETCH if mark else SHARDS, [e for e in entries if e.kind in names.DERIVED])
    going.add(SHARDS, [e for e in entries if e.kind in {names.COLUMN_SHARD, *names.MAKING}])


def _heads_first(entries: Sequence[Entry]) -> list[Entry]:
    """Sorts files by folders, those that name others before those that they name."""
    # A run that is killed in between has pieces that nothing names, never a name without its piece.
    return sorted(entries, key=lambda entry: (entry.folder, ".t" in entry.name, entry.name))


def _larger(going: _Going, sketch: bool, shards: bool) -> dict[str, int]:
    """Counts the bytes that further options would free; none for a run that is not finished."""
    found = {}
    if not (sketch or shards):
        found["--sketch"] = going.size(SKETCH)
    if not shards:
        found["--shards"] = going.size(SHARDS) + found.get("--sketch", 0)
    return {option: size for option, size in found.items() if size}


def _strangers(inventory: Inventory) -> list[str]:
    """Lists files among shards and sketches, and links, that are none of this package's."""
    found = list(inventory.others)
    for entry in inventory.entries:
        among = entry.folder[:1] in ((names.SHARDS,), (names.SKETCH,))
        if among and entry.kind is None and not entry.is_private:
            found.append(entry.path)
    return sorted(found)
