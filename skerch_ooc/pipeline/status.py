"""Status: how far a run is, for people and scripts; imports nothing that the run names."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from skerch_ooc.algebra.krylov.pairs import pairs_of
from skerch_ooc.algebra.krylov.space import Space
from skerch_ooc.base.errors import CorruptError, IncompleteError, quoted
from skerch_ooc.base.files import is_there, sizes_in, written_at
from skerch_ooc.base.partition import Range
from skerch_ooc.base.private_names import is_private
from skerch_ooc.executors.slurm.outcomes import QueueStatus
from skerch_ooc.executors.slurm.queue import QueueQuestion
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.plan import described
from skerch_ooc.results.assess import read_assessment
from skerch_ooc.results.pairs import relative_bounds
from skerch_ooc.stages.measure.pace import pace_of
from skerch_ooc.stages.merge.task import merge_pieces
from skerch_ooc.stages.recover.krylov import Search, goal_of
from skerch_ooc.stages.recover.task import vector_pieces
from skerch_ooc.store.cleaned import Cleaned
from skerch_ooc.store.result_files import results_of
from skerch_ooc.store.rundir import Run, open_run, require_folder
from skerch_ooc.store.shards import Rectangle, shards_among, strange_names
from skerch_ooc.store.sketch import Round, count_products

_QUEUE_SECONDS = 5.0
"""How long a look waits for an answer about the queue, which it can do without."""
_LONGEST_INTERVAL = 86400.0

_LAST_PIECES = 16
_LEAST_PIECES = 3
_SLACK_SECONDS = 60.0


@dataclass(frozen=True)
class PairsSoFar:
    """What the rounds of ``krylov`` have found so far.

    Attributes:
        round: How many rounds are measured and merged.
        rounds: The most rounds.
        wanted: How many pairs are looked for.
        found: How many of them there are.
        met: How many of these are known to the tolerance; ``None`` without one.
        tolerance: The relative error to which they are to be known, if there is one.
        worst: The largest relative bound of those that were found; ``None`` if there is none.
    """

    round: int
    rounds: int
    wanted: int
    found: int
    met: int | None
    tolerance: float | None
    worst: float | None

    @classmethod
    def of(cls, search: Search) -> PairsSoFar:
        """Counts the pairs of the rounds up to one.

        Raises:
            IncompleteError: If a round is not merged.
            CorruptError: If a file is damaged.
        """
        plan = search.round.run.plan
        goal = goal_of(plan)
        pairs = pairs_of(Space.of(search.chain), goal.which).upto(goal.rank)
        relative = relative_bounds(pairs.values, pairs.bounds - pairs.rounding, pairs.norm)
        return cls(
            round=search.round.number,
            rounds=plan.rounds,
            wanted=goal.rank,
            found=len(pairs.values),
            met=None if goal.tolerance is None else int(pairs.met(goal.tolerance).sum()),
            tolerance=goal.tolerance,
            worst=float(relative.max()) if len(relative) else None,
        )


@dataclass(frozen=True)
class TimeLeft:
    """How long the stage that comes next will take.

    Attributes:
        stage: ``"measure"``, or the stage that follows.
        seconds: The seconds by the workers that were seen lately, or by one process if none was;
            ``None`` if nothing is known.
        workers: Processes that were seen at work lately.
        tasks: How many of the last tasks tell it; 0 if the plan's probe does, or nothing.
        done: How many pieces of that stage are done; of measuring products are counted instead.
        pieces: How many there are; 0 where it is made in one.
    """

    stage: str
    seconds: float | None = None
    workers: int = 0
    tasks: int = 0
    done: int = 0
    pieces: int = 0

    @classmethod
    def of(cls, state: State) -> TimeLeft | None:
        """Tells it for a run; ``None`` if all is done."""
        if state.next is None:
            return None
        if not state.incomplete:
            return _left_after_measuring(state)
        parts = state.run.plan.parts
        gaps = state.last.missing_strips(state.shards)
        summands = frozenset(parts[strip.part].summand for strip in gaps if gaps[strip])
        pace = pace_of(state.run, summands, time.time())
        left = state.last.products_left(state.shards)
        seconds = None if pace.seconds is None else pace.seconds * left / max(1, pace.workers)
        return cls("measure", seconds, pace.workers, pace.tasks)


def _left_after_measuring(state: State) -> TimeLeft:
    """Tells it by the pieces that are published already, of what is made in several."""
    stage = "assess" if not state.stale else "recover" if state.merged else "merge"
    if stage == "assess" or state.digest is None:
        return TimeLeft(stage)
    if stage == "merge":
        pieces = [(path, is_there(path)) for _, path in merge_pieces(state.last, state.digest)]
    else:
        run = state.run
        planned = vector_pieces(run, state.digest, run.plan.recovery, "default") or []
        pieces = [(piece.path, piece.done) for piece in planned]
    done = [path for path, there in pieces if there]
    typical, tasks, lately = _pace_of_files(done[-_LAST_PIECES:])
    seconds = None if typical is None else typical * (len(pieces) - len(done))
    return TimeLeft(stage, seconds, int(lately), tasks, len(done), len(pieces))


def _pace_of_files(paths: Sequence[Path]) -> tuple[float | None, int, bool]:
    """Returns the typical seconds from one file to the next, of how many, and whether one is new.

    The median is that of the pace while work went on, whatever pauses there were.
    """
    written = list[float]()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            written.append(written_at(path) / 1e9)
    if len(written) <= _LEAST_PIECES:
        return None, 0, False
    written.sort()
    typical = statistics.median(later - one for one, later in itertools.pairwise(written))
    return typical, len(written), time.time() - written[-1] <= 2 * typical + _SLACK_SECONDS


@dataclass(frozen=True)
class Status:
    """The status of a run, in figures.

    Attributes:
        directory: The run directory.
        run_id: SHA-256 of its plan.
        operator: The factory, or ``None`` for a Python object.
        summands: The summands of the operator, if it was updated; else ``None``.
        shape: The shape of the operator.
        dtype: The dtype of the products.
        products: Counts ``planned``, ``done`` and ``probe``.
        columns: For each role, columns ``planned`` and ``done``.
        missing: For each role, the column ranges that are not measured.
        shards: Number of column shards.
        shard_bytes: Bytes of the column shards.
        merged: Whether there are merged sums.
        results: For each result, its relative error (``None`` before it is assessed).
        leftovers: Private files of processes that were killed, or are still working.
        strangers: Files among the shards that are no shards.
        next: The command that comes next; ``None`` when all is done.
        cleaned: What was noted when the shards were removed, if they were.
        pairs: How far the rounds of ``krylov`` are; ``None`` for other methods, before the first
            round is merged, and once sums or shards were removed.
        left: How long the stage that comes next will take; ``None`` when all is done.
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
    pairs: PairsSoFar | None = None
    left: TimeLeft | None = None

    @property
    def columns_missing(self) -> str:
        """The numbers of missing columns by role, for people; empty if none is missing."""
        if self.cleaned is not None:
            return ""
        lacking = {role: count["planned"] - count["done"] for role, count in self.columns.items()}
        return ", ".join(f"{count} columns of {role}" for role, count in lacking.items() if count)

    @property
    def all_of_it(self) -> str | None:
        """The command that does all that is left; ``None`` where no single command does."""
        by_verbs = (self.next or "").startswith("skerch-ooc ") and self.cleaned is None
        return f"skerch-ooc run --run {quoted(self.directory)}" if by_verbs else None


