"""What is done, and what comes next, from the files alone: nothing of the run is imported."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any, cast

from skerch_ooc.base.errors import CorruptError, quoted
from skerch_ooc.base.files import is_there, private_files
from skerch_ooc.base.partition import Range
from skerch_ooc.planning.plan import described
from skerch_ooc.results.assess import read_assessment
from skerch_ooc.store import names
from skerch_ooc.store.cleaned import Cleaned
from skerch_ooc.store.pieces import lost_pieces
from skerch_ooc.store.result_files import (
    has_derived,
    has_sums,
    is_assessed,
    result_path,
    results_of,
)
from skerch_ooc.store.rundir import Run, require_folder
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import Rectangle, bytes_of, list_shards, strangers
from skerch_ooc.store.sketch import Round, basis_of, count_products, noted_digest, sketch_folder


@dataclass(frozen=True)
class Status:
    """The state of a run.

    Attributes:
        directory: Where it is.
        run_id: SHA-256 of its plan.
        operator: The factory, or ``None`` for a Python object.
        summands: What the operator is, by its summands, if it was updated; else ``None``.
        shape: Of the operator.
        dtype: Of the products.
        products: Counts ``planned``, ``done`` and ``probe``.
        columns: For each role, columns ``planned`` and ``done``.
        missing: For each role, the column ranges that are not measured.
        shards: Number of column shards.
        shard_bytes: Bytes of the column shards.
        merged: Whether there are merged sums.
        results: For each result, its relative error (``None`` before it is assessed).
        leftovers: Private files of processes that were killed, or are still working.
        strangers: Files among the shards that are none.
        next: The command that comes next; ``None`` when all is done.
        cleaned: What was noted when the shards were removed, if they were.
    """

    directory: str
    run_id: str
    operator: str | None
    summands: str | None
    shape: tuple[int, int]
    dtype: str
    products: dict[str, int]
    columns: dict[str, dict[str, int]]
    missing: dict[str, list[str]]
    shards: int
    shard_bytes: int
    merged: bool
    results: dict[str, float | None]
    leftovers: int
    strangers: list[str]
    next: str | None
    cleaned: dict[str, Any] | None = None

    @property
    def columns_missing(self) -> str:
        """How many columns of which roles are not there, for people; empty if none is missed."""
        if self.cleaned is not None:
            return ""
        lacking = {role: count["planned"] - count["done"] for role, count in self.columns.items()}
        return ", ".join(f"{count} columns of {role}" for role, count in lacking.items() if count)

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return asdict(self)


def status(run: Run) -> Status:
    """Looks up the state of a run; reads names, plan and assessments, no data.

    What was merged is known by names, sizes and times of the shards; should they have been copied
    since, each is opened to see what it is.

    Raises:
        IncompleteError: If the folder of the shards is gone.
        CorruptError: If a basis, or a shard of an earlier round, is damaged.
    """
    require_folder(run)
    mark = run.cleaned()
    if mark is not None:
        return _cleaned(run, mark)
    plan = run.plan
    shards = list_shards(run.shards)
    rounds, last_digest = _rounds(run, shards)
    missing: dict[str, list[Range]] = {}
    planned: dict[str, int] = {}
    for known in rounds:
        missing |= {_shown(known, role): gaps for role, gaps in known.missing(shards).items()}
        planned |= {_shown(known, role): len(span) for role, span in known.planned.items()}
    left = {role: sum(map(len, pieces)) for role, pieces in missing.items()}
    incomplete = any(left.values())
    merged = not incomplete and _is_merged(rounds[-1], last_digest)
    # Sums that were removed are not missing where nobody needs them any more.
    measured = not incomplete and rounds[-1].number == plan.rounds
    stale = not measured or is_stale(run, last_digest)
    return Status(
        **_plan_of(run),
        products=count_products(run, rounds, shards),
        columns={
            role: {"planned": count, "done": count - left[role]} for role, count in planned.items()
        },
        missing={role: [str(piece) for piece in pieces] for role, pieces in missing.items()},
        shards=len(shards),
        shard_bytes=bytes_of(run.shards, shards),
        merged=merged,
        results=_results(run),
        leftovers=_leftovers(run),
        strangers=strangers(run.shards),
        next=_next(run, incomplete, merged, stale),
    )


def _plan_of(run: Run) -> dict[str, Any]:
    """What the plan says of a run."""
    return {
        "directory": str(run.directory),
        "run_id": run.plan.run_id,
        "operator": run.plan.identity.factory,
        "summands": described(run.plan) if run.plan.summands > 1 else None,
        "shape": run.plan.identity.shape,
        "dtype": run.plan.identity.dtype,
    }


def _leftovers(run: Run) -> int:
    return len(private_files(run.shards))


def _cleaned(run: Run, mark: Cleaned) -> Status:
    """The state of a run whose shards were removed, or are being."""
    shards = list_shards(run.shards)
    again = f"skerch-ooc clean {quoted(run.directory)} --shards"
    return Status(
        **_plan_of(run),
        products=count_products(run),
        columns={role: {"planned": n, "done": n} for role, n in mark.columns.items()},
        missing={role: [] for role in mark.columns},
        shards=len(shards),
        shard_bytes=bytes_of(run.shards, shards),
        merged=False,
        results=_results(run),
        leftovers=_leftovers(run),
        strangers=strangers(run.shards),
        next=again if shards else None,
        cleaned=asdict(mark),
    )


def _shown(round_: Round, role: str) -> str:
    """A role as people are told of it: without the hash of its basis."""
    return role.partition("-")[0] if round_.basis else role


def _rounds(run: Run, listed: list[Rectangle]) -> tuple[list[Round], str | None]:
    """The known rounds, and the digest of the last one's sketch if it is merged and not damaged."""
    # Else there is nothing to compare with, and shards need not be opened.
    derived = has_derived(run)
    rounds, following = [], cast("Round | None", Round(run))
    while (current := following) is not None:
        rounds.append(current)
        complete = derived and not any(current.missing(listed).values())
        found = _digest_of(current, listed) if complete else None
        following = None
        if found is not None and current.number < run.plan.rounds:
            following = current.followed_by(basis_of(current, found))
    return rounds, found