def status(run: Run) -> Status:
    """Looks up the state of a run; reads names, plan and assessments, no data.

    It recognises merged shards by their names, sizes and times; if they were copied since, it opens
    each of them.

    Raises:
        IncompleteError: If the folder of the shards is gone, or a result for which the shards were
            removed.
        CorruptError: If a basis, or a shard of an earlier round, is damaged.
    """
    require_folder(run)
    # Listed once: in a bucket, where there are many, that takes seconds.
    mark, sizes = run.cleaned(), sizes_in(run.shards)
    if mark is not None:
        return _cleaned(run, mark, sizes)
    return _status_of(State(run, by_notes=True, names=sizes.keys()), sizes)


def looks(directory: Path, interval: float) -> Iterator[tuple[Status, QueueStatus | None]]:
    """Looks at a run again and again, until all is done.

    Args:
        directory: The run directory.
        interval: Seconds between two looks.

    Yields:
        The status, and that of the last submission to Slurm if there was any. The run goes on in
        the way in which it was submitted.

    Raises:
        IncompleteError: If jobs were submitted, and none of them is in the queue any more.
    """
    while True:
        run = open_run(directory)
        # Asked first, and answered while the files are looked at: a busy queue takes seconds.
        question = QueueQuestion(run.logs)
        found = status(run)
        queue = question.answer(_QUEUE_SECONDS)
        if queue and found.next and found.cleaned is None:
            found = replace(found, next=f"skerch-ooc submit {quoted(directory)}")
        yield found, queue
        if found.next is None:
            return
        if queue and queue.is_over:
            raise IncompleteError(f"no job is in the queue any more; go on with: {found.next}")
        time.sleep(min(interval, _LONGEST_INTERVAL))