def _digest_of(round_: Round, listed: list[Rectangle]) -> str | None:
    """The digest of a complete round's sketch; ``None`` if a shard of the last round is damaged."""
    noted = noted_digest(round_, listed)
    if noted is not None or round_.number < round_.run.plan.rounds:
        return noted or round_.sketch.digest
    try:
        return round_.sketch.digest
    except CorruptError:
        # The verbs that read it tell more.
        return None


def _is_merged(round_: Round, sketch_digest: str | None) -> bool:
    """Whether the sums of a complete round's sketch are there, and the basis that follows."""
    if sketch_digest is None:
        return has_sums(round_.run)
    folder = sketch_folder(round_.run, sketch_digest)
    done = all(is_there(folder / names.TOTAL_SUMS.name(side=side.name)) for side in round_.sides)
    return done and round_.number == round_.run.plan.rounds


def _results(run: Run) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for path in results_of(run):
        error = None
        with contextlib.suppress(OSError, CorruptError):
            error = read_assessment(path).get("relative_error")
        # Whatever a file holds that people may edit: only a number can be shown as one.
        found[path.parent.name] = error if isinstance(error, float) else None
    return found


def is_stale(run: Run, sketch_digest: str | None) -> bool:
    """Whether there is no default result, or one of another sketch than there is now.

    Args:
        run: The run.
        sketch_digest: The digest of the last round's sketch; ``None`` if a shard is damaged.
    """
    try:
        file = SealedFile(result_path(run, "default"))
    except FileNotFoundError:
        return True
    except CorruptError:
        # The verbs that read it tell more.
        return False
    return file.identity.get("sketch") != sketch_digest or bool(lost_pieces(file))


def _next(run: Run, incomplete: bool, merged: bool, stale: bool) -> str | None:
    directory = run.directory
    if incomplete:
        return run.how_to_measure()
    if stale:
        return f"skerch-ooc {'recover' if merged else 'merge'} {quoted(directory)}"
    if not is_assessed(run, "default"):
        return f"skerch-ooc assess {quoted(directory)}"
    return None