def _status_of(state: State, sizes: Mapping[str, int]) -> Status:
    """Makes the status of a run that has its shards."""
    missing: dict[str, list[Range]] = {}
    planned: dict[str, int] = {}
    for known in state.rounds:
        missing |= {_shown(known, role): gaps for role, gaps in known.missing(state.shards).items()}
        planned |= {_shown(known, role): len(span) for role, span in known.planned.items()}
    left = {role: sum(map(len, pieces)) for role, pieces in missing.items()}
    return Status(
        **_facts_of(state.run, state.shards, sizes),
        products=count_products(state.run, state.rounds, state.shards),
        columns={
            role: {"planned": count, "done": count - left[role]} for role, count in planned.items()
        },
        missing={role: [str(piece) for piece in pieces] for role, pieces in missing.items()},
        merged=state.merged,
        next=state.next,
        pairs=None if state.run.plan.krylov is None else _pairs_so_far(state),
        left=TimeLeft.of(state),
    )


def _pairs_so_far(state: State) -> PairsSoFar | None:
    """Looks at the pairs of the last round whose sums are there; opens no shard."""
    last, searches = state.last, list[Search]()
    if state.digest is not None:
        searches.append(Search.of(last, state.digest))
    if last.basis is not None:
        # A block states the sketch of the round before it.
        before = last.at_number(last.number - 1)
        searches.append(Search.of(before, str(last.basis.file.identity["sketch"])))
    for search in searches:
        # The verbs that read the sums tell more of what is wrong with them.
        with contextlib.suppress(IncompleteError, CorruptError):
            return PairsSoFar.of(search)
    return None


def _cleaned(run: Run, mark: Cleaned, sizes: Mapping[str, int]) -> Status:
    """Makes the status of a run whose shards were removed, or are being removed."""
    if mark.lost_results(run.directory, run.plan.identity.kind):
        run.require_shards()
    shards = shards_among(sizes)
    again = f"skerch-ooc clean {quoted(run.directory)} --shards"
    return Status(
        **_facts_of(run, shards, sizes),
        products=count_products(run),
        columns={role: {"planned": n, "done": n} for role, n in mark.columns.items()},
        missing={role: [] for role in mark.columns},
        merged=False,
        next=again if shards else None,
        cleaned=asdict(mark),
    )


def _facts_of(run: Run, shards: list[Rectangle], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Collects what the plan says of a run, and what lies in its folders."""
    return {
        "directory": str(run.directory),
        "run_id": run.plan.run_id,
        "operator": run.plan.identity.factory,
        "summands": described(run.plan) if run.plan.summands > 1 else None,
        "shape": run.plan.identity.shape,
        "dtype": run.plan.identity.dtype,
        "shards": len(shards),
        "shard_bytes": sum(sizes.get(shard.name, 0) for shard in shards),
        "results": _results(run),
        "leftovers": sum(map(is_private, sizes)),
        "strangers": strange_names(sizes),
    }


def _shown(round_: Round, role: str) -> str:
    """Returns the name of a role for people: without the hash of its basis."""
    return role.partition("-")[0] if round_.basis else role


def _results(run: Run) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for path in results_of(run):
        error = None
        with contextlib.suppress(OSError, CorruptError):
            error = read_assessment(path).get("relative_error")
        # People may edit the file: only a number is shown as one.
        found[path.parent.name] = error if isinstance(error, float) else None
    return found
